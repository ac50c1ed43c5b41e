"""`adabm calibrate` and `adabm eval` on files of ncnn and ONNX, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from imported_networks import Wrapped
from ncnn_files import write_ncnn
from safetensors.torch import load_file
from small import one_thread, repeating_edsr, same  # noqa: F401
from test_onnx import exported
from torch import nn

from adabm_kernels.networks.detect import adabm_name

QUICK = ["--images", "photos", "--recipe", "paper", "--steps", "0", "--threads", "1", "--no-check"]

pytestmark = pytest.mark.filterwarnings("ignore:--images holds")


@pytest.fixture
def network(empty_folder: Path) -> nn.Module:
    """A working directory with an EDSR x2 of one network as w.pt, n.param with n.bin, and o.onnx, and two pictures in photos."""
    network = repeating_edsr(blocks=1, channels=4, res_scale=0.5)
    torch.save(network.state_dict(), "w.pt")
    state = {adabm_name(key): value for key, value in network.state_dict().items()}
    write_ncnn(Path("n.param"), network.spec.graph(), state)
    exported(Wrapped(network).eval(), Path("o.onnx"))
    Path("photos").mkdir()
    rng = np.random.default_rng(7)
    for name in "ab":
        PIL.Image.fromarray(rng.integers(0, 255, (40, 36, 3), np.uint8)).save(f"photos/{name}.png")
    return network


def test_calibrate_makes_the_model_of_the_checkpoint(network: nn.Module, adabm) -> None:
    assert adabm("calibrate", "--weights", "w.pt", "--res-scale", "0.5", "-o", "w.safetensors", *QUICK)[0] == 0
    want = load_file("w.safetensors")
    for name in ("n.param", "n.bin", "o.onnx"):
        status, out, err = adabm("calibrate", "--weights", name, "-o", "m.safetensors", "--overwrite", *QUICK)
        assert (status, err) == (0, "") and "edsr x2" in out
        assert same(load_file("m.safetensors"), want)  # with the residual scale, which the graph tells


def test_provenance_is_of_both_files(network: nn.Module, adabm) -> None:
    digests = []
    for _ in range(2):
        _, out, _ = adabm("calibrate", "--weights", "n.param", "-o", "m.safetensors", "--overwrite", "--json", "-", *QUICK)
        digests.append(json.loads(out)["provenance"]["weights"]["sha256"])
        data = Path("n.bin").read_bytes()
        Path("n.bin").write_bytes(data[:-4] + b"\0\0\0\0")
    assert len(set(digests)) == 2


def test_eval_takes_them_as_float_models(network: nn.Module, adabm) -> None:
    figures = []
    for name, options in {"w.pt": ["--res-scale", "0.5"], "n.param": [], "o.onnx": []}.items():
        status, out, err = adabm("eval", "--model", name, "--data", "photos", "--no-check", "--json", "-", *options)
        assert (status, err) == (0, "")
        figures.append(json.loads(out)["mean"])
    assert figures[0] == figures[1] == figures[2]


@pytest.mark.parametrize("command", ["calibrate", "eval"])
def test_what_is_wrong_is_one_sentence(network: nn.Module, command: str, adabm) -> None:
    Path("n.bin").unlink()
    options = {
        "calibrate": ["--weights", "n.param", "-o", "m.safetensors", *QUICK],
        "eval": ["--model", "n.param", "--data", "photos"],
    }
    status, out, err = adabm(command, *options[command])
    assert (status, out) == (2, "")
    assert err == "adabm: error: n.param: its weights are missing: 'n.bin' must lie beside it\n"
