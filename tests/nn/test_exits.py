"""The exit of easy tiles: what its filter computes, how calibration finds it, and the simulated network with it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from attentive import AttentiveSpec, attentive_is_known
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from small import one_thread, repeating_edsr, small_edsr  # noqa: F401
from torch.nn import functional as F

from adabm_kernels import checkpoint
from adabm_kernels.calibrate import calibrate
from adabm_kernels.calibration import exits as fitting
from adabm_kernels.calibration.exits import CLASSES, Crop, Tiles, choose_threshold, fit_filter, round_taps
from adabm_kernels.calibration.made import made_pictures
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.exits import ExitParameters, exit_output, fold_borders, pixel_bends, tile_bends, tile_depths
from adabm_kernels.networks.float_network import float_network
from adabm_kernels.networks.rdn import RDN, RDNSpec
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.networks.srresnet import SRResNet, SRResNetSpec
from adabm_kernels.regions import MAX_DEPTH, Region
from adabm_kernels.simulate import SimulatedNetwork

SCALE = 2


def random_taps(seed=0, scale=SCALE, kernel=7):
    """Taps of a filter that keeps flat colours: float64 [3*scale^2, 3, kernel^2]."""
    generator = torch.Generator().manual_seed(seed)
    taps = torch.rand(3 * scale**2, 3, kernel**2, generator=generator, dtype=torch.float64) - 0.4
    sums = torch.eye(3, dtype=torch.float64).repeat_interleave(scale**2, 0)
    return taps * 0.1 + (sums - 0.1 * taps.sum(2))[:, :, None] / kernel**2


def an_exit(seed=0, scale=SCALE, kernel=7, tile=8, threshold=40):
    numbers, unit = round_taps(random_taps(seed, scale, kernel), torch.eye(3 * kernel**2, dtype=torch.float64))
    weight = numbers.view(-1, 3, kernel, kernel).to(torch.int8)
    return ExitParameters(weight, unit, torch.zeros(3 * scale**2), tile, threshold)


def noise(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).float()


def ramp(height, width):
    """A picture that bends by two levels at its edges and not at all between them."""
    rows, columns, colours = torch.arange(height), torch.arange(width), torch.tensor([3, 20, 40])
    return (rows.view(1, -1, 1) + 2 * columns.view(1, 1, -1) + colours.view(3, 1, 1)).float()


# ---- the filter


@pytest.mark.parametrize(("scale", "kernel"), [(2, 3), (3, 5), (4, 7)])
def test_flat_colours_stay_as_they_are(scale, kernel):
    parameters = an_exit(scale, scale, kernel)
    sums = parameters.weight.sum((2, 3), dtype=torch.int32)
    assert torch.equal(sums, parameters.unit * torch.eye(3, dtype=torch.int32).repeat_interleave(scale**2, 0))
    colours = torch.randint(0, 256, (1000, 3, 1, 1), generator=torch.Generator().manual_seed(1)).float()
    got = exit_output(parameters, colours.expand(-1, -1, 2, 3))
    assert got.shape == (1000, 3, 2 * scale, 3 * scale)
    # Sums of 3 * kernel^2 products of at most 255 * 127 / unit, each rounded to 24 bits.
    assert (got - colours).abs().max() <= (3 * kernel**2) ** 2 * 255 * 127 / parameters.unit * 2.0**-24


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([3, 5]), st.floats(0.01, 30))
def test_rounded_taps_fit_8_bits_and_cost_no_more_than_the_nearest(seed, kernel, spread):
    exact = random_taps(seed, kernel=kernel)
    exact = (exact - exact.mean(2, keepdim=True)) * spread + exact.mean(2, keepdim=True)
    samples = torch.randn(400, 3 * kernel**2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    square = samples.T @ samples
    numbers, unit = round_taps(exact, square)
    assert numbers.abs().max() <= 127 and torch.equal(numbers, numbers.round())
    folded, rounded = (fold_borders(taps.view(12, 3, kernel, kernel)).abs().max() for taps in (exact, numbers))
    assert rounded <= 127 and 7 / 8 * 127 / folded - 2 <= unit <= 127.5 / folded
    assert torch.equal(numbers.sum(2), (exact.sum(2) * unit).round())

    def cost(numbers):
        error = (numbers / unit - exact).flatten(1)
        return float(((error @ square) * error).sum())

    assert cost(numbers) <= cost(fitting._nearest(exact, unit)) * (1 + 1e-9)


def crops_of(weight, bias, scale, pictures):
    """Crops with what a filter, float64 [K, 3, R, R], makes of them in place of the float network."""
    pad, crops = weight.shape[2] // 2, []
    for x in pictures:
        y = F.conv2d(F.pad(x[None].double(), [pad] * 4, mode="replicate"), weight, bias)[0]
        crops.append(Crop(x, 0, 0, y.float()))
    return crops


def cubic(scale):
    """Catmull-Rom interpolation of each colour as a filter, float64 [3*scale^2, 3, 5, 5]."""
    phases = torch.zeros(scale, 5, dtype=torch.float64)
    for phase in range(scale):
        at = (phase + 0.5) / scale - 0.5
        for tap in range(-2, 3):
            d = abs(tap - at)
            phases[phase, tap + 2] = 1.5 * d**3 - 2.5 * d**2 + 1 if d <= 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0
    weight = torch.zeros(3, scale, scale, 3, 5, 5, dtype=torch.float64)
    for colour in range(3):
        weight[colour, :, :, colour] = phases[:, None, :, None] * phases[None, :, None, :]
    return weight.flatten(0, 2)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_linear_network_is_found_again(scale):
    wanted = cubic(scale)
    crops = crops_of(wanted, None, scale, [noise(24, 24, seed) for seed in range(2)])
    weight, unit, bias = fit_filter(crops, 7, keeps=True)
    assert not bias.any()
    middle = weight[:, :, 1:6, 1:6].double() / unit
    assert (middle - wanted).abs().max() <= 1 / unit  # the nearest number of units, or the next one
    assert weight.double().abs().sum() == weight[:, :, 1:6, 1:6].double().abs().sum()


def test_numbers_that_fit_are_found_exactly():
    """Linear interpolation has sixteenths."""
    phases = torch.tensor([[1, 3, 0], [0, 3, 1]], dtype=torch.float64) / 4
    wanted = torch.zeros(3, 2, 2, 3, 3, 3, dtype=torch.float64)
    for colour in range(3):
        wanted[colour, :, :, colour] = phases[:, None, :, None] * phases[None, :, None, :]
    wanted = wanted.flatten(0, 2)
    weight, unit, _ = fit_filter(crops_of(wanted, None, 2, [noise(20, 20)]), 3, keeps=True)
    assert unit % 16 == 0 and torch.equal(weight.double() / unit, wanted)


def test_a_linear_network_that_changes_colours_is_found_with_its_bias():
    generator = torch.Generator().manual_seed(3)
    wanted = torch.rand(12, 3, 3, 3, generator=generator, dtype=torch.float64) / 9
    bias = 20 * torch.rand(12, generator=generator, dtype=torch.float64)
    crops = crops_of(wanted, bias, 2, [noise(24, 24, seed) for seed in range(2)])
    parameters = ExitParameters(*fit_filter(crops, 3, keeps=False), 8, 0)
    for crop in crops:
        error = F.pixel_unshuffle(exit_output(parameters, crop.x[None]), 2)[0] - crop.y
        # Each tap, and the sum of a colour's, is off by half a unit or so, and pixels deviate by 74 levels from their mean.
        assert error.square().mean().sqrt() < 2 * 0.5 * 74 * 27**0.5 / parameters.unit


# ---- the threshold


def brute(tiles, loss):
    """The threshold by its definition."""
    order = sorted(range(len(tiles.bend)), key=lambda i: (float(tiles.detail[i]), i))
    classes = {i: place * CLASSES // len(order) for place, i in enumerate(order)}
    best = None
    for threshold in range(511):
        easy = [i for i in range(len(order)) if tiles.bend[i] <= threshold]

        def holds(mine, db, easy=easy):
            network = sum(float(tiles.network[i]) for i in mine)
            mixed = sum(float((tiles.exit if i in easy else tiles.network)[i]) for i in mine)
            return mixed <= 10 ** (db / 10) * network + 1e-12

        fine = holds(range(len(order)), loss)
        if loss == 0:
            fine &= all(holds([i for i in classes if classes[i] == c], 0.05) for c in range(CLASSES))
        if easy and fine and (best is None or any(tiles.bend[i] == threshold for i in easy)):
            best = threshold
    return best


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 3.0]))
def test_the_threshold_is_the_largest_that_keeps_what_it_must(seed, loss):
    generator = torch.Generator().manual_seed(seed)
    bend = torch.randint(0, 30, (60,), generator=generator).double()
    detail = bend + 10 * torch.rand(60, generator=generator).double()
    network = 1 + torch.rand(60, generator=generator).double()
    exit = (bend / 10 * torch.rand(60, generator=generator) * 2).double()
    tiles = Tiles(bend, detail, network, exit)
    assert choose_threshold(tiles, loss) == brute(tiles, loss)


def test_no_tile_is_easy_where_the_filter_is_worse_everywhere():
    one = torch.ones(40, dtype=torch.float64)
    assert choose_threshold(Tiles(torch.arange(40.0).double(), one, one, 2 * one), 0.0) is None
    assert choose_threshold(Tiles(*[torch.empty(0, dtype=torch.float64)] * 4), 0.0) is None


def test_one_class_may_not_pay_for_another():
    """Flat tiles gain much; those with more detail lose 0.1 dB with the filter, a little over all."""
    detail = torch.arange(100).double()
    exit = torch.where(detail < 50, 0.1, 10 ** (0.1 / 10)).double()
    tiles = Tiles(detail, detail, torch.ones(100).double(), exit)
    assert choose_threshold(tiles, 0.0) == 53  # 4 tiles of the sixth class lose 0.04 dB in it, 5 would lose more than 0.05
    assert choose_threshold(tiles, 1e-9) == 99


def test_taps_that_do_not_fit_are_no_filter():
    """A network that multiplies by a thousand has no exit; what calibration has made of it is not lost."""
    taps = torch.zeros(12, 3, 49, dtype=torch.float64)
    taps[0, 0, 24] = 1000
    assert round_taps(taps, torch.eye(147, dtype=torch.float64)) is None


# ---- parameters


def test_bends_are_of_rounded_pixels():
    x = torch.tensor([0.0, 0.4, 10.4, 10.6]).view(1, 1, 1, 4).expand(1, 3, 2, 4)
    assert pixel_bends(x)[0, 0].tolist() == [0, 10, 9, 1]
    assert tile_bends(x, 2).tolist() == [[[10, 9]]]


GOOD = {"weight": torch.zeros(12, 3, 5, 5, dtype=torch.int8), "unit": 100, "bias": torch.zeros(12), "tile": 16, "threshold": 40}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weight", torch.zeros(12, 3, 5, 5), r"weight must be int8 \[K, 3, R, R\] with R odd, 3..15, got torch.float32 \[12, 3, 5"),
        ("weight", torch.zeros(12, 3, 4, 4, dtype=torch.int8), r"weight must be int8 .*, got torch.int8 \[12, 3, 4, 4\]"),
        ("weight", torch.zeros(12, 3, 17, 17, dtype=torch.int8), r"weight must be int8 .*, got torch.int8 \[12, 3, 17, 17\]"),
        ("weight", torch.zeros(5, dtype=torch.int8), r"weight must be int8 .*, got torch.int8 \[5\]"),
        ("weight", torch.zeros(15, 3, 5, 5, dtype=torch.int8), "weight must be filters for 3 colours of scale.2 sub-pixels, got"),
        ("unit", 0, "unit must be 1..1048576, got 0"),
        ("unit", 10**500, "unit must be 1..1048576, got 1"),
        ("unit", 1.5, "unit must be 1..1048576, got 1.5"),
        ("bias", torch.zeros(11), r"bias must be finite float32 \[12\], got torch.float32 \[11\]"),
        ("bias", torch.full((12,), float("nan")), r"bias must be finite float32 \[12\]"),
        ("tile", 3, "tile must be 4..256, got 3"),
        ("tile", 257, "tile must be 4..256, got 257"),
        ("tile", True, "tile must be 4..256, got True"),
        ("threshold", 511, "threshold must be 0..510, got 511"),
        ("threshold", -1, "threshold must be 0..510, got -1"),
    ],
)
def test_bad_parameters_are_named(field, value, message):
    with pytest.raises(ValueError, match=f"^ExitParameters: {message}"):
        ExitParameters(**GOOD | {field: value})


def test_an_exit_belongs_to_a_scale_and_to_networks_that_can_go_without_blocks():
    model = SimulatedNetwork.from_float(small_edsr(scale=3).state_dict(), ConvertConfig())
    with pytest.raises(ValueError, match="ExitParameters: scale must be that of the network, 3, got 2"):
        model.exit = an_exit(scale=2)
    torch.manual_seed(0)
    rdn = SimulatedNetwork.from_float(RDN(RDNSpec(2, 2, 2, 3, 5)).state_dict(), ConvertConfig())
    with pytest.raises(ValueError, match="a network of this kind, RDN, has no exit: it uses what every block makes at the end"):
        rdn.exit = an_exit(scale=2)
    srresnet = SimulatedNetwork.from_float(SRResNet(SRResNetSpec(4, 1, 4)).state_dict(), ConvertConfig())
    object.__setattr__(srresnet.spec, "least_tile", 9)
    with pytest.raises(ValueError, match="tiles must have at least 9 pixels a side, which this network reads around tiles, got 8"):
        srresnet.exit = an_exit(scale=4, tile=8)
    body = SimulatedNetwork.from_float(small_edsr().state_dict(), ConvertConfig(quantize="body"))
    with pytest.raises(ValueError, match="ExitParameters: a network has no exit unless quantize is 'full' and input"):
        body.exit = an_exit(scale=2)


CALIBRATION = [ramp(48, 48)[None], noise(48, 48)[None]]


def trained_like():
    """An EDSR whose blocks change what bends: their first convolutions see second differences, their biases cut off small ones."""
    edsr = repeating_edsr(channels=8)
    with torch.no_grad():
        for block in edsr.body[:-1]:
            conv1, conv2 = block.body
            for colour in range(3):
                conv1.weight[colour, colour, 1] = torch.tensor([-1.0, 2.0, -1.0])
                conv1.bias[colour] = -30
                conv2.weight[3 + colour, colour, 1, 1] = 0.1
        for colour in range(3):
            edsr.body[-1].weight[colour, 3 + colour, 1, 1] = 1
    return edsr


# ---- files


@pytest.fixture(scope="module")
def calibrated():
    """A simulated network with an exit."""
    return calibrate(trained_like(), CALIBRATION, ConvertConfig(), check=False)


@pytest.fixture(scope="module")
def converted(calibrated):
    return convert_model(calibrated)


def rewritten(path, edit):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[checkpoint.HEADER_KEY])
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    edit(header, tensors)
    save_file(tensors, path, {checkpoint.HEADER_KEY: json.dumps(header)})


def same_exit(a, b):
    scalars = all(getattr(a, name) == getattr(b, name) for name in ("unit", "tile", "threshold"))
    return scalars and torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_files_keep_the_exit(calibrated, converted, tmp_path):
    assert same_exit(converted.exit, calibrated.exit)
    checkpoint.save(converted, tmp_path / "m.safetensors")
    assert same_exit(checkpoint.load(tmp_path / "m.safetensors").exit, calibrated.exit)


def test_info_says_what_an_easy_tile_is(converted, tmp_path, adabm):
    path = tmp_path / "m.safetensors"
    checkpoint.save(converted, path)
    assert f"those of 16x16 pixels that bend by no more than {converted.exit.threshold} of 255 levels" in adabm("info", path)[1]
    rewritten(path, lambda header, tensors: header.update(exit=None))
    assert "easy tiles        none, all blocks are computed everywhere" in adabm("info", path)[1]


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_older_files_have_no_exit(converted, tmp_path, version):
    path = tmp_path / "m.safetensors"
    checkpoint.save(converted, path)

    def edit(header, tensors):
        header["format"] = version
        header.pop("exit")
        for name in ("depths", "depth_tile", "depth_loss"):
            header["config"].pop(name)
        del tensors["exit.weight"], tensors["exit.bias"]

    rewritten(path, edit)
    assert checkpoint.load(path).exit is None


def test_a_file_without_an_exit_says_so(converted, tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save(converted, path)
    rewritten(path, lambda header, tensors: header.update(exit=None))
    assert checkpoint.load(path).exit is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h, t: h.pop("exit"), "'exit' is missing"),
        (lambda h, t: h["config"].update(input_range="observed"), "ExitParameters: a network has no exit unless"),
        (lambda h, t: h.update(exit=7), "exit must be an object or null, got 7"),
        (lambda h, t: h["exit"].pop("unit"), "'exit.unit' is missing"),
        (lambda h, t: t.pop("exit.bias"), "'exit.bias' is missing"),
        (lambda h, t: h["exit"].update(tile=1), "ExitParameters: tile must be 4..256, got 1"),
        (lambda h, t: h["exit"].update(threshold="5"), "ExitParameters: threshold must be 0..510, got '5'"),
        (lambda h, t: t.update({"exit.weight": t["exit.weight"].float()}), "ExitParameters: weight must be int8"),
        (
            lambda h, t: t.update({"exit.weight": torch.zeros(27, 3, 7, 7, dtype=torch.int8), "exit.bias": torch.zeros(27)}),
            "ExitParameters: scale must be that of the network, 2, got 3",
        ),
    ],
)  # fmt: skip
def test_a_damaged_exit_is_named(converted, tmp_path, edit, message):
    path = tmp_path / "m.safetensors"
    checkpoint.save(converted, path)
    rewritten(path, edit)
    with pytest.raises(ValueError, match=f"^load: {path} is not a model that this version can read: {message}"):
        checkpoint.load(path)


# ---- calibration


def test_calibration_finds_an_exit_that_is_near_where_pictures_do_not_bend(calibrated):
    found = calibrated.exit
    assert found.tile == 16 and found.kernel == 7 and not found.bias.any()
    report = calibrated.report["exit"]
    assert report["threshold"] == found.threshold and 0 < report["share"] < 1
    assert report["psnr_db"] >= report["psnr_without_db"]
    x = ramp(24, 24)[None]
    with torch.no_grad(), calibrated.float_mode():
        teacher = calibrated(x)
    inner = slice(16, -16)
    # Without the blocks the network repeats pixels, and where nothing bends they add little.
    assert (exit_output(found, x) - teacher)[..., inner, inner].abs().max() < 1


def test_it_is_the_same_every_time_and_does_not_touch_the_rest(calibrated):
    seen = []
    again = calibrate(trained_like(), CALIBRATION, ConvertConfig(steps=0), lambda *step: seen.append(step), check=False)
    assert seen[-1][0] == seen[-1][1] and seen[-1][2] == "exit"
    assert same_exit(again.exit, calibrated.exit)
    without = calibrate(trained_like(), CALIBRATION, ConvertConfig(depths="none"), check=False)
    assert without.exit is None and without.report["exit"] is None
    assert all(torch.equal(value, without.state_dict()[key]) for key, value in calibrated.state_dict().items())


@pytest.mark.parametrize(
    "settings", [{"recipe": "paper"}, {"quantize": "body"}, {"depths": "none"}, {"input_range": "observed"}], ids=str
)
def test_settings_without_an_exit(settings):
    config = ConvertConfig(**settings)
    assert not config.finds_exit
    assert calibrate(small_edsr(), [noise(20, 20)[None]], config, check=False).exit is None


def test_images_smaller_than_a_tile_give_none():
    result = calibrate(small_edsr(), [noise(20, 20)[None]], ConvertConfig(depth_tile=48), check=False)
    assert result.exit is None and result.report["exit"] == {"share": 0.0}


def test_rdn_has_none():
    torch.manual_seed(0)
    found = calibrate(RDN(RDNSpec(2, 2, 2, 3, 5)), [noise(20, 20)[None]], ConvertConfig(), check=False)
    assert found.exit is None and found.report["exit"] == {"share": 0.0, "why": "it uses what every block makes at the end"}


def test_pictures_at_their_own_resolution_decide_too(monkeypatch):
    seen = []
    monkeypatch.setattr("adabm_kernels.calibrate.fit_exit", lambda model, pictures, device: seen.append(pictures) or (None, {}))
    images = [noise(20, 24)[None]]
    calibrate(small_edsr(), images, check=False, own_resolution=[ramp(40, 30)[None].to(torch.uint8)])
    calibrate(small_edsr(), images, check=False)
    assert [[tuple(x.shape) for kind in pictures for x in kind] for pictures in seen] == [[(3, 40, 30), (3, 20, 24)], [(3, 20, 24)]]
    with pytest.raises(ValueError, match=r"calibrate: own_resolution\[0\] must be at least 16 pixels a side, got 8x30"):
        calibrate(small_edsr(), images, check=False, own_resolution=[ramp(8, 30)[None]])


def test_crops_come_from_all_kinds_in_turn_and_end(monkeypatch, converted):
    monkeypatch.setattr(fitting, "PIXELS", 20_000)
    kinds = [[torch.full((3, 300, 200), float(value))] * 5 for value in (10, 20)]
    crops = fitting.take_crops(converted, [*kinds, [torch.zeros(3, 12, 12)]], 16, 1)
    made = made_pictures(1)
    assert all(torch.equal(crop.x, picture) for crop, picture in zip(crops, made, strict=False))
    values = [float(crop.x[0, 0, 0]) for crop in crops[len(made) :]]
    assert values == [10, 20] * (len(values) // 2) + [10] * (len(values) % 2)
    assert 20_000 <= sum(crop.x[0].numel() for crop in crops) < 20_000 + 48**2
    assert all(crop.border == 8 and crop.x.shape == (3, 48, 48) for crop in crops)


# ---- simulation


def networks():
    torch.manual_seed(0)
    attentive = float_network(AttentiveSpec(2, 2, 8))
    return {"edsr": small_edsr(), "srresnet": SRResNet(SRResNetSpec(2, 2, 4)).eval(), "attentive": attentive}


def as_simulated(name, x):
    """A calibrated network, without an exit."""
    with attentive_is_known():
        return calibrate(networks()[name], [x], ConvertConfig(depths="none"), check=False)


@pytest.mark.parametrize("name", ["edsr", "srresnet", "attentive"])
def test_the_mixture_is_the_network_in_hard_tiles_and_the_exit_in_easy_ones(name):
    left, right = ramp(24, 32), noise(24, 40)
    x = torch.cat([left, right], 2)[None]
    model = as_simulated(name, x)
    with torch.no_grad():
        whole = model(x)
        assert torch.equal(model.mean_depth(x), torch.ones(1))
        model.exit = an_exit(tile=8, threshold=40)
        got, easy = model(x), exit_output(model.exit, x)
        hard = tile_depths(x, model.exit, 2).values[0] > 0
        assert not hard[:, :3].any() and hard[:, 4:].all()  # the edge bends in the tiles on both sides
        assert float(model.mean_depth(x)) == pytest.approx(float(hard.float().mean()))  # all tiles are whole
        pixels = hard.repeat_interleave(16, 0).repeat_interleave(16, 1)
        assert torch.equal(got[0, :, ~pixels], easy[0, :, ~pixels])
        # Hard pixels see easy ones, which stay as they were before the blocks, no further than the receptive field.
        far = SCALE * (32 + model.spec.radius)
        assert torch.equal(got[..., far:], whole[..., far:])
        assert not torch.equal(got[0, :, pixels], whole[0, :, pixels])
        with model.full_depth():
            assert torch.equal(model(x), whole)
        with model.float_mode():
            assert not torch.equal(model(x)[0, :, ~pixels], easy[0, :, ~pixels])
        other = copy.deepcopy(model)
        assert torch.equal(other(x), got) and same_exit(other.exit, model.exit)
        assert model.double()(x.double()).dtype == torch.float64
        assert not any("exit" in key for key in model.state_dict())


def test_blocks_add_nothing_in_easy_tiles_and_hard_ones_read_these_as_they_are():
    """Block by block against the definition."""
    x = torch.cat([ramp(16, 16), noise(16, 16)], 2)[None]
    model = calibrate(small_edsr(), [x], ConvertConfig(depths="none", residual="float32"), check=False)
    model.exit = an_exit(tile=8, threshold=40)
    hard = tile_depths(x, model.exit, 2).values.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None] > 0
    with torch.no_grad():
        offset = model.image_offsets(x)
        head = model.head[0](model.sub_mean(x), offset)
        y, wanted = head, []
        for block in model.body[:-1]:
            inner = block["conv2"](torch.where(hard, F.relu(block["conv1"](y, offset)), 0), offset)
            y = torch.where(hard, y + inner, y)
            wanted.append(y)
        _, got = model.features(x)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        assert torch.equal(got[-1][:, :, ~hard[0, 0]], head[:, :, ~hard[0, 0]])


def test_the_converted_network_computes_what_is_simulated(calibrated, converted):
    """Tiles of both depths, and others that are cut off."""
    x = torch.cat([ramp(40, 40), noise(40, 27)], 2)[None]
    with torch.no_grad():
        wanted, got = calibrated(x), converted(x)
        converted.set_depth("full")
        with calibrated.full_depth():
            apart = (converted(x) - calibrated(x)).abs()
        converted.set_depth("auto")
    assert 0 < float(calibrated.mean_depth(x)) < 1
    assert torch.equal(converted.computed_share(x), calibrated.mean_depth(x))
    assert converted.tile_depths(x).values.tolist() == calibrated.depths(x).values.tolist()
    # At any depth the upsampler in one piece rounds elsewhere than its simulated stages do.
    assert (got - wanted).abs().max() <= apart.max() < 1
    easy = ~Region(own=(1, MAX_DEPTH)).masks(calibrated.depths(x), 40, 67)[0][0]
    easy = easy.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)
    assert (got - wanted)[0, :, easy].abs().max() < 1e-3


def rrdb(blocks=2):
    torch.manual_seed(0)
    return float_network(RRDBSpec(4, blocks, 8, 4))


def test_blocks_of_blocks_add_nothing_in_easy_tiles():
    """RRDBNet's, against the definition: the sums within a block keep what they add to, and so does the block."""
    x = torch.cat([ramp(16, 16), noise(16, 16)], 2)[None]
    model = calibrate(rrdb(), [x], ConvertConfig(depths="none"), check=False)
    model.exit = an_exit(scale=4, tile=8, threshold=40)
    hard = tile_depths(x, model.exit, 2).values.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None] > 0
    with torch.no_grad():
        offset = model.image_offsets(x)

        def run(name, y):
            return torch.where(hard, model.layer_named(name)(y, offset), 0)

        y = stem = model.layer_named("stem")(x, offset)
        for i in range(2):
            entry = y
            for j in range(3):
                dense, name = y, f"blocks.{i}.dense.{j}"
                for k in range(4):
                    dense = torch.cat([dense, F.leaky_relu(run(f"{name}.convs.{k}", dense), 0.2)], 1)
                y = run(f"{name}.convs.4", dense) * 0.2 + y
            assert torch.equal(y[:, :, ~hard[0, 0]], stem[:, :, ~hard[0, 0]])
            y = torch.where(hard, y * 0.2 + entry, entry)
        wanted = model.layer_named("after_blocks")(y, offset) + stem
        got, _ = model.trunk(x, offset, hard.to(x.dtype))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["rrdb", "attentive"])
def test_other_networks_compute_what_is_simulated(name):
    x = torch.cat([ramp(32, 32), noise(32, 27)], 2)[None]
    model = calibrate(rrdb(1), [x], ConvertConfig(depths="none"), check=False) if name == "rrdb" else as_simulated(name, x)
    model.exit = an_exit(scale=model.spec.scale, tile=8, threshold=40)
    with torch.no_grad():
        converted = convert_model(model)
        got, hard = converted(x), model.depths(x).values
        assert 0 < hard.double().mean() < model.spec.block_count and converted.tile_depths(x).values.tolist() == hard.tolist()
        converted.set_depth("full")
        whole, wanted = converted(x), model.double()(x.double())
        with model.full_depth():
            apart = (whole - model(x.double())).abs()
    # At any depth some values are rounded to another code, by the last bits of a float, and move their neighbours.
    assert (got - wanted).abs().mean() <= apart.mean() and (got - wanted).abs().max() <= 1.5 * apart.max()
