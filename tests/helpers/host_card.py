"""A card for card_memory.py of benchmarks/gpu that is the host runtime: its driver's functions are in cuda_host/driver_api.cpp."""

from __future__ import annotations

import ctypes
from unittest import mock

import numpy as np
import pytest
from cuda_library import host_library

card_memory = pytest.importorskip("card_memory", reason="benchmarks are not beside the tests")


class HostCard(card_memory.Card):
    """checked: kernels may touch nothing but what was reserved and uploaded, and write nothing but outputs; `cuda_library.buffers`
    around it forgets that again."""

    def __init__(self, bare: bool = False, checked: bool = True) -> None:
        self._checked = False
        with mock.patch.object(card_memory, "DRIVER", str(host_library().path)):
            super().__init__(bare=bare)
        self._checked = checked

    def _allow(self, pointer: int, count: int, writable: bool) -> int:
        if self._checked:
            allow = ctypes.CDLL(str(host_library().path)).adabm_host_allow
            allow(ctypes.c_void_p(pointer), ctypes.c_uint64(count), int(writable))
        return pointer

    def reserve(self, count: int) -> int:
        return self._allow(super().reserve(count), count, True)

    def upload(self, array: np.ndarray, writable: bool = False) -> int:
        checked, self._checked = self._checked, False  # what reserves its room may be written
        pointer = super().upload(array)
        self._checked = checked
        return self._allow(pointer, array.nbytes, writable)
