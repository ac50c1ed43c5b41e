"""What of a picture has one colour is not computed again, and no pixel changes by it."""

import numpy as np
import pytest
import torch
from fake_model import FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st
from small import one_thread, small_edsr  # noqa: F401

from adabm_kernels import ConvertConfig, convert_model
from adabm_kernels.images import Layout
from adabm_kernels.models import _ASSETS, load_model
from adabm_kernels.networks.detect import float_network
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.upscale import upscale
from adabm_kernels.upscaling import cutting, patchwise
from adabm_kernels.upscaling.flat import Rect, busy, patch_side, spread
from adabm_kernels.upscaling.patchwise import Patchwise, reach

SIDE = 96
NAMES = ["edsr", "edsr-staged", "rdn", "srresnet", "builtin"]


def photo(height, width, seed=0):
    """Noise over a slope: nowhere flat."""
    rng = np.random.default_rng(seed)
    rgb = np.add.outer(np.arange(height), np.arange(width))[..., None] / 4 + rng.integers(0, 200, (height, width, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8)


def picture(kind, side=SIDE):
    """A picture with flat areas that touch some of its borders and corners."""
    rgb = photo(side, side)
    third = side // 3
    if kind == "sky":
        rgb[: side // 2] = 200, 220, 250
    elif kind == "bars":  # of two colours
        rgb[:third], rgb[-third:] = 0, 255
    elif kind == "sides":
        rgb[:, :third], rgb[:, -third:] = (9, 8, 7), (90, 80, 70)
    elif kind == "page":
        rgb[:third], rgb[-third:], rgb[:, :third], rgb[:, -third:] = 255, 255, 255, 255
    elif kind == "corner":
        rgb[side // 2 :, side // 2 :] = 17
    elif kind == "island":  # flat all around, and inside
        rgb[...] = 128
        rgb[4:7, 4:9] = 40
    elif kind == "flat":
        rgb[...] = 30, 60, 90
    return rgb


KINDS = ["sky", "bars", "sides", "page", "corner", "island", "flat"]


@pytest.fixture(scope="module")
def models():
    found = {}

    def get(name):
        if name not in found:
            found[name] = load_model("edsr_x4_w4a4") if name == "builtin" else converted(name)
        return found[name]

    return get


def converted(name, **config):
    specs = {"edsr": EDSRSpec(2, 2, 8), "edsr-staged": EDSRSpec(4, 1, 8)}
    specs |= {"rdn": RDNSpec(2, 1, 2, 4, 8), "srresnet": SRResNetSpec(2, 1, 8)}
    torch.manual_seed(3)
    images = [torch.from_numpy(photo(40, 40, seed)).permute(2, 0, 1)[None].float() for seed in range(3)]
    images += [image * 0.1 + 80 for image in images]  # some smooth ones
    tail = {"tail": "staged"} if name == "edsr-staged" else {}
    settings = ConvertConfig(weight_bits=4, act_bits=4, depths="none", **tail, **config)
    return convert_model(float_network(specs[name]).eval(), calibration=images, config=settings, check=False)


def both(model, rows, monkeypatch, **options):
    """(output, windows) as it is and with everything computed."""
    results = []
    for leaving in (True, False):
        if not leaving:
            monkeypatch.setattr(Patchwise, "_skip_radius", lambda self, layout: 0)
        record = []
        results.append((upscale(rows, model, record=record, smooth="network", **options), record))
    monkeypatch.undo()
    return results


def decided(record):
    return {(patch.y, patch.x, patch.height, patch.width): (patch.offset, patch.mean_bits) for patch in record}


@pytest.mark.skipif(not (_ASSETS / "edsr_x4_w4a4.safetensors").is_file(), reason="the built-in model's file is not there")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [1, 4])
def test_no_pixel_and_no_decision_changes(models, name, kind, parts, monkeypatch):
    model = models(name)
    side = max(SIDE, 10 * reach(model) + 3)
    tile = None if parts == 1 else side // parts
    (got, record), (want, computed) = both(model, picture(kind, side), monkeypatch, bits="auto", tile=tile)
    assert (len(record) == 1) == (parts == 1)
    assert np.array_equal(got, want)
    assert decided(record) == decided(computed) and not any(patch.flat for patch in computed)
    flat = sum(patch.flat for patch in record)
    if kind == "flat":
        assert flat == side**2
    elif kind != "corner" or parts > 1:  # the rest of a window with a corner is no rectangle
        assert 0 < flat < side**2
    assert all(0 <= patch.flat <= patch.height * patch.width for patch in record)


@pytest.mark.parametrize("joined", [0, 4000, 1 << 20])
@pytest.mark.parametrize("channels, depth", [(1, 8), (2, 8), (4, 8), (3, 16), (4, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture(models, kind, channels, depth, joined, monkeypatch):
    """Grey, alpha that varies within windows, and 16 bits."""
    monkeypatch.setattr(cutting, "JOINED_PIXELS", joined)
    rows = picture(kind)
    rows = rows[..., :1] if channels < 3 else rows
    if channels in (2, 4):
        alpha = np.full((SIDE, SIDE, 1), 255, np.uint8)
        alpha[20:40, 50:] = 77  # over flat areas and others
        alpha[40:60, 50:] = 0
        rows = np.dstack([rows, alpha])
    if depth == 16:
        rows = rows.astype(np.uint16) * 257 - (rows > 100) * np.uint16(55)
    with pytest.MonkeyPatch.context() as patch:
        (got, record), (want, computed) = both(models("edsr"), rows, patch, bits="auto", tile=24)
    assert np.array_equal(got, want) and decided(record) == decided(computed)
    if joined == 1 << 20 or kind == "flat":  # else windows may be too small
        assert sum(part.flat for part in record) > 0


def test_neighbours_of_different_bits(models, monkeypatch):
    """Each flat area has the outputs of the bits that its window decided for."""
    model, rgb = models("edsr"), np.concatenate([picture("sky"), picture("flat")], 1)
    (got, record), (want, _) = both(model, rgb, monkeypatch, bits="auto", tile=SIDE - 20)
    assert np.array_equal(got, want)
    assert len({patch.offset for patch in record if patch.flat}) > 1


def test_self_ensemble(models, monkeypatch):
    (got, record), (want, _) = both(models("edsr"), picture("sides")[:, :90], monkeypatch, bits=4, tta=True)
    assert np.array_equal(got, want) and any(patch.flat for patch in record)


def test_less_is_computed(models, monkeypatch):
    model, pixels = models("edsr"), []
    for name in ("forward", "pixels"):
        run = getattr(model, name)
        monkeypatch.setattr(model, name, lambda x, offset, run=run: pixels.append(x.shape[2] * x.shape[3]) or run(x, offset))
    radius, record = model.spec.radius, []
    upscale(picture("sky"), model, bits=4, record=record, smooth="network")
    assert pixels == [patch_side(radius) ** 2, SIDE * (SIDE // 2 + 2 * radius)]
    assert sum(patch.flat for patch in record) == SIDE * (SIDE // 2 - radius)
    pixels.clear()
    upscale(picture("flat"), model, bits=4, smooth="network")
    assert pixels == [patch_side(radius) ** 2]
    pixels.clear()
    upscale(photo(SIDE, SIDE), model, bits=4)
    assert pixels == [SIDE**2]


@pytest.mark.parametrize("options", [{"tile": 0}, {"protocol": "paper"}, {"tile": 24, "halo": 3}], ids=str)
def test_where_all_is_computed(models, options):
    record = []
    upscale(picture("flat"), models("edsr"), bits=4, record=record, smooth="network", **options)
    assert record and not any(patch.flat for patch in record)


def test_networks_with_floats_compute_all():
    for model in (converted("edsr", quantize="body"), FakeModel()):
        record = []
        upscale(picture("flat"), model, record=record, smooth="network")
        assert record and not any(patch.flat for patch in record)


@pytest.mark.parametrize("size", [(12, SIDE), (SIDE, 12), (1, 1)], ids=str)
def test_pictures_whose_borders_see_each_other(models, size):
    model = models("edsr")
    assert min(size) < patch_side(model.spec.radius)
    rgb, record = np.full((*size, 3), 50, np.uint8), []
    got = upscale(rgb, model, bits=4, record=record, smooth="network")
    assert np.array_equal(got, upscale(rgb, model, bits=4, tile=0, smooth="network"))
    assert not any(patch.flat for patch in record)


def test_patches_of_one_colour_are_remembered_but_not_without_end(models, monkeypatch):
    """A row of windows of many colours."""
    model, sides = models("edsr"), []
    rgb = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 60)[None, :, None].repeat(60, 0).repeat(3, 2)
    held = []
    patch = Patchwise._patch

    def watched(self, pixel, window, picture):
        found = patch(self, pixel, window, picture)
        held.append(len(picture.patches))
        sides.append(len(found))
        return found

    monkeypatch.setattr(Patchwise, "_patch", watched)
    got = upscale(rgb, model, bits=4, tile=20, smooth="network")
    assert max(held) == patchwise._PATCHES and len(held) > 2 * patchwise._PATCHES
    assert set(sides) == {model.scale * patch_side(model.spec.radius)}
    assert np.array_equal(got, upscale(rgb, model, bits=4, tile=0, smooth="network"))


def test_seconds_go_to_what_is_computed(models):
    record = []
    upscale(picture("sky"), models("edsr"), bits=4, tile=24, record=record, smooth="network")
    assert all((patch.seconds > 0) == (patch.flat < patch.height * patch.width) for patch in record)


@settings(max_examples=200)
@given(st.data())
def test_busy_is_the_least_rectangle_or_one_larger(data):
    height, width, radius = data.draw(st.integers(3, 90)), data.draw(st.integers(3, 30)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    pixels = np.full((height, width, data.draw(st.integers(1, 4))), 5, data.draw(st.sampled_from([np.uint8, np.uint16])))
    for _ in range(data.draw(st.integers(0, 3))):
        y, x = rng.integers(height), rng.integers(width)
        pixels[y : y + rng.integers(1, 4), x : x + rng.integers(1, 4), rng.integers(pixels.shape[2])] += 1
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    kept = Rect(top, data.draw(st.integers(top + 1, height)), left, data.draw(st.integers(left + 1, width)))
    found = busy(pixels, kept, radius)
    sees = [
        (y, x)
        for y in range(kept.top, kept.bottom)
        for x in range(kept.left, kept.right)
        for field in [pixels[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]]
        if (field != field[0, 0]).any()
    ]
    if not sees:
        assert found is None or min(found.bottom - found.top, found.right - found.left) == 1
        return
    y, x = zip(*sees, strict=True)
    least = Rect(min(y), max(y) + 1, min(x), max(x) + 1)
    assert found.overlap(least) == least
    assert all(abs(a - b) <= 1 for a, b in zip(found, least, strict=True)) and found.overlap(kept) == found


def test_rectangles_outside():
    outer, inner = Rect(2, 12, 3, 9), Rect(4, 12, 5, 8)
    parts = outer.outside(inner)
    seen = np.zeros((14, 14), int)
    for part in [*parts, inner]:
        seen[part.top : part.bottom, part.left : part.right] += 1
    want = np.zeros((14, 14), int)
    want[2:12, 3:9] = 1
    assert np.array_equal(seen, want) and len(parts) == 3 and outer.outside(outer) == []
    assert Rect(0, 2, 0, 2).overlap(Rect(3, 4, 0, 2)).area == 0 and Rect(0, 2, 0, 2).union(Rect(3, 4, 1, 5)) == Rect(0, 4, 0, 5)


def test_spread_counts_from_the_borders():
    """The patch says of each pixel how far it is from the borders."""
    radius, scale, height, width = 2, 2, 9, 7
    n = patch_side(radius)
    patch = np.arange(scale * n)[:, None, None] * 100 + np.arange(scale * n)[None, :, None]
    whole = np.full((scale * height, scale * width, 1), -1)
    spread(patch, whole, Rect(0, height, 0, width), height, width, radius)
    kinds = [0, 1, 2, 2, 2, 2, 2, 3, 4], [0, 1, 2, 2, 2, 3, 4]
    rows, columns = (np.array([scale * kind + i for kind in axis for i in range(scale)]) for axis in kinds)
    assert np.array_equal(whole[..., 0], rows[:, None] * 100 + columns)
    place = Rect(1, 8, 2, 6)
    part = np.full((scale * 7, scale * 4, 1), -1)
    spread(patch, part, place, height, width, radius)
    assert np.array_equal(part, whole[scale : scale * 8, scale * 2 : scale * 6])


def test_memory_is_that_of_windows():
    """What one colour adds stays within what is set aside for codecs."""
    model = FakeModel()
    model.full, model.spec = True, RDNSpec(4, 16, 8, 64, 64)
    side = model.scale * patch_side(model.spec.radius)
    assert patchwise._PATCHES * side**2 * 3 < cutting.RESERVE
    assert Patchwise(model, smooth="network")._skip_radius(Layout(4000, 3000, 3)) == model.spec.radius
