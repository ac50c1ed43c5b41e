"""Pictures in windows: equal to the whole picture with the full halo, cheap where smooth, in bounded memory."""

import math
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from command_line import ENVIRONMENT, HELPERS
from fake_model import FakeModel
from small import one_thread, small_edsr  # noqa: F401

from adabm_kernels import ConvertConfig, convert_model, machine
from adabm_kernels.evaluation.metrics import psnr
from adabm_kernels.images import Layout
from adabm_kernels.models import _ASSETS, load_model
from adabm_kernels.nn.layer_times import layer_times
from adabm_kernels.upscale import upscale, upscale_file, upscale_many
from adabm_kernels.upscaling import cutting, patchwise
from adabm_kernels.upscaling.cutting import default_tile
from adabm_kernels.upscaling.enlarge import Enlarger
from adabm_kernels.upscaling.patchwise import Patchwise
from adabm_kernels.upscaling.picture import reading
from adabm_kernels.upscaling.sizes import Size

RNG = np.random.default_rng(5)
SAMPLE = _ASSETS / "sample.png"

needs_builtin = pytest.mark.skipif(
    not (_ASSETS / "edsr_x4_w6a6.safetensors").is_file(), reason="the built-in model's file is not there"
)


@pytest.fixture(scope="module")
def model():
    """A small adaptive network x2 whose thresholds make smooth patches cheap and busy ones dear."""
    calibration = [torch.from_numpy(picture(48, 48, seed)).permute(2, 0, 1)[None].float() for seed in range(4)]
    return convert_model(small_edsr(), calibration=calibration, config=ConvertConfig(weight_bits=4, act_bits=4, depths="none"))


def picture(height, width, seed=0):
    """Smooth on the left, noise on the right."""
    rng = np.random.default_rng(seed)
    rgb = np.add.outer(np.arange(height), np.arange(width))[..., None].repeat(3, 2) / (height + width) * 200
    rgb[:, width // 2 :] = rng.integers(0, 256, (height, width - width // 2, 3))
    return rgb.astype(np.uint8)


def watch(monkeypatch, model, seen):
    """Have `seen` called with what every forward pass is given."""
    for name in ("forward", "pixels"):
        run = getattr(model, name)
        monkeypatch.setattr(model, name, lambda x, offset, run=run: seen(x, offset) or run(x, offset))


@pytest.mark.parametrize("joined", [0, 2500, 1 << 20], ids="joined{}".format)
@pytest.mark.parametrize("size", [(40, 70), (33, 21), (90, 64)], ids=str)
@pytest.mark.parametrize("tile", [16, 24])
def test_full_halo_leaves_no_difference(model, size, tile, joined, monkeypatch):
    monkeypatch.setattr(cutting, "JOINED_PIXELS", joined)
    rgb = picture(*size)
    for bits in (2, 4, 8):
        whole = upscale(rgb, model, bits=bits, tile=0)
        assert np.array_equal(upscale(rgb, model, bits=bits, tile=tile, halo=model.spec.radius), whole)
    if not joined:
        assert not np.array_equal(upscale(rgb, model, bits=4, tile=tile, halo=0), upscale(rgb, model, bits=4, tile=0))
    model.set_bits("auto")


@pytest.mark.parametrize("kind", ["colours", "grey", "alpha", "resized", "in bands"])
@pytest.mark.parametrize("smooth", ["network", "interpolate"])
def test_several_pictures_are_computed_together_as_each_alone(model, monkeypatch, kind, smooth):
    """Those of the same bits in one pass; noise, a slope, one colour, and what is transparent everywhere among them."""
    model.set_bits("auto")
    rgb = [picture(40, 44), picture(40, 44, 1), picture(40, 44)[:, ::-1], np.full((40, 44, 3), 90, np.uint8), picture(40, 44)[::-1]]
    if kind == "grey":
        rgb = [rows[..., :1] for rows in rgb]
    if kind == "alpha":
        alpha = [picture(40, 44, 7)[..., :1], np.full((40, 44, 1), 255, np.uint8), np.zeros((40, 44, 1), np.uint8)]
        rgb = [np.concatenate([rows, alpha[number % 3]], 2) for number, rows in enumerate(rgb)]
    if kind == "in bands":
        monkeypatch.setattr(cutting, "JOINED_PIXELS", 0)
    network = Enlarger(
        Patchwise(model, smooth=smooth, tile=16 if kind == "in bands" else None), Size(1.5) if kind == "resized" else None
    )
    layout = Layout(44, 40, rgb[0].shape[2])
    alone, records = [], [[] for _ in rgb]
    for rows in rgb:
        record = []
        alone.append((record, list(network.picture(reading(rows), layout, record=record))))
    passes = []
    watch(monkeypatch, model, lambda x, offset: passes.append(len(x)))
    together = network.pictures(rgb, layout, records)
    for (record, bands), others, patches in zip(alone, together, records, strict=True):
        assert len(bands) == len(others) and all(map(np.array_equal, bands, others))
        assert [replace(patch, seconds=0) for patch in record] == [replace(patch, seconds=0) for patch in patches]
    in_bands = kind == "in bands"
    assert (len(bands) > 1) == in_bands and (in_bands or max(passes) >= 2)


@pytest.mark.parametrize("channels", [3, 4])
def test_neighbours_of_the_same_bits_are_computed_as_one(model, monkeypatch, channels):
    """With the full halo the result is that of the windows alone, each with the bits that it decided for by itself."""
    rgb = picture(40, 160)
    if channels == 4:
        rgb = np.dstack([rgb, np.full((40, 160), 255, np.uint8)])
        rgb[:, 30:70, 3] = 120  # some windows have two opacities, some this one
    outputs, records, widths = [], [], []
    watch(monkeypatch, model, lambda x, offset: widths[-1].extend([x.shape[3]] * len(x)))
    for joined in (0, 1 << 20):
        monkeypatch.setattr(cutting, "JOINED_PIXELS", joined)
        records.append([])
        widths.append([])
        outputs.append(upscale(rgb, model, bits="auto", tile=16, halo=model.spec.radius, record=records[-1]))
    assert np.array_equal(*outputs)
    alone, together = ({(p.y, p.x, p.height, p.width): (p.offset, p.mean_bits) for p in record} for record in records)
    assert alone == together and len({offset for offset, _ in alone.values()}) > 1
    assert len(set(widths[0])) == 1 and max(widths[1]) > max(widths[0]) and sum(widths[1]) < sum(widths[0])


def test_rows_of_windows_are_computed_as_one_too(model, monkeypatch):
    """Smooth on the left, noise on the right: two windows as high as the picture, or as the rows that may be together."""
    rgb, shapes, outputs, records = picture(160, 96), [], [], []
    watch(monkeypatch, model, lambda x, offset: shapes.append(tuple(x.shape[2:])))
    radius = model.spec.radius
    for joined in (0, 80 * 96, 1 << 20):
        monkeypatch.setattr(cutting, "JOINED_PIXELS", joined)
        shapes.clear()
        records.append([])
        outputs.append(upscale(rgb, model, bits="auto", tile=48, halo=radius, record=records[-1], smooth="network"))
        if joined:
            assert all(height * width <= joined for height, width in shapes)
    assert len(records[0]) == 3 * 2 and shapes == [(160, 48 + radius)] * 2
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])
    seen = [{(p.y, p.x, p.height, p.width): p.offset for p in record} for record in records]
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0].values())) == 2
    x = torch.from_numpy(rgb).permute(2, 0, 1).float()
    shapes.clear()
    tensor = upscale(x, model, tile=48, halo=radius)
    assert shapes == [(160, 48 + radius)] * 2
    assert np.array_equal(tensor.round().permute(1, 2, 0).numpy().astype(np.uint8), outputs[0])


def test_rows_together_are_bounded_by_memory(model):
    """As many rows of windows as one window across the picture may have, with its output, and never less than one."""
    layout, pixel = Layout(400, 3000, 3), model.bytes_per_pixel()
    for count in (1, 3, 9):
        network = Patchwise(model, tile=100, max_memory=1 << 40)
        rows, _ = network.windows(3000, 400, layout)
        bands = 2 * rows[count - 1].last * network.scale**2 * layout.row_bytes
        network.max_memory = machine.resident_bytes() + cutting.RESERVE + bands + (rows[count - 1].stop + 40) * 400 * pixel
        groups, joined = network.cutting.groups(rows, 400, layout)
        assert [row for group in groups for row in group] == rows and joined <= cutting.JOINED_PIXELS
        assert max(map(len, groups)) == count
    assert network.cutting.groups(rows, 1 << 20)[0] == [[row] for row in rows]


def test_radius_is_that_of_an_impulse():
    """One pixel changes outputs up to the radius and no further."""
    network = small_edsr(blocks=3)
    x = torch.zeros(1, 3, 41, 41)
    y = network(x)
    x[0, :, 20, 20] = 255
    changed = (network(x) - y).abs().amax((0, 1)) > 0
    rows = changed.any(1).nonzero().flatten() // network.spec.scale
    assert 20 - rows.min() <= network.spec.radius and rows.max() - 20 <= network.spec.radius
    assert network.spec.radius == 1 + 2 * 3 + 1 + math.ceil(1 + 1 / 2)


@needs_builtin
@pytest.mark.parametrize("bits", [3, 6])
def test_default_halo_leaves_no_visible_seam(bits):
    model = load_model("edsr_x4_w4a4")
    rgb = np.array(PIL.Image.open(SAMPLE).convert("RGB"))[:112]
    whole = upscale(rgb, model, bits=bits, tile=0).astype(float)
    # Windows far smaller than the default ones have more seams for their pixels.
    assert psnr(torch.from_numpy(upscale(rgb, model, bits=bits, tile=64).astype(float)), torch.from_numpy(whole), 255.0) >= 60


def test_every_window_has_its_own_bits(model):
    patches = []
    upscale(picture(64, 128), model, bits="auto", tile=32, halo=4, record=patches)
    left = [patch for patch in patches if patch.x + patch.width <= 60]
    right = [patch for patch in patches if patch.x >= 66]
    assert left and right
    assert max(patch.mean_bits for patch in left) < min(patch.mean_bits for patch in right)
    assert sum(patch.height * patch.width for patch in patches) == 64 * 128


def test_batches_hold_windows_of_one_bit_width(model, monkeypatch):
    offsets = []
    watch(monkeypatch, model, lambda x, offset: offsets.append(offset.tolist()))
    upscale(picture(96, 480), model, bits="auto", protocol="paper")
    assert (
        all(len(set(batch)) == 1 for batch in offsets) and max(map(len, offsets)) > 1 and len({batch[0] for batch in offsets}) > 1
    )


def test_paper_protocol_is_that_of_evaluate(model):
    rgb = picture(100, 200)
    got = upscale(rgb, model, bits="auto", protocol="paper")
    parts = [upscale(np.ascontiguousarray(part), model, tile=0) for part in (rgb[:, :96], rgb[:, 96:])]
    assert np.array_equal(got, np.concatenate(parts, 1))


def test_tensors_are_cut_like_pictures(model):
    rgb = picture(40, 70)
    x = torch.from_numpy(rgb).permute(2, 0, 1).float()
    y = upscale(torch.stack([x, x.flip(2)]), model, tile=24, halo=4)
    for got, source in zip(y, (rgb, rgb[:, ::-1].copy()), strict=True):
        want = upscale(source, model, tile=24, halo=4, smooth="network")
        assert np.array_equal(got.round().permute(1, 2, 0).numpy().astype(np.uint8), want)


@pytest.mark.parametrize("size, tile", [((40, 70), 16), ((33, 21), 0)], ids=str)
def test_pixels_that_the_network_writes_are_those_made_of_floats(model, size, tile, monkeypatch):
    rgb = picture(*size)
    calls, pixels = [], type(model).pixels
    monkeypatch.setattr(type(model), "pixels", lambda self, *args: calls.append(args) or pixels(self, *args))
    written = upscale(rgb, model, tile=tile)
    assert calls
    calls.clear()
    monkeypatch.setattr(Patchwise, "_finishes", lambda self, layout: False)
    assert np.array_equal(upscale(rgb, model, tile=tile), written) and not calls
    monkeypatch.undo()
    monkeypatch.setattr(type(model), "pixels", lambda self, *args: calls.append(args) or pixels(self, *args))
    for other in (rgb[..., 0], np.dstack([rgb, rgb[..., :1]]), rgb.astype(np.uint16) * 257):
        upscale(other, model, tile=tile)
    upscale(rgb, model, tile=tile, tta=True)
    assert not calls


def test_self_ensemble_is_the_mean_over_flips_and_turns(model):
    rgb = picture(20, 30)
    x = torch.from_numpy(rgb).permute(2, 0, 1).float()[None]
    offset = model.image_offsets(x)
    total = torch.zeros(1, 3, 40, 60, dtype=torch.float64)
    for turns in range(4):
        for flip in (False, True):
            seen = torch.rot90(x.flip(3) if flip else x, turns, (2, 3)).contiguous()
            y = torch.rot90(model(seen, offset), -turns, (2, 3))
            total += (y.flip(3) if flip else y).double()
    got = upscale(x, model, tta=True)
    # Seven additions and one division in float32 of values below 2 * 255: half a unit of the last place each.
    assert (got - (total / 8).clamp(0, 255)).abs().max() <= 8 * 8 * 512 * 2**-24


def test_colours_under_full_transparency_do_not_matter(model):
    alpha = np.zeros((24, 40), np.uint8)
    alpha[4:20, 6:30] = 255
    alpha[10, 10] = 77
    rgb = picture(24, 40)
    results = []
    for hidden in (0, 200):
        seen = np.where(alpha[..., None] > 0, rgb, hidden).astype(np.uint8)
        results.append(upscale(np.dstack([seen, alpha]), model, bits=6))
    assert np.array_equal(*results)
    assert not upscale(np.zeros((8, 9, 4), np.uint8), model).any()


@needs_builtin
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colours", [1, 3])
def test_what_becomes_fully_transparent_has_no_colour(dtype, colours):
    alpha = np.zeros((24, 40, 1), dtype)
    alpha[4:20, 6:30] = np.iinfo(dtype).max
    colour = np.full((24, 40, colours), np.iinfo(dtype).max // 2, dtype)
    y = upscale(np.concatenate([colour, alpha], 2), load_model("edsr_x4_w4a4"))
    clear = y[..., -1] == 0
    assert clear.any() and not y[clear].any()


@needs_builtin
def test_a_transparent_picture_looks_like_the_picture_it_shows():
    """Upscaled and laid over a ground, it is close to what is laid over the ground and upscaled."""
    model = load_model("edsr_x4_w6a6")
    rgb = np.array(PIL.Image.open(SAMPLE).convert("RGB"))[40:104, 40:104].astype(float)
    y, x = np.mgrid[:64, :64]
    alpha = np.clip((26 - np.hypot(y - 32, x - 32)) / 2 + 0.5, 0, 1)[..., None]
    got = upscale(np.dstack([rgb, alpha * 255]).round().astype(np.uint8), model).astype(float)
    naive = upscale(rgb.astype(np.uint8), model).astype(float)
    for ground in (0.0, 255.0):
        want = upscale((rgb * alpha + ground * (1 - alpha)).round().astype(np.uint8), model).astype(float)
        shown = got[..., :3] * got[..., 3:] / 255 + ground * (1 - got[..., 3:] / 255)
        opaque = np.abs(naive - want).mean()
        assert np.abs(shown - want).mean() < 0.1 * opaque and np.sqrt(((shown - want) ** 2).mean()) < 4


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_kind_of_array_in_windows(channels, dtype):
    rows = RNG.integers(1, np.iinfo(dtype).max + 1, (40, 50, channels), dtype=dtype)
    got = upscale(rows, FakeModel(), tile=16, halo=3)
    assert got.dtype == dtype and np.array_equal(got, rows.repeat(4, 0).repeat(4, 1))
    if channels == 1:
        assert np.array_equal(upscale(rows[..., 0], FakeModel()), got[..., 0])


def test_sixteen_bits_stay_sixteen(model):
    rows = np.linspace(0, 65535, 40 * 50).reshape(40, 50, 1).astype(np.uint16)
    assert len(np.unique(upscale(rows, model, bits=8))) > 1000


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 70), (70, 3)], ids=str)
def test_narrow_pictures(model, size):
    rgb = picture(*size)
    assert upscale(rgb, model, tile=16, halo=4).shape == (2 * size[0], 2 * size[1], 3)


def test_many_in_order_with_progress(model):
    images = [picture(8 + i, 9) for i in range(5)]
    calls = []
    results = list(upscale_many(images, model, progress=lambda *call: calls.append(call)))
    assert all(np.array_equal(got, upscale(image, model)) for got, image in zip(results, images, strict=True))
    assert calls == [(i + 1, 5) for i in range(5)]
    assert len(list(upscale_many(iter(images), model))) == 5
    with pytest.raises(TypeError, match="got NoneType"):
        list(upscale_many([images[0], None], model))


@pytest.mark.parametrize("in_flight", [2, 3, 8])
def test_many_side_by_side(model, in_flight):
    """Results in order whichever is done first, and an error when its turn comes."""
    images = [picture(16 + 8 * i % 24, 20, i) for i in range(6)]
    want = [upscale(image, model) for image in images]
    calls = []
    results = list(upscale_many(images, model, in_flight=in_flight, progress=lambda *call: calls.append(call)))
    assert all(np.array_equal(a, b) for a, b in zip(results, want, strict=True)) and calls == [(i + 1, 6) for i in range(6)]
    tensors = [torch.from_numpy(image).permute(2, 0, 1).float() for image in images]
    one_by_one = list(upscale_many(tensors, model))
    assert all(torch.equal(a, b) for a, b in zip(upscale_many(iter(tensors), model, in_flight=in_flight), one_by_one, strict=True))
    taken = upscale_many([images[0], None, images[1]], model, in_flight=in_flight)
    assert np.array_equal(next(taken), want[0])
    with pytest.raises(TypeError, match="image must be a path"):
        next(taken)
    assert list(upscale_many([], model, in_flight=in_flight)) == []
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"in_flight must be an integer of at least 1, got {wrong}"):
            next(upscale_many(images, model, in_flight=wrong))
    model.set_running_thresholds(0.1)
    try:
        with pytest.raises(
            ValueError, match=f"in_flight must be 1 while thresholds follow the images in their order, got {in_flight}"
        ):
            next(upscale_many(images, model, in_flight=in_flight))
    finally:
        model.set_running_thresholds(0)


def test_several_at_once_only_where_it_pays(model, monkeypatch):
    assert len(Patchwise(model).lanes(None)) == 1
    monkeypatch.setattr(Patchwise, "_device", lambda self: torch.device("cuda"))
    monkeypatch.setattr(patchwise, "lanes", lambda device, count: [device] * count)
    assert len(Patchwise(model).lanes(None)) == 2 and len(Patchwise(model).lanes(4)) == 4
    assert len(Patchwise(model, max_memory=1 << 30).lanes(None)) == 1
    model.set_running_thresholds(0.1)
    try:
        assert len(Patchwise(model).lanes(None)) == 1
    finally:
        model.set_running_thresholds(0)


def test_threads_may_share_a_model(model):
    images = [picture(30 + i, 40) for i in range(6)]
    want = [upscale(image, model, bits="auto", tile=16, halo=4) for image in images]
    got = [None] * 6

    def work(i):
        for _ in range(3):
            got[i] = upscale(images[i], model, tile=16, halo=4)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(np.array_equal, got, want))


def test_only_windows_get_a_lent_output(model):
    """Outputs of a forward pass are the caller's own; in `lending_output` the next one may take their place."""
    x, other = (torch.from_numpy(picture(20, 30, seed)).permute(2, 0, 1)[None].float() for seed in (1, 2))
    upscale(picture(20, 30), model)
    want, kept = model(x).clone(), model(x)
    assert not torch.equal(model(other), want) and torch.equal(kept, want)
    with model.lending_output():
        lent = model(x)
        assert torch.equal(lent, want)
        assert model(other).data_ptr() == lent.data_ptr() != kept.data_ptr()
    assert model(x).data_ptr() != lent.data_ptr()


def test_progress_counts_windows(model):
    calls = []
    upscale(picture(40, 70), model, tile=16, halo=4, progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1] > 1 and [done for done, _, _ in calls] == sorted({done for done, _, _ in calls})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": -1}, "tile must be an integer of at least 0, got -1"),
        ({"tile": 5}, "tile must be 0 for the whole picture or at least 16, got 5"),
        ({"tile": 32.0}, "tile must be an integer of at least 0, got 32.0"),
        ({"halo": -1}, "halo must be an integer of at least 0, got -1"),
        ({"protocol": "other"}, "protocol must be one of 'halo', 'paper', got 'other'"),
        ({"protocol": "paper", "halo": 4}, "halo must be left out with protocol 'paper'"),
        ({"protocol": "paper", "tile": 64}, "tile must be left out with protocol 'paper'"),
        ({"max_memory": 0}, "max_memory must be an integer of at least 1, got 0"),
        ({"max_memory": 1 << 20}, "max_memory must be at least .* for 70x40 pixels in windows of .*, got 1.0 MB"),
        ({"device": "tpu"}, "device must be one of torch's"),
        ({"device": "mps"}, "device must be 'cpu' or 'cuda', got 'mps'"),
    ],
    ids=str,
)
def test_impossible_settings(options, message):
    with pytest.raises(ValueError, match=message):
        upscale(picture(40, 70), FakeModel(), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_a_device_that_is_not_there():
    with pytest.raises(RuntimeError, match="device 'cuda' cannot be used: none usable"):
        upscale(picture(40, 70), FakeModel(), device="cuda")


def test_memory_makes_windows_smaller():
    model = FakeModel()
    model.spec = small_edsr(scale=4, blocks=8, channels=64).spec
    network = Patchwise(model, max_memory=None)
    layout = Layout(4000, 3000, 3)
    free = network.windows(3000, 4000, layout)
    assert free[1][0].stop <= default_tile(model.spec.radius) + 2 * network.halo
    needed = network.cutting.needed_bytes(*free, layout)
    bound = Patchwise(model, max_memory=int(needed * 0.8))
    tight = bound.windows(3000, 4000, layout)
    assert tight[1][0].stop < free[1][0].stop and bound.cutting.needed_bytes(*tight, layout) <= bound.max_memory


class OtherBitsForAlpha(FakeModel):
    def image_offsets(self, x, learn=False):
        return (x == x[:, :1]).all(dim=(1, 2, 3)).int()


@pytest.mark.parametrize("kind", ["noise", "slope"])
def test_results_wait_for_their_alpha_alone(monkeypatch, kind):
    """Of windows whose alpha varies one is held after the other, whether computed or interpolated."""
    windows, held, join, store = [], [], patchwise.joined_windows, Patchwise._store

    def joined(*args):
        windows[:] = join(*args)
        return windows

    def stored(network, window, *rest):
        held.append(sum(bool(one.results) for one in windows if one is not window))
        store(network, window, *rest)

    monkeypatch.setattr(patchwise, "joined_windows", joined)
    monkeypatch.setattr(Patchwise, "_store", stored)
    monkeypatch.setattr(cutting, "BATCH_PIXELS", {"cpu": 1})
    slope = np.linspace(1, 255, 96).astype(np.uint8)[None, :, None].repeat(40, 0)
    rgba = np.random.default_rng(0).integers(1, 256, (40, 96, 4), np.uint8) if kind == "noise" else slope.repeat(4, 2)
    model = OtherBitsForAlpha()
    upscale(rgba, model, tile=16, halo=4)
    assert held == [0] * 12 and bool(model.seen) == (kind == "noise")


def test_memory_of_a_forward_pass_is_estimated(model):
    """The buffers that a pass fills, and its output, are within the estimate."""
    x = torch.zeros(1, 3, 64, 64)
    model._workspace.clear()
    y = model(x)
    held = sum(buffer.numel() * buffer.element_size() for buffer in model._workspace._buffers.values())
    held += x.numel() * 4 + y.numel() * 4
    assert held <= 64 * 64 * model.bytes_per_pixel() * 1.1


@pytest.mark.parametrize(("scale", "width"), [(4, 600), (3.5, 600), (14, 150)], ids=["own", "resized", "two-passes"])
def test_memory_does_not_grow_with_the_picture(tmp_path, scale, width):
    """Four times the pixels, the same peak but for some MB of the allocator: the picture is never held."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from fake_model import FakeModel
from adabm_kernels.upscale import upscale_file
from adabm_kernels.upscaling import cutting
cutting.JOINED_PIXELS = 1 << 18  # far less than either picture has
class Forgetful(FakeModel):
    def forward(self, x, offset):
        self.seen.clear()
        return super().forward(x)
upscale_file(f"{sys.argv[2]}.png", "out.png", Forgetful(), tile=128, halo=4, scale=float(sys.argv[3]))
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""
    returning = ENVIRONMENT | {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # glibc then keeps little of what is freed
    peaks = []
    heights = [width * 8 // 3, width * 32 // 3]
    for rows in heights:
        source = RNG.integers(0, 256, (rows // 10, width // 10, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
        PIL.Image.fromarray(source).save(tmp_path / f"{rows}.png")
        done = subprocess.run(
            [sys.executable, "-c", code, HELPERS, str(rows), str(scale)],
            cwd=tmp_path, capture_output=True, text=True, check=True, env=returning,
        )  # fmt: skip
        peaks.append(int(done.stdout) * 1024)
    assert (tmp_path / "out.png").stat().st_size
    # Who held the output would hold this much more; what the allocators keep varies.
    more = int((heights[1] - heights[0]) * width * scale**2 * 3)
    assert peaks[1] - peaks[0] < more / 2


def test_files_of_any_size(model, tmp_path):
    rgb = picture(60, 50)
    PIL.Image.fromarray(rgb).save(tmp_path / "in.png")
    outcome = upscale_file(tmp_path / "in.png", tmp_path / "out.tif", model, bits="auto", tile=16, halo=4)
    with PIL.Image.open(tmp_path / "out.tif") as image:
        assert np.array_equal(np.array(image), upscale(rgb, model, tile=16, halo=4))
    assert outcome.layout.width == 50 and 2 <= outcome.mean_bits <= 8 and outcome.error is None
    with pytest.raises(ValueError, match="target must not be the source itself"):
        upscale_file(tmp_path / "in.png", tmp_path / "in.png", model)


def test_layer_times_are_taken_and_given_back(model):
    start = time.perf_counter()
    with layer_times(model) as seconds:
        upscale(picture(20, 20), model)
    assert set(seconds) == {conv.name for conv in model.convs()} and seconds["body.0.conv1"] > 0
    assert sum(seconds.values()) < time.perf_counter() - start  # nothing is counted twice
    assert not any("into" in conv.__dict__ for conv in model.convs())
