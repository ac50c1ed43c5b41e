"""`adabm upscale --y4m` and `--raw`: frames from a pipe, upscaled in order, into a pipe."""

from __future__ import annotations

import argparse
import io
import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..files import PartialFile, check_target, naming
from .common import BAD_INPUT, FAILED, STDOUT, CommandError, Progress, print_table, stage, to_json
from .outputs import DEFAULT_SUFFIX

if TYPE_CHECKING:
    import numpy as np

    from ..images import Layout

PIXEL_FORMATS = {"rgb24": ("<u1", 3), "rgb48le": ("<u2", 3), "gray": ("<u1", 1), "rgba": ("<u1", 4)}
MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}  # K_R, K_B of ITU-R BT.601, 709, 2020
_HD_ROWS = 720  # from here video is BT.709 unless --matrix says otherwise
_SUBSAMPLING = {"420": (2, 2), "422": (1, 2), "444": (1, 1), "mono": (0, 0)}  # luma rows and columns of a chroma sample
_LONGEST_HEADER = 4096
_READ_BYTES = 1 << 16  # that a pipe holds
_POLL_SECONDS = 0.1
# Options that say nothing about frames, with their defaults.
_OF_PICTURES = {"compare": False, "format": None, "quality": None, "suffix": DEFAULT_SUFFIX, "verbose": False}


def execute(args: argparse.Namespace) -> None:
    """Upscale the frames of standard input (or a file) one after the other, each with its own bits."""
    from .upscale import asked_size, load_enlarger

    with ExitStack() as stack:
        with stage(BAD_INPUT):
            _check(args)
            size = asked_size(args)
            file = sys.stdin.buffer if args.inputs == [STDOUT] else stack.enter_context(_open(args.inputs[0]))
            source = _Source(file)
            stream = _read_y4m(source, args.matrix) if args.y4m else _raw(args)
            if (pixels := stream.width * stream.height) > args.max_pixels:
                size = f"{stream.width}x{stream.height} = {pixels} pixels"
                raise ValueError(f"frames must have at most {args.max_pixels} pixels (--max-pixels), got {size}")
            network, settings = load_enlarger(args, size)
            network.check(_layout(stream))
        _upscale(args, source, stream, network, settings)


def _upscale(args: argparse.Namespace, source: _Source, stream: Stream, network: Any, settings: dict[str, Any]) -> None:
    from .upscale import in_figures, in_words

    frames, bits, start = 0, [], time.perf_counter()
    steps = network.steps(stream.width, stream.height)
    larger = replace(stream, width=steps.size[0], height=steps.size[1])
    target = None if args.output in (None, STDOUT) else args.output
    with stage(FAILED, "not enough memory for the frames"), ExitStack() as stack, Progress(args.quiet) as bar:
        if target is None:
            out: BinaryIO = sys.stdout.buffer
        else:
            stack.enter_context(naming(target))
            out = stack.enter_context(PartialFile(target)).file
        out.write(larger.header())
        for planes, mean_bits in stack.enter_context(closing(_upscaled(source, stream, larger, network))):
            out.write(planes)
            frames += 1
            bits += [] if mean_bits is None else [mean_bits]
            bar(frames, None, f"{stream.width}x{stream.height} -> {larger.width}x{larger.height}")
        out.flush()
    seconds = time.perf_counter() - start
    mean = sum(bits) / len(bits) if bits else None
    report = {
        "frames": frames,
        **in_figures(stream.width, stream.height, steps),
        **settings,
        "mean_bits": mean,
        "seconds": seconds,
    }
    rows = [
        ("frames", f"{frames}, {in_words(stream.width, stream.height, steps)}"),
        ("model", settings["model"]),
        ("backend", settings["backend"]),
        *([("mean bits", f"{mean:.2f}")] if mean is not None else []),
        ("time", f"{seconds:.3f} s, {frames / seconds:.2f} frames a second"),
    ]
    if not args.quiet or args.json:
        file = sys.stderr if target is None else sys.stdout
        print(to_json(report), file=file) if args.json else print_table(rows, file=file)


def _check(args: argparse.Namespace) -> None:
    if args.y4m and args.raw:
        raise ValueError("--raw must be left out with --y4m, whose frames say their size")
    if len(args.inputs) != 1:
        raise ValueError(f"IN must be '-' or one file of frames, got {len(args.inputs)} inputs")
    for option, unset in _OF_PICTURES.items():
        if (value := getattr(args, option)) != unset:
            raise ValueError(f"--{option} must be left out for frames, got {value!r}")
    if args.existing == "skip":
        raise ValueError("--existing must be 'replace' or 'refuse' for frames, got 'skip'")
    if args.output not in (None, STDOUT):
        check_target(args.output)
        if args.existing == "refuse" and args.output.exists():
            raise ValueError(f"OUT must not exist with --existing refuse, and '{args.output}' does")
        if args.output.resolve() == args.inputs[0].resolve():
            raise ValueError(f"OUT must not be the input file itself, got '{args.output}'")


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise type(error)(f"cannot read '{path}': {error.strerror or error}") from error


class _Source(io.BufferedReader):
    """What comes from a file or a pipe, until `stop`: a read that waits for a quiet producer then sees the end of the stream."""

    def __init__(self, file: BinaryIO):
        super().__init__(_Stoppable(file.fileno()), _READ_BYTES)

    def stop(self) -> None:
        self.raw.stopped.set()


class _Stoppable(io.RawIOBase):
    """The bytes of a file descriptor, which stays open."""

    def __init__(self, descriptor: int):
        self._descriptor, self.stopped = descriptor, threading.Event()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self.stopped.is_set():
            if select.select([self._descriptor], [], [], _POLL_SECONDS)[0]:
                return os.readv(self._descriptor, [buffer])
        return 0


@dataclass(frozen=True)
class Stream:
    """Frames of one kind. y4m: the header's words without width and height, None for raw RGB frames.

    subsampling: luma rows and columns of a chroma sample, (0, 0) without chroma, None for RGB. depth: bits of a sample.
    """

    width: int
    height: int
    pixel_format: str = "rgb24"
    y4m: tuple[str, ...] | None = None
    subsampling: tuple[int, int] | None = None
    depth: int = 8
    full_range: bool = False
    luma: tuple[float, float] = MATRICES["bt601"]

    def header(self) -> bytes:
        return b"" if self.y4m is None else " ".join(["YUV4MPEG2", f"W{self.width}", f"H{self.height}", *self.y4m]).encode() + b"\n"

    @property
    def dtype(self) -> str:
        return PIXEL_FORMATS[self.pixel_format][0] if self.y4m is None else ("<u1" if self.depth == 8 else "<u2")

    @property
    def planes(self) -> list[tuple[int, ...]]:
        """Shapes of what makes a frame, in order."""
        if self.y4m is None:
            return [(self.height, self.width, PIXEL_FORMATS[self.pixel_format][1])]
        down, across = self.subsampling
        chroma = [(-(-self.height // down), -(-self.width // across))] * 2 if down else []
        return [(self.height, self.width), *chroma]


def _raw(args: argparse.Namespace) -> Stream:
    width, height = args.raw
    return Stream(width, height, args.pix_fmt or "rgb24")


def _read_y4m(source: BinaryIO, matrix: str | None) -> Stream:
    """The stream that a YUV4MPEG2 header announces (its words are those of the yuv4mpeg(5) manual and of FFmpeg)."""
    line = source.readline(_LONGEST_HEADER)
    words = line.decode("ascii", "replace").split()
    if not words or words[0] != "YUV4MPEG2" or not line.endswith(b"\n"):
        raise ValueError("--y4m must be given a YUV4MPEG2 stream (ffmpeg -f yuv4mpegpipe), and this is none")
    fields = {word[0]: word[1:] for word in words[1:] if word[0] != "X"}
    try:
        width, height = int(fields["W"]), int(fields["H"])
    except (KeyError, ValueError) as error:
        raise ValueError("--y4m must be given a stream with width and height in its header") from error
    if min(width, height) < 1:
        raise ValueError(f"--y4m must be given frames of at least one pixel, got {width}x{height}")
    if fields.get("I", "p") not in ("p", "?"):
        raise ValueError(f"--y4m must be given progressive frames, got interlacing 'I{fields['I']}' (ffmpeg -vf yadif)")
    kind = fields.get("C", "420jpeg")
    known = re.fullmatch(r"(420|422|444|mono)(?:jpeg|mpeg2|paldv)?(?:p?(9|10|12|14|16))?", kind)
    if known is None:
        raise ValueError(f"--y4m must be given colour space 420, 422, 444 or mono of 8 to 16 bits, got 'C{kind}'")
    matrix = matrix or ("bt709" if height >= _HD_ROWS else "bt601")
    kept = tuple(word for word in words[1:] if word[0] not in "WH")
    depth = int(known[2] or 8)
    full = "XCOLORRANGE=FULL" in words
    return Stream(width, height, "", kept, _SUBSAMPLING[known[1]], depth, full, MATRICES[matrix])


def _frames(source: BinaryIO, stream: Stream) -> Iterator[list[np.ndarray]]:
    """The planes of each frame."""
    import numpy as np

    count = 0
    while True:
        if stream.y4m is not None:
            line = source.readline(_LONGEST_HEADER)
            if not line:
                return
            if not line.startswith(b"FRAME"):
                raise CommandError(f"frame {count + 1} does not begin with FRAME: the stream is damaged", BAD_INPUT)
        planes = []
        for shape in stream.planes:
            size = int(np.prod(shape)) * np.dtype(stream.dtype).itemsize
            data = source.read(size)
            if not data and not planes and stream.y4m is None:
                return
            if len(data) < size:
                raise CommandError(f"the stream ends within frame {count + 1}: {count} frames were complete", BAD_INPUT)
            planes.append(np.frombuffer(data, stream.dtype).reshape(shape))
        count += 1
        yield planes


def _upscaled(source: _Source, stream: Stream, larger: Stream, network: Any) -> Iterator[tuple[bytes, float | None]]:
    """The bytes of every frame of the larger stream and its mean bits; frames are read and packed while one is computed."""
    from ..batch import mean_bits

    layout, end = _layout(stream), object()
    # Pools wait for their threads as they close, and so for the producer, if `source` were not stopped before them.
    with (
        ThreadPoolExecutor(1, "adabm read") as reading,
        ThreadPoolExecutor(1, "adabm pack") as packing,
        ExitStack() as stack,
    ):
        stack.callback(source.stop)
        frames = _frames(source, stream)

        def following() -> Any:
            planes = next(frames, end)
            return planes if planes is end else (planes[0] if stream.y4m is None else to_rgb(planes, stream))

        coming, packed = reading.submit(following), deque()
        while (rows := coming.result()) is not end:
            coming = reading.submit(following)
            record: list = []
            out = network.array(rows, layout, record=record)
            packed.append((packing.submit(_packed, out, larger), mean_bits(record)))
            if len(packed) > 1:
                done, bits = packed.popleft()
                yield done.result(), bits
        for done, bits in packed:
            yield done.result(), bits


def _layout(stream: Stream) -> Layout:
    """The kind of picture that a frame is to the network."""
    from ..images import Layout

    if stream.y4m is not None:
        return Layout(stream.width, stream.height, 3, 8 if stream.depth == 8 else 16)
    dtype, channels = PIXEL_FORMATS[stream.pixel_format]
    return Layout(stream.width, stream.height, channels, 8 * int(dtype[-1]))


def _packed(rows: np.ndarray, stream: Stream) -> bytes:
    if stream.y4m is None:
        return rows.astype(stream.dtype, copy=False).tobytes()
    return b"FRAME\n" + b"".join(plane.tobytes() for plane in from_rgb(rows, stream))


def to_rgb(planes: list[np.ndarray], stream: Stream) -> np.ndarray:
    """YCbCr planes -> RGB [H, W, 3] of 8 bits, or of 16 where the stream has more than 8. Chroma is repeated over its pixels."""
    import numpy as np

    black, luma_span, chroma_span = _levels(stream)
    y = (planes[0].astype(np.float32) - black) / luma_span
    if len(planes) == 1:
        rgb = np.repeat(y[..., None], 3, 2)
    else:
        down, across = stream.subsampling
        middle = 2 ** (stream.depth - 1)
        cb, cr = (
            ((plane.astype(np.float32) - middle) / chroma_span).repeat(down, 0).repeat(across, 1)[: stream.height, : stream.width]
            for plane in planes[1:]
        )
        k_r, k_b = stream.luma
        r, b = y + 2 * (1 - k_r) * cr, y + 2 * (1 - k_b) * cb
        rgb = np.stack([r, (y - k_r * r - k_b * b) / (1 - k_r - k_b), b], 2)
    most, dtype = (255, np.uint8) if stream.depth == 8 else (65535, np.uint16)
    return np.rint(np.clip(rgb, 0, 1) * most).astype(dtype)


def from_rgb(rgb: np.ndarray, stream: Stream) -> list[np.ndarray]:
    """RGB [H, W, 3] -> the planes of a stream, chroma averaged over the pixels of a sample."""
    import numpy as np

    black, luma_span, chroma_span = _levels(stream)
    r, g, b = np.moveaxis(rgb.astype(np.float32) / np.iinfo(rgb.dtype).max, 2, 0)
    k_r, k_b = stream.luma
    y = k_r * r + (1 - k_r - k_b) * g + k_b * b
    planes = [y * luma_span + black]
    if stream.subsampling[0]:
        middle = 2 ** (stream.depth - 1)
        for value in ((b - y) / (2 * (1 - k_b)), (r - y) / (2 * (1 - k_r))):
            planes.append(_averaged(value, *stream.subsampling) * chroma_span + middle)
    most = 2**stream.depth - 1
    return [np.rint(np.clip(plane, 0, most)).astype(stream.dtype) for plane in planes]


def _averaged(plane: np.ndarray, down: int, across: int) -> np.ndarray:
    import numpy as np

    plane = np.pad(plane, ((0, -plane.shape[0] % down), (0, -plane.shape[1] % across)), mode="edge")
    return plane.reshape(plane.shape[0] // down, down, plane.shape[1] // across, across).mean((1, 3))


def _levels(stream: Stream) -> tuple[float, float, float]:
    """Black, the span of luma and that of chroma, as codes of the stream's depth (ITU-R BT.601, BT.2100)."""
    if stream.full_range:
        most = 2**stream.depth - 1
        return 0.0, float(most), float(most)
    unit = 2.0 ** (stream.depth - 8)
    return 16 * unit, 219 * unit, 224 * unit
