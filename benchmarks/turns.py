"""Times several cases in turns, so that other work on the machine slows all of them alike. It also keeps the number of threads that
they may take."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

THREADS = torch.get_num_threads()  # read before anything changes it


def in_turns(
    cases: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """The seconds of each case in every round, after one round to warm up. clock: time.process_time leaves out the work of other
    programs."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = clock()
            case()
            if turn:
                seconds[name].append(clock() - start)
    return seconds
