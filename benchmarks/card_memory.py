"""A card's memory by way of the driver alone, with ctypes: what runs kernels without torch starts in a second, and tools that watch
kernels (compute-sanitizer, ncu) see nothing but those.

Pointers are plain integers. The context is the device's primary one, which the CUDA libraries of this package use too.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p

import numpy as np

DRIVER = "libcuda.so.1"
# CUdevice_attribute of cuda.h: kilohertz for the clock.
ATTRIBUTES = {"clock_khz": 13, "multiprocessors": 16, "major": 75, "minor": 76}
POISON = 0xA5  # of every byte of an output before the call
GUARD = 512  # bytes before and behind an output that must stay as they were; a multiple of every alignment that kernels ask for


class Card:
    """One card and what was allocated on it. Raises RuntimeError naming the driver's function and error."""

    def __init__(self, index: int = 0):
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
        """One of ATTRIBUTES."""
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), ATTRIBUTES[name], self._device)
        return value.value

    def facts(self) -> dict[str, object]:
        """What a record says of the card: name, compute capability, multiprocessors, most clock in MHz, memory, driver."""
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

    def upload(self, array: np.ndarray, writable: bool = False) -> int:
        """The array's bytes on the card, between GUARD bytes of POISON before and behind; writable is for other memories."""
        array = np.ascontiguousarray(array)
        pointer = c_uint64()
        self._call("cuMemAlloc_v2", byref(pointer), c_size_t(array.nbytes + 2 * GUARD))
        self._call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(POISON), c_size_t(array.nbytes + 2 * GUARD))
        self._call("cuMemcpyHtoD_v2", c_uint64(pointer.value + GUARD), c_void_p(array.ctypes.data), c_size_t(array.nbytes))
        return pointer.value + GUARD

    def download(self, pointer: int, like: np.ndarray) -> np.ndarray:
        """What lies there now, in the form of `like`. Waits for the card. Raises where bytes around it have changed."""
        whole = np.empty(like.nbytes + 2 * GUARD, np.uint8)
        self._call("cuMemcpyDtoH_v2", c_void_p(whole.ctypes.data), c_uint64(pointer - GUARD), c_size_t(whole.nbytes))
        around = np.concatenate([whole[:GUARD], whole[GUARD + like.nbytes :]])
        if (around != POISON).any():
            raise RuntimeError(f"{int((around != POISON).sum())} of the {2 * GUARD} bytes around an output were written")
        return whole[GUARD : GUARD + like.nbytes].view(like.dtype).reshape(like.shape)

    def synchronise(self) -> None:
        """Waits for everything that was started. Raises what a kernel has failed with."""
        self._call("cuCtxSynchronize")
