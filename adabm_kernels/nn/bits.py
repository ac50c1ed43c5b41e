"""Thresholds of the image measure that follow the images they see."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn


class RunningThresholds(nn.Module):
    """Image thresholds that follow the images of inference: running estimates of the two quantiles that calibration took.

    thresholds: the calibrated (lower, upper). percentile: the percentage of images below the one and above the other
    (`ConvertConfig.image_percentile`). momentum: 0 leaves the thresholds as calibrated; see `set_running_thresholds` of
    ConvertedNetwork for the formula. Any number of threads may call it at once, but a compiled caller only one at a time.
    """

    # How far a threshold may move from its calibrated value, as factors: a long run of odd images must not undo the calibration.
    BOUNDS = (2 / 3, 3 / 2)

    def __init__(self, thresholds: tuple[float, float], percentile: float):
        super().__init__()
        start = torch.tensor(thresholds, dtype=torch.float64)
        ends = torch.stack([start * bound for bound in self.BOUNDS])
        self.ordered = thresholds[0] <= thresholds[1]
        self.momentum = 0.0
        self._lock = threading.Lock()
        # float64: steps of a small momentum would vanish in the rounding of float32.
        self.register_buffer("calibrated", start)
        self.register_buffer("least", ends.amin(0))
        self.register_buffer("most", ends.amax(0))
        self.register_buffer("quantiles", torch.tensor([percentile / 100, 1 - percentile / 100], dtype=torch.float64))
        self.register_buffer("current", start.clone())  # never another's memory: a compiled caller writes into it

    def set(self, momentum: float, start: tuple[float, float] | None) -> None:
        """Begin at `start`, or go on; momentum 0 goes back to the calibrated thresholds.

        Raises ValueError for a start out of bounds.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            current = self.current if start is None else torch.tensor(start, dtype=torch.float64, device=self.current.device)
            slack = 1e-12 * self.calibrated.abs()  # of float64, for what went through a file
            if current.shape != (2,) or not ((current >= self.least - slack) & (current <= self.most + slack)).all():
                bounds = f"{self.least.tolist()} and {self.most.tolist()}"
                raise ValueError(f"set_running_thresholds: start must be (lower, upper) between {bounds}, got {start!r}")
            self.momentum, self.current = momentum, (current if momentum else self.calibrated).clone()

    def offsets(self, measures: torch.Tensor, learn: bool) -> torch.Tensor:
        """Bits that each image gets more or less, int32 [N], from the measures [N]: each image is judged by the thresholds that
        those before it left. learn: keep what they leave."""
        if torch.compiler.is_compiling():  # a compiler knows no locks, and of state only what is written in place
            offsets, left = self._follow(measures)
            if learn:
                self.current.copy_(left)
            return offsets
        # Thresholds that are kept must be ordinary tensors, which a compiled caller may write into.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            offsets, left = self._follow(measures)
            if learn:
                self.current = left  # a new tensor: who holds the old one still holds a pair
        return offsets

    def _follow(self, measures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(offsets int32 [N], thresholds float64 [2] that the last image leaves)."""
        current, offsets = self.current, []
        for measure in measures.double():
            offsets.append((measure > current[1]).to(torch.int32) - (measure < current[0]).to(torch.int32))
            current = self._step(current, measure, self.momentum)
        return torch.stack(offsets), current

    def _step(self, current: torch.Tensor, measure: torch.Tensor, momentum: float) -> torch.Tensor:
        # On the device, without a branch on values: the bits stay data.
        moved = current + momentum * self.calibrated.abs() * (self.quantiles - (measure < current).double())
        moved = torch.minimum(torch.maximum(moved, self.least), self.most)
        # Estimates of quantiles that lie close may cross; their mean lies between the bounds of both.
        return torch.where(moved[0] <= moved[1], moved, moved.mean()) if self.ordered else moved

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}  # locks cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()
