"""Test pictures: an original and its low-resolution form, found in folders by name, read and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..images import list_images, read_image
from .resize import imresize

MIN_SIDE = 11  # pixels a side that the window of SSIM needs after shaving

# What data sets append to a name to say which side of a pair it is: babyx4, babyLR, baby_LRBI_x4, img_001_SRF_4_LR, 0801_gt.
_SIDE = r"(?:[ _.-](?i:HR|GT|LR|LRBI|bicubic|x{scale}|SRF[ _.-]?{scale})|HR|LR|(?i:x{scale}))$"


@dataclass(frozen=True, eq=False)
class Pair:
    """One test picture. hr: the original, as a file or uint8 [H, W, 3]. lr: the low-resolution form, likewise; None where it is to
    be made of the original."""

    name: str
    hr: Path | np.ndarray
    lr: Path | np.ndarray | None = None

    def read(self, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """(HR [scale*h, scale*w, 3], LR [h, w, 3]), both uint8; HR loses at most scale - 1 rows and columns at its end.

        Grey pictures become colour, transparency is dropped. LR is made with MATLAB's bicubic `imresize` where there is none.
        Raises OSError and ValueError for a file that cannot be read, ValueError when the sizes do not belong together or the
        picture is too small to be measured.
        """
        hr, lr = self.check(scale)
        return hr, imresize(hr, 1 / scale) if lr is None else lr

    def check(self, scale: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Checks the pair before LR is made. Returns and raises what `read` does, except that LR is None where it is yet to be
        made."""
        hr = self._pixels("HR", self.hr)
        h, w = (side // scale for side in hr.shape[:2])
        if min(h, w) * scale - 2 * scale < MIN_SIDE:
            least = MIN_SIDE + 2 * scale
            raise ValueError(f"HR of '{self.name}' must be at least {least} pixels a side at scale {scale}, got {_size(hr)}")
        hr = hr[: h * scale, : w * scale]
        lr = None if self.lr is None else self._pixels("LR", self.lr)
        if lr is not None and lr.shape[:2] != (h, w):
            raise ValueError(f"LR of '{self.name}' must be {w}x{h}, its HR divided by the scale {scale}, got {_size(lr)}")
        return hr, lr

    def _pixels(self, side: str, picture: Path | np.ndarray) -> np.ndarray:
        if not isinstance(picture, np.ndarray):
            return read_image(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"{side} of '{self.name}' must be uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
        return picture


def find_pairs(hr: str | Path, lr: str | Path | None, scale: int, *, names: tuple[str, str] = ("hr", "lr")) -> list[Pair]:
    """The pictures of a folder with their low-resolution forms, by name.

    hr, lr: folders of PNG and JPEG files; without `lr` each low-resolution picture is made from the original. Two files belong
    together when their names are equal without the suffix, or are after what data sets add has been taken off their ends: "_HR",
    "_GT", "_LR", "_LRBI", "_bicubic", "_x4", "_SRF_4" (with the scale in place of 4), also "HR", "LR" and "x4" without the dash.
    Further files in `lr` are left alone.
    names: what the caller calls the folders, for messages.
    Raises ValueError for a folder without pictures, for two files of one name, and for an original without partner, which it
    names.
    """
    originals = _by_name(list_images(hr, names[0]), scale, names[0])
    if lr is None:
        return [Pair(name, path) for name, path in originals.items()]
    files = list_images(lr, names[1])
    exact = {path.stem: path for path in files}
    small = _by_name(files, scale, names[1])
    pairs = []
    for name, path in originals.items():
        partner = exact.get(path.stem, small.get(name))
        if partner is None:
            raise ValueError(
                f"{names[1]} must hold a picture for each in {names[0]}, and '{lr}' has none for '{path.name}' "
                f"(looked for '{name}', '{name}x{scale}', '{name}_LR' and the like)"
            )
        pairs.append(Pair(name, path, partner))
    return pairs


def _by_name(files: list[Path], scale: int, argument: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        name = _bare_name(path.stem, scale)
        if name in found:
            # Two originals may differ in what is taken off alone, such as photo and photo_HR.
            raise ValueError(f"{argument} must hold one picture of a name, got '{found[name].name}' and '{path.name}'")
        found[name] = path
    return found


def _bare_name(stem: str, scale: int) -> str:
    pattern = re.compile(_SIDE.format(scale=scale))
    while (shorter := pattern.sub("", stem)) != stem and shorter:
        stem = shorter
    return stem


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"
