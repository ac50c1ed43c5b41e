"""Measures how good a network is on test pictures: PSNR, SSIM, bits and bit operations, beside its float form and bicubic.

The conventions are those of the field. docs/evaluation.md states them all and says what each figure means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from .calibration.plausibility import check_reading, looked_at
from .evaluation.metrics import psnr_y, ssim_y
from .evaluation.pairs import Pair, find_pairs
from .evaluation.resize import imresize
from .images import read_image
from .importers.reading import read_known
from .networks.convention import AS_READ, Convention
from .networks.detect import detect, float_network, to_float_state
from .networks.float_network import FloatNetwork
from .nn import ConvertedModel
from .nn.graph import recorded_by_default
from .quantize import MAX_BITS, to_pixels
from .upscaling import windows

__all__ = [
    "EvaluationReport",
    "Figures",
    "ImageResult",
    "Pair",
    "bit_operations",
    "evaluate",
    "find_pairs",
    "load_float",
    "patches",
]

PROTOCOLS = ("whole", "paper")
FLOAT_BITS = 32  # bits of weights and activations that are not quantised
FIGURES = ("psnr_y", "ssim_y", "mean_bits", "computed_share", "bits_with_zeros", "gbitops_per_mp")


@dataclass(frozen=True)
class Figures:
    """The figures of one method on one picture.

    psnr_y: in dB. mean_bits, bit_operations: the mean bits, and the bit operations for the whole picture; both are None for
    bicubic. computed_share: the share of the pixels, 0..1, for which the network's blocks are computed. bits_with_zeros: the mean
    bits where the other pixels count as 0 bits. Both are None for a network that leaves out no blocks.
    """

    psnr_y: float
    ssim_y: float
    mean_bits: float | None = None
    bit_operations: int | None = None
    computed_share: float | None = None
    bits_with_zeros: float | None = None


@dataclass(frozen=True)
class ImageResult:
    """The figures of one picture by method. width, height: the size of the output. patches: the number of forward passes."""

    name: str
    width: int
    height: int
    patches: int
    figures: dict[str, Figures]

    def value(self, method: str, figure: str) -> float | None:
        """The value of one of FIGURES for a method; "gbitops_per_mp" counts 1e9 bit operations per million output pixels."""
        found = self.figures[method]
        if figure != "gbitops_per_mp":
            return getattr(found, figure)
        if found.bit_operations is None:
            return None
        return found.bit_operations / 1e9 / (self.width * self.height / 1e6)


@dataclass(frozen=True)
class EvaluationReport:
    """The figures of every picture.

    methods: "converted" where the network is a converted one, "float" where it has float weights, and "bicubic".
    """

    scale: int
    protocol: str
    images: tuple[ImageResult, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.images[0].figures)

    def mean(self, method: str, figure: str) -> float | None:
        """The plain mean of one of FIGURES over the pictures; None where the method lacks this figure for any of them."""
        values = [image.value(method, figure) for image in self.images]
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(values) else None

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values, by method and figure: the means under "mean", and those of each picture under "images"."""
        return {
            "scale": self.scale,
            "protocol": self.protocol,
            "mean": {method: {figure: self.mean(method, figure) for figure in FIGURES} for method in self.methods},
            "images": [
                {
                    "name": image.name,
                    "size": [image.width, image.height],
                    "patches": image.patches,
                    **{
                        method: {figure: image.value(method, figure) for figure in FIGURES}
                        | {"bit_operations": image.figures[method].bit_operations}
                        for method in self.methods
                    },
                }
                for image in self.images
            ],
        }


def evaluate(
    model: nn.Module,
    pairs: Iterable[Pair],
    *,
    protocol: str = "whole",
    scale: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> EvaluationReport:
    """Measures PSNR-Y, SSIM-Y, mean bits and bit operations of a network on test pictures, for each picture and in the mean.

    model: a converted network (`load`, `convert_model`), or a float network of this package (`networks`). Where a converted network
        carries its float weights, its float form is measured too. Bicubic is always measured. The settings of the model (backend,
        threads, bits, depth) stay as they are.
    pairs: at least one test picture (`find_pairs`). Each is read twice: once to check it, and once to measure on it.
    protocol: "whole" computes each picture as one. "paper" (formerly "patch96") is the protocol of AdaBM's code: patches of 96x96
        low-resolution pixels, each with its own bits and without a halo. The last patch of a row or column reaches to the end of
        the picture and may have up to 191 pixels a side. The float network computes the same patches.
    scale: the scale that is expected of the model. A model of another scale is an error.
    progress: a function that is called with (pictures done, pictures in all, name of the next picture).

    PSNR and SSIM are those of `evaluation.metrics`, with `scale` pixels shaved and outputs rounded to 8 bits. A picture's mean bits
    are the average of `model.mean_bits` over its patches. For a network that may leave out blocks, `model.computed_share` and the
    product of both are averaged alike. Bit operations are the sum, over all convolutions as published and over all patches, of
    multiplications times bits of the weights times bits of the activations, where both count 32 bits if they are not quantised. Of
    pixels without blocks, only the operations of the exit's filter count.
    Raises TypeError and ValueError naming the argument, the rule and the value, and OSError for a file that cannot be read. All
    pictures are checked before any is computed.
    """
    protocol = "paper" if protocol == "patch96" else protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"evaluate: protocol must be one of {', '.join(map(repr, PROTOCOLS))}, got {protocol!r}")
    methods = _methods(model)
    spec: Any = model.spec
    if scale is not None and scale != spec.scale:
        raise ValueError(f"evaluate: scale must be that of the model, {spec.scale}, got {scale!r}")
    pairs = list(pairs)
    if not pairs:
        raise ValueError("evaluate: pairs must hold at least one picture, got none")
    for pair in pairs:
        if not isinstance(pair, Pair):
            raise TypeError(f"evaluate: pairs must hold Pair, got {type(pair).__name__}")
        if spec.scale == 1 and pair.lr is None:
            raise ValueError(f"evaluate: pairs must have both pictures for a network for x1, '{pair.name}' has an original alone")
        pair.check(spec.scale)
    images = []
    for index, pair in enumerate(pairs):
        if progress is not None:
            progress(index, len(pairs), pair.name)
        images.append(_measure(methods, spec, pair, protocol))
    if progress is not None:
        progress(len(pairs), len(pairs), "")
    return EvaluationReport(spec.scale, protocol, tuple(images))


def load_float(
    path: str | Path,
    res_scale: float | None = None,
    *,
    convention: Convention = AS_READ,
    weights_key: str | None = None,
    pictures: Sequence[Path | np.ndarray] = (),
) -> nn.Module:
    """The float network in a file, for RGB in 0..255. A network in a checkpoint is recognised by its keys (networks/detect.py), and
    one in a file of ncnn or ONNX by its graph (importers/recognise.py).

    The network's `found` says what it was recognised as, and in which part of the file.

    res_scale, convention, weights_key: what the weights do not reveal, see `detect`. If res_scale is None, it is that of the graph,
        or 1 where there is none.
    pictures: original pictures, as files or uint8 [H, W, 3], on which it is checked that the network upscales
        (calibration/plausibility.py). Without pictures nothing is checked.

    Raises FileNotFoundError; ValueError for a file that holds no known network or an already calibrated one; and WrongReading, a
    ValueError, where the check says that the weights are likely of another convention.
    """
    state, own = read_known(path)
    try:
        found = detect(state, own if res_scale is None else res_scale, convention=convention, weights_key=weights_key)
    except (TypeError, ValueError) as error:
        raise ValueError(f"load_float: {path} holds no network that is known here: {error}") from error
    if found.calibrated:
        raise ValueError(
            f"load_float: {path} must hold float weights, and these are calibrated: convert them with the bit-widths they were "
            "calibrated for (adabm_kernels.convert_model), and save the result"
        )
    rgb = (picture if isinstance(picture, np.ndarray) else read_image(picture) for picture in looked_at(pictures))
    check_reading(state, found, (torch.from_numpy(pixels).permute(2, 0, 1) for pixels in rgb))
    network: Any = float_network(found.spec)
    network.load_state_dict(to_float_state(state, found))
    network.found = found
    return network


def run(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output of one forward pass without gradients for x [N, 3, H, W]: float32 [N, 3, s*H, s*W], not clamped."""
    with torch.no_grad(), recorded_by_default():
        return model(x.to(torch.float32))


class _Method:
    """A network with the functions by which it is measured.

    bits: a function that gives, for a batch of one image, the mean bits, and by name the bits of each convolution's input. share: a
    function that gives the share of the image's pixels for which blocks are computed; None for a network that leaves out no blocks.
    """

    def __init__(
        self,
        network: Any,
        weight_bits: dict[str, int],
        bits: Callable[[torch.Tensor], tuple[float, dict[str, int]]],
        share: Callable[[torch.Tensor], float] | None = None,
    ):
        self.network, self.weight_bits, self.bits, self.share = network, weight_bits, bits, share
        first = next((tensor for tensors in (network.parameters(), network.buffers()) for tensor in tensors), None)
        self.device = torch.device("cpu") if first is None else first.device

    def upscale(self, rgb: np.ndarray, name: str) -> np.ndarray:
        """The upscaled picture, uint8 [s*H, s*W, 3], of a picture uint8 [H, W, 3]."""
        y = run(self.network, self.tensor(rgb))[0]
        if not y.isfinite().all():
            raise ValueError(f"evaluate: model computes NaN or infinite values: its output for '{name}' holds some")
        return to_pixels(y).cpu().permute(1, 2, 0).contiguous().numpy()

    def cost(self, spec: Any, rgb: np.ndarray) -> tuple[float, float | None, int]:
        """The mean bits, the share of the pixels for which blocks are computed, and the bit operations, for a picture uint8
        [H, W, 3]."""
        x = self.tensor(rgb)
        pixels, (mean, act_bits) = rgb.shape[0] * rgb.shape[1], self.bits(x)
        if self.share is None:
            return mean, None, bit_operations(spec, pixels, self.weight_bits, act_bits)
        share = self.share(x)
        computed = round(share * pixels)
        by_filter = (pixels - computed) * self.network.exit.weight.numel() * MAX_BITS**2
        return mean, share, bit_operations(spec, computed, self.weight_bits, act_bits) + by_filter

    def tensor(self, rgb: np.ndarray) -> torch.Tensor:
        planes = np.ascontiguousarray(rgb.transpose(2, 0, 1), dtype=np.float32)
        return torch.from_numpy(planes)[None].to(self.device)


def _methods(model: nn.Module) -> dict[str, _Method]:
    if isinstance(model, FloatNetwork):
        return {"float": _float_method(model)}
    if not isinstance(model, ConvertedModel):
        raise TypeError(
            f"evaluate: model must be a converted network or a float network of adabm_kernels.networks, got {type(model).__name__}"
        )

    def bits(x: torch.Tensor) -> tuple[float, dict[str, int]]:
        layers = {name: int(value[0]) * model.parameters_by_name[name].digits for name, value in model.layer_bits(x).items()}
        return float(model.mean_bits(x)[0]), layers

    weight_bits = {name: conv.weight_bits for name, conv in model.parameters_by_name.items()}
    share = (lambda x: float(model.computed_share(x)[0])) if model.varies_depth else None
    methods = {"converted": _Method(model, weight_bits, bits, share)}
    if model.float_state is not None:
        methods["float"] = _float_method(model.float_model())
    return methods


def _float_method(network: Any) -> _Method:
    # With channels_last torch computes float convolutions fastest on a CPU.
    network = network.eval().to(memory_format=torch.channels_last)
    return _Method(network, {}, lambda x: (float(FLOAT_BITS), {}))


def _measure(methods: dict[str, _Method], spec: Any, pair: Pair, protocol: str) -> ImageResult:
    hr, lr = pair.read(spec.scale)
    h, w = lr.shape[:2]
    parts = patches(h, w) if protocol == "paper" else [(slice(0, h), slice(0, w))]
    figures = {}
    for name, method in methods.items():
        sr, cost = _upscale(method, spec, pair.name, lr, parts)
        figures[name] = Figures(psnr_y(sr, hr, spec.scale), ssim_y(sr, hr, spec.scale), **cost)
    sr = imresize(lr, spec.scale)
    figures["bicubic"] = Figures(psnr_y(sr, hr, spec.scale), ssim_y(sr, hr, spec.scale))
    return ImageResult(pair.name, hr.shape[1], hr.shape[0], len(parts), figures)


def patches(height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of AdaBM's test patches, in reading order."""
    rows, columns = ([slice(span.start, span.stop) for span in windows.patches(size)] for size in (height, width))
    return [(row, column) for row in rows for column in columns]


def _upscale(
    method: _Method, spec: Any, name: str, lr: np.ndarray, parts: list[tuple[slice, slice]]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The upscaled picture, uint8 [s*H, s*W, 3], and the fields of its Figures that say what it cost."""
    h, w, s = *lr.shape[:2], spec.scale
    sr = np.empty((s * h, s * w, 3), np.uint8)
    costs = []
    for rows, columns in parts:
        part = lr[rows, columns]
        place = tuple(slice(s * span.start, s * span.stop) for span in (rows, columns))
        sr[place] = method.upscale(part, name)
        costs.append(method.cost(spec, part))
    bits, shares, operations = zip(*costs, strict=True)
    cost = {"mean_bits": fmean(bits), "bit_operations": sum(operations)}
    if method.share is not None:
        products = (mean * share for mean, share in zip(bits, shares, strict=True))
        cost |= {"computed_share": fmean(shares), "bits_with_zeros": fmean(products)}
    return sr, cost


def bit_operations(spec: Any, pixels: int, weight_bits: dict[str, int], act_bits: dict[str, int]) -> int:
    """The sum over the convolutions of multiplications * bits of the weights * bits of the activations.

    spec: the specification of the network (`spec.convs()`). pixels: the number of pixels of the low-resolution image. weight_bits,
    act_bits: the bits by the name of the convolution; one that is absent counts 32 bits. Every output pixel counts all taps of the
    kernel. The figure does not take into account how the kernels save multiplications (exact tiles, the collapsed tail), so it can
    be compared with those of other work.
    """
    return sum(
        conv.products * pixels * weight_bits.get(conv.name, FLOAT_BITS) * act_bits.get(conv.name, FLOAT_BITS)
        for conv in spec.convs()
    )
