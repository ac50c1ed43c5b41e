"""Picture files as other programs write them, made by hand where Pillow would not write them in this way."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

HEIGHT, WIDTH = 40, 48
_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH]
SMOOTH = np.stack([128 + 90 * np.sin(_X / 7) * np.cos(_Y / 9), 40 + 4 * _Y, 200 - 2.5 * _X], 2).astype(np.uint8)
GREY = SMOOTH[..., 1]
ALPHA = (255 * _X / WIDTH).astype(np.uint8)


def encode(image: PIL.Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """A file that Pillow writes. The test is skipped where this version of Pillow cannot write the kind."""
    PIL.Image.init()
    if kind not in PIL.Image.SAVE:
        pytest.skip(f"Pillow {PIL.__version__} writes no {kind}")
    out = io.BytesIO()
    image = PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(out, kind, **options)
    return out.getvalue()


def jpeg_with_xmp(data: bytes, xmp: bytes) -> bytes:
    """The JPEG file with XMP before all its other segments."""
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment + data[2:]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*before: bytes, after: bytes = b"", rows: np.ndarray = SMOOTH) -> bytes:
    """An 8 or 16-bit PNG with these chunks before and after its pixels."""
    rows = rows if rows.ndim == 3 else rows[..., None]
    colour, depth = {1: 0, 2: 4, 3: 2, 4: 6}[rows.shape[2]], 8 * rows.itemsize
    data = b"".join(b"\0" + row.astype(f">u{rows.itemsize}").tobytes() for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(data)) + after
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + pixels + chunk(b"IEND", b"")


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The names and contents of a PNG's chunks."""
    found, place = [], 8
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return found


def tiff(*pages: dict) -> bytes:
    """An uncompressed TIFF. Each page is a dict: rows, pixels [H, W, C]; tags, {tag: (type, values)}; below, a list of such
    pages."""
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for page in pages:
        below = [_tiff_directory(out, inner) for inner in page.get("below", ())]
        extra = {330: (4, below)} if below else {}
        start = _tiff_directory(out, page, extra)
        struct.pack_into("<I", out, link, start)
        link = len(out) - 4
    return bytes(out)


def _tiff_directory(out: bytearray, page: dict, extra: dict | None = None) -> int:
    rows = page["rows"]
    samples = 1 if rows.ndim == 2 else rows.shape[2]
    pixels = len(out)
    out += rows.astype(f"<u{rows.itemsize}").tobytes()
    out += bytes(len(out) % 2)
    tags = {
        256: (4, [rows.shape[1]]),
        257: (4, [rows.shape[0]]),
        258: (3, [8 * rows.itemsize] * samples),
        259: (3, [1]),
        262: (3, [2 if samples > 2 else 1]),
        273: (4, [pixels]),
        277: (3, [samples]),
        278: (4, [rows.shape[0]]),
        279: (4, [rows.nbytes]),
        **page.get("tags", {}),
        **(extra or {}),
    }
    entries = b""
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", *values)
        if len(data) > 4:
            place = len(out)
            out += data + bytes(len(data) % 2)
            data = struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    start = len(out)
    out += struct.pack("<H", len(tags)) + entries + bytes(4)
    return start


def bmp_with_alpha(alpha: np.ndarray) -> bytes:
    """A BMP of version 5 that has a mask for alpha."""
    body = np.dstack([SMOOTH[::-1, :, ::-1], alpha[::-1]]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 124, WIDTH, HEIGHT, 1, 32, 3, len(body), 2835, 2835, 0, 0) + masks
    info += bytes(124 - len(info))
    return b"BM" + struct.pack("<IHHI", 14 + 124 + len(body), 0, 0, 14 + 124) + info + body


def exif(orientation: int = 6, thumbnail: bytes = b"\xff\xd8thumbnail\xff\xd9") -> bytes:
    """A TIFF structure with a date, a maker's note, a place and a thumbnail, as cameras write it, with the low byte first."""
    parts = bytearray(b"II*\0\x08\0\0\0")

    def directory(entries: list[tuple[int, int, int, bytes]], following: int = 0) -> None:
        place = len(parts) + 2 + 12 * len(entries) + 4
        table, rest = struct.pack("<H", len(entries)), b""
        for tag, kind, count, data in entries:
            if len(data) > 4:
                data, rest = struct.pack("<I", place + len(rest)), rest + data + bytes(len(data) % 2)
            table += struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0")
        parts.extend(table + struct.pack("<I", following) + rest)

    date = b"2026:01:02 03:04:05\0"
    first = [(271, 2, 6, b"Maker\0"), (274, 3, 1, struct.pack("<H", orientation)), (306, 2, 20, date), (34665, 4, 1, bytes(4))]
    first.append((34853, 4, 1, bytes(4)))
    directory(first)
    pointers = [8 + 2 + 12 * 3 + 8, 8 + 2 + 12 * 4 + 8]
    struct.pack_into("<I", parts, pointers[0], len(parts))
    size = [(40962, 3, 1, struct.pack("<H", WIDTH)), (40963, 4, 1, struct.pack("<I", HEIGHT))]
    directory([(36867, 2, 20, date), (37500, 7, 9, b"the note\0"), *size])
    struct.pack_into("<I", parts, pointers[1], len(parts))
    directory([(1, 2, 2, b"N\0"), (2, 5, 3, struct.pack("<6I", 48, 1, 8, 1, 30, 1))])
    struct.pack_into("<I", parts, 8 + 2 + 12 * 5, len(parts))
    second = len(parts)
    directory([(274, 3, 1, b"\3\0"), (513, 4, 1, bytes(4)), (514, 4, 1, struct.pack("<I", len(thumbnail)))])
    struct.pack_into("<I", parts, second + 2 + 12 + 8, len(parts))
    return bytes(parts + thumbnail)
