"""The commands with a model on a device that is not the CPU: nothing is mixed, goes to numpy from there, or is timed too early."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from small import one_thread  # noqa: F401

from adabm_kernels.images import Layout
from adabm_kernels.models import builtin_models, load_model
from adabm_kernels.nn import layer_times, timing
from adabm_kernels.report.bitmap import bit_map
from adabm_kernels.upscale import upscale
from adabm_kernels.upscaling.patchwise import FloatPatchwise, Patchwise

RNG = np.random.default_rng(7)
pytestmark = pytest.mark.skipif("edsr_x4_w4a4" not in builtin_models(), reason="the built-in model's file is not there")


@pytest.fixture
def there(empty_folder: Path, adabm: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs a command that takes its model to DEVICE, in a folder with two pictures, and gives what it printed."""
    monkeypatch.setattr(importlib.import_module("adabm_kernels.models"), "device_for", lambda backend: DEVICE.type)
    for name, channels in (("rgb.png", 3), ("rgba.png", 4)):
        PIL.Image.fromarray(RNG.integers(0, 256, (20, 24, channels), dtype=np.uint8)).save(empty_folder / name)

    def run(command: str, *argv: str) -> str:
        backend = [] if command == "report" else ["--backend", "reference"]
        with Elsewhere():
            status, out, err = adabm(command, *argv, *backend, "--threads", 1)
        assert status == 0, err
        return out

    return run


@pytest.mark.parametrize("argv", [("rgb.png",), ("rgba.png", "--tile", "16"), ("rgb.png", "--tta")], ids=" ".join)
def test_upscale(there: Callable, empty_folder: Path, argv: tuple[str, ...]) -> None:
    there("upscale", *argv, "-o", "there.png")
    options = {"tile": 16} if "--tile" in argv else {"tta": "--tta" in argv}
    here = upscale(argv[0], "edsr_x4_w4a4", backend="reference", device="cpu", **options)
    with PIL.Image.open("there.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(here))


def test_compare_waits_for_the_device(there: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(timing, "wait_for", waited.append)
    report = json.loads(there("upscale", "rgb.png", "--compare", "--json"))
    assert report["psnr_db"] > 10 and report["float_seconds"] > 0
    assert set(waited) == {DEVICE} and len(waited) == 1 + 2 * report["runs"]  # the float model's warming up, and both in turn


def test_the_float_model_goes_where_the_converted_one_is() -> None:
    model = load_model("edsr_x4_w4a4")
    with Elsewhere():
        floats = FloatPatchwise(model.float_model(), Patchwise(model.to(DEVICE)))
        assert {parameter.device for parameter in floats.network.parameters()} == {DEVICE}


def test_a_layer_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given to a card before it is waited for first."""
    calls: list[str] = []
    model = load_model("edsr_x4_w4a4")
    conv = model.convs()[0]
    monkeypatch.setattr(type(conv), "into", lambda *args: calls.append("runs"))
    monkeypatch.setattr(layer_times, "wait_for", lambda device: calls.append("waits"))
    with layer_times.layer_times(model):
        conv.into(None)
    assert calls == ["waits", "runs", "waits"]


def test_report(there: Callable, empty_folder: Path) -> None:
    there("report", "rgb.png", "-o", "page.html")
    assert "float model" in (empty_folder / "page.html").read_text()


def test_eval(there: Callable, empty_folder: Path) -> None:
    (empty_folder / "data").mkdir()
    (empty_folder / "rgb.png").rename(empty_folder / "data" / "rgb.png")
    assert "PSNR-Y" in there("eval", "--data", "data")


def test_bits_of_offsets_in_main_memory() -> None:
    model = load_model("edsr_x4_w4a4")
    network, patches = Patchwise(model, tile=16), []
    layout = Layout(40, 20, 3)
    rows = RNG.integers(0, 256, (20, 40, 3), dtype=np.uint8)
    network.array(rows, layout, record=patches)
    want = bit_map(model, patches, 40, 20)
    with Elsewhere():
        got = bit_map(model.to(DEVICE), patches, 40, 20)
    assert np.array_equal(got.bits, want.bits) and got.groups == want.groups
