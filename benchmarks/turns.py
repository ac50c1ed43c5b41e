"""Times of several cases that take turns, so that what else a machine does meets all alike, and the threads they may take."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

THREADS = torch.get_num_threads()  # before anything changes them


def in_turns(
    cases: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each case in every round, after one round to warm up. clock: time.process_time leaves out what others compute."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = clock()
            case()
            if turn:
                seconds[name].append(clock() - start)
    return seconds
