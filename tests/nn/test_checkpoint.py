"""Converted models as files: what is saved is what is loaded, and everything else is refused in a sentence."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small import one_thread  # noqa: F401

import adabm_kernels
from adabm_kernels.calibrate import calibrate
from adabm_kernels.checkpoint import FORMAT_VERSION, HEADER_KEY, load, save
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.networks.detect import float_network
from adabm_kernels.networks.edsr import EDSR, EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.nn import ConvertedNetwork

NETWORKS = {
    "full": (EDSRSpec(4, 2, 6), ConvertConfig(batch=2, residual="float32")),
    "staged": (
        EDSRSpec(2, 2, 5, mean_shift=False),
        ConvertConfig(batch=2, weight_bits=6, act_bits=5, tail="staged", residual="float32"),
    ),
    "body": (EDSRSpec(3, 1, 6, tail="single", res_scale=0.1), ConvertConfig(batch=2, quantize="body")),
    "rdn": (RDNSpec(3, 2, 2, 4, 6), ConvertConfig(batch=2, recipe="paper")),
    "rdn_body": (RDNSpec(2, 1, 2, 3, 5), ConvertConfig(batch=2, recipe="paper", quantize="body")),
    "srresnet": (SRResNetSpec(4, 1, 4, bias=True, slopes=4, unit_range=True), ConvertConfig(batch=2, recipe="paper")),
    "srresnet_body": (SRResNetSpec(2, 1, 4, res_scale=0.5), ConvertConfig(batch=2, recipe="paper", quantize="body")),
    "fixed": (EDSRSpec(2, 1, 4), ConvertConfig(batch=2, adaptive=False, act_bits=8, tail="staged", residual="float32")),
    "int16": (EDSRSpec(2, 1, 4), ConvertConfig(batch=2, recipe="paper", tail="staged", residual="int16")),
}
X = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(1)) * 255


def converted(name: str) -> ConvertedNetwork:
    spec, config = NETWORKS[name]
    torch.manual_seed(0)
    images = torch.rand(2, 3, 18, 17, generator=torch.Generator().manual_seed(0)) * 255
    return convert_model(calibrate(float_network(spec), [images], config, res_scale=spec.res_scale))


@pytest.fixture(scope="module")
def models() -> dict[str, ConvertedNetwork]:
    return {name: converted(name) for name in NETWORKS}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_loaded_computes_what_was_saved(models: dict[str, ConvertedNetwork], name: str, tmp_path: Path) -> None:
    model = models[name]
    adabm_kernels.save(model, tmp_path / "m.safetensors")
    loaded = adabm_kernels.load(str(tmp_path / "m.safetensors"))
    assert torch.equal(loaded(X), model(X))
    assert torch.equal(loaded.mean_bits(X), model.mean_bits(X))
    assert (loaded.spec, loaded.config, loaded.thresholds) == (model.spec, model.config, model.thresholds)
    assert loaded.fraction == model.fraction and (model.fraction is not None) == (name == "int16")
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded.float_model()(X), model.float_model()(X))
    again = tmp_path / "again.safetensors"
    save(loaded, again)
    assert again.read_bytes() == (tmp_path / "m.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["staged", "body", "fixed"])
def test_float_weights_can_be_left_out(models: dict[str, ConvertedNetwork], name: str, tmp_path: Path) -> None:
    model = models[name]
    save(model, tmp_path / "with.safetensors")
    save(model, tmp_path / "without.safetensors", include_float=False)
    assert (tmp_path / "without.safetensors").stat().st_size < (tmp_path / "with.safetensors").stat().st_size
    loaded = load(tmp_path / "without.safetensors")
    assert torch.equal(loaded(X), model(X))
    with pytest.raises(ValueError, match="carries no float weights .save with include_float=True."):
        loaded.float_model()


def test_a_collapsed_tail_keeps_its_float_weights(models: dict[str, ConvertedNetwork], tmp_path: Path) -> None:
    assert models["full"].collapsed is not None
    with pytest.raises(ValueError, match="include_float must be True for a model with a collapsed tail"):
        save(models["full"], tmp_path / "m.safetensors", include_float=False)
    assert not list(tmp_path.iterdir())


def test_the_header_is_json_with_a_format_version(models: dict[str, ConvertedNetwork], tmp_path: Path) -> None:
    save(models["full"], tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
        keys = list(file.keys())
        assert file.get_tensor("conv.body.0.conv1.codes").dtype == torch.int8
    assert header["format"] == FORMAT_VERSION and header["network"] == "edsr"
    assert {key.split(".")[0] for key in keys} == {"conv", "float", "exit"} and models["full"].exit is not None


def test_files_of_before_features_of_16_bits_compute_as_before(models: dict[str, ConvertedNetwork], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(models["full"], path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    del header["fraction"], header["config"]["residual"]  # "auto" then
    save_file(tensors, path, {HEADER_KEY: json.dumps(header | {"format": 5})})
    loaded = load(path)
    assert loaded.fraction is None and torch.equal(loaded(X), models["full"](X))


# ---- writing


def test_a_saved_file_has_the_permissions_of_the_umask(models: dict[str, ConvertedNetwork], tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save(models["fixed"], tmp_path / "m.safetensors")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    models: dict[str, ConvertedNetwork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "m.safetensors"
    save(models["fixed"], path)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(failure)) as caught:
        save(models["body"], path)
    if isinstance(failure, OSError):
        assert str(caught.value) == f"cannot write '{path}': No space left on device"
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_save_names_what_is_wrong(models: dict[str, ConvertedNetwork], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"save: model must be a converted model \(convert_model\), got EDSR"):
        save(EDSR(EDSRSpec(2, 1, 4)), tmp_path / "m.safetensors")
    with pytest.raises(FileNotFoundError, match="cannot write '.*absent/m.safetensors': No such file"):
        save(models["fixed"], tmp_path / "absent" / "m.safetensors")
    with pytest.raises(IsADirectoryError, match=f"cannot write '{tmp_path}'"):
        save(models["fixed"], tmp_path)
    assert not list(tmp_path.iterdir())


# ---- reading something else


def test_other_files_are_named_for_what_they_are(models: dict[str, ConvertedNetwork], tmp_path: Path) -> None:
    state = EDSR(EDSRSpec(2, 1, 4)).state_dict()
    path = tmp_path / "m.safetensors"
    how = "make one of it with `adabm calibrate --weights FILE"

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load(path)
        assert str(caught.value).startswith(f"load: {path} ")

    save_file(state, path)
    refused(f"is a float checkpoint, not a converted model: {how}")
    save_file({"pixels": torch.zeros(3)}, path)
    refused(f"is a file of other tensors, not a converted model: {how}")
    torch.save(state, path)
    refused(f"is a PyTorch checkpoint, not a converted model: {how}")
    torch.save(state, path, _use_new_zipfile_serialization=False)
    refused("is a PyTorch checkpoint")
    for content in (b"", b"short", b"\x89PNG\r\n\x1a\n" + bytes(100)):
        path.write_bytes(content)
        refused("is not a safetensors file, or a truncated one")
    for missing in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"load: no model file at {missing} .adabm_kernels.builtin_models"):
            load(missing)


def test_a_cut_file_is_refused_wherever_it_is_cut(models: dict[str, ConvertedNetwork], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save(models["fixed"], whole)
    data = whole.read_bytes()
    for length in [*range(0, len(data), len(data) // 40), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match="is not a safetensors file, or a truncated one"):
            load(cut)


Edit = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]
CONV = "body.0.conv1"


def conv_holds(**values: Any) -> Edit:
    """Changes what the file holds of CONV; a tensor by a function of it."""

    def edit(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for key, value in values.items():
            if callable(value):
                tensors[f"conv.{CONV}.{key}"] = value(tensors.get(f"conv.{CONV}.{key}")).contiguous()
            else:
                header["convs"][CONV][key] = value

    return edit


HEADER_ERRORS: list[tuple[str, Edit, str]] = [
    ("blocks", lambda h, t: h["spec"].update(blocks=10**9), "blocks must be an integer from 1 to 1000, got 1000000000"),
    ("format", lambda h, t: h.update(format=99), f"its format is 99, and this version reads 1 to {FORMAT_VERSION}"),
    (
        "network",
        lambda h, t: h.update(network="swinir"),
        "its network is 'swinir', and this version knows 'edsr', 'rdn', 'srresnet'",
    ),
    *[
        (f"no {key}", lambda h, t, key=key: h.pop(key), f"'{key}' is missing")
        for key in ("format", "network", "spec", "config", "convs", "thresholds")
    ],
    ("no conv", lambda h, t: h["convs"].pop("body.0.conv2"), "'body.0.conv2' is missing"),
    ("no scalar", lambda h, t: h["convs"]["head.0"].pop("lower"), "'lower' is missing"),
    ("no tensor", lambda h, t: t.pop("conv.tail.1.codes"), "'conv.tail.1.codes' is missing"),
    ("spec", lambda h, t: h["spec"].update(scale=5), "EDSRSpec: scale must be 2, 3 or 4, got 5"),
    ("spec field", lambda h, t: h["spec"].update(depth=5), "unexpected keyword argument 'depth'"),
    ("config", lambda h, t: h["config"].update(act_bits=9), "ConvertConfig: act_bits must be 2..8, got 9"),
    ("config list", lambda h, t: h.update(config=[]), "'list' object"),
    ("config field", lambda h, t: h["config"].update(colour="red"), r"ConvertConfig: unknown fields \['colour'\]"),
    ("no fraction", lambda h, t: h.pop("fraction"), "'fraction' is missing"),
    (
        "fraction",
        lambda h, t: (h["config"].update(residual="auto"), h.update(fraction=25)),
        "fraction must be a whole number in -16..24, got 25",
    ),
    (
        "half a fraction",
        lambda h, t: (h["config"].update(residual="auto"), h.update(fraction=1.5)),
        "fraction must be a whole number in -16..24, got 1.5",
    ),
    (
        "true fraction",
        lambda h, t: (h["config"].update(residual="auto"), h.update(fraction=True)),
        "fraction must be a whole number in -16..24, got True",
    ),
    (
        "a fraction against the settings",
        lambda h, t: (h["config"].update(residual="float32"), h.update(fraction=3)),
        "residual is 'float32' in its config, and it has the fraction 3",
    ),
    (
        "the settings of a fraction",
        lambda h, t: h["config"].update(residual="int16"),
        "residual is 'int16' in its config, and it has no fraction",
    ),
    (
        "a fraction with floats around the blocks",
        lambda h, t: (h["config"].update(quantize="body", residual="auto"), h.update(fraction=3)),
        "residual must be 'auto' or 'float32' here, got 'int16': with quantize='body' convolutions in float",
    ),
    ("thresholds", lambda h, t: h.update(thresholds=None), "thresholds must be two finite numbers, got None"),
    ("one threshold", lambda h, t: h.update(thresholds=[1.0]), r"thresholds must be two finite numbers, got \[1.0\]"),
    ("threshold", lambda h, t: h.update(thresholds=[1.0, "2"]), r"thresholds must be two finite numbers, got \[1.0, '2'\]"),
    ("convs", lambda h, t: h.update(convs=[]), "must be|indices|list"),
    ("act_bits", conv_holds(act_bits=99), f"ConvParameters: act_bits of '{CONV}' must be a whole number in 2..8, got 99"),
    ("act_bits text", conv_holds(act_bits="4"), "act_bits of .* must be a whole number in 2..8, got '4'"),
    ("weight_bits", conv_holds(weight_bits=1), "weight_bits of .* in 2..8, got 1"),
    ("layer_offset", conv_holds(layer_offset=5), "layer_offset of .* in -1..1, got 5"),
    ("digits", conv_holds(digits=3), "digits of .* in 1..2, got 3"),
    ("adaptive", conv_holds(adaptive=1), "adaptive of .* must be true or false, got 1"),
    ("weight_grid", conv_holds(weight_grid="x"), r"weight_grid of .* must be one of \('odd', 'signed'\), got 'x'"),
    ("crossed range", conv_holds(lower=9.0, upper=1.0), "lower of .* must be below upper, 1.0, got 9.0"),
    ("range", conv_holds(upper=float("inf")), "upper of .* must be a finite number of float32, got inf"),
    ("few codes", conv_holds(codes=lambda x: x[:3]), r"codes must have shape \[6, 6, 3, 3\], got \[3, 6, 3, 3\]"),
    ("codes 2d", conv_holds(codes=lambda x: x[0, 0]), r"codes must have shape \[6, 6, 3, 3\], got \[3, 3\]"),
    ("float codes", conv_holds(codes=lambda x: x + 0.5), r"codes of .* must be int8 \[K, C, R, S\], got torch.float32"),
    ("wide codes", conv_holds(codes=lambda x: torch.full_like(x, 100)), r"codes of .* must be in -8..7, got .*, 100..100"),
    ("bias", conv_holds(bias=lambda x: x[:5]), r"bias of .* must be finite float32 \[6\], got torch.float32 \[5\]"),
    ("weight range", conv_holds(weight_upper=lambda x: x[:5]), r"weight_upper of .* finite float32 \[1\] or \[6\], above 0, got"),
    ("nan", conv_holds(weight_upper=lambda x: x * float("nan")), "weight_upper of .* above 0, got .*, nan..nan"),
    ("zero", conv_holds(weight_upper=lambda x: x * 0), "weight_upper of .* above 0, got .*, 0..0"),
    ("shift", conv_holds(input_shift=lambda x: torch.zeros(5)), r"input_shift of .* must be finite float32 \[6\], or None, got"),
    ("floats", lambda h, t: t.update({"float.head.0.bias": torch.zeros(2)}), r"float.head.0.bias must have shape \[6\], got \[2\]"),
    ("no float", lambda h, t: t.pop("float.head.0.bias"), "'float.head.0.bias' is missing"),
]


@pytest.mark.parametrize("what, edit, message", HEADER_ERRORS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_header_that_is_not_ours_is_refused(
    models: dict[str, ConvertedNetwork], tmp_path: Path, what: str, edit: Edit, message: str
) -> None:
    path = tmp_path / "m.safetensors"
    save(models["full"], path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    edit(header, tensors)
    save_file(tensors, path, {HEADER_KEY: json.dumps(header)})
    with pytest.raises(ValueError, match=f"is not a model that this version can read: .*({message})"):
        load(path)


def test_values_left_in_float_have_the_shapes_of_the_network(models: dict[str, ConvertedNetwork], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(models["body"], path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in list(file.keys())}
    save_file(tensors | {"plain.head.0.weight": torch.zeros(6, 3, 1, 1)}, path, metadata)
    with pytest.raises(ValueError, match=r"plain.head.0.weight must have shape \[6, 3, 3, 3\], got \[6, 3, 1, 1\]"):
        load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null"])
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"pixels": torch.zeros(3)}, path, {HEADER_KEY: text})
    with pytest.raises(ValueError, match=f"load: {path} is (not a model that this version can read|a file of other)"):
        load(path)


def test_a_wrong_backend_is_not_blamed_on_the_file(
    models: dict[str, ConvertedNetwork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(models["fixed"], tmp_path / "m.safetensors")
    monkeypatch.setenv("ADABM_BACKEND", "abacus")
    with pytest.raises(ValueError, match="^ADABM_BACKEND must be one of"):
        load(tmp_path / "m.safetensors")
