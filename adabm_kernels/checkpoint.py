"""Converted models as files: safetensors with integer weights and one JSON header under the metadata key "adabm"."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes

from . import native
from .config import ConvertConfig
from .exits import ExitParameters
from .files import parse_json, utf8_name, write_file
from .networks.detect import SPECS, check_held, check_magnitude, float_shapes, plain_keys
from .networks.layouts import shortened
from .networks.spec import NetworkSpec
from .networks.traced import GraphSpec
from .nn import ConvertedNetwork
from .nn.contexts import as_imported
from .nn.from_simulated import geometry_of
from .parameters import ConvParameters
from .quantize import check_fraction, finite_float32
from .registry import Problem, choose

FORMAT_VERSION = 6
# Version 1 has no input_shift, version 2 no digits, version 3 no mean colour except DIV2K's, version 4 no exit, and version 5 no
# fraction.
READABLE = (1, 2, 3, 4, 5, 6)
FIRST_WITH_EXIT, FIRST_WITH_FRACTION = 5, 6
HEADER_KEY = "adabm"
KNOWN = (*SPECS, GraphSpec.network)
_SCALARS = ("weight_bits", "lower", "upper", "act_bits", "layer_offset", "adaptive", "weight_grid", "digits")
_TENSORS = ("codes", "weight_upper", "bias")
_OPTIONAL = ("input_shift",)
_COUNTER = ".num_batches_tracked"  # a value of BatchNorm, the only one that is no float
_EXIT_WEIGHTS = 48 * 3 * 15**2  # the number of weights of the largest filter at the largest scale
_MOST_WORDS = 500  # the most characters of a message, since texts in a file may be of any length
_EXIT_SCALARS, _EXIT_TENSORS = ("unit", "tile", "threshold"), ("weight", "bias")


def save(model: ConvertedNetwork, path: str | Path, *, include_float: bool = True) -> None:
    """Writes a converted model with its `provenance`, whole or not at all; an existing file is replaced.

    include_float: whether to keep the float weights it was made from, so that `float_model` works after loading. Raises TypeError
    unless model is a converted model. Raises ValueError where the float weights are to be left out but its collapsed tail is made
    from them, and where the model was made of a traced module with calls that files do not hold (docs/any_network.md). Raises
    OSError where the file cannot be written.
    """
    if not isinstance(model, ConvertedNetwork):
        raise TypeError(f"save: model must be a converted model (convert_model), got {type(model).__name__}")
    if model.collapsed is not None and not include_float:
        raise ValueError(
            "save: include_float must be True for a model with a collapsed tail, which is made from the float weights "
            "(convert with ConvertConfig(tail='staged') to leave them out)"
        )
    tensors = {f"float.{key}": value for key, value in (model.float_state or {}).items() if include_float}
    tensors |= {f"plain.{key}": value for key, value in model.floats.items()}
    convs = {}
    for name, conv in model.parameters_by_name.items():
        tensors |= {f"conv.{name}.{key}": getattr(conv, key) for key in _TENSORS}
        tensors |= {f"conv.{name}.{key}": getattr(conv, key) for key in _OPTIONAL if getattr(conv, key) is not None}
        convs[name] = {key: getattr(conv, key) for key in _SCALARS}
    if model.exit is not None:
        tensors |= {f"exit.{key}": getattr(model.exit, key) for key in _EXIT_TENSORS}
    header = {
        "format": FORMAT_VERSION,
        "network": model.spec.network,
        "spec": model.spec.stored() if isinstance(model.spec, GraphSpec) else asdict(cast(Any, model.spec)),
        "config": model.config.to_dict(),
        "thresholds": model.thresholds,
        "convs": convs,
        "fraction": model.fraction,
        "exit": None if model.exit is None else {key: getattr(model.exit, key) for key in _EXIT_SCALARS},
        "provenance": model.provenance,
    }
    if model.running_thresholds is not None:
        header["running"] = {"momentum": model.running_momentum, "thresholds": model.running_thresholds}
    dense = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_file(path, to_bytes(dense, {HEADER_KEY: json.dumps(header)}))


@as_imported()
def load(path: str | Path) -> ConvertedNetwork:
    """Reads a converted model. Raises FileNotFoundError, or ValueError saying what the file is instead.

    Whatever the file holds is checked before anything is made of it: types, shapes, orders and ranges, and that all numbers are
    finite in float32. Refusing a file takes about a second at most, and memory in proportion to the file.
    """
    path = Path(path)
    native.isa(), choose(Problem("cpu"))  # errors in the environment are raised here, because they are not the file's fault
    text, tensors = _read(path, with_tensors=True)
    with explained(path):
        header = parse_json(text)
        parts = _parts(header, tensors)
        provenance, running = dict(header.get("provenance", {})), _running(header)
        model = ConvertedNetwork.KINDS.get(parts["spec"].network, ConvertedNetwork)(**parts).eval()
        model.provenance = provenance
        if running is not None:
            model.set_running_thresholds(*running)
    return model


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a converted model's file, without its tensors: network, spec, config, thresholds, convs, provenance.

    Raises as `load` does.
    """
    path = Path(path)
    text, _ = _read(path, with_tensors=False)
    with explained(path):
        header = parse_json(text)
        _check_version(header)
        if not isinstance(header.get("provenance", {}), dict):
            raise ValueError(f"provenance must be an object, got {header['provenance']!r}")
        return {"provenance": {}} | header


def is_converted(path: str | Path) -> bool:
    """Whether a file is a converted model, of any version."""
    try:
        _read(Path(path), with_tensors=False)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _read(path: Path, with_tensors: bool) -> tuple[str, dict[str, torch.Tensor]]:
    """The header as text and, if asked for, the tensors."""
    if not path.is_file():
        raise FileNotFoundError(f"load: no model file at {path} (adabm_kernels.builtin_models() says where the built-in ones are)")
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            keys = list(file.keys())
            tensors = {key: file.get_tensor(key) for key in keys} if text and with_tensors else {}
    except MemoryError:
        raise
    except Exception as error:  # This includes tensors of types that this release of torch does not have.
        raise ValueError(f"load: {path} is {_what_else(path)}") from error
    if not text:
        kind = "a float checkpoint" if any(key.endswith("weight") for key in keys) else "a file of other tensors"
        raise ValueError(f"load: {path} is {kind}, not a converted model: {_HOW}")
    return text, tensors


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """A block in which anything wrong with a model's file is raised as ValueError with one sentence."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"load: {path} is not a model that this version can read: {shortened(what, _MOST_WORDS)}") from error
    except RecursionError as error:
        raise ValueError(f"load: {path} is not a model that this version can read: its header is nested too deeply") from error


def _check_version(header: dict[str, Any]) -> None:
    if header["format"] not in READABLE:
        raise ValueError(f"its format is {header['format']!r}, and this version reads {READABLE[0]} to {READABLE[-1]}")
    if header["network"] not in KNOWN:
        raise ValueError(f"its network is {header['network']!r}, and this version knows {', '.join(map(repr, KNOWN))}")


def _parts(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The contents of the file as arguments of ConvertedNetwork."""
    _check_version(header)
    spec, config = _spec(header), ConvertConfig.from_dict(header["config"])
    check_held(spec, len(tensors))
    fraction, shapes = _fraction(header, spec, config), float_shapes(spec)
    float_state = _section(tensors, "float.") or None
    if float_state is not None:
        _check_floats("float.", float_state, shapes, spec.dtypes)
    plain, kept = _section(tensors, "plain."), dict.fromkeys(plain_keys(spec, config.quantize))
    names = {name: key for key in shapes if (name := spec.own_name(key)) in kept}
    dtypes = {name: spec.dtypes[key] for name, key in names.items() if key in spec.dtypes}
    _check_floats("plain.", plain, {name: shapes[key] for name, key in names.items()}, dtypes)
    convs = {}
    for name, conv in spec.quantized(config.quantize).items():
        # Files from before the signed grid and the second digit do not name their grid and their digits.
        scalars = {key: ({"weight_grid": "odd", "digits": 1} | header["convs"][name])[key] for key in _SCALARS}
        held: dict[str, Any] = {key: tensors[f"conv.{name}.{key}"] for key in _TENSORS}
        _check_shapes(f"conv.{name}.", held, {"codes": (conv.channels_out, conv.channels_in // conv.groups, *conv.sizes)})
        optional: dict[str, Any] = {key: tensors.get(f"conv.{name}.{key}") for key in _OPTIONAL}
        convs[name] = ConvParameters(name, **scalars, **held, **optional, geometry=geometry_of(conv))
    return {
        "spec": spec,
        "config": config,
        "parameters": convs,
        "floats": {key: plain[key] for key in kept},
        "thresholds": _thresholds(header["thresholds"]) if config.adaptive else None,
        "float_state": float_state,
        "exit": _exit(header, tensors, spec, config),
        "fraction": fraction,
    }


def _spec(header: dict[str, Any]) -> NetworkSpec:
    if header["network"] != GraphSpec.network:
        return SPECS[header["network"]](**header["spec"])
    return GraphSpec.of_stored(header["spec"])


def _fraction(header: dict[str, Any], spec: NetworkSpec, config: ConvertConfig) -> int | None:
    """The fraction of features that are held in 16 bits. Raises KeyError and ValueError for one that is impossible."""
    fraction = header["fraction"] if header["format"] >= FIRST_WITH_FRACTION else None
    if fraction is None:
        if config.residual == "int16":
            raise ValueError("residual is 'int16' in its config, and it has no fraction")
        return None
    if config.residual == "float32":
        raise ValueError(f"residual is 'float32' in its config, and it has the fraction {fraction!r}")
    spec.check_int16_residual(config.quantize)
    check_fraction(fraction)
    return int(fraction)


def _exit(
    header: dict[str, Any], tensors: dict[str, torch.Tensor], spec: NetworkSpec, config: ConvertConfig
) -> ExitParameters | None:
    """The exit of easy tiles, where there is one. Raises KeyError for a missing value, and as ExitParameters does."""
    if header["format"] < FIRST_WITH_EXIT or header["exit"] is None:
        return None
    scalars = header["exit"]
    if not isinstance(scalars, dict):
        raise ValueError(f"exit must be an object or null, got {scalars!r}")
    held = {f"exit.{key}": scalars[key] for key in _EXIT_SCALARS if key in scalars} | tensors
    parts = {key: held[f"exit.{key}"] for key in (*_EXIT_SCALARS, *_EXIT_TENSORS)}
    # It is checked first, because the filters for every border class, which are made of it, are far larger.
    if parts["weight"].numel() > _EXIT_WEIGHTS:
        raise ValueError(f"exit.weight must have at most {_EXIT_WEIGHTS} values, got {list(parts['weight'].shape)}")
    found = ExitParameters(**parts)
    found.check_for(spec, config)
    return found


def _check_shapes(prefix: str, tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    for key, shape in shapes.items():
        if key not in tensors:
            raise KeyError(f"{prefix}{key}")
        if tensors[key].shape != shape:
            raise ValueError(f"{prefix}{key} must have shape {list(shape)}, got {list(tensors[key].shape)}")


def _check_floats(
    prefix: str, tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> None:
    """Raises unless these are the values of those shapes and no others, all finite float32. dtypes: those of the values that are no
    floats."""
    _check_shapes(prefix, tensors, shapes)
    if others := sorted(tensors.keys() - shapes.keys()):
        raise ValueError(f"it has no value {prefix}{shortened(others[0])}")
    for key, value in tensors.items():
        kind = f"torch.{dtypes.get(key, 'int64' if key.endswith(_COUNTER) else 'float32')}"
        if str(value.dtype) != kind:
            raise ValueError(f"{prefix}{key} must be {kind}, got {value.dtype}")
        if key not in dtypes:
            check_magnitude(f"{prefix}{key}", value)


def _thresholds(values: Any) -> tuple[float, float]:
    if not isinstance(values, list) or len(values) != 2 or not all(map(finite_float32, values)):
        raise ValueError(f"thresholds must be two finite numbers, got {values!r}")
    lower, upper = map(float, values)
    if lower > upper:
        raise ValueError(f"thresholds must be the lower and the upper one in this order, got {values!r}")
    return lower, upper


def _running(header: dict[str, Any]) -> tuple[float, tuple[float, float]] | None:
    """Momentum and thresholds of `set_running_thresholds`, where they run; else None."""
    if "running" not in header:
        return None
    return header["running"]["momentum"], _thresholds(header["running"]["thresholds"])


_HOW = (
    "make one of it with `adabm calibrate --weights FILE --images FOLDER -o MODEL.safetensors`, or in Python with "
    "adabm_kernels.convert_model and adabm_kernels.save"
)


def _section(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _what_else(path: Path) -> str:
    """Says in words of which kind a file may be that is no safetensors file."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return f"a PyTorch checkpoint, not a converted model: {_HOW}"
    return "not a safetensors file, or a truncated one"
