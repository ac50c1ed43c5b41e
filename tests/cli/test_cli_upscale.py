"""`adabm upscale` on folders, pipes and every kind of file; each bad input with its sentence and exit status."""

import errno
import gc
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from command_line import ENVIRONMENT, HELPERS, names, rows, run_process, writes_into
from fake_model import FakeModel

from adabm_kernels import machine
from adabm_kernels.images import EXTENSIONS, Layout, PictureWriter, open_picture
from adabm_kernels.nn.conv import IntegerConv2d
from adabm_kernels.upscale import upscale
from adabm_kernels.upscaling import batch
from adabm_kernels.upscaling.enlarge import Enlarger
from adabm_kernels.upscaling.patchwise import Patchwise
from adabm_kernels.upscaling.sizes import Size

MODELS = sys.modules["adabm_kernels.models"]
RGB = np.random.default_rng(6).integers(0, 256, (6, 8, 3), dtype=np.uint8)
LARGE = RGB.repeat(4, 0).repeat(4, 1)

needs_builtin = pytest.mark.skipif(not MODELS.builtin_models(), reason="the built-in models' files are not there")


def save(path, array=RGB, **options):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array).save(path, **options)


def read(path):
    with PIL.Image.open(path) as image:
        return np.array(image)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture
def photos(empty_folder):
    """photos/a.png, photos/sub/b.jpg, photos/sub/deep/c.tif, and what is no picture."""
    save("photos/a.png")
    save("photos/sub/b.jpg")
    save("photos/sub/deep/c.tif")
    Path("photos/notes.txt").write_text("words")
    save("photos/.hidden/d.png")
    return empty_folder


def test_a_folder_is_mirrored(photos, model, adabm):
    status, out, err = adabm("upscale", "photos")
    assert (status, err) == (0, "")
    assert files("photos_x4") == ["a_x4.png", "sub/b_x4.png", "sub/deep/c_x4.png"]
    assert np.array_equal(read("photos_x4/a_x4.png"), LARGE)
    assert rows(out)["images"] == "3 done, 0 failed, 0 skipped"


def test_names_and_formats(photos, model, adabm):
    assert adabm("upscale", "photos", "-o", "out/new", "--suffix", "", "--format", "keep", "--quiet") == (0, "", "")
    assert files("out/new") == ["a.png", "sub/b.jpg", "sub/deep/c.tif"]
    assert adabm("upscale", "photos/a.png", "photos/sub/b.jpg", "-o", "both", "--format", "webp", "--suffix=-{scale}")[0] == 0
    assert files("both") == ["a-4.webp", "b-4.webp"]
    Path("there").mkdir()
    assert adabm("upscale", "photos/a.png", "-o", "there")[0] == 0 and files("there") == ["a_x4.png"]


@pytest.mark.parametrize("out", ["new", "new/", "deep/new"])
def test_one_picture_into_a_new_folder(photos, model, adabm, out):
    assert adabm("upscale", "photos/a.png", "-o", out, "-q") == (0, "", "") and files(out) == ["a_x4.png"]
    assert np.array_equal(read(f"{out}/a_x4.png"), LARGE)
    assert adabm("upscale", "photos/a.png", "-o", f"{out}2", "--format", "webp", "-q") == (0, "", "")
    assert files(f"{out}2") == ["a_x4.webp"]


def test_existing_outputs(photos, model, adabm):
    Path("photos_x4").mkdir()
    Path("photos_x4/a_x4.png").write_bytes(b"old")
    status, out, _ = adabm("upscale", "photos", "--existing", "skip")
    assert status == 0 and rows(out)["images"] == "2 done, 0 failed, 1 skipped"
    assert Path("photos_x4/a_x4.png").read_bytes() == b"old"
    status, _, err = adabm("upscale", "photos", "--existing", "refuse")
    assert status == 2 and "OUT must not exist with --existing refuse, and 'photos_x4/a_x4.png' does" in err
    assert adabm("upscale", "photos")[0] == 0 and np.array_equal(read("photos_x4/a_x4.png"), LARGE)
    assert "skipped" in adabm("upscale", "photos/a.png", "-o", "photos_x4/a_x4.png", "--existing", "skip")[1]


def test_a_bad_file_stops_no_other(photos, model, adabm):
    Path("photos/bad.png").write_bytes((photos / "photos/a.png").read_bytes()[:60])
    Path("photos/b0.jpg").write_bytes(b"words")
    status, out, err = adabm("upscale", "photos")
    assert status == 1 and rows(out)["images"] == "3 done, 2 failed, 0 skipped"
    first, second, last = err.splitlines()
    assert first.startswith("adabm: error: cannot read 'photos/b0.jpg': it is no PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, HEIC, ")
    assert second.startswith("adabm: error: cannot read 'photos/bad.png': the file is truncated or damaged")
    assert last == "adabm: error: 2 of 5 pictures failed"
    assert files("photos_x4") == ["a_x4.png", "sub/b_x4.png", "sub/deep/c_x4.png"]


def test_a_folder_that_cannot_be_made_stops_no_other(photos, model, adabm):
    Path("photos_x4").mkdir()
    Path("photos_x4/sub").write_text("a file in the place of a folder")
    status, out, err = adabm("upscale", "photos")
    assert status == 1 and rows(out)["images"] == "1 done, 2 failed, 0 skipped"
    first, second, last = err.splitlines()
    assert first == "adabm: error: cannot write 'photos_x4/sub/b_x4.png': Not a directory"
    assert second == "adabm: error: cannot write 'photos_x4/sub/deep/c_x4.png': Not a directory"
    assert last == "adabm: error: 2 of 3 pictures failed"
    assert files("photos_x4") == ["a_x4.png", "sub"]


def test_compare_takes_as_many_pixels_as_the_command(empty_folder, model, adabm, monkeypatch):
    save("in.png")
    monkeypatch.setitem(open_picture.__kwdefaults__, "max_pixels", 47)  # as if the picture were larger than the usual limit
    status, out, err = adabm("upscale", "in.png", "--compare", "--max-pixels", 48)
    assert (status, err) == (0, "") and "speed-up" in rows(out)


def test_a_warning_is_said_once_where_a_picture_is_read_again(empty_folder, model, adabm):
    PIL.Image.new("CMYK", (8, 6)).save("in.tif")
    with pytest.warns(UserWarning, match="'in.tif' is in CMYK and becomes sRGB") as said:
        status, out, _ = adabm("upscale", "in.tif", "--compare", "--json")
    assert status == 0 and len(said) == 1 and len(json.loads(out)["warnings"]) == 1


def test_json_and_verbose(photos, model, adabm):
    Path("photos/bad.png").write_bytes(b"words")
    status, out, err = adabm("upscale", "photos", "--json", "--verbose")
    report = json.loads(out)
    assert status == 1 and [image["input"] for image in report["images"]] == [
        "photos/a.png",
        "photos/sub/b.jpg",
        "photos/sub/deep/c.tif",
    ]
    assert report["images"][0]["mean_bits"] == 3.75 and report["failed"][0]["input"] == "photos/bad.png" and report["skipped"] == 0
    assert "photos/a.png -> photos_x4/a_x4.png: 1 window, mean bits 3.75" in err


@needs_builtin
def test_what_was_flat_is_told(empty_folder, adabm):
    photo = np.array(PIL.Image.open(MODELS._ASSETS / "sample.png").convert("RGB"))[:60, :80]
    save("in.png", np.concatenate([np.full((240, 80, 3), 255, np.uint8), photo]))
    status, out, err = adabm("upscale", "in.png", "-o", "out.png", "--json", "--verbose", "--smooth", "network")
    flat = 80 * (240 - 19 - 16)  # as far as a pixel sees, and a tile
    assert status == 0 and json.loads(out)["flat_pixels"] == flat and f", {100 * flat / (80 * 300):.0f} % not computed," in err
    status, out, _ = adabm("upscale", "in.png", "-o", "out.png", "--smooth", "network")
    assert status == 0 and rows(out)["smooth"] == "68 % of the pixels, of one colour and not computed"
    status, out, _ = adabm("upscale", "in.png", "-o", "whole.png", "--tile", "0", "--bits", 4, "--smooth", "network")
    assert status == 0 and "smooth" not in rows(out)
    assert adabm("upscale", "in.png", "-o", "again.png", "--bits", 4, "--smooth", "network", "-q")[0] == 0
    assert np.array_equal(read("again.png"), read("whole.png"))


def clash(folder):
    save("d/a.png")
    save("d/a.jpg")


BAD = {
    "clash": (
        clash,
        ["d"],
        "OUT must be another file for every picture, got 'd_x4/a_x4.png' for 'd/a.jpg' and 'd/a.png' (--format",
    ),
    "output is the input": (
        lambda f: save("d/a.png"),
        ["d", "-o", "d", "--suffix", ""],
        "OUT must not be the input file itself, got 'd/a.png'",
    ),
    "folder that is a file": (
        None,
        ["in.png", "-o", "in.png/"],
        "OUT must be a folder where it ends with '/', and 'in.png' is a file",
    ),
    "nothing but outputs": (
        lambda f: save("d/out/a.png"),
        ["d", "-o", "d/out"],
        "IN must hold pictures that can be read, and the folder 'd' has none",
    ),
    "pipe and more": (
        lambda f: os.mkfifo("d"),
        ["d", "in.png"],
        "IN must be one pipe alone, as pipes name no output, got 'd' of 2",
    ),
    "long name": (
        lambda f: save(f"{'n' * 250}.png"),
        [f"{'n' * 250}.png"],
        f"cannot write '{'n' * 250}_x4.png': File name too long",
    ),
    "output is a file": (clash, ["d", "-o", "in.png"], "OUT must be a folder for more than one picture, and 'in.png' is a file"),
    "output is named as a picture": (
        clash,
        ["d", "-o", "out.PNG"],
        "OUT must be a folder for more than one picture, got 'out.PNG', which is named as a picture",
    ),
    "clash of kept formats": (
        lambda f: (save("d/a.png"), Path("d/a.gif").write_bytes(b"")),
        ["d", "--format", "keep"],
        "got 'd_x4/a_x4.png' for 'd/a.gif' and 'd/a.png'\n",
    ),
    "empty input": (None, [""], "argument IN: must name a file or a folder, got ''"),
    "empty output": (None, ["in.png", "-o", ""], "argument -o/--output: must name a file or a folder, got ''"),
    "clash of formats that are not written": (
        lambda f: (save("d/a.gif"), save("d/a.ppm")),
        ["d"],
        "got 'd_x4/a_x4.png' for 'd/a.gif' and 'd/a.ppm'\n",
    ),
    "the same twice": (None, ["in.png", "in.png"], "got 'in_x4.png' for 'in.png' and 'in.png'\n"),
    "output without suffix is a file": (
        lambda f: Path("words").write_text("words"),
        ["in.png", "-o", "words"],
        "cannot write 'words': its suffix must be one of",
    ),
    "replaces an input": (
        lambda f: save("in_x4.png"),
        ["in.png", "in_x4.png"],
        "must not be another input, got 'in_x4.png' for 'in.png'",
    ),
    "empty folder": (lambda f: Path("d").mkdir(), ["d"], "IN must hold pictures that can be read, and the folder 'd' has none"),
    "two to stdout": (clash, ["d", "-o", "-"], "OUT must be a folder for more than one picture, got '-'"),
    "stdin and more": (None, ["-", "in.png"], "IN must be '-' alone for standard input, got 2 inputs"),
    "two formats": (
        None,
        ["in.png", "-o", "a.jpg", "--format", "png"],
        "--format must be left out where OUT has a suffix, got 'png'",
    ),
    "suffix": (None, ["in.png", "--suffix", "/../../x"], "--suffix must not hold '/', got '/../../x'"),
    "compare many": (clash, ["d", "--compare"], "--compare must be left out for more than one picture"),
    "json and picture": (
        None,
        ["in.png", "-o", "-", "--json"],
        "--json must be left out where the picture goes to standard output",
    ),
    "tile": (None, ["in.png", "--window", "7"], "--window must be 0 for the whole picture or at least 16, got 7"),
    "paper": (None, ["in.png", "--protocol", "paper", "--halo", "3"], "--halo must be left out with protocol 'paper'"),
    "memory": (None, ["in.png", "--max-memory", "1M"], "--max-memory must be at least"),
    "memory word": (None, ["in.png", "--max-memory", "much"], "must be a size such as 1.5G or 800M, got 'much'"),
    "quality": (None, ["in.png", "--quality", "101"], "--quality: must be an integer from 1 to 100, got '101'"),
    "bomb": (None, ["in.png", "--max-pixels", "47"], "it has 8x6 = 48 pixels, more than the limit of 47 (--max-pixels)"),
    "device": (None, ["in.png", "--device", "tpu"], "device must be one of torch's"),
    "quiet and verbose": (None, ["in.png", "-q", "-v"], "not allowed with argument"),
    "too large for WebP": (
        lambda f: save("w.png", np.zeros((1, 4100, 3), np.uint8)),
        ["w.png", "-o", "w.webp"],
        "WebP holds at most 16383",
    ),
}


def test_what_the_process_holds_already_counts_towards_max_memory(empty_folder, model, adabm, monkeypatch):
    save("in.png")
    monkeypatch.setattr(machine, "resident_bytes", lambda: 3 << 30)
    status, out, err = adabm("upscale", "in.png")
    assert (status, out) == (2, "") and "--max-memory must be at least 3.1 GB" in err and "got 2.0 GB" in err


@pytest.mark.parametrize("case", BAD)
def test_bad_usage_of_many(empty_folder, model, adabm, case):
    prepare, argv, message = BAD[case]
    save("in.png")
    if prepare:
        prepare(empty_folder)
    before = files(".")
    status, out, err = adabm("upscale", *argv)
    assert message in err and (out, err.count("\n")) == ("", 1)
    assert status == 2
    assert files(".") == before and not model.seen


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3)], ids=str)
def test_tiny_pictures(empty_folder, model, adabm, size):
    save("in.png", np.full((*size, 3), 90, np.uint8))
    assert adabm("upscale", "in.png", "-q") == (0, "", "") and read("in_x4.png").shape == (size[0] * 4, size[1] * 4, 3)


def test_float_pictures_are_refused(empty_folder, model, adabm):
    PIL.Image.fromarray(RGB[..., 0].astype(np.float32)).save("float.tif")
    status, _, err = adabm("upscale", "float.tif")
    assert status == 2 and "cannot read 'float.tif': its pixels are of type float" in err
    assert names(empty_folder) == ["float.tif"]


@pytest.mark.parametrize("suffix", EXTENSIONS)
def test_every_format_in_and_out(empty_folder, model, adabm, suffix):
    source = np.kron(RGB[..., :1].repeat(3, 2), np.ones((8, 8, 1), np.uint8))  # grey: WebP halves the chroma
    layout = Layout(64, 48, 3)
    with PictureWriter(f"in{suffix}", EXTENSIONS[suffix], layout, quality=100) as out:
        out.write(source)
    assert adabm("upscale", f"in{suffix}", "-o", f"out{suffix}", "--quality", 100, "--smooth", "network", "-q") == (0, "", "")
    with PIL.Image.open(f"out{suffix}") as image:
        assert image.format == EXTENSIONS[suffix].upper()
        got = np.array(image.convert("RGB"))
    lossy = EXTENSIONS[suffix] in ("JPEG", "WebP")
    assert np.abs(got.astype(int) - source.repeat(4, 0).repeat(4, 1)).mean() <= (4 if lossy else 0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_stay_sixteen(empty_folder, model, adabm, suffix, channels):
    source = np.random.default_rng(1).integers(1, 65536, (6, 8, channels), dtype=np.uint16)
    with PictureWriter(f"in{suffix}", EXTENSIONS[suffix], Layout(8, 6, channels, 16)) as out:
        out.write(source)
    assert adabm("upscale", f"in{suffix}", "-o", f"out{suffix}", "-q") == (0, "", "")
    got = open_picture(f"out{suffix}")
    assert got.layout.depth == 16 and np.array_equal(got.read(24), source.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_profile_and_resolution_are_carried_over(empty_folder, model, adabm, suffix):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(RGB).save("in.jpg", icc_profile=profile, dpi=(300, 150), exif=exif)
    assert adabm("upscale", "in.jpg", "-o", f"out{suffix}", "-q") == (0, "", "")
    with PIL.Image.open(f"out{suffix}") as image:
        assert image.size == (24, 32)  # turned upright
        assert image.getexif().get(0x0112, 1) == 1
        assert image.info["icc_profile"] == profile
    if suffix != ".webp":  # from which none is read
        assert open_picture(f"out{suffix}").layout.dpi == pytest.approx((150, 300), abs=0.5)


@needs_builtin
@pytest.mark.parametrize("cutting", [{}, {"tile": 16}], ids=["whole", "windows"])
def test_self_ensemble_is_that_of_python_and_in_integers(empty_folder, adabm, monkeypatch, cutting):
    photo = np.array(PIL.Image.open(MODELS._ASSETS / "sample.png").convert("RGB"))[60:84, 50:110]
    save("in.png", photo)
    seen = []

    def watch(run):
        return lambda conv, x_q, *rest, **outputs: seen.append(x_q.dtype) or run(conv, x_q, *rest, **outputs)

    for name in ("into", "pixels_into"):
        monkeypatch.setattr(IntegerConv2d, name, watch(getattr(IntegerConv2d, name)))
    options = [word for name, value in cutting.items() for word in (f"--{name}", value)]
    assert adabm("upscale", "in.png", "-o", "one.png", "-q", *options) == (0, "", "")
    once = len(seen)
    assert adabm("upscale", "in.png", "-o", "eight.png", "-q", "--tta", *options) == (0, "", "")
    assert once and len(seen) == 9 * once and set(seen) == {torch.uint8}
    want = upscale(photo, "edsr_x4_w4a4", tta=True, **cutting)
    assert np.array_equal(read("eight.png"), want) and not np.array_equal(read("one.png"), want)


def test_quality_is_that_of_the_option(empty_folder, model, adabm):
    save("in.png", np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    for suffix in ("jpg", "webp"):
        for name, options in (("low", ["--quality", 20]), ("usual", []), ("same", ["--quality", 95])):
            assert adabm("upscale", "in.png", "-o", f"{name}.{suffix}", "-q", *options) == (0, "", "")
        low, usual, same = (Path(f"{name}.{suffix}").read_bytes() for name in ("low", "usual", "same"))
        assert len(low) < 0.6 * len(usual) and usual == same


def test_reading_computing_and_writing_overlap(photos, monkeypatch):
    """The first picture is computed once the second is read, and is written only when the second is being computed."""
    read, computing, order = threading.Event(), threading.Event(), []
    opened, finish = batch._open, PictureWriter.__exit__

    def open_(task, *rest):
        found = opened(task, *rest)
        order.append(task.name)
        if len(order) == 2:
            read.set()
        return found

    def exit_(writer, *error):
        assert computing.wait(60)
        return finish(writer, *error)

    class Waiting(FakeModel):
        def forward(self, x, offset=None):
            assert read.wait(60)
            if self.seen:
                computing.set()
            return super().forward(x)

    monkeypatch.setattr(batch, "_open", open_)
    monkeypatch.setattr(PictureWriter, "__exit__", exit_)
    sources = [Path("photos/a.png"), Path("photos/sub/b.jpg")]
    tasks = [batch.Task(source, Path(f"{source.stem}.png"), "PNG", source.name) for source in sources]
    outcomes = list(batch.upscale_files(tasks, Enlarger(Patchwise(Waiting())), max_pixels=1000))
    assert [outcome.error for outcome in outcomes] == [None, None] and [outcome.task for outcome in outcomes] == tasks


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_pictures_that_cannot_be_written_leave_no_threads_and_no_open_files(photos, monkeypatch):
    """Not even while their errors are kept, and not until garbage is collected."""

    def write(writer, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PictureWriter, "write", write)
    tasks = [batch.Task(Path("photos/a.png"), Path("a.png"), "PNG", "a.png")] * 8
    network, threads = Enlarger(Patchwise(FakeModel()), Size(scale=2)), threading.active_count()
    gc.disable()
    try:
        files_before = len(os.listdir("/proc/self/fd"))
        outcomes = list(batch.upscale_files(tasks, network, max_pixels=1000))
        files_after = len(os.listdir("/proc/self/fd"))
    finally:
        gc.enable()
    assert all("No space left" in str(outcome.error) for outcome in outcomes) and not Path("a.png").exists()
    assert threading.active_count() == threads and files_after <= files_before + 1


def test_standard_input_and_output(empty_folder):
    save("in.png")
    code = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from fake_model import FakeModel
from adabm_kernels import cli
import adabm_kernels.models
sys.modules["adabm_kernels.models"].load_model = lambda name: FakeModel()
sys.exit(cli.main())
"""
    command = [sys.executable, "-c", code, HELPERS, "upscale", "-", "--format", "tif"]
    done = subprocess.run(command, input=Path("in.png").read_bytes(), capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0 and b"standard output" in done.stderr
    assert np.array_equal(np.array(PIL.Image.open(io.BytesIO(done.stdout))), LARGE)
    done = subprocess.run(command, input=Path("in.png").read_bytes()[:70], capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (2, b"") and b"cannot read 'standard input'" in done.stderr
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, input=Path("in.png").read_bytes(), stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert done.returncode == 1 and b"No space left on device" in done.stderr


def test_a_full_disk_leaves_nothing(empty_folder, adabm, monkeypatch):
    """Above the size that a file may have here, from the encoder of a picture in one piece and from that of bands."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 60, 3), dtype=np.uint8)

    class Noise(FakeModel):
        def forward(self, x, offset=None):
            return super().forward(x) + 40 * torch.sin(torch.arange(x.shape[3] * 4.0))

    monkeypatch.setattr(MODELS, "load_model", lambda name: Noise())
    save("in.png", noise)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        for options in ([], ["--tile", 64], ["--format", "tif"], ["--format", "bmp"]):
            status, out, err = adabm("upscale", "in.png", *options)
            assert (status, out) == (1, "") and err.startswith("adabm: error: cannot write 'in_x4.") and "File too large" in err
            assert names(empty_folder) == ["in.png"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_transparent_pictures_and_formats_without(empty_folder, model, adabm):
    save("rgba.png", np.dstack([RGB, np.full((6, 8), 255, np.uint8)]))
    assert adabm("upscale", "rgba.png", "-o", "out.jpg", "-q") == (0, "", "")
    save("rgba.png", np.dstack([RGB, np.arange(48, dtype=np.uint8).reshape(6, 8)]))
    for suffix in (".jpg", ".bmp"):
        status, _, err = adabm("upscale", "rgba.png", "-o", f"o{suffix}")
        assert status == 2 and "has no transparency and the picture has; use .png" in err
    assert names(empty_folder) == ["out.jpg", "rgba.png"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_writing_bands(empty_folder, stop):
    save("in.png", np.zeros((300, 20, 3), np.uint8))
    code = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
from fake_model import FakeModel
from adabm_kernels import cli
from adabm_kernels.upscaling import cutting
import adabm_kernels.models
cutting.JOINED_PIXELS = 0
class Slow(FakeModel):
    def forward(self, x, offset=None):
        if len(self.seen) == 3:
            print("computing", flush=True)
            time.sleep(60)
        return super().forward(x)
sys.modules["adabm_kernels.models"].load_model = lambda name: Slow()
sys.exit(cli.main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, HELPERS, "upscale", "in.png", "--tile", "32", "--smooth", "network"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout.readline() == "computing\n"
    assert writes_into(process, empty_folder)
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "adabm: interrupted\n")
    assert names(empty_folder) == ["in.png"]


def test_an_unwritable_folder_of_many(photos, model, adabm, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("adabm_kernels.files.open", refuse, raising=False)
    status, out, err = adabm("upscale", "photos")
    assert status == 1 and "cannot write 'photos_x4/a_x4.png': Permission denied" in err and files("photos_x4") == []


def test_models_with_their_figures(adabm):
    report = json.loads(adabm("models", "--json")[1])
    status, out, _ = adabm("models")
    assert status == 0
    for name, model in report["models"].items():
        assert name in out and model["scale"] == 4 and model["set5"]["float_psnr_y"] >= model["set5"]["psnr_y"] > 28
        assert f"{model['set5']['psnr_y']:.2f}" in out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion(shell):
    done = run_process("completion", shell)
    assert done.returncode == 0 and "--max-memory" in done.stdout and "upscale" in done.stdout


def test_bash_completes_options(tmp_path):
    (tmp_path / "adabm").write_text(run_process("completion", "bash").stdout)
    script = "source ./adabm; COMP_WORDS=(adabm upscale --max); COMP_CWORD=2; _shtab_adabm; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert set(done.stdout.split()) == {"--max-memory", "--max-pixels"}


def test_a_closed_pipe_is_quiet(empty_folder):
    save("in.png")
    reader, writer = os.pipe()
    os.close(reader)
    done = run_process("upscale", "in.png", "-o", "-", "-q", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
