"""Calibration data of traced networks: tensors of any channels and range, taken whole, or in crops where every output is local."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from ..networks.traced import GraphSpec
from . import images as samples

HINT = "floating-point tensors [N, C, H, W] as the module takes them"


def read_tensors(data: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Calibration data as float32 tensors [C, h, w] on the CPU.

    Raises TypeError and ValueError naming the tensor, the rule and the value.
    """
    if isinstance(data, (str, torch.Tensor)) or not isinstance(data, Iterable):
        hint = " (put it into a list)" if isinstance(data, torch.Tensor) else ""
        raise TypeError(f"calibrate: calibration must be an iterable of {HINT}, got {type(data).__name__}{hint}")
    found: list[torch.Tensor] = []
    for index, item in enumerate(data):
        name = f"calibration[{index}]"
        if not isinstance(item, torch.Tensor):
            several = f" of {len(item)}: a module with one input is converted" if isinstance(item, (tuple, list, dict)) else ""
            raise TypeError(f"calibrate: {name} must be one of {HINT}, got {type(item).__name__}{several}")
        if item.ndim != 4 or not item.is_floating_point() or item.numel() == 0:
            raise ValueError(f"calibrate: {name} must be floating point [N, C, H, W] and not empty, got {_seen(item)}")
        if found and item.shape[1] != found[0].shape[0]:
            raise ValueError(f"calibrate: {name} must have {found[0].shape[0]} channels as those before it, got {item.shape[1]}")
        if not item.isfinite().all():
            raise ValueError(f"calibrate: {name} must be finite, and holds NaN or infinite values")
        found += item.detach().float().cpu().unbind()
    if not found:
        raise ValueError("calibrate: calibration must hold at least one tensor, got none")
    return found


def _seen(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


class Tensors:
    """The calibration data of one traced network. crops: whether every output is local, so that parts of the data can stand for the
    whole."""

    def __init__(self, data: list[torch.Tensor], spec: GraphSpec):
        self.multiple, self.smallest, self.crops = spec.multiple, spec.smallest, spec.local
        self.items = [self._cut(item) if self.crops else item for item in data]
        for index, item in enumerate(self.items):
            spec.check_size(item.shape[1], item.shape[2], f"calibrate: tensor {index} of calibration")

    def _cut(self, item: torch.Tensor) -> torch.Tensor:
        """A tensor cut so that its sides are the multiples that the network needs, where it is large enough."""
        rows, columns = (size // self.multiple * self.multiple or size for size in item.shape[1:])
        return item[:, :rows, :columns]

    def _side(self, patch: int) -> int:
        least = -(-self.smallest // self.multiple)
        return max(patch // self.multiple, least) * self.multiple

    def batches(self, patch: int, size: int, rng: random.Random) -> list[torch.Tensor]:
        """All data in random order: [N, C, h, w] with N up to `size`, in crops of up to `patch` a side where those can stand for
        the whole."""
        if self.crops:
            return samples.batches(self.items, self._side(patch), size, rng)
        return [self._stacked(chunk) for chunk in self._chunks(size, rng)]

    def first(self, batches: list[torch.Tensor], count: int) -> torch.Tensor:
        """The first `count` tensors of the batches that are of one size."""
        if self.crops:
            return samples.first(batches, count)
        (shape, _), *_ = Counter(tuple(one.shape) for batch in batches for one in batch).most_common(1)
        return torch.cat([batch for batch in batches if tuple(batch.shape[1:]) == shape])[:count]

    def queue(self, patch: int, size: int, rng: random.Random, candidates: int) -> Any:
        """The source of the batches of fine-tuning; see `Epochs`."""
        if self.crops:
            return samples.Epochs(self.items, self._side(patch), size, rng, candidates)
        return _Rounds(self, size, rng)

    def _chunks(self, size: int, rng: random.Random) -> list[list[int]]:
        """The numbers of all tensors in random order, `size` of the same shape together."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        for number, item in enumerate(self.items):
            shapes.setdefault(tuple(item.shape), []).append(number)
        chunks = []
        for numbers in shapes.values():
            rng.shuffle(numbers)
            chunks += [numbers[start : start + size] for start in range(0, len(numbers), size)]
        rng.shuffle(chunks)
        return chunks

    def _stacked(self, numbers: list[int]) -> torch.Tensor:
        stacked = torch.stack([self.items[number] for number in numbers])
        return stacked.contiguous(memory_format=torch.channels_last)


class _Rounds:
    """Batches of whole tensors without end. Every tensor comes once a round. order: the tensors that are still to come in this
    round."""

    def __init__(self, tensors: Tensors, size: int, rng: random.Random):
        self.tensors, self.size, self.rng = tensors, size, rng
        self.order: list[list[int]] = []

    def restart(self, seed: int) -> None:
        """Begins again: the same seed gives the same batches."""
        self.order.clear()
        self.rng.seed(seed)

    def next(self) -> torch.Tensor:
        """The next batch, [N, C, h, w] with N up to the size."""
        if not self.order:
            self.order = self.tensors._chunks(self.size, self.rng)
        return self.tensors._stacked(self.order.pop())
