"""Pictures made by the program: what photographs do not hold, but people upscale too."""

from __future__ import annotations

import numpy as np
import torch

SIDE = 48  # pixels
COLOURS = 6  # that a picture may use
TEXT = "Sphinx of\nblack quartz,\njudge my vow\n0123456789"


def made_pictures(seed: int) -> list[torch.Tensor]:
    """A flat colour, a gradient, a drawing and a text: float32 [3, SIDE, SIDE] each, whole numbers in 0..255."""
    random = np.random.default_rng(seed)
    pictures = [_flat(random), _gradients(random), _drawing(random), _text(random)]
    return [torch.from_numpy(picture.copy()).permute(2, 0, 1).float().contiguous() for picture in pictures]


def _colours(random: np.random.Generator) -> list[tuple[int, ...]]:
    return [tuple(map(int, random.integers(0, 256, 3))) for _ in range(COLOURS)]


def _flat(random: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(np.array(_colours(random)[0], np.uint8), (SIDE, SIDE, 3))


def _gradients(random: np.random.Generator) -> np.ndarray:
    """Colours from corner to corner."""
    corners = np.array(_colours(random)[:4], np.float64).reshape(2, 2, 3)
    share = np.linspace(0, 1, SIDE)
    rows = corners[0] * (1 - share[:, None, None]) + corners[1] * share[:, None, None]
    return np.rint(rows[:, :1] * (1 - share[:, None]) + rows[:, 1:] * share[:, None]).astype(np.uint8)


def _drawing(random: np.random.Generator) -> np.ndarray:
    """Shapes with hard edges."""
    from PIL import Image, ImageDraw

    background, *colours = _colours(random)
    image = Image.new("RGB", (SIDE, SIDE), background)
    draw = ImageDraw.Draw(image)
    for kind, colour in zip((draw.rectangle, draw.ellipse, draw.ellipse, draw.line), colours, strict=False):
        left, top = (int(value) for value in random.integers(0, SIDE // 2, 2))
        right, bottom = (int(value) for value in random.integers(SIDE // 2, SIDE, 2))
        kind((left, top, right, bottom), fill=colour)
    return np.asarray(image)


def _text(random: np.random.Generator) -> np.ndarray:
    from PIL import Image, ImageDraw

    background, colour, *_ = _colours(random)
    image = Image.new("RGB", (SIDE, SIDE), background)
    ImageDraw.Draw(image).multiline_text((2, 0), TEXT, fill=colour, spacing=1)
    return np.asarray(image)
