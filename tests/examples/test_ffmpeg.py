"""Pipes from and to ffmpeg: the program in Python, and the lines of docs/ffmpeg.md."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from needs import needs
from pages import EXAMPLES, ROOT, beside, blocks
from small import one_thread  # noqa: F401

import adabm_kernels
from adabm_kernels.models import _ASSETS

pytestmark = [beside, needs("ffmpeg")]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("ffmpeg_pipes")


def ffmpeg(*arguments: str | Path) -> bytes:
    return subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, stdout=subprocess.PIPE).stdout


def film(path: Path, *options: str) -> Path:
    """Three frames of 48x32 that move, with a tone."""
    moving = "scroll=h=0.1,crop=48:32:60:40,scale=out_color_matrix=bt709:out_range=limited"
    picture = ["-loop", "1", "-framerate", "24000/1001", "-i", _ASSETS / "sample.png", "-f", "lavfi", "-i", "sine"]
    ffmpeg(*picture, "-vf", moving, "-frames:v", "3", "-t", "0.125", *options, path)
    return path


def probe(path: Path) -> list[dict]:
    command = ["ffprobe", "-v", "error", "-show_streams", "-count_frames", "-of", "json", path]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["streams"]


def rgb(path: Path) -> np.ndarray:
    """The frames of a film in BT.709, [n, H, W, 3] in 0..255."""
    stream = probe(path)[0]
    exact = "scale=in_color_matrix=bt709:flags=accurate_rnd+full_chroma_int+full_chroma_inp"
    data = ffmpeg("-i", path, "-fps_mode", "passthrough", "-vf", exact, "-pix_fmt", "rgb48le", "-f", "rawvideo", "-")
    return np.frombuffer(data, "<u2").reshape(-1, stream["height"], stream["width"], 3) / 257


BT709 = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
LOSSLESS = ["-c:v", "ffv1", "-c:a", "aac"]


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
def test_a_film_keeps_its_colours_sound_and_rate(example: ModuleType, tmp_path: Path, pixels: str) -> None:
    source = film(tmp_path / "in.mkv", *LOSSLESS, "-pix_fmt", pixels, *BT709, "-aspect", "2:1")
    example.main([str(source), str(tmp_path / "out.mkv"), "--threads", "1", "--encode", "-c:v ffv1"])
    picture, sound = probe(tmp_path / "out.mkv")
    assert (picture["width"], picture["height"], picture["nb_read_frames"]) == (192, 128, "3")
    assert picture["pix_fmt"] == ("yuv420p10le" if "10" in pixels else "yuv420p")
    assert picture["r_frame_rate"] == "24000/1001" and picture["display_aspect_ratio"] == "2:1" and sound["codec_name"] == "aac"
    assert [picture[f"color_{name}"] for name in ("space", "primaries", "transfer", "range")] == ["bt709", "bt709", "bt709", "tv"]
    frames = rgb(source).round().astype(np.uint8)
    got, model = rgb(tmp_path / "out.mkv"), adabm_kernels.load("edsr_x4_w4a4")
    for number, frame in enumerate(frames):
        want = adabm_kernels.upscale(frame, model, threads=1)
        # Rounding, and chroma of half the samples, leave the mean of a channel alone: it is 0.05 off at most. ffmpeg's default
        # conversion shifts it by 1 to 1.5, another matrix by 2 to 8.
        assert np.abs(got[number].mean((0, 1)) - want.mean((0, 1))).max() < 0.25
        assert np.sqrt(np.square(got[number] - want).mean()) < 2.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.mkv"]


def test_a_film_that_says_nothing_of_its_colours_is_taken_as_players_take_it(example: ModuleType, tmp_path: Path) -> None:
    small = film(tmp_path / "in.mkv", *LOSSLESS, "-pix_fmt", "yuv420p", "-aspect", "2:1")
    large = tmp_path / "large.mkv"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=16x720", "-frames:v", "1", "-pix_fmt", "yuv420p", "-c:v", "ffv1", large)
    found = [example.probe(path) for path in (small, large)]
    assert [one.matrix for one in found] == ["smpte170m", "bt709"] and [one.pixels for one in found] == ["4/3", "1/1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.mkv", "out.mkv"], "source must be a film: .*none.mkv: No such file"),
        (["in.mkv", "folder/out.mkv"], "ffmpeg could not write 'folder/out.mkv', for the reason it gives above"),
        (["in.mkv", "out.mkv", "--bits", "9"], "bits must be 'auto' or an integer from 2 to 8, got 9"),
        (["in.mkv", "out.mkv", "--model", "nosuch"], "model must be a built-in model .* got 'nosuch'"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    film(Path("in.mkv"), *LOSSLESS)
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        example.main(arguments)
    assert os.listdir() == ["in.mkv"]


@pytest.mark.parametrize("line", blocks("ffmpeg.md", "sh") if (ROOT / "docs/ffmpeg.md").exists() else [])
def test_the_lines_of_the_page_run(tmp_path: Path, line: str) -> None:
    film(tmp_path / "in.mp4", "-c:v", "libx264", "-c:a", "aac", "-pix_fmt", "yuv420p", *BT709)
    (tmp_path / "bin").mkdir()
    for name, starts in {"adabm": "-m adabm_kernels", "python": ""}.items():
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {starts} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    streams = probe(tmp_path / "out.mp4")
    assert (streams[0]["width"], streams[0]["height"], streams[0]["nb_read_frames"]) == (192, 128, "3")
    assert streams[0]["color_space"] == "bt709" and len(streams) == 2
