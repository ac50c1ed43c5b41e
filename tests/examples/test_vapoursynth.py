"""The filter for VapourSynth: in VapourSynth itself where it is installed, and everywhere in a stand-in of what it documents."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest
import vapoursynth_host
from needs import needs
from pages import EXAMPLES, beside
from small import one_thread  # noqa: F401

import adabm_kernels
from adabm_kernels.commands.streams import MATRICES, Stream
from adabm_kernels.commands.yuv import from_rgb
from adabm_kernels.models import _ASSETS

pytestmark = beside
FILE = EXAMPLES / "vapoursynth_adabm.py"
with PIL.Image.open(_ASSETS / "sample.png") as sample:
    FRAMES = np.stack([np.asarray(sample.convert("RGB"))[y : y + 24, 64:96] for y in (40, 80, 120)])


@pytest.fixture(params=["stand-in", pytest.param("itself", marks=[needs("vapoursynth"), needs("ffmpeg")])])
def vs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `vapoursynth`."""
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "vapoursynth", vapoursynth_host)
    module = importlib.import_module("vapoursynth")
    module.clear_outputs()
    return module


@pytest.fixture
def example(vs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict:
    return runpy.run_path(str(FILE), run_name="vapoursynth_adabm")


def film(vs: ModuleType, folder: Path, frames: np.ndarray = FRAMES) -> Path:
    """A file of frames [n, H, W, 3] that `bs.VideoSource` reads as RGB24."""
    if vs is vapoursynth_host:
        np.save(folder / "film.npy", frames)
        return folder / "film.npy"
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    command = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", "-", "-c:v", "ffv1"]
    command += ["-pix_fmt", "gbrp", str(folder / "film.mkv")]
    subprocess.run(command, input=frames.tobytes(), check=True)
    return folder / "film.mkv"


def pixels(frame: object) -> np.ndarray:
    return np.stack([np.asarray(frame[plane]) for plane in range(3)], 2)


def test_frames_are_those_of_upscale(vs: ModuleType, example: dict, tmp_path: Path) -> None:
    clip = vs.core.bs.VideoSource(str(film(vs, tmp_path)))
    model = adabm_kernels.load("edsr_x4_w4a4")
    large = example["upscale"](clip, model, threads=1)
    assert (large.width, large.height, large.num_frames, large.format.id) == (128, 96, 3, vs.RGB24)
    for n in (2, 0):  # in any order
        assert np.array_equal(pixels(large.get_frame(n)), adabm_kernels.upscale(FRAMES[n], model))
        props = dict(clip.get_frame(n).props)
        assert props and props.items() <= dict(large.get_frame(n).props).items()
    for size in ({"width": 50, "height": 38}, {"scale": 1.5}):
        smaller = example["upscale"](clip, model, bits=6, **size)
        assert np.array_equal(pixels(smaller.get_frame(1)), adabm_kernels.upscale(FRAMES[1], model, bits=6, **size))


def test_what_the_filter_does_not_take_is_named(vs: ModuleType, example: dict, tmp_path: Path) -> None:
    clip = vs.core.bs.VideoSource(str(film(vs, tmp_path)))
    yuv = clip.resize.Bicubic(format=vs.YUV420P8, matrix_s="709", range_s="limited")
    with pytest.raises(ValueError, match="clip must be RGB24 or RGB48 of one size, got YUV420P8: clip.resize.Bic"):
        example["upscale"](yuv)
    with pytest.raises(ValueError, match="width and height must be given together, without scale, got 64, None and None"):
        example["upscale"](clip, width=64)


def test_the_script(vs: ModuleType, tmp_path: Path) -> None:
    given = {"source": str(film(vs, tmp_path)), "threads": "1", "bits": "6"}
    runpy.run_path(str(FILE), init_globals=given, run_name="__vapoursynth__")
    out = vs.get_output(0)
    out = getattr(out, "clip", out)  # VapourSynth gives a clip with its alpha
    assert (out.width, out.height, out.num_frames, out.format.id) == (128, 96, 3, vs.YUV420P8)
    stream = Stream(128, 96, "", (), (2, 2), 8, False, MATRICES["bt709"], (0, 1))
    for n in range(3):
        want = from_rgb(adabm_kernels.upscale(FRAMES[n], "edsr_x4_w4a4", bits=6), stream)
        luma = np.asarray(out.get_frame(n)[0]).astype(int)
        assert np.abs(luma - want[0]).max() <= 1  # either rounds the same sum
    vs.clear_outputs()


@pytest.mark.parametrize(("given", "got"), [({}, "none"), ({"source": "in.mkv"}, "in.mkv")])
def test_the_script_says_what_it_lacks(vs: ModuleType, given: dict, got: str) -> None:
    with pytest.raises(ValueError, match=f"source must be the full path of a video .*, got '{got}'"):
        runpy.run_path(str(FILE), init_globals=given, run_name="__vapoursynth__")


@pytest.mark.parametrize("vs", [pytest.param("itself", marks=needs("vapoursynth"))], indirect=True)
@pytest.mark.parametrize(("form", "height", "matrix"), [("YUV420P8", 24, "170m"), ("YUV420P10", 720, "709"), ("RGB48", 24, None)])
def test_a_missing_matrix_is_guessed_by_the_height(vs: ModuleType, example: dict, form: str, height: int, matrix: str) -> None:
    colour = [200, 60, 30]
    plain = vs.core.std.BlankClip(width=32, height=height, format=vs.RGB24, color=colour, length=1)
    matrix_s = {} if matrix is None else {"matrix_s": matrix}
    clip = plain.resize.Bicubic(format=getattr(vs, form), **matrix_s).std.RemoveFrameProps("_Matrix")
    rgb = example["in_rgb"](clip)
    assert rgb.format.id == (vs.RGB24 if form.endswith("P8") else vs.RGB48)
    most = 2**rgb.format.bits_per_sample - 1
    assert np.abs(pixels(rgb.get_frame(0))[8, 8] / most * 255 - colour).max() < 1.5  # an 8-bit step of chroma
