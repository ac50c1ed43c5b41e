"""Several forward passes under way at once: lanes, each with a CUDA stream, graphs and buffers of its own."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


class _Current(threading.local):
    """For each thread, the lane that it is in."""

    lane = 0


_current = _Current()


def current_lane() -> int:
    """The lane that the calling thread is in, 0 outside of all lanes."""
    return _current.lane


@functools.cache
def _stream(device: torch.device, lane: int) -> torch.cuda.Stream:
    # Streams are kept, because buffers belong to streams and would be made anew for each new one.
    return torch.cuda.Stream(device)


def _lies_on_card(x: torch.Tensor) -> bool:
    return x.device.type == "cuda"


class Lane:
    """A context in which the calling thread's work goes to a stream of its own on a CUDA device. On a CPU it is only a number.

    index: 1 or more. Work inside waits for the earlier work of two streams: the one that was current where the lane was made, and
    the one that was current when the context was entered. One thread at a time may be in a lane.
    """

    def __init__(self, device: torch.device, index: int):
        self.index, self.stream = index, None
        if device.type == "cuda":
            self.stream, self._home = _stream(device, index), torch.cuda.current_stream(device)

    def __enter__(self) -> Lane:
        self._outside = current_lane()
        _current.lane = self.index
        if self.stream is not None:
            self.stream.wait_stream(self._home)
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
            self._on = torch.cuda.stream(self.stream)
            self._on.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.stream is not None:
            self._on.__exit__(*raised)
        _current.lane = self._outside

    def finish(self, *used: Any) -> torch.cuda.Event | None:
        """Marks the end of the work so far, and returns its event. The memory of the tensors `used`, which were made outside, stays
        until then; those in main memory need no such care."""
        if self.stream is None:
            return None
        for x in used:
            if isinstance(x, torch.Tensor) and _lies_on_card(x):
                x.record_stream(self.stream)
        done = torch.cuda.Event()
        done.record(self.stream)
        return done

    def hand_out(self, y: Any, done: torch.cuda.Event | None) -> Any:
        """Returns y, which was made inside before `done`, for use on the calling thread's stream. That stream waits for `done`, and
        y's memory is kept until that stream has used it. What of y lies in main memory was waited for when it was copied there."""
        given = [one for one in tree_leaves(y) if isinstance(one, torch.Tensor)] if self.stream is not None else []
        given = [one for one in given if _lies_on_card(one)]
        if self.stream is not None and given:
            assert done is not None  # `finish` gives it wherever there is a stream
            here = torch.cuda.current_stream(self.stream.device)
            here.wait_event(done)
            for one in given:
                one.record_stream(here)
        return y


def lanes(device: torch.device, count: int) -> list[Lane]:
    """Lanes 1..count on a device. Raises ValueError unless count is an integer of at least 1."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"in_flight must be an integer of at least 1, got {count!r}")
    return [Lane(device, index + 1) for index in range(count)]


def in_order(function: Callable[..., torch.Tensor], inputs: Iterable[tuple], lanes: list[Lane]) -> Iterator[torch.Tensor]:
    """Yields function(*input) for all inputs in their order. Each runs in the next lane, with at most one under way in each lane.

    Nothing waits on the host: the caller's stream waits for a result when it is handed out. Errors come then too. An error of
    `inputs` comes after the results of the inputs before it.
    """
    under_way: deque[tuple[Lane, torch.Tensor | Exception, torch.cuda.Event | None]] = deque()

    def oldest() -> torch.Tensor:
        lane, y, done = under_way.popleft()
        if isinstance(y, Exception):
            raise y
        return lane.hand_out(y, done)

    source = iter(inputs)
    for lane in itertools.cycle(lanes):
        if len(under_way) == len(lanes):
            yield oldest()  # before the next input is asked for, which may take long to come
        try:
            given = next(source)
        except StopIteration:
            break
        except Exception as error:
            under_way.append((lane, error, None))
            break
        with lane:
            try:
                y: torch.Tensor | Exception = function(*given)
            except Exception as error:
                y = error
            under_way.append((lane, y, lane.finish(*given)))
    while under_way:
        yield oldest()
