"""Decides the bits of images and layers, by thresholds of the image measure that may follow the images of inference."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from .. import ops
from ..config import ConvertConfig
from ..image_bits import as_colours, bits_by_rule, image_offsets
from ..quantize import MAX_BITS, MIN_BITS
from ..registry import Choice
from .conv import AdaptiveConv2d


class RunningThresholds(nn.Module):
    """Image thresholds that follow the images of inference. They are running estimates of the two quantiles that calibration took.

    thresholds: the calibrated (lower, upper). percentile: the percentage of images below the lower and above the upper one
    (`ConvertConfig.image_percentile`). momentum: 0 leaves the thresholds as calibrated; the formula is in `set_running_thresholds`
    of ConvertedNetwork. Any number of threads may call it at once, but only one thread at a time where the caller is compiled.
    """

    calibrated: torch.Tensor
    least: torch.Tensor
    most: torch.Tensor
    quantiles: torch.Tensor
    current: torch.Tensor

    # How far a threshold may move from its calibrated value, as factors: a long run of odd images must not undo the calibration.
    BOUNDS = (2 / 3, 3 / 2)

    def __init__(self, thresholds: tuple[float, float], percentile: float):
        super().__init__()
        start = torch.tensor(thresholds, dtype=torch.float64)
        ends = torch.stack([start * bound for bound in self.BOUNDS])
        self.ordered = thresholds[0] <= thresholds[1]
        self.momentum = 0.0
        self._lock = threading.Lock()
        # They are float64, because steps of a small momentum would vanish in the rounding of float32.
        self.register_buffer("calibrated", start)
        self.register_buffer("least", ends.amin(0))
        self.register_buffer("most", ends.amax(0))
        self.register_buffer("quantiles", torch.tensor([percentile / 100, 1 - percentile / 100], dtype=torch.float64))
        self.register_buffer("current", start.clone())  # a copy, because a compiled caller writes into this tensor

    def set(self, momentum: float, start: tuple[float, float] | None) -> None:
        """Sets the momentum and lets the thresholds begin at `start`, or at the present thresholds where that is None. Momentum 0
        goes back to the calibrated thresholds.

        Raises ValueError for a start out of bounds.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            current = self.current if start is None else torch.tensor(start, dtype=torch.float64, device=self.current.device)
            slack = 1e-12 * self.calibrated.abs()  # for float64 values that went through a file
            if current.shape != (2,) or not ((current >= self.least - slack) & (current <= self.most + slack)).all():
                bounds = f"{self.least.tolist()} and {self.most.tolist()}"
                raise ValueError(f"set_running_thresholds: start must be (lower, upper) between {bounds}, got {start!r}")
            self.momentum, self.current = momentum, (current if momentum else self.calibrated).clone()

    def offsets(self, measures: torch.Tensor, learn: bool) -> torch.Tensor:
        """The bits that each image gets more or less, int32 [N], from the measures [N]. Each image is judged by the thresholds that
        the images before it left. learn: whether to keep the thresholds that these images leave."""
        if torch.compiler.is_compiling():  # a compiler knows no locks, and keeps only state that is written in place
            offsets, left = self._follow(measures)
            if learn:
                self.current.copy_(left)
            return offsets
        # Thresholds that are kept must be ordinary tensors, because a compiled caller may write into them.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            offsets, left = self._follow(measures)
            if learn:
                self.current = left  # a new tensor, so that whoever holds the old one still holds a matching pair
        return offsets

    def _follow(self, measures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two values: the offsets, int32 [N], and the thresholds, float64 [2], that the last image leaves."""
        current, offsets = self.current, []
        for measure in measures.double():
            offsets.append((measure > current[1]).to(torch.int32) - (measure < current[0]).to(torch.int32))
            current = self._step(current, measure, self.momentum)
        return torch.stack(offsets), current

    def _step(self, current: torch.Tensor, measure: torch.Tensor, momentum: float) -> torch.Tensor:
        # This runs on the device, without a branch on values, so that the bits stay data.
        moved = current + momentum * self.calibrated.abs() * (self.quantiles - (measure < current).double())
        moved = torch.minimum(torch.maximum(moved, self.least), self.most)
        # Estimates of quantiles that lie close may cross; their mean lies between the bounds of both.
        return torch.where(moved[0] <= moved[1], moved, moved.mean()) if self.ordered else moved

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}  # locks cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()


class DecidesBits(nn.Module):
    """The part of a converted network that says how many bits the codes of every image have in every layer."""

    thresholds: tuple[float, float] | None
    config: ConvertConfig
    choice: Choice
    measure_lower: torch.Tensor
    measure_upper: torch.Tensor
    bit_rules: torch.Tensor
    _running: RunningThresholds
    _adaptive: nn.ModuleDict  # the quantised convolutions in the order they run
    _bits: str | int
    _counted: set[str]

    def _quantized(self) -> list[AdaptiveConv2d]:
        return list(self._adaptive.values())  # type: ignore[arg-type]

    def _check(self, x: torch.Tensor | None, offset: torch.Tensor | None) -> None:
        raise NotImplementedError

    def _forget_graphs(self) -> None:
        raise NotImplementedError

    def set_bits(self, bits: str | int = "auto") -> None:
        """Sets how bits are decided. With "auto" every image and layer gets bits of its own. A number of 2..8 gives that many bits
        to all layers except the ends, which have 8. Raises ValueError for any other value."""
        if bits != "auto" and (isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS):
            raise ValueError(f"set_bits: bits must be 'auto' or {MIN_BITS}..{MAX_BITS}, got {bits!r}")
        if bits != self._bits:
            self._bits = bits
            self.bit_rules.copy_(self._rules())
            self._forget_graphs()

    def set_running_thresholds(self, momentum: float = 0.0, start: tuple[float, float] | None = None) -> None:
        """Lets the image thresholds follow the images of inference. Momentum 0, the default, goes back to the calibrated
        thresholds.

        Calibration sets the thresholds to the quantiles q = p and q = 1 - p of the image measure over its images, where p is
        `config.image_percentile` / 100 (AdaBM, section 3.2). With a momentum above 0 every image that a forward pass sees, in the
        order of its batch, is judged by the thresholds as they stand, and then moves each threshold t, calibrated as t0, by

        t <- clip(t + momentum * |t0| * (q - [measure < t]), 2/3 * t0, 3/2 * t0)

        A threshold is at rest where a share q of the measures lies below it, so it is a running estimate of that quantile
        (stochastic approximation, Robbins and Monro, Ann. Math. Stat. 1951). Where the two would cross, both become their mean. No
        image moves a threshold by more than momentum * |t0|: with a smaller momentum it follows more slowly and trembles less.

        The decision about an image then depends on the images before it, no longer on it alone. `layer_bits`, `mean_bits` and
        `image_offsets` say what the next forward pass would do and move nothing. Images move nothing either while `set_bits` is not
        "auto". Momentum and thresholds are saved with the model. start: the thresholds to begin at, within the bounds of the
        formula; None begins at the present ones, which are the calibrated ones unless the thresholds run already. Threads may share
        the model: each image moves the thresholds once, in the order of arrival. Under torch.compile, which knows no locks, one
        thread at a time may use it.

        Raises ValueError unless momentum is a number in 0..1, and 0 for a network that is not adaptive, and start is in bounds.
        """
        number = isinstance(momentum, (int, float)) and not isinstance(momentum, bool)
        if not number or not 0 <= momentum <= 1:
            raise ValueError(f"set_running_thresholds: momentum must be a number in 0..1, got {momentum!r}")
        if self.thresholds is None:
            if momentum or start is not None:
                raise ValueError("set_running_thresholds: momentum must be 0: this network is not adaptive and has no thresholds")
            return
        self._running.set(float(momentum), start)
        self._forget_graphs()

    @property
    def running_thresholds(self) -> tuple[float, float] | None:
        """(lower, upper), the present thresholds of the image measure; None where they do not run."""
        running = self.thresholds is not None and self._running.momentum > 0
        return tuple(self._running.current.tolist()) if running else None

    @property
    def running_momentum(self) -> float:
        """The momentum of `set_running_thresholds`, 0 where the thresholds do not run."""
        return 0.0 if self.thresholds is None else self._running.momentum

    def image_offsets(self, x: torch.Tensor, *, learn: bool = False) -> torch.Tensor:
        """The bits that each image gets more or less, int32 [N] of -1..1. learn: whether running thresholds follow the images, as
        in a forward pass.

        Raises as `forward`.
        """
        self._check(x, None)
        return self._offsets(x, learn)

    def _offsets(self, x: torch.Tensor, learn: bool) -> torch.Tensor:
        if self.thresholds is None or self._bits != "auto":
            return torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
        measures = ops.image_measure(as_colours(x), backend=self.choice.backend)
        if self._running.momentum > 0:
            return self._running.offsets(measures, learn)
        return image_offsets(measures, self.measure_lower, self.measure_upper)

    def _rules(self) -> torch.Tensor:
        """The rules that image_bits.bits_by_rule takes, int32 [L, 2], for the layers in the order they run."""
        rules = [self._rule(conv, self._bits) for conv in self._quantized()]
        return torch.tensor(rules, dtype=torch.int32, device="cpu")

    def _rule(self, conv: AdaptiveConv2d, bits: str | int) -> tuple[int, int]:
        return (bits, 0) if isinstance(bits, int) and conv.name in self._counted else conv.bit_rule

    def fixed_bits(self, bits: str | int = "auto") -> dict[str, int]:
        """The bits of the input codes of every integer convolution, by name, with this setting (`set_bits`), for an image that gets
        neither more nor fewer bits."""
        return {conv.name: min(max(self._rule(conv, bits)[0], MIN_BITS), MAX_BITS) for conv in self._quantized()}

    def _bit_table(self, x: torch.Tensor | None, learn: bool, offset: torch.Tensor | None = None) -> torch.Tensor:
        """The bits of the input codes of every integer convolution, int32 [L, N]. They are data on the device, for which nothing on
        the host waits.

        offset: the bits that images get more or less, where they are known, on any device.
        """
        if offset is not None:
            return bits_by_rule(self.bit_rules, offset.to(self.bit_rules.device))
        assert x is not None  # x may be left out only where an offset is given
        if self.thresholds is not None and self._bits == "auto" and self._running.momentum == 0:
            return ops.layer_bits(
                as_colours(x), self.measure_lower, self.measure_upper, self.bit_rules, backend=self.choice.backend
            )
        return bits_by_rule(self.bit_rules, self._offsets(x, learn))

    def _by_name(self, table: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip((conv.name for conv in self._quantized()), table.unbind(), strict=True))

    def layer_bits(self, x: torch.Tensor | None, *, offset: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The bits of the input codes of every integer convolution, by name in the order they run: int32 [N] each.

        offset: the result of `image_offsets` for x, int32 [N], where it is known. x may then be None. Raises as `forward`.
        """
        self._check(x if offset is None else None, offset)
        return self._by_name(self._bit_table(x, learn=False, offset=offset))

    def mean_bits(self, x: torch.Tensor | None, *, offset: torch.Tensor | None = None) -> torch.Tensor:
        """The mean bits of each image over the counted convolutions, float32 [N]. The ends count only where there are no others.

        offset: see `layer_bits`.
        """
        counted = [bits for name, bits in self.layer_bits(x, offset=offset).items() if name in self._counted]
        return torch.stack(counted).sum(0).to(torch.float32) / len(counted)
