"""Golden problems (benchmarks/golden_problems.py): the answers that a card is held against are right, and wrong ones are told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_library import buffers, driver, host_library
from small import one_thread  # noqa: F401

from adabm_kernels import native

golden_problems = pytest.importorskip("golden_problems", reason="benchmarks are not beside the tests")
golden_run = pytest.importorskip("golden_run")
PROBLEMS = golden_problems.PROBLEMS


class HostMemory:
    """Memory of the host runtime, which kernels may touch only where this has allowed it."""

    index = 0

    def __init__(self) -> None:
        self._held: dict[int, np.ndarray] = {}

    def upload(self, array: np.ndarray, writable: bool = False) -> int:
        room = np.empty(array.nbytes + 64, np.uint8)
        aligned = room[-room.ctypes.data % 64 :][: array.nbytes]
        aligned[:] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self._held[aligned.ctypes.data] = aligned
        host = host_library()
        host._dll.adabm_host_allow(native.c_void_p(aligned.ctypes.data), native.c_uint64(array.nbytes), int(writable))
        return aligned.ctypes.data

    def download(self, pointer: int, like: np.ndarray) -> np.ndarray:
        return self._held[pointer].view(like.dtype).reshape(like.shape)

    def synchronise(self) -> None:
        pass


def run(golden: golden_run.Golden, major: int = 9) -> dict:
    with driver(major=major, shared_limit=(227 if major == 9 else 99) << 10, multiprocessors=3), buffers([], []):
        return golden_run.run(golden, host_library(), HostMemory())


@pytest.mark.parametrize("name", PROBLEMS)
def test_answers_are_those_of_the_kernels(name: str, tmp_path: Path) -> None:
    golden_problems.make(tmp_path, [name])
    (path,) = tmp_path.iterdir()
    golden = golden_run.Golden.load(path)
    for major in (9, 8):
        if golden.major in (0, major):
            assert run(golden, major) == {"result": "equal"}
