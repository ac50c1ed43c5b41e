"""Networks whose easy tiles have no blocks computed: nn/depth.py, on integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import one_thread, poison_empty, small_edsr  # noqa: F401
from with_exits import TILE, an_exit, pictures, with_exit

from adabm_kernels import ConvertConfig, convert_model
from adabm_kernels.exits import border_weights, exit_output
from adabm_kernels.images import Layout
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.patchwise import Patchwise
from adabm_kernels.quantize import to_pixels
from adabm_kernels.regions import Depths


@pytest.fixture(scope="module")
def networks() -> dict[str, ConvertedNetwork]:
    """Small random networks, converted, by name."""
    calibration = [torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(3)).float()]
    found = {}
    for name, scale, config in (
        ("x2", 2, ConvertConfig(depths="none")),
        ("x4-w6a6", 4, ConvertConfig(act_bits=6, weight_bits=6, depths="none")),
        ("x3-staged", 3, ConvertConfig(tail="staged", depths="none")),
        ("x4-staged-w6a6", 4, ConvertConfig(tail="staged", act_bits=6, weight_bits=6, depths="none")),
    ):
        config = replace(config, depths="none")
        found[name] = convert_model(small_edsr(scale=scale, blocks=3), calibration, config, check=False)
    return found


NAMES = ["x2", "x4-w6a6", "x3-staged", "x4-staged-w6a6"]


@pytest.mark.parametrize("name", NAMES)
def test_backends_are_equal(name: str, networks: dict[str, ConvertedNetwork], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = networks[name], pictures(37, 45)
    parameters = an_exit(model.scale)
    cpu, reference = (with_exit(model, parameters, backend) for backend in ("cpu", "reference"))
    assert 0.3 < cpu.computed_share(x).mean() < 0.8
    poison_empty(monkeypatch)
    for depth in ("auto", 0, "full"):
        cpu.set_depth(depth)
        reference.set_depth(depth)
        for origin in ((0, 0), (3, 5)):
            wanted = reference(x, origin=origin)
            assert torch.equal(cpu(x, origin=origin), wanted)
            assert torch.equal(cpu.pixels(x, origin=origin), to_pixels(wanted))


@pytest.mark.parametrize("name", NAMES)
def test_easy_tiles_are_the_filter_s_and_hard_ones_far_from_them_the_network_s(name: str, networks) -> None:
    model = networks[name]
    x, s = pictures(64, 96)[:1], model.scale
    split = with_exit(model, an_exit(s))
    y, whole = split(x), model(x)
    depths = split.tile_depths(x)
    easy = (depths.values == 0).repeat_interleave(TILE * s, 1).repeat_interleave(TILE * s, 2)
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
    for origin in ((8, 0), (0, -1), (0,), (0, 1.5)):
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
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_join_without_any_difference(channels: int, smooth: str, networks) -> None:
    split = with_exit(networks["x2"], an_exit(2))
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
