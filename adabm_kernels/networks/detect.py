"""Architecture read off the keys and shapes of a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .edsr import EDSR, EDSRSpec

WRAPPERS = ("params_ema", "params", "state_dict", "model")  # where training frameworks put the weights, best first
PREFIXES = ("module.", "model.", "_orig_mod.")  # DataParallel, an outer module, torch.compile


@dataclass(frozen=True)
class Detected:
    """What a state dict turned out to hold.

    spec: hyper-parameters of the network.
    layout: names of the convolutions in a block: "edsr_pytorch" (`body.0.body.0`, `body.0.body.2`) or "adabm"
        (`body.0.conv1`, `body.0.conv2`).
    calibrated: it carries quantisation ranges (`lower_a`, `upper_a`, `upper_w`).
    quantize: "full" or "body" as in `ConvertConfig`, None when not calibrated.
    adaptive: it carries image thresholds and layer offsets (`measure_l`, `measure_u`, `measure_layer`).
    """

    spec: EDSRSpec
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

    state_dict: a state dict, possibly wrapped or prefixed (`unwrap`); mean-shift weights may be absent.
    res_scale: factor on the second convolution of each block, which weights do not reveal.
    Raises ValueError when the network is not a known one, when keys are missing, unexpected or of another shape (it
    lists them), or when a value is NaN, infinite or not floating point.
    """
    state = unwrap(state_dict)
    detected = _detect_edsr(state, res_scale)
    for key, value in state.items():
        if not value.is_floating_point():
            raise ValueError(f"detect: {key!r} must hold floating-point values, got {value.dtype}")
        if not torch.isfinite(value).all():
            raise ValueError(f"detect: {key!r} holds NaN or infinite values")
    return detected


def to_float_state(state_dict: Mapping[str, Any], detected: Detected) -> dict[str, torch.Tensor]:
    """The float32 weights alone, under the names that `networks.edsr.EDSR(detected.spec)` loads strictly."""
    state = unwrap(state_dict)
    names = {key: adabm_name(key) if detected.layout == "adabm" else key for key in _edsr_shapes(detected.spec)}
    return {key: state[name].float() for key, name in names.items()}


def edsr_convs(spec: EDSRSpec, quantize: str) -> dict[str, str]:
    """AdaBM names of the quantised convolutions in the order they run: "adaptive", or "end" when fixed at 8 bits."""
    blocks = {f"body.{i}.conv{j}": "adaptive" for i in range(spec.blocks) for j in (1, 2)}
    if quantize == "body":
        return blocks
    tail = [f"tail.0.{2 * i}" for i in range(len(spec.shuffles))] + (["tail.1"] if spec.tail == "staged" else [])
    return {"head.0": "end", **blocks, f"body.{spec.blocks}": "adaptive", **dict.fromkeys(tail, "end")}


def adabm_name(key: str) -> str:
    """The AdaBM name of a weight that EDSR-PyTorch calls `key`: `body.0.body.2.bias` is `body.0.conv2.bias`."""
    return re.sub(r"^(body\.\d+)\.body\.([02])\.", lambda m: f"{m[1]}.conv{1 + int(m[2]) // 2}.", key)


def _edsr_shapes(spec: EDSRSpec) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in EDSR(spec).state_dict().items()}


def _detect_edsr(state: dict[str, torch.Tensor], res_scale: float) -> Detected:
    matches = [re.match(r"body\.(\d+)\.(body\.0|conv1)\.weight$", key) for key in state]
    blocks = [(int(m[1]), m[2]) for m in matches if m]
    if "head.0.weight" not in state or not blocks:
        raise ValueError(
            "detect: not an EDSR state dict: it needs 'head.0.weight' and 'body.0.body.0.weight' or "
            f"'body.0.conv1.weight', got {_listed(list(state))}"
        )
    layout = "adabm" if any(name == "conv1" for _, name in blocks) else "edsr_pytorch"
    spec = EDSRSpec(
        scale=_edsr_scale(state),
        blocks=max(index for index, _ in blocks) + 1,
        channels=state["head.0.weight"].shape[0],
        mean_shift=any(key.startswith(("sub_mean.", "add_mean.")) for key in state),
        tail="staged" if "tail.1.weight" in state else "single",
        res_scale=res_scale,
    )
    calibrated = any(key.endswith(".lower_a") for key in state)
    quantize = None if not calibrated else "full" if "head.0.lower_a" in state else "body"
    adaptive = calibrated and ("measure_l" in state or any(key.endswith(".measure_layer") for key in state))

    allowed = {adabm_name(key) if layout == "adabm" else key: [shape] for key, shape in _edsr_shapes(spec).items()}
    if calibrated:
        for name, role in edsr_convs(spec, quantize).items():
            allowed |= {f"{name}.lower_a": [(1,)], f"{name}.upper_a": [(1,)]}
            allowed[f"{name}.upper_w"] = [(1,), (allowed[f"{name}.bias"][0][0], 1, 1, 1)]
            if adaptive and role == "adaptive":
                allowed[f"{name}.measure_layer"] = [(1,)]
        if adaptive:
            allowed |= {"measure_l": [(1,)], "measure_u": [(1,)]}
    _check_keys(state, allowed)
    return Detected(spec, layout, calibrated, quantize, adaptive)


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


def _check_keys(state: dict[str, torch.Tensor], allowed: dict[str, list[tuple[int, ...]]]) -> None:
    wrong = [
        f"{key!r} has shape {tuple(state[key].shape)}, expected {' or '.join(map(str, shapes))}"
        for key, shapes in allowed.items()
        if key in state and tuple(state[key].shape) not in shapes
    ]
    missing = [key for key in allowed if key not in state]
    unexpected = [key for key in state if key not in allowed]
    listed = [f"{what} {_listed(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    problems = listed + wrong
    if problems:
        raise ValueError("detect: the state dict does not fit the EDSR its keys describe: " + "; ".join(problems))


def _listed(keys: list[str], most: int = 8) -> str:
    shown = ", ".join(repr(key) for key in keys[:most])
    return shown + (f" and {len(keys) - most} more" if len(keys) > most else "")
