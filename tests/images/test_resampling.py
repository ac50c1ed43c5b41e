"""The resampler against the same filter in floats; what must be exact is; and no cut into bands shows."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adabm_kernels.evaluation.resize import taps
from adabm_kernels.images import Layout
from adabm_kernels.upscaling.resampling import Resampler, resample

RNG = np.random.default_rng(11)


def resampled(rows, width, height, cuts=()):
    """A whole picture through the resampler, given in pieces that end at these rows."""
    layout = Layout(rows.shape[1], rows.shape[0], rows.shape[2], 8 * rows.itemsize)
    resampler = Resampler(layout, width, height)
    assert (resampler.target.width, resampler.target.height) == (width, height)
    return np.concatenate([resampler.rows(piece) for piece in np.split(rows, sorted(cuts))])


def filtered(image, width, height):
    """The filter in float64 without any rounding, [H, W, C] -> [height, width, C]."""
    for axis, new in ((0, height), (1, width)):
        size = image.shape[axis]
        matrix = np.zeros((new, size))
        index, weight = taps(np.arange(new), size, new / size)
        np.add.at(matrix, (np.arange(new)[:, None], index), weight)
        image = np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis)
    return image


def noise(height, width, channels, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)


SIZES = [
    *((40, 30, 20, 15), (33, 47, 50, 59), (97, 61, 31, 200), (200, 3, 7, 2), (9, 7, 9, 7)),
    *((1, 1, 5, 3), (60, 1, 13, 1), (1, 60, 1, 13), (1700, 2, 1, 1), (5, 900, 3, 2)),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_filter_in_floats_rounded_once(size, dtype, channels):
    height, width, new_width, new_height = size
    rows = noise(height, width, channels, dtype)
    got = resampled(rows, new_width, new_height)
    want = filtered(rows.astype(np.float64), new_width, new_height).clip(0, np.iinfo(dtype).max)
    assert got.shape == (new_height, new_width, channels) and got.dtype == dtype
    assert np.abs(got - want).max() <= (0.501 if dtype == np.uint8 else 0.55)  # weights have 22 bits


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_colours_are_weighted_by_their_alpha(dtype, channels):
    most = np.iinfo(dtype).max
    rows = noise(50, 41, channels, dtype)
    rows[:, :12, -1], rows[:, 30:, -1] = 0, most
    got = resampled(rows, 23, 31).astype(np.float64)
    alpha = rows[..., -1:] / most
    want_alpha = filtered(alpha, 23, 31)
    assert np.abs(got[..., -1:] / most - want_alpha.clip(0, 1)).max() <= 0.51 / most
    want = filtered(rows[..., :-1] * alpha, 23, 31) / np.maximum(want_alpha, 1 / most)
    seen = want_alpha[..., 0] > 2 / 255
    assert np.abs(got[..., :-1] - want.clip(0, most))[seen].max() <= 0.6
    assert not got[got[..., -1] == 0].any() and (got[..., -1] == 0).any() and (got[..., -1] == most).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("new", [(20, 15), (77, 60), (1, 1), (41, 2)], ids=str)
def test_what_is_flat_opaque_or_empty_stays_so(dtype, new):
    most = np.iinfo(dtype).max
    colour = np.array([most, 1, most // 3, 0], dtype)[None, None].repeat(50, 0).repeat(41, 1)
    assert (resampled(colour[..., :3].copy(), *new) == colour[0, 0, :3]).all()
    colour[..., -1] = most
    assert (resampled(colour, *new) == colour[0, 0]).all()
    opaque = noise(50, 41, 4, dtype)
    opaque[..., -1] = most
    got = resampled(opaque, *new)
    assert (got[..., -1] == most).all() and np.array_equal(got[..., :-1], resampled(opaque[..., :-1].copy(), *new))
    opaque[..., -1] = 0
    assert not resampled(opaque, *new).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_colour_under_an_edge_of_alpha_stays_it(dtype):
    """No fringe, whatever colour the transparent pixels have in the file."""
    most = np.iinfo(dtype).max
    rows = np.empty((40, 40, 4), dtype)
    rows[...] = (most, most // 5, 0, most)
    rows[:, 20:] = (0, most, most, 0)
    rows[10:, 5:20, -1] = RNG.integers(most // 40, most, (30, 15))
    got = resampled(rows, 27, 23)
    seen = got[..., -1] > most // 255
    edge = got[..., -1].astype(int)
    assert (got[seen][:, :3] == (most, most // 5, 0)).all() and ((edge > 0) & (edge < most)).any()


@pytest.mark.parametrize("channels", [1, 3, 4])
@settings(max_examples=20)
@given(
    st.tuples(*[st.integers(1, 150)] * 2),
    st.tuples(*[st.integers(1, 150)] * 2),
    st.lists(st.integers(0, 150), max_size=6),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_no_cut_into_bands_shows(channels, size, new, cuts, dtype):
    rows = np.random.default_rng(size[0]).integers(0, np.iinfo(dtype).max + 1, (*size, channels), dtype=dtype)
    whole = resampled(rows, *new)
    assert np.array_equal(resampled(rows, *new, cuts), whole)
    assert np.array_equal(resampled(rows, *new, range(1, size[0])), whole)


def test_threads_change_no_bit():
    rows = noise(300, 700, 3)
    with ThreadPoolExecutor(3) as pool:
        resampler = Resampler(Layout(700, 300, 3), 600, 222, pool.map)
        got = np.concatenate([resampler.rows(piece) for piece in np.split(rows, [70, 71, 200])])
    assert np.array_equal(got, resampled(rows, 600, 222)) and len(resampler._strips) == 3


@pytest.mark.parametrize("new", [(32, 32), (48, 48), (50, 21), (100, 90)], ids=str)
def test_nothing_moves(new):
    """A mirrored picture becomes the mirrored result, and the middle of a spot stays in the middle: no shift by half a pixel."""
    y, x = np.mgrid[:64, :64] + 0.5
    rows = np.rint(200 * np.exp(-((x - 32) ** 2 + (y - 32) ** 2) / 160))[..., None].astype(np.uint8)
    got = resampled(rows, *new)
    assert np.array_equal(got, got[::-1, ::-1])
    off = np.rint(200 * np.exp(-((x - 20) ** 2 + (y - 41) ** 2) / 60))[..., None].astype(np.uint8)
    moved = resampled(off, *new)[..., 0].astype(float)
    columns, rows_ = (np.arange(n) + 0.5 for n in new)
    centre = (moved.sum(0) @ columns / moved.sum() * 64 / new[0], moved.sum(1) @ rows_ / moved.sum() * 64 / new[1])
    assert centre == pytest.approx((20, 41), abs=0.06)


def test_a_ramp_stays_a_ramp_and_an_edge_rings_no_more_than_the_filter_must():
    ramp = np.arange(200, dtype=np.uint8)[None, :, None].repeat(40, 0)
    got = resampled(ramp, 100, 20)[..., 0].astype(float)
    assert (got == got[0]).all() and np.abs(got[0] - (2 * np.arange(100) + 0.5))[2:-2].max() <= 0.5
    edge = np.full((40, 200, 1), 60, np.uint8)
    edge[:, 100:] = 180
    got = resampled(edge, 100, 20)[..., 0]
    assert got.min() >= 60 - math.ceil(0.08 * 120) and got.max() <= 180 + math.ceil(0.08 * 120)
    changed = np.flatnonzero(got[0] != np.where(np.arange(100) < 50, 60, 180))
    assert changed.min() >= 50 - 2 and changed.max() < 50 + 2


def test_tensors_of_any_type():
    x = torch.from_numpy(noise(30, 41, 3).transpose(2, 0, 1)[None].astype(np.float32)).repeat(2, 1, 1, 1)
    got = resample(x, 20, 17)
    want = filtered(x[0].permute(1, 2, 0).double().numpy(), 20, 17).transpose(2, 0, 1)
    assert got.dtype == torch.float32 and got.shape == (2, 3, 17, 20)
    assert np.abs(got.numpy() - want).max() < 1e-4 and resample(x.double(), 20, 17).dtype == torch.float64


def test_memory_is_that_of_some_rows():
    """What it holds is within its estimate, and does not grow with the height."""
    for size, new in (((4000, 300), (150, 2000)), ((300, 4000), (2000, 150)), ((2000, 500), (9, 30))):
        layout = Layout(size[1], size[0], 3)
        resampler = Resampler(layout, *new)
        most = 0
        for _ in range(size[0] // 50):
            resampler.rows(np.zeros((50, size[1], 3), np.uint8))
            arrays = [block.matrix for block in resampler._strips[0]._across]
            for strip in resampler._strips:
                arrays += [strip._samples, strip._resized, strip._part, *strip._sums]
                arrays += [sums for _, sums in strip._open] + [block.matrix for block, _ in strip._open]
            most = max(most, sum(array.nbytes for array in arrays))
        assert most <= Resampler.held_bytes(layout, *new) <= 4 * most


def test_a_photograph_is_that_of_pillow():
    """Pillow's bicubic has another rule at the borders only."""
    y, x = np.mgrid[:80, :60]
    rows = np.stack([127 + 100 * np.sin(x / 5), 127 + 90 * np.cos(y / 7), (x * y) % 200], 2).astype(np.uint8)
    want = np.array(PIL.Image.fromarray(rows).resize((30, 40), PIL.Image.Resampling.BICUBIC))
    got = resampled(rows, 30, 40)
    assert np.abs(got.astype(int) - want)[4:-4, 4:-4].max() <= 1
