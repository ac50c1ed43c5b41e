"""`adabm upscale --y4m` and `--raw`: upscales frames from a pipe in order, into a pipe."""

from __future__ import annotations

import argparse
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, BinaryIO

from ..files import PartialFile, check_target, naming
from ..upscaling.sizes import in_figures
from .blocks import block_rows
from .common import BAD_INPUT, FAILED, STDOUT, Progress, print_table, stage, to_json
from .loading import load_enlarger
from .outputs import DEFAULT_SUFFIX
from .pipes import open_source, open_target, piped, refuse_terminal
from .sizes import asked_size, in_words
from .streams import PIXEL_FORMATS, IncompleteStream, Stream, read_frames, read_y4m
from .yuv import from_rgb, to_rgb

if TYPE_CHECKING:
    import numpy as np

    from ..images import Layout

_READ_BYTES = 1 << 16  # the bytes that a pipe holds
_POLL_SECONDS = 0.1
_COSTS = ("mean_bits", "computed_share", "bits_with_zeros")  # names of functions of `batch`
# Options that mean nothing for frames, with their defaults.
_OF_PICTURES = {"compare": False, "format": None, "quality": None, "suffix": DEFAULT_SUFFIX, "verbose": False}
_OF_PICTURES |= {"strict": False, "metadata": "keep"}


def execute(args: argparse.Namespace) -> None:
    """Upscale the frames of standard input (or a file) one after the other, each with its own bits."""
    with ExitStack() as stack:
        with stage(BAD_INPUT):
            _check(args)
            size = asked_size(args)
            source = _Source(stack.enter_context(open_source(args.inputs[0])))
            stream = read_y4m(source, args.matrix) if args.y4m else _raw(args)
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
    """The mean over the frames that have a value."""
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


class _Source(io.BufferedReader):
    """The bytes of a file or a pipe. After `stop`, a read that waits for a producer sees the end of the stream."""

    def __init__(self, file: BinaryIO):
        self._stoppable = _Stoppable(file.fileno())
        super().__init__(self._stoppable, _READ_BYTES)

    def stop(self) -> None:
        self._stoppable.stopped.set()


class _Stoppable(io.RawIOBase):
    """The bytes of a file descriptor, which stays open when this object is closed."""

    def __init__(self, descriptor: int):
        self._descriptor, self.stopped = descriptor, threading.Event()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.stopped.is_set():
            if select.select([self._descriptor], [], [], _POLL_SECONDS)[0]:
                return os.readv(self._descriptor, [buffer])
        return 0


def _raw(args: argparse.Namespace) -> Stream:
    width, height = args.raw
    return Stream(width, height, args.pix_fmt or "rgb24")


def _upscaled(
    source: _Source, stream: Stream, larger: Stream, network: Any
) -> Generator[tuple[bytes, dict[str, float | None]], None, None]:
    """Yields the bytes of every frame of the larger stream, and its _COSTS by name. While one frame is computed, the next is read
    and the last is packed.

    Raises IncompleteStream at a frame that is not whole, once all frames before it have been yielded.
    """
    from ..upscaling import batch

    layout, end = _layout(stream), object()
    # A pool that closes waits for its thread, and this thread may wait for the producer. Therefore `source` is stopped first.
    with (
        ThreadPoolExecutor(1, "adabm read") as reading,
        ThreadPoolExecutor(1, "adabm pack") as packing,
        ExitStack() as stack,
    ):
        stack.callback(source.stop)
        frames = read_frames(source, stream)

        def following() -> Any:
            planes: Any = next(frames, end)
            return planes if planes is end else (planes[0] if stream.y4m is None else to_rgb(planes, stream))

        coming, incomplete = reading.submit(following), None
        packed: deque[tuple[Future, dict[str, float | None]]] = deque()
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
    """The layout by which the network takes a frame."""
    from ..images import Layout

    if stream.y4m is not None:
        return Layout(stream.width, stream.height, 4 if stream.alpha else 3, 8 if stream.depth == 8 else 16)
    dtype, channels = PIXEL_FORMATS[stream.pixel_format]
    return Layout(stream.width, stream.height, channels, 8 * int(dtype[-1]))


def _packed(rows: np.ndarray, stream: Stream) -> bytes:
    if stream.y4m is None:
        return rows.astype(stream.dtype, copy=False).tobytes()
    return b"FRAME\n" + b"".join(plane.tobytes() for plane in from_rgb(rows, stream))
