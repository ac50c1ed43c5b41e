"""CUDA graphs of a forward pass, one for each shape of its inputs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from .lanes import current_lane

Function = Callable[..., torch.Tensor]
_RECORDING = threading.Lock()  # one at a time in a process: torch waits for the device first, which breaks a recording under way


class CudaGraph:
    """`function` recorded on inputs like those given; a call copies its inputs in, replays, and returns a copy of the output.

    pool: memory that graphs share (torch.cuda.graph_pool_handle()), which they may because `busy` lets only one run at a time: the
    event of the last call, on whatever stream it was. aside: the stream that all graphs of a pool are recorded on, of the device of
    the inputs; torch's own would be of the device that recorded first, and find nothing to record on another.
    """

    def __init__(
        self, function: Function, inputs: tuple[torch.Tensor, ...], pool: Any, busy: torch.cuda.Event, aside: torch.cuda.Stream
    ):
        self._inputs, self._busy, self._device = tuple(x.clone() for x in inputs), busy, inputs[0].device
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                function(*self._inputs)  # compiles and loads kernels, which cannot be recorded
            here.wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with _RECORDING, torch.cuda.graph(self._graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                self._output = function(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._busy)
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
                own.record_stream(stream)  # it may be dropped, with the graph, before this stream has come to it
            self._graph.replay()
            output = self._output.clone()
            self._busy.record(stream)
        return output


class Graphs:
    """The graphs of one model, for the last LIMIT shapes in each lane.

    Any number of threads and streams may run them, those of a lane one at a time: lanes have memory of their own (lanes.Lane).
    """

    LIMIT = 8

    def __init__(self) -> None:
        self._lanes: dict[int, OrderedDict[tuple, Function]] = {}
        self._lock = threading.Lock()
        self._shared: dict[tuple[torch.device, int], tuple[Any, torch.cuda.Event, torch.cuda.Stream]] = {}

    def run(self, function: Function, *inputs: torch.Tensor, kind: str = "") -> torch.Tensor:
        """function(*inputs), recorded when these shapes come for the first time since `clear`. kind: tells functions apart."""
        key = (kind, *((tuple(x.shape), x.dtype, x.device) for x in inputs))
        lane = current_lane()
        with self._lock:
            graphs = self._lanes.setdefault(lane, OrderedDict())
            if key not in graphs:
                graphs[key] = self._record(function, inputs, lane)
            graphs.move_to_end(key)
            if len(graphs) > self.LIMIT:
                graphs.popitem(last=False)
            return graphs[key](*inputs)

    def _record(self, function: Function, inputs: tuple[torch.Tensor, ...], lane: int) -> Function:
        place = inputs[0].device, lane
        if place not in self._shared:
            self._shared[place] = torch.cuda.graph_pool_handle(), torch.cuda.Event(), torch.cuda.Stream(inputs[0].device)
        return CudaGraph(function, inputs, *self._shared[place])

    def clear(self) -> None:
        """Forget what was recorded: the settings or the place of the model have changed."""
        with self._lock:
            self._lanes.clear()
            self._shared.clear()

    def __deepcopy__(self, memo: dict) -> Graphs:
        return Graphs()

    def __reduce__(self) -> tuple:
        return Graphs, ()
