"""Evaluation: figures against their definitions, patches as AdaBM cuts them, pairs of pictures, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shared import shared_path
from small import one_thread, small_edsr  # noqa: F401
from torch import nn
from with_exits import an_exit, pictures, with_exit

from adabm_kernels import ConvertConfig, convert_model
from adabm_kernels import evaluate as module
from adabm_kernels.evaluate import EvaluationReport, Figures, ImageResult, Pair, bit_operations, evaluate, find_pairs, patches
from adabm_kernels.evaluation.metrics import psnr_y, ssim_y
from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.networks.edsr import EDSRSpec

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8)
SMALL = imresize(PICTURE, 0.25)


class Constant(FakeModel):
    """Fills its output with the sum of its input's sides: each patch another value."""

    def forward(self, x):
        self.seen.append(x)
        n, _, h, w = x.shape
        return torch.full((n, 3, self.scale * h, self.scale * w), float(h + w))

    def mean_bits(self, x):
        return torch.full((len(x),), float(x.shape[2]))


def write(folder: Path, **sizes: int) -> Path:
    """Square pictures of one colour: name=side."""
    folder.mkdir(exist_ok=True)
    for name, side in sizes.items():
        Image.new("RGB", (side, side), "grey").save(folder / f"{name}.png")
    return folder


# ---- figures


def test_figures_of_whole_pictures():
    model = FakeModel()
    report = evaluate(model, [Pair("a", PICTURE), Pair("b", PICTURE[::-1].copy(), imresize(PICTURE[::-1], 0.25))])
    assert (report.scale, report.protocol, report.methods) == (4, "whole", ("converted", "float", "bicubic"))
    first = report.images[0]
    assert (first.name, first.width, first.height, first.patches) == ("a", 48, 40, 1)
    x = torch.from_numpy(SMALL).permute(2, 0, 1)[None].float()
    outputs = {
        "converted": SMALL.repeat(4, 0).repeat(4, 1),
        # In the layout of pictures: the order of float sums follows strides.
        "float": np.ascontiguousarray(model.float_model()(x)[0].round().permute(1, 2, 0).numpy().astype(np.uint8)),
        "bicubic": imresize(SMALL, 4),
    }
    for method, sr in outputs.items():
        assert first.figures[method].psnr_y == psnr_y(sr, PICTURE, 4)
        assert first.figures[method].ssim_y == ssim_y(sr, PICTURE, 4)
    assert [first.figures[method].mean_bits for method in report.methods] == [3.75, 32, None]
    assert torch.equal(model.seen[0], x) and len(model.seen) == 2


def test_bit_operations_by_hand():
    """EDSR x2 of one block and 4 channels: 3x3 kernels; the last convolution runs on four times as many pixels."""
    spec = EDSRSpec(2, blocks=1, channels=4)
    products = {
        "head.0": 3 * 4 * 9, "body.0.conv1": 4 * 4 * 9, "body.0.conv2": 4 * 4 * 9, "body.1": 4 * 4 * 9,
        "tail.0.0": 4 * 16 * 9, "tail.1": 4 * 3 * 9 * 4,
    }  # fmt: skip
    assert bit_operations(spec, 10, {}, {}) == sum(products.values()) * 10 * 32 * 32
    weights, acts = {"body.0.conv1": 4, "head.0": 8}, {"body.0.conv1": 3, "head.0": 8}
    want = sum(count * weights.get(name, 32) * acts.get(name, 32) for name, count in products.items()) * 10
    assert bit_operations(spec, 10, weights, acts) == want


def test_bit_operations_of_a_picture_follow_its_bits():
    model = FakeModel()
    report = evaluate(model, [Pair("a", PICTURE)])
    products = {conv.name: conv.products for conv in model.spec.convs()}
    want = sum(count * 4 * (3 if name == "head.0" else 5) for name, count in products.items()) * 10 * 12
    figures = report.images[0].figures
    assert figures["converted"].bit_operations == want
    assert figures["float"].bit_operations == sum(products.values()) * 10 * 12 * 1024
    assert report.images[0].value("converted", "gbitops_per_mp") == pytest.approx(want / 1e9 / (48 * 40 / 1e6))


class PartlyEasy(Constant):
    """Leaves out the blocks of all but 100 pixels of every patch."""

    varies_depth = True
    exit = SimpleNamespace(weight=torch.zeros(48, 3, 5, 5))

    def computed_share(self, x):
        return torch.full((len(x),), 100 / (x.shape[2] * x.shape[3]))


def test_pixels_without_blocks_count_as_zero_bits_and_by_the_exit_s_filter():
    model, lr = PartlyEasy(float_weights=False), np.zeros((200, 100, 3), np.uint8)
    report = evaluate(model, [Pair("a", np.zeros((800, 400, 3), np.uint8), lr)], protocol="paper")
    figures, shares = report.images[0].figures["converted"], [100 / 9600, 100 / 10400]
    assert figures.mean_bits == (96 + 104) / 2
    assert figures.computed_share == pytest.approx(sum(shares) / 2)
    assert figures.bits_with_zeros == pytest.approx((96 * shares[0] + 104 * shares[1]) / 2)
    products = {conv.name: conv.products for conv in model.spec.convs()}
    network = sum(count * 4 * (3 if name == "head.0" else 5) for name, count in products.items())
    assert figures.bit_operations == 200 * network + (20000 - 200) * 48 * 3 * 5 * 5 * 8 * 8
    written = report.to_dict()
    assert written["mean"]["converted"]["computed_share"] == figures.computed_share
    assert written["images"][0]["converted"]["bits_with_zeros"] == figures.bits_with_zeros


def test_depths_of_a_network_with_an_exit():
    torch.manual_seed(0)
    calibration = [torch.randint(0, 256, (2, 3, 24, 24)).float()]
    model = with_exit(convert_model(small_edsr(blocks=1), calibration, ConvertConfig(), check=False), an_exit(2))
    lr = pictures(32, 40)[:1]
    pair = Pair("a", np.zeros((64, 80, 3), np.uint8), lr[0].permute(1, 2, 0).numpy().astype(np.uint8))
    reports = {}
    for depth in ("auto", "full", 0):
        model.set_depth(depth)
        reports[depth] = evaluate(model, [pair]).images[0].figures["converted"]
    share = reports["auto"].computed_share
    assert 0.3 < share < 0.8 and reports["auto"].bits_with_zeros == pytest.approx(share * reports["auto"].mean_bits)
    assert (reports["full"].computed_share, reports["full"].bits_with_zeros) == (None, None)
    assert (reports[0].computed_share, reports[0].bits_with_zeros) == (0, 0)
    assert reports[0].bit_operations == 32 * 40 * model.exit.weight.numel() * 64
    mixed = share * reports["full"].bit_operations + (1 - share) * reports[0].bit_operations
    assert reports["auto"].bit_operations == pytest.approx(mixed)


def test_a_float_network_is_measured_alone():
    model = small_edsr()
    report = evaluate(model, [Pair("a", PICTURE)])
    assert report.methods == ("float", "bicubic")
    with torch.no_grad():
        y = model(torch.from_numpy(imresize(PICTURE, 0.5)).permute(2, 0, 1)[None].float())
    sr = y[0].clamp(0, 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    # Two layouts of the same convolutions may round a pixel or two to neighbouring values.
    assert report.mean("float", "psnr_y") == pytest.approx(psnr_y(sr, PICTURE, 2), abs=0.01)


def test_a_model_without_float_weights():
    assert evaluate(FakeModel(float_weights=False), [Pair("a", PICTURE)]).methods == ("converted", "bicubic")


def test_means_are_plain_means_over_pictures():
    figures = [{"converted": Figures(20.0, 0.5, 3.0, 10**9), "bicubic": Figures(math.inf, 1.0)},
               {"converted": Figures(30.0, 0.7, 4.0, 10**9), "bicubic": Figures(10.0, 0.0)}]  # fmt: skip
    report = EvaluationReport(4, "whole", (ImageResult("a", 1000, 1000, 1, figures[0]), ImageResult("b", 500, 1000, 1, figures[1])))
    assert [report.mean("converted", figure) for figure in module.FIGURES] == [25, 0.6, 3.5, None, None, 1.5]
    assert [report.mean("bicubic", figure) for figure in module.FIGURES] == [math.inf, 0.5, None, None, None, None]
    document = report.to_dict()
    no_blocks_left_out = {"computed_share": None, "bits_with_zeros": None}
    want = {"psnr_y": 25, "ssim_y": 0.6, "mean_bits": 3.5, "gbitops_per_mp": 1.5} | no_blocks_left_out
    assert document["mean"]["converted"] == want
    assert document["images"][1]["converted"]["bit_operations"] == 10**9
    assert document["images"][0]["size"] == [1000, 1000]
    json.dumps(document)


def test_progress_names_the_next_picture():
    calls = []
    evaluate(FakeModel(), [Pair("a", PICTURE), Pair("b", PICTURE)], progress=lambda *call: calls.append(call))
    assert calls == [(0, 2, "a"), (1, 2, "b"), (2, 2, "")]


# ---- against what is published


def test_bicubic_on_set5_with_given_and_with_made_pictures():
    hr, lr = (shared_path("data", "images", "set5", name) for name in ("HR", "LR_x4"))
    given_lr = evaluate(FakeModel(), find_pairs(hr, lr, 4))
    made_lr = evaluate(FakeModel(), find_pairs(hr, None, 4))
    assert given_lr.mean("bicubic", "psnr_y") == pytest.approx(28.43, abs=0.01)
    assert given_lr == made_lr


def test_outputs_of_the_original_implementation_score_what_it_printed():
    folder = shared_path("reference", "edsr_baseline_x4_fq_w4a4")
    pairs = find_pairs(shared_path("data", "images", "set5", "HR"), None, 4)
    outputs = iter([np.array(Image.open(folder / f"set5_{pair.name}.png").convert("RGB")) for pair in pairs])
    model = FakeModel(float_weights=False)
    model.forward = lambda x: torch.from_numpy(next(outputs)).permute(2, 0, 1)[None].float()
    report = evaluate(model, pairs)
    printed = {entry["image"]: entry["psnr_y"] for entry in json.loads((folder / "results.json").read_text())}
    for image in report.images:
        assert image.figures["converted"].psnr_y == pytest.approx(printed[f"set5_{image.name}"], abs=5.1e-5)  # 4 digits


# ---- patches


@pytest.mark.parametrize(
    ("size", "spans"),
    [
        (1, [(0, 1)]),
        (95, [(0, 95)]),
        (96, [(0, 96)]),
        (191, [(0, 191)]),
        (192, [(0, 96), (96, 192)]),
        (200, [(0, 96), (96, 200)]),
        (510, [(0, 96), (96, 192), (192, 288), (288, 384), (384, 510)]),
    ],
)
def test_where_patches_lie(size, spans):
    assert [(rows.start, rows.stop) for rows, _ in patches(size, 50)] == spans
    assert [(columns.start, columns.stop) for _, columns in patches(50, size)] == spans


@given(st.integers(1, 700), st.integers(1, 300))
def test_patches_cover_every_pixel(height, width):
    count = np.zeros((height, width), int)
    for rows, columns in patches(height, width):
        count[rows, columns] += 1
        assert all(span.stop - span.start <= 96 + 95 for span in (rows, columns))
    assert (count == 1).all()


def test_each_patch_is_computed_alone():
    lr = np.zeros((200, 100, 3), np.uint8)
    model = Constant()
    windows = patches(200, 100)
    sr, cost = module._upscale(module._methods(model)["converted"], model.spec, "a", lr, windows)
    # Patches of 96x100 and 104x100: 196 and 204.
    want = np.repeat([196, 204], [4 * 96, 4 * 104])
    assert np.array_equal(sr, np.broadcast_to(want[:, None, None], (800, 400, 3)))
    assert cost["mean_bits"] == (96 + 104) / 2  # each patch counts once
    one = bit_operations(model.spec, 1, dict.fromkeys(model.parameters_by_name, 4), {n: int(b) for n, b in
                         model.layer_bits(torch.zeros(1, 3, 1, 1)).items()})  # fmt: skip
    assert cost["bit_operations"] == one * 200 * 100


def test_a_local_model_does_not_notice_patches():
    hr = RNG.integers(0, 256, (4 * 200, 4 * 30, 3), dtype=np.uint8)
    whole, cut = (evaluate(FakeModel(), [Pair("a", hr)], protocol=protocol) for protocol in ("whole", "patch96"))
    assert [image.patches for image in (*whole.images, *cut.images)] == [1, 2]
    for figure in ("psnr_y", "ssim_y", "mean_bits"):
        assert cut.mean("converted", figure) == whole.mean("converted", figure)
    for method in ("converted", "float"):
        first, second = (report.images[0].figures[method].bit_operations for report in (cut, whole))
        assert first == second


# ---- pairs


def test_pairs_by_name(tmp_path):
    hr = write(tmp_path / "hr", baby=40, bird_HR=40, img_001_SRF_4_HR=40, head_gt=40, x4=40, colour=40)
    lr = write(tmp_path / "lr", baby=10, birdx4=10, img_001_SRF_4_LR=10, head_LRBI_x4=10, x4=10, colourLR=10, further=3)
    pairs = find_pairs(hr, lr, 4)
    assert {pair.hr.stem: pair.lr.stem for pair in pairs} == {
        "baby": "baby", "bird_HR": "birdx4", "img_001_SRF_4_HR": "img_001_SRF_4_LR", "head_gt": "head_LRBI_x4",
        "x4": "x4", "colour": "colourLR",
    }  # fmt: skip
    assert [pair.name for pair in pairs] == ["baby", "bird", "colour", "head", "img_001", "x4"]


def test_pairs_do_not_take_off_another_scale_or_half_a_word(tmp_path):
    hr = write(tmp_path / "hr", night=40, chr=40, photo_x2=40)
    assert [pair.name for pair in find_pairs(hr, None, 4)] == ["chr", "night", "photo_x2"]


def test_missing_partner_is_named(tmp_path):
    hr, lr = write(tmp_path / "hr", a=40, b=40), write(tmp_path / "lr", a=10)
    with pytest.raises(ValueError, match=r"--lr must hold a picture for each in --data, and '.*lr' has none for 'b.png'"):
        find_pairs(hr, lr, 4, names=("--data", "--lr"))


def test_two_of_a_name(tmp_path):
    hr = write(tmp_path / "hr", a=40, a_HR=40)
    with pytest.raises(ValueError, match="hr must hold one picture of a name, got 'a.png' and 'a_HR.png'"):
        find_pairs(hr, None, 4)


@pytest.mark.parametrize("side", ["HR", "LR"])
@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((64, 64), np.uint8), r"uint8 \[64, 64\]"),
        (np.zeros((64, 64, 4), np.uint8), r"uint8 \[64, 64, 4\]"),
        (np.zeros((64, 64, 3)), r"float64 \[64, 64, 3\]"),
    ],
)
def test_arrays_of_another_kind_are_refused_before_anything_is_computed(side, array, got):
    good = np.zeros((64, 64, 3), np.uint8)
    pair = Pair("a", array) if side == "HR" else Pair("a", good, array)
    with pytest.raises(ValueError, match=rf"{side} of 'a' must be uint8 \[H, W, 3\], got {got}"):
        evaluate(FakeModel(), [pair])
    with pytest.raises(TypeError, match="pairs must hold Pair, got ndarray"):
        evaluate(FakeModel(), [good])


def test_pair_of_a_grey_and_a_transparent_picture(tmp_path):
    Image.fromarray(PICTURE[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([PICTURE, PICTURE[..., 0]])).save(tmp_path / "alpha.png")
    pairs = {pair.name: pair.read(4) for pair in find_pairs(tmp_path, None, 4)}
    assert np.array_equal(pairs["grey"][0], PICTURE[..., :1].repeat(3, 2))
    assert np.array_equal(pairs["alpha"][0], PICTURE) and np.array_equal(pairs["alpha"][1], SMALL)


def test_odd_sizes_lose_their_last_rows_and_columns():
    hr, lr = Pair("a", PICTURE[:39, :47]).read(4)
    assert np.array_equal(hr, PICTURE[:36, :44]) and lr.shape == (9, 11, 3)
    hr, lr = Pair("a", PICTURE[:39, :47], np.zeros((9, 11, 3), np.uint8)).read(4)
    assert hr.shape == (36, 44, 3)


def test_sizes_that_do_not_belong_together():
    with pytest.raises(ValueError, match="LR of 'a' must be 12x10, its HR divided by the scale 4, got 24x20"):
        Pair("a", PICTURE, np.zeros((20, 24, 3), np.uint8)).read(4)


def test_smallest_picture():
    assert evaluate(FakeModel(), [Pair("a", PICTURE[:20, :20])]).images[0].height == 20
    with pytest.raises(ValueError, match="HR of 'a' must be at least 19 pixels a side at scale 4, got 48x18"):
        evaluate(FakeModel(), [Pair("a", PICTURE[:18])])


# ---- what is refused


def test_bad_arguments():
    pair = Pair("a", PICTURE)
    with pytest.raises(ValueError, match="evaluate: protocol must be one of 'whole', 'paper', got 'patch'"):
        evaluate(FakeModel(), [pair], protocol="patch")
    with pytest.raises(ValueError, match="evaluate: scale must be that of the model, 4, got 2"):
        evaluate(FakeModel(), [pair], scale=2)
    with pytest.raises(ValueError, match="evaluate: pairs must hold at least one picture, got none"):
        evaluate(FakeModel(), [])
    with pytest.raises(TypeError, match="evaluate: model must be a converted network or a float network .*, got Identity"):
        evaluate(nn.Identity(), [pair])


def test_every_picture_is_checked_before_any_is_computed():
    model = FakeModel()
    with pytest.raises(ValueError, match="LR of 'b' must be 12x10"):
        evaluate(model, [Pair("a", PICTURE), Pair("b", PICTURE, SMALL[:5])])
    assert not model.seen


def test_nan_is_not_measured():
    model = FakeModel()
    model.forward = lambda x: torch.full((1, 3, 40, 48), float("nan"))
    with pytest.raises(ValueError, match="evaluate: model computes NaN or infinite values: its output for 'a' holds some"):
        evaluate(model, [Pair("a", PICTURE)])


def test_load_float(tmp_path):
    model = small_edsr()
    torch.save({"params": model.state_dict()}, tmp_path / "m.pt")
    loaded = module.load_float(tmp_path / "m.pt", 0.5)
    assert loaded.spec.res_scale == 0.5 and not loaded.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="load_float: .*other.pt holds no network that is known here: detect: "):
        module.load_float(tmp_path / "other.pt")
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pt")
    with pytest.raises(ValueError, match="load_float: .*numbers.pt holds no network"):
        module.load_float(tmp_path / "numbers.pt")


def test_load_float_refuses_calibrated_weights():
    path = shared_path("reference", "edsr_baseline_x4_fq_w4a4", "checkpoint.pt")
    with pytest.raises(ValueError, match="must hold float weights, and these are calibrated: convert them"):
        module.load_float(path)
