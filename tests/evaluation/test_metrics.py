"""PSNR and SSIM against their definitions, hand-made cases and published figures."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from shared import shared_path

from adabm_kernels.evaluation import metrics
from adabm_kernels.evaluation.metrics import psnr, psnr_y, rgb_to_y, ssim_y
from adabm_kernels.evaluation.resize import imresize

PICTURES = hnp.arrays(np.uint8, st.tuples(st.integers(11, 20), st.integers(11, 20), st.just(3)))
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (24, 20, 3), dtype=np.uint8)


def test_luma_of_black_white_and_primaries():
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    want = [16, 16 + 255 * 219.859 / 256, 16 + 255 * 65.738 / 256, 16 + 255 * 129.057 / 256, 16 + 255 * 25.064 / 256]
    assert rgb_to_y(colours) == pytest.approx(want)


def test_psnr_of_a_known_error():
    assert psnr(np.zeros((2, 3)), np.full((2, 3), 5.0)) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(np.zeros(4), np.array([0.1, 0, 0, 0]), peak=1.0) == pytest.approx(10 * math.log10(4 / 0.01))
    assert psnr(torch.zeros(4), torch.ones(4)) == pytest.approx(20 * math.log10(255))
    assert psnr(PICTURE, PICTURE) == math.inf


@pytest.mark.parametrize(("a", "b"), [(np.zeros(3), np.zeros(4)), (np.zeros(0), np.zeros(0))])
def test_psnr_needs_one_shape(a, b):
    with pytest.raises(ValueError, match="psnr: a and b must have one shape and not be empty"):
        psnr(a, b)


def test_psnr_y_of_a_grey_shift():
    lighter = np.full((9, 9, 3), 103, np.uint8)
    want = 20 * math.log10(255 / (3 * 219.859 / 256))
    assert psnr_y(np.full((9, 9, 3), 100, np.uint8), lighter, 4) == pytest.approx(want)


def test_shaving_removes_the_border_alone():
    noisy = PICTURE.copy()
    noisy[:4], noisy[-4:], noisy[:, :4], noisy[:, -4:] = 0, 255, 7, 90
    assert psnr_y(noisy, PICTURE, 4) == math.inf
    assert ssim_y(noisy, PICTURE, 4) == pytest.approx(1)
    noisy[4, 4] ^= 1
    assert psnr_y(noisy, PICTURE, 4) < math.inf and ssim_y(noisy, PICTURE, 4) < 1


@given(st.data())
def test_symmetry_bounds_and_identity(data):
    a = data.draw(PICTURES)
    b = data.draw(hnp.arrays(np.uint8, a.shape))
    assert psnr_y(a, b, 0) == psnr_y(b, a, 0)
    # Where a window is flat, its variance is the difference of two roundings: 1e-9 covers 255^2 * 2^-52 / C2.
    assert ssim_y(a, b, 0) == pytest.approx(ssim_y(b, a, 0), abs=1e-9)
    assert abs(ssim_y(a, b, 0)) <= 1 + 1e-9
    assert ssim_y(a, a, 0) == pytest.approx(1, abs=1e-9)


def test_ssim_is_the_mean_over_windows_of_its_definition():
    a, b = rgb_to_y(PICTURE[2:-2, 2:-2]), rgb_to_y(imresize(imresize(PICTURE, 0.5), 2)[2:-2, 2:-2])
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq, cov = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum(), (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim_y(PICTURE, imresize(imresize(PICTURE, 0.5), 2), 2) == pytest.approx(np.mean(values), abs=1e-12)


def set5(folder):
    names = sorted(path.name for path in shared_path("data", "images", "set5", "HR").glob("*.png"))
    return [np.array(Image.open(shared_path("data", "images", "set5", folder, name)).convert("RGB")) for name in names]


@pytest.mark.parametrize(("scale", "published"), [(4, 28.43), (2, 33.67)])
def test_bicubic_on_set5_scores_what_is_published(scale, published):
    scores = []
    for hr, lr in zip(set5("HR"), set5(f"LR_x{scale}"), strict=True):
        sr = imresize(lr, scale)
        scores.append(psnr_y(sr, hr[: sr.shape[0], : sr.shape[1]], scale))
    assert np.mean(scores) == pytest.approx(published, abs=0.01)


def test_figures_of_the_original_implementation(monkeypatch):
    """Its SSIM leaves out the luma offset and repeats the border instead of staying inside; both can be arranged."""
    folder = shared_path("reference", "edsr_baseline_x4_fq_w4a4")
    results = {entry["image"]: entry for entry in json.loads((folder / "results.json").read_text())}
    monkeypatch.setattr(metrics, "LUMA_OFFSET", 0.0)
    names = ("baby", "bird", "butterfly", "head", "woman")
    for name, hr in zip(names, set5("HR"), strict=True):
        sr = np.array(Image.open(folder / f"set5_{name}.png").convert("RGB"))
        hr = hr[: sr.shape[0], : sr.shape[1]]
        padded = [np.pad(image[4:-4, 4:-4], ((5, 5), (5, 5), (0, 0)), "edge") for image in (sr, hr)]
        want = results[f"set5_{name}"]
        assert psnr_y(sr, hr, 4) == pytest.approx(want["psnr_y"], abs=5.1e-5)  # printed with 4 digits
        # Printed with 5 digits; computed in float32, where a variance is the difference of squares up to 219^2.
        assert ssim_y(*padded, 0) == pytest.approx(want["ssim_y"], abs=5e-6 + 219**2 * 2**-24 / 7.65**2)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_what_is_not_a_pair_of_pictures(metric):
    name = metric.__name__
    with pytest.raises(TypeError, match=f"{name}: sr must be a uint8 array, got float64"):
        metric(PICTURE.astype(float), PICTURE, 0)
    with pytest.raises(TypeError, match=f"{name}: hr must be a uint8 array, got list"):
        metric(PICTURE, [1], 0)
    with pytest.raises(ValueError, match=rf"{name}: sr and hr must be \[H, W, 3\] of one size, got \(24, 20, 3\) and"):
        metric(PICTURE, PICTURE[1:], 0)
    with pytest.raises(ValueError, match=rf"{name}: sr and hr must be \[H, W, 3\] of one size"):
        metric(PICTURE[..., 0], PICTURE[..., 0], 0)
    for shave in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"{name}: shave must be a whole number of pixels, at least 0, got {shave}"):
            metric(PICTURE, PICTURE, shave)


@pytest.mark.parametrize(("metric", "shave", "least"), [(psnr_y, 10, 1), (ssim_y, 5, 11)])
def test_nothing_left_after_shaving(metric, shave, least):
    with pytest.raises(ValueError, match=f"{least} pixels a side must be left after shaving {shave}, got a 24x20 picture"):
        metric(PICTURE, PICTURE, shave)
    assert metric(PICTURE, PICTURE, shave - 1) > 0
