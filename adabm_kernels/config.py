"""Settings of one conversion: bit-widths, which convolutions are quantised, and how ranges are calibrated."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

MIN_BITS, MAX_BITS = 2, 8
ADAPTIVE_SPREAD = 2  # an image offset and a layer offset of one bit each


@dataclass(frozen=True)
class ConvertConfig:
    """What `calibrate` and `convert_model` do to a network (AdaBM: Hong and Lee, CVPR 2024, arXiv 2404.03296).

    weight_bits: bits of every quantised weight but those of the ends, 2..8.
    act_bits: base bits of activations; an adaptive convolution computes with act_bits - 2 .. act_bits + 2.
    quantize: "full" also quantises the convolution that closes the body (adaptive) and the first, last and upsampler
        convolutions (8 bits, fixed); "body" quantises only the convolutions in residual blocks.
    tail: "collapsed" computes a staged upsampler as one convolution (nn/tail.py), "staged" stage by stage as published; "auto"
        collapses it where that is possible.
    adaptive: False gives every image and layer `act_bits` bits.
    recipe: how `calibrate` chooses ranges, offsets and weights: "paper" as published (one weight range per tensor on the grid of
        odd integers), "best" with everything the kernels allow (one range per output channel on the grid of signed integers).
    clamp_bits: allow an adaptive `act_bits` outside 4..6; bits that would leave 2..8 are then clamped.
    image_percentile: percentage of calibration images that get one bit less, and of those that get one more, 0..50.
    layer_percentile: the same for layers, 0..50.
    ema_beta: weight of the past in the moving averages over calibration batches, 0..1.
    bit_aware_clipping: shrink activation ranges to the bits they will be quantised with.
    bac_beta: weight of the range before shrinking, 0..1.
    patch: calibration crops are at most this many low-resolution pixels a side.
    batch: images per calibration batch.
    seed: of the crops and their order.

    Raises TypeError and ValueError naming the field, its rule and the value.
    """

    weight_bits: int = 4
    act_bits: int = 4
    quantize: str = "full"
    tail: str = "auto"
    adaptive: bool = True
    clamp_bits: bool = False
    recipe: str = "best"
    image_percentile: float = 10.0
    layer_percentile: float = 30.0
    ema_beta: float = 0.9
    bit_aware_clipping: bool = True
    bac_beta: float = 0.5
    patch: int = 96
    batch: int = 16
    seed: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            # To Python a bool is an int: here neither may stand for the other. A whole number may stand for a float.
            allowed = (int, float) if kind is float else kind
            if isinstance(value, bool) != (kind is bool) or not isinstance(value, allowed):
                raise TypeError(f"ConvertConfig: {field.name} must be {kind.__name__}, got {value!r}")
        for name in ("weight_bits", "act_bits"):
            self._require(name, MIN_BITS <= getattr(self, name) <= MAX_BITS, f"{MIN_BITS}..{MAX_BITS}")
        self._require("quantize", self.quantize in ("full", "body"), "'full' or 'body'")
        self._require("tail", self.tail in ("auto", "staged", "collapsed"), "'auto', 'staged' or 'collapsed'")
        self._require("recipe", self.recipe in ("best", "paper"), "'best' or 'paper'")
        for name in ("image_percentile", "layer_percentile"):
            self._require(name, 0 <= getattr(self, name) <= 50, "a percentage in 0..50")
        for name in ("ema_beta", "bac_beta"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in 0..1")
        for name in ("patch", "batch"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        if self.adaptive and not self.clamp_bits:
            least, most = self.act_bits - ADAPTIVE_SPREAD, self.act_bits + ADAPTIVE_SPREAD
            if least < MIN_BITS or most > MAX_BITS:
                raise ValueError(
                    f"ConvertConfig: act_bits of an adaptive network must be 4..6, got {self.act_bits}: it would need "
                    f"{least if least < MIN_BITS else most}-bit codes, and codes hold {MIN_BITS}..{MAX_BITS} bits "
                    f"(clamp_bits=True clamps them, adaptive=False fixes them)"
                )

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"ConvertConfig: {name} must be {rule}, got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Every field, as plain values that JSON holds."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConvertConfig:
        """The inverse of `to_dict`; absent fields keep their defaults. Raises ValueError naming unknown fields."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"ConvertConfig: unknown fields {unknown}")
        return cls(**values)
