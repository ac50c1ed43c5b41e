"""`adabm calibrate` as a user runs it: what is written and kept, interruption and continuation, bad input."""

from __future__ import annotations

import hashlib
import json
import shlex
import textwrap
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from command_line import names, rows
from safetensors.torch import load_file
from small import one_thread, repeating_edsr, small_edsr  # noqa: F401

import adabm_kernels
from adabm_kernels import calibrate as library
from adabm_kernels import checkpoint
from adabm_kernels.calibration import residual as calibration_residual
from adabm_kernels.commands import calibrate, common
from adabm_kernels.config import DEFAULT_STEPS, BestTuning
from adabm_kernels.evaluation.metrics import psnr
from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.networks.convention import Convention
from adabm_kernels.networks.detect import detect, float_network
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.srvgg import SRVGGSpec
from adabm_kernels.simulate import SimulatedNetwork

RNG = np.random.default_rng(7)
COMMAND = ["calibrate", "--weights", "w.pt", "--images", "photos", "-o", "m.safetensors"]
QUICK = [*COMMAND, "--recipe", "paper", "--steps", "6", "--threads", "1"]

pytestmark = pytest.mark.filterwarnings("ignore:--images holds")


@pytest.fixture
def folder(empty_folder):
    """A working directory with float weights of an EDSR x2, w.pt, and three pictures in photos."""
    torch.save(repeating_edsr(blocks=1, channels=4).state_dict(), "w.pt")
    (empty_folder / "photos").mkdir()
    for name, size in {"a": (40, 36), "b": (33, 48), "c": (120, 110)}.items():
        PIL.Image.fromarray(RGB(*size)).save(f"photos/{name}.png")
    return empty_folder


def RGB(height, width):
    smooth = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 100, width))[..., None]
    return (smooth + RNG.integers(0, 30, (height, width, 3))).astype(np.uint8)


class FakeCalibration:
    """In place of the library's `calibrate`: ranges of one size, at once; remembers what it was asked."""

    def __init__(self):
        self.calls, self.failure = [], None

    def __call__(self, model, images, config=None, progress=None, *, res_scale=None, resume=None, **settings):
        self.calls.append({"images": list(images), "config": config, "res_scale": res_scale, "resume": resume} | settings)
        if settings.get("own_resolution") is not None:
            self.calls[-1]["own_resolution"] = list(settings["own_resolution"])
        convention = Convention(*(settings.get(name) for name in ("rgb_range", "mean_shift")), settings.get("channel_order", "rgb"))
        key = settings.get("weights_key")
        found = detect(model, 1.0 if res_scale is None else res_scale, convention=convention, weights_key=key)
        progress(1, 2, "ranges")
        if self.failure is not None:
            resume.write_bytes(b"state")
            raise self.failure
        progress(2, 2, "fine-tuning")
        simulated = SimulatedNetwork.from_float(model, config, found=found)
        with torch.no_grad():
            for conv in simulated.quantized_convs():
                conv.lower_a.fill_(-200.0)
                conv.upper_a.fill_(255.0)
                conv.weight_range.fill_(1.0)
            if config.adaptive:
                simulated.measure_l.fill_(1.0)
                simulated.measure_u.fill_(1e6)
        stages = [{"name": "ranges", "seconds": 1.0}, {"name": "fine-tuning", "seconds": 2.0}]
        simulated.report = {"seconds": 3.2, "stages": stages, "images": 3, "steps": config.steps}
        return simulated


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCalibration()
    monkeypatch.setattr(library, "calibrate", fake)
    return fake


# ---- results


def test_table(folder, fake, adabm):
    status, out, err = adabm(*COMMAND)
    assert (status, err) == (0, "")
    assert names(folder) == ["m.safetensors", "photos", "w.pt"]
    head, layers = out.split("\n\n")
    table = rows(head)
    assert table.pop("PSNR").endswith(" dB (converted against float, 3 calibration pictures)")
    assert table.pop("written").startswith("m.safetensors (0.")
    assert table == {
        "network": "edsr x2",
        "settings": f"W4A4 full, recipe best, {DEFAULT_STEPS['best']} steps, seed 1",
        "pictures": "3 of 'photos'",
        "time": "3 s (ranges 1 s, fine-tuning 2 s)",
        "mean bits": "4.00 over the pictures (0 one less, 3 as is, 0 one more)",
    }
    assert [line.split() for line in layers.splitlines()] == [
        ["layer", "weight", "bits", "mean", "bits"],
        ["head.0", "8", "8.00"],
        ["body.0.conv1", "4", "4.00"],
        ["body.0.conv2", "4", "4.00"],
        ["body.1", "4", "4.00"],
        ["tail.0.0", "8", "8.00"],
        ["tail.1", "8", "8.00"],
    ]


def test_options_reach_the_library(folder, fake, adabm):
    options = ["--weight-bits", 6, "--act-bits", 5, "--quantize", "body", "--steps", 7, "--recipe", "paper", "--seed", 3]
    status, out, _ = adabm(*COMMAND, *options, "--target-bits", 5.5, "--res-scale", 0.5, "--threads", 1)
    assert status == 0
    (call,) = fake.calls
    got = {name: getattr(call["config"], name) for name in calibrate.CONFIG_OPTIONS}
    assert got == {
        "weight_bits": 6, "act_bits": 5, "quantize": "body", "steps": 7, "recipe": "paper", "seed": 3, "target_bits": 5.5,
        "objective": "bits", "depths": "auto", "depth_loss": 0.0, "residual": "auto", "equalize": "auto",
    }  # fmt: skip
    assert call["res_scale"] == 0.5 and call["resume"] == Path("m.safetensors.resume")
    assert adabm_kernels.load("m.safetensors").config == call["config"]
    assert rows(out)["settings"] == "W6A5 body, recipe paper, 7 steps, seed 3"


def test_the_table_says_what_factors_on_channels_bring(folder, fake, adabm, monkeypatch):
    def calibrated(*args, **settings):
        simulated = fake(*args, **settings)
        simulated.report["equalized"] = {"before": 20.0, "after": 2.0}
        return simulated

    monkeypatch.setattr(library, "calibrate", calibrated)
    said = rows(adabm(*COMMAND, "--equalize", "on")[1].split("\n\n")[0])["equalize"]
    assert said == "factors on channels, 10.0 dB less noise of few bits predicted"


def test_fixed_bits_may_be_eight(folder, fake, adabm):
    status, out, _ = adabm(*COMMAND, "--fixed", "--act-bits", 8, "--weight-bits", 6)
    assert status == 0 and rows(out)["settings"].startswith("W6A8 full")
    (call,) = fake.calls
    assert (call["config"].adaptive, call["config"].act_bits) == (False, 8)
    again = shlex.split(rows(textwrap.dedent(adabm("info", "m.safetensors")[1].split("\nMade\n")[1]))["command"])
    assert adabm(*again[1:], "--overwrite")[0] == 0 and fake.calls[1]["config"] == call["config"]


@pytest.mark.parametrize(
    ("options", "want", "said"),
    [
        ([], (8, 8, False, 0), "--weight-bits 8 --act-bits 8 --steps 0 --fixed"),
        (["--steps", 9], (8, 8, False, 9), "--weight-bits 8 --act-bits 8 --fixed"),
        (["--act-bits", 6], (8, 6, False, DEFAULT_STEPS["best"]), "--weight-bits 8 --fixed"),
        (["--no-fixed"], (8, 6, True, DEFAULT_STEPS["best"]), "--weight-bits 8 --act-bits 6"),
        (["--target-bits", 5.5], (8, 6, True, DEFAULT_STEPS["best"]), "--weight-bits 8 --act-bits 6"),
        (["--weight-bits", 6, "--act-bits", 4, "--no-fixed", "--steps", 3], (6, 4, True, 3), None),
        (["--recipe", "paper"], (4, 4, True, DEFAULT_STEPS["paper"]), None),
    ],
)
def test_a_network_that_sharpens_has_other_defaults(folder, fake, adabm, options, want, said):
    """They are told of, and the command that `info` prints has the same settings."""
    torch.manual_seed(0)
    torch.save(float_network(SRVGGSpec(scale=2, layers=1, channels=8)).state_dict(), "w.pt")
    status, out, _ = adabm(*COMMAND, *options)
    assert status == 0
    config = fake.calls[0]["config"]
    assert (config.weight_bits, config.act_bits, config.adaptive, config.steps) == want
    told = rows(out.split("\n\n")[0]).get("defaults")
    assert told == (said and f"{said}, which suits a network that was trained to sharpen")
    again = shlex.split(rows(textwrap.dedent(adabm("info", "m.safetensors")[1].split("\nMade\n")[1]))["command"])
    assert adabm(*again[1:], "--overwrite")[0] == 0 and fake.calls[1]["config"] == config


def test_options_of_depths(folder, fake, adabm):
    assert adabm(*COMMAND, "--depths", "none")[0] == adabm(*COMMAND, "--overwrite", "--depth-loss", 0.25)[0] == 0
    none, lossy = (call["config"] for call in fake.calls)
    assert (none.depths, none.depth_loss) == ("none", 0.0) and (lossy.depths, lossy.depth_loss) == ("auto", 0.25)


def test_the_table_says_which_tiles_are_easy(folder, fake, adabm, monkeypatch):
    def calibrated(*args, **settings):
        simulated = fake(*args, **settings)
        simulated.report["exit"] = found
        return simulated

    monkeypatch.setattr(library, "calibrate", calibrated)
    found = {"tile": 16, "threshold": 40, "share": 0.223, "psnr_db": 41.5, "psnr_without_db": 41.32}
    assert rows(adabm(*COMMAND)[1].split("\n\n")[0])["easy tiles"] == (
        "22% without blocks, those that bend by 40 levels at most (+0.18 dB over all tiles against float)"
    )
    found = {"share": 0.0}
    assert rows(adabm(*COMMAND, "--overwrite")[1].split("\n\n")[0])["easy tiles"] == "none"
    found["why"] = "it has no residual blocks"
    assert rows(adabm(*COMMAND, "--overwrite")[1].split("\n\n")[0])["easy tiles"] == "none: it has no residual blocks"


def test_features_of_16_bits_are_asked_for_and_told_of(folder, adabm):
    status, out, _ = adabm(*QUICK, "--residual", "int16")
    model = adabm_kernels.load("m.safetensors")
    unit = f"int16 in units of 1/{2**model.fraction}, up to {32767 / 2**model.fraction:.6g}"
    said = rows(out.split("\n\n")[0])["residual"]
    assert status == 0 and said.startswith(f"{unit} (the largest over the pictures is ")
    largest = float(said.split()[-1].rstrip(")"))
    assert 16383.5 / 2**model.fraction < calibration_residual.HEADROOM * largest <= 32767 / 2**model.fraction
    assert f"  residual          {unit}\n" in adabm("info", "m.safetensors")[1]
    assert json.loads(adabm("info", "m.safetensors", "--json")[1])["fraction"] == model.fraction
    assert adabm(*QUICK, "--overwrite")[0] == 0
    assert "  residual          float32\n" in adabm("info", "m.safetensors")[1]


READING = ["--res-scale", 0.1, "--rgb-range", 1, "--mean-shift", "0.5,0.25,0.125", "--channel-order", "bgr"]
READING += ["--weights-key", "generator_ema"]


def two_networks(folder):
    """In place of w.pt, a checkpoint with two networks and what a training program leaves beside them."""
    state = {}
    for seed, name in enumerate(("generator", "generator_ema")):
        state |= {f"{name}.{key}": value for key, value in repeating_edsr(seed, blocks=1, channels=4).state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state | {"val_psnr.total": torch.zeros(())}}, folder / "w.pt")


def test_how_weights_are_read_reaches_the_library_and_the_record(folder, fake, adabm):
    """And `info` prints the same options again."""
    two_networks(folder)
    status, out, err = adabm(*COMMAND, *READING, "--no-check")
    assert (status, err) == (0, "")
    want = {"res_scale": 0.1, "rgb_range": 1, "mean_shift": (0.5, 0.25, 0.125), "channel_order": "bgr"}
    want |= {"weights_key": "generator_ema", "check": False}
    assert {name: fake.calls[0][name] for name in want} == want
    # The checkpoint has 16 tensors for each network, and one metric.
    assert rows(out)["weights"] == "'state_dict.generator_ema' in the file, 17 tensors beside it left out"
    made = adabm_kernels.load("m.safetensors").provenance
    assert made["mean_shift"] == [0.5, 0.25, 0.125] and made["no_check"] is True
    words = shlex.split(rows(textwrap.dedent(adabm("info", "m.safetensors")[1].split("\nMade\n")[1]))["command"])
    for option, value in zip(READING[::2], READING[1::2], strict=True):
        assert words[words.index(option) + 1] == str(value)
    assert "--no-check" in words
    fake.calls.clear()
    Path("m.safetensors").unlink()
    assert adabm(*words[1:])[0] == 0
    assert {name: fake.calls[0][name] for name in want} == want


def test_nothing_is_said_of_a_file_that_is_the_network(folder, fake, adabm):
    status, out, _ = adabm(*COMMAND)
    assert status == 0 and "weights" not in rows(out.split("\n\n")[0])
    assert fake.calls[0]["check"] is True and "rgb_range" not in fake.calls[0]


def misread(folder):
    torch.save(small_edsr(blocks=1, channels=4).state_dict(), folder / "w.pt")


def test_a_network_that_is_misread_is_refused_before_the_work(folder, adabm):
    misread(folder)
    before = names(folder)
    status, out, err = adabm(*QUICK)
    assert (status, out, names(folder)) == (2, "", before)
    assert err.startswith("adabm: error: --weights 'w.pt': the weights are likely untrained, or read with the wrong residual scale")
    assert "and none of the usual ones helps (--no-check goes on all the same)" in err and err.count("\n") == 1
    assert adabm(*QUICK, "--no-check")[0] == 0


def test_pictures_reach_the_library_as_they_are(folder, fake, adabm):
    assert adabm(*COMMAND)[0] == 0
    for image, name in zip(fake.calls[0]["images"], "abc", strict=True):
        want = np.array(PIL.Image.open(f"photos/{name}.png"))
        assert image.dtype == torch.uint8 and np.array_equal(image[0].permute(1, 2, 0), want)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P"])
def test_pictures_of_other_kinds_become_rgb(folder, fake, adabm, mode):
    """Grey pictures stand for three equal colours, transparency is left out."""
    colours = RGB(30, 40)
    grey = colours[..., 0]
    alpha = np.full_like(grey, 128)
    picture, want = {
        "L": lambda: (PIL.Image.fromarray(grey), grey[..., None].repeat(3, 2)),
        "LA": lambda: (PIL.Image.fromarray(np.dstack([grey, alpha])), grey[..., None].repeat(3, 2)),
        "RGBA": lambda: (PIL.Image.fromarray(np.dstack([colours, alpha])), colours),
        "P": lambda: (PIL.Image.fromarray(colours).quantize(16), None),
    }[mode]()
    assert picture.mode == mode
    picture.save("photos/d.png")
    want = np.array(picture.convert("RGB")) if want is None else want
    assert adabm(*COMMAND)[0] == 0
    image = fake.calls[0]["images"][3]
    assert image.dtype == torch.uint8 and np.array_equal(image[0].permute(1, 2, 0), want)


@pytest.mark.parametrize(
    "device, there, want", [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda:1", True, "cuda:1")]
)
def test_device(folder, fake, adabm, monkeypatch, device, there, want):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(library, "checked_device", torch.device)
    assert adabm(*COMMAND, "--device", device)[0] == 0
    assert fake.calls[0]["device"] == torch.device(want)
    assert adabm_kernels.load("m.safetensors").provenance["device"] == ("cpu" if want == "cpu" else "a card")


@pytest.mark.parametrize("factor", [2, 1.5])
def test_pictures_are_shrunk(folder, fake, adabm, monkeypatch, factor):
    status, out, _ = adabm(*COMMAND, "--downscale", factor)
    assert status == 0 and rows(out)["pictures"] == f"3 of 'photos', shrunk {factor} times"
    for image, name in zip(fake.calls[0]["images"], "abc", strict=True):
        photo = np.array(PIL.Image.open(f"photos/{name}.png"))
        photo = photo[:32] if (factor, name) == (2, "b") else photo  # 33 rows: whole low-resolution pixels only
        assert np.array_equal(image[0].permute(1, 2, 0), imresize(photo, 1 / factor))
    # The exit of easy tiles sees them as they are too, their middles where they are large.
    monkeypatch.setattr(calibrate, "OWN_SIDE", 40)
    monkeypatch.setattr(calibrate, "OWN_PICTURES", 2)
    assert adabm(*COMMAND, "--downscale", factor, "--overwrite")[0] == 0
    seen = [x[0].permute(1, 2, 0).numpy() for x in fake.calls[-1]["own_resolution"]]
    photos = [np.array(PIL.Image.open(f"photos/{name}.png")) for name in "ac"]
    assert all(np.array_equal(*pair) for pair in zip(seen, [photos[0], photos[1][40:80, 35:75]], strict=True))


def test_pictures_that_are_not_shrunk_are_seen_once(folder, fake, adabm):
    assert adabm(*COMMAND)[0] == adabm(*COMMAND, "--downscale", 2, "--overwrite", "--depths", "none")[0] == 0
    assert [call["own_resolution"] for call in fake.calls] == [None, None]


def test_json(folder, fake, adabm):
    status, out, _ = adabm(*COMMAND, "--json", "r.json")
    assert status == 0 and out.startswith("network")
    report = json.loads(Path("r.json").read_text())
    assert report["output"] == "m.safetensors" and report["bytes"] == Path("m.safetensors").stat().st_size
    assert report["network"]["network"] == "edsr" and report["network"]["blocks"] == 1
    assert report["settings"]["steps"] == DEFAULT_STEPS["best"]
    assert [picture["name"] for picture in report["pictures"]] == ["a.png", "b.png", "c.png"]
    assert report["layers"][1] == {"name": "body.0.conv1", "weight_bits": 4, "offset": 0, "mean_bits": 4.0}
    model = adabm_kernels.load("m.safetensors")
    assert report["provenance"] == model.provenance
    # The PSNR by its definition, on the middles of the pictures.
    values = []
    for name in "abc":
        rgb = np.array(PIL.Image.open(f"photos/{name}.png"))
        y, x = (max(side - 96, 0) // 2 for side in rgb.shape[:2])
        crop = torch.from_numpy(rgb[y : y + 96, x : x + 96].copy()).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            values.append(psnr(model(crop).clamp(0, 255), model.float_model()(crop).clamp(0, 255)))
    assert report["psnr_db"] == pytest.approx(np.mean(values), abs=1e-6) and report["psnr_pictures"] == 3
    printed = adabm(*COMMAND, "--overwrite", "--json", "-")[1]
    assert json.loads(printed)["layers"] == report["layers"]


def test_provenance_and_info(folder, fake, adabm):
    assert adabm(*COMMAND, "--downscale", 2, "--steps", 3, "--threads", 1)[0] == 0
    made = adabm_kernels.load("m.safetensors").provenance
    assert made["weights"] == {"file": "w.pt", "sha256": hashlib.sha256(Path("w.pt").read_bytes()).hexdigest()}
    assert made["images"]["folder"] == "photos" and made["images"]["count"] == 3
    digest = hashlib.sha256()
    for image in fake.calls[0]["images"]:
        rgb = image[0].permute(1, 2, 0).numpy()
        digest.update(repr(rgb.shape).encode() + rgb.tobytes())
    assert made["images"]["sha256"] == digest.hexdigest()
    assert (made["downscale"], made["res_scale"], made["threads"], made["seconds"]) == (2, None, 1, 3.0)
    assert str(folder) not in json.dumps(made)
    status, out, err = adabm("info", "m.safetensors")
    assert (status, err) == (0, "")
    section = rows("\n".join(line.strip() for line in out.split("\nMade\n")[1].splitlines()))
    # What `info` prints is a command that the parser takes, with the same settings.
    again = shlex.split(section["command"])
    assert again[:2] == ["adabm", "calibrate"]
    Path("m.safetensors").unlink()
    assert adabm(*again[1:])[0] == 0
    assert fake.calls[1]["config"] == fake.calls[0]["config"]
    assert adabm_kernels.load("m.safetensors").provenance == made
    assert section["time"] == "3 s" and made["weights"]["sha256"] in section["weights"]
    assert json.loads(adabm("info", "m.safetensors", "--json")[1])["provenance"] == made


def test_few_pictures_are_a_warning(folder, fake, adabm):
    with pytest.warns(UserWarning, match="--images holds 3 pictures; thresholds from fewer than 16 are rough"):
        assert adabm(*COMMAND)[0] == 0


# ---- interruption


def interrupt_at(monkeypatch, stage, done):
    """Ctrl-C when the bar shows this."""
    plain = common.Progress.__call__

    def call(self, n, total, what):
        plain(self, n, total, what)
        if (what, n) == (stage, done):
            raise KeyboardInterrupt

    monkeypatch.setattr(calibrate.Progress, "__call__", call)


def test_interrupted_run_continues_to_the_same_model(folder, adabm, monkeypatch):
    assert adabm(*QUICK)[0] == 0
    uninterrupted = load_file("m.safetensors")
    Path("m.safetensors").unlink()
    with monkeypatch.context() as patch:
        interrupt_at(patch, "fine-tuning", 6)
        status, out, err = adabm(*QUICK)
    assert (status, out) == (130, "")
    want = "what was done is kept in 'm.safetensors.resume'; to go on from there: "
    assert err == f"adabm: interrupted: {want}{shlex.join(['adabm', *QUICK])}\n"
    assert names(folder) == ["m.safetensors.resume", "photos", "w.pt"]
    status, out, err = adabm(*QUICK)
    assert (status, err) == (0, "")
    assert "; interrupted at step 4)" in rows(out)["time"]  # one batch and clipping came before
    assert names(folder) == ["m.safetensors", "photos", "w.pt"]
    continued = load_file("m.safetensors")
    assert continued.keys() == uninterrupted.keys()
    assert all(torch.equal(value, uninterrupted[name]) for name, value in continued.items())


def test_other_settings_do_not_continue(folder, adabm, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, "fine-tuning", 6)
        assert adabm(*QUICK)[0] == 130
    kept = Path("m.safetensors.resume").read_bytes()
    status, out, err = adabm(*QUICK, "--steps", 5)
    assert (status, out) == (2, "")
    assert "m.safetensors.resume is of a run with other settings: steps was 6 and is 5" in err and err.count("\n") == 1
    assert Path("m.safetensors.resume").read_bytes() == kept


def test_interrupted_before_there_is_anything_to_keep(folder, adabm, monkeypatch):
    interrupt_at(monkeypatch, "reading pictures", 1)
    status, _, err = adabm(*QUICK)
    assert (status, err) == (130, "adabm: interrupted: there was nothing to keep yet, and nothing was written\n")
    assert names(folder) == ["photos", "w.pt"]


def test_interrupted_while_measuring(folder, fake, adabm, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "_report", fail)
    status, _, err = adabm(*COMMAND)
    assert (status, err) == (130, "adabm: interrupted: 'm.safetensors' is complete, its figures were not measured\n")
    assert names(folder) == ["m.safetensors", "photos", "w.pt"]


FAILURES = {
    "nan": (ValueError("calibrate: model computes NaN or infinite values: its output holds some"), 2),
    "kernel": (RuntimeError("conv2d: broke"), 1),
    "disk": (OSError("cannot write 'm.safetensors.resume': No space left on device"), 1),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_while_running_keeps_the_state(folder, fake, adabm, case):
    fake.failure, want = FAILURES[case]
    assert adabm(*COMMAND) == (want, "", f"adabm: error: {fake.failure}\n")
    assert names(folder) == ["m.safetensors.resume", "photos", "w.pt"]


# ---- bad input


def test_an_existing_output_is_kept_unless_asked(folder, fake, adabm):
    Path("m.safetensors").write_bytes(b"old")
    status, out, err = adabm(*COMMAND)
    want = "adabm: error: --output must not exist yet without --existing replace, got 'm.safetensors'\n"
    assert (status, out, err) == (2, "", want)
    assert Path("m.safetensors").read_bytes() == b"old" and not fake.calls
    assert adabm(*COMMAND, "--existing", "replace")[0] == 0
    adabm_kernels.load("m.safetensors")


def test_an_output_that_appears_during_the_run_is_kept(folder, fake, adabm, monkeypatch):
    plain = fake.__call__

    def busy(*args, resume, **kwargs):
        simulated = plain(*args, resume=resume, **kwargs)
        resume.write_bytes(b"state")
        Path("m.safetensors").write_bytes(b"other")
        return simulated

    monkeypatch.setattr(library, "calibrate", busy)
    status, _, err = adabm(*COMMAND)
    assert status == 1 and err.startswith("adabm: error: cannot write 'm.safetensors': it has appeared during the run")
    assert Path("m.safetensors").read_bytes() == b"other" and Path("m.safetensors.resume").exists()


def tiny(folder):
    PIL.Image.new("RGB", (40, 15)).save(folder / "photos" / "d.png")


def sixteen_bits(folder):
    PIL.Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "photos" / "d.png")


def small_when_shrunk(folder):
    PIL.Image.new("RGB", (120, 60)).save(folder / "photos" / "d.png")


def no_network(folder):
    torch.save({"weight": torch.zeros(1)}, folder / "x.pt")


def nan_weights(folder):
    state = repeating_edsr(blocks=1, channels=4).state_dict()
    state["head.0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, folder / "x.pt")


def with_option(name, value):
    return [*COMMAND[: COMMAND.index(name) + 1], value, *COMMAND[COMMAND.index(name) + 2 :]]


BAD_INPUT = {
    "nothing": (None, ["calibrate"], "the following arguments are required: --weights, --images, -o/--output"),
    "weights absent": (None, with_option("--weights", "no.pt"), "--weights must be an existing file, got 'no.pt'"),
    "weights of another kind": (None, with_option("--weights", "photos/a.png"), "a checkpoint ends in .safetensors, .pt, "),
    "no network": (no_network, with_option("--weights", "x.pt"), "--weights 'x.pt': detect: "),
    "nan": (
        nan_weights,
        with_option("--weights", "x.pt"),
        "--weights 'x.pt': detect: 'head.0.weight' holds NaN or infinite values",
    ),
    "images absent": (None, with_option("--images", "no"), "--images must be a folder of pictures, got 'no', which does not exist"),
    "no images": (
        lambda f: (f / "e").mkdir(),
        with_option("--images", "e"),
        "--images must hold at least one PNG or JPEG picture, got none in 'e'",
    ),
    "unreadable": (
        lambda f: (f / "photos" / "d.png").write_text("words"),
        COMMAND,
        "cannot read 'photos/d.png': it is no PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF",
    ),
    "too small": (tiny, COMMAND, "--images must be at least 16 pixels a side, got 40x15 of 'photos/d.png'"),
    "sixteen bits": (sixteen_bits, COMMAND, "cannot read 'photos/d.png': it has 16 bits per channel and only 8 are supported"),
    "too small when shrunk": (
        small_when_shrunk,
        [*COMMAND, "--downscale", "2.25"],
        "--images must be at least 36 pixels a side (16 after --downscale 2.25), got 48x33 of 'photos/b.png'",
    ),
    "suffix": (None, with_option("-o", "m.pt"), "--output must end in .safetensors, got 'm.pt'"),
    "output folder": (
        None,
        with_option("-o", "no/m.safetensors"),
        "cannot write 'no/m.safetensors': the folder 'no' does not exist",
    ),
    "output is the weights": (
        lambda f: (f / "w.safetensors").write_bytes(b""),
        [*with_option("--weights", "w.safetensors")[:-1], "w.safetensors", "--overwrite"],
        "--output must not be the weights themselves, got 'w.safetensors'",
    ),
    "json folder": (None, [*COMMAND, "--json", "no/r.json"], "cannot write 'no/r.json': the folder 'no' does not exist"),
    **{
        f"json {name}": (
            None,
            [*COMMAND, "--start", "s.safetensors", "--json", name],
            f"--json must not be a file that the command reads or writes otherwise, got '{name}'",
        )
        for name in ("m.safetensors", "m.safetensors.resume", "w.pt", "s.safetensors", "photos/a.png")
    },
    "weight bits": (None, [*COMMAND, "--weight-bits", "9"], "--weight-bits: must be an integer from 2 to 8, got '9'"),
    "act bits": (None, [*COMMAND, "--act-bits", "8"], "--act-bits must be 4, 5 or 6 without --fixed (images and "),
    "fixed act bits": (None, [*COMMAND, "--fixed", "--act-bits", "9"], "--act-bits: must be an integer from 2 to 8, got '9'"),
    "target bits": (None, [*COMMAND, "--target-bits", "7"], "--target-bits must be within 1 of act_bits, got 7"),
    "rgb range": (None, [*COMMAND, "--rgb-range", "2"], "--rgb-range: invalid choice: 2"),
    "mean shift": (
        None,
        [*COMMAND, "--mean-shift", "114,111,103"],
        "--mean-shift: must be 'none', 'div2k' or three numbers in 0..1 such as 0.45,0.44,0.4, got '114,111,103'",
    ),
    "channel order": (None, [*COMMAND, "--channel-order", "gbr"], "--channel-order: invalid choice: 'gbr'"),
    "several networks": (
        two_networks,
        COMMAND,
        "--weights 'w.pt': detect: the checkpoint holds several networks, 'state_dict.generator', 'state_dict.generator_ema': name "
        "one of them as --weights-key",
    ),
    "weights key": (
        two_networks,
        [*COMMAND, "--weights-key", "ema"],
        "--weights-key must name one part of the checkpoint, of 'state_dict.generator', 'state_dict.generator_ema', ",
    ),
    "steps": (None, [*COMMAND, "--steps", "-1"], "--steps: must be an integer of at least 0, got '-1'"),
    "downscale": (None, [*COMMAND, "--downscale", "0.5"], "--downscale: must be a number of at least 1, got '0.5'"),
    "device": (None, [*COMMAND, "--device", "gpu"], "calibrate: device must be one that torch can use here, got 'gpu': "),
    "recipe": (None, [*COMMAND, "--recipe", "good"], "--recipe: invalid choice: 'good'"),
    "residual": (None, [*COMMAND, "--residual", "half"], "--residual: invalid choice: 'half'"),
    "equalize": (None, [*COMMAND, "--equalize", "yes"], "--equalize: invalid choice: 'yes'"),
    "residual of a body": (
        None,
        [*COMMAND, "--residual", "int16", "--quantize", "body"],
        "--residual must be 'auto' or 'float32' with quantize='body', whose convolutions in float read and write the features",
    ),
    "residual of an RDN": (
        lambda folder: torch.save(float_network(RDNSpec(2, 1, 2, 3, 5)).state_dict(), "w.pt"),
        [*COMMAND, "--residual", "int16"],
        "--residual must be auto or float32 for 'w.pt', got int16: the features of an RDN are slices of wider ones",
    ),
    "depths": (None, [*COMMAND, "--depths", "4"], "--depths: invalid choice: '4'"),
    "depth loss": (None, [*COMMAND, "--depth-loss", "-1"], "--depth-loss: must be a number from 0 to 10, got '-1'"),
    **{
        f"depth loss with {words}": (
            None,
            [*COMMAND, "--depth-loss", "0.5", *words.split()],
            "--depth-loss must be left out without --depths auto, --recipe best and --quantize full, which find easy tiles, got",
        )
        for words in ("--depths none", "--recipe paper", "--quantize body")
    },
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(folder, adabm, case):
    prepare, argv, message = BAD_INPUT[case]
    if prepare:
        prepare(folder)
    before = names(folder)
    status, out, err = adabm(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("adabm: error: ") and err.count("\n") == 1 and message in err
    assert names(folder) == before


def test_calibrated_weights_are_refused(folder, adabm):
    state = library.calibrate(torch.load("w.pt"), [torch.rand(1, 3, 16, 16) * 255]).state_dict()
    torch.save(state, "c.pt")
    status, _, err = adabm(*with_option("--weights", "c.pt"))
    assert (status, err) == (2, "adabm: error: --weights must be float weights, and 'c.pt' is calibrated already\n")


def test_a_converted_model_is_refused_as_weights(folder, fake, adabm):
    assert adabm(*COMMAND)[0] == 0
    argv = with_option("--weights", "m.safetensors")
    argv[argv.index("-o") + 1] = "n.safetensors"
    status, _, err = adabm(*argv)
    assert (status, err) == (2, "adabm: error: --weights must be float weights, and 'm.safetensors' is a converted model already\n")


def test_header_without_provenance_reads_as_empty(folder, fake, adabm):
    assert adabm(*COMMAND)[0] == 0
    model = adabm_kernels.load("m.safetensors")
    model.provenance = {}
    checkpoint.save(model, "n.safetensors")
    assert checkpoint.read_header("n.safetensors")["provenance"] == {}
    assert checkpoint.is_converted("n.safetensors") and not checkpoint.is_converted("w.pt")


# ---- what else it may start from


def test_objective_and_the_most_informative_pictures(folder, fake, adabm):
    status, _, _ = adabm(*COMMAND, "--objective", "latency", "--select", "2")
    assert status == 0
    call = fake.calls[-1]
    assert call["config"].objective == "latency" and len(call["images"]) == 2
    status, _, err = adabm(*COMMAND[:-1], "n.safetensors", "--select", "99")
    assert status == 2 and "--select must be at most the number of pictures" in err


def test_maps_of_another_model(folder, fake, adabm):
    assert adabm(*COMMAND)[0] == 0
    status, _, err = adabm(*COMMAND[:-1], "n.safetensors", "--start", "m.safetensors")
    assert (status, err) == (0, "")
    assert fake.calls[-1]["start"].thresholds == (1.0, 1e6)
    status, _, err = adabm(*COMMAND[:-1], "o.safetensors", "--start", "w.pt")
    assert status == 2 and "--start must be a converted model" in err


def test_the_recorded_command_names_selection_start_and_tuning(folder, fake, adabm):
    assert adabm(*COMMAND)[0] == 0
    tuned = ("--tolerance", 0.02, "--candidates", 4, "--target-bits", "3.5555555")
    status, _, err = adabm(*COMMAND[:-1], "n.safetensors", "--select", 2, "--start", "m.safetensors", *tuned)
    assert (status, err) == (0, "")
    assert fake.calls[-1]["config"].tuning == BestTuning(tolerance=0.02, candidates=4)

    def said(model):
        made = adabm("info", model)[1].split("\nMade\n")[1]
        return rows(textwrap.dedent(made))

    command = said("n.safetensors")["command"]
    for words in ("--select 2", "--start m.safetensors", "--tolerance 0.02", "--candidates 4", "--target-bits 3.5555555"):
        assert words in command
    assert said("n.safetensors")["images"].startswith("3 in photos")
    plain = said("m.safetensors")["command"]
    assert not any(word in plain for word in ("--select", "--start", "--tolerance", "--candidates"))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tolerance", 1, "must be a number of at least 0 and below 1, got '1'"),
        ("--tolerance", -0.1, "must be a number of at least 0"),
        ("--candidates", 0, "at least 1"),
    ],
)
def test_tuning_options_have_rules(folder, fake, adabm, option, value, message):
    status, _, err = adabm(*COMMAND, f"{option}={value}")
    assert status == 2 and message in err


def test_the_published_recipe_takes_no_tuning_options(folder, fake, adabm):
    status, _, err = adabm(*COMMAND, "--recipe", "paper", "--tolerance", 0.02)
    assert status == 2 and "--tolerance must be left out with --recipe paper, which is tuned as published, got 0.02" in err
