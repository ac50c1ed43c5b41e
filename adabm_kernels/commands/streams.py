"""Streams of video frames: reads their headers and the planes of each frame."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from .common import FAILED, CommandError

if TYPE_CHECKING:
    import numpy as np

PIXEL_FORMATS = {"rgb24": ("<u1", 3), "rgb48le": ("<u2", 3), "gray": ("<u1", 1), "rgba": ("<u1", 4)}
MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}  # K_R, K_B of ITU-R BT.601, 709, 2020
_HD_ROWS = 720  # video of at least so many rows is BT.709 unless --matrix says otherwise
# How many rows and columns of luma one chroma sample covers.
_SUBSAMPLING = {"410": (4, 4), "411": (1, 4), "420": (2, 2), "422": (1, 2), "444": (1, 1), "mono": (0, 0)}
# Where the first chroma sample lies, in half luma rows and columns from the first luma sample. FFmpeg reads and writes the words of
# a header in this sense. For more than 8 bits the words tell no siting; it is then that of H.264 and H.265, the usual formats of
# such frames.
_SITINGS = {"410": (3, 3), "420": (1, 1), "420jpeg": (1, 1), "420mpeg2": (1, 0), "420paldv": (0, 0)}
_DEEP_SITINGS = {"420": (1, 0)}
_LONGEST_HEADER = 4096
_LONGEST_WORD = 60  # characters of a word of a header in a message
_SIDE = re.compile(r"[0-9]{1,9}")  # a width or a height in pixels


class IncompleteStream(CommandError):
    """The stream is damaged or ends within a frame. complete: how many frames came before; these are upscaled all the same."""

    def __init__(self, message: str, complete: int):
        super().__init__(f"{message}: {complete or 'no'} {'frames were' if complete > 1 else 'frame was'} complete", FAILED)


@dataclass(frozen=True)
class Stream:
    """The properties that all frames of a stream share.

    y4m: the words of the header without width and height, None for raw RGB frames. alpha: whether frames of y4m have an alpha
    plane. subsampling: luma rows and columns that one chroma sample covers, (0, 0) without chroma, None for RGB. siting: where the
    first chroma sample lies, in half luma rows and columns from the first luma sample. depth: the bits of a sample.
    """

    width: int
    height: int
    pixel_format: str = "rgb24"
    y4m: tuple[str, ...] | None = None
    subsampling: tuple[int, int] | None = None
    depth: int = 8
    full_range: bool = False
    luma: tuple[float, float] = MATRICES["bt601"]
    siting: tuple[int, int] = (0, 0)
    alpha: bool = False

    def header(self) -> bytes:
        return b"" if self.y4m is None else " ".join(["YUV4MPEG2", f"W{self.width}", f"H{self.height}", *self.y4m]).encode() + b"\n"

    @property
    def dtype(self) -> str:
        return PIXEL_FORMATS[self.pixel_format][0] if self.y4m is None else ("<u1" if self.depth == 8 else "<u2")

    @property
    def planes(self) -> list[tuple[int, ...]]:
        """The shapes of the planes of a frame, in their order in the stream."""
        if self.subsampling is None:
            return [(self.height, self.width, PIXEL_FORMATS[self.pixel_format][1])]
        down, across = self.subsampling
        chroma = [(-(-self.height // down), -(-self.width // across))] * 2 if down else []
        return [(self.height, self.width), *chroma, *([(self.height, self.width)] if self.alpha else [])]


def read_y4m(source: BinaryIO, matrix: str | None) -> Stream:
    """The stream that a YUV4MPEG2 header announces. The words of the header are those of the yuv4mpeg(5) manual and of FFmpeg."""
    line = source.readline(_LONGEST_HEADER)
    words = line.decode("ascii", "replace").split()
    if not words or words[0] != "YUV4MPEG2" or not line.endswith(b"\n"):
        raise ValueError("--y4m must be given a YUV4MPEG2 stream (ffmpeg -f yuv4mpegpipe), and this is none")
    fields = {word[0]: word[1:] for word in words[1:] if word[0] != "X"}
    if not all(_SIDE.fullmatch(fields.get(name, "")) for name in "WH"):
        raise ValueError("--y4m must be given a stream with width and height in its header")
    width, height = int(fields["W"]), int(fields["H"])
    if min(width, height) < 1:
        raise ValueError(f"--y4m must be given frames of at least one pixel, got {width}x{height}")
    if fields.get("I", "p") not in ("p", "?"):
        raise ValueError(f"--y4m must be given progressive frames, got interlacing {_shown('I' + fields['I'])} (ffmpeg -vf yadif)")
    kind = fields.get("C") or next((word[7:].lower() for word in words if word.startswith("XYSCSS=")), "420")
    known = re.fullmatch(r"(410|411|420|422|444|mono)(?:p?(9|10|12|14|16))?|(420)(?:jpeg|mpeg2|paldv)|(444)alpha", kind)
    if known is None:
        raise ValueError(
            f"--y4m must be given colour space 410, 411, 420, 422, 444 or mono of 8 to 16 bits, got {_shown('C' + kind)}"
        )
    matrix = matrix or ("bt709" if height >= _HD_ROWS else "bt601")
    kept = tuple(word for word in words[1:] if word[0] not in "WH")
    full = "XCOLORRANGE=FULL" in map(str.upper, words)
    depth, chroma = int(known[2] or 8), known[1] or known[3] or known[4]
    siting = (_SITINGS if depth == 8 else _DEEP_SITINGS).get(kind if known[3] else chroma, (0, 0))
    return Stream(width, height, "", kept, _SUBSAMPLING[chroma], depth, full, MATRICES[matrix], siting, known[4] is not None)


def _shown(word: str) -> str:
    """A word of a header for a message: a hostile stream may have one of thousands of letters."""
    return repr(word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}...")


def read_frames(source: BinaryIO, stream: Stream) -> Iterator[list[np.ndarray]]:
    """Yields the planes of each frame. Raises IncompleteStream at a frame that is not whole."""
    import numpy as np

    for count in itertools.count():
        try:
            line = b"FRAME\n" if stream.y4m is None else source.readline(_LONGEST_HEADER)
            sizes = [int(np.prod(shape)) * np.dtype(stream.dtype).itemsize for shape in stream.planes]
            whole = re.match(rb"FRAME[ \r\n]", line) and line.endswith(b"\n")
            data = [source.read(size) for size in sizes] if whole else []
        except OSError as error:
            raise IncompleteStream(f"cannot read frame {count + 1}: {error.strerror or error}", count) from error
        if not any(data) and (not line or stream.y4m is None):
            return
        if not data and not b"FRAME".startswith(line[:5]):
            raise IncompleteStream(f"frame {count + 1} does not begin with FRAME", count)
        if len(line) == _LONGEST_HEADER:
            raise IncompleteStream(f"the header of frame {count + 1} has no end within {_LONGEST_HEADER} bytes", count)
        if list(map(len, data)) != sizes:
            raise IncompleteStream(f"the stream ends within frame {count + 1}", count)
        yield [np.frombuffer(part, stream.dtype).reshape(shape) for part, shape in zip(data, stream.planes, strict=True)]
