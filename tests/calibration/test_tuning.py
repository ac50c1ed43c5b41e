"""What recipe "best" adds, and the fine-tuning of both recipes: searched ranges, sensitivities, budgets, learning, resuming."""

import functools
import itertools
import os
import random
import signal
import time

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import (
    noise,
    one_thread,  # noqa: F401
    same,
)

from adabm_kernels.calibrate import calibrate
from adabm_kernels.calibration import images as samples
from adabm_kernels.calibration.latency import layer_times
from adabm_kernels.calibration.maps import allocate, sensitivities
from adabm_kernels.calibration.ranges import best_channel_ranges
from adabm_kernels.calibration.tune import JointTuning, PaperCycle, make_tuning
from adabm_kernels.config import BestTuning, ConvertConfig, PaperTuning
from adabm_kernels.convert import convert_model
from adabm_kernels.quantize import fake_quantize_weight
from adabm_kernels.simulate import SimulatedNetwork, image_measure

small_edsr = functools.partial(small.small_edsr, blocks=2)
BEST = BestTuning(batch=2, patch=16, warmup=2)
PAPER = PaperTuning(epoch=4, batch=2, patch=16)


@pytest.fixture(autouse=True)
def float32_products(monkeypatch):
    """The same arithmetic on every machine."""
    monkeypatch.setattr("adabm_kernels.calibration.tune.compute_dtype", lambda device: None)


def distance_to_float(model, images):
    batch = torch.cat(images)
    with torch.no_grad(), model.float_mode():
        want = model(batch)
    with torch.no_grad():
        return float((model(batch) - want).abs().mean())


# Ranges.


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 8))
def test_every_channel_has_the_best_of_its_ranges(seed, bits):
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    got = best_channel_ranges(weight, bits)
    assert got.shape == (3, 1, 1, 1)
    error = (weight - fake_quantize_weight(weight, got, bits, "signed")).square().sum((1, 2, 3))
    for factor in torch.linspace(0.3, 1.1, 81).tolist():
        tried = weight.abs().amax((1, 2, 3), keepdim=True) * factor
        assert (error <= (weight - fake_quantize_weight(weight, tried, bits, "signed")).square().sum((1, 2, 3)) * (1 + 1e-5)).all()


def test_searched_ranges_lie_inside_those_seen_and_lose_less():
    model, images = small_edsr(), noise(6)
    seen = calibrate(model, images, ConvertConfig(act_ranges="minmax", adaptive=False, bit_aware_clipping=False))
    searched = calibrate(model, images, ConvertConfig(adaptive=False))
    for a, b in zip(seen.quantized_convs(), searched.quantized_convs(), strict=True):
        if a.name in ("head.0", "tail.1"):
            assert (a.lower_a, a.upper_a) == (b.lower_a, b.upper_a)
    assert distance_to_float(searched, images) < distance_to_float(seen, images)


def test_the_converted_network_computes_with_the_signed_grid():
    model, images = small_edsr(), noise(3)
    simulated = calibrate(model, images, ConvertConfig(weight_bits=6, act_bits=6))
    assert {conv.weight_grid for conv in simulated.quantized_convs()} == {"signed"}
    state = simulated.state_dict()
    assert "body.0.conv1.scale_w" in state and "body.0.conv1.upper_w" not in state
    again = SimulatedNetwork.from_state(state, simulated.config)
    with torch.no_grad():
        assert torch.equal(again(images[0]), simulated(images[0]))
    converted = convert_model(simulated)
    for conv in (conv for conv in converted.convs() if conv.name.startswith("body")):
        assert not conv.box_filter and conv.weight.abs().max() <= 32


# Bit maps.


def test_sensitivity_is_the_error_that_rounding_one_layer_causes():
    model, images = small_edsr(), noise(6)
    simulated = calibrate(model, images, ConvertConfig(act_bits=6, weight_bits=8))
    for conv in simulated.quantized_convs():
        if conv.adaptive:
            conv.measure_layer.data.fill_(0)
    batch = torch.cat(images[:4])
    with torch.no_grad():
        energy = sensitivities(simulated, batch, torch.Generator().manual_seed(0))

        def output(name=None, bits=6):
            for conv in simulated.quantized_convs():
                if conv.adaptive:
                    conv.act_bits = bits if conv.name == name else 8
            return simulated(batch)

        exact = output()
        for name in energy:
            measured = float((output(name, 3) - exact).square().mean())
            # An order of magnitude: where a ReLU left zeros their rounding errors are all the same, not independent.
            assert measured / 4 < energy[name][3] < measured * 4, name
            assert energy[name][3] > energy[name][4] > energy[name][6]


def test_sensitivity_of_a_large_image_is_that_of_its_middle(monkeypatch):
    simulated = calibrate(small_edsr(), noise(2, 32, 32), ConvertConfig())
    inputs = sum(conv.weight.shape[1] for conv in simulated.quantized_convs() if conv.adaptive)
    (image,) = noise(1, 32, 32)

    def energy(batch):
        return sensitivities(simulated, batch, torch.Generator().manual_seed(0))

    with torch.no_grad():
        middle, flat = energy(image[..., 6:26, 6:26]), energy(image[..., :8, :])
        monkeypatch.setattr("adabm_kernels.calibration.maps.PROBED_VALUES", 20 * 20 * inputs)
        assert energy(image) == middle
        assert energy(image[..., 6:26, :]) == middle
        assert energy(image[..., :8, :]) == flat  # no more pixels than are probed


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(-1, 1))
def test_allocation_is_the_best_of_all(seed, layers, spend):
    rng = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(layers)]
    damage = {name: dict(enumerate(np.sort(rng.random(7))[::-1], 2)) for name in names}
    bits = {name: {b: float(b) for b in range(2, 9)} for name in names}
    base = dict.fromkeys(names, 4)
    budget = 4 * layers + round(spend * layers)
    got = allocate(damage, bits, base, budget)
    assert sum(got.values()) <= budget - 4 * layers
    best = min(
        sum(damage[name][4 + o] for name, o in zip(names, offsets, strict=True))
        for offsets in itertools.product((-1, 0, 1), repeat=layers)
        if sum(offsets) <= budget - 4 * layers
    )
    assert sum(damage[name][4 + o] for name, o in got.items()) == pytest.approx(best)


def test_allocation_by_time_and_at_the_bounds():
    damage = {"a": {3: 1.0, 4: 0.5, 5: 0.1}, "b": {3: 1.0, 4: 0.9, 5: 0.8}}
    times = {"a": {3: 1.0, 4: 1.0, 5: 3.0}, "b": {3: 1.0, 4: 2.0, 5: 2.5}}
    base = {"a": 4, "b": 4}
    assert allocate(damage, times, base, 2.0) == {"a": 0, "b": -1}  # 4 bits cost what 3 do
    assert allocate(damage, times, base, 4.0) == {"a": 1, "b": -1}
    assert allocate(damage, times, base, 99.0) == {"a": 1, "b": 1}
    assert allocate(damage, times, base, 0.0) == {"a": 0, "b": -1}  # as cheap as can be had


def test_offsets_keep_the_budget_of_bits():
    images = noise(8)
    with torch.no_grad():
        simulated = calibrate(small_edsr(), images, ConvertConfig(target_bits=3.6))
        assert float(simulated.mean_bits(torch.cat(images)).mean()) <= 3.6 + 1e-6


def test_offsets_follow_the_time_of_this_machine(monkeypatch):
    """Where 3 bits take as long as 4, no layer is worth taking a bit from; where only 5 cost, some get one for nothing."""

    def times(model):
        return {c.name: {b: 1.0 + (b > 4) for b in range(2, 9)} for c in model.quantized_convs() if c.adaptive}

    monkeypatch.setattr("adabm_kernels.calibration.latency.layer_times", times)
    simulated = calibrate(small_edsr(), noise(8), ConvertConfig(target_bits=3.6, objective="latency"))
    assert min(conv.layer_offset for conv in simulated.quantized_convs()) == 0


def test_layer_times_are_positive_for_every_bit_width():
    simulated = calibrate(small_edsr(), noise(2), ConvertConfig())
    times = layer_times(simulated)
    assert set(times) == {conv.name for conv in simulated.quantized_convs() if conv.adaptive}
    assert all(set(row) == set(range(2, 9)) and min(row.values()) > 0 for row in times.values())


def test_maps_are_taken_over_from_another_network():
    images = noise(8)
    first = calibrate(small_edsr(), images, ConvertConfig(target_bits=3.5))
    second = calibrate(small_edsr(), images[:1], ConvertConfig(), start=first)
    third = calibrate(small_edsr(), images[:1], ConvertConfig(), start=convert_model(first))
    assert same(second.state_dict(), third.state_dict())
    assert (second.measure_l, second.measure_u) == (first.measure_l, first.measure_u)
    assert [c.layer_offset for c in second.quantized_convs()] == [c.layer_offset for c in first.quantized_convs()]
    with pytest.raises(ValueError, match="start must be a calibrated network with the same adaptive convolutions"):
        calibrate(small_edsr(blocks=3), images, ConvertConfig(), start=first)


# Fine-tuning.


@pytest.mark.parametrize("recipe", ["best", "paper"])
def test_tuning_brings_the_network_nearer_to_its_float_form(recipe):
    model, images = small_edsr(), noise(6, 24, 24)
    tuning = BEST if recipe == "best" else PaperTuning(epoch=10, batch=2, patch=16, lr_weight_range=1e-3, lr_act_range=0.1)
    plain = calibrate(model, images, ConvertConfig(recipe=recipe))
    tuned = calibrate(model, images, ConvertConfig(recipe=recipe, steps=40, tuning=tuning))
    assert distance_to_float(tuned, images) < distance_to_float(plain, images)
    assert same(tuned.float_state(), plain.float_state())
    assert not any(parameter.requires_grad for parameter in tuned.parameters())
    assert tuned.report["steps"] == 40 == len(tuned.report["losses"])
    assert {stage["name"] for stage in tuned.report["stages"]} >= {"ranges", "fine-tuning"}


def test_each_kind_of_parameter_has_its_epoch():
    model = calibrate(small_edsr(), noise(4), ConvertConfig(recipe="paper", tuning=PAPER))
    tuning = make_tuning(model)
    kinds = {"weight_ranges": "upper_w", "act_ranges": "er_a", "bit_maps": "measure_"}
    batch = torch.cat(noise(4)[2:])
    for kind in [*kinds, *kinds]:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        rate = tuning.optimizers[kind].param_groups[0]["lr"]
        for _ in range(PAPER.epoch):
            losses = tuning.step(batch)
            assert ("bits" in losses) == (kind == "bit_maps")
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert changed and all(kinds[kind] in key for key in changed)
    assert tuning.optimizers["bit_maps"].param_groups[0]["lr"] == pytest.approx(rate if kind != "bit_maps" else 0.01 * 0.9)


@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_recipe_paper_sees_the_same_crops_every_epoch(recipe, monkeypatch):
    seen = []
    tuning = PAPER if recipe == "paper" else BEST
    step = PaperCycle.step if recipe == "paper" else JointTuning.step
    kind = PaperCycle if recipe == "paper" else JointTuning
    monkeypatch.setattr(kind, "step", lambda self, batch: seen.append(batch) or step(self, batch))
    calibrate(small_edsr(), noise(6, 24, 24), ConvertConfig(recipe=recipe, steps=2 * PAPER.epoch, tuning=tuning))
    first, second = seen[: PAPER.epoch], seen[PAPER.epoch :]
    again = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert again == (recipe == "paper") and not torch.equal(first[0], first[1])


def test_the_bit_loss_takes_bits_away():
    images = noise(6)
    model = calibrate(small_edsr(), images, ConvertConfig(recipe="paper", image_percentile=50.0, layer_percentile=50.0))
    with torch.no_grad():
        for conv in model.quantized_convs():
            if conv.adaptive:
                conv.measure_layer.fill_(1.0)
    before = float(model.mean_bits(torch.cat(images)).detach().mean())
    tuning = make_tuning(model)
    tuning.done = 2 * tuning.tuning.epoch  # the turn of the bit maps
    for _ in range(tuning.tuning.epoch):
        tuning.step(torch.cat(images[-3:]))
    tuning.finish()
    assert float(model.mean_bits(torch.cat(images)).detach().mean()) < before


def test_ends_and_maps_stay_as_they_are_in_recipe_best():
    images = noise(4, 24, 24)
    plain, tuned = (calibrate(small_edsr(), images, ConvertConfig(steps=steps, tuning=BEST)) for steps in (0, 5))
    before = plain.state_dict()
    changed = {key for key, value in tuned.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("body.") and "measure" not in key for key in changed)


@pytest.mark.parametrize("recipe", ["best", "paper"])
def test_an_interrupted_run_goes_on_to_the_same_result(recipe, tmp_path):
    tuning = BEST if recipe == "best" else PAPER
    images, config = noise(5, 24, 24), ConvertConfig(recipe=recipe, steps=9, tuning=tuning, depths="none", residual="float32")
    want = calibrate(small_edsr(), images, config)
    path = tmp_path / "run.resume"

    def interrupt(done, total, stage):
        if done == total - 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(small_edsr(), images, config, interrupt, resume=path)
    got = calibrate(small_edsr(), images, config, resume=path)
    assert got.report["resumed_at"] == 4 and len(got.report["losses"]) == 9
    assert same(got.state_dict(), want.state_dict())
    with pytest.raises(ValueError, match="of a run with other settings: seed was 1 and is 2; remove it"):
        calibrate(small_edsr(), images, ConvertConfig(**{**config.__dict__, "seed": 2}), resume=path)
    with pytest.raises(ValueError, match="other images or another network"):
        calibrate(small_edsr(), images[:4], config, resume=path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no state of a calibration"):
        calibrate(small_edsr(), images, config, resume=path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(number, tmp_path, monkeypatch):
    images, config = noise(5, 24, 24), ConvertConfig(steps=6, tuning=BEST)
    want = calibrate(small_edsr(), images, config)
    path, plain = tmp_path / "run.resume", JointTuning.step

    def interrupted(self, batch):
        if self.done == 3:
            os.kill(os.getpid(), number)
            time.sleep(0.01)  # Python's handler runs here at the latest
        return plain(self, batch)

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(JointTuning, "step", interrupted)
            calibrate(small_edsr(), images, config, resume=path)
        assert signal.getsignal(signal.SIGINT) == before[0] and signal.getsignal(signal.SIGTERM) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before[1])
    got = calibrate(small_edsr(), images, config, resume=path)
    assert got.report["resumed_at"] == 4 and same(got.state_dict(), want.state_dict())


def test_a_second_signal_does_not_wait(tmp_path, monkeypatch):
    def interrupted(self, batch):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        raise AssertionError("the second signal waited")

    monkeypatch.setattr(JointTuning, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(small_edsr(), noise(2, 24, 24), ConvertConfig(steps=2, tuning=BEST), resume=tmp_path / "run.resume")


def test_another_residual_scale_does_not_continue(tmp_path):
    images, config, path = noise(2, 24, 24), ConvertConfig(steps=3, tuning=BEST, depths="none"), tmp_path / "run.resume"
    state = small_edsr().state_dict()

    def interrupt(done, total, stage):
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(state, images, config, interrupt, resume=path)
    with pytest.raises(ValueError, match="other images or another network"):
        calibrate(state, images, config, res_scale=0.1, resume=path)


def test_a_run_that_has_converged_ends_early_and_resumes_alike(tmp_path):
    """A tolerance near 1 is met at once: two spans at the full rate, then the rates fall."""
    tuning = BestTuning(batch=2, patch=16, warmup=2, tolerance=0.99, span=3, cooldown=4)
    images, path = noise(5, 24, 24), tmp_path / "run.resume"
    config = ConvertConfig(steps=50, tuning=tuning, depths="none", residual="float32")
    seen = []
    want = calibrate(small_edsr(), images, config, lambda done, total, what: seen.append((done, total)))
    assert want.report["steps"] == len(want.report["losses"]) == 2 * 3 + 4
    assert seen[-1][0] == seen[-1][1] and seen[0][1] - seen[-1][1] == 40

    def interrupt(done, total, stage):
        if total - done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(small_edsr(), images, config, interrupt, resume=path)
    got = calibrate(small_edsr(), images, config, resume=path)
    assert got.report["resumed_at"] == 8 and got.report["steps"] == 10
    assert same(got.state_dict(), want.state_dict())


def test_a_run_that_has_not_converged_takes_all_steps():
    """The loss never lies so little below the one before: a tolerance below every change."""
    tuning = BestTuning(batch=2, patch=16, warmup=2, tolerance=1e-9, span=1, cooldown=4)
    run = JointTuning(calibrate(small_edsr(), noise(2, 24, 24), ConvertConfig()), tuning, 50)
    for step in range(45):
        run.done += 1
        run._end_if_settled(0.5**step)
    assert (run.falls_at, run.end) == (46, 50)
    run._end_if_settled(0.5**44)
    assert (run.falls_at, run.end) == (45, 49)


# Images.


def test_of_several_crops_the_most_detailed_is_taken():
    """Half of each image is flat, half is noise: of many crops one lies in the noise."""
    images = [torch.cat([torch.full((3, 64, 64), 100.0), image[0]], 2) for image in noise(4, 64, 64)]
    plain, chosen = (samples.Epochs(images, 16, 4, random.Random(0), candidates) for candidates in (1, 16))
    detail = [float(image_measure(queue.next()).min()) for queue in (plain, chosen)]
    assert detail[0] < 1 < 10 < detail[1]


def test_near_duplicates_are_chosen_last():
    images = [image[0] for image in noise(4, 24, 24)]
    many = [*images, *(image + 0.01 for image in images), *(image + 0.02 for image in images)]
    chosen = samples.most_informative(many, 4)
    assert {index % 4 for index in chosen} == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"count must be 1..12, the number of images, got 13"):
        samples.most_informative(many, 13)


def test_epochs_show_every_image_once_per_round():
    images = [torch.full((3, 20, 20), float(i)) for i in range(6)]
    queue = samples.Epochs(images, 16, 4, random.Random(0))
    seen = [int(crop[0, 0, 0]) for _ in range(3) for crop in queue.next()]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
