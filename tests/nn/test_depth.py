"""Networks whose easy tiles have no blocks computed: nn/depth.py, on integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attentive import AttentiveSpec, attentive_is_known
from small import one_thread, poison_empty  # noqa: F401
from with_exits import TILE, an_exit, pictures, with_exit

from adabm_kernels import ConvertConfig, convert_model
from adabm_kernels.exits import border_weights, exit_output
from adabm_kernels.images import Layout
from adabm_kernels.networks.detect import float_network
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.networks.spec import NetworkSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.quantize import to_pixels
from adabm_kernels.regions import Depths
from adabm_kernels.upscaling.patchwise import Patchwise

W6A6 = {"act_bits": 6, "weight_bits": 6}
# Of each its specification, the settings, and the side of its tiles, which may be as small as an upsampler lets them be.
FORMS: dict[str, tuple[NetworkSpec, dict[str, Any], int]] = {
    "x2": (EDSRSpec(2, 3, 8), {}, TILE),
    "x4-w6a6": (EDSRSpec(4, 3, 8), W6A6, TILE),
    "x3-staged": (EDSRSpec(3, 3, 8), {"tail": "staged"}, TILE),
    "x4-staged-w6a6": (EDSRSpec(4, 3, 8), {"tail": "staged"} | W6A6, TILE),
    "x4-single": (EDSRSpec(4, 2, 8, tail="single"), {}, TILE),
    "x2-one-block": (EDSRSpec(2, 1, 8), {}, 4),
    "srresnet-x2": (SRResNetSpec(2, 2, 8, unit_range=True), {}, 4),
    "srresnet-x4-w6a6": (SRResNetSpec(4, 2, 8, bias=True, slopes=8), W6A6, TILE),
    "rrdb-x4": (RRDBSpec(4, 2, 8, 4), {}, 4),
    "rrdb-x4-w6a6": (RRDBSpec(4, 1, 8, 4), W6A6, TILE),
    "attentive-x2": (AttentiveSpec(2, 2, 8), {}, TILE),
    "x2-int16": (EDSRSpec(2, 3, 8), {"residual": "int16"}, TILE),
    "srresnet-x4-w6a6-int16": (SRResNetSpec(4, 2, 8), W6A6 | {"residual": "int16"}, TILE),
}


def random_network(spec: NetworkSpec) -> torch.nn.Module:
    torch.manual_seed(1)
    network = float_network(spec)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean)
        if isinstance(module, torch.nn.PReLU):
            torch.nn.init.uniform_(module.weight, -0.5, 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def networks() -> dict[str, ConvertedNetwork]:
    """Small random networks, converted, by name."""
    calibration = [torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(3)).float()]
    with attentive_is_known():
        return {
            name: convert_model(random_network(spec), calibration, ConvertConfig(**settings, depths="none"), check=False)
            for name, (spec, settings, _) in FORMS.items()
        }


@pytest.mark.parametrize("name", FORMS)
def test_backends_are_equal(name: str, networks: dict[str, ConvertedNetwork], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of different bits and different maps."""
    model, x = networks[name], pictures(37, 45)
    parameters = an_exit(model.scale, tile=FORMS[name][2])
    cpu, reference = (with_exit(model, parameters, backend) for backend in ("cpu", "reference"))
    assert 0.3 < cpu.computed_share(x).mean() < 0.8
    poison_empty(monkeypatch)
    offset = torch.tensor([-1, 1], dtype=torch.int32)
    for depth in ("auto", 0, "full"):
        cpu.set_depth(depth)
        reference.set_depth(depth)
        for origin in ((0, 0), (3, 2)):
            wanted = reference(x, offset, origin=origin)
            assert torch.equal(cpu(x, offset, origin=origin), wanted)
            assert torch.equal(cpu.pixels(x, offset, origin=origin), to_pixels(wanted))


@pytest.mark.parametrize("side", [4, 5, 6])
def test_images_as_small_as_the_filter(side: int, networks) -> None:
    parameters = replace(an_exit(2), threshold=200)
    cpu, reference = (with_exit(networks["x2"], parameters, backend) for backend in ("cpu", "reference"))
    x = pictures(side, 20)
    assert (cpu.computed_share(x) < 1).any() == (side >= 5)
    assert torch.equal(cpu(x), reference(x))
    cpu.set_depth(0)
    assert cpu.computed_share(x).tolist() == [0.0, 0.0] if side >= 5 else [1.0, 1.0]


@pytest.mark.parametrize("name", FORMS)
def test_easy_tiles_are_the_filter_s_and_hard_ones_far_from_them_the_network_s(name: str, networks) -> None:
    model, tile = networks[name], FORMS[name][2]
    x, s = pictures(64, 112)[:1], model.scale
    split = with_exit(model, an_exit(s, tile=tile))
    y, whole = split(x), model(x)
    depths = split.tile_depths(x)
    easy = (depths.values == 0).repeat_interleave(tile * s, 1).repeat_interleave(tile * s, 2)
    assert torch.allclose(y.permute(0, 2, 3, 1)[easy], exit_output(split.exit, x).permute(0, 2, 3, 1)[easy], rtol=0, atol=1e-3)
    reached = torch.nn.functional.max_pool2d(easy.float()[:, None], 2 * model.spec.radius * s + 1, 1, model.spec.radius * s) > 0
    far = ~reached[:, 0]
    assert far.any()
    assert torch.equal(y.permute(0, 2, 3, 1)[far], whole.permute(0, 2, 3, 1)[far])


def test_full_depth_is_the_network_without_an_exit(networks) -> None:
    model, x = networks["x2"], pictures(20, 20)
    split = with_exit(model, an_exit(2))
    for depth in ("full", 3):
        split.set_depth(depth)
        assert torch.equal(split(x), model(x))
        assert split.tile_depths(x) is None
        assert split.computed_share(x).tolist() == [1, 1]
    split.set_depth("auto")
    assert torch.equal(split(x[..., :4, :]), model(x[..., :4, :]))  # no room for the filter
    hard = with_exit(model, replace(split.exit, threshold=0))
    noise = torch.randint(0, 256, (1, 3, 24, 40), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(hard(noise), model(noise))


def test_a_part_of_a_picture_has_the_picture_s_tiles(networks) -> None:
    """With so much around it, a part is what the whole picture has there."""
    model, x = networks["x2"], pictures(96, 120)
    split = with_exit(model, an_exit(2))
    halo = model.spec.radius + TILE
    top, left, height, width = 20, 27, 40, 50
    y = split(x, torch.zeros(2, dtype=torch.int32))
    part = x[:, :, top - halo : top + height + halo, left - halo : left + width + halo]
    got = split(part, torch.zeros(2, dtype=torch.int32), origin=((top - halo) % TILE, (left - halo) % TILE))
    inner = got[:, :, 2 * halo : -2 * halo, 2 * halo : -2 * halo]
    assert torch.equal(inner, y[:, :, 2 * top : 2 * (top + height), 2 * left : 2 * (left + width)])


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_border_kernels_repeat_the_ends(kernel: int, networks) -> None:
    model, x = networks["x2"], pictures(16, 17)
    parameters = an_exit(2, kernel)
    split = with_exit(model, parameters)
    split.set_depth(0)
    assert torch.allclose(split(x), exit_output(parameters, x), rtol=0, atol=1e-3)
    assert border_weights(parameters)[kernel // 2, kernel // 2].equal(parameters.weight)


def test_threads_and_batches_change_nothing(networks) -> None:
    model, x = networks["x2"], pictures(50, 60)
    split = with_exit(model, an_exit(2))
    y = split(x)
    assert torch.equal(torch.cat([split(image[None]) for image in x]), y)
    split.set_threads(3)
    assert torch.equal(split(x), y)


def test_what_is_refused(networks) -> None:
    model = networks["x2"]
    split = with_exit(model, an_exit(2))
    for depth in (1, -1, True, "deep", 2.0):
        with pytest.raises(ValueError, match="depth must be 'auto', 'full', 0 or 3"):
            split.set_depth(depth)
    with pytest.raises(ValueError, match="without an exit for easy tiles, got 0"):
        model.set_depth(0)
    for origin in ((8, 0), (0, -1), (0,), (0, 1.5), 3, None):
        with pytest.raises(ValueError, match=r"origin must be two whole numbers in 0\.\.7"):
            split(pictures(16, 16), origin=origin)
    with pytest.raises(ValueError, match="exit must be of scale 2, got one of scale 4"):
        with_exit(model, an_exit(4))


def test_depths_at_a_finer_resolution() -> None:
    depths = Depths(torch.zeros(1, 1, 1, dtype=torch.uint8), 8, 3, 5).enlarged(4)
    assert (depths.tile, depths.top, depths.left) == (32, 12, 20)


def picture(height: int, width: int, channels: int = 3) -> tuple[np.ndarray, Layout]:
    """Rows of a picture: noise in the upper left part, slopes elsewhere."""
    y, x = np.mgrid[:height, :width]
    rows = np.stack([(x + 2 * y) % 256, (3 * x) % 256, 255 - y % 256], 2)[..., :channels].astype(np.uint8)
    rows[: height * 2 // 3, : width // 2] = np.random.default_rng(1).integers(0, 256, (height * 2 // 3, width // 2, channels))
    return rows, Layout(width, height, channels)


@pytest.mark.parametrize("smooth", ["interpolate", "network"])
@pytest.mark.parametrize("channels, name, kernel", [(1, "x2", 5), (3, "x2-int16", 5), (3, "x2-one-block", 15)])
def test_windows_join_without_any_difference(channels: int, name: str, kernel: int, smooth: str, networks) -> None:
    split = with_exit(networks[name], an_exit(2, kernel))
    rows, layout = picture(120, 150, channels)
    split.set_bits(4)  # windows decide about their bits for themselves
    whole = Patchwise(split, tile=0, smooth=smooth).array(rows, layout)
    for tile in (16, 24, 50):
        patches: list = []
        network = Patchwise(split, tile=tile, smooth=smooth)
        assert np.array_equal(network.array(rows, layout, record=patches), whole)
        assert len(patches) > 4
    split.set_depth("full")
    assert not np.array_equal(Patchwise(split, tile=0, smooth=smooth).array(rows, layout), whole)


def test_a_self_ensemble_turns_the_tiles_with_the_picture(networks) -> None:
    split = with_exit(networks["x2"], an_exit(2))
    split.set_bits(4)
    rows, layout = picture(45, 67)
    split.set_depth(0)
    easy = Patchwise(split, tta=True, smooth="network").array(rows, layout)
    split.set_depth("auto")
    whole, cut = (Patchwise(split, tile=tile, tta=True, smooth="network") for tile in (0, 16))
    y = whole.array(rows, layout)
    assert np.abs(cut.array(rows, layout).astype(int) - y).max() <= 1  # sums of floats in another order
    hard = split.tile_depths(torch.from_numpy(rows).permute(2, 0, 1)[None].float()).values[0].numpy() > 0
    mask = hard.repeat(2 * TILE, 0).repeat(2 * TILE, 1)[: y.shape[0], : y.shape[1]]
    assert np.array_equal(y[~mask], easy[~mask]) and not np.array_equal(y[mask], easy[mask])


def test_patches_tell_which_tiles_had_blocks(networks) -> None:
    split = with_exit(networks["x2"], an_exit(2))
    rows, layout = picture(90, 130)
    hard = split.tile_depths(torch.from_numpy(rows).permute(2, 0, 1)[None].float()).values[0].numpy() > 0
    for tile in (0, 24, 40):
        patches: list = []
        Patchwise(split, tile=tile, smooth="network").array(rows, layout, record=patches)
        for patch in patches:
            found = patch.depths if patch.depths is not None else np.zeros((1, 1))
            top, left = patch.y // TILE, patch.x // TILE
            assert np.array_equal(found, hard[top : top + found.shape[0], left : left + found.shape[1]])
        pixels = hard.repeat(TILE, 0).repeat(TILE, 1)[:90, :130]
        assert sum(patch.with_blocks for patch in patches) == pixels.sum()


def test_windows_follow_the_depth_that_is_set(networks) -> None:
    """Set after the windows were asked for; they are no larger than those of the network without an exit, but for the halo."""
    split = with_exit(networks["x2"], an_exit(2))
    rows, layout = picture(90, 130)
    split.set_bits(4)
    split.set_depth("full")
    network = Patchwise(split, tile=24, smooth="network")
    sizes = {}
    for depth in ("full", "auto"):
        split.set_depth(depth)
        whole = Patchwise(split, tile=0, smooth="network").array(rows, layout)
        assert np.array_equal(network.array(rows, layout), whole)
        sizes[depth] = [span.length - 2 * network.halo for span in Patchwise(split).windows(4000, 5000)[0]]
    assert max(sizes["auto"]) <= max(sizes["full"]) + TILE
