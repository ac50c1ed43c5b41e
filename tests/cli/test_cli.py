"""The command line as a user runs it: results, tables, exit statuses, one-sentence errors, nothing half written."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import types
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from command_line import ENVIRONMENT, HELPERS, names, rows, run_process
from small import small_edsr
from with_exits import an_exit, with_exit

from adabm_kernels import ConvertConfig, cli, convert_model, save
from adabm_kernels.commands import comparison
from adabm_kernels.models import _ASSETS

RGB = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
LARGE = RGB.repeat(4, 0).repeat(4, 1)

needs_builtin = pytest.mark.skipif(
    not (_ASSETS / "edsr_x4_w4a4.safetensors").is_file(), reason="the built-in model's file is not there"
)


@pytest.fixture
def folder(empty_folder):
    """A working directory with one picture, in.png."""
    PIL.Image.fromarray(RGB).save("in.png")
    return empty_folder


def read(path):
    with PIL.Image.open(path) as image:
        return np.array(image)


def test_upscale_writes_beside_the_input(folder, model, adabm):
    status, out, err = adabm("upscale", "in.png")
    assert (status, err) == (0, "")
    assert np.array_equal(read("in_x4.png"), LARGE)
    table = rows(out)
    assert list(table) == ["image", "model", "backend", "mean bits", "time", "written"]
    assert table["image"] == "7x5 -> 28x20"
    assert table["model"] == "edsr_x4_w4a4"
    assert table["backend"] == "fake (2 threads)"
    assert table["mean bits"] == "3.75"
    assert re.fullmatch(r"\d+\.\d{3} s \(first run\)", table["time"])
    assert table["written"] == "in_x4.png"
    assert len(model.seen) == 1
    assert model.settings == {"bits": "auto", "depth": "auto", "backend": "auto", "threads": torch.get_num_threads()}


def test_the_input_is_never_the_default_output(folder, model, adabm):
    PIL.Image.fromarray(RGB).save("photo.of.me.JPG")
    assert adabm("upscale", "photo.of.me.JPG")[0] == 0
    assert names(folder) == ["in.png", "photo.of.me.JPG", "photo.of.me_x4.png"]


def test_scale_in_the_default_name_is_the_models(folder, model, adabm):
    model.scale = 2
    status, out, _ = adabm("upscale", "in.png")
    assert status == 0 and rows(out)["written"] == "in_x2.png" and read("in_x2.png").shape == (10, 14, 3)


def test_options_reach_the_model(folder, model, adabm):
    options = "--bits", 6, "--depth", 1, "--backend", "reference", "--threads", 1, "--model", "m"
    status, out, _ = adabm("upscale", "in.png", "-o", "out.jpg", *options)
    assert status == 0
    assert model.settings == {"bits": 6, "depth": 1, "backend": "reference", "threads": 1}
    assert torch.get_num_threads() == 1
    assert rows(out)["mean bits"] == "3.75 (fixed)" and rows(out)["model"] == "m"
    assert read("out.jpg").shape == (20, 28, 3)


def test_compare_adds_the_float_model(folder, model, adabm):
    status, out, err = adabm("upscale", "in.png", "--compare", "--threads", 1)
    assert (status, err) == (0, "")
    table = rows(out)
    assert list(table) == [
        "image", "model", "backend", "mean bits", "time", "float model", "speed-up", "PSNR", "written",
    ]  # fmt: skip
    runs = f"median of {comparison.RUNS} runs"
    assert table["time"].endswith(f" s ({runs})")
    assert f"(PyTorch {torch.__version__} float32 channels_last, 1 thread, {runs})" in table["float model"]
    assert re.fullmatch(r"\d+\.\d\dx", table["speed-up"])
    assert len(model.seen) == 1 + comparison.RUNS
    # PSNR of nearest against bilinear, computed here by its definition.
    x = torch.from_numpy(RGB).permute(2, 0, 1)[None].float()
    diff = torch.nn.functional.interpolate(x, scale_factor=4, mode="bilinear") - model(x)
    db = 10 * torch.log10(255**2 / diff.double().square().mean())
    assert table["PSNR"] == f"{db:.2f} dB (converted against float, nothing interpolated)"


def test_compare_stops_early_on_slow_images(folder, model, adabm, monkeypatch):
    monkeypatch.setattr(comparison, "SECONDS", 0.0)
    status, out, _ = adabm("upscale", "in.png", "--compare")
    assert status == 0 and rows(out)["time"].endswith("(one run)")


def test_json(folder, model, adabm):
    status, out, err = adabm("upscale", "in.png", "--compare", "--json", "--bits", 4)
    report = json.loads(out)
    assert (status, err) == (0, "")
    assert report["input_size"] == [7, 5] and report["output_size"] == [28, 20]
    assert report["bits"] == 4 and report["mean_bits"] == 3.75
    assert report["output"] == "in_x4.png"
    assert report["speed_up"] == pytest.approx(report["float_seconds"] / report["seconds"])
    assert report["psnr_db"] > 0


def test_identical_outputs_give_valid_json(folder, model, adabm, monkeypatch):
    monkeypatch.setattr(model, "float_model", lambda: torch.nn.Upsample(scale_factor=4))
    report = json.loads(adabm("upscale", "in.png", "--compare", "--json")[1])
    assert report["psnr_db"] is None
    assert rows(adabm("upscale", "in.png", "--compare")[1])["PSNR"].startswith("identical")


def test_transparency_and_grey_survive(folder, model, adabm):
    alpha = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
    PIL.Image.fromarray(np.dstack([RGB, alpha])).save("rgba.png")
    PIL.Image.fromarray(RGB[..., 0]).save("grey.png")
    assert adabm("upscale", "rgba.png")[0] == 0 and adabm("upscale", "grey.png")[0] == 0
    assert read("rgba_x4.png").shape == (20, 28, 4)
    assert np.array_equal(read("grey_x4.png"), LARGE[..., 0])


def test_an_existing_output_is_replaced(folder, model, adabm):
    Path("in_x4.png").write_bytes(b"old")
    assert adabm("upscale", "in.png")[0] == 0
    assert read("in_x4.png").shape == (20, 28, 3)


BAD_USAGE = {
    "no command": (["--traceback"], "the following arguments are required: COMMAND"),
    "unknown command": (["enlarge"], "invalid choice: 'enlarge'"),
    "misspelt command": (["upscal", "in.png"], "(did you mean 'upscale'?)"),
    "no input": (["upscale"], "the following arguments are required: IN"),
    "bits 1": (["upscale", "in.png", "--bits", "1"], "--bits: must be 'auto' or an integer from 2 to 8, got '1'"),
    "bits 9": (["upscale", "in.png", "--bits", "9"], "--bits: must be 'auto' or an integer from 2 to 8, got '9'"),
    "bits word": (["upscale", "in.png", "--bits", "four"], "an integer from 2 to 8, got 'four'"),
    "depth word": (["upscale", "in.png", "--depth", "deep"], "--depth: must be 'auto', 'full' or a number of blocks, got 'deep'"),
    "depth below 0": (["report", "in.png", "--depth=-1"], "--depth: must be 'auto', 'full' or a number of blocks, got '-1'"),
    "backend": (["upscale", "in.png", "--backend", "tpu"], "--backend: invalid choice: 'tpu'"),
    "threads 0": (["upscale", "in.png", "--threads", "0"], "--threads: must be an integer of at least 1, got '0'"),
    "threads -2": (["upscale", "in.png", "--threads=-2"], "--threads: must be an integer of at least 1, got '-2'"),
}


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage(folder, model, adabm, case):
    argv, message = BAD_USAGE[case]
    status, out, err = adabm(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("adabm: error: ") and err.count("\n") == 1 and message in err
    assert names(folder) == ["in.png"]


def test_without_a_command_it_shows_what_there_is(adabm):
    status, out, err = adabm()
    assert (status, out) == (2, "")
    assert err.startswith("usage: adabm") and "upscale pictures, folders or frames of a video" in err


@pytest.mark.parametrize("argv, shown", [([], "Built-in models"), (["models"], "network"), (["--version"], "adabm ")])
def test_the_package_runs_as_a_program(argv, shown):
    command = [sys.executable, "-m", "adabm_kernels", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "") and shown in done.stdout


def test_quiet_warns_of_nothing(folder, model, adabm):
    first = PIL.Image.fromarray(RGB)
    first.save("pages.tif", save_all=True, append_images=[first, first])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert adabm("upscale", "pages.tif")[0] == 0
        # Once, though the file is opened more than once.
        assert [str(one.message) for one in said] == ["'pages.tif' holds 3 pictures, of which only the first is read"]
        assert adabm("upscale", "-q", "pages.tif") == (0, "", "") and len(said) == 1
    assert np.array_equal(read("pages_x4.png"), LARGE)


def cut_png(folder):
    data = (folder / "in.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])


def rgba(folder):
    PIL.Image.fromarray(np.dstack([RGB, RGB[..., :1]])).save(folder / "rgba.png")


BAD_INPUT = {
    "missing": (None, ["absent.png"], "cannot read 'absent.png': No such file or directory"),
    "empty folder": (lambda f: (f / "d").mkdir(), ["d"], "IN must hold pictures that can be read, and the folder 'd' has none"),
    "empty": (lambda f: (f / "e.png").touch(), ["e.png"], "cannot read 'e.png': the file is empty (0 bytes)"),
    "text": (lambda f: (f / "t.png").write_text("words"), ["t.png"], "'t.png': it is no PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF"),
    "truncated": (cut_png, ["cut.png"], "cannot read 'cut.png': the file is truncated or damaged"),
    "out suffix": (None, ["in.png", "-o", "o.gif"], "'o.gif': its suffix must be one of .png, .jpg, .jpeg, "),
    "out folder": (None, ["in.png", "-o", "no/o.png"], "cannot write 'no/o.png': the folder 'no' does not exist"),
    "out is input": (None, ["in.png", "-o", "./in.png"], "OUT must not be the input file itself, got 'in.png'"),
    "out is link": (
        lambda f: (f / "link.png").symlink_to("in.png"),
        ["in.png", "-o", "link.png"],
        "OUT must not be the input file itself, got 'link.png'",
    ),
    "rgba to jpeg": (rgba, ["rgba.png", "-o", "o.jpg"], "'o.jpg': JPEG has no transparency and the picture has"),
    "model": (None, ["in.png", "--model", "nope"], "model must be a built-in model"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(folder, adabm, case):
    prepare, argv, message = BAD_INPUT[case]
    if prepare:
        prepare(folder)
    before = names(folder)
    status, out, err = adabm("upscale", *argv)
    assert (status, out) == (2, "")
    assert err.startswith("adabm: error: ") and err.count("\n") == 1 and message in err
    assert names(folder) == before
    assert np.array_equal(read("in.png"), RGB)


def test_unwritable_folder(folder, model, adabm, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
    status, _, err = adabm("upscale", "in.png")
    assert status == 2 and err == "adabm: error: cannot write 'in_x4.png': the folder '.' is not writable\n"
    assert not model.seen


def test_backend_that_cannot_run(folder, model, adabm):
    model.backend_reason = "backend 'cuda' cannot run: library not built: no nvcc at install"
    status, _, err = adabm("upscale", "in.png", "--backend", "cuda")
    assert (status, err) == (2, f"adabm: error: {model.backend_reason}\n")
    assert names(folder) == ["in.png"]


def test_compare_without_float_weights_is_refused_before_the_work(folder, model, adabm):
    model.float_weights = False
    status, _, err = adabm("upscale", "in.png", "--compare")
    assert (status, err) == (2, "adabm: error: float_model: this file carries no float weights\n")
    assert not model.seen and names(folder) == ["in.png"]


NO_MEMORY = "adabm: error: not enough memory to upscale 7x5 pixels (a smaller --window or --max-memory needs less)\n"
FAILURES = {
    "kernel": (RuntimeError("conv2d: something\n  broke"), 1, "adabm: error: conv2d: something broke\n"),
    "torch memory": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"),
        1,
        NO_MEMORY,
    ),
    "memory": (MemoryError(), 1, NO_MEMORY),
    "bug": (KeyError("x"), 1, "adabm: error: unexpected KeyError: 'x' (--traceback shows where)\n"),
    "interrupt": (KeyboardInterrupt(), 130, "adabm: interrupted\n"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_while_running(folder, model, adabm, monkeypatch, case):
    failure, want, message = FAILURES[case]

    def fail(x, offset):
        raise failure

    monkeypatch.setattr(model, "forward", fail)
    assert adabm("upscale", "in.png") == (want, "", message)
    assert names(folder) == ["in.png"]


def test_traceback_on_request(folder, model, adabm, monkeypatch):
    monkeypatch.setattr(model, "forward", lambda x, offset: {}["x"])
    status, _, err = adabm("upscale", "in.png", "--traceback")
    assert status == 1 and err.startswith("Traceback") and err.splitlines()[-1].startswith("adabm: error: ")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_failure_while_writing(folder, model, adabm, monkeypatch, failure):
    def fail(*_):
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    status, out, err = adabm("upscale", "in.png")
    want = {
        OSError: (1, "adabm: error: cannot write 'in_x4.png': No space left on device\n"),
        KeyboardInterrupt: (130, "adabm: interrupted\n"),
    }
    assert (status, err) == want[type(failure)] and out == ""
    assert names(folder) == ["in.png"]


def test_warnings_are_one_line(folder, model, adabm, monkeypatch):
    import warnings

    monkeypatch.setattr(model, "set_backend", lambda name: warnings.warn("this is\nslow", RuntimeWarning, stacklevel=2))
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # pytest records warnings; printed as the interpreter would, they go through formatwarning.
        monkeypatch.setattr(warnings, "showwarning", lambda m, c, f, n, *_: sys.stderr.write(warnings.formatwarning(m, c, f, n)))
        status, _, err = adabm("upscale", "in.png")
    assert (status, err) == (0, "adabm: warning: this is slow\n")
    assert warnings.formatwarning is before


def test_ctrl_c_in_a_real_process(folder):
    code = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
from fake_model import FakeModel
from adabm_kernels import cli
import adabm_kernels.models
class Slow(FakeModel):
    def forward(self, x, offset=None):
        print("computing", flush=True)
        time.sleep(60)
sys.modules["adabm_kernels.models"].load_model = lambda name: Slow()
sys.exit(cli.main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, HELPERS, "upscale", "in.png"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout.readline() == "computing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "adabm: interrupted\n")
    assert names(folder) == ["in.png"]


def test_help_is_quick_and_light():
    done = run_process("--help")
    assert done.returncode == 0 and "upscale" in done.stdout and "info" in done.stdout
    code = "import sys; from adabm_kernels.cli import main\ntry: main(['upscale', '--help'])\nfinally: "
    done = run_process(code=code + "print('loaded', {'torch', 'numpy', 'PIL'} & set(sys.modules))")
    assert done.stdout.endswith("loaded set()\n")
    assert min(seconds_of_help() for _ in range(3)) < 1.0


def seconds_of_help():
    """Processor time: that of the clock depends on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_bad_input_is_found_before_torch_is_imported(folder):
    code = "import sys; from adabm_kernels.cli import main; print(main(), 'torch' in sys.modules)"
    assert run_process("upscale", "absent.png", code=code).stdout == "2 False\n"


def test_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    done = run_process("info", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_info_in_a_process():
    done = run_process(code="import runpy; runpy.run_module('adabm_kernels', run_name='__main__')")
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("Machine", "Native libraries", "Backends", "Built-in models"):
        assert f"\n{line}\n" in f"\n{done.stdout}"
    assert f"  torch          {metadata.version('torch')}\n" in done.stdout
    assert re.search(r"\n  reference  yes", done.stdout)


def test_info_json_says_why_a_backend_cannot_run(adabm):
    status, out, _ = adabm("info", "--json")
    report = json.loads(out)
    assert status == 0
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["backends"].keys() == {"cpu", "reference", "triton", "cuda"}
    for backend in report["backends"].values():
        assert backend["available"] or backend["reason"]


def test_info_names_cards(monkeypatch):
    from adabm_kernels import machine

    card = types.SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_name=lambda i: f"Card {i}",
        get_device_capability=lambda i: (8, 6 + i),
    )
    monkeypatch.setattr(torch, "cuda", card)
    assert machine.gpu_name() == "Card 0 (sm_86), Card 1 (sm_87)"


@needs_builtin
def test_info_on_a_model(adabm):
    status, out, err = adabm("info", "edsr_x4_w4a4")
    assert (status, err) == (0, "")
    sections = dict(section.split("\n", 1) for section in out.strip().split("\n\n"))
    assert list(sections) == ["Model", "Convolutions", "Settings", "Made"]
    assert "edsr: scale 4, blocks " in sections["Model"] and "image thresholds  17.8 and 39.84" in sections["Model"]
    assert "2  8-bit weights, 8-bit activations" in sections["Convolutions"]
    assert re.search(r"^  weight bits +4$", sections["Settings"], re.MULTILINE)
    assert sections["Made"] == "  how  not recorded in this file"
    report = json.loads(adabm("info", "edsr_x4_w4a4", "--json")[1])
    assert report["built_in"] and report["spec"]["scale"] == 4 and report["provenance"] == {}
    assert sum(report["convolutions"].values()) == 2 * report["spec"]["blocks"] + 3


def test_info_and_models_tell_of_an_exit(empty_folder, adabm, monkeypatch):
    calibration = [torch.randint(0, 256, (2, 3, 24, 24)).float()]
    model = convert_model(small_edsr(blocks=1), calibration, ConvertConfig(depths="none"), check=False)
    save(model, "without.safetensors")
    save(with_exit(model, an_exit(2)), "with.safetensors")
    for name, words in {
        "with": "those of 8x8 pixels that bend by no more than 60 of 255 levels have no blocks computed",
        "without": "none, all blocks are computed everywhere",
    }.items():
        status, out, _ = adabm("info", f"{name}.safetensors")
        assert status == 0 and f"  easy tiles        {words}\n" in out
        found = json.loads(adabm("info", f"{name}.safetensors", "--json")[1])["exit"]
        assert found == ({"unit": 90, "tile": 8, "threshold": 60} if name == "with" else None)
    monkeypatch.setattr(sys.modules["adabm_kernels.models"], "_ASSETS", empty_folder)
    Path("figures.json").write_text("{}")
    status, out, _ = adabm("models")
    table = {line.split()[0]: line.split() for line in out.split("\n\n")[0].splitlines()}
    assert status == 0 and (table["with"][4], table["without"][4]) == ("8x8", "none")
    assert "easy tiles: pixels a side" in out
    models = json.loads(adabm("models", "--json")[1])["models"]
    assert (models["with"]["exit"]["threshold"], models["without"]["exit"]) == (60, None)


def test_info_on_what_is_no_model(folder, adabm):
    torch.save({"weight": torch.zeros(1)}, "float.pt")
    for name, message in {
        "float.pt": "load: float.pt is a PyTorch checkpoint, not a converted model",
        "absent": "model must be a built-in model",
        "in.png": "load: in.png is not a safetensors file",
    }.items():
        status, out, err = adabm("info", name)
        assert (status, out) == (2, "") and err.startswith("adabm: error: ") and message in err and err.count("\n") == 1


def test_version(adabm):
    status, out, _ = adabm("--version")
    assert status == 0 and re.fullmatch(r"adabm \S.*\n", out)


@needs_builtin
def test_demo_command_as_a_user_runs_it(tmp_path):
    out = tmp_path / "sample_x4.png"
    done = run_process("upscale", _ASSETS / "sample.png", "-o", out, "--compare", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["input_size"] == [192, 192] and report["output_size"] == [768, 768]
    assert 2 <= report["mean_bits"] <= 6 and report["psnr_db"] > 25
    assert read(out).shape == (768, 768, 3)
    assert names(tmp_path) == ["sample_x4.png"]


@needs_builtin
def test_same_picture_from_the_reference_backend(folder, adabm):
    with PIL.Image.open(_ASSETS / "sample.png") as sample:
        sample.crop((64, 16, 96, 48)).save("crop.png")
    for backend in ("auto", "reference"):
        status, _, err = adabm("upscale", "crop.png", "-o", f"{backend}.png", "--backend", backend, "--bits", 4)
        assert (status, err) == (0, "")
    assert np.abs(read("auto.png").astype(int) - read("reference.png")).max() <= 1


@needs_builtin
def test_float_checkpoint_is_refused_with_the_way_to_calibrate(folder, adabm):
    torch.save({"weight": torch.zeros(1)}, "float.pt")
    status, _, err = adabm("upscale", "in.png", "--model", "float.pt")
    assert status == 2 and err.startswith("adabm: error: ") and err.count("\n") == 1
    assert names(folder) == ["float.pt", "in.png"]


def test_every_command_in_the_readme_is_valid():
    lines = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split("#")[0].split("|")[0].split()[1:] for line in lines if line.startswith("adabm ")]
    assert len(commands) >= 3
    for argv in commands:
        cli._parser().parse_args(argv)
