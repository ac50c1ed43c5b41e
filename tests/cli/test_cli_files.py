"""Names, folders and pipes as people bring them to `adabm upscale`: each picture is read, kept apart from outputs, and told of."""

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from command_line import ENVIRONMENT, HELPERS, names, rows

from adabm_kernels.images import EXTENSIONS, open_picture

MODELS = sys.modules["adabm_kernels.models"]
RGB = np.random.default_rng(6).integers(0, 256, (6, 8, 3), dtype=np.uint8)
LARGE = RGB.repeat(4, 0).repeat(4, 1)
RAW = os.fsdecode(b"caf\xe9")  # Latin-1, which is no UTF-8

needs_builtin = pytest.mark.skipif(not MODELS.builtin_models(), reason="the built-in models' files are not there")


def save(*paths, array=RGB):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(array).save(path)


def read(path):
    with PIL.Image.open(path) as image:
        return np.array(image)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


# ---- names


def test_a_name_that_becomes_too_long_stops_no_other(empty_folder, model, adabm):
    """Neither the first time, when its folder is not there yet, nor the next; and what else cannot be written stops none either."""
    long = "n" * 250
    save("photos/a.png", f"photos/{long}.png", "photos/loop.png", "photos/folder.png")
    Path("photos_x4/folder_x4.png").mkdir(parents=True)
    Path("photos_x4/loop_x4.png").symlink_to("loop_x4.png")
    for existing in ("replace", "replace", "skip"):
        status, out, err = adabm("upscale", "photos", "--existing", existing)
        done = "0 done, 3 failed, 1 skipped" if existing == "skip" else "1 done, 3 failed, 0 skipped"
        assert status == 1 and rows(out)["images"] == done
        assert err.splitlines() == [
            "adabm: error: cannot write 'photos_x4/folder_x4.png': it is a folder",
            "adabm: error: cannot write 'photos_x4/loop_x4.png': Too many levels of symbolic links",
            f"adabm: error: cannot write 'photos_x4/{long}_x4.png': File name too long",
            f"adabm: error: 3 of {3 if existing == 'skip' else 4} pictures failed",
        ]
        assert np.array_equal(read("photos_x4/a_x4.png"), LARGE)
    save(f"new/{long}.png", "new/a.png")
    status, out, err = adabm("upscale", "new", "--json")
    assert status == 1 and len(json.loads(out)["images"]) == 1 and "File name too long" in json.loads(out)["failed"][0]["error"]
    assert model.seen and files("new_x4") == ["a_x4.png"]


@pytest.mark.parametrize("suffix", EXTENSIONS)
def test_names_in_any_bytes(empty_folder, model, adabm, suffix):
    save(f"{RAW}/{RAW}{suffix}")
    want = np.asarray(read(f"{RAW}/{RAW}{suffix}"))
    status, out, err = adabm("upscale", RAW, "--format", "keep", "--verbose")
    assert status == 0 and rows(out)["images"] == "1 done, 0 failed, 0 skipped" and "caf\\udce9" in err
    assert os.listdir(f"{RAW}_x4".encode(errors="surrogateescape")) == [b"caf\xe9_x4" + suffix.encode()]
    if suffix in (".png", ".tif", ".tiff", ".bmp"):
        assert np.array_equal(read(f"{RAW}_x4/{RAW}_x4{suffix}"), want.repeat(4, 0).repeat(4, 1))


def test_raw_names_of_a_picture_on_its_own(empty_folder, model, adabm):
    save(f"{RAW}.png")
    Path(f"{RAW}.jpg").write_bytes(Path(f"{RAW}.png").read_bytes()[:60])
    status, out, _ = adabm("upscale", f"{RAW}.png", "--json")
    assert status == 0 and json.loads(out)["output"] == f"{RAW}_x4.png" and np.array_equal(read(f"{RAW}_x4.png"), LARGE)
    status, out, err = adabm("upscale", f"{RAW}.jpg")
    assert (status, out) == (2, "") and "cannot read 'caf\\udce9.jpg': the file is truncated or damaged" in err


@needs_builtin
def test_every_command_prints_and_reads_raw_names(empty_folder, adabm):
    model = f"{RAW}.safetensors"
    Path(model).write_bytes(MODELS.builtin_models()["edsr_x4_w4a4"].read_bytes())
    save(f"{RAW}/{RAW}.png", array=RGB.repeat(8, 0).repeat(8, 1))
    for argv in (
        ["info", model],
        ["eval", "--data", RAW, "--model", model],
        ["report", f"{RAW}/{RAW}.png", "--model", model, "-o", f"{RAW}.html"],
    ):
        status, out, err = adabm(*argv)
        assert (status, err) == (0, "") and "caf\\udce9" in out
    assert "caf\\udce9.png, upscaled 4 times" in Path(f"{RAW}.html").read_text(encoding="utf-8")
    assert json.loads(adabm("info", model, "--json")[1])["path"] == model
    assert adabm("bench", "--model", model, "--size", 8, "--json", f"{RAW}.json")[0] == 0
    assert json.loads(Path(f"{RAW}.json").read_bytes())["model"] == model


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_beyond_the_encoding_of_the_terminal(empty_folder, encoding):
    """The picture is written and told of; what the encoding lacks is escaped."""
    save("naïve.png", "日本.png")
    program = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from fake_model import FakeModel
from adabm_kernels import cli
sys.modules["adabm_kernels.models"].load_model = lambda name: FakeModel()
for argv in (["naïve.png"], ["日本.png", "-v"], ["naïve.png", "--json"], ["日本.jpg"]):
    print(cli.main(["upscale", *argv]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, HELPERS],
        capture_output=True, env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    shown = {
        name: name.encode(encoding, "backslashreplace").decode(encoding) for name in ("naïve_x4.png", "日本_x4.png", "日本.jpg")
    }
    assert [line for line in out.splitlines() if line.isdecimal()] == ["0", "0", "0", "2"]
    assert f"written    {shown['naïve_x4.png']}" in out and f"written    {shown['日本_x4.png']}" in out
    assert '"output": "na\\u00efve_x4.png"' in out
    assert f"-> {shown['日本_x4.png']}: 1 window," in err and f"cannot read '{shown['日本.jpg']}'" in err
    assert names(empty_folder) == ["naïve.png", "naïve_x4.png", "日本.png", "日本_x4.png"]


def test_patterns_where_the_shell_leaves_them(empty_folder, model, adabm, monkeypatch):
    save("a.png", "b.png", "c.jpg", "[c].png")
    status, _, err = adabm("upscale", "*.png")
    assert status == 2 and "cannot read '*.png': No such file or directory" in err
    monkeypatch.setattr("adabm_kernels.commands.outputs._EXPANDS_PATTERNS", True)
    assert adabm("upscale", "?.png", "[c].png", "c.*", "-o", "out", "-q") == (0, "", "")
    assert files("out") == ["[c]_x4.png", "a_x4.png", "b_x4.png", "c_x4.png"]
    status, _, err = adabm("upscale", "*.tif")
    assert status == 2 and "cannot read '*.tif': No such file or directory" in err


# ---- outputs of an earlier run


def test_outputs_beside_their_inputs_are_no_inputs(empty_folder, model, adabm):
    save("a.png", "b.jpg", "c.d.png")
    assert adabm("upscale", *names("."), "-q")[0] == 0
    once = names(".")
    save("new.png")
    for argv, done, passed_over in (
        ([], "4 done, 0 failed, 0 skipped", 3),
        (["--format", "webp"], "4 done, 0 failed, 0 skipped", 4),
        (["--existing", "skip", "--format", "webp"], "0 done, 0 failed, 4 skipped", 8),
        (["-o", "elsewhere"], "4 done, 0 failed, 0 skipped", 8),
    ):
        inputs = [name for name in names(".") if name != "elsewhere"]
        status, out, err = adabm("upscale", *inputs, *argv)
        assert (status, err, rows(out)["images"]) == (0, "", done)
        assert rows(out)["passed over"] == f"{passed_over} that are outputs of other inputs"
    assert once == ["a.png", "a_x4.png", "b.jpg", "b_x4.png", "c.d.png", "c.d_x4.png"]
    assert files("elsewhere") == ["a_x4.png", "b_x4.png", "c.d_x4.png", "new_x4.png"]
    status, out, err = adabm("upscale", "a.png", "a_x4.png", "--json", "-v")
    report = json.loads(out)
    assert len(report["images"]) == 1
    assert report["passed_over"] == [{"input": "a_x4.png", "reason": "it is an output of 'a.png'"}]
    assert "a_x4.png is passed over: it is an output of 'a.png'" in err


def test_outputs_of_other_sizes_are_no_inputs(empty_folder, model, adabm):
    save("a.png")
    for size in (["--scale", 1.5], ["--width", 20], ["--height", 20], ["--fit", "30x30"], []):
        assert adabm("upscale", "a.png", "-q", *size)[0] == 0
    save("a_old.png", "a_x.png", array=LARGE)
    status, out, err = adabm("upscale", *names("."), "--scale", 2)
    assert (status, err, rows(out)["images"]) == (0, "", "3 done, 0 failed, 0 skipped")
    assert rows(out)["passed over"] == "5 that are outputs of other inputs"
    assert {"a_x2.png", "a_old_x2.png", "a_x_x2.png"} <= set(names("."))
    status, out, _ = adabm("upscale", "a.png", "a_x4.png", "--suffix", "_large")
    assert status == 0 and rows(out)["images"] == "2 done, 0 failed, 0 skipped"


def test_pictures_that_only_bear_such_a_name_are_never_replaced(empty_folder, model, adabm):
    """The second photograph of a camera is as large as the first."""
    save("IMG.png", "IMG_2.png")
    status, out, err = adabm("upscale", "IMG.png", "IMG_2.png", "--suffix", "_2")
    assert (status, out) == (2, "") and "OUT must not be another input, got 'IMG_2.png' for 'IMG.png'" in err
    save("IMG.jpg", array=RGB[:3, :4])  # a preview, and no suffix to tell an output by
    status, out, err = adabm("upscale", "IMG.jpg", "IMG.png", "--suffix", "")
    assert (status, out) == (2, "") and "OUT must not be" in err
    assert adabm("upscale", "IMG.png", "IMG_2.png", "-o", "out", "--suffix", "_2", "-q")[0] == 0
    assert files("out") == ["IMG_2.png", "IMG_2_2.png"]


def test_a_damaged_picture_and_its_namesake(empty_folder, model, adabm):
    """What cannot be read is never taken for an output that may be replaced; its own output stays."""
    save("a.png", "a_x4.png")
    Path("a_x4.png").write_bytes(b"words")
    status, _, err = adabm("upscale", "a.png", "a_x4.png")
    assert status == 2 and "OUT must not be another input, got 'a_x4.png'" in err and Path("a_x4.png").read_bytes() == b"words"
    save("b_x4.png")
    Path("b.png").write_bytes(b"words")
    status, out, err = adabm("upscale", "b.png", "b_x4.png")
    assert status == 1 and rows(out)["images"] == "0 done, 1 failed, 0 skipped" and rows(out)["passed over"].startswith("1 ")
    assert np.array_equal(read("b_x4.png"), RGB)


@pytest.mark.parametrize("output", ["photos/large", "photos"])
def test_outputs_in_the_folder_of_inputs(empty_folder, model, adabm, output):
    save("photos/a.png", "photos/sub/b.png")
    for again in (False, True):
        status, out, err = adabm("upscale", "photos", "-o", output)
        assert (status, err) == (0, "") and rows(out)["images"] == "2 done, 0 failed, 0 skipped"
        assert rows(out).get("passed over", "0 ").startswith("2 " if again and output == "photos" else "0 ")
    outputs = ["large/a_x4.png", "large/sub/b_x4.png"] if output != "photos" else ["a_x4.png", "sub/b_x4.png"]
    assert files("photos") == sorted(["a.png", "sub/b.png", *outputs])


def test_a_folder_and_its_outputs_both_named(empty_folder, model, adabm):
    save("photos/a.png", "photos/b.png", "photos_x4/own.png")
    assert adabm("upscale", "photos", "-q") == (0, "", "")
    status, out, _ = adabm("upscale", "photos", "photos_x4")
    assert status == 0 and rows(out)["images"] == "3 done, 0 failed, 0 skipped" and rows(out)["passed over"].startswith("2 ")
    assert files(".") == [
        "photos/a.png", "photos/b.png", "photos_x4/a_x4.png", "photos_x4/b_x4.png", "photos_x4/own.png", "photos_x4_x4/own_x4.png",
    ]  # fmt: skip


def test_a_slash_makes_a_folder(empty_folder, model, adabm):
    save("a.png", "b.png")
    assert adabm("upscale", "a.png", "-o", "My Photos v1.0/", "--format", "webp", "-q") == (0, "", "")
    assert adabm("upscale", "a.png", "b.png", "-o", "album.png/", "-q") == (0, "", "")
    assert adabm("upscale", "a.png", "-o", "My Photos v1.0", "-q") == (0, "", "")  # there is one now
    assert files("My Photos v1.0") == ["a_x4.png", "a_x4.webp"] and files("album.png") == ["a_x4.png", "b_x4.png"]
    status, _, err = adabm("upscale", "a.png", "-o", "v1.1")
    assert status == 2 and "cannot write 'v1.1': its suffix must be one of" in err


# ---- pipes


def piped(run, data, *argv):
    """Run a command that reads a named pipe."""
    if not Path("pipe").exists():
        os.mkfifo("pipe")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Path("pipe").write_bytes, data)
        return run(*argv)


def test_pictures_from_named_pipes(empty_folder, model, adabm):
    save("a.png")
    save("long.tif", array=np.zeros((200, 300, 3), np.uint8))  # more than a pipe holds
    data = Path("a.png").read_bytes()
    status, out, err = piped(adabm, data, "upscale", "pipe", "-o", "out.png")
    assert (status, err) == (0, "") and rows(out)["written"] == "out.png" and np.array_equal(read("out.png"), LARGE)
    status, out, _ = piped(adabm, data, "upscale", "pipe", "-o", "out.png", "--compare", "--json")
    assert status == 0 and json.loads(out)["input"] == "pipe" and "speed_up" in json.loads(out)
    assert piped(adabm, Path("long.tif").read_bytes(), "upscale", "pipe", "-o", "long.png", "-q") == (0, "", "")
    assert read("long.png").shape == (800, 1200, 3)
    status, _, err = piped(adabm, data, "upscale", "pipe", "-o", "new")
    assert status == 2 and "OUT must be a file or '-' for pipe, got the folder 'new'" in err
    bad = {b"": "the file is empty (0 bytes)", data[:60]: "the file is truncated", b"x" * 99: "it is no PNG"}
    for given, message in bad.items():
        status, out, err = piped(adabm, given, "upscale", "pipe", "-o", "no.png")
        assert (status, out) == (2, "") and f"cannot read 'pipe': {message}" in err and not Path("no.png").exists()


@pytest.mark.parametrize(
    ("name", "options", "format"), [("out.webp", [], "WEBP"), ("out", ["--format", "tif"], "TIFF"), ("out", [], "PNG")]
)
def test_pictures_into_named_pipes(empty_folder, model, adabm, name, options, format):
    save("a.png", "b.png")
    os.mkfifo(name)
    with ThreadPoolExecutor(1) as pool:
        data = pool.submit(Path(name).read_bytes)
        status, out, err = adabm("upscale", "a.png", "-o", name, *options)
    assert (status, err) == (0, "") and rows(out)["written"] == name and not Path(name).is_file()
    with PIL.Image.open(io.BytesIO(data.result())) as image:
        assert (image.format, image.size) == (format, (32, 24))
    status, _, err = adabm("upscale", "a.png", "b.png", "-o", name)
    assert status == 2 and f"OUT must be a folder for more than one picture, got '{name}'" in err


def test_an_endless_device_is_no_picture(empty_folder, model, adabm):
    status, _, err = adabm("upscale", "/dev/zero", "-o", "no.png")
    assert status == 2 and "cannot read '/dev/zero': it is no PNG" in err and names(empty_folder) == []


@needs_builtin
def test_a_report_on_a_pipe(empty_folder, adabm):
    save("a.png", array=RGB.repeat(4, 0).repeat(4, 1))
    status, _, err = piped(adabm, Path("a.png").read_bytes(), "report", "pipe")
    page = Path("report.html").read_text(encoding="utf-8")
    assert (status, err) == (0, "") and "<title>pipe, upscaled 4 times" in page and "PSNR to the float model" in page


def test_python_reads_pipes(empty_folder):
    save("a.png")
    reader = piped(open_picture, Path("a.png").read_bytes(), "pipe")
    assert np.array_equal(reader.read(6), RGB)


PROCESS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from fake_model import FakeModel
from adabm_kernels import cli
sys.modules["adabm_kernels.models"].load_model = lambda name: FakeModel()
sys.exit(cli.main())
"""


def test_process_substitution_and_other_names_of_standard_input(empty_folder):
    """They go to standard output, as '-' does."""
    save("a.png")
    script = """
adabm() { "$PYTHON" -c "$PROGRAM" "$TESTS" upscale "$@"; }
adabm <(cat a.png) > substituted.png &&
adabm a.png -o >(cat > target.png) --json > report.json && wait $! &&
cat a.png | adabm /dev/stdin -o /dev/stdout > both.png &&
adabm /dev/fd/3 3< a.png > third.png
"""
    variables = {"PYTHON": sys.executable, "PROGRAM": PROCESS, "TESTS": HELPERS}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=ENVIRONMENT | variables)
    assert (done.returncode, done.stdout, done.stderr.count("standard output")) == (0, "", 3), done.stderr
    assert names(empty_folder) == ["a.png", "both.png", "report.json", "substituted.png", "target.png", "third.png"]
    for name in ("both.png", "substituted.png", "third.png", "target.png"):
        assert np.array_equal(read(name), LARGE)
    assert json.loads(Path("report.json").read_text())["output"].startswith("/dev/fd/")


def test_closed_standard_streams(empty_folder, model, adabm, monkeypatch):
    save("a.png")
    monkeypatch.setattr(sys, "stdin", None)
    status, _, err = adabm("upscale", "-", "-o", "out.png")
    assert (status, err) == (2, "adabm: error: cannot read standard input: it is closed\n")
    monkeypatch.setattr(sys, "stdout", None)
    status, _, err = adabm("upscale", "a.png", "-o", "-")
    assert (status, err) == (1, "adabm: error: cannot write standard output: it is closed\n")
    monkeypatch.setattr(sys, "stderr", None)
    assert adabm("upscale", "a.png", "-o", "out.png") == (0, "", "") and names(empty_folder) == ["a.png", "out.png"]


def test_a_terminal_is_not_filled(empty_folder, model, adabm, monkeypatch):
    save("a.png")
    os.mkfifo("pipe")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    status, out, err = adabm("upscale", "pipe")
    assert (status, out) == (2, "") and "OUT must be given for pipe (-o FILE), as standard output is a terminal" in err
    assert adabm("upscale", "a.png", "-q") == (0, "", "")
