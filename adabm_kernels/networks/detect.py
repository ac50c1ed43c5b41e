"""Reads the architecture of a network off the keys and shapes of a state dict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..graph.fold import leaky_slope
from ..graph.nodes import Activation, BatchNorm, ColourShift, Conv, Node, PixelUnshuffle, Pool, Resize
from .checkpoints import MOST_NETWORKS, Candidate, candidates, equal, why_not_plain
from .convention import AS_READ, SHIFTS, Convention, Shift, fold, reading
from .float_network import float_network as float_network
from .float_network import float_shapes
from .known import KNOWN, NETWORKS, NONE_OF_THEM, SUPPORTED, layout_of, why_not
from .known import SPECS as SPECS
from .layouts import MAX_WEIGHT, Layout, adabm_name, check_numbers, is_factor, listed, shortened
from .spec import RESIDUAL_FRACTION, UNIT_RANGE, NetworkSpec

NO_SKIP = "no layer can be skipped, as the network is built anew from its weights: replace this one"
# Layers of torch that compute the same as an activation of a graph, and layers that compute nothing in eval mode.
_ACTIVATIONS = {"relu": nn.ReLU, "prelu": nn.PReLU, "leaky_relu": nn.LeakyReLU}
_ACTIVATIONS |= {"sigmoid": nn.Sigmoid, "silu": nn.SiLU, "tanh": nn.Tanh}
_OTHER_LAYERS: dict[type[Node], type[nn.Module]] = {PixelUnshuffle: nn.PixelUnshuffle, Pool: nn.AdaptiveAvgPool2d}
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout2d)
_NEUTRAL_FILES = ("torch.nn.modules.container", "torch.nn.modules.loss")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 8  # the most weights of another shape that a message lists
_COUNTER = ".num_batches_tracked"  # an integer of BatchNorm, which is not used here


@dataclass(frozen=True)
class Detected:
    """A network that was recognised in a state dict.

    spec: the hyper-parameters of the network, an object of a class in `known.NETWORKS`.
    layout: the names of its parts (layouts.py): "adabm", the names of the authors' implementation; "edsr_pytorch"
        (`body.0.body.0`, `body.0.body.2`); "basicsr" and "mmagic", an EDSR with `conv_first`, `conv_after_body`, `upsample.0`,
        `conv_last`, whose mean shift is not among its weights; "yjn870", an RDN with `sfe1` and `rdbs`; "conv_in", an SRResNet with
        `conv_in`, `conv_mid`, `up.0.conv`, `conv_out` that computes in 0..1; "lornatang" (`trunk.0.rcb.0`) and "twtygqyy"
        (`residual.0.conv1`), SRResNets too; "realesrgan", an SRVGGNetCompact, whose convolutions and slopes take turns in `body`;
        "realesrgan_rrdb" (`body.0.rdb1`), "esrgan" (`RRDB_trunk.0.RDB1`) and "esrgan_old" (`model.1.sub.0.RDB1`), RRDBNets;
        "span", "imdn", "rfdn" and "carn", the networks of these names; "lornatang_vdsr" (`trunk.0.conv`) and "twtygqyy_vdsr"
        (`residual_layer.0.conv`); "kair" (`model.0`) and "dncnn" (`dncnn.0`), DnCNNs; "yjn870_espcn" and "yjn870_fsrcnn"
        (`first_part.0`), "lornatang_espcn" (`feature_maps.0`) and "lornatang_fsrcnn" (`feature_extraction.0`).
    calibrated: true where the state dict carries quantisation ranges (`lower_a`, `upper_a`, `upper_w` or `scale_w`).
    quantize: "full" or "body" as in `ConvertConfig`; None where the network is not calibrated.
    adaptive: true where the state dict carries image thresholds and layer offsets (`measure_l`, `measure_u`, `measure_layer`).
    convention: what the caller said about the network beside its weights.
    source: the place of the network in a checkpoint, such as "state_dict.generator"; empty where the checkpoint is the network.
    left_out: the names of the tensors beside the network under other prefixes: metrics, losses, a discriminator.
    """

    spec: NetworkSpec
    layout: str
    calibrated: bool
    quantize: str | None
    adaptive: bool
    convention: Convention = AS_READ
    source: str = ""
    left_out: tuple[str, ...] = ()


def detect(
    state_dict: Mapping[str, Any],
    res_scale: float = 1.0,
    *,
    convention: Convention = AS_READ,
    weights_key: str | None = None,
) -> Detected:
    """Recognises a network by its keys and shapes.

    state_dict: a state dict, or a checkpoint that holds one, in whatever a training program wraps around it (`checkpoints`);
        mean-shift weights and batch counters may be absent.
    res_scale: factor on the second convolution of each block, which weights do not reveal (EDSR and SRResNet); at least 0.
    convention: what else the weights do not reveal; a calibrated network always has the default convention.
    weights_key: the name of the network that is meant, where a checkpoint holds several: its `Detected.source`, or the end of it.
    Raises TypeError for a res_scale that is not a number; ValueError when it is negative or above MAX_WEIGHT, when the network is
    not a known one, when there are several, when keys are missing, unexpected or of another shape (it lists them), when a tensor
    has no values of its own in floating point, when one is NaN, infinite or larger than MAX_WEIGHT, or when the convention is one
    that the network cannot have.
    """
    if isinstance(res_scale, bool) or not isinstance(res_scale, (int, float)):
        raise TypeError(f"detect: res_scale must be a number, got {type(res_scale).__name__}")
    if not is_factor(res_scale):
        raise ValueError(f"detect: res_scale must be finite and at least 0, at most {MAX_WEIGHT:g}, got {res_scale}")
    chosen, found = _chosen(candidates(state_dict), weights_key, lambda state: _recognised(state, res_scale, convention))
    return replace(found, source=chosen.label, left_out=chosen.left_out)


def unwrap(state_dict: Mapping[str, Any], weights_key: str | None = None) -> dict[str, torch.Tensor]:
    """The flat mapping from names to tensors of the one network in a checkpoint. Raises as `detect` does."""
    return _chosen(candidates(state_dict), weights_key, lambda state: _recognised(state, 1.0, AS_READ))[0].state


def _chosen(
    found: list[Candidate], key: str | None, recognise: Callable[[dict[str, torch.Tensor]], Detected]
) -> tuple[Candidate, Detected]:
    """The candidate that is meant, and the network that it is. Without a key, this is the only candidate that is a known
    network."""
    if key is not None:
        named = [c for c in found if c.label == key] or [c for c in found if c.label.endswith(f".{key}")]
        if len(named) != 1:
            labels = [c.label for c in found if c.label]
            if not labels:
                raise ValueError(f"detect: weights_key must be left out for a checkpoint without parts, got {key!r}")
            raise ValueError(f"detect: weights_key must name one part of the checkpoint, of {listed(labels)}, got {key!r}")
        return named[0], recognise(named[0].state)
    if len(many := [c.label for c in found if c.has_anchor]) > MOST_NETWORKS:
        if not many[0]:  # parts of a network may look like networks, so the whole is tried first
            with suppress(ValueError):
                return found[0], recognise(found[0].state)
        raise ValueError(f"detect: the checkpoint holds many networks, {listed(many)}: name one of them as weights_key")
    fits, errors = [], []
    for candidate in found[:MOST_NETWORKS]:
        try:
            fits.append((candidate, recognise(candidate.state)))
        except ValueError as error:
            errors.append((bool(why_not(candidate.state)), error))
    if not fits:
        raise max(errors, key=lambda known: known[0])[1]
    fitting = {candidate.label for candidate, _ in fits}
    # BasicSR saves a network and its running average side by side; it reads the average, and so does this function.
    fits = [fit for fit in fits if not (fit[0].label.endswith("params") and f"{fit[0].label}_ema" in fitting)]
    others = [fit for fit in fits[1:] if not equal(fit[0], fits[0][0])]
    if others:
        several = [candidate.label or "the checkpoint itself" for candidate, _ in fits]
        scales = all(label.split(".")[-1] in ("x2", "x3", "x4") for label in several)
        what = "is a network for each of several scales" if scales else "holds several networks"
        names = listed(sorted(several) if scales else several)
        raise ValueError(f"detect: the checkpoint {what}, {names}: name one of them as weights_key")
    return fits[0]


def reread(state_dict: Mapping[str, Any], found: Detected, res_scale: float, convention: Convention) -> Detected:
    """The network of `found`, read with another residual scale and convention. The weights are not checked again, because `detect`
    has checked them."""
    given = next(c.state for c in candidates(state_dict) if c.label == found.source)
    spec = _spec(_prepared(given, layout_of(given), convention), given, res_scale)
    other = replace(found, spec=spec, convention=convention)
    return replace(other, spec=_with_mean(other, given))


def _kind(state: Mapping[str, torch.Tensor]) -> type[NetworkSpec] | None:
    """The class of the known network that weights under AdaBM's names look like; None where they look like no known network."""
    return next((kind for kind in NETWORKS if kind.fits(state)), None)


def _spec(state: dict[str, torch.Tensor], given: dict[str, torch.Tensor], res_scale: float) -> NetworkSpec:
    """The hyper-parameters read off keys and shapes. state: the weights under AdaBM names. given: the weights of the user's
    checkpoint."""
    kind = _kind(state)
    if kind is None:
        other = "of any other network convert_model takes the module itself, with its weights in it (docs/any_network.md)"
        raise ValueError(f"detect: {NONE_OF_THEM}: {KNOWN}; got {listed(list(given))}; {other}")
    try:
        spec = kind.read(state, res_scale)
    except ValueError as error:  # the specification may raise it too, for sizes of zero
        raise ValueError(f"detect: {str(error).removeprefix('detect: ')}") from error
    check_held(spec, len(state))
    return spec


def check_held(spec: NetworkSpec, count: int) -> None:
    """Raises ValueError for a network that has more blocks and layers than `count` tensors, before anything of that size is
    built."""
    if spec.repeated > count:
        raise ValueError(f"detect: the {spec.title} must have at most as many blocks and layers as tensors, {count}, got {spec}")


def _recognised(given: dict[str, torch.Tensor], res_scale: float, convention: Convention) -> Detected:
    """The network in a state dict without wrappers."""
    check_numbers(given)
    if other := why_not(given):
        raise ValueError(f"detect: the state dict is that of {other} (what is supported: {SUPPORTED})")
    for key, value in given.items():
        if reason := why_not_plain(value):
            raise ValueError(f"detect: {shortened(key)!r} must hold its own values in memory, one after the other: {reason}")
    layout = layout_of(given)
    state = _prepared(given, layout, convention)
    _check_kind(state, {new: old for old, new in layout.rename(given).items()})
    spec = _spec(state, given, res_scale)
    calibrated = any(key.endswith(".lower_a") for key in state)
    first = next(iter(spec.quantized("full")))
    quantize = None if not calibrated else "full" if f"{first}.lower_a" in state else "body"
    adaptive = calibrated and ("measure_l" in state or any(key.endswith(".measure_layer") for key in state))
    own = {adabm_name(key): key for key in float_shapes(spec)} if layout.published else {}
    own |= {new: old for old, new in layout.rename(given).items()}
    _check_keys(state, _allowed(spec, state, quantize, adaptive), own, spec)
    for key, value in given.items():
        if key.endswith(_COUNTER):
            continue
        if not value.is_floating_point():
            raise ValueError(f"detect: {key!r} must hold floating-point values, got {value.dtype}")
        if value.dtype not in _FLOATS:
            raise ValueError(f"detect: {key!r} must hold floating-point values of 16, 32 or 64 bits, got {value.dtype}")
        check_magnitude(f"detect: {key!r}", value)
    if adaptive and (state["measure_l"] > state["measure_u"]).any():
        ends = [state[key].item() for key in ("measure_l", "measure_u")]
        raise ValueError(f"detect: 'measure_l' must not be above 'measure_u', got {ends[0]:g} and {ends[1]:g}")
    found = Detected(spec, layout.name, calibrated, quantize, adaptive, convention=convention)
    return replace(found, spec=_with_mean(found, given))


def check_magnitude(name: str, values: torch.Tensor) -> None:
    """Raises ValueError for a value that is NaN, infinite or above MAX_WEIGHT in magnitude. name: the words with which the message
    begins."""
    least, most = (float(end) for end in values.aminmax())
    if math.isfinite(least) and math.isfinite(most):
        if max(-least, most) > MAX_WEIGHT:
            raise ValueError(f"{name} must hold values of at most {MAX_WEIGHT:g} in magnitude, got {least:g}..{most:g}")
        return
    raise ValueError(f"{name} holds NaN or infinite values")


def _prepared(given: dict[str, torch.Tensor], layout: Layout, convention: Convention) -> dict[str, torch.Tensor]:
    """The weights under AdaBM names, with the values that the layout and the convention add, and without those that they
    replace."""
    state = layout.apply(given)
    if convention.rgb_range is not None:
        kind = _kind(state)
        state.pop(UNIT_RANGE, None)
        if kind is not None and kind.says_range and convention.rgb_range == 1:
            state[UNIT_RANGE] = torch.ones(1)
    if convention.mean_shift is not None:
        state = {key: value for key, value in state.items() if not key.startswith(SHIFTS)}
    kind = _kind(state)
    return state if kind is None else kind.completed(state, convention.mean_shift not in (None, "none"))


def _read(found: Detected, given: dict[str, torch.Tensor]) -> tuple[float, Shift | None]:
    """The range of pixels and the mean shift of a state dict without wrappers."""
    layout = layout_of(given)
    return reading(layout.apply(given), found.convention, layout.rgb_range)


def _with_mean(found: Detected, given: dict[str, torch.Tensor]) -> NetworkSpec:
    """The spec with the network's own mean colour. Raises ValueError for a convention that the network cannot have."""
    spec, convention = found.spec, found.convention
    if found.calibrated and convention.settings:
        name, value = next(iter(convention.settings.items()))
        raise ValueError(f"detect: {name} must be left out for a calibrated network, whose ranges hold in 0..255, got {value!r}")
    if convention.channel_order != "rgb" and not spec.any_order:
        raise ValueError(
            f"detect: channel_order must be 'rgb' for a network that takes the brightness or subtracts a colour of its own, "
            f"{spec.called}, got {convention.channel_order!r}"
        )
    if not spec.takes_mean_shift:
        if convention.mean_shift not in (None, "none"):
            raise ValueError(
                f"detect: mean_shift must be left out for {spec.article} {spec.title}, which has none here, got "
                f"{convention.mean_shift!r}"
            )
        return spec
    rgb_range, shift = _read(found, given)
    if shift is None:
        return spec
    if found.calibrated and not (shift.plain and rgb_range == 255):
        raise ValueError(
            "detect: 'sub_mean' and 'add_mean' of a calibrated network must subtract and add one colour of 0..255, got biases "
            f"{given['sub_mean.bias'].tolist()} and {given['add_mean.bias'].tolist()}"
        )
    mean = shift.pixels(rgb_range)
    return replace(spec, mean=mean[::-1] if convention.channel_order == "bgr" else mean)  # type: ignore[type-var]


def res_scale_of(model: nn.Module) -> float | None:
    """The residual scale that the blocks of a module have as their attribute `res_scale`; None where they have none.

    Raises ValueError where they have several, because a network here has one.
    """
    values = {
        float(value)
        for module in model.modules()
        if isinstance(value := getattr(module, "res_scale", None), (int, float)) and not isinstance(value, bool)
    }
    if len(values) > 1:
        raise ValueError(f"detect: res_scale must be the same in all blocks of the module, got {sorted(values)}")
    return values.pop() if values else None


def check_whole(found: Detected) -> None:
    """Refuses a module that has other weights beside the network found in it: without them it would be another module. Raises
    ValueError."""
    if found.left_out:
        raise ValueError(
            f"detect: the network '{found.source}' of the module has other weights beside it, {listed(list(found.left_out), 4)}: "
            f"pass module.{found.source} alone"
        )


def check_modules(model: nn.Module, spec: NetworkSpec) -> None:
    """Refuses a module whose weights fit `spec` and whose layers of torch compute something else.

    A state dict does not tell a ReLU from a GELU, or a stride of 1 from a stride of 2. Layers of the user's own classes are not
    judged. Raises ValueError that names the layer, what it is and what is supported.
    """
    nodes = spec.graph().nodes
    eps = {node.eps for node in nodes if isinstance(node, BatchNorm)}
    slopes = {leaky_slope(node) for node in nodes if isinstance(node, Activation) and node.function == "leaky_relu"}
    resizes = {(node.mode, node.factor) for node in nodes if isinstance(node, Resize)}
    functions = dict.fromkeys(node.function for node in nodes if isinstance(node, Activation))
    activations = [_ACTIVATIONS[function] for function in functions if function in _ACTIVATIONS]
    layers: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.PixelShuffle, *activations, *(_NORMS if eps else ()))
    layers += (nn.Upsample,) if resizes else ()
    layers += tuple(layer for kind, layer in _OTHER_LAYERS.items() if any(isinstance(node, kind) for node in nodes))
    layers += tuple(getattr(nn, name) for name in spec.module_layers)
    forms = _forms(nodes) | spec.module_forms
    for name, layer in model.named_modules():
        reason = ""
        if isinstance(layer, nn.Conv2d) and type(layer).forward is nn.Conv2d.forward:
            k = layer.kernel_size[0]
            rules = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
            wrong = [f"{key}={getattr(layer, key)!r}" for key, value in rules.items() if getattr(layer, key) != value]
            if layer.padding not in ((k // 2, k // 2), "same"):
                wrong.append(f"padding={layer.padding}")
            form = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
            if wrong and (layer.padding_mode != "zeros" or form not in forms):
                reason = f"a convolution with {', '.join(wrong)}: it must have stride 1 and zero padding of half its kernel"
        elif isinstance(layer, layers):
            if isinstance(layer, _NORMS) and layer.eps not in eps:
                reason = f"a {type(layer).__name__} with eps={layer.eps:g}: it must be {min(eps):g}"
            elif isinstance(layer, nn.Upsample) and (layer.mode, layer.scale_factor) not in resizes:
                rule = " or ".join(f"{mode} by {factor:g}" for mode, factor in sorted(resizes))
                reason = f"an Upsample, {layer.mode} by {layer.scale_factor}: it must be {rule}"
            elif isinstance(layer, nn.LeakyReLU) and layer.negative_slope not in slopes:
                reason = f"a LeakyReLU with negative_slope={layer.negative_slope:g}: it must be {min(slopes):g}"
        elif type(layer).__module__.startswith("torch.nn.modules"):
            if not isinstance(layer, _NEUTRAL) and not type(layer).__module__.startswith(_NEUTRAL_FILES):
                kinds = ", ".join(kind.__name__ for kind in layers)
                reason = f"a {type(layer).__name__}, and its layers must be {kinds}"
        if reason:
            raise ValueError(f"detect: layer {name!r} is not supported in this {spec.title}: it is {reason}; {NO_SKIP} ({KNOWN})")


def _forms(nodes: Iterable[Node]) -> frozenset[tuple]:
    """The kernel, stride, padding, dilation and groups of each convolution of a graph."""
    convs = (node for node in nodes if isinstance(node, Conv))
    return frozenset((node.kernel, node.stride, node.padding, node.dilation, node.groups) for node in convs)


def plain_keys(spec: NetworkSpec, quantize: str) -> list[str]:
    """The AdaBM keys of the values that a converted network keeps in float: all but the quantised convolutions and the mean
    shifts."""
    quantized = {f"{name}.{part}" for name in spec.quantized(quantize) for part in ("weight", "bias")}
    graph = spec.graph()
    shifts = {key for node in graph.nodes if isinstance(node, ColourShift) for key in node.parameters()}
    left_out = {*quantized, *shifts, *graph.buffers}  # `spec` holds the information of the last two
    names = (spec.own_name(key) for key in float_shapes(spec))
    return [name for name in names if name not in left_out and not name.endswith(_COUNTER)]


def to_float_state(state_dict: Mapping[str, Any], detected: Detected) -> dict[str, torch.Tensor]:
    """The float32 weights alone, under the names that `float_network(detected.spec)` loads strictly.

    They are the weights of the same network for RGB in 0..255: any other convention has been folded into them.
    """
    state = _named(state_dict, detected)
    names = {key: adabm_name(key) for key in float_shapes(detected.spec)}
    zero = torch.zeros((), dtype=torch.int64)
    return {key: zero if name.endswith(_COUNTER) else state[name].float() for key, name in names.items()}


def to_simulated_state(state_dict: Mapping[str, Any], detected: Detected) -> dict[str, torch.Tensor]:
    """Every value under its AdaBM name, as `simulate.SimulatedNetwork` loads it strictly."""
    floats = {adabm_name(key): value for key, value in to_float_state(state_dict, detected).items()}
    if not detected.calibrated:
        return floats
    return floats | {key: value.float() for key, value in _named(state_dict, detected).items() if key not in floats}


def _named(state_dict: Mapping[str, Any], detected: Detected) -> dict[str, torch.Tensor]:
    """The weights of the detected network under AdaBM names, in the one convention of the integer networks."""
    given = next(c.state for c in candidates(state_dict) if c.label == detected.source)
    state = _prepared(given, layout_of(given), detected.convention)
    return fold(state, detected.spec, *_read(detected, given), detected.convention.channel_order)


def _allowed(spec: NetworkSpec, state: dict[str, torch.Tensor], quantize: str | None, adaptive: bool) -> dict[str, list]:
    """For each key that a state dict may have, the shapes that its value may have."""
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
    if RESIDUAL_FRACTION in state and quantize and not spec.why_float_residual(quantize):
        allowed[RESIDUAL_FRACTION] = [(1,)]
    return allowed | ({"measure_l": [(1,)], "measure_u": [(1,)]} if adaptive else {})


def _check_kind(state: dict[str, torch.Tensor], own: dict[str, str]) -> None:
    """Refuses networks of the known kinds that are for other pictures or scales. own: for each AdaBM name, the key in the user's
    checkpoint."""
    found = _kind(state)
    kinds, allowed = (NETWORKS, (3,)) if found is None else ((found,), found.inputs)
    for key in dict.fromkeys(kind.anchor for kind in kinds):
        if key in state and state[key].ndim == 4 and state[key].shape[1] not in allowed:
            colours = state[key].shape[1]
            what = "grey pictures" if colours == 1 else f"pictures of {colours} channels"
            if colours in (12, 48):
                what = f"pixels side by side as {colours} channels (pixel_unshuffle)"
            raise ValueError(
                f"detect: the network is one for {what} ({own[key]!r} takes {colours} channel{'s' if colours > 1 else ''}): "
                "supported are networks for three colours, RGB"
            )
    if third := next((key for kind in NETWORKS if (key := kind.of_scale_8(state))), ""):
        raise ValueError(f"detect: the network is one for x8 (its {own[third]!r} says so): supported are x2, x3 and x4")


def _check_keys(
    state: dict[str, torch.Tensor], allowed: dict[str, list[tuple[int, ...]]], own: dict[str, str], spec: NetworkSpec
) -> None:
    """Raises ValueError for keys that are missing or unexpected and for values of another shape. own: for each AdaBM name, the key
    in the user's checkpoint."""
    wrong = [
        f"{own.get(key, key)!r} has shape {tuple(state[key].shape)}, expected {' or '.join(map(str, shapes))}"
        + _why_shape(tuple(state[key].shape), shapes)
        for key, shapes in allowed.items()
        if key in state and tuple(state[key].shape) not in shapes
    ]
    wrong[_SHOWN:] = [f"{len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
    missing = [own.get(key, key) for key in allowed if key not in state and not key.endswith(_COUNTER)]
    unexpected = [own.get(key, key) for key in state if key not in allowed]
    problems = [f"{what} {listed(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys] + wrong
    if problems:
        what = "; ".join(problems)
        known = f"{spec.called} is known by {spec.known_by}; {len(NETWORKS) - 1} other networks are known too"
        raise ValueError(f"detect: the state dict does not fit the {spec.title} its keys describe: {what} ({known})")


def _why_shape(got: tuple[int, ...], shapes: list[tuple[int, ...]]) -> str:
    """Words that say which kind of convolution a weight of another shape belongs to, and which kind is supported; empty where its
    shape does not tell."""
    if len(got) != 4 or len(shapes[0]) != 4 or 0 in got:
        return ""
    want = shapes[0]
    if got[2:] != want[2:]:
        return f": a kernel of {got[2]}x{got[3]}, where {want[2]}x{want[3]} is supported"
    if got[0] == want[0] and got[1] < want[1] and want[1] % got[1] == 0:
        return f": a convolution in {want[1] // got[1]} groups, where one is supported"
    return ""
