"""Calibration: each statistic against its formula, quality on a real network, and every refusal."""

import functools
import itertools

import numpy as np
import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont
from PIL._util import DeferredError
from shared import shared_path
from small import noise, one_thread, same  # noqa: F401
from torch import nn

from adabm_kernels.calibrate import calibrate
from adabm_kernels.calibration.made import drawn_pictures, made_pictures
from adabm_kernels.calibration.ranges import best_act_range, published_weight_range
from adabm_kernels.config import ConvertConfig
from adabm_kernels.evaluation.metrics import psnr_y
from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.detect import adabm_name
from adabm_kernels.quantize import fake_quantize_act, fake_quantize_weight
from adabm_kernels.simulate import image_measure

SET5 = ("baby", "bird", "butterfly", "head", "woman")


small_edsr = functools.partial(small.small_edsr, blocks=4)
paper = functools.partial(ConvertConfig, recipe="paper")


def float_inputs(model, batch):
    """What enters each convolution of a float EDSR, by AdaBM name."""
    seen = {}
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}

    def record(module, args):
        seen[adabm_name(f"{names[module]}.weight").removesuffix(".weight")] = args[0]

    hooks = [module.register_forward_pre_hook(record) for module in names]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return seen


# Weights.


@given(st.integers(0, 1000), st.integers(2, 8), st.floats(2**-10, 100))
def test_published_weight_range_is_the_best_of_its_fifty(seed, bits, scale):
    """Tried from the largest weight, not the largest absolute one, as the authors' implementation does."""
    weight = scale * torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    errors = [(weight - fake_quantize_weight(weight, weight.max() * (1 - i / 100), bits)).square().mean() for i in range(50)]
    got = published_weight_range(weight, bits)
    assert got.shape == (1,)
    error = (weight - fake_quantize_weight(weight, got, bits)).square().mean()
    assert error <= min(errors) * (1 + 1e-5)


def test_weights_without_a_positive_one_get_a_positive_range():
    for weight in (torch.zeros(2, 2, 3, 3), -torch.ones(2, 2, 3, 3)):
        assert published_weight_range(weight, 4) > 0


def test_published_search_quantises_every_layer_with_the_base_bits():
    result = calibrate(small_edsr(), noise(2), paper(weight_bits=2))
    for conv in result.quantized_convs():
        assert conv.weight_bits == (8 if conv.end else 2)
        assert torch.equal(conv.upper_w, published_weight_range(conv.weight, 2))


@pytest.mark.parametrize("weight_ranges", ["minmax", "percentile"])
def test_other_weight_ranges(weight_ranges):
    result = calibrate(small_edsr(), noise(2), paper(weight_ranges=weight_ranges, range_percentile=90.0))
    for conv in result.quantized_convs():
        weights = conv.weight.detach()
        want = weights.abs().max() if weight_ranges == "minmax" else np.percentile(weights.numpy().ravel(), 90)
        assert conv.upper_w.item() == pytest.approx(float(want), rel=1e-6)


# Activations, thresholds, offsets.


@pytest.mark.parametrize("quantize", ["full", "body"])
def test_one_batch_gives_minima_and_maxima_of_the_float_network(quantize):
    model, images = small_edsr(), noise(5)
    result = calibrate(model, images, paper(quantize=quantize, bit_aware_clipping=False))
    inputs = float_inputs(model, torch.cat(images))
    bound = 1e-5  # of the largest value: crops run in another order, and sums of 72 products carry up to 72 * 2^-24
    for conv in result.quantized_convs():
        x = inputs[conv.name]
        assert conv.lower_a.item() == pytest.approx(x.min().item(), abs=bound * x.abs().max().item())
        assert conv.upper_a.item() == pytest.approx(x.max().item(), abs=bound * x.abs().max().item())
    names = {conv.name for conv in result.quantized_convs()}
    assert ("head.0" in names) == ("body.4" in names) == (quantize == "full")


def test_batches_enter_a_moving_average():
    """Three batches of one image each, in an order that the seed decides; the first starts the average."""
    model, images = small_edsr(), noise(3)
    ends = [float_inputs(model, image)["head.0"].max().item() for image in images]
    measures = [image_measure(image).item() for image in images]
    orders = set()
    for seed in range(8):
        config = paper(batch=1, seed=seed, ema_beta=0.75, bit_aware_clipping=False)
        result = calibrate(model, images, config)

        def average(values, order):
            first, second, third = (values[i] for i in order)
            return 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third

        got = result.head[0].upper_a.item()
        order = min(itertools.permutations(range(3)), key=lambda order: abs(average(ends, order) - got))
        assert got == pytest.approx(average(ends, order), rel=1e-6)
        assert result.measure_l.item() == pytest.approx(average(measures, order), rel=1e-5)
        orders.add(order)
    assert len(orders) > 1


def test_image_thresholds_are_percentiles():
    images = noise(11)
    result = calibrate(small_edsr(), images, paper(image_percentile=20.0))
    measure = image_measure(torch.cat(images))
    assert result.measure_l.item() == pytest.approx(torch.quantile(measure, 0.2).item(), rel=1e-6)
    assert result.measure_u.item() == pytest.approx(torch.quantile(measure, 0.8).item(), rel=1e-6)
    assert result.image_offsets(torch.cat(images)).tolist() == [-1] * 2 + [0] * 7 + [1] * 2


@pytest.mark.parametrize("percentile", [0.0, 30.0, 50.0])
def test_layer_offsets_follow_the_spread_of_activations(percentile):
    model, images = small_edsr(), noise(4)
    result = calibrate(model, images, paper(layer_percentile=percentile))
    inputs = float_inputs(model, torch.cat(images))
    spread = {c.name: inputs[c.name].std((1, 2, 3)).mean().item() for c in result.quantized_convs() if c.adaptive}
    low, high = np.percentile(list(spread.values()), [percentile, 100 - percentile])
    for conv in result.quantized_convs():
        if conv.adaptive and min(abs(spread[conv.name] - end) for end in (low, high)) > 1e-4 * high:
            assert conv.layer_offset == int(spread[conv.name] > high) - int(spread[conv.name] < low)
    offsets = [conv.layer_offset for conv in result.quantized_convs() if conv.adaptive]
    if percentile == 0:
        assert set(offsets) == {0}
    if percentile == 30:
        assert offsets.count(-1) == offsets.count(1) == 3  # of nine layers, those below rank 2.4 and above 5.6


@pytest.mark.parametrize("act_ranges", ["percentile", "omse"])
def test_other_activation_ranges(act_ranges):
    model, images = small_edsr(), noise(4)
    result = calibrate(model, images, paper(act_ranges=act_ranges, range_percentile=95.0, bit_aware_clipping=False))
    x = float_inputs(model, torch.cat(images))["head.0"]
    if act_ranges == "percentile":
        want = np.percentile(x.numpy().ravel(), [5, 95])
    else:
        want = [float(end) for end in best_act_range(x.flatten(), x.min(), x.max(), 4, [1 - i / 100 for i in range(90)])]
    head = result.quantized_convs()[0]
    assert (head.lower_a.item(), head.upper_a.item()) == pytest.approx(tuple(want), rel=1e-4)


# Bit-aware clipping.


@given(st.integers(0, 1000), st.integers(2, 8))
def test_clipped_range_is_the_best_of_its_hundred(seed, bits):
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed)) ** 3
    lower, upper = x.min().view(1), x.max().view(1)

    def error(low, high):
        return (x - fake_quantize_act(x, low, high, bits)).square().mean()

    low, high = best_act_range(x, lower, upper, bits)
    assert error(low, high) == min(error(lower * (1 - i / 100), upper * (1 - i / 100)) for i in range(100))
    assert low / lower == pytest.approx((high / upper).item())


def test_clipping_shrinks_by_its_weight_and_leaves_the_ends():
    model, images = small_edsr(), noise(4)
    plain, half, whole = (
        calibrate(model, images, paper(bit_aware_clipping=beta is not None, bac_beta=beta or 0.0)) for beta in (None, 0.5, 0.0)
    )
    convs = list(zip(*(m.quantized_convs() for m in (plain, half, whole)), strict=True))
    for a, b, c in convs:
        if a.end:
            assert a.upper_a == b.upper_a == c.upper_a and a.lower_a == c.lower_a
        else:
            assert b.upper_a <= a.upper_a and c.upper_a <= a.upper_a
            assert b.lower_a >= a.lower_a and c.lower_a >= a.lower_a
    first = next(group for group in convs if not group[0].end)  # later layers see other inputs
    assert first[2].upper_a < first[0].upper_a
    assert first[1].upper_a.item() == pytest.approx((first[0].upper_a + first[2].upper_a).item() / 2)


def test_clipping_goes_layer_by_layer_with_the_bits_of_each():
    """At its turn a layer sees what it sees in the finished network: all ranges before it are final by then."""
    model, images = small_edsr(), noise(4)
    plain = calibrate(model, images, paper(bit_aware_clipping=False))
    done = calibrate(model, images, paper(bac_beta=0.0))
    inputs = {}
    for conv in done.quantized_convs():
        conv.register_forward_pre_hook(lambda conv, args: inputs.update({conv.name: args[0]}))
    with torch.no_grad():
        done(torch.cat(images))
    for before, after in zip(plain.quantized_convs(), done.quantized_convs(), strict=True):
        if not after.end:
            bits = after.act_bits + after.layer_offset
            lower, upper = best_act_range(inputs[after.name], before.lower_a, before.upper_a, bits)
            assert (after.lower_a.item(), after.upper_a.item()) == pytest.approx((lower.item(), upper.item()), rel=1e-5)


# What may go in.


class MyOwnNet(nn.Module):
    """Somebody else's module: only its state dict is read."""

    def __init__(self, edsr):
        super().__init__()
        self.model = edsr

    def forward(self, *args):
        raise AssertionError("calibrate ran the user's module")


def test_module_state_dict_and_wrapped_checkpoint_are_one(tmp_path):
    edsr, images, config = small_edsr(), noise(3), paper()
    want = calibrate(edsr, images, config).state_dict()
    torch.save({"params": edsr.state_dict()}, tmp_path / "model.pth")
    renamed = {adabm_name(key): value for key, value in edsr.state_dict().items()}
    for model in (MyOwnNet(edsr), edsr.state_dict(), renamed, load_state(tmp_path / "model.pth")):
        assert same(calibrate(model, images, config).state_dict(), want)


def test_the_network_given_is_left_alone():
    edsr, images = small_edsr(), noise(3)
    before = {key: value.clone() for key, value in edsr.state_dict().items()}
    pixels = [image.clone() for image in images]
    result = calibrate(edsr, images)
    with torch.no_grad():
        result.head[0].weight.zero_()
    assert same(edsr.state_dict(), before)
    assert all(torch.equal(a, b) for a, b in zip(images, pixels, strict=True))


def test_residual_scale_is_taken_from_an_edsr_or_from_the_caller():
    edsr, images = small_edsr(res_scale=0.1), noise(2)
    assert calibrate(edsr, images).spec.res_scale == 0.1
    assert calibrate(edsr.state_dict(), images).spec.res_scale == 1
    assert same(calibrate(edsr.state_dict(), images, res_scale=0.1).state_dict(), calibrate(edsr, images).state_dict())


def test_files_bytes_batches_and_generators_of_images_are_one(tmp_path):
    images = [image.round() for image in noise(4)]
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image[0].permute(1, 2, 0).to(torch.uint8).numpy()).save(paths[-1])
    want = calibrate(small_edsr(), images).state_dict()
    for given_images in (
        paths,
        [str(path) for path in paths],
        [image.to(torch.uint8) for image in images],
        [torch.cat(images)],
        [torch.cat(images[:3]).double(), paths[3]],
        (image for image in images),
    ):
        assert same(calibrate(small_edsr(), given_images).state_dict(), want)


def test_same_seed_same_result():
    images = noise(6, 40, 30)
    results = [calibrate(small_edsr(), images, paper(patch=20, batch=4, seed=seed)).state_dict() for seed in (1, 1, 2)]
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_large_images_are_cropped_and_small_ones_fit(monkeypatch):
    sizes = set()
    monkeypatch.setattr("adabm_kernels.calibration.maps.image_measure", lambda x: sizes.add(tuple(x.shape)) or image_measure(x))
    images = [*noise(3, 50, 70), *noise(2, 16, 70), *noise(1, 33, 20)]
    calibrate(small_edsr(), images, paper(patch=32))
    assert sizes == {(6, 3, 16, 20)}
    sizes.clear()
    calibrate(small_edsr(), noise(5, 50, 70), paper(patch=32, batch=2, bit_aware_clipping=False))
    assert sizes == {(2, 3, 32, 32), (1, 3, 32, 32)}


def test_crops_lie_anywhere_in_their_image(monkeypatch):
    crops = []
    monkeypatch.setattr("adabm_kernels.calibration.maps.image_measure", lambda x: crops.extend(x) or image_measure(x))
    rows = torch.arange(60.0).view(60, 1).expand(60, 50)
    columns = torch.arange(50.0).expand(60, 50)
    calibrate(small_edsr(), [torch.stack([rows, columns, rows])[None]] * 40, paper(patch=32, bit_aware_clipping=False), check=False)
    corners = [(int(crop[0, 0, 0]), int(crop[1, 0, 0])) for crop in crops]
    for crop, (y, x) in zip(crops, corners, strict=True):
        assert torch.equal(crop[0], rows[y : y + 32, x : x + 32]) and torch.equal(crop[1], columns[y : y + 32, x : x + 32])
    for axis, last in ((0, 28), (1, 18)):
        starts = [corner[axis] for corner in corners]
        assert 0 <= min(starts) < last / 4 and 3 * last / 4 < max(starts) <= last


def test_progress_counts_batches():
    seen = []
    calibrate(small_edsr(), noise(5), paper(batch=2), lambda *step: seen.append(step))
    assert seen == [(1, 4, "ranges"), (2, 4, "ranges"), (3, 4, "ranges"), (4, 4, "clipping")]
    seen.clear()
    calibrate(small_edsr(), noise(5), paper(batch=2, bit_aware_clipping=False), lambda *step: seen.append(step))
    assert seen == [(i, 3, "ranges") for i in (1, 2, 3)]


@pytest.mark.parametrize("mean_shift", [True, False])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_images_are_defined(mean_shift, value):
    """The image thresholds coincide, and without mean shift the first range would be empty."""
    flat = torch.full((1, 3, 16, 16), float(value))
    result = calibrate(small_edsr(mean_shift=mean_shift), [flat] * 3)
    assert torch.equal(result.measure_l, result.measure_u)
    assert all(conv.lower_a < conv.upper_a for conv in result.quantized_convs())
    with torch.no_grad():
        assert result.image_offsets(flat).tolist() == [0] and result(flat).isfinite().all()
        assert result(noise(1)[0]).isfinite().all()
    if not mean_shift:
        head = result.head[0]
        assert fake_quantize_act(flat, head.lower_a, head.upper_a, 8).max() == value


def test_a_network_of_zeros_is_defined():
    edsr = small_edsr()
    for parameter in edsr.parameters():
        nn.init.zeros_(parameter)
    images = noise(2)
    result = calibrate(edsr, images)
    with torch.no_grad():
        assert torch.allclose(result(images[0]), edsr(images[0]))


# What may not.


@pytest.mark.parametrize("model", [None, 3, "model.pt"])
def test_model_must_be_a_network(model):
    with pytest.raises(TypeError, match="calibrate: model must be a torch.nn.Module or a state dict, got"):
        calibrate(model, noise(1))


def test_calibrated_networks_are_refused():
    result = calibrate(small_edsr(), noise(1))
    for model in (result, result.state_dict()):
        with pytest.raises(ValueError, match="calibrate: model must be a float network, and this one is calibrated already"):
            calibrate(model, noise(1))


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match="detect: not an EDSR, .* state dict"):
        calibrate(nn.Conv2d(3, 3, 3), noise(1))


@pytest.mark.parametrize("images", ["folder", torch.zeros(1, 3, 16, 16), 3])
def test_images_must_be_an_iterable(images):
    given = "str 'folder' .of a folder pass its pictures" if isinstance(images, str) else type(images).__name__
    with pytest.raises(TypeError, match=f"calibrate: images must be an iterable of tensors or paths, got {given}"):
        calibrate(small_edsr(), images)


@pytest.mark.parametrize("images", [[], [torch.zeros(0, 3, 16, 16)]])
def test_there_must_be_images(images):
    with pytest.raises(ValueError, match="calibrate: images must hold at least one image, got none"):
        calibrate(small_edsr(), images)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((16, 16, 3)), TypeError, r"images\[1\] must be a tensor or a path, got ndarray"),
        (torch.zeros(3, 16, 16), ValueError, r"images\[1\] must be float or uint8 \[N, 3, H, W\], got torch.float32 \(3, 16, 16\)"),
        (torch.zeros(1, 1, 16, 16), ValueError, r"must be float or uint8 \[N, 3, H, W\], got torch.float32 \(1, 1, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.int64), ValueError, r"must be float or uint8 \[N, 3, H, W\], got torch.int64"),
        (torch.zeros(1, 3, 15, 40), ValueError, r"images\[1\] must be at least 16 pixels a side, got 15x40"),
        (torch.full((1, 3, 16, 16), 300.0), ValueError, r"images\[1\] must be finite and in 0..255, got values in 300..300"),
        (torch.full((1, 3, 16, 16), -1.0), ValueError, r"images\[1\] must be finite and in 0..255, got values in -1..-1"),
        (torch.full((1, 3, 16, 16), float("nan")), ValueError, r"images\[1\] must be finite and in 0..255, got values in nan"),
        (torch.full((1, 3, 16, 16), float("inf")), ValueError, r"images\[1\] must be finite and in 0..255, got values in inf"),
    ],
)
def test_images_that_are_refused(image, error, message):
    with pytest.raises(error, match=message):
        calibrate(small_edsr(), [noise(1)[0], image])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        calibrate(small_edsr(), [tmp_path / "nowhere.png"])


def test_images_of_another_range_are_noticed():
    with pytest.raises(ValueError, match=r"images must be in 0..255, and these look like 0..1: they end at 0.75"):
        calibrate(small_edsr(), [torch.full((1, 3, 16, 16), 0.75)])


def test_weights_that_overflow_are_told_by_their_layer():
    edsr = small_edsr()
    for block in edsr.body[:2]:
        for conv in (block.body[0], block.body[2]):
            nn.init.constant_(conv.weight, 9e8)
    nn.init.constant_(edsr.head[0].weight, 9e8)
    with pytest.raises(ValueError, match="model computes NaN or infinite values: the input of 'body.1.conv[12]' holds some"):
        calibrate(edsr, noise(1))


# Quality.


def calibration_images(count):
    paths = sorted(shared_path("data", "images", "calib").glob("*.png"))[:count]
    pictures = [np.array(Image.open(path).convert("RGB")) for path in paths]
    return [torch.from_numpy(imresize(picture, 0.5)).permute(2, 0, 1)[None] for picture in pictures]


def set5_psnr(model):
    scores = []
    for name in SET5:
        paths = [shared_path("data", "images", "set5", part, f"{name}.png") for part in ("LR_x4", "HR")]
        lr, hr = (np.array(Image.open(path).convert("RGB")) for path in paths)
        with torch.no_grad():
            y = model(torch.from_numpy(lr).permute(2, 0, 1)[None].float())
        sr = y[0].clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        scores.append(psnr_y(sr, hr[: sr.shape[0], : sr.shape[1]], 4))
    return np.mean(scores)


@pytest.fixture(scope="module")
def baseline():
    return load_state(shared_path("data", "weights", "edsr_baseline_x4.pt")), calibration_images(32)


def test_w4a4_beats_the_original_calibration(baseline):
    """30.62 dB after its calibration alone; its float network has 32.04."""
    model = calibrate(*baseline, ConvertConfig(patch=48, target_bits=4.0))
    assert 30.8 < set5_psnr(model) < 32.04


def test_w8a8_is_close_to_float(baseline):
    state, images = baseline
    model = calibrate(state, images[:16], ConvertConfig(weight_bits=8, act_bits=8, adaptive=False, patch=48))
    assert set5_psnr(model) > 32.04 - 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": 3}, "config must be a ConvertConfig, got int"),
        ({"config": {}}, "config must be a ConvertConfig, got dict"),
        ({"start": 3}, "start must be a calibrated or converted network, got int"),
    ],
)
def test_arguments_of_another_type_are_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        calibrate(small_edsr(), noise(2), **arguments)


def test_a_resume_file_without_an_identity_is_no_state(tmp_path):
    torch.save({"config": {}}, tmp_path / "run.resume")
    with pytest.raises(ValueError, match="is no state of a calibration"):
        calibrate(small_edsr(), noise(2), ConvertConfig(steps=1), resume=tmp_path / "run.resume")


@pytest.mark.parametrize("freetype", [True, False])
def test_drawn_pictures_of_any_pillow(freetype: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without FreeType there is one font, of one size. The third and the fourth picture are shrunk, so colours lie between."""
    if not freetype:
        monkeypatch.setattr(ImageFont, "core", DeferredError(ImportError("The _imagingft C module is not installed")))
        with pytest.raises(ImportError):
            ImageFont.load_default(40)
    pictures = drawn_pictures(4, 60, seed=3)
    assert all(picture.shape == (3, 60, 60) and bool((picture == picture.round()).all()) for picture in pictures)
    again = drawn_pictures(4, 60, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(pictures, again, strict=True))
    text, soft = pictures[1], pictures[3]
    assert 2 <= len(text.flatten(1).unique(dim=1).T) < len(soft.flatten(1).unique(dim=1).T)
    assert len(made_pictures(1)[3].flatten(1).unique(dim=1).T) >= 2  # there are letters
