"""A float network that is read in the wrong convention is found out before it is calibrated, and the right one is named."""

from __future__ import annotations

import re

import numpy as np
import PIL.Image
import pytest
import torch
from shared import shared_path
from small import repeating_edsr, small_edsr

import adabm_kernels
from adabm_kernels import ConvertConfig, convert_model
from adabm_kernels import calibrate as calibration
from adabm_kernels.calibration import plausibility
from adabm_kernels.calibration.plausibility import WrongReading, check_reading, looked_at
from adabm_kernels.commands.weights import misreading
from adabm_kernels.evaluate import load_float
from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.images import read_image
from adabm_kernels.models import _ASSETS
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.convention import Convention
from adabm_kernels.networks.detect import detect
from adabm_kernels.networks.layouts import MAX_WEIGHT

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])
PAPER = ConvertConfig(recipe="paper")


@pytest.fixture(scope="module")
def trained():
    """The float weights of a trained EDSR x4: a single convolution as its tail, DIV2K's mean colour, 0..255."""
    path = _ASSETS / "edsr_x4_w6a6.safetensors"
    if not path.is_file():
        pytest.skip("the built-in model's file is not there")
    return adabm_kernels.load(path).float_state


@pytest.fixture(scope="module")
def pictures():
    """Two parts of the sample photograph, float32 [3, 96, 96]."""
    photo = torch.from_numpy(read_image(_ASSETS / "sample.png")).permute(2, 0, 1).float()
    return [photo[:, :96, :96], photo[:, 96:, 96:]]


def scaled(state, factor, pattern):
    return {key: value * factor if re.search(pattern, key) else value for key, value in state.items()}


def without_shift(state):
    """The same network but at the border, with the mean colour in its biases: pixels go in as they are."""
    state, tail = dict(state), "tail.0.0.bias"
    state["head.0.bias"] = state["head.0.bias"] - 255 * (state["head.0.weight"].sum((2, 3)) * MEAN).sum(1)
    state[tail] = state[tail] + 255 * MEAN.repeat_interleave(len(state[tail]) // 3)
    return state


def bare(state):
    return {key: value for key, value in state.items() if "mean" not in key}


DISGUISES = {
    "plain": (lambda s: s, {}),
    "a shift in 0..1 tells its range": (lambda s: scaled(s, 1 / 255, r"bias"), {}),
    "0..255 without shift": (lambda s: bare(without_shift(s)), {}),
    "residual scale": (lambda s: scaled(s, 10, r"\.body\.2\."), {"res_scale": 0.1}),
    "0..1 without shift": (lambda s: scaled(bare(without_shift(s)), 1 / 255, "bias"), {"rgb_range": 1}),
    "0..1, shift registered and never called": (
        lambda s: scaled(without_shift(s), 1 / 255, r"(head|body|tail).*bias"),
        {"rgb_range": 1, "mean_shift": "none"},
    ),
    "residual scale and 0..1": (lambda s: scaled(scaled(bare(without_shift(s)), 1 / 255, "bias"), 10, r"\.body\.2\."), None),
}


@pytest.mark.parametrize("case", DISGUISES)
def test_the_right_reading_is_named_and_accepted(trained, pictures, case):
    disguise, want = DISGUISES[case]
    state = disguise(trained)
    found = detect(state)
    if want == {}:
        check_reading(state, found, pictures)
        return
    with pytest.raises(WrongReading) as caught:
        check_reading(state, found, pictures)
    error = caught.value
    assert error.suggested == (want or {"res_scale": 0.1, "rgb_range": 1})
    assert error.better > error.bicubic > 0 and error.better > error.psnr + 0.3
    settings = dict(error.suggested)
    found = detect(state, settings.pop("res_scale", 1.0), convention=Convention(**settings))
    check_reading(state, found, pictures)


def test_a_wrong_word_of_the_user_is_found_too(trained, pictures):
    with pytest.raises(WrongReading) as caught:
        check_reading(trained, detect(trained, convention=Convention(rgb_range=1)), pictures)
    assert caught.value.suggested == {"rgb_range": None}
    assert re.search(r"and \d+\.\d dB without --rgb-range \(--no-check goes on", misreading(caught.value))
    assert "dB with rgb_range=None (check=False" in str(caught.value)


def test_the_message_is_one_sentence_in_python_and_in_options(trained, pictures):
    state = DISGUISES["0..1, shift registered and never called"][0](trained)
    images = [picture[None] for picture in pictures]
    with pytest.raises(ValueError) as caught:
        convert_model(state, images, PAPER)
    want = (
        r"the weights are likely read with the wrong range of pixels and mean shift: upscaling shrunk ones of these pictures, the "
        r"float network has \d+\.\d dB where bicubic has \d+\.\d, and \d+\.\d dB with {} \({} goes on as it is\)"
    )
    python = want.format("rgb_range=1, mean_shift='none'", "check=False")
    assert re.fullmatch(f"calibrate: {python}", str(caught.value))
    options = want.format("--rgb-range 1 --mean-shift none", "--no-check")
    assert re.fullmatch(options, misreading(caught.value))
    colour = WrongReading(20.0, 22.0, {"mean_shift": (0.4, 0.4, 0.4), "res_scale": 0.1}, 23.0)
    assert "with --mean-shift 0.4,0.4,0.4 --res-scale 0.1 (" in misreading(colour)


def test_refusal_comes_before_calibration_and_can_be_left_out(trained, pictures, monkeypatch):
    class Reached(Exception):
        pass

    def begin(*_):
        raise Reached

    monkeypatch.setattr(calibration, "set_weight_ranges", begin)
    images = [picture[None] for picture in pictures]
    broken = scaled(trained, 10, r"\.body\.2\.")
    with pytest.raises(WrongReading):
        convert_model(broken, images, PAPER)
    for settings in ({"check": False}, {"res_scale": 0.1}):
        with pytest.raises(Reached):
            convert_model(broken, images, PAPER, **settings)


def test_untrained_weights_have_no_remedy(pictures):
    state = small_edsr().state_dict()
    with pytest.raises(WrongReading) as caught:
        check_reading(state, detect(state), pictures)
    assert caught.value.suggested is None
    assert "are likely untrained, or read with the wrong residual scale, range of pixels or mean shift" in str(caught.value)
    assert "none of the usual ones helps (check=False goes on all the same)" in str(caught.value)


@pytest.mark.parametrize("make", ["small", "noise", "faint noise"])
def test_nothing_is_said_where_there_is_nothing_to_compare_with(pictures, make):
    """Pictures of noise, which bicubic cannot bring back either, and such as would shrink to nothing."""
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    given = {"small": [picture[:, :31, :64] for picture in pictures], "noise": [noise], "faint noise": [noise * 0.1 + 100]}[make]
    state = small_edsr().state_dict()
    check_reading(state, detect(state), given)
    check_reading(state, detect(state), [])


def test_flat_pictures_and_networks_that_only_repeat_pixels_pass(pictures):
    state = repeating_edsr().state_dict()
    check_reading(state, detect(state), pictures)
    check_reading(state, detect(state), [torch.full((3, 64, 64), float(value)) for value in (0, 90, 255)])


def test_nan_is_as_bad_as_can_be(pictures):
    """Weights as large as they may be, whose products float32 does not hold."""
    state = small_edsr().state_dict()
    state |= {key: value.sign() * MAX_WEIGHT for key, value in state.items() if value.ndim == 4 and "mean" not in key}
    with pytest.raises(WrongReading):
        check_reading(state, detect(state), pictures)


def test_large_networks_see_fewer_crops(monkeypatch, pictures):
    """The work of all readings together is bounded."""
    seen, network = [], repeating_edsr()
    monkeypatch.setattr(plausibility, "_psnr", lambda state, found, crops: seen.append(len(crops)) or 39.0)
    for work, want in ((plausibility.WORK, 2), (1e6, 1)):
        seen.clear()
        monkeypatch.setattr(plausibility, "WORK", work)
        check_reading(network.state_dict(), detect(network.state_dict()), pictures)
        assert set(seen) == {want} and len(seen) > 1
    monkeypatch.setattr(plausibility, "_psnr", lambda state, found, crops: seen.append(len(crops)) or 40.0)
    seen.clear()
    check_reading(network.state_dict(), detect(network.state_dict()), pictures)
    assert len(seen) == 1  # as good as can be: no other reading is tried


def test_of_many_pictures_some_are_looked_at():
    assert looked_at(range(3)) == [0, 1, 2]
    assert looked_at(range(240)) == list(range(0, 240, 10))


def test_load_float_is_checked_on_originals(tmp_path, trained, pictures):
    torch.save({"state_dict": scaled(trained, 10, r"\.body\.2\.")}, tmp_path / "m.ckpt")
    rgb = [picture.permute(1, 2, 0).numpy().astype(np.uint8) for picture in pictures]
    PIL.Image.fromarray(rgb[0]).save(tmp_path / "a.png")
    for given in (rgb, [tmp_path / "a.png"]):
        with pytest.raises(WrongReading):
            load_float(tmp_path / "m.ckpt", pictures=given)
        assert load_float(tmp_path / "m.ckpt", 0.1, pictures=given).spec.res_scale == 0.1
    assert load_float(tmp_path / "m.ckpt").spec.res_scale == 1


@pytest.mark.parametrize(
    "name", ["edsr_baseline_x2", "edsr_baseline_x4", "edsr_r8f64_x2", "mlperf_edsr_f32b5_x2", "srresnet_r8f64_x4"]
)
def test_published_weights_pass(name):
    """On photographs, and on low-resolution pictures made of them, which are what most will calibrate on."""
    state = load_state(shared_path("data", "weights", f"{name}.pt"))
    found = detect(state)
    photos = [read_image(path) for path in sorted(shared_path("data", "images", "calib").glob("*.png"))[::34]]
    for rgb in (photos, [imresize(photo, 1 / found.spec.scale) for photo in photos]):
        check_reading(state, found, [torch.from_numpy(pixels.copy()).permute(2, 0, 1) for pixels in rgb])
