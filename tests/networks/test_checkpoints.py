"""Checkpoints as training programs leave them: every usual file is read, no code in one is run, and the network inside is found."""

import argparse
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small import repeating_edsr, small_edsr
from torch import nn

from adabm_kernels import ConvertConfig, convert_model, networks
from adabm_kernels.calibrate import calibrate
from adabm_kernels.networks.checkpoints import candidates, load_state
from adabm_kernels.networks.detect import detect, float_network, to_float_state, unwrap
from adabm_kernels.networks.edsr import EDSRSpec

SPEC = EDSRSpec(scale=2, blocks=2, channels=8)


def float_state(seed=0):
    return small_edsr(seed).state_dict()


def prefixed(prefix, seed=0):
    return {prefix + key: value for key, value in float_state(seed).items()}


def read(checkpoint, **settings):
    """The float weights in a checkpoint, and what they were found to be."""
    found = detect(checkpoint, **settings)
    return to_float_state(checkpoint, found), found


def same(got, want):
    return got.keys() == want.keys() and all(torch.equal(got[key], want[key].float()) for key in want)


# ---- conversions


def test_a_conversion_looks_for_the_network_once(monkeypatch):
    """What was found travels on, from a checkpoint of float weights and from a calibrated state dict."""
    looked, chosen = [], networks.detect._chosen
    monkeypatch.setattr(networks.detect, "_chosen", lambda *given: looked.append(given[1]) or chosen(*given))
    config = ConvertConfig(recipe="paper", steps=0)
    convert_model({"generator": float_state()}, [torch.rand(1, 3, 32, 32) * 255], config, weights_key="generator")
    assert looked == ["generator"]
    calibrated = calibrate(float_state(), [torch.rand(1, 3, 32, 32) * 255], config, check=False).state_dict()
    looked.clear()
    assert convert_model({"generator": calibrated}, config=config).spec == SPEC and looked == [None]


# ---- files


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".ckpt", ".pth.tar", ".bin", ".pkl", ".PTH", ".SafeTensors"])
def test_load_state_reads_what_was_saved(tmp_path, suffix):
    path, state = tmp_path / f"model{suffix}", float_state()
    if suffix.lower() == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    for got in (load_state(path), load_state(str(path))):
        assert got.keys() == state.keys() and all(torch.equal(got[key], state[key]) for key in state)


def test_load_state_names_the_file_that_is_missing_or_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*nowhere.pt"):
        load_state(tmp_path / "nowhere.pt")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a checkpoint ends in .safetensors, .pt, .* or .pkl, got .*model.onnx"):
        load_state(tmp_path / "model.onnx")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match=r"tensor.pt holds a Tensor, not a state dict"):
        load_state(tmp_path / "tensor.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ValueError, match="folder.pt is damaged or not a checkpoint"):
        load_state(tmp_path / "folder.pt")


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was run",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_load_state_runs_no_code(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"head": Payload()}, tmp_path / "evil.pth")
    for name in ("evil.pt", "evil.pth"):
        with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
            load_state(tmp_path / name)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150)
@given(data=st.binary(max_size=40), suffix=st.sampled_from([".pt", ".safetensors"]))
def test_load_state_survives_any_bytes(tmp_path_factory, data, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    try:
        load_state(path)
    except ValueError as error:
        assert "not a" in str(error)


def test_a_legacy_file_and_safetensors_under_another_name(tmp_path):
    state = float_state()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "model.bin")
    for name in ("old.pth", "model.bin"):
        assert same(load_state(tmp_path / name), state)


def test_numbers_of_numpy_are_read(tmp_path):
    values = {"best_psnr": np.float64(32.1), "epoch": np.int64(7), "state_dict": float_state()}
    torch.save(values, tmp_path / "m.pt")
    state = load_state(tmp_path / "m.pt")
    assert (state["best_psnr"], state["epoch"]) == (32.1, 7) and same(read(state)[0], float_state())


@pytest.mark.parametrize("extra", [argparse.Namespace(scale=2), np.array([1.0, 2.0])], ids=["namespace", "array"])
def test_a_class_that_is_no_tensor_is_named_with_what_to_do(tmp_path, monkeypatch, extra):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": float_state(), "args": extra}, "m.pt")
    with pytest.raises(ValueError) as error:
        load_state("m.pt")
    message = str(error.value)
    name = "argparse.Namespace" if isinstance(extra, argparse.Namespace) else "numpy.ndarray"
    assert f"it holds {name}" in message or f", {name};" in message
    assert "\x1b" not in message and "weights_only=False" not in message
    # The two lines of the message do what they say.
    modules, load, save = re.search(r"import (.+) and save its weights alone with `(.+?)` and `(.+?)`", message).groups()
    exec(f"import {modules}\n{load}\n{save}", {})
    assert same(load_state("weights.pt"), float_state())


class OfTheProgram:
    pass


def test_a_class_of_the_program_itself_sends_back_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(OfTheProgram, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "OfTheProgram", OfTheProgram, raising=False)
    torch.save({"state_dict": float_state(), "config": OfTheProgram()}, tmp_path / "m.pt")
    torch.save({"config": OfTheProgram()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("m.pt", "old.pt"):
        with pytest.raises(ValueError, match="it holds __main__.OfTheProgram; in the program that made it, save the weights"):
            load_state(tmp_path / name)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_whole_network_is_told_from_its_weights(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(3, 3, 3)), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"holds torch.nn.modules.*; in the program that made it, .*save\(model.state_dict\(\)"):
        load_state(tmp_path / "net.pt")
    torch.jit.script(nn.Conv2d(3, 3, 3)).save(tmp_path / "script.pt")
    with pytest.raises(ValueError, match=r"is a TorchScript program, .*torch.jit.load\('script.pt'\).state_dict\(\)"):
        load_state(tmp_path / "script.pt")


# ---- wrappings


WRAPPERS = ["state_dict", "params", "params_ema", "model", "model_state_dict", "net", "generator", "network_g", "weights", "ema"]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "net.generator.", "_orig_mod."])
def test_wrappers_and_prefixes(wrapper, prefix):
    state = {prefix + key: value for key, value in float_state().items()}
    for checkpoint in ({wrapper: state, "epoch": 3}, {"model": {wrapper: state}}, state, state | {"epoch": 3}):
        weights, found = read(checkpoint)
        assert found.spec == SPEC and same(weights, float_state())
    name = re.sub(r"module\.|_orig_mod\.", "", prefix).rstrip(".")
    assert detect({wrapper: state}).source == ".".join(filter(None, [wrapper, name]))


def test_averaged_weights_come_first():
    state = float_state()
    other = {key: value + 1 for key, value in state.items()}
    assert torch.equal(unwrap({"params": other, "params_ema": state})["head.0.bias"], state["head.0.bias"])


def averaged():
    return torch.optim.swa_utils.AveragedModel(small_edsr()).state_dict()


def profiled():
    zero = torch.zeros(1, dtype=torch.float64)
    return float_state() | {f"{name}{key}": zero for name in ("", "head.0.", "body.") for key in ("total_ops", "total_params")}


def inner_compiled():
    return {re.sub(r"^body\.", "body._orig_mod.", key): value for key, value in float_state().items()}


def of_parameters():
    return {key: nn.Parameter(value) for key, value in float_state().items()}


@pytest.mark.parametrize("make", [averaged, profiled, inner_compiled, of_parameters])
def test_what_training_leaves_among_the_weights(make):
    weights, found = read(make())
    assert same(weights, float_state()) and (found.source, found.left_out) == ("", ())
    assert not any(value.requires_grad for value in weights.values())


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("old", [True, False], ids=["weight_norm", "parametrizations"])
def test_weight_norm(old):
    """Magnitude times direction over its length (Salimans and Kingma, NeurIPS 2016), as torch computes it."""
    edsr = small_edsr()
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    for conv in [module for module in edsr.modules() if isinstance(module, nn.Conv2d)]:
        norm(conv)
        for parameter in conv.parameters():
            parameter.data *= 1.5
    assert any(("weight_g" if old else "original0") in key for key in edsr.state_dict())
    weights, found = read(edsr.state_dict())
    restored, x = float_network(found.spec), torch.rand(1, 3, 9, 8) * 255
    restored.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(restored(x), edsr(x), rtol=1e-5, atol=1e-3)
    convert_model(edsr, [torch.rand(1, 3, 16, 16) * 255], ConvertConfig(recipe="paper"))


def test_one_network_among_others_is_taken_and_the_rest_named():
    state = prefixed("model.") | {"val_psnr.total": torch.zeros(()), "criterion.weight": torch.ones(3)}
    weights, found = read({"state_dict": state, "hyper_parameters": {"lr": 1e-4}, "callbacks": {}, "optimizer_states": [{}]})
    assert same(weights, float_state()) and found.source == "state_dict.model"
    assert found.left_out == ("val_psnr.total", "criterion.weight")
    gan = {"generator": float_state(), "discriminator": {"features.0.weight": torch.ones(4, 3, 3, 3)}, "epoch": 3}
    assert read(gan)[1].source == "generator"


def test_of_several_networks_one_must_be_named():
    checkpoint = {"state_dict": prefixed("generator.") | prefixed("generator_ema.", seed=1) | {"step_counter": torch.zeros(1)}}
    want = "holds several networks, 'state_dict.generator', 'state_dict.generator_ema': name one of them as weights_key"
    with pytest.raises(ValueError, match=want):
        detect(checkpoint)
    for key in ("generator_ema", "state_dict.generator_ema"):
        weights, found = read(checkpoint, weights_key=key)
        assert same(weights, float_state(seed=1)) and found.source == "state_dict.generator_ema"
        assert same(unwrap(checkpoint, key), float_state(seed=1))
    with pytest.raises(
        ValueError, match="weights_key must name one part of the checkpoint, of 'state_dict.generator', .*, got 'ema'"
    ):
        detect(checkpoint, weights_key="ema")
    with pytest.raises(ValueError, match="weights_key must be left out for a checkpoint without parts, got 'ema'"):
        detect(float_state(), weights_key="ema")
    model = convert_model(checkpoint, [torch.rand(1, 3, 16, 16) * 255], ConvertConfig(recipe="paper"), weights_key="generator")
    assert same(model.float_state, float_state())
    assert model.report["calibration"]["weights"]["source"] == "state_dict.generator"
    # Two copies of one network are one.
    assert detect({"a": float_state(), "b": float_state()}).source == "a"


def test_a_part_that_is_named_is_judged_by_itself():
    checkpoint = {"net": float_state(), "loss": {"weight": torch.ones(3)}}
    with pytest.raises(ValueError, match="not an EDSR, .* state dict: .*; got 'weight'.*convert_model takes the module"):
        detect(checkpoint, weights_key="loss")


def test_a_module_with_more_than_the_network_is_refused():
    class Enhancer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.sharpen = repeating_edsr(), nn.Conv2d(3, 3, 3)

    with pytest.raises(
        ValueError, match="'net' of the module has other weights beside it, 'sharpen.weight', .*: pass module.net alone"
    ):
        convert_model(Enhancer(), [torch.rand(1, 3, 16, 16) * 255])


def test_what_is_not_a_state_dict():
    with pytest.raises(TypeError, match="mapping from names to tensors, got list"):
        detect([torch.ones(1)])
    with pytest.raises(TypeError, match="mapping from names to tensors, got dict"):
        detect({1: torch.ones(1)})
    with pytest.raises(ValueError, match="state_dict is empty"):
        detect({})
    with pytest.raises(ValueError, match="must hold tensors by name, got other values at 'params'"):
        detect({"params": list(float_state().values())})


def test_dictionaries_that_hold_themselves_end():
    checkpoint = {"net": float_state()}
    checkpoint["self"] = checkpoint
    assert candidates(checkpoint)[0].label == "net" and detect({"net": float_state()}).source == "net"
