"""The host runtime in the place of a card for benchmarks/gpu/card_memory.py. The functions of its driver are in
cuda_host/driver_api.cpp."""

from __future__ import annotations

import ctypes
from unittest import mock

import numpy as np
import pytest
from cuda_library import host_library

card_memory = pytest.importorskip("card_memory", reason="benchmarks are not beside the tests")


class HostCard(card_memory.Card):
    """A card that is the host runtime.

    checked: kernels may touch only memory that was reserved or uploaded, and write only to outputs. `cuda_library.buffers` around
    the card ends this rule.
    """

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
        checked, self._checked = self._checked, False  # `reserve`, which `upload` calls, would allow writing
        pointer = super().upload(array)
        self._checked = checked
        return self._allow(pointer, array.nbytes, writable)
