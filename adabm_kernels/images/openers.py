"""How each format is opened: which of the file's pictures is read, in which colours, with which other data, and whether the file is
damaged."""

from __future__ import annotations

import functools
import io
import mmap
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import jpeg, png_chunks, tiff
from .colour import Colour, fitting_profile, profile_kind
from .formats import QUARTER_TURNS, READ, Layout, plausible, sniff, unread
from .metadata import Metadata, metadata_of, orientation_of
from .passing import StreamSource
from .vips import clear_errors, reason, vips

_MM_PER_INCH = 25.4
_KNOWN = ("b-w", "srgb", "rgb", "grey16", "rgb16")
_LAB = ("lab", "labs", "labq")
_LOADERS = {"PNG": "pngload", "JPEG": "jpegload", "WebP": "webpload", "TIFF": "tiffload", "GIF": "gifload", "AVIF": "heifload"}
_UNLIMITED = ("PNG", "JPEG", "TIFF", "AVIF")  # the loaders of these formats have limits of their own, which are turned off
_NO_ORIENTATION = ("AVIF", "GIF")  # AVIF turns a picture by itself, whatever its EXIF says
_SAYS_DPI = ("JPEG", "TIFF")
_PIECE_BYTES = 1 << 16  # of a file that passes through Python
_BOXES_BYTES = 1 << 16  # the first bytes of an AVIF file, which describe its pixels
_HEADER_BYTES = 1 << 12  # the most bytes of the header of a PNM, with its comments
_J2K_SIZE = b"\xff\x4f\xff\x51"  # the bytes with which a code stream of JPEG 2000 begins
_J2K_CHANNELS = 40  # the place of the number of channels in a code stream
_BMP_CORE_HEADER = struct.pack("<I", 12)  # the header of OS/2, with sizes of 16 bits
_NO_END = "it ends without its end marker (EOI), after all of its picture"
_LAB_NOTE = "is in CIE Lab and becomes sRGB"


@dataclass
class Findings:
    """What the user is told about a file. faults: its damage, as sentences without the full stop. notes: surprising properties, as
    words that follow the file's name. thorough: true where damage is looked for however long that takes."""

    thorough: bool = False
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Opening:
    """A file to open, or its bytes. format: the format of the file. max_pixels: larger pictures are refused before they are
    decoded. findings: collects what the user is told about the file."""

    source: str | os.PathLike | bytes
    format: str
    max_pixels: int
    findings: Findings


@contextmanager
def opened(source: str | os.PathLike | bytes) -> Iterator[BinaryIO]:
    """Opens a file, or its bytes, for reading."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        yield file


def format_of(start: bytes) -> str:
    """The format of a file by its first 32 bytes. Raises ValueError for a format that is not read."""
    if not start:
        raise ValueError("the file is empty (0 bytes)")
    format = sniff(start)
    if format is None:
        kind = unread(start)
        raise ValueError(f"it is {kind}, and read are {READ}" if kind else f"it is no {READ.replace(' and ', ' or ')} file")
    if format == "PNG" and start[12:16] == b"CgBI":
        raise ValueError("it is what Apple's tools make of a PNG in an app (CgBI), and no PNG any more; make it one again first")
    if format == "PNG" and len(start) >= 24:
        width, height = struct.unpack(">II", start[16:24])
        _check_size(width, height, max_pixels=None)  # libpng reports a width of 0 as a damaged header
    if format == "TIFF" and tiff.is_camera_raw(start):
        tiff.refuse_raw()
    return format


class TooManyPixels(ValueError):
    """A picture has more pixels than max_pixels allows."""


def _check_size(width: int, height: int, max_pixels: int | None) -> None:
    if width <= 0 or height <= 0:
        raise ValueError(f"it must have at least one pixel, its size is {width}x{height}")
    if max_pixels is not None and width * height > max_pixels:
        what = f"it has {width}x{height} = {width * height} pixels"
        raise TooManyPixels(f"{what}, more than the limit of {max_pixels} (--max-pixels)")


# ---- by rows


def _open_vips(
    opening: Opening, channels: tuple[int, ...] | None = None, orientation: int | None = None, **options: Any
) -> tuple[Any, Layout]:
    """Opens a file with libvips. channels: the channels that are kept; None for all. orientation: the orientation, as in EXIF; None
    for the one that libvips finds. options: options of libvips' loader."""
    pyvips, source, format, findings = vips(), opening.source, opening.format, opening.findings
    load = getattr(pyvips.Image, _LOADERS[format] + ("_buffer" if isinstance(source, bytes) else "_source"))

    def loader(**options: Any) -> Any:
        if isinstance(source, bytes):
            return load(source, **options)
        with open(source, "rb") as file:  # libvips takes no names that are not UTF-8, but duplicates the descriptor
            return load(pyvips.Source.new_from_descriptor(file.fileno()), **options)

    # Beyond a truncated file, "error" also refuses a wrong checksum.
    options = {"fail_on": "error"} | ({"unlimited": True} if format in _UNLIMITED else {}) | options
    clear_errors()
    try:
        image = loader(access="sequential", **options)
        _check_size(image.width, image.height, opening.max_pixels)
        if format == "JPEG" and (fault := _jpeg_fault(source, findings.thorough)) is not None:
            findings.faults.append(fault)
            if fault == _NO_END:
                options["fail_on"] = "none"  # libvips then adds the missing end itself
                image = loader(access="sequential", **options)
        if orientation is None:
            orientation = 1 if format in _NO_ORIENTATION else _field(image, "orientation") or 1
        if orientation > 1:
            image = loader(access="random", **options).copy()
            image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
            image = image.autorot()
        if channels is not None and max(channels) < image.bands:
            first, *others = (image.extract_band(channel) for channel in channels)
            image = first.bandjoin(others) if others else first
        icc, resolution = _field(image, "icc-profile-data"), _field(image, "resolution-unit")
        iptc = _field(image, "iptc-data") if format == "JPEG" else None
        metadata = metadata_of(_field(image, "exif-data"), _field(image, "xmp-data"), iptc)
        image, icc = _in_known_colours(image, icc, findings)
    except pyvips.Error as error:
        raise ValueError(f"its header is truncated or damaged ({reason(error)})") from error
    finally:
        clear_errors()
    _check_kind(image)
    if format != "TIFF":
        _say_pages(_field(image, "n-pages") or 1, findings)
    # The resolution is from the file itself or its EXIF, which is not read from WebP. Where there is none, libvips makes one up.
    says_dpi = format == "PNG" or (format in _SAYS_DPI and resolution)
    dpi = (image.xres * _MM_PER_INCH, image.yres * _MM_PER_INCH) if says_dpi else None
    if dpi is not None and orientation in QUARTER_TURNS:
        dpi = dpi[::-1]
    depth = 8 if image.format == "uchar" else 16
    return image, Layout(image.width, image.height, image.bands, depth, icc, plausible(dpi), metadata=metadata)


def _field(image: Any, name: str) -> Any:
    return image.get(name) if image.get_typeof(name) else None


def _say_pages(pages: int, findings: Findings) -> None:
    if pages > 1:
        findings.notes.append(f"holds {pages} pictures, of which only the first is read")


def _jpeg_fault(source: str | os.PathLike | bytes, thorough: bool) -> str | None:
    """Describes the damage in the data of a JPEG file that can be read nevertheless; None where there is none. Raises ValueError
    where rows are missing."""
    with opened(source) as file:
        data = source if isinstance(source, bytes) else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        fault = jpeg.damage(data, thorough)
        if fault is None or not fault.startswith(jpeg.TOO_SHORT):
            return fault
        if not jpeg.lacks_only_end(data):
            raise ValueError(f"the file is truncated or damaged ({fault})")
    return _NO_END


def _in_known_colours(image: Any, icc: bytes | None, findings: Findings) -> tuple[Any, bytes | None]:
    """The image and its profile. CMYK and Lab are converted to sRGB, which has no profile."""
    deep = image.format not in ("uchar", "char")
    if image.interpretation == "cmyk":
        own = icc is not None and profile_kind(icc) == "CMYK"
        findings.notes.append(f"is in CMYK and becomes sRGB by {'its own' if own else 'a common'} profile")
        if image.bands > 4:
            image = image.extract_band(0, n=4)
        return image.icc_transform("srgb", embedded=own, input_profile="cmyk", depth=16 if deep else 8), None
    if image.interpretation in _LAB:
        findings.notes.append(_LAB_NOTE)
        return image.colourspace("rgb16" if deep else "srgb"), None
    return image, icc


def _check_kind(image: Any) -> None:
    if image.format not in ("uchar", "ushort"):
        raise ValueError(f"its pixels are of type {image.format}; 8 and 16 bits per channel are supported")
    if image.interpretation not in _KNOWN:
        raise ValueError(f"its colour space is {image.interpretation}; grey, RGB, CMYK and Lab are supported: convert it first")
    if image.bands > 4 or (image.interpretation in ("b-w", "grey16") and image.bands > 2):
        raise ValueError(f"it has {image.bands} channels; grey and RGB with or without alpha are supported")


# ---- by rows, in formats of which libvips does not tell everything


def _open_png(opening: Opening) -> tuple[Any, Layout]:
    source, findings = opening.source, opening.findings
    with opened(source) as file:
        facts = png_chunks.facts(file)
    # libvips does not look for EXIF behind the pixels.
    image, layout = _open_vips(opening, orientation=orientation_of(facts.exif))
    findings.faults += facts.faults
    if facts.palette < 1 << facts.bits and facts.bits and _largest_index(source, facts.bits) >= facts.palette:
        findings.faults.append("some pixels have colours that its palette does not have, and become black")
    _say_pages(facts.frames, findings)
    known = layout.metadata or Metadata()
    metadata = metadata_of(facts.exif, known.xmp, text=tuple(facts.text))
    # libpng drops the profile of a grey picture where it is for RGB.
    dpi = layout.dpi if facts.resolution or _field(image, "resolution-unit") else None
    return image, replace(layout, icc=facts.icc, colour=facts.colour, metadata=metadata, dpi=dpi)


def _largest_index(source: str | os.PathLike | bytes, bits: int) -> int:
    """The largest index among the pixels of a PNG with a palette; -1 where the file is damaged. libvips itself gives colours
    only."""
    pyvips = vips()
    with opened(source) as file:
        pixels = StreamSource(iter(functools.partial(png_chunks.as_grey(file), _PIECE_BYTES), b""))
        source_of_pixels = pixels.source()
        try:
            image = pyvips.Image.pngload_source(source_of_pixels, access="sequential", fail_on="error", unlimited=True)
            return round(image.extract_band(0).max() * ((1 << bits) - 1) / 255)
        except pyvips.Error:
            if pixels.error is not None:
                raise pixels.error from None
            return -1
        finally:
            clear_errors()


def _open_avif(opening: Opening) -> tuple[Any, Layout]:
    source, findings = opening.source, opening.findings
    image, layout = _open_vips(opening)
    with opened(source) as file:
        start = file.read(_BOXES_BYTES)
    if b"avis" in start[8 : int.from_bytes(start[:4], "big")]:
        findings.notes.append("is an animation, of which only the first picture is read")
    place = start.find(b"colrnclx")
    if layout.icc is None and 0 <= place <= len(start) - 12:
        primaries, transfer = struct.unpack_from(">HH", start, place + 8)
        # Colours that the file does not state, BT.709 and sRGB need no record.
        if max(primaries, transfer) < 256 and not (primaries in (1, 2) and transfer in (1, 2, 6, 13)):
            layout = replace(layout, colour=Colour(cicp=bytes([primaries, transfer, 0, 1])))
    return image, layout


def _open_tiff(opening: Opening) -> tuple[Any, Layout]:
    source, findings = opening.source, opening.findings
    with opened(source) as file:
        found = tiff.directories(file)
        chosen = tiff.full_picture(found)
        exif = None if chosen is None else tiff.exif_of(file, chosen.page)
    if chosen is None:
        return _open_vips(opening)
    if chosen.photometric == tiff.CIELAB and chosen.bits == 8 and chosen.samples == 3:
        _check_size(chosen.width, chosen.height, opening.max_pixels)
        return _open_lab(source, chosen.page, findings)
    options = {"page": chosen.page} | ({"subifd": chosen.sub} if chosen.sub >= 0 else {})
    channels, dropped = chosen.channels
    if dropped:
        what = "a channel that it does not call alpha" if dropped == 1 else f"{dropped} channels that it does not call alpha"
        findings.notes.append(f"has {what}, left out here")
    image, layout = _open_vips(opening, channels if dropped else None, **options)
    _say_pages(tiff.pages(found), findings)
    known = layout.metadata or Metadata()
    return image, replace(layout, metadata=metadata_of(exif, known.xmp))


# ---- as a whole, by Pillow


def _open_pillow(opening: Opening) -> tuple[np.ndarray, Layout]:
    from PIL import ExifTags

    from .pillow import layout_of, opener, to_array

    source, format = opening.source, opening.format
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        if format == "BMP":  # its size is known before its pixels are looked for
            width, height = struct.unpack_from("<HH" if data[14:18] == _BMP_CORE_HEADER else "<ii", data, 18)
            _check_size(width, abs(height), opening.max_pixels)  # where rows are stored from the top, the height is negative
        if (bits := _BITS.get(format, lambda data: 8)(data)) > 8:  # Pillow silently drops the bits beyond 8
            raise ValueError(f"it has {bits} bits per channel, and of {format} 8 are read; make it a PNG or TIFF file first")
        image = opener(format)(io.BytesIO(data))  # PIL.Image.open has a limit of its own
        _check_size(*image.size, opening.max_pixels)
        _say_pages(getattr(image, "n_frames", 1), opening.findings)
        image.load()
        if format == "JPEG XL":  # it turns a picture by itself, whatever its EXIF says
            image.getexif().pop(ExifTags.Base.Orientation, None)
        array = to_array(image)
        layout = layout_of(image, array)
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # on damaged files Pillow raises almost anything
        raise ValueError(f"the file is truncated or damaged ({error or type(error).__name__})") from error
    # the bytes of alpha exist but are all zero, so they mean nothing
    if format == "BMP" and layout.alpha and not array[..., -1].any():
        array = array[..., :-1]
        layout = replace(layout, channels=layout.channels - 1)
    return array, layout


def _bits_of_pnm(data: bytes) -> int:
    """The bits of a sample, by the largest value. It is the fourth word of the header, and is missing in bit maps."""
    words = re.sub(rb"#[^\r\n]*", b"", data[:_HEADER_BYTES]).split(maxsplit=4)[:4]
    largest = words[3] if len(words) == 4 and words[0] not in (b"P1", b"P4") else b"1"
    return int(largest).bit_length() if largest.isdigit() else 8


def _bits_of_jpeg_2000(data: bytes) -> int:
    """The bits of a sample in the deepest channel, by the size marker (SIZ) of the code stream (ISO/IEC 15444-1, A.5.1)."""
    start = data.find(_J2K_SIZE)
    if start < 0 or len(data) < start + _J2K_CHANNELS + 2:
        return 8
    (channels,) = struct.unpack_from(">H", data, start + _J2K_CHANNELS)
    precisions = data[start + _J2K_CHANNELS + 2 :][: 3 * channels : 3]
    return max(((precision & 0x7F) + 1 for precision in precisions), default=8)


_BITS = {"PNM": _bits_of_pnm, "JPEG 2000": _bits_of_jpeg_2000}


def _open_lab(source: str | os.PathLike | bytes, page: int, findings: Findings) -> tuple[np.ndarray, Layout]:
    """Opens a TIFF of 8-bit CIE Lab, which libvips would mistake for a form of its own."""
    import PIL.ImageCms
    from PIL.TiffImagePlugin import TiffImageFile

    from .pillow import layout_of, to_array

    with opened(source) as file:
        try:
            image = TiffImageFile(file)
            image.seek(page)
            image.load()
            lab, srgb = PIL.ImageCms.createProfile("LAB"), PIL.ImageCms.createProfile("sRGB")
            rgb = PIL.ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        except (ValueError, MemoryError):
            raise
        except Exception as error:  # on damaged files Pillow raises almost anything
            raise ValueError(f"the file is truncated or damaged ({error or type(error).__name__})") from error
    assert rgb is not None, "only a change in place returns none"
    findings.notes.append(_LAB_NOTE)
    array = to_array(rgb)
    return array, replace(layout_of(rgb, array), icc=None)


_OPENERS = {"PNG": _open_png, "TIFF": _open_tiff, "AVIF": _open_avif, "WebP": _open_vips, "JPEG": _open_vips, "GIF": _open_vips}


def open_image(opening: Opening) -> tuple[Any, Layout]:
    """The upright pixels of a file and their kind. The pixels are an array, or an image of libvips that is decoded while it is
    read. Raises ValueError for a file that cannot be read."""
    image, layout = _OPENERS.get(opening.format, _open_pillow)(opening)
    icc, lost = fitting_profile(layout.icc, layout.grey)
    if lost is not None:
        opening.findings.notes.append(f"has a colour profile that {lost}, and it is left out")
    return image, replace(layout, icc=icc)
