"""The size that an enlarged picture is to have, and the steps by which it is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Any, NamedTuple

MOST_SCALE = 1000
MOST_SIDE = 2**31 - 1  # the largest side of a PNG
# A further pass of the network costs many times all passes before it. Where less than this is missing, a filter makes up for it.
_FILTERED = Fraction(5, 4)
_LABEL = re.compile(r"x\d+(\.\d+)?|[wh]\d+|\d+x\d+")  # matches the results of `Size.label`


class Steps(NamedTuple):
    """The steps by which a picture gets its size. passes: how often the network enlarges it. made: the width and height that it
    then has. size: the width and height of the output, which a filter makes where they differ from `made`."""

    passes: int
    made: tuple[int, int]
    size: tuple[int, int]

    @property
    def resized(self) -> bool:
        return self.made != self.size


@dataclass(frozen=True)
class Size:
    """The size that an output is to have. If no field is given, it is the network's own size: its scale times that of the picture.

    scale: the factor of each side, from 1 to MOST_SCALE. width, height: in pixels; one of them alone keeps the shape of the
    picture. fit: a width and a height; the output is the largest one in the picture's shape that fits into them.
    """

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    fit: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and (isinstance(self.scale, bool) or not isinstance(self.scale, Real)):
            raise TypeError(f"scale must be a number, got {type(self.scale).__name__}")
        if self.scale is not None and not 1 <= self.scale <= MOST_SCALE:
            raise ValueError(f"scale must be a number from 1 to {MOST_SCALE}, got {self.scale}")
        for name in ("width", "height"):
            if getattr(self, name) is not None:
                _check_side(name, getattr(self, name), getattr(self, name))
        if self.fit is not None:
            if not isinstance(self.fit, tuple | list) or len(self.fit) != 2:
                raise TypeError(f"fit must be a pair of width and height, got {self.fit!r}")
            for side in self.fit:
                _check_side("fit", side, self.fit)
        given = self._given()
        if len(given) > 1 and given != ["width", "height"]:
            raise ValueError(f"{given[0]} must be left out where {given[1]} is given, got {getattr(self, given[0])}")

    def _given(self) -> list[str]:
        return [name for name in ("scale", "fit", "width", "height") if getattr(self, name) is not None]

    @property
    def name(self) -> str:
        """The name of the argument that gives the size: "scale", "width", "width and height"."""
        return " and ".join(self._given()) or "scale"

    @property
    def own(self) -> bool:
        """Whether it is the network's own size."""
        return not self._given()

    def of(self, width: int, height: int, factor: int) -> tuple[int, int]:
        """Width and height of the output for a picture of this width and height. factor: the network's scale."""
        if self.width is not None:
            return self.width, self.height or _rounded(Fraction(height * self.width, width))
        if self.height is not None:
            return _rounded(Fraction(width * self.height, height)), self.height
        if self.fit is not None:
            scale = min(Fraction(self.fit[0], width), Fraction(self.fit[1], height))
        else:
            scale = Fraction(factor) if self.scale is None else Fraction(str(self.scale))
        return _rounded(width * scale), _rounded(height * scale)

    def steps(self, width: int, height: int, factor: int) -> Steps:
        """The steps by which a picture of this width and height gets its size."""
        size = self.of(width, height, factor)
        if size != (width, height) and size[0] <= width and size[1] <= height:
            return Steps(0, (width, height), size)
        needed = max(Fraction(size[0], width), Fraction(size[1], height))
        passes = 1
        while factor > 1 and needed > factor**passes * _FILTERED:
            passes += 1
        return Steps(passes, (width * factor**passes, height * factor**passes), size)

    def label(self, factor: int) -> str:
        """The word for the size in the names of output files: "x4", "x1.5", "1920x1080", "w1920", "h1080"."""
        if self.fit is not None or (self.width is not None and self.height is not None):
            return "{}x{}".format(*(self.fit or (self.width, self.height)))
        if self.width is not None:
            return f"w{self.width}"
        return f"x{self.times(factor)}" if self.height is None else f"h{self.height}"

    def times(self, factor: int) -> str | None:
        """The scale as a word; None where it depends on the size of the picture."""
        if self.scale is None:
            return str(factor) if self.own else None
        return f"{float(self.scale):g}"


def in_figures(width: int, height: int, steps: Steps) -> dict[str, Any]:
    """The sizes and passes by which a picture of this size was upscaled, as figures for reports."""
    sizes = {"input_size": [width, height], "output_size": list(steps.size), "network_size": list(steps.made)}
    return sizes | {"passes": steps.passes}


def is_label(word: str) -> bool:
    """Whether a word can be the label of a size."""
    return _LABEL.fullmatch(word) is not None


def _check_side(name: str, side: Any, value: Any) -> None:
    if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MOST_SIDE:
        words = "be an integer" if name != "fit" else "hold integers"
        raise ValueError(f"{name} must {words} from 1 to {MOST_SIDE}, got {value!r}")


def _rounded(side: Fraction) -> int:
    """The side in whole pixels: rounded to the nearest, halves up, and at least one."""
    return max(int(side + Fraction(1, 2)), 1)
