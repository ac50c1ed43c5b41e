"""Global and shared memory, each access checked."""

from __future__ import annotations

import bisect
import ctypes
from dataclasses import dataclass

import numpy as np

from .machine import WORD, MachineError, Row

NEVER, WRITTEN, COPYING = 0, 1, 2


@dataclass(frozen=True)
class Region:
    """A buffer that kernels may touch: where it begins for them, its bytes, and whether they may write them."""

    begin: int
    data: np.ndarray
    writable: bool
    name: str = ""

    @classmethod
    def of_host(cls, pointer: int, size: int, writable: bool, name: str = "") -> Region:
        """Host memory at its own address."""
        return cls(pointer, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer)), writable, name)


class Global:
    """Global memory: nothing but some regions."""

    def __init__(self, regions: list[Region]):
        self.regions = sorted((region for region in regions if region.data.size), key=lambda region: region.begin)
        for before, after in zip(self.regions, self.regions[1:], strict=False):
            if before.begin + before.data.size > after.begin:
                raise ValueError(f"regions must not overlap, got {before.name!r} and {after.name!r}")
        self._begins = [region.begin for region in self.regions]

    def _place(self, addresses: Row, size: int, write: bool) -> tuple[Region, Row]:
        """The region of these addresses, and how far into it they lie. All must be in one."""
        k = bisect.bisect_right(self._begins, int(addresses[0])) - 1
        region = self.regions[k] if k >= 0 else None
        if region is not None:
            offsets = addresses - region.begin
            if 0 <= offsets.min() and offsets.max() + size <= region.data.size:
                if size > 1 and ((addresses & (size - 1)) != 0).any():
                    raise MachineError(f"a global address that is no multiple of {size}")
                if write and not region.writable:
                    raise MachineError(f"a write of {size} bytes to {region.name or 'a region'}, which is only read")
                return region, offsets
        raise _Apart

    def _groups(self, addresses: Row, size: int, write: bool):
        """(region, offsets, which of the addresses) by region."""
        try:
            region, offsets = self._place(addresses, size, write)
        except _Apart:
            pass
        else:
            yield region, offsets, slice(None)
            return
        which = np.array([bisect.bisect_right(self._begins, int(a)) - 1 for a in addresses])
        for k in dict.fromkeys(which.tolist()):
            here = np.nonzero(which == k)[0]
            try:
                region, offsets = self._place(addresses[here], size, write)
            except _Apart:
                raise MachineError(self._outside(addresses[here], size, k)) from None
            yield region, offsets, here

    def _outside(self, addresses: Row, size: int, k: int) -> str:
        if k < 0:
            return f"{size} bytes at {int(addresses.min()):#x}, outside every region"
        region = self.regions[k]
        far = int(addresses.max()) - region.begin
        return f"{size} bytes at byte {far} of {region.name or 'a region'}, which has {region.data.size}"

    def read(self, addresses: Row, size: int) -> Row:
        """uint8 [addresses][size]."""
        out = np.empty((len(addresses), size), np.uint8)
        for region, offsets, which in self._groups(addresses, size, False):
            out[which] = region.data[offsets[:, None] + _STEPS[:size]] if size > 1 else region.data[offsets][:, None]
        return out

    def write(self, addresses: Row, data: Row) -> None:
        """uint8 [addresses][size] to their places; of equal addresses the last counts."""
        size = data.shape[1]
        for region, offsets, which in self._groups(addresses, size, True):
            region.data[offsets[:, None] + _STEPS[:size]] = data[which]

    def bulk(self, address: int, size: int) -> Row:
        """The bytes of one long read."""
        for region in self.regions:
            if region.begin <= address and address + size <= region.begin + region.data.size:
                return region.data[address - region.begin : address - region.begin + size]
        raise MachineError(f"{size} bytes at {address:#x}, outside every region")


class _Apart(Exception):
    pass


_STEPS = np.arange(16)


class Shared:
    """The shared memory of a block, from byte `base` on.

    For each byte: whether anything has written it, or a copy under way is about to. For each word: which thread wrote it
    ordinarily and has not fenced it since (its number and 1, or 0), and which warps have fenced it for themselves after they
    waited for that thread, a bit each.
    """

    def __init__(self, base: int, size: int):
        self.base, self.end = base, base + size
        room = (self.end + 15) // 16 * 16
        self.data = np.full(room, 0xA5, np.uint8)
        self.state = np.zeros(room, np.uint8)
        self.unfenced = np.zeros(room // 4, np.int16)
        self.readers = np.zeros(room // 4, np.uint32)
        self._views = {1: self.data, 2: self.data.view(np.uint16), 4: self.data.view(WORD), 8: self.data.view(np.uint64)}
        self._states = {1: self.state, 2: self.state.view(np.uint16), 4: self.state.view(WORD), 8: self.state.view(np.uint64)}

    def check(self, addresses: Row, size: int) -> None:
        low, high = int(addresses.min()), int(addresses.max())
        if low < self.base or high + size > self.end:
            raise MachineError(
                f"{size} bytes at {low if low < self.base else high:#x} of shared memory, which is {self.base:#x}..{self.end:#x}"
            )
        if size > 1 and ((addresses & (size - 1)) != 0).any():
            raise MachineError(
                f"an address of shared memory that is no multiple of {size}: {int(addresses[(addresses & (size - 1)) != 0][0]):#x}"
            )

    def check_written(self, index: Row, what: str = "a read") -> None:
        """index: of bytes."""
        state = self.state[index]
        if (state != WRITTEN).any():
            bad = np.atleast_1d(index)[np.atleast_1d(state != WRITTEN)].ravel()[0]
            why = "a copy under way is writing" if self.state[bad] == COPYING else "nothing has written"
            raise MachineError(f"{what} of byte {int(bad):#x} of shared memory, which {why}")

    def read(self, addresses: Row, size: int) -> Row:
        """[addresses][words of 4 bytes], or [addresses] where size is 1, 2 or 4."""
        self.check(addresses, size)
        unit = min(size, 8)
        at = addresses // unit
        if size == 16:
            at = at[:, None] + _STEPS[:2]
        if (self._states[unit][at] != _WRITTEN[unit]).any():
            self.check_written(addresses[:, None] + _STEPS[:size])
        found = self._views[unit][at]
        return found if size <= 4 else np.ascontiguousarray(found).view(WORD).reshape(len(addresses), size // 4)

    def write(self, addresses: Row, data: Row, threads: Row) -> Row:
        """As `read` gives it. Returns the words that were touched."""
        size = data.itemsize * (data.shape[1] if data.ndim == 2 else 1)
        self.check(addresses, size)
        if size <= 4:
            at = addresses // size
            states = self._states[size]
            if (self.state[addresses] == COPYING).any():
                raise MachineError("a write to shared memory that a copy under way is writing")
            self._views[size][at] = data
            states[at] = _WRITTEN[size]
            words = addresses >> 2
            self.unfenced[words], self.readers[words] = threads + 1, 0
            return words
        words = (addresses[:, None] >> 2) + _STEPS[: size // 4]
        if (self._states[4][words] == _COPYING).any():
            raise MachineError("a write to shared memory that a copy under way is writing")
        self._views[4][words] = data
        self._states[4][words] = _WRITTEN[4]
        self.unfenced[words], self.readers[words] = threads[:, None] + 1, 0
        return words.ravel()

    def begin_copy(self, addresses: Row, size: int) -> None:
        self.check(addresses, size)
        words = (addresses[:, None] >> 2) + _STEPS[: size // 4]
        if (self._states[4][words] == _COPYING).any():
            raise MachineError("a copy to shared memory that another copy under way is writing")
        self._states[4][words] = _COPYING

    def end_copy(self, addresses: Row, data: Row, threads: Row) -> Row:
        """uint8 [addresses][size], written ordinarily by threads."""
        words = (addresses[:, None] >> 2) + _STEPS[: data.shape[1] // 4]
        self._views[4][words] = np.ascontiguousarray(data).view(WORD)
        self._states[4][words] = _WRITTEN[4]
        self.unfenced[words], self.readers[words] = threads[:, None] + 1, 0
        return words.ravel()

    def begin_bulk(self, address: int, size: int) -> None:
        self.check(np.array([address, address + size - 16]), 16)
        if (self.state[address : address + size] == COPYING).any():
            raise MachineError("a bulk copy to shared memory that another copy under way is writing")
        self.state[address : address + size] = COPYING

    def end_bulk(self, address: int, data: Row) -> None:
        """Written by the copy engine: products may read it without a fence."""
        self.data[address : address + len(data)] = data
        self.state[address : address + len(data)] = WRITTEN
        self.unfenced[address >> 2 : address + len(data) >> 2] = 0

    def product_bytes(self, index: Row, warp: int) -> Row:
        """Bytes at these places as a warp's product reads them: written, and fenced where that was done ordinarily."""
        low, high = int(index.min()), int(index.max())
        if low < self.base or high >= self.end:
            raise MachineError(f"a product reads byte {low if low < self.base else high:#x} outside shared memory")
        state = self.state[index]
        if (state != WRITTEN).any():
            self.check_written(index, "a product's read")
        words = index[..., ::4] >> 2
        late = self.unfenced[words]
        if late.any():
            late = np.where(self.readers[words] >> np.uint32(warp) & np.uint32(1), 0, late)
        if late.any():
            thread = int(late[late != 0].ravel()[0]) - 1
            byte = int(words[late != 0].ravel()[0]) * 4
            raise MachineError(f"a product reads byte {byte:#x} of shared memory, which thread {thread} wrote and has not fenced")
        return self.data[index]


_WRITTEN = {1: np.uint8(1), 2: np.uint16(0x0101), 4: WORD(0x01010101), 8: np.uint64(0x0101010101010101)}
_COPYING = WORD(0x02020202)
