"""`adabm upscale --y4m` and `--raw`: frames from a pipe, upscaled in order, into a pipe."""

from __future__ import annotations

import argparse
import io
import itertools
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
from statistics import fmean
from typing import TYPE_CHECKING, Any, BinaryIO

from ..files import PartialFile, check_target, naming
from .blocks import block_rows
from .common import BAD_INPUT, FAILED, STDOUT, CommandError, Progress, print_table, stage, to_json
from .loading import load_enlarger
from .outputs import DEFAULT_SUFFIX
from .pipes import open_source, open_target, piped, refuse_terminal
from .sizes import asked_size, in_figures, in_words
from .yuv import from_rgb, to_rgb

if TYPE_CHECKING:
    import numpy as np

    from ..images import Layout

PIXEL_FORMATS = {"rgb24": ("<u1", 3), "rgb48le": ("<u2", 3), "gray": ("<u1", 1), "rgba": ("<u1", 4)}
MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}  # K_R, K_B of ITU-R BT.601, 709, 2020
_HD_ROWS = 720  # from here video is BT.709 unless --matrix says otherwise
# Luma rows and columns of a chroma sample.
_SUBSAMPLING = {"410": (4, 4), "411": (1, 4), "420": (2, 2), "422": (1, 2), "444": (1, 1), "mono": (0, 0)}
# Where the first chroma sample lies, in half luma rows and columns from the first luma sample, as FFmpeg takes and writes the words
# of a header. For more than 8 bits these tell no siting: it is that of H.264 and H.265, which such frames come from and go to.
_SITINGS = {"410": (3, 3), "420": (1, 1), "420jpeg": (1, 1), "420mpeg2": (1, 0), "420paldv": (0, 0)}
_DEEP_SITINGS = {"420": (1, 0)}
_LONGEST_HEADER = 4096
_READ_BYTES = 1 << 16  # that a pipe holds
_POLL_SECONDS = 0.1
_COSTS = ("mean_bits", "computed_share", "bits_with_zeros")  # functions of `batch`
# Options that say nothing about frames, with their defaults.
_OF_PICTURES = {"compare": False, "format": None, "quality": None, "suffix": DEFAULT_SUFFIX, "verbose": False}
_OF_PICTURES |= {"strict": False, "metadata": "keep"}


def execute(args: argparse.Namespace) -> None:
    """Upscale the frames of standard input (or a file) one after the other, each with its own bits."""
    with ExitStack() as stack:
        with stage(BAD_INPUT):
            _check(args)
            size = asked_size(args)
            source = _Source(stack.enter_context(open_source(args.inputs[0])))
            stream = _read_y4m(source, args.matrix) if args.y4m else _raw(args)
            if (pixels := stream.width * stream.height) > args.max_pixels:
                got = f"{stream.width}x{stream.height} = {pixels}"
                raise ValueError(f"frames must have at most {args.max_pixels} pixels (--max-pixels), got {got} pixels")
            network, settings = load_enlarger(args, size)
            network.check(_layout(stream))
        _upscale(args, source, stream, network, settings)


def _upscale(args: argparse.Namespace, source: _Source, stream: Stream, network: Any, settings: dict[str, Any]) -> None:
    frames, costs, start, incomplete = 0, [], time.perf_counter(), None
    steps = network.steps(stream.width, stream.height)
    larger = replace(stream, width=steps.size[0], height=steps.size[1])
    target = STDOUT if args.output is None else args.output
    with stage(FAILED, "not enough memory for the frames"), ExitStack() as stack, Progress(args.quiet) as bar:
        if piped(target):
            out = stack.enter_context(open_target(target))
        else:
            stack.enter_context(naming(target))
            out = stack.enter_context(PartialFile(target)).file
        out.write(larger.header())
        try:
            for planes, cost in stack.enter_context(closing(_upscaled(source, stream, larger, network))):
                out.write(planes)
                frames += 1
                costs.append(cost)
                bar(frames, None, f"{stream.width}x{stream.height} -> {larger.width}x{larger.height}")
        except IncompleteStream as error:
            if not frames:
                raise
            incomplete = error
        out.flush()
    seconds = time.perf_counter() - start
    means = {name: _mean(cost[name] for cost in costs) for name in _COSTS}
    report = {
        "frames": frames,
        "complete": incomplete is None,
        **in_figures(stream.width, stream.height, steps),
        **settings,
        **means,
        "seconds": seconds,
    }
    rows = [
        ("frames", f"{frames}, {in_words(stream.width, stream.height, steps)}"),
        ("model", settings["model"]),
        ("backend", settings["backend"]),
        *([("mean bits", f"{means['mean_bits']:.2f}")] if means["mean_bits"] is not None else []),
        *block_rows(means["computed_share"], means["bits_with_zeros"], args.depth),
        ("time", f"{seconds:.3f} s, {frames / seconds:.2f} frames a second"),
    ]
    if not args.quiet or args.json:
        file = sys.stderr if target == STDOUT else sys.stdout
        print(to_json(report), file=file) if args.json else print_table(rows, file=file)
    if incomplete is not None:
        raise incomplete


def _mean(values: Iterator[float | None]) -> float | None:
    """Over the frames that have a value."""
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def _check(args: argparse.Namespace) -> None:
    from ..images import EXTENSIONS

    if args.y4m and args.raw:
        raise ValueError("--raw must be left out with --y4m, whose frames say their size")
    if len(args.inputs) != 1:
        raise ValueError(f"IN must be '-' or one file of frames, got {len(args.inputs)} inputs")
    for option, unset in _OF_PICTURES.items():
        if (value := getattr(args, option)) != unset:
            raise ValueError(f"--{option} must be left out for frames, got {value!r}")
    if args.output is None:
        refuse_terminal(args.inputs[0])
    if args.output_is_folder:
        raise ValueError(f"OUT must be a file or '-' for frames, got the folder '{args.output}'")
    if args.existing == "skip":
        raise ValueError("--existing must be 'replace' or 'refuse' for frames, got 'skip'")
    if args.output is not None and not piped(args.output):
        if args.output.suffix.lower() in EXTENSIONS:
            raise ValueError(f"OUT must not be named as a picture, as all frames go into one stream, got '{args.output}'")
        check_target(args.output)
        if args.existing == "refuse" and args.output.exists():
            raise ValueError(f"OUT must not exist with --existing refuse, and '{args.output}' does")
        if args.output.resolve() == args.inputs[0].resolve():
            raise ValueError(f"OUT must not be the input file itself, got '{args.output}'")


class IncompleteStream(CommandError):
    """The stream ends within a frame or is damaged. complete: how many frames came before, which are upscaled all the same."""

    def __init__(self, message: str, complete: int):
        super().__init__(f"{message}: {complete or 'no'} {'frames were' if complete > 1 else 'frame was'} complete", FAILED)


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
    """Frames of one kind. y4m: the header's words without width and height, None for raw RGB frames. alpha: of y4m frames.

    subsampling: luma rows and columns of a chroma sample, (0, 0) without chroma, None for RGB. siting: where
    the first of them lies, in half luma rows and columns from the first luma sample. depth: bits of a sample.
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
        """Shapes of what makes a frame, in order."""
        if self.y4m is None:
            return [(self.height, self.width, PIXEL_FORMATS[self.pixel_format][1])]
        down, across = self.subsampling
        chroma = [(-(-self.height // down), -(-self.width // across))] * 2 if down else []
        return [(self.height, self.width), *chroma, *([(self.height, self.width)] if self.alpha else [])]


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
    kind = fields.get("C") or next((word[7:].lower() for word in words if word.startswith("XYSCSS=")), "420")
    known = re.fullmatch(r"(410|411|420|422|444|mono)(?:p?(9|10|12|14|16))?|(420)(?:jpeg|mpeg2|paldv)|(444)alpha", kind)
    if known is None:
        raise ValueError(f"--y4m must be given colour space 410, 411, 420, 422, 444 or mono of 8 to 16 bits, got 'C{kind}'")
    matrix = matrix or ("bt709" if height >= _HD_ROWS else "bt601")
    kept = tuple(word for word in words[1:] if word[0] not in "WH")
    full = "XCOLORRANGE=FULL" in map(str.upper, words)
    depth, chroma = int(known[2] or 8), known[1] or known[3] or known[4]
    siting = (_SITINGS if depth == 8 else _DEEP_SITINGS).get(kind if known[3] else chroma, (0, 0))
    return Stream(width, height, "", kept, _SUBSAMPLING[chroma], depth, full, MATRICES[matrix], siting, known[4] is not None)


def _frames(source: BinaryIO, stream: Stream) -> Iterator[list[np.ndarray]]:
    """The planes of each frame. Raises IncompleteStream at what is no whole frame."""
    import numpy as np

    for count in itertools.count():
        try:
            line = b"FRAME\n" if stream.y4m is None else source.readline(_LONGEST_HEADER)
            sizes = [int(np.prod(shape)) * np.dtype(stream.dtype).itemsize for shape in stream.planes]
            data = [source.read(size) for size in sizes] if re.match(rb"FRAME[ \r\n]", line) else []
        except OSError as error:
            raise IncompleteStream(f"cannot read frame {count + 1}: {error.strerror or error}", count) from error
        if not any(data) and (not line or stream.y4m is None):
            return
        if not data and not b"FRAME".startswith(line[:5]):
            raise IncompleteStream(f"frame {count + 1} does not begin with FRAME", count)
        if list(map(len, data)) != sizes:
            raise IncompleteStream(f"the stream ends within frame {count + 1}", count)
        yield [np.frombuffer(part, stream.dtype).reshape(shape) for part, shape in zip(data, stream.planes, strict=True)]


def _upscaled(source: _Source, stream: Stream, larger: Stream, network: Any) -> Iterator[tuple[bytes, dict[str, float | None]]]:
    """The bytes of every frame of the larger stream and, by name, its _COSTS; frames are read and packed while one is computed.

    Raises IncompleteStream where a frame is not whole, after those before it.
    """
    from ..upscaling import batch

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

        coming, packed, incomplete = reading.submit(following), deque(), None
        while True:
            try:
                rows = coming.result()
            except IncompleteStream as error:
                incomplete, rows = error, end
            if rows is end:
                break
            coming = reading.submit(following)
            record: list = []
            out = network.array(rows, layout, record=record)
            packed.append((packing.submit(_packed, out, larger), {name: getattr(batch, name)(record) for name in _COSTS}))
            if len(packed) > 1:
                done, costs = packed.popleft()
                yield done.result(), costs
        for done, costs in packed:
            yield done.result(), costs
        if incomplete is not None:
            raise incomplete


def _layout(stream: Stream) -> Layout:
    """The kind of picture that a frame is to the network."""
    from ..images import Layout

    if stream.y4m is not None:
        return Layout(stream.width, stream.height, 4 if stream.alpha else 3, 8 if stream.depth == 8 else 16)
    dtype, channels = PIXEL_FORMATS[stream.pixel_format]
    return Layout(stream.width, stream.height, channels, 8 * int(dtype[-1]))


def _packed(rows: np.ndarray, stream: Stream) -> bytes:
    if stream.y4m is None:
        return rows.astype(stream.dtype, copy=False).tobytes()
    return b"FRAME\n" + b"".join(plane.tobytes() for plane in from_rgb(rows, stream))
