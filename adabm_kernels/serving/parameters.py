"""The query parameters of a request for a picture: their rules, and the sentences where one is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field

from ..images.formats import EXTENSIONS
from ..images.writer import DEFAULT_QUALITY
from ..models import did_you_mean
from ..upscaling.sizes import MOST_SCALE, MOST_SIDE, Size
from .problems import Problem

NAMES = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WebP", "tif": "TIFF", "tiff": "TIFF", "bmp": "BMP"}
assert set(NAMES.values()) == set(EXTENSIONS.values()), "every format that is written has a name"
_FIT = r"^[1-9][0-9]{0,9}x[1-9][0-9]{0,9}$"
_RULES = {
    "format": "one of keep, " + ", ".join(NAMES),
    "quality": "an integer from 1 to 100",
    "scale": f"a number from 1 to {MOST_SCALE}",
    "width": f"an integer from 1 to {MOST_SIDE}",
    "height": f"an integer from 1 to {MOST_SIDE}",
    "fit": "WIDTHxHEIGHT such as 1920x1080",
    "metadata": "'keep' or 'strip'",
    "strict": "'true' or 'false'",
}
_LONGEST = 100  # characters of a value that a message repeats


class Parameters(BaseModel):
    """What a request asks for. The names and rules are those of `adabm upscale`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["keep", "png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp"] | None = Field(
        None,
        description="format of the result; keep: that of the picture. Without it the Accept header decides, and else it is PNG.",
    )
    quality: int = Field(DEFAULT_QUALITY, ge=1, le=100, description="quality of JPEG and WebP")
    scale: float | None = Field(
        None, ge=1, le=MOST_SCALE, description="so many times as wide and high; by default the model's scale"
    )
    width: int | None = Field(None, ge=1, le=MOST_SIDE, description="pixels across; the height follows unless it is given")
    height: int | None = Field(None, ge=1, le=MOST_SIDE, description="pixels down; the width follows unless it is given")
    fit: str | None = Field(
        None, pattern=_FIT, description="WIDTHxHEIGHT: the largest of the picture's shape that this rectangle holds"
    )
    metadata: Literal["keep", "strip"] = Field("keep", description="EXIF, XMP, IPTC and texts; the colours always stay")
    strict: bool = Field(False, description="refuse damaged pictures of which no row is missing")

    def size(self) -> Size:
        """The size that is asked for. Raises a Problem where the parameters contradict each other."""
        fit = re.findall("[0-9]+", self.fit) if self.fit is not None else None
        try:
            return Size(self.scale, self.width, self.height, (int(fit[0]), int(fit[1])) if fit else None)
        except ValueError as error:
            raise Problem(422, str(error)) from error


def wrong_parameter(error: RequestValidationError) -> Problem:
    """The Problem of query parameters that break a rule: the first of them."""
    first: dict[str, Any] = error.errors()[0]
    place: Sequence[Any] = first["loc"]
    name = str(place[1]) if len(place) > 1 else "the query"
    if first["type"] == "extra_forbidden":
        known = ", ".join(_RULES)
        hint = did_you_mean(name, _RULES)
        return Problem(422, f"there is no query parameter '{name[:_LONGEST]}'{hint}; there are {known}")
    value = str(first["input"])
    shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."
    return Problem(422, f"{name} must be {_RULES.get(name, first['msg'])}, got '{shown}'")
