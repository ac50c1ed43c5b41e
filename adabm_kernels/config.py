"""Settings of one conversion: bit-widths, which convolutions are quantised, and how ranges are calibrated."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

MIN_BITS, MAX_BITS = 2, 8
DEPTH_TILES = (8, 12, 16, 24, 32, 48)  # kernels fill such tiles, and AdaBM's patches of 96 pixels hold a whole number of each
MAX_SEED = 2**63 - 2  # a seed of torch has 64 bits, and the seed after the given one is used too
MOST_DEPTH_LOSS = 10  # dB
ADAPTIVE_SPREAD = 2  # the most bits above or below the base: an image offset and a layer offset of one bit each


@dataclass(frozen=True)
class PaperTuning:
    """The settings of fine-tuning as published (AdaBM, section 4.1): weight ranges, activation ranges and bit maps are tuned in
    turn, for an epoch each, with Adam. Products are computed in bfloat16 where the processor has it.

    epoch: the number of steps before the next kind of parameter has its turn.
    decay: the factor by which the learning rates of a kind are multiplied after each of its epochs.
    batch, patch: the number of crops in a step, and their side in low-resolution pixels.
    lr_weight_range, lr_act_range, lr_image_map, lr_layer_map: the learning rates of the weight ranges, the activation ranges, the
        image thresholds and the layer offsets.
    feature_loss, bit_loss: the weights of two losses beside the L1 distance of the output images (0..255): the distance of the
        blocks' features, and the bits above `act_bits`.
    """

    epoch: int = 50
    decay: float = 0.9
    batch: int = 2
    patch: int = 96
    lr_weight_range: float = 0.01
    lr_act_range: float = 0.01
    lr_image_map: float = 0.1
    lr_layer_map: float = 0.01
    feature_loss: float = 10.0
    bit_loss: float = 50.0


@dataclass(frozen=True)
class BestTuning:
    """The settings of fine-tuning in recipe "best", which tunes the rounding of weights, the biases, and the weight and activation
    ranges together. Image thresholds and layer offsets stay as they are.

    batch, patch: the number of crops in a step, and their side in low-resolution pixels.
    candidates: how many random crops of an image are compared for each crop that is used, which is the one with most detail by
        AdaBM's image measure.
    warmup: the number of steps over which the learning rates rise. Afterwards they fall as a cosine.
    lr_weight: the learning rate of a weight, in steps of its grid. It is less on grids of more than 4 bits.
    lr_bias, lr_weight_range: the learning rates of a bias and of a weight range, relative to their mean size.
    lr_act_range: the learning rate of an activation range, relative to its width.
    tolerance: 0 runs all `steps` of the config. A larger value ends fine-tuning once it has converged, after `steps` at the latest:
        the rates stay high until the geometric mean of the loss over `span` steps lies less than this share below its mean over the
        `span` steps before; then they fall over `cooldown` steps.
    span, cooldown: see `tolerance`.
    """

    batch: int = 4
    patch: int = 48
    candidates: int = 1
    warmup: int = 20
    lr_weight: float = 0.03
    lr_bias: float = 0.01
    lr_weight_range: float = 0.001
    lr_act_range: float = 0.002
    tolerance: float = 0.0
    span: int = 50
    cooldown: int = 100


TUNINGS: dict[str, type[PaperTuning] | type[BestTuning]] = {"paper": PaperTuning, "best": BestTuning}
AUTO = {  # the values that "auto" stands for
    "paper": {
        "weight_grid": "odd",
        "act_ranges": "minmax",
        "layer_map": "deviation",
        "input_range": "observed",
        "residual": "float32",
    },
    "best": {
        "weight_grid": "signed",
        "act_ranges": "search",
        "layer_map": "sensitivity",
        "input_range": "pixels",
        "residual": "int16",
    },
}
DEFAULT_STEPS = {"paper": 500, "best": 600}  # the steps that `adabm calibrate` takes by default
MOST_TUNED_BITS = 6  # A network that sharpens is fine-tuned up to this many bits. With more, fine-tuning makes it worse.


@dataclass(frozen=True)
class ConvertConfig:
    """The settings by which `calibrate` and `convert_model` quantise a network (AdaBM: Hong and Lee, CVPR 2024, arXiv 2404.03296).

    weight_bits: the bits of every quantised weight except those of the ends, 2..8.
    act_bits: the base bits of activations. An adaptive convolution computes with act_bits - 2 .. act_bits + 2 bits.
    quantize: which convolutions are quantised. "body" quantises only those in residual blocks. "full" also quantises the one that
        closes the body, which is adaptive, and the first, last and upsampler's convolutions, which always have 8 bits.
    tail: how a staged upsampler is computed. "collapsed" computes it as one convolution (nn/tail.py), "staged" computes it stage by
        stage as published, and "auto" collapses it where that is possible.
    adaptive: whether images and layers may get more or fewer bits. If False, all of them have `act_bits` bits.
    clamp_bits: whether an adaptive network may have `act_bits` of 2, 3, 7 or 8. Its bits, which offsets could then take out of
        2..8, are clamped to that range.
    recipe: how `calibrate` chooses ranges, offsets and weights: "paper" as published, "best" with everything the kernels allow.
        The recipe decides what "auto" means in other fields, and which fine-tuning runs.
    weight_grid: the grid of weights. "odd" is the published grid of odd integers with one range per tensor ("auto" in recipe
        "paper"). "signed" has integers with a zero and one range per output channel ("auto" in recipe "best").
    steps: the number of fine-tuning steps after the ranges are set. With 0 the weights stay as they are, and calibration takes
        about a minute.
    tuning: the settings of the fine-tuning, a PaperTuning for recipe "paper" or a BestTuning for "best". None takes the defaults.
    act_ranges: how activation ranges are chosen. "search" looks layer by layer for the least squared error ("auto" in recipe
        "best"). The others observe batches in the float network: "minmax" takes the least and greatest values ("auto" in recipe
        "paper"), "percentile" cuts off the outermost values, and "omse" shrinks the range by up to 90 % for the least squared
        error.
    layer_map: how layer offsets are chosen: "deviation" by the spread of activations ("auto" in recipe "paper"), or "sensitivity"
        by the measured effect of each layer's bits under a budget ("auto" in recipe "best").
    input_range: the range of the first convolution's input, where that convolution is quantised: "observed" over the calibration
        images ("auto" in recipe "paper"), or "pixels", whose 8 bits hold pixels exactly ("auto" in recipe "best").
    tail_digits: how many 8-bit codes hold a value of the upsampler's input: 1, or 2, where the second code holds what the first
        leaves. 0 stands for 2 in recipe "best" with `act_bits` of 6 and more, where the rounding to 8 bits begins to show, and else
        for 1.
    residual: how the features that pass the blocks by are held between layers. "int16" takes half the bytes of "float32", in units
        of a power of two that `calibrate` chooses for the network (docs/numerics.md). It needs an EDSR or SRResNet and quantize
        "full". "auto" is "int16" there with recipe "best", and else "float32".
    equalize: whether channels are multiplied by factors with which the quantised network loses less, while the float network
        computes the same (calibration/equalize.py): "on", "off", or "auto", which is "on" with recipe "best" for networks that
        sharpen (NetworkSpec.sharpens) and else "off".
    target_bits: for layer_map "sensitivity", the mean bits to reach over the counted convolutions and the calibration images. None
        stands for act_bits - 0.45, or for act_bits where the network is equalised.
    objective: for layer_map "sensitivity", what the budget limits: "bits", the mean bits, or "latency", the time on this machine,
        limited to that of the network with these mean bits.
    weight_ranges: how the ranges of weights on the odd grid are chosen: "omse" as published, "minmax" or "percentile".
    range_percentile: the percentage of values that lie below the upper end of a "percentile" range, 50..100.
    image_percentile: the percentage of calibration images that get one bit less, and of those that get one more, 0..50.
    layer_percentile: the percentage of layers that get one bit less, and of those that get one more, 0..50.
    ema_beta: the weight of the past in the moving averages over calibration batches, 0..1.
    bit_aware_clipping: whether activation ranges are shrunk to suit the bits that they will be quantised with.
    bac_beta: the weight of the range before shrinking, 0..1.
    patch: the longest side of a calibration crop, in low-resolution pixels.
    batch: the number of images in a calibration batch.
    seed: the seed that decides on the crops and their order, 0..2^63-2.
    depths: "auto" lets `calibrate` find easy tiles of images, whose output a small filter makes in place of the network's blocks
        (exits.py). This needs recipe "best", quantize "full", input_range "pixels", and an EDSR or SRResNet. "none" computes every
        block everywhere.
    depth_tile: the side of these tiles in low-resolution pixels, one of DEPTH_TILES.
    depth_loss: how many dB further from the float network the result on the calibration images may lie than without easy tiles,
        0..10. With 0, it may not lie further in any class of detail either.

    Raises TypeError and ValueError naming the field, its rule and the value.
    """

    weight_bits: int = 4
    act_bits: int = 4
    quantize: str = "full"
    tail: str = "auto"
    adaptive: bool = True
    clamp_bits: bool = False
    recipe: str = "best"
    steps: int = 0
    tuning: PaperTuning | BestTuning | None = None
    target_bits: float | None = None
    objective: str = "bits"
    weight_grid: str = "auto"
    act_ranges: str = "auto"
    layer_map: str = "auto"
    input_range: str = "auto"
    tail_digits: int = 0
    residual: str = "auto"
    equalize: str = "auto"
    weight_ranges: str = "omse"
    range_percentile: float = 99.0
    image_percentile: float = 10.0
    layer_percentile: float = 30.0
    ema_beta: float = 0.9
    bit_aware_clipping: bool = True
    bac_beta: float = 0.5
    patch: int = 96
    batch: int = 16
    seed: int = 1
    depths: str = "auto"
    depth_tile: int = 16
    depth_loss: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in ("tuning", "target_bits"):
                continue
            value, kind = getattr(self, field.name), type(field.default)
            # To Python a bool is an int, but here neither may stand for the other. A whole number may stand for a float.
            allowed = (int, float) if kind is float else kind
            if isinstance(value, bool) != (kind is bool) or not isinstance(value, allowed):
                raise TypeError(f"ConvertConfig: {field.name} must be {kind.__name__}, got {value!r}")
        for name in ("weight_bits", "act_bits"):
            self._require(name, MIN_BITS <= getattr(self, name) <= MAX_BITS, f"{MIN_BITS}..{MAX_BITS}")
        self._require("quantize", self.quantize in ("full", "body"), "'full' or 'body'")
        self._require("tail", self.tail in ("auto", "staged", "collapsed"), "'auto', 'staged' or 'collapsed'")
        self._require("recipe", self.recipe in ("best", "paper"), "'best' or 'paper'")
        kind = TUNINGS[self.recipe]
        tuning = kind() if self.tuning is None else self.tuning
        object.__setattr__(self, "tuning", tuning)
        if not isinstance(tuning, kind):
            raise TypeError(f"ConvertConfig: tuning must be {kind.__name__} for recipe {self.recipe!r}, got {tuning!r}")
        for field in fields(tuning):
            value, whole = getattr(tuning, field.name), type(field.default) is int
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number or not whole <= value < math.inf:
                rule = "a whole number, at least 1" if whole else "a finite number, at least 0"
                raise ValueError(f"ConvertConfig: tuning.{field.name} must be {rule}, got {value!r}")
        if self.target_bits is not None:
            number = isinstance(self.target_bits, (int, float)) and not isinstance(self.target_bits, bool)
            self._require("target_bits", number and abs(self.target_bits - self.act_bits) <= 1, "within 1 of act_bits")
        self._require("objective", self.objective in ("bits", "latency"), "'bits' or 'latency'")
        ranges = ("minmax", "percentile", "omse")
        self._require(
            "act_ranges", self.act_ranges in ("auto", "search", *ranges), "'auto', 'search', 'minmax', 'percentile' or 'omse'"
        )
        self._require("weight_ranges", self.weight_ranges in ranges, "'minmax', 'percentile' or 'omse'")
        self._require("weight_grid", self.weight_grid in ("auto", "odd", "signed"), "'auto', 'odd' or 'signed'")
        maps = ("auto", "deviation", "sensitivity")
        self._require("layer_map", self.layer_map in maps, "'auto', 'deviation' or 'sensitivity'")
        self._require("input_range", self.input_range in ("auto", "observed", "pixels"), "'auto', 'observed' or 'pixels'")
        self._require("residual", self.residual in ("auto", "float32", "int16"), "'auto', 'float32' or 'int16'")
        self._require("equalize", self.equalize in ("auto", "on", "off"), "'auto', 'on' or 'off'")
        if self.residual == "int16" and self.quantize != "full":
            raise ValueError(
                f"ConvertConfig: residual must be 'auto' or 'float32' with quantize={self.quantize!r}, whose convolutions in float "
                "read and write the features, got 'int16'"
            )
        self._require("tail_digits", self.tail_digits in (0, 1, 2), "0, 1 or 2")
        self._require("range_percentile", 50 < self.range_percentile <= 100, "in 50..100")
        self._require("steps", self.steps >= 0, "at least 0")
        for name in ("image_percentile", "layer_percentile"):
            self._require(name, 0 <= getattr(self, name) <= 50, "a percentage in 0..50")
        for name in ("ema_beta", "bac_beta"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in 0..1")
        self._require("seed", 0 <= self.seed <= MAX_SEED, f"in 0..{MAX_SEED}")
        for name in ("patch", "batch"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("depths", self.depths in ("auto", "none"), "'auto' or 'none'")
        self._require("depth_tile", self.depth_tile in DEPTH_TILES, f"one of {', '.join(map(str, DEPTH_TILES))}")
        self._require("depth_loss", 0 <= self.depth_loss <= MOST_DEPTH_LOSS, f"in 0..{MOST_DEPTH_LOSS}")
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

    def chosen(self, field: str) -> str:
        """The value of a field of AUTO, such as `weight_grid`, where "auto" stands for the recipe's value."""
        value = getattr(self, field)
        return AUTO[self.recipe][field] if value == "auto" else value

    @property
    def exact_pixels(self) -> bool:
        """Whether the codes of the first convolution are the pixels themselves, 0..255 (`input_range`)."""
        return self.quantize == "full" and self.chosen("input_range") == "pixels"

    @property
    def finds_exit(self) -> bool:
        """Whether `calibrate` looks for an exit of easy tiles."""
        return self.depths == "auto" and self.recipe == "best" and self.exact_pixels

    @property
    def digits(self) -> int:
        """The value of `tail_digits`, where 0 stands for the recipe's value."""
        return self.tail_digits or (2 if self.recipe == "best" and self.act_bits >= 6 else 1)

    def to_dict(self) -> dict[str, Any]:
        """Every field, as plain values that JSON holds."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConvertConfig:
        """The inverse of `to_dict`; absent fields keep their defaults. Raises as ConvertConfig does, and for unknown fields."""
        tuning, recipe = values.get("tuning"), values.get("recipe", cls.recipe)
        _check_known("fields", values, cls)
        if isinstance(tuning, dict) and recipe in tuple(TUNINGS):
            kind = TUNINGS[recipe]
            _check_known("fields of tuning", tuning, kind)
            values = values | {"tuning": kind(**tuning)}
        return cls(**values)


def usual_settings(recipe: str, sharpens: bool, fixed: bool | None = None, act_bits: int | None = None) -> dict[str, Any]:
    """The fields of ConvertConfig that `adabm calibrate` fills in where its options do not give them.

    sharpens: whether the network sharpens (NetworkSpec.sharpens). Such a network amplifies rounding errors. So recipe "best" gives
    it eight bits everywhere and does not fine-tune it after its weights have been rounded together; with MOST_TUNED_BITS or fewer
    it is fine-tuned as other networks are (docs/quality.md has the figures). fixed, act_bits: the values of these options, None
    where they are not given.
    """
    if not sharpens or recipe != "best":
        return {"weight_bits": 4, "act_bits": 4, "adaptive": not fixed, "steps": DEFAULT_STEPS[recipe]}
    adaptive = fixed is False
    act_bits = act_bits or (MOST_TUNED_BITS if adaptive else MAX_BITS)
    steps = DEFAULT_STEPS[recipe] if act_bits <= MOST_TUNED_BITS else 0
    return {"weight_bits": MAX_BITS, "act_bits": act_bits, "adaptive": adaptive, "steps": steps}


def _check_known(what: str, given: dict[str, Any], kind: type[ConvertConfig] | type[PaperTuning] | type[BestTuning]) -> None:
    unknown = sorted(set(given) - {field.name for field in fields(kind)})
    if unknown:
        raise ValueError(f"ConvertConfig: unknown {what} {unknown}")
