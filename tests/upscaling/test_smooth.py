"""Smooth areas: flat colours stay flat, drawings are no worse than bicubic makes them, and cutting a picture changes nothing."""

import functools
from unittest import mock

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
import torch
from fake_model import FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st
from small import one_thread  # noqa: F401

from adabm_kernels import native
from adabm_kernels.backends import cpu
from adabm_kernels.evaluation.metrics import psnr, ssim_y
from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.models import builtin_models, load_model
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.upscale import upscale
from adabm_kernels.upscaling import cutting, interpolation
from adabm_kernels.upscaling.flat import Rect
from adabm_kernels.upscaling.interpolation import keeps_colours
from adabm_kernels.upscaling.patchwise import Patchwise
from adabm_kernels.upscaling.smooth import REACH, Smooth, enlarge, find_smooth, interpolate_reference, phases, rules

MODELS = [pytest.param(name, id=name) for name in builtin_models()]
FEW_BITS = "edsr_x4_w4a4"
STEPS = np.linspace(0, 255, 6), np.linspace(0, 255, 97)
COLOURS_SHOWN = [(r, g, b) for r in STEPS[0] for g in STEPS[0] for b in STEPS[0]] + [(v, v, v) for v in STEPS[1]]


few_bits = functools.cache(lambda: load_model(FEW_BITS))


@pytest.fixture(scope="module")
def models():
    """Built-in models with all blocks everywhere: what few bits do where nothing else helps."""

    def get(name):
        model = load_model(name)
        model.set_depth("full")
        return model

    return functools.cache(get)


def drawing(kind, side=256):
    """What people draw: shapes, text, slopes of colour, a page of an application."""
    rng, colour = np.random.default_rng(3), lambda: tuple(map(int, rng.integers(0, 256, 3)))
    place = lambda: tuple(map(int, rng.integers(0, side, 2)))  # noqa: E731
    image = PIL.Image.new("RGB", (side, side), (255, 255, 255) if kind == "text" else (245, 240, 225))
    draw = PIL.ImageDraw.Draw(image)
    if kind == "shapes":
        for shape in (draw.ellipse, draw.rectangle) * 4:
            x, y = place()
            shape([x, y, x + side // 4, y + side // 5], fill=colour(), outline="black", width=3)
    elif kind == "text":
        for row in range(7):
            draw.text((8, 8 + 34 * row), "Upscaling 0123"[row:], fill="black", font=PIL.ImageFont.load_default(28))
    elif kind == "page":
        draw.rectangle([0, 0, side, 40], fill=(36, 41, 47))
        for row in range(4):
            draw.rectangle([16, 56 + 48 * row, side - 16, 92 + 48 * row], fill="white", outline=(208, 215, 222), width=2)
            draw.text((28, 64 + 48 * row), f"Row {row}", fill=(36, 41, 47), font=PIL.ImageFont.load_default(20))
    else:
        slope = np.linspace(0, 255, side)
        slopes = [np.tile(slope, (side, 1)), np.tile(slope[:, None], (1, side)), 255 - np.tile(slope, (side, 1))]
        return np.stack(slopes, 2).round().astype(np.uint8)
    return np.array(image)


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def half_smooth(height=90, width=110):
    """A slope above, noise below, a frame of one colour on the left."""
    rgb = np.repeat(np.linspace(60, 180, width).astype(np.uint8)[None, :, None], height, 0).repeat(3, 2)
    rgb[height // 2 :] = noise(height - height // 2, width)
    rgb[:, : width // 4] = 200, 30, 60
    return rgb


@pytest.mark.parametrize("name", MODELS)
def test_flat_colours_come_out_as_they_are(models, name):
    assert len(COLOURS_SHOWN) == 313
    for colour in COLOURS_SHOWN:
        flat = np.full((12, 12, 3), np.rint(colour), np.uint8)
        assert np.array_equal(upscale(flat, models(name)), flat.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("kind", ["shapes", "text", "page", "slopes"])
@pytest.mark.parametrize("name", MODELS)
def test_drawings_are_no_worse_than_bicubic(models, name, kind):
    high = drawing(kind)
    low = imresize(high, 0.25)
    got, network = (ssim_y(upscale(low, models(name), smooth=smooth), high, 4) for smooth in ("auto", "network"))
    assert got >= ssim_y(imresize(low, 4), high, 4)
    assert got > network - 0.0005


def test_slopes_of_few_bits_have_no_stripes(models):
    low = imresize(drawing("slopes"), 0.25)
    got, network = (upscale(low, models(FEW_BITS), smooth=smooth) for smooth in ("auto", "network"))
    want = imresize(low, 4)
    assert psnr(got, want) > 55 > 45 > psnr(network, want)


@pytest.mark.parametrize("name", MODELS)
def test_alpha_is_all_or_nothing_away_from_its_edges(models, name):
    rgba = np.zeros((48, 64, 4), np.uint8)
    rgba[..., :3] = noise(48, 64)
    rgba[12:36, 20:44, 3] = 255
    alpha = upscale(rgba, models(name))[..., 3]
    reach = rules(4)[1].near + 2  # what is mixed reaches one pixel further
    inside = alpha[4 * (12 + reach) : 4 * (36 - reach), 4 * (20 + reach) : 4 * (44 - reach)]
    outside = alpha.copy()
    outside[4 * (12 - reach) : 4 * (36 + reach), 4 * (20 - reach) : 4 * (44 + reach)] = 0
    assert (inside == 255).all() and not outside.any()
    assert len(np.unique(alpha)) > 10  # the edge itself is the network's


def kinds():
    rgb = half_smooth()
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    alpha[20:60, 30:90] = np.linspace(0, 255, 60).astype(np.uint8)[None, :, None]
    yield "rgb", rgb
    yield "grey", rgb[..., :1]
    yield "opaque", np.dstack([rgb, np.full_like(alpha, 255)])
    yield "alpha", np.dstack([rgb, alpha])
    yield "grey-alpha", np.dstack([rgb[..., :1], alpha])
    yield "16-bit", rgb.astype(np.uint16) * 257 + np.uint16(77)
    yield "16-bit-alpha", np.dstack([rgb, alpha]).astype(np.uint16) * 257


@pytest.mark.parametrize("rows", [pytest.param(rows, id=kind) for kind, rows in kinds()])
def test_windows_change_nothing(models, rows):
    """What is skipped, joined or cut apart at fixed bits comes out as the picture taken whole."""
    model, varies = models(FEW_BITS), rows.shape[2] in (2, 4) and len(np.unique(rows[..., -1])) > 1
    whole = upscale(rows, model, bits=4, tile=0)
    for tile in (24, 64, None):
        record = []
        got = upscale(rows, model, bits=4, tile=tile, record=record)
        # A window whose alpha is one value throughout does without multiplying by it: docs/images.md.
        assert varies or np.array_equal(got, whole)
        assert varies or 0 < sum(patch.flat for patch in record) < rows.shape[0] * rows.shape[1]
    assert got.dtype == rows.dtype and got.shape[2] == rows.shape[2]


@st.composite
def drawn_pictures(draw):
    """Rectangles that are flat, noisy, sloping or nearly flat, of any kind of pixels; alpha varies everywhere or nowhere."""
    height, width, rng = draw(st.integers(1, 60)), draw(st.integers(1, 80)), np.random.default_rng(draw(st.integers(0, 999)))

    def area(height, width):
        kind = draw(st.sampled_from(["flat", "noise", "slope", "nearly"]))
        if kind == "noise":
            return rng.integers(0, 256, (height, width, 4))
        if kind == "slope":
            return np.linspace(rng.integers(0, 256, 4), rng.integers(0, 256, 4), width).astype(int)[None].repeat(height, 0)
        return (rng.integers(8, 248, 4) + rng.integers(-8, 9, (height, width, 4)) * (kind == "nearly")).clip(0, 255)

    pixels = area(height, width)
    for _ in range(draw(st.integers(0, 3))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        inner = pixels[top : draw(st.integers(top + 1, height)), left : draw(st.integers(left + 1, width))]
        inner[...] = area(*inner.shape[:2])
    alpha = draw(st.sampled_from(["none", "one", "varies"]))
    if alpha == "varies":
        pixels[..., 3] = rng.integers(0, 256, (height, width)) // 2 + pixels[..., 3] // 2
        pixels[::2, ::2, 3], pixels[1::2, ::2, 3] = 255, 0
    else:
        pixels[..., 3] = draw(st.integers(1, 255))
    shown = [slice(0, 3), slice(0, 1)] if alpha == "none" else [slice(0, 4), slice(2, 4)]
    pixels = pixels[..., draw(st.sampled_from(shown))]
    return (pixels * 257 + 100).clip(0, 65535).astype(np.uint16) if draw(st.booleans()) else pixels.astype(np.uint8)


@settings(max_examples=25)
@given(rows=drawn_pictures(), tile=st.integers(16, 40), joined=st.sampled_from([0, 1500, 1 << 20]), bits=st.integers(3, 5))
def test_windows_of_any_picture_change_nothing(rows, tile, joined, bits):
    model = few_bits()
    whole = upscale(rows, model, bits=bits, tile=0)
    with mock.patch.object(cutting, "JOINED_PIXELS", joined):
        assert np.array_equal(upscale(rows, model, bits=bits, tile=tile), whole)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_windows_round_as_the_whole_does(models, channels):
    """Of 16 bits, where the last place of a float shows."""
    rows = np.random.default_rng(channels).integers(0, 65536, (100, 130, channels)).astype(np.uint16)
    for tile in (17, 23):
        assert np.array_equal(upscale(rows, models(FEW_BITS), bits=4, tile=tile), upscale(rows, models(FEW_BITS), bits=4, tile=0))


def test_nothing_is_computed_of_a_smooth_picture(models, monkeypatch):
    model = models(FEW_BITS)
    for name in ("forward", "pixels"):
        monkeypatch.setattr(model, name, lambda *args: pytest.fail("the network ran"))
    low, record = imresize(drawing("slopes"), 0.25), []
    for tile in (0, 24, None):
        record.clear()
        got = upscale(low, model, tile=tile, record=record)
        assert psnr(got, imresize(low, 4)) > 55
        assert sum(patch.flat for patch in record) == 64 * 64 and not any(patch.seconds for patch in record)
    fading = np.dstack([low, np.linspace(1, 255, 64).astype(np.uint8)[None].repeat(64, 0)])
    assert np.abs(upscale(fading, model)[..., 3].astype(int) - imresize(fading[..., 3], 4)).max() <= 1


def test_six_pixels_of_halo_decide_what_is_smooth(models):
    """Of a picture that bends a little everywhere, and is interpolated throughout."""
    rows = np.random.default_rng(5).integers(100, 104, (50, 70, 3)).astype(np.uint8)
    whole, record = upscale(rows, models(FEW_BITS), tile=0), []
    for tile in (16, 19):
        assert np.array_equal(upscale(rows, models(FEW_BITS), tile=tile, halo=6, record=record), whole)
    assert sum(patch.flat for patch in record) == 2 * 50 * 70
    assert rules(4)[0].context + 1 == 6 <= EDSRSpec(2, 1, 4).radius


def test_rough_pictures_are_the_networks(models):
    rgb = noise(40, 50)
    assert np.array_equal(upscale(rgb, models(FEW_BITS)), upscale(rgb, models(FEW_BITS), smooth="network"))


def test_where_the_network_changes_colours_it_does_all(models):
    class Brighter(torch.nn.Upsample):
        def forward(self, x):
            return super().forward(x) + 5

    model = FakeModel()
    assert keeps_colours(model) and keeps_colours(models(FEW_BITS))
    assert not keeps_colours(FakeModel(float_weights=False))
    changed = FakeModel()
    changed.float_model = lambda: Brighter(scale_factor=4)
    assert not keeps_colours(changed)
    assert [Patchwise(changed, smooth=smooth).interpolates for smooth in ("auto", "interpolate", "network")] == [False, True, False]


def test_no_thread_gets_the_unfinished_answer_of_another():
    model, answers = FakeModel(), []
    float_model = model.float_model

    def asked_meanwhile():
        model.float_model = float_model
        answers.append(keeps_colours(model))
        return float_model()

    model.float_model = asked_meanwhile
    assert keeps_colours(model) and answers == [True]


def test_patches_of_the_paper_are_the_networks(models):
    low = imresize(drawing("slopes"), 0.5)
    assert np.abs(upscale(low, models(FEW_BITS), protocol="paper").astype(int) - imresize(low, 4)).max() > 4
    with pytest.raises(ValueError, match="smooth must be 'auto' or 'network' with protocol 'paper', got 'interpolate'"):
        upscale(low, models(FEW_BITS), protocol="paper", smooth="interpolate")
    with pytest.raises(ValueError, match="smooth must be one of 'auto', 'interpolate', 'network', got 'yes'"):
        upscale(low, models(FEW_BITS), smooth="yes")


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_enlarging_is_bicubic(scale):
    values = np.random.default_rng(1).uniform(0, 255, (9, 12, 2))
    got = enlarge(values, scale, phases(scale, "cubic"))
    want = imresize(values, scale)[scale * REACH : -scale * REACH, scale * REACH : -scale * REACH]
    assert np.abs(got - want).max() < 255 * 64 * 2**-24  # two sums of up to five terms in float32
    assert np.allclose(phases(scale, "linear").sum(1), 1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_shares_by_how_much_a_picture_bends(bits):
    """A step of so many levels: smooth, in between, rough."""
    rule, whole = rules(bits)[0], Rect(0, 40, 0, 40)
    for step in (rule.smooth, rule.rough - 1, rule.rough):
        pixels = np.full((40, 40, 1), 100, np.uint8)
        pixels[:, 20:] += np.uint8(step)
        shares = find_smooth(pixels, whole, whole, rule).shares[1:-1, 1:-1] / rule.full
        near, far = (rule.rough - step) / (rule.rough - rule.smooth), rule.context
        assert shares[:, 20 - 1 : 20 + 1] == pytest.approx(near)
        assert (shares[:, : 20 - far] == 1).all() and (shares[:, 20 + far :] == 1).all()
        assert (find_smooth(pixels, whole, whole, rule).computed() is None) == (step == rule.smooth)
    assert find_smooth(noise(40, 40), whole, whole, rule) is None
    assert rule.rough <= rules(max(bits - 1, 2))[0].rough and rules(4)[0][:2] == (12, 32)


def isas():
    if native.why_missing("cpu"):
        return []
    return [name for name in list(native.ISAS)[1:] if all(native.isa_built_and_present(name))]


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels, pitch", [(3, 3), (1, 1), (3, 4), (1, 2)], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("isa", isas())
def test_kernels_equal_the_reference(isa, dtype, channels, pitch, scale):
    rng, rule = np.random.default_rng(scale), rules(4)[0]
    most = 255 if dtype == np.uint8 else 65535
    picture = rng.integers(0, most, (40, 90, 4)).astype(dtype)[..., :channels]  # of which a kernel sees some channels
    if dtype == np.float32:
        picture[20, 20:70:9], picture[30, 3] = np.inf, -1e38  # nothing comes of them where the share is 0
    shares = rng.integers(0, rule.full + 1, (31, 75)).astype(np.int16)
    shares[:, :12], shares[9:20, 30:], shares[22:, 40:] = 0, rule.full, 0
    for top, left in ((0, 0), (11, 17), (3, 5)):  # at two corners of the picture, and inside it
        smooth = Smooth(Rect(top, top + 29, left, left + 73), shares, rule)
        there = rng.integers(0, most, (scale * 29, scale * 73, pitch)).astype(dtype)
        got, want = there.copy(), there.copy()
        with np.errstate(all="ignore"):
            interpolate_reference(smooth, picture, top, left, want[..., :channels])
        with native.force_isa(isa):
            kernels = phases(scale, "cubic"), phases(scale, "linear")
            cpu.interpolate(picture, top, left, shares, rule.full, *kernels, got[..., :channels], 2)
        assert np.array_equal(got, want, equal_nan=True)
        assert np.array_equal(got[:, : 10 * scale], there[:, : 10 * scale]) and not np.array_equal(got, there)


def call_of_kernels(x, y, shares):
    cpu.interpolate(x, 0, 0, shares, 400, phases(2, "cubic"), phases(2, "linear"), y, 1)


@pytest.mark.skipif(not isas(), reason="the CPU library was not built")
@pytest.mark.parametrize(
    "turn", [lambda a: a.transpose(1, 0, 2), lambda a: a[::-1, ::-1], lambda a: a[..., ::-1], lambda a: a[::2]]
)
def test_any_strides_of_a_picture(turn):
    x = turn(noise(16, 16))
    there = noise(2 * len(x), 32)
    shares = np.full((len(x) + 2, 18), 250, np.int16)
    got, want = there.copy(), there.copy()
    call_of_kernels(x, got, shares)
    interpolate_reference(Smooth(Rect(0, len(x), 0, 16), shares, rules(4)[0]._replace(rough=28)), x, 0, 0, want)
    assert np.array_equal(got, want) and not np.array_equal(got, there)


@pytest.mark.skipif(not isas(), reason="the CPU library was not built")
def test_arrays_that_kernels_cannot_take_are_refused():
    x, y, shares = noise(8, 8), noise(16, 16), np.full((10, 10), 9, np.int16)
    with pytest.raises(ValueError, match=r"y must be \(16, 16, 3\) of uint8, channels adjacent, got .* with strides \(48, 3, -1\)"):
        call_of_kernels(x, y[..., ::-1], shares)
    with pytest.raises(ValueError, match=r"y must be \(16, 16, 3\) of uint8, channels adjacent, got \(15, 16, 3\)"):
        call_of_kernels(x, y[1:], shares)
    with pytest.raises(ValueError, match=r"y must be .* of uint16, .* of uint8"):
        call_of_kernels(x.astype(np.uint16), y, shares)
    with pytest.raises(ValueError, match="shares must be int16 and contiguous, got int32"):
        call_of_kernels(x, y, shares.astype(np.int32))
    with pytest.raises(ValueError, match="shares must be int16 and contiguous, got int16"):
        call_of_kernels(x, y, shares.T[:, ::-1])
    with pytest.raises(ValueError, match="y_pitch must be at least channels 3, got -3"):
        call_of_kernels(x, y[:, ::-1], shares)
    packed = np.zeros((8, 8), [("colour", np.uint16, 3), ("more", np.uint8)])["colour"]
    with pytest.raises(ValueError, match="strides of x and y must be multiples of 2 bytes, got"):
        call_of_kernels(packed, y.astype(np.uint16), shares)


def test_without_kernels_the_reference_computes(models, monkeypatch):
    rgb = half_smooth()
    want = upscale(rgb, models(FEW_BITS))
    monkeypatch.setattr(interpolation.native, "why_missing", lambda name: "not built")
    assert np.array_equal(upscale(rgb, models(FEW_BITS)), want)
