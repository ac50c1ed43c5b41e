"""The memory of a card by way of the driver alone, with ctypes. A program that runs kernels without torch starts in a second, and
tools that watch kernels (compute-sanitizer, ncu) see no others.

Pointers are plain integers. The context is the primary one of the device, which the CUDA libraries of this package use too.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p

import numpy as np

DRIVER = "libcuda.so.1"
# Values of CUdevice_attribute of cuda.h. The clock is in kilohertz.
ATTRIBUTES = {"clock_khz": 13, "multiprocessors": 16, "major": 75, "minor": 76}
POISON = 0xA5  # every byte of an output before the call
GUARD = 512  # bytes before and behind an output that must stay as they were; a multiple of every alignment that kernels ask for


class Card:
    """One card and the arrays that were allocated on it. Raises RuntimeError naming the driver's function and error.

    bare: whether arrays lie without guards, and outputs begin with whatever is in memory, so that tools which watch memory miss
    nothing.
    """

    def __init__(self, index: int = 0, bare: bool = False):
        self.guard, self.bare = 0 if bare else GUARD, bare
        self._held: list[c_uint64] = []
        try:
            self._driver = ctypes.CDLL(DRIVER)
        except OSError as error:
            raise RuntimeError(f"no CUDA driver: {error}") from error
        self._driver.cuGetErrorString.argtypes = [c_int, ctypes.POINTER(c_char_p)]
        self._call("cuInit", 0)
        device, context = c_int(), c_void_p()
        self._call("cuDeviceGet", byref(device), index)
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._device = device
        self.index = index

    def _call(self, name: str, *args: object) -> None:
        status = getattr(self._driver, name)(*args)
        if status:
            message = c_char_p()
            self._driver.cuGetErrorString(status, byref(message))
            raise RuntimeError(f"{name}: {(message.value or b'unknown error').decode()} ({status})")

    def attribute(self, name: str) -> int:
        """The value of one of ATTRIBUTES."""
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), ATTRIBUTES[name], self._device)
        return value.value

    def facts(self) -> dict[str, object]:
        """The facts about the card for a record: name, compute capability, multiprocessors, highest clock in MHz, memory and
        driver."""
        name, total, version = ctypes.create_string_buffer(256), c_size_t(), c_int()
        self._call("cuDeviceGetName", name, 256, self._device)
        self._call("cuDeviceTotalMem_v2", byref(total), self._device)
        self._call("cuDriverGetVersion", byref(version))
        return {
            "card": name.value.decode(),
            "compute_capability": f"{self.attribute('major')}.{self.attribute('minor')}",
            "multiprocessors": self.attribute("multiprocessors"),
            "clock_mhz": self.attribute("clock_khz") // 1000,
            "memory_bytes": total.value,
            "driver_cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        }

    def reserve(self, count: int) -> int:
        """Reserves `count` bytes for an output and fills them with POISON, as it does GUARD bytes before and behind. Returns the
        address."""
        pointer, room = c_uint64(), c_size_t(count + 2 * self.guard)
        self._call("cuMemAlloc_v2", byref(pointer), room)
        self._held.append(pointer)
        if not self.bare:
            self._call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(POISON), room)
        return pointer.value + self.guard

    def upload(self, array: np.ndarray, writable: bool = False) -> int:
        """Copies the array's bytes to the card, between guards as in `reserve`. writable: has no effect here; other memories use
        it."""
        array = np.ascontiguousarray(array)
        pointer = self.reserve(array.nbytes)
        self._call("cuMemcpyHtoD_v2", c_uint64(pointer), c_void_p(array.ctypes.data), c_size_t(array.nbytes))
        return pointer

    def download(self, pointer: int, like: np.ndarray) -> np.ndarray:
        """Copies what lies at a pointer from the card, in the form of `like`. Waits for the card. Raises RuntimeError where bytes
        around it have changed."""
        whole, guard = np.empty(like.nbytes + 2 * self.guard, np.uint8), self.guard
        self._call("cuMemcpyDtoH_v2", c_void_p(whole.ctypes.data), c_uint64(pointer - guard), c_size_t(whole.nbytes))
        around = np.concatenate([whole[:guard], whole[guard + like.nbytes :]])
        if (around != POISON).any():
            raise RuntimeError(f"{int((around != POISON).sum())} of the {2 * guard} bytes around an output were written")
        return whole[guard : guard + like.nbytes].view(like.dtype).reshape(like.shape)

    def free(self) -> None:
        """Frees all memory that was reserved and uploaded."""
        while self._held:
            self._call("cuMemFree_v2", self._held.pop())

    def synchronise(self) -> None:
        """Waits for everything that was started. Raises RuntimeError where a kernel has failed."""
        self._call("cuCtxSynchronize")
