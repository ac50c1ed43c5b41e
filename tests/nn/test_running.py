"""Image thresholds that follow the images of inference: the formula, its bounds, threads and files."""

from __future__ import annotations

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from small import one_thread, small_edsr  # noqa: F401

from adabm_kernels.calibrate import calibrate
from adabm_kernels.checkpoint import HEADER_KEY, load, save
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.image_bits import measure_images
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.nn.bits import RunningThresholds

SETTINGS = {"batch": 2, "recipe": "paper", "bit_aware_clipping": False, "tail": "staged"}


def pictures(*contrasts: float) -> torch.Tensor:
    """The same noise at these contrasts: float32 [N, 3, 16, 16]."""
    noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3)) - 0.5
    return torch.stack([127 + 200 * contrast * noise for contrast in contrasts])


def make(**config: Any) -> ConvertedNetwork:
    torch.manual_seed(0)
    model = calibrate(small_edsr(blocks=1, channels=4), [pictures(0.3, 0.6, 0.9, 0.5)], ConvertConfig(**SETTINGS | config))
    return convert_model(model)


@pytest.fixture(scope="module")
def calibrated() -> ConvertedNetwork:
    return make()


@pytest.fixture
def model(calibrated: ConvertedNetwork) -> ConvertedNetwork:
    return copy.deepcopy(calibrated)


def step(t: list[float], t0: tuple[float, float], measure: float, momentum: float, share: float) -> list[float]:
    """The documented formula, in plain floats."""
    moved = []
    for now, start, q in zip(t, t0, (share, 1 - share), strict=True):
        ends = sorted((2 / 3 * start, 3 / 2 * start))
        moved.append(min(max(now + momentum * abs(start) * (q - (measure < now)), ends[0]), ends[1]))
    return moved if moved[0] <= moved[1] or t0[0] > t0[1] else [sum(moved) / 2] * 2


def test_off_until_asked_for(model: ConvertedNetwork) -> None:
    x = pictures(0.1, 0.5, 1.0)
    want = model(x)
    assert model.running_thresholds is None and model.running_momentum == 0
    assert model.image_offsets(x).tolist() == [-1, 0, 1]
    model.set_running_thresholds(1e-9)  # moves too little to change a bit
    assert model.running_thresholds == pytest.approx(model.thresholds)
    assert torch.equal(model(x), want)


@settings(max_examples=60)
@given(
    thresholds=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    measures=st.lists(st.floats(0, 100), min_size=1, max_size=12),
    momentum=st.floats(1e-4, 1),
    percentile=st.floats(0, 50),
)
def test_formula(thresholds: tuple[float, float], measures: list[float], momentum: float, percentile: float) -> None:
    running = RunningThresholds(thresholds, percentile)
    running.set(momentum, None)
    now, want = list(thresholds), []
    for measure in measures:
        want.append((measure > now[1]) - (measure < now[0]))
        now = step(now, thresholds, measure, momentum, percentile / 100)
    offsets = running.offsets(torch.tensor(measures, dtype=torch.float64), learn=True)
    assert offsets.dtype == torch.int32 and offsets.tolist() == want
    assert running.current.tolist() == pytest.approx(now, rel=1e-12)
    if thresholds[0] <= thresholds[1]:
        assert running.current[0] <= running.current[1]


def test_estimates_come_to_the_quantiles() -> None:
    """Measures uniform in 8..14: their 10 % and 90 % quantiles are 8.6 and 13.4. At rest a threshold wanders about its quantile
    with a variance of momentum * |t0| * q (1 - q) / (2 density) to first order: (0.08)^2 here, and 4 times 0.08 are allowed."""
    running = RunningThresholds((10.0, 12.0), 10)
    running.set(0.002, None)
    measures = 8 + 6 * torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    running.offsets(measures, learn=True)
    assert running.current.tolist() == pytest.approx([8.6, 13.4], abs=0.32)


def test_no_run_of_images_undoes_the_calibration(model: ConvertedNetwork) -> None:
    model.set_running_thresholds(0.5)
    for contrast, bound in ((0.0, 2 / 3), (1.2, 3 / 2)):
        for _ in range(40):
            model(pictures(contrast))
        assert model.running_thresholds[0] == pytest.approx(bound * model.thresholds[0])
        assert model.running_thresholds[1] == pytest.approx(bound * model.thresholds[1])


def test_a_batch_gives_what_its_images_give_in_turn(model: ConvertedNetwork) -> None:
    x = pictures(0.7, 0.2, 0.4, 0.65, 0.8, 0.3, 0.5)
    twin = copy.deepcopy(model)
    model.set_running_thresholds(0.2)
    twin.set_running_thresholds(0.2)
    together = model(x)
    alone = torch.cat([twin(image[None]) for image in x])
    assert torch.equal(together, alone)
    assert model.running_thresholds == twin.running_thresholds != model.thresholds


def test_questions_move_nothing_and_tell_what_comes(model: ConvertedNetwork) -> None:
    x = pictures(0.7, 0.2, 0.65, 0.72)
    model.set_running_thresholds(0.4)
    before = model.running_thresholds
    told = model.image_offsets(x), model.mean_bits(x), model.layer_bits(x)
    assert model.running_thresholds == before
    seen = []
    offsets_of = model._running.offsets
    model._running.offsets = lambda measures, learn: seen.append(offsets_of(measures, learn)) or seen[-1]
    model(x)
    assert len(seen) == 1 and torch.equal(seen[0], told[0])
    assert model.running_thresholds != before


def test_fixed_bits_do_not_learn(model: ConvertedNetwork) -> None:
    model.set_running_thresholds(0.4)
    model.set_bits(5)
    before = model.running_thresholds
    model(pictures(1.0, 0.1))
    assert model.running_thresholds == before
    model.set_bits("auto")
    model(pictures(1.0, 0.1))
    assert model.running_thresholds != before


def test_turning_it_off_forgets_and_changing_the_momentum_does_not(model: ConvertedNetwork) -> None:
    model.set_running_thresholds(0.3)
    model(pictures(1.0, 1.0))
    moved = model.running_thresholds
    model.set_running_thresholds(0.1)
    assert model.running_thresholds == moved
    model.set_running_thresholds(0)
    assert model.running_thresholds is None
    model.set_running_thresholds(0.1)
    assert model.running_thresholds == model.thresholds


def test_copies_learn_on_their_own(model: ConvertedNetwork) -> None:
    model.set_running_thresholds(0.3)
    model(pictures(1.0))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model._running))):
        running = twin if isinstance(twin, RunningThresholds) else twin._running
        assert torch.equal(running.current, model._running.current) and running.momentum == 0.3
        running.offsets(torch.tensor([1000.0]), learn=True)
        assert not torch.equal(running.current, model._running.current)


def test_threads_lose_no_image() -> None:
    """Every measure is above both thresholds, so that each moves them by the same amount, whatever the order."""
    running = RunningThresholds((10.0, 20.0), 10)
    running.set(1e-4, None)
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(running.offsets, torch.full((5,), 99.0), True) for _ in range(80)]:
            assert future.result().tolist() == [1] * 5
    assert running.current.tolist() == pytest.approx([10 + 400 * 1e-4 * 10 * 0.1, 20 + 400 * 1e-4 * 20 * 0.9], rel=1e-12)


def test_threads_share_a_model(model: ConvertedNetwork) -> None:
    model.set_running_thresholds(1e-3)
    x = pictures(1.0, 1.1)
    assert (measure_images(x) > 3 / 2 * model.thresholds[1]).all()
    model.set_threads(1)
    want = copy.deepcopy(model)(x)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, want) for y in pool.map(model, [x] * 12))
    lower, upper = model.thresholds
    assert model.running_thresholds == pytest.approx((lower * (1 + 24e-3 * 0.1), upper * (1 + 24e-3 * 0.9)), rel=1e-12)


def test_files_keep_what_was_learnt(model: ConvertedNetwork, tmp_path: Path) -> None:
    x, path = pictures(0.6, 0.2, 0.7), tmp_path / "m.safetensors"
    save(model, path)
    with safe_open(path, framework="pt") as file:
        assert "running" not in json.loads(file.metadata()[HEADER_KEY])
    model.set_running_thresholds(0.25)
    model(x)
    save(model, path)
    loaded = load(path)
    assert loaded.running_thresholds == model.running_thresholds and loaded.running_momentum == 0.25
    assert loaded.thresholds == model.thresholds
    assert torch.equal(loaded(x), model(x))
    assert loaded.running_thresholds == model.running_thresholds


def test_estimates_at_their_bounds_survive_the_file(model: ConvertedNetwork, tmp_path: Path) -> None:
    model.set_running_thresholds(1.0)
    for _ in range(3):
        model(pictures(0.0))
    save(model, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").running_thresholds == model.running_thresholds


@pytest.mark.parametrize(
    ("running", "message"),
    [
        ({}, "'momentum' is missing"),
        ({"momentum": 0.1}, "'thresholds' is missing"),
        ({"momentum": 2, "thresholds": [1, 2]}, "momentum must be a number in 0..1, got 2"),
        ({"momentum": 0.1, "thresholds": [0.0, 1e9]}, "start must be .lower, upper. between"),
        ({"momentum": 0.1, "thresholds": [1.0]}, "thresholds must be two finite numbers"),
        ({"momentum": 0.1, "thresholds": [float("nan")] * 2}, "thresholds must be two finite numbers"),
        ({"momentum": 0.1, "thresholds": ["a", "b"]}, "must be|too many|str"),
        ("on", "indices"),
    ],
)
def test_a_header_that_is_not_ours_is_refused(model: ConvertedNetwork, tmp_path: Path, running: Any, message: str) -> None:
    path = tmp_path / "m.safetensors"
    save(model, path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY]) | {"running": running}
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    save_file(tensors, path, {HEADER_KEY: json.dumps(header)})
    with pytest.raises(ValueError, match=f"is not a model that this version can read: .*({message})"):
        load(path)


@pytest.mark.parametrize("momentum", [-0.1, 1.5, True, "fast", None, float("nan")])
def test_momentum_is_checked(model: ConvertedNetwork, momentum: Any) -> None:
    with pytest.raises(ValueError, match="set_running_thresholds: momentum must be a number in 0..1, got "):
        model.set_running_thresholds(momentum)


def test_a_network_that_is_not_adaptive_has_none() -> None:
    model = make(adaptive=False)
    model.set_running_thresholds(0)
    assert model.running_thresholds is None and model.running_momentum == 0
    with pytest.raises(ValueError, match="momentum must be 0: this network is not adaptive"):
        model.set_running_thresholds(0.1)
