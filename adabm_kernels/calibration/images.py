"""Calibration images: reading, checking, cropping, and choosing the most informative ones of many."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import torch

from ..simulate import image_measure

MIN_SIDE = 16  # in images of fewer pixels a side, most features see the zero padding, and ranges would be those of borders
WINDOWS = 4  # side of the part that is kept of an image, in crops, so that photos of any size fit in memory


def read_images(
    images: Iterable[torch.Tensor | str | Path], patch: int, rng: random.Random, name: str = "images"
) -> list[torch.Tensor]:
    """Every image as float32 [3, h, w] in 0..255, cut to a random window of at most WINDOWS * `patch` pixels a side.

    images: float or uint8 tensors [N, 3, H, W], or paths of pictures. Grey pictures become colour and alpha is dropped. name: that
    of the argument, for messages. Raises TypeError and ValueError naming the image, the rule and the value.
    """
    if isinstance(images, (str, Path, torch.Tensor)) or not isinstance(images, Iterable):
        hint = f" '{images}' (of a folder pass its pictures: Path(...).glob('*.png'))" if isinstance(images, (str, Path)) else ""
        raise TypeError(f"calibrate: {name} must be an iterable of tensors or paths, got {type(images).__name__}{hint}")
    windows = []
    for index, item in enumerate(images):
        for image in _as_batch(item, f"{name}[{index}]"):
            h, w = image.shape[1:]
            if min(h, w) < MIN_SIDE:
                raise ValueError(f"calibrate: {name}[{index}] must be at least {MIN_SIDE} pixels a side, got {h}x{w}")
            if not (image.isfinite().all() and 0 <= image.min() and image.max() <= 255):
                raise ValueError(f"calibrate: {name}[{index}] must be finite and in 0..255, got {_extent(image)}")
            windows.append(_window(image, WINDOWS * patch, rng).clone())
    if not windows:
        raise ValueError(f"calibrate: {name} must hold at least one image, got none")
    brightest = max(float(window.max()) for window in windows)
    if 0 < brightest <= 1:
        raise ValueError(f"calibrate: {name} must be in 0..255, and these look like 0..1: they end at {brightest:g}")
    return windows


def batches(images: list[torch.Tensor], patch: int, size: int, rng: random.Random) -> list[torch.Tensor]:
    """A random crop of every image, in random order: float32 [N, 3, h, w] with N up to `size`, h and w up to `patch`."""
    crops = [_window(image, patch, rng) for image in images]
    rng.shuffle(crops)
    return [_stack(crops[start : start + size]) for start in range(0, len(crops), size)]


class Epochs:
    """Batches [size, 3, h, w] without end. Every image comes once per round, each time with another crop, flip and rotation.

    candidates: the number of random crops from which each used one is chosen, as the one with most detail (`image_measure`). order:
    indices of the images that are still to come in this round; it and the generator are the whole state.
    """

    def __init__(self, images: list[torch.Tensor], patch: int, size: int, rng: random.Random, candidates: int = 1):
        self.images, self.patch, self.size, self.rng, self.candidates = images, patch, size, rng, candidates
        self.order: list[int] = []

    def restart(self, seed: int) -> None:
        """Begins again: the same seed gives the same batches."""
        self.order.clear()
        self.rng.seed(seed)

    def next(self) -> torch.Tensor:
        """The next batch."""
        crops: list[torch.Tensor] = []
        while len(crops) < self.size:
            if not self.order:
                self.order = list(range(len(self.images)))
                self.rng.shuffle(self.order)
            crop = self._crop(self.images[self.order.pop()])
            for flip in (lambda x: x.flip(2), lambda x: x.flip(1), lambda x: x.transpose(1, 2)):
                crop = flip(crop) if self.rng.random() < 0.5 else crop
            crops.append(crop)
        return _stack(crops)

    def _crop(self, image: torch.Tensor) -> torch.Tensor:
        crops = [_window(image, self.patch, self.rng) for _ in range(self.candidates)]
        return crops[0] if len(crops) == 1 else crops[int(image_measure(torch.stack(crops)).argmax())]


def first(batches: list[torch.Tensor], count: int) -> torch.Tensor:
    """The first `count` images of the batches (all, where there are fewer), cut to one size."""
    return _stack([image for batch in batches for image in batch][:count])


def most_informative(images: list[torch.Tensor], count: int) -> list[int]:
    """Indices of the `count` images that cover the set best, most informative first.

    Each image is described by its detail (`image_measure`), mean colour, contrast and extremes, each in units of its spread over
    the set. The first is the image with most detail; the next is always the one farthest from all chosen so far (k-centre greedy,
    Gonzalez 1985). A set of near-duplicates thus contributes one image.
    """
    if not 1 <= count <= len(images):
        raise ValueError(f"calibrate: count must be 1..{len(images)}, the number of images, got {count}")
    features = torch.stack([_features(image) for image in images])
    features = (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-6)
    chosen = [int(features[:, 0].argmax())]
    distance = (features - features[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (features - features[chosen[-1]]).square().sum(1))
    return chosen


def _features(image: torch.Tensor) -> torch.Tensor:
    quantiles = torch.quantile(image.mean(0).flatten()[:: max(1, image[0].numel() // 4096)], torch.tensor([0.01, 0.99]))
    return torch.cat([image_measure(image[None]).log1p(), image.mean((1, 2)), image.std((1, 2)).mean()[None], quantiles])


def _window(image: torch.Tensor, side: int, rng: random.Random) -> torch.Tensor:
    h, w = image.shape[1:]
    y, x = rng.randint(0, max(h - side, 0)), rng.randint(0, max(w - side, 0))
    return image[:, y : y + side, x : x + side]


def _stack(crops: list[torch.Tensor]) -> torch.Tensor:
    h, w = (min(crop.shape[axis] for crop in crops) for axis in (1, 2))
    # Tensors are channels last, with which torch's convolutions on a CPU run twice as fast.
    return torch.stack([crop[:, :h, :w] for crop in crops]).contiguous(memory_format=torch.channels_last)


def _as_batch(item: torch.Tensor | str | Path, name: str) -> torch.Tensor:
    if isinstance(item, (str, Path)):
        from ..images import read_image

        return torch.from_numpy(read_image(item)).permute(2, 0, 1)[None].float()
    if not isinstance(item, torch.Tensor):
        raise TypeError(f"calibrate: {name} must be a tensor or a path, got {type(item).__name__}")
    if item.ndim != 4 or item.shape[1] != 3 or not (item.is_floating_point() or item.dtype == torch.uint8):
        raise ValueError(f"calibrate: {name} must be float or uint8 [N, 3, H, W], got {item.dtype} {tuple(item.shape)}")
    return item.detach().float().cpu()


def _extent(image: torch.Tensor) -> str:
    lower, upper = torch.aminmax(image)
    return f"values in {lower:g}..{upper:g}"
