"""Architecture read off the keys and shapes of a state dict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .edsr import EDSR, EDSRSpec, MeanShift
from .rdn import RDN, RDNSpec
from .spec import NetworkSpec
from .srresnet import BATCH_NORM_EPS, UNIT_RANGE, SRResNet, SRResNetSpec

WRAPPERS = ("params_ema", "params", "state_dict", "model")  # where training frameworks put the weights, best first
FLOAT_NETWORKS = {"edsr": EDSR, "rdn": RDN, "srresnet": SRResNet}
SPECS = {"edsr": EDSRSpec, "rdn": RDNSpec, "srresnet": SRResNetSpec}
NO_SKIP = "no layer can be skipped, as the network is built anew from its weights: replace this one"
KNOWN = (
    "known are EDSR ('head.0.weight' with 'body.0.body.0.weight' or 'body.0.conv1.weight'; or 'conv_first.weight' with "
    "'body.0.conv1.weight' and 'conv_after_body.weight'), RDN ('SFENet1.weight', "
    "'RDBs.0.convs.0.conv.0.weight') and SRResNet ('body.0.bn1.weight' with 'head.0.weight' or 'conv_in.weight'), for x2, x3 and x4"
)
# Layers of torch that compute what the weights mean here, and those that compute nothing in eval mode.
_LAYERS = {"edsr": (nn.ReLU,), "rdn": (nn.ReLU,), "srresnet": (nn.PReLU, nn.BatchNorm2d, nn.SyncBatchNorm)}
_NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout2d)
_NEUTRAL_FILES = ("torch.nn.modules.container", "torch.nn.modules.loss")
_COUNTER = ".num_batches_tracked"  # of BatchNorm: an integer, of no use here
PREFIXES = ("module.", "model.", "_orig_mod.")  # DataParallel, an outer module, torch.compile


@dataclass(frozen=True)
class Detected:
    """What a state dict turned out to hold.

    spec: hyper-parameters of the network (EDSRSpec, RDNSpec or SRResNetSpec).
    layout: names of its parts: "adabm", the names of the authors' implementation; "edsr_pytorch" (`body.0.body.0`,
        `body.0.body.2`); "basicsr", an EDSR with `conv_first`, `conv_after_body`, `upsample.0`, `conv_last`, whose mean shift is
        not among its weights; or "conv_in", an SRResNet with `conv_in`, `conv_mid`, `up.0.conv`, `conv_out` that computes in 0..1.
    calibrated: it carries quantisation ranges (`lower_a`, `upper_a`, `upper_w` or `scale_w`).
    quantize: "full" or "body" as in `ConvertConfig`, None when not calibrated.
    adaptive: it carries image thresholds and layer offsets (`measure_l`, `measure_u`, `measure_layer`).
    """

    spec: NetworkSpec
    layout: str
    calibrated: bool
    quantize: str | None
    adaptive: bool


def load_state(path: str | Path) -> dict[str, Any]:
    """The contents of a .safetensors, .pt or .pth file, tensors on the CPU; no code in the file is run.

    Raises FileNotFoundError, and ValueError for a file of another kind or one that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"load_state: no such file: {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"load_state: {path} is not a safetensors file ({error})") from error
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"load_state: a checkpoint ends in .safetensors, .pt or .pth, got {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files the unpickler raises almost anything: IndexError, struct.error, ...
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ValueError(f"load_state: {path} is damaged or not a checkpoint of plain tensors ({reason})") from error
    if not isinstance(state, dict):
        raise ValueError(f"load_state: {path} holds a {type(state).__name__}, not a state dict")
    return state


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The flat name -> tensor mapping inside a checkpoint: wrappers ("state_dict", ...) and common prefixes removed.

    Raises TypeError unless it is a mapping with string keys, ValueError when a value is not a tensor.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(key, str) for key in state_dict):
        raise TypeError(f"state_dict must be a mapping from names to tensors, got {type(state_dict).__name__}")
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            return unwrap(state_dict[wrapper])
    if not state_dict:
        raise ValueError("state_dict is empty")
    strangers = [key for key, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise ValueError(f"state_dict must hold tensors only, got other values at {_listed(strangers)}")
    flat = dict(state_dict)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in flat)), None):
        flat = {key.removeprefix(prefix): value for key, value in flat.items()}
    return flat


def detect(state_dict: Mapping[str, Any], res_scale: float = 1.0) -> Detected:
    """Recognise a network by its keys and shapes.

    state_dict: a state dict, possibly wrapped or prefixed (`unwrap`); mean-shift weights and batch counters may be absent.
    res_scale: factor on the second convolution of each block, which weights do not reveal (EDSR and SRResNet); at least 0.
    Raises TypeError for a res_scale that is no number; ValueError when it is negative or not finite, when the network is not a
    known one, when keys are missing, unexpected or of another shape (it lists them), or when a value is NaN, infinite or not
    floating point.
    """
    if isinstance(res_scale, bool) or not isinstance(res_scale, (int, float)):
        raise TypeError(f"detect: res_scale must be a number, got {type(res_scale).__name__}")
    if not (math.isfinite(res_scale) and res_scale >= 0):
        raise ValueError(f"detect: res_scale must be finite and at least 0, got {res_scale}")
    given = unwrap(state_dict)
    layout = _layout(given)
    state = _renamed(given, layout)
    if "SFENet1.weight" in state:
        spec = _rdn_spec(state)
    elif _is_srresnet(state):
        spec = _srresnet_spec(state, res_scale)
    else:
        spec = _edsr_spec(state, given, res_scale)
    calibrated = any(key.endswith(".lower_a") for key in state)
    first = next(iter(spec.quantized("full")))
    quantize = None if not calibrated else "full" if f"{first}.lower_a" in state else "body"
    adaptive = calibrated and ("measure_l" in state or any(key.endswith(".measure_layer") for key in state))
    own = {adabm_name(key): key for key in float_shapes(spec)} if layout == "edsr_pytorch" else {}
    own |= {new: old for old, new in _names(given, layout).items()}
    _check_keys(state, _allowed(spec, state, quantize, adaptive), own, spec)
    for key, value in given.items():
        if key.endswith(_COUNTER):
            continue
        if not value.is_floating_point():
            raise ValueError(f"detect: {key!r} must hold floating-point values, got {value.dtype}")
        if not torch.isfinite(value).all():
            raise ValueError(f"detect: {key!r} holds NaN or infinite values")
    return Detected(spec, layout, calibrated, quantize, adaptive)


def check_modules(model: nn.Module, spec: NetworkSpec) -> None:
    """Refuse a module whose weights fit `spec` and whose layers of torch compute something else.

    A state dict does not tell a ReLU from a GELU or a stride of 1 from one of 2. Layers of the user's own classes cannot be judged.
    Raises ValueError naming the layer, what it is and what is supported.
    """
    name_of = FLOAT_NETWORKS[spec.network].__name__
    layers = (nn.Conv2d, nn.PixelShuffle, *_LAYERS[spec.network])
    for name, layer in model.named_modules():
        reason = ""
        if type(layer) is nn.Conv2d:
            k = layer.kernel_size[0]
            rules = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
            wrong = [f"{key}={getattr(layer, key)!r}" for key, value in rules.items() if getattr(layer, key) != value]
            if layer.padding not in ((k // 2, k // 2), "same"):
                wrong.append(f"padding={layer.padding}")
            if wrong:
                reason = f"a convolution with {', '.join(wrong)}: it must have stride 1 and zero padding of half its kernel"
        elif isinstance(layer, layers):
            if getattr(layer, "eps", BATCH_NORM_EPS) != BATCH_NORM_EPS:
                reason = f"a {type(layer).__name__} with eps={layer.eps:g}: it must be {BATCH_NORM_EPS:g}"
        elif type(layer).__module__.startswith("torch.nn.modules"):
            if not isinstance(layer, _NEUTRAL) and not type(layer).__module__.startswith(_NEUTRAL_FILES):
                kinds = ", ".join(kind.__name__ for kind in layers)
                reason = f"a {type(layer).__name__}, and its layers must be {kinds}"
        if reason:
            raise ValueError(f"detect: layer {name!r} is not supported in this {name_of}: it is {reason}; {NO_SKIP} ({KNOWN})")


def float_network(spec: NetworkSpec) -> nn.Module:
    """The float network of a specification, with random weights, in eval mode."""
    return FLOAT_NETWORKS[spec.network](spec).eval()


def plain_keys(spec: NetworkSpec, quantize: str) -> list[str]:
    """AdaBM keys of the values that a converted network keeps in float: all but the quantised convolutions and mean shifts."""
    quantized = {f"{name}.{part}" for name in spec.quantized(quantize) for part in ("weight", "bias")}
    names = (adabm_name(key) for key in float_shapes(spec))
    settings = ("sub_mean.", "add_mean.", UNIT_RANGE)  # `spec` says it already
    return [name for name in names if name not in quantized and not name.endswith(_COUNTER) and not name.startswith(settings)]


def to_float_state(state_dict: Mapping[str, Any], detected: Detected) -> dict[str, torch.Tensor]:
    """The float32 weights alone, under the names that `float_network(detected.spec)` loads strictly."""
    state = _renamed(unwrap(state_dict), detected.layout)
    names = {key: adabm_name(key) for key in float_shapes(detected.spec)}
    zero = torch.zeros((), dtype=torch.int64)
    return {key: zero if name.endswith(_COUNTER) else state[name].float() for key, name in names.items()}


def to_simulated_state(state_dict: Mapping[str, Any], detected: Detected) -> dict[str, torch.Tensor]:
    """Every value under its AdaBM name, as `simulate.SimulatedNetwork` loads it strictly."""
    floats = {adabm_name(key): value for key, value in to_float_state(state_dict, detected).items()}
    state = _renamed(unwrap(state_dict), detected.layout)
    return floats | {key: value.float() for key, value in state.items() if key not in floats}


def adabm_name(key: str) -> str:
    """The AdaBM name of a weight that EDSR-PyTorch calls `key`: `body.0.body.2.bias` is `body.0.conv2.bias`."""
    return re.sub(r"^(body\.\d+)\.body\.([02])\.", lambda m: f"{m[1]}.conv{1 + int(m[2]) // 2}.", key)


def _layout(state: dict[str, torch.Tensor]) -> str:
    if "conv_in.weight" in state:
        return "conv_in"
    if "conv_after_body.weight" in state and any(re.match(r"body\.\d+\.conv1\.", key) for key in state):
        return "basicsr"
    return "edsr_pytorch" if any(re.match(r"body\.\d+\.body\.[02]\.", key) for key in state) else "adabm"


def _names(state: dict[str, torch.Tensor], layout: str) -> dict[str, str]:
    """The AdaBM name of every key."""
    if layout not in ("conv_in", "basicsr"):
        return {key: adabm_name(key) for key in state}
    blocks = 1 + max((int(m[1]) for m in (re.match(r"body\.(\d+)\.", key) for key in state) if m), default=-1)
    if layout == "basicsr":
        parts = {"conv_first": "head.0", "conv_after_body": f"body.{blocks}", "upsample": "tail.0", "conv_last": "tail.1"}
        split = {key: key.partition(".") for key in state}
        return {key: f"{parts.get(part, part)}.{rest}" for key, (part, _, rest) in split.items()}
    parts = {
        "conv_in": "head.0",
        "prelu_in": "head.1",
        "conv_mid": f"body.{blocks}",
        "bn_mid": f"body.{blocks + 1}",
        "conv_out": "tail.1",
    }

    def rename(key: str) -> str:
        part, _, rest = key.partition(".")
        if part in parts:
            return f"{parts[part]}.{rest}"
        if m := re.match(r"up\.(\d+)\.(conv|prelu)\.(.+)$", key):
            return f"tail.0.{3 * int(m[1]) + 2 * (m[2] == 'prelu')}.{m[3]}"
        return re.sub(r"^(body\.\d+)\.prelu\.", r"\1.act.", key)

    return {key: rename(key) for key in state}


def _renamed(state: dict[str, torch.Tensor], layout: str) -> dict[str, torch.Tensor]:
    renamed = {new: state[old] for old, new in _names(state, layout).items()}
    if layout == "basicsr":  # subtracts the mean colour and adds it again, as constants of its code
        shifts = {"sub_mean": MeanShift(-1), "add_mean": MeanShift(1)}
        return renamed | {f"{name}.{key}": value for name, shift in shifts.items() for key, value in shift.state_dict().items()}
    return renamed | {UNIT_RANGE: torch.ones(1)} if layout == "conv_in" else renamed


def float_shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every value in the state dict of `float_network(spec)`."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in FLOAT_NETWORKS[spec.network](spec).state_dict().items()}


def _allowed(spec: NetworkSpec, state: dict[str, torch.Tensor], quantize: str | None, adaptive: bool) -> dict[str, list]:
    """Key -> shapes that it may have."""
    allowed: dict[str, list] = {adabm_name(key): [shape] for key, shape in float_shapes(spec).items()}
    signed = any(key.endswith(".scale_w") for key in state)
    for name, conv in spec.quantized(quantize).items() if quantize else ():
        allowed |= {f"{name}.lower_a": [(1,)], f"{name}.upper_a": [(1,)]}
        if f"{name}.shift_a" in state:
            allowed[f"{name}.shift_a"] = [(conv.channels_in,)]
        if f"{name}.digits_a" in state:
            allowed[f"{name}.digits_a"] = [(1,)]
        per_channel = (conv.channels_out, 1, 1, 1)
        if signed:
            allowed[f"{name}.scale_w"] = [per_channel]
        else:
            allowed[f"{name}.upper_w"] = [(1,), per_channel]
        if adaptive and conv.role == "adaptive":
            allowed[f"{name}.measure_layer"] = [(1,)]
    return allowed | ({"measure_l": [(1,)], "measure_u": [(1,)]} if adaptive else {})


# ---- RDN


def _rdn_spec(state: dict[str, torch.Tensor]) -> RDNSpec:
    blocks = _count(state, r"RDBs\.(\d+)\.")
    layers = _count(state, r"RDBs\.0\.convs\.(\d+)\.")
    first, up = state.get("RDBs.0.convs.0.conv.0.weight"), state.get("UPNet.0.weight")
    if not blocks or not layers or any(w is None or w.ndim != 4 for w in (first, up)):
        raise ValueError(
            "detect: the state dict looks like an RDN ('SFENet1.weight') but lacks 'RDBs.0.convs.0.conv.0.weight' or "
            f"'UPNet.0.weight', got {_listed(list(state))}"
        )
    growth, channels = first.shape[:2]
    if "UPNet.4.weight" in state:
        scale = 4
    else:
        per_scale = {growth * scale**2: scale for scale in (2, 3)}
        if up.shape[0] not in per_scale:
            rule = " or ".join(map(str, per_scale))
            raise ValueError(f"detect: 'UPNet.0.weight' must have {rule} output channels, got {up.shape[0]}")
        scale = per_scale[up.shape[0]]
    return RDNSpec(scale, blocks, layers, growth, channels)


# ---- SRResNet


def _is_srresnet(state: dict[str, torch.Tensor]) -> bool:
    return any(re.match(r"body\.\d+\.bn1\.", key) for key in state)


def _srresnet_spec(state: dict[str, torch.Tensor], res_scale: float) -> SRResNetSpec:
    for key, axes in (("head.0.weight", 4), ("head.1.weight", 1), ("tail.0.0.weight", 4)):
        if key not in state or state[key].ndim != axes:
            raise ValueError(f"detect: the state dict looks like an SRResNet ('body.0.bn1') but lacks {key!r} with {axes} axes")
    channels, up = state["head.0.weight"].shape[0], state["tail.0.0.weight"].shape[0]
    if "tail.0.3.weight" in state:
        scale = 4
    else:
        per_scale = {channels * scale**2: scale for scale in (2, 3)}
        if up not in per_scale:
            rule = " or ".join(map(str, per_scale))
            raise ValueError(f"detect: 'tail.0.0.weight' must have {rule} output channels, got {up}")
        scale = per_scale[up]
    return SRResNetSpec(
        scale=scale,
        blocks=_count(state, r"body\.(\d+)\.conv1\."),
        channels=channels,
        bias="head.0.bias" in state,
        slopes=state["head.1.weight"].numel(),
        unit_range=UNIT_RANGE in state,
        res_scale=res_scale,
    )


def _count(state: dict[str, torch.Tensor], pattern: str) -> int:
    """One more than the largest index that the pattern finds at the start of a key."""
    return 1 + max((int(m[1]) for m in (re.match(pattern, key) for key in state) if m), default=-1)


# ---- EDSR


def _edsr_spec(state: dict[str, torch.Tensor], given: dict[str, torch.Tensor], res_scale: float) -> EDSRSpec:
    blocks = _count(state, r"body\.(\d+)\.conv1\.weight$")
    if "head.0.weight" not in state or state["head.0.weight"].ndim != 4 or not blocks:
        raise ValueError(f"detect: not an EDSR, RDN or SRResNet state dict: {KNOWN}; got {_listed(list(given))}")
    return EDSRSpec(
        scale=_edsr_scale(state),
        blocks=blocks,
        channels=state["head.0.weight"].shape[0],
        mean_shift=any(key.startswith(("sub_mean.", "add_mean.")) for key in state),
        tail="staged" if "tail.1.weight" in state else "single",
        res_scale=res_scale,
    )


def _edsr_scale(state: dict[str, torch.Tensor]) -> int:
    first = state.get("tail.0.0.weight")
    if first is None or first.ndim != 4:
        raise ValueError("detect: the scale cannot be read: 'tail.0.0.weight' is missing or not a convolution's weight")
    channels_out, channels_in = first.shape[:2]
    if "tail.1.weight" not in state:
        per_scale = {3 * scale**2: scale for scale in (2, 3, 4)}
        rule = "12, 27 or 48"
    elif "tail.0.2.weight" in state:
        return 4
    else:
        per_scale = {channels_in * scale**2: scale for scale in (2, 3)}
        rule = " or ".join(map(str, per_scale))
    if channels_out not in per_scale:
        raise ValueError(f"detect: 'tail.0.0.weight' must have {rule} output channels, got {channels_out}")
    return per_scale[channels_out]


def _check_keys(
    state: dict[str, torch.Tensor], allowed: dict[str, list[tuple[int, ...]]], own: dict[str, str], spec: NetworkSpec
) -> None:
    """own: what the user's checkpoint calls a key."""
    wrong = [
        f"{own[key]!r} has shape {tuple(state[key].shape)}, expected {' or '.join(map(str, shapes))}"
        + _why_shape(tuple(state[key].shape), shapes)
        for key, shapes in allowed.items()
        if key in state and tuple(state[key].shape) not in shapes
    ]
    missing = [own.get(key, key) for key in allowed if key not in state and not key.endswith(_COUNTER)]
    unexpected = [own[key] for key in state if key not in allowed]
    listed = [f"{what} {_listed(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    problems = listed + wrong
    if problems:
        name = FLOAT_NETWORKS[spec.network].__name__
        raise ValueError(
            f"detect: the state dict does not fit the {name} its keys describe: " + "; ".join(problems) + f" ({KNOWN})"
        )


def _why_shape(got: tuple[int, ...], shapes: list[tuple[int, ...]]) -> str:
    """In words, what a weight of another shape belongs to, where that can be told."""
    if len(got) != 4 or len(shapes[0]) != 4 or 0 in got:
        return ""
    want = shapes[0]
    if got[2:] != want[2:]:
        return f": a kernel of {got[2]}x{got[3]}, where {want[2]}x{want[3]} is supported"
    if got[0] == want[0] and got[1] < want[1] and want[1] % got[1] == 0:
        return f": a convolution in {want[1] // got[1]} groups, where one is supported"
    return ""


def _listed(keys: list[str], most: int = 8) -> str:
    shown = ", ".join(repr(key) for key in keys[:most])
    return shown + (f" and {len(keys) - most} more" if len(keys) > most else "")
