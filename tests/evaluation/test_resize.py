"""imresize against MATLAB's: Set5's published low-resolution images are reproduced bit for bit."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from shared import shared_path

from adabm_kernels.evaluation.resize import imresize


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["baby", "bird", "butterfly", "head", "woman"])
def test_set5_bit_for_bit(name, scale):
    hr = np.array(Image.open(shared_path("data", "images", "set5", "HR", f"{name}.png")).convert("RGB"))
    lr = np.array(Image.open(shared_path("data", "images", "set5", f"LR_x{scale}", f"{name}.png")).convert("RGB"))
    h, w = (side // scale * scale for side in hr.shape[:2])
    assert np.array_equal(imresize(hr[:h, :w], 1 / scale), lr)


IMAGES = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=12))


@given(IMAGES)
def test_scale_one_changes_nothing(image):
    assert np.array_equal(imresize(image, 1), image)


@given(IMAGES, st.sampled_from([0.25, 1 / 3, 0.5, 0.8, 1.5, 2, 3, 4]))
def test_size_type_and_mirrors(image, scale):
    out = imresize(image, scale)
    assert out.dtype == np.uint8
    assert out.shape == (*(math.ceil(side * scale) for side in image.shape[:2]), *image.shape[2:])
    if all(float(side * scale).is_integer() for side in image.shape[:2]):
        # Weights of mirrored samples are summed in another order: the last bit of a double may tip a rounding.
        mirrored = imresize(image[::-1, ::-1], scale)[::-1, ::-1].astype(int)
        assert np.abs(mirrored - out).max() <= 1


@given(st.integers(0, 255), st.sampled_from([0.25, 0.5, 0.7, 2, 3]))
def test_a_flat_image_stays_flat(value, scale):
    assert (imresize(np.full((9, 11), value, np.uint8), scale) == value).all()


def test_floats_are_neither_rounded_nor_clipped():
    step = np.repeat([0.0, 1.0], 8)[None].repeat(8, 0)
    out = imresize(step, 2)
    assert out.dtype == np.float64
    assert out.min() < 0 and out.max() > 1
    assert np.allclose(imresize(step.astype(np.float32), 2), out)


@pytest.mark.parametrize("scale", [0, -1, float("nan")])
def test_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match=f"imresize: scale must be positive, got {scale}"):
        imresize(np.zeros((4, 4)), scale)


@pytest.mark.parametrize("shape", [(4,), (0, 4), (4, 4, 3, 1), (4, 0, 3)])
def test_image_must_have_pixels(shape):
    with pytest.raises(ValueError, match="imresize: image must be .H, W. or .H, W, C. and not empty, got shape"):
        imresize(np.zeros(shape), 2)
