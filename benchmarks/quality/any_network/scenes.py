"""Draws pictures with known contents: digits and shapes over photographs.

The digits are scikit-learn's `load_digits`, 1797 handwritten ones of 8x8 pixels, of which the last 397 are for tests. The
photographs for training and for tests come from different folders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

TRAINED_DIGITS = 1400
SHAPES = ("disc", "rectangle", "triangle", "digit")  # classes of objects; in masks 0 is the background, a shape its number + 1
DRAWN = 3  # the factor by which a shape is drawn larger and then shrunk


@dataclass
class Scenes:
    """Draws scenes. photographs: a list of uint8 [H, W, 3]. digits: float32 [M, 8, 8] in 0..1. labels: which digit each of them
    is."""

    photographs: list[np.ndarray]
    digits: np.ndarray
    labels: np.ndarray
    random: np.random.Generator

    def photograph(self, side: int) -> np.ndarray:
        """Part of a photograph, in its own size or shrunk: float32 [side, side, 3] in 0..1."""
        picture = self.photographs[self.random.integers(len(self.photographs))]
        most = min(picture.shape[:2]) / side
        reach = int(side * self.random.uniform(1, min(2, most))) if most > 1 else min(picture.shape[:2])
        top, left = (int(self.random.integers(0, length - reach + 1)) for length in picture.shape[:2])
        part = picture[top : top + reach, left : left + reach]
        if reach != side:
            part = np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.BOX))
        if self.random.random() < 0.5:
            part = part[:, ::-1]
        return part.astype(np.float32) / 255

    def digit(self, size: int) -> tuple[np.ndarray, int]:
        """Returns the share of ink of one digit, float32 [size, size], and which digit it is."""
        chosen = self.random.integers(len(self.digits))
        large = Image.fromarray(self.digits[chosen]).resize((size, size), Image.Resampling.BICUBIC)
        return ((np.asarray(large) - 0.3) * 2.5).clip(0, 1), int(self.labels[chosen])

    def shape(self, name: str, size: int) -> np.ndarray:
        """The share of each pixel that the shape covers, float32 [size, size]."""
        if name == "digit":
            return self.digit(size)[0]
        side = size * DRAWN
        image = Image.new("L", (side, side))
        pen = ImageDraw.Draw(image)
        if name == "disc":
            pen.ellipse((0, 0, side - 1, side - 1), fill=255)
        elif name == "rectangle":
            flat = int(side * self.random.uniform(0.5, 1))
            pen.rectangle((0, 0, side - 1, flat - 1) if self.random.random() < 0.5 else (0, 0, flat - 1, side - 1), fill=255)
        else:
            tip = int(side * self.random.uniform(0.2, 0.8))
            pen.polygon([(tip, 0), (0, side - 1), (side - 1, side - 1)], fill=255)
        return np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32) / 255

    def colour(self, behind: np.ndarray) -> np.ndarray:
        """A colour that differs from the mean of what is behind: float32 [3]."""
        while True:
            colour = self.random.random(3).astype(np.float32)
            if np.abs(colour - behind.reshape(-1, 3).mean(0)).max() > 0.35:
                return colour

    def paint(self, image: np.ndarray, share: np.ndarray, top: int, left: int) -> None:
        """Paints a shape, a little uneven in colour, over an image."""
        size = len(share)
        part = image[top : top + size, left : left + size]
        colour = self.colour(part) + self.random.normal(0, 0.03, part.shape).astype(np.float32)
        part += share[..., None] * (colour - part)
        part.clip(0, 1, out=part)

    def one_digit(self, side: int) -> tuple[np.ndarray, int]:
        """Returns a scene float32 [side, side, 3] with one large digit, and which digit it is."""
        image = self.photograph(side).copy()
        share, label = self.digit(int(side * self.random.uniform(0.5, 0.85)))
        top, left = self.random.integers(0, side - len(share) + 1, 2)
        self.paint(image, share, int(top), int(left))
        return image, label

    def many(self, side: int, most: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draws a scene with 1 to `most` shapes that do not touch.

        Returns four values: the image float32 [side, side, 3]; the mask int64 [side, side] with 0 or the number of the shape + 1;
        the boxes float32 [M, 4] as left, top, right and bottom in pixels; and the numbers of the shapes, int64 [M].
        """
        image, mask = self.photograph(side).copy(), np.zeros((side, side), np.int64)
        free, boxes, kinds = np.ones((side, side), bool), [], []
        for _ in range(self.random.integers(1, most + 1)):
            size, kind = int(side * self.random.uniform(0.2, 0.42)), int(self.random.integers(len(SHAPES)))
            top, left = (int(place) for place in self.random.integers(0, side - size + 1, 2))
            if not free[top : top + size, left : left + size].all():
                continue
            share = self.shape(SHAPES[kind], size)
            self.paint(image, share, top, left)
            inside = share > 0.5
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            mask[top : top + size, left : left + size][inside] = kind + 1
            free[top : top + size, left : left + size] = False
            boxes.append((left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1))
            kinds.append(kind)
        return image, mask, np.array(boxes, np.float32).reshape(-1, 4), np.array(kinds, np.int64)


def scenes(folder: Path, trained: bool, seed: int) -> Scenes:
    """Scenes over the photographs of a folder (PNG), with the digits for training or those for tests."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"scenes: folder must hold PNG files, got {folder}")
    found = load_digits()
    part = slice(None, TRAINED_DIGITS) if trained else slice(TRAINED_DIGITS, None)
    digits = (found.images[part] / 16).astype(np.float32)
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return Scenes(photographs, digits, found.target[part], np.random.default_rng(seed))
