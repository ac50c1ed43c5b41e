"""Pictures in and out: PNG and JPEG files, Pillow images, 8-bit arrays; colour, transparency and orientation."""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from .files import check_target, write_file

# 8 bits per channel, or fewer. Everything else would lose something on the way to RGB and is refused by name.
_GREY_MODES = ("1", "L", "LA")
_MODES = (*_GREY_MODES, "P", "PA", "RGB", "RGBA")
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_OTHER_FORMATS = (".bmp", ".gif", ".jp2", ".pbm", ".pgm", ".ppm", ".tga", ".tif", ".tiff", ".webp")
_JPEG_MAX_SIDE = 65535
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"


@dataclass(frozen=True, eq=False)
class Image:
    """One picture: rgb uint8 [H, W, 3], alpha uint8 [H, W] or None, grey: rgb holds one channel three times."""

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False

    def __post_init__(self) -> None:
        if self.rgb.dtype != np.uint8 or self.rgb.ndim != 3 or self.rgb.shape[2] != 3 or 0 in self.rgb.shape:
            raise ValueError(f"image must be uint8 [H, W, 3] with at least one pixel, got {self.rgb.dtype} {list(self.rgb.shape)}")
        if self.alpha is not None and (self.alpha.dtype != np.uint8 or self.alpha.shape != self.rgb.shape[:2]):
            raise ValueError(
                f"alpha must be uint8 {list(self.rgb.shape[:2])} like the image, got {self.alpha.dtype} {list(self.alpha.shape)}"
            )

    @property
    def transparent(self) -> bool:
        """True when at least one pixel is not fully opaque."""
        return self.alpha is not None and int(self.alpha.min()) < 255


def read_image(path: str | os.PathLike) -> Image:
    """Read a PNG or JPEG file of any 8-bit mode, turned upright as its EXIF orientation says.

    Grey and palette pictures become RGB (grey is remembered), transparency is kept apart. Of an animated PNG or a
    multi-picture JPEG the first picture is read. Raises OSError (FileNotFoundError, PermissionError, ...) when the file
    cannot be opened and ValueError when it is empty, damaged, truncated, without pixels, neither PNG nor JPEG, or of an
    unsupported mode (CMYK, 16 bits per channel).
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise type(error)(f"cannot read '{path}': {error.strerror or error}") from error
    try:
        return from_pil(_decode(data))
    except ValueError as error:
        raise ValueError(f"cannot read '{path}': {error}") from error


def list_images(folder: str | os.PathLike, argument: str = "folder") -> list[Path]:
    """The PNG and JPEG files of a folder (not of the folders in it), by name; hidden files are left out.

    argument: what the caller calls the folder, for messages. Raises ValueError when it is no folder, holds no such file, or
    holds pictures in other formats: figures over the rest would pass for figures over all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{argument} must be a folder of pictures, got '{folder}', which {_instead_of_folder(folder)}")
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_file()]
    others = [path.name for path in files if path.suffix.lower() in _OTHER_FORMATS]
    if others:
        raise ValueError(
            f"{argument} must hold PNG or JPEG pictures only, and '{folder}' has {len(others)} of another format, such as "
            f"'{others[0]}'"
        )
    images = [path for path in files if path.suffix.lower() in _FORMATS]
    if not images:
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.upper() in ("HR", "LR", "GT")]
        hint = f" (did you mean '{inside[0]}'?)" if inside else ""
        raise ValueError(f"{argument} must hold at least one PNG or JPEG picture, got none in '{folder}'{hint}")
    return images


def _instead_of_folder(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist"


def _decode(data: bytes) -> PIL.Image.Image:
    if not data:
        raise ValueError("the file is empty (0 bytes)")
    is_png = data.startswith(_PNG_SIGNATURE)
    if not is_png and not data.startswith(_JPEG_SIGNATURE):
        raise ValueError("it is neither a PNG nor a JPEG file")
    if is_png and len(data) > 24:
        # Pillow reports a width of 0 as an unknown format, and reduces 16-bit colour to 8 bits without a word.
        width, height, depth = struct.unpack(">IIB", data[16:25])
        if not width or not height:
            raise ValueError(f"it must have at least one pixel, its size is {width}x{height}")
        if depth == 16:
            raise ValueError("it has 16 bits per channel and only 8 are supported; convert it to 8 bits first")
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        image.load()
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError("its header is truncated or damaged") from error
    except (OSError, SyntaxError, EOFError, struct.error) as error:
        raise ValueError(f"the file is truncated or damaged ({error})") from error
    return image


def from_pil(image: PIL.Image.Image) -> Image:
    """Pillow image of mode 1, L, LA, P, PA, RGB or RGBA -> Image, turned upright; ValueError for any other mode."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"mode {image.mode} has more than 8 bits per channel; convert it to 8 bits first")
    if image.mode not in _MODES:
        known = ", ".join(_MODES)
        raise ValueError(f"mode {image.mode} is not supported (supported: {known}); convert it to RGB first")
    if 0 in image.size:
        raise ValueError(f"it must have at least one pixel, its size is {image.width}x{image.height}")
    grey = image.mode in _GREY_MODES
    image = PIL.ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return Image(np.array(image.convert("RGB")), grey=grey)
    rgba = np.array(image.convert("RGBA"))
    return Image(np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3]), grey)


def to_pil(image: Image) -> PIL.Image.Image:
    """Image -> Pillow image of mode L, LA, RGB or RGBA."""
    out = PIL.Image.fromarray(image.rgb)
    if image.grey:
        out = out.convert("L")
    if image.alpha is not None:
        out.putalpha(PIL.Image.fromarray(image.alpha))
    return out


def check_output(path: str | os.PathLike, transparent: bool = False) -> Path:
    """Raise now what `write_image` would raise after the work: a wrong suffix, or a folder one cannot write to."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"cannot write '{path}': its suffix must be one of {', '.join(_FORMATS)}, got '{path.suffix}'")
    if transparent and _FORMATS[suffix] == "JPEG":
        raise ValueError(f"cannot write '{path}': JPEG has no transparency and the picture has; use .png")
    return check_target(path)


def write_image(path: str | os.PathLike, image: Image | np.ndarray) -> None:
    """Write an Image or a uint8 [H, W, 3] array as .png, .jpg or .jpeg (quality 95, full colour resolution).

    The file appears under its name only when complete: it is written beside it under a temporary name and renamed, and
    the temporary file is removed on any failure, an interruption included. An existing file is replaced. Raises
    ValueError for a suffix or picture the format cannot hold, OSError when the file system refuses.
    """
    image = image if isinstance(image, Image) else Image(np.asarray(image))
    path = check_output(path, image.transparent)
    write_file(path, _encode(path, image))


def _encode(path: Path, image: Image) -> bytes:
    out = io.BytesIO()
    if _FORMATS[path.suffix.lower()] == "PNG":
        to_pil(image).save(out, "PNG")
        return out.getvalue()
    height, width = image.rgb.shape[:2]
    if max(height, width) > _JPEG_MAX_SIDE:
        raise ValueError(
            f"cannot write '{path}': JPEG holds at most {_JPEG_MAX_SIDE} pixels a side, got {width}x{height}; use .png"
        )
    opaque = Image(image.rgb, None, image.grey)
    to_pil(opaque).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()
