"""Calibration on another device than the CPU: the same operations in the same places, so the same result to the bit."""

from __future__ import annotations

import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from small import NETWORKS, images, one_thread, small_edsr  # noqa: F401

from adabm_kernels import ConvertConfig, convert_model
from adabm_kernels.calibrate import EXIT_WORK, calibrate
from adabm_kernels.calibration.tune import compute_dtype
from adabm_kernels.config import BestTuning, PaperTuning

BEST = {"steps": 3, "tuning": BestTuning(batch=2, patch=16, warmup=1)}
PAPER = {"recipe": "paper", "steps": 6, "tuning": PaperTuning(epoch=2, batch=2, patch=16)}


@pytest.fixture(autouse=True)
def float32_products(monkeypatch):
    """The CPU may multiply in bfloat16 while fine-tuning."""
    monkeypatch.setattr("adabm_kernels.calibration.tune.compute_dtype", lambda device: None)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(b[key].device.type == "cpu" and torch.equal(a[key], b[key]) for key in a)


def test_the_stand_in_refuses_what_a_gpu_would() -> None:
    x = torch.ones(2)
    with Elsewhere():
        there = x.to(DEVICE)
        assert there.device == DEVICE and (there + 1).cpu().tolist() == [2, 2]
        with pytest.raises(RuntimeError, match="same device"):
            there + x
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()


@pytest.mark.parametrize("settings", [BEST, PAPER], ids=["best", "paper"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_is_that_of_the_cpu(name: str, settings: dict) -> None:
    # Factors on channels index tensors by lists, which the stand-in cannot do as a device does.
    config = ConvertConfig(**settings, equalize="off")
    torch.manual_seed(0)
    network, pictures = NETWORKS[name](), [images(2, 3, 16, 18)]
    want = calibrate(network, pictures, config)
    with Elsewhere():
        got = calibrate(network, pictures, config, device=DEVICE)
    assert same(want, got) and want.report["losses"] == got.report["losses"]
    x = images(1, 3, 16, 16)
    assert torch.equal(convert_model(want)(x), convert_model(got)(x))


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": "paper", "act_ranges": "percentile", "weight_ranges": "percentile"},
        {"recipe": "paper", "act_ranges": "omse", "weight_ranges": "minmax"},
        {"weight_bits": 6, "act_bits": 6, "tail": "staged"},
        {"adaptive": False, "quantize": "body"},
    ],
    ids=["percentile", "omse", "w6a6", "fixed"],
)
def test_so_do_other_ranges(settings: dict) -> None:
    config, network, pictures = ConvertConfig(**settings), small_edsr(blocks=1, channels=4), [images(2, 3, 16, 18)]
    want = calibrate(network, pictures, config)
    with Elsewhere():
        assert same(want, calibrate(network, pictures, config, device=DEVICE))


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # it does copy
def test_a_run_may_go_on_elsewhere(tmp_path) -> None:
    """What is kept of an interrupted run lies on the CPU, and another device continues it."""
    config, network, pictures = ConvertConfig(**BEST, residual="float32"), small_edsr(blocks=1, channels=4), [images(2, 3, 16, 18)]
    want = calibrate(network, pictures, config)

    def stop(done: int, total: int, stage: str) -> None:
        if stage == "fine-tuning" and done == total - EXIT_WORK - 1:
            raise KeyboardInterrupt

    kept = tmp_path / "kept"
    with Elsewhere(), pytest.raises(KeyboardInterrupt):
        calibrate(network, pictures, config, stop, resume=kept, device=DEVICE)
    assert all(value.device.type == "cpu" for value in torch.load(kept, weights_only=True)["tuning"]["model"].values())
    got = calibrate(network, pictures, config, resume=kept)
    assert got.report["resumed_at"] == 2 and same(want, got)
    assert got.report["exit"] == want.report["exit"]
    with Elsewhere():
        assert same(want, calibrate(network, pictures, config, resume=kept, device=DEVICE))


def test_layers_timed_for_a_budget_of_time_are_those_of_the_cpu(monkeypatch) -> None:
    """The kernels that layers are timed on are the CPU's wherever torch calibrates."""
    seen = []

    def times(model):
        seen.append(model.measure_l.device.type)
        return {conv.name: {bits: float(bits) for bits in range(2, 9)} for conv in model.quantized_convs() if conv.adaptive}

    monkeypatch.setattr("adabm_kernels.calibration.latency.layer_times", times)
    config, network, pictures = ConvertConfig(objective="latency"), small_edsr(blocks=1, channels=4), [images(2, 3, 16, 18)]
    want = calibrate(network, pictures, config)
    with Elsewhere():
        assert same(want, calibrate(network, pictures, config, device=DEVICE))
    assert seen == ["cpu", "cpu"]


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=f"calibrate: device must be one that torch can use here, got '{device}': ."):
        calibrate(small_edsr(), [images(1, 3, 16, 16)], device=device)


def test_products_are_bfloat16_where_a_card_multiplies_it_fast(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device.index else (9, 0))
    assert compute_dtype(torch.device("cuda:0")) is torch.bfloat16
    assert compute_dtype(torch.device("cuda:1")) is None
