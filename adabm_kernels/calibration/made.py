"""Pictures made by the program, of kinds that photographs do not hold but people upscale too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..evaluation.resize import imresize

SIDE = 48  # pixels a side
COLOURS = 6  # the most colours of a picture
SHRINK = 4  # how much larger drawings are made whose edges are to be soft
TEXT = "Sphinx of\nblack quartz,\njudge my vow\n0123456789"


def made_pictures(seed: int) -> list[torch.Tensor]:
    """A flat colour, a gradient, a drawing and a text: float32 [3, SIDE, SIDE] each, whole numbers in 0..255.

    A seed always gives the same pictures where NumPy's generators and Pillow are the same. Other versions of Pillow may draw shapes
    with other pixels. The text also depends on what draws Pillow's default font: a version of FreeType or, where Pillow was built
    without it, a bitmap font.
    """
    random = np.random.default_rng(seed)
    pictures = [_flat(random), _gradients(random), _drawing(random), _text(random)]
    return [_as_tensor(picture) for picture in pictures]


def drawn_pictures(count: int, side: int, seed: int) -> list[torch.Tensor]:
    """Drawings and texts in turn: float32 [3, side, side] each, whole numbers in 0..255.

    Every second pair is drawn SHRINK times as large and shrunk by bicubic, so that its edges are soft. What a seed gives depends on
    the same versions as `made_pictures`.
    """
    random, pictures = np.random.default_rng(seed), []
    for i in range(count):
        scale = SHRINK if i // 2 % 2 else 1
        picture = (_drawing, _text)[i % 2](random, side, scale)
        pictures.append(picture if scale == 1 else imresize(picture, 1 / scale))
    return [_as_tensor(picture) for picture in pictures]


def _as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float().contiguous()


def _colours(random: np.random.Generator) -> list[tuple[int, ...]]:
    return [tuple(map(int, random.integers(0, 256, 3))) for _ in range(COLOURS)]


def _flat(random: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(np.array(_colours(random)[0], np.uint8), (SIDE, SIDE, 3))


def _gradients(random: np.random.Generator) -> np.ndarray:
    """A gradient of colours from corner to corner."""
    corners = np.array(_colours(random)[:4], np.float64).reshape(2, 2, 3)
    share = np.linspace(0, 1, SIDE)
    rows = corners[0] * (1 - share[:, None, None]) + corners[1] * share[:, None, None]
    return np.rint(rows[:, :1] * (1 - share[:, None]) + rows[:, 1:] * share[:, None]).astype(np.uint8)


def _drawing(random: np.random.Generator, side: int = SIDE, scale: int = 1) -> np.ndarray:
    """Shapes with hard edges, some with a black outline: side * scale pixels a side."""
    from PIL import Image, ImageDraw

    background, *colours = _colours(random)
    side *= scale
    image = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(image)
    kinds: tuple[Callable[..., None], ...] = (draw.rectangle, draw.ellipse, draw.ellipse, draw.line)
    for kind, colour in zip(kinds, colours, strict=False):
        left, top = (int(value) for value in random.integers(0, side // 2, 2))
        right, bottom = (int(value) for value in random.integers(side // 2, side, 2))
        outline = {} if kind == draw.line or random.random() < 0.5 else {"outline": (0, 0, 0), "width": 1 + scale // 2}
        kind((left, top, right, bottom), fill=colour, **outline)
    return np.asarray(image)


def _text(random: np.random.Generator, side: int = SIDE, scale: int = 1) -> np.ndarray:
    """TEXT in Pillow's default font, with letters `scale` times as large, on side * scale pixels a side."""
    from PIL import Image, ImageDraw, ImageFont

    background, colour, *_ = _colours(random)
    drawn = side * scale
    try:
        font = ImageFont.load_default() if scale == 1 else ImageFont.load_default(10 * scale)
    except ImportError:  # a Pillow without FreeType has a font of one size, whose pixels are enlarged
        font, drawn = ImageFont.load_default(), side
    image = Image.new("RGB", (drawn, drawn), background)
    ImageDraw.Draw(image).multiline_text((2, 0), TEXT, fill=colour, spacing=1, font=font)
    return np.asarray(image.resize((side * scale, side * scale), Image.Resampling.NEAREST))
