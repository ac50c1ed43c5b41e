"""`adabm eval` as a user runs it."""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from command_line import names, rows
from fake_model import FakeModel
from shared import shared_path
from small import repeating_edsr, small_edsr

from adabm_kernels import checkpoint
from adabm_kernels import evaluate as evaluation
from adabm_kernels.commands import evaluate
from adabm_kernels.models import _ASSETS

MODELS = sys.modules["adabm_kernels.models"]
RNG = np.random.default_rng(3)
needs_builtin = pytest.mark.skipif(
    not (_ASSETS / "edsr_x4_w4a4.safetensors").is_file(), reason="the built-in model's file is not there"
)


@pytest.fixture
def folder(empty_folder):
    """A working directory with the folder hr of two pictures, and lr with their low-resolution forms."""
    for name in ("hr", "lr"):
        (empty_folder / name).mkdir()
    for name, side in {"a": 40, "b": 48}.items():
        hr = RNG.integers(0, 256, (side, 44, 3), dtype=np.uint8)
        PIL.Image.fromarray(hr).save(f"hr/{name}.png")
        PIL.Image.fromarray(hr[::4, ::4]).save(f"lr/{name}x4.png")
    return empty_folder


@pytest.fixture
def model(monkeypatch):
    """The fake model in place of every converted model; m is its file."""
    fake = FakeModel()
    fake.config = SimpleNamespace(to_dict=lambda: {"weight_bits": 4})
    monkeypatch.setattr(MODELS, "load_model", lambda name: fake)
    monkeypatch.setattr(MODELS, "model_path", lambda name: name)
    monkeypatch.setattr(checkpoint, "is_converted", lambda path: path == "m")
    return fake


def test_table(folder, model, adabm):
    status, out, err = adabm("eval", "--model", "m", "--data", "hr", "--scale", 4, "--threads", 1)
    assert (status, err) == (0, "")
    head, table = out.split("\n\n")
    assert rows(head) == {
        "model": "m (fake (2 threads))",
        "data": "hr: 2 pictures, x4, LR made by bicubic",
        "protocol": "whole pictures",
        "metrics": "on luma, 4 pixels shaved; bits and bit operations: docs/evaluation.md",
    }
    groups, heads, *lines = [line.split() for line in table.splitlines()]
    assert groups == ["PSNR-Y", "SSIM-Y", "bits", "GBitOPs/MP"]
    methods = ["converted", "float", "bicubic"]
    assert heads == ["picture", *methods, *methods, "converted", "converted", "float"]
    assert [line[0] for line in lines] == ["a", "b", "mean"]
    report = evaluation.evaluate(model, evaluation.find_pairs("hr", None, 4))
    assert lines[2][1:4] == [f"{report.mean(method, 'psnr_y'):.2f}" for method in methods]
    assert lines[2][4:7] == [f"{report.mean(method, 'ssim_y'):.4f}" for method in methods]
    assert lines[0][7] == "3.75"
    assert lines[1][8:] == [f"{report.mean(method, 'gbitops_per_mp'):.0f}" for method in methods[:2]]
    assert model.settings == {"bits": "auto", "depth": "auto", "backend": "auto", "threads": 1} and torch.get_num_threads() == 1


def test_depths_have_columns_where_there_are_some(folder, model, adabm):
    model.varies_depth, model.exit = True, SimpleNamespace(weight=torch.zeros(48, 3, 5, 5))
    model.computed_share = lambda x: torch.full((1,), 0.4)
    status, out, _ = adabm("eval", "--model", "m", "--data", "hr", "--depth", "auto")
    head, table = out.split("\n\n")
    groups, heads, *lines = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]
    assert status == 0 and groups == ["PSNR-Y", "SSIM-Y", "bits", "blocks", "with zeros", "GBitOPs/MP"]
    assert heads[7:10] == ["converted"] * 3 and lines[2][7:10] == ["3.75", "40%", "1.50"]
    status, out, _ = adabm("eval", "--model", "m", "--data", "hr", "--depth", "0", "--json", "-")
    written = json.loads(out)
    assert written["depth"] == 0 == model.settings["depth"] and written["mean"]["converted"]["bits_with_zeros"] == pytest.approx(
        1.5
    )


def test_given_pictures_and_patches(folder, model, adabm):
    options = ["--lr", "lr", "--protocol", "patch96", "--bits", 6, "--backend", "reference"]
    status, out, err = adabm("eval", "--model", "m", "--data", "hr", *options)
    assert (status, err) == (0, "")
    head = rows(out)
    assert head["data"] == "hr: 2 pictures, x4, LR from lr"
    assert head["protocol"] == "patches of 96 LR pixels, 2 in all"
    assert head["model"] == "m (fake (2 threads), 6 bits)"
    assert model.settings["bits"] == 6 and model.settings["backend"] == "reference"
    assert np.array_equal(model.seen[0][0].permute(1, 2, 0), np.array(PIL.Image.open("lr/ax4.png")))


def test_json_beside_the_table_and_instead_of_it(folder, model, adabm):
    status, out, _ = adabm("eval", "--model", "m", "--data", "hr", "--json", "figures.json")
    assert status == 0 and out.startswith("model ")
    written = json.loads((folder / "figures.json").read_text())
    status, out, _ = adabm("eval", "--model", "m", "--data", "hr", "--json", "-")
    assert status == 0 and json.loads(out) == written
    assert adabm("eval", "--model", "m", "--data", "hr", "--json")[1] == out
    assert written["protocol"] == "whole" and written["scale"] == 4 and written["lr"] == "bicubic"
    assert written["mean"]["converted"]["mean_bits"] == 3.75 and written["mean"]["bicubic"]["mean_bits"] is None
    assert [image["name"] for image in written["images"]] == ["a", "b"]
    assert written["settings"] == {"weight_bits": 4}
    assert written["conventions"].keys() == evaluate.CONVENTIONS.keys() == set(evaluation.FIGURES)
    assert written["versions"]["torch"] == metadata.version("torch") and written["machine"]["cores"] >= 1


def test_identical_outputs_give_valid_json(folder, model, adabm):
    for name in ("a", "b"):
        PIL.Image.new("RGB", (40, 40), "red").save(f"hr/{name}.png")
    written = json.loads(adabm("eval", "--model", "m", "--data", "hr", "--json", "-")[1])
    assert written["mean"]["converted"]["psnr_y"] is None and written["mean"]["converted"]["ssim_y"] == pytest.approx(1)
    assert "inf" in adabm("eval", "--model", "m", "--data", "hr")[1]


def test_float_weights(folder, adabm):
    torch.save(small_edsr(channels=2, blocks=1).state_dict(), "float.pt")
    status, out, err = adabm("eval", "--model", "float.pt", "--data", "hr", "--res-scale", 0.5)
    assert (status, err) == (0, "")
    assert rows(out)["model"] == "float.pt (PyTorch float32)"
    assert out.split("\n\n")[1].splitlines()[1].split() == ["picture", "float", "bicubic", "float", "bicubic", "float"]
    written = json.loads(adabm("eval", "--model", "float.pt", "--data", "hr", "--json", "-")[1])
    assert written["settings"] is None and written["mean"]["float"]["mean_bits"] == 32


def test_float_weights_are_checked_on_the_pictures(folder, adabm):
    """Before anything is measured, and in the names of the options."""
    for name in ("a", "b"):
        smooth = np.add.outer(np.linspace(0, 120, 64), np.linspace(0, 100, 48))[..., None].repeat(3, 2).astype(np.uint8)
        PIL.Image.fromarray(smooth).save(f"hr/{name}.png")
    torch.save({"net": small_edsr(channels=4, blocks=1).state_dict()}, "float.ckpt")
    command = ["eval", "--model", "float.ckpt", "--data", "hr"]
    status, out, err = adabm(*command)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("adabm: error: --model 'float.ckpt': the weights are likely untrained, or read with the wrong residual ")
    assert "(--no-check goes on all the same)" in err
    assert adabm(*command, "--no-check")[0] == 0
    torch.save({"net": repeating_edsr(channels=4, blocks=1).state_dict(), "other": small_edsr().state_dict()}, "float.ckpt")
    assert "name one of them as --weights-key" in adabm(*command)[2]
    status, out, _ = adabm(*command, "--weights-key", "net")
    assert status == 0 and rows(out)["model"] == "float.ckpt ('net' in the file, PyTorch float32)"


def lr_of_another_size(folder):
    PIL.Image.new("RGB", (20, 20)).save(folder / "lr" / "bx4.png")


def text_as_picture(folder):
    (folder / "hr" / "b.png").write_text("words")


BAD_INPUT = {
    "no data": (None, [], "the following arguments are required: --data"),
    "data absent": (None, ["--data", "no"], "--data must be a folder of pictures, got 'no', which does not exist"),
    "data a file": (None, ["--data", "hr/a.png"], "--data must be a folder of pictures, got 'hr/a.png', which is a file"),
    "data empty": (
        lambda f: (f / "e").mkdir(),
        ["--data", "e"],
        "--data must hold at least one PNG or JPEG picture, got none in 'e'",
    ),
    "other formats": (
        lambda f: PIL.Image.new("RGB", (9, 9)).save(f / "hr" / "c.bmp"),
        ["--data", "hr"],
        "--data must hold PNG or JPEG pictures only, and 'hr' has 1 of another format, such as 'c.bmp'",
    ),
    "scale": (None, ["--data", "hr", "--scale", "2"], "--scale must be that of the model, 4, got 2"),
    "scale word": (None, ["--data", "hr", "--scale", "x4"], "--scale: must be an integer of at least 1, got 'x4'"),
    "protocol": (None, ["--data", "hr", "--protocol", "patch"], "--protocol: invalid choice: 'patch'"),
    "lr partner": (
        lambda f: (f / "lr" / "bx4.png").unlink(),
        ["--data", "hr", "--lr", "lr"],
        "--lr must hold a picture for each in --data, and 'lr' has none for 'b.png'",
    ),
    "lr size": (
        lr_of_another_size,
        ["--data", "hr", "--lr", "lr"],
        "LR of 'b' must be 11x12, its HR divided by the scale 4, got 20x20",
    ),
    "unreadable": (text_as_picture, ["--data", "hr"], "cannot read 'hr/b.png': it is no PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF"),
    "json folder": (None, ["--data", "hr", "--json", "no/f.json"], "cannot write 'no/f.json': the folder 'no' does not exist"),
    "json a picture": (
        None,
        ["--data", "hr", "--json", "hr/../hr/b.png"],
        "--json must not be a file that the command reads or writes otherwise, got 'hr/../hr/b.png'",
    ),
    "json another picture": (None, ["--data", "hr", "--lr", "lr", "--json", "lr/ax4.png"], "--json must not be a file"),
    "json the model": (None, ["--data", "hr", "--json", "m"], "--json must not be a file"),
    "rgb range": (None, ["--data", "hr", "--rgb-range", "1"], "--rgb-range must be left out for a converted model, which knows"),
    "mean shift": (None, ["--data", "hr", "--mean-shift", "0.4,0.4,0.4"], "knows its own, got 0.4,0.4,0.4"),
    "res scale": (None, ["--data", "hr", "--res-scale", "0.1"], "--res-scale must be left out for a converted model"),
    "res scale word": (None, ["--data", "hr", "--res-scale", "nan"], "--res-scale: must be a number of at least 0, got 'nan'"),
    "float bits": (
        lambda f: torch.save(small_edsr(channels=2, blocks=1).state_dict(), f / "float.pt"),
        ["--data", "hr", "--model", "float.pt", "--bits", "4"],
        "--bits must be 'auto' for a float model, which knows no other, got '4'",
    ),
    "float depth": (
        lambda f: torch.save(small_edsr(channels=2, blocks=1).state_dict(), f / "float.pt"),
        ["--data", "hr", "--model", "float.pt", "--depth", "full"],
        "--depth must be 'auto' for a float model, which knows no other, got 'full'",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(folder, model, adabm, case):
    prepare, argv, message = BAD_INPUT[case]
    if prepare:
        prepare(folder)
    before = names(folder)
    status, out, err = adabm("eval", *(() if "--model" in argv else ("--model", "m")), *argv)
    assert (status, out) == (2, "")
    assert err.startswith("adabm: error: ") and err.count("\n") == 1 and message in err
    assert names(folder) == before and not model.seen


def test_model_that_is_none(folder, adabm):
    status, _, err = adabm("eval", "--model", "absent", "--data", "hr")
    assert status == 2 and err.startswith("adabm: error: model must be a built-in model")


def test_want_of_memory_names_the_remedy(folder, model, adabm):
    def fail(x):
        raise MemoryError

    model.forward = fail
    want = "adabm: error: not enough memory for the pictures as a whole (--protocol paper needs less)\n"
    assert adabm("eval", "--model", "m", "--data", "hr", "--json", "f.json") == (1, "", want)
    assert names(folder) == ["hr", "lr"]


def test_protocols_of_the_parser_are_those_of_the_library():
    assert evaluate.PROTOCOLS == evaluation.PROTOCOLS


@needs_builtin
def test_builtin_model(folder, adabm):
    (folder / "one").mkdir()
    with PIL.Image.open(shared_path("data", "images", "set5", "HR", "butterfly.png")) as picture:
        picture.crop((64, 64, 160, 160)).save("one/butterfly.png")
    status, out, err = adabm("eval", "--data", "one", "--json", "-")
    assert (status, err) == (0, "")
    mean = json.loads(out)["mean"]
    assert mean["bicubic"]["psnr_y"] < mean["converted"]["psnr_y"] < mean["float"]["psnr_y"]
    assert 3 <= mean["converted"]["mean_bits"] <= 5 and mean["float"]["gbitops_per_mp"] > 20 * mean["converted"]["gbitops_per_mp"]
