"""CUDA graphs of a forward pass, one for each shape of its inputs, and the rule by which passes are recorded without being asked
for."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .lanes import current_lane

Function = Callable[..., torch.Tensor]


class _Default(threading.local):
    """Whether a thread is in a block of `recorded_by_default`."""

    on = False


_default = _Default()
# Only one recording may be made at a time in a process: torch first waits for the device, which breaks a recording under way.
_RECORDING = threading.Lock()


@contextmanager
def recorded_by_default() -> Iterator[None]:
    """Inside the block, forward passes of the calling thread on a CUDA device are recorded, unless the model was told otherwise. A
    shape of inputs is recorded when it comes the third time (Graphs.launch_then_record).

    The assumption, which was not measured on a card, is that kernels launched one by one cost the host more than small layers cost
    the card. Recording calls the function twice and waits for the device, so recording gains only for shapes that come more often
    than that.
    """
    before = records_by_default()
    _default.on = True
    try:
        yield
    finally:
        _default.on = before


def records_by_default() -> bool:
    """Whether the calling thread is in such a block."""
    return _default.on


class CudaGraph:
    """A recording of `function` on inputs like those given. A call copies its inputs in, replays the recording, and returns a copy
    of the output.

    pool: memory that graphs share (torch.cuda.graph_pool_handle()). They may share it because `busy`, the event of the last call on
    whatever stream it was, lets only one run at a time. aside: the stream that all graphs of a pool are recorded on, on the device
    of the inputs. Torch's own stream would be on the device that recorded first, and would find nothing to record on another
    device.
    """

    def __init__(
        self, function: Function, inputs: tuple[torch.Tensor, ...], pool: Any, busy: torch.cuda.Event, aside: torch.cuda.Stream
    ):
        self._inputs, self._busy, self._device = tuple(x.clone() for x in inputs), busy, inputs[0].device
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                function(*self._inputs)  # this compiles and loads kernels, which cannot be recorded
            here.wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with _RECORDING, torch.cuda.graph(self._graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                self._output = function(*self._inputs)
        given = self._output if isinstance(self._output, tuple) else (self._output,)
        self.held_bytes = sum(x.nbytes for x in (*self._inputs, *given))  # memory that no other graph of the pool may use

    def __call__(self, *inputs: torch.Tensor) -> Any:
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._busy)
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
                own.record_stream(stream)  # the tensor may be dropped, with the graph, before this stream has come to it
            self._graph.replay()
            held = self._output
            output = tuple(one.clone() for one in held) if isinstance(held, tuple) else held.clone()
            self._busy.record(stream)
        return output


class Graphs:
    """The graphs of one model. Each lane keeps those of up to LIMIT shapes, as long as they hold MOST_BYTES together, and one graph
    in any case.

    A picture's windows have one shape, but begin at up to four places of the grid of tiles (first or last, of rows and of columns),
    and come in batches of several sizes. A graph's own memory is its inputs and its output; all graphs of a lane share the memory
    in between. Any number of threads and streams may run them, those of a lane one at a time, because each lane has memory of its
    own (lanes.Lane).
    """

    LIMIT, MOST_BYTES = 32, 1 << 30
    # How many passes of a shape are launched before one is recorded that nobody asked for. A picture with two equal windows is not
    # worth a recording.
    LAUNCHED = 2
    SEEN = 256  # the most shapes that are remembered for having come

    def __init__(self) -> None:
        self._lanes: dict[int, OrderedDict[tuple, CudaGraph]] = {}
        self._lock = threading.Lock()
        self._shared: dict[tuple[torch.device, int], tuple[Any, torch.cuda.Event, torch.cuda.Stream]] = {}
        self._came: OrderedDict[tuple, tuple[int, int]] = OrderedDict()  # by lane and shape, how often and when last it came
        self._time = 0
        self.failed = ""  # why a recording that nobody asked for failed; after that none is tried again until `clear`

    def run(self, function: Function, *inputs: torch.Tensor, kind: str = "") -> torch.Tensor:
        """Returns function(*inputs), which is recorded when these shapes come for the first time since `clear`. kind: a word that
        tells functions apart."""
        key, lane = _key(kind, inputs), current_lane()
        with self._lock:
            graphs = self._lanes.setdefault(lane, OrderedDict())
            if key not in graphs:
                graphs[key] = self._record(function, inputs, lane)
            self._note(lane, key)
            graphs.move_to_end(key)
            self._drop_oldest(graphs)
            return graphs[key](*inputs)

    def launch_then_record(self, function: Function, launched: Function, *inputs: torch.Tensor, kind: str = "") -> torch.Tensor:
        """Returns the result of `run` for a function whose recording nobody asked for. The first LAUNCHED times that these shapes
        come in a lane, launched(*inputs) runs; the next time `function` is recorded. Which number is best was not measured.

        Where as many graphs are kept as may be, a new one takes the place of the one that ran longest ago, but only if that one did
        not run since these shapes last came. More shapes in turn than are kept would otherwise be recorded anew every time. A
        recording that fails is warned of once, with the reason, and none is tried again until `clear`.
        """
        key, lane = _key(kind, inputs), current_lane()
        with self._lock:
            graphs = self._lanes.setdefault(lane, OrderedDict())
            count, before = self._note(lane, key)
            if key not in graphs and count >= self.LAUNCHED and not self.failed and self._has_room(lane, before):
                try:
                    graphs[key] = self._record(function, inputs, lane)
                except Exception as error:  # these errors have no common class: memory, a call that cannot be recorded, a driver
                    self._give_up(error)
                else:
                    self._drop_oldest(graphs)
            if key in graphs:
                graphs.move_to_end(key)
                return graphs[key](*inputs)
        return launched(*inputs)

    def _note(self, lane: int, key: tuple) -> tuple[int, int]:
        """Notes that a shape has come, and returns how often and when it had come before."""
        self._time += 1
        count, before = self._came.pop((lane, key), (0, 0))
        self._came[lane, key] = count + 1, self._time
        while len(self._came) > self.SEEN:
            self._came.popitem(last=False)
        return count, before

    def _has_room(self, lane: int, before: int) -> bool:
        """Whether a shape that came last at time `before` may be recorded."""
        graphs = self._lanes[lane]
        held = [graph.held_bytes for graph in graphs.values()]
        # How much the new graph holds is not known before it exists.
        room = len(held) < self.LIMIT and sum(held) + max(held, default=0) <= self.MOST_BYTES
        return room or self._came.get((lane, next(iter(graphs))), (0, 0))[1] < before

    def _drop_oldest(self, graphs: OrderedDict[tuple, CudaGraph]) -> None:
        """Drops graphs of a lane until no more are left than may be kept."""
        while len(graphs) > self.LIMIT or (len(graphs) > 1 and sum(g.held_bytes for g in graphs.values()) > self.MOST_BYTES):
            graphs.popitem(last=False)

    def _drop_all(self) -> None:
        for graphs in self._lanes.values():
            graphs.clear()  # a pass that is under way still refers to those of its lane
        self._lanes.clear()
        self._shared.clear()

    def _give_up(self, error: Exception) -> None:
        self._drop_all()  # the recorded graphs hold memory that the pass may need now
        self.failed = str(error).strip().partition("\n")[0] or type(error).__name__
        warnings.warn(
            f"forward passes are launched kernel by kernel from here on, since recording one as a CUDA graph failed: {self.failed} "
            "(--no-graph or graph=False does not try)",
            RuntimeWarning,
            stacklevel=2,
        )

    def _record(self, function: Function, inputs: tuple[torch.Tensor, ...], lane: int) -> CudaGraph:
        place = inputs[0].device, lane
        if place not in self._shared:
            self._shared[place] = torch.cuda.graph_pool_handle(), torch.cuda.Event(), torch.cuda.Stream(inputs[0].device)
        return CudaGraph(function, inputs, *self._shared[place])

    def clear(self) -> None:
        """Forgets all recordings, because the settings or the place of the model have changed."""
        with self._lock:
            self._drop_all()
            self._came.clear()
            self.failed = ""

    def __deepcopy__(self, memo: dict) -> Graphs:
        return Graphs()

    def __reduce__(self) -> tuple:
        return Graphs, ()


def _key(kind: str, inputs: tuple[torch.Tensor, ...]) -> tuple:
    return (kind, *((tuple(x.shape), x.dtype, x.device) for x in inputs))
