"""Frames through a pipe: YUV4MPEG2 and raw, in order, with their own bits; damaged streams are refused."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import ENVIRONMENT, HELPERS, names, rows, writes_into
from needs import needs

from adabm_kernels.commands.streams import MATRICES, Stream, read_y4m
from adabm_kernels.commands.yuv import from_rgb, to_rgb

RNG = np.random.default_rng(8)
FFMPEG = shutil.which("ffmpeg")


# The command with the stand-in model, in a process of its own.
PROGRAM = [
    sys.executable,
    "-c",
    """
import sys
sys.path.insert(0, sys.argv.pop(1))
from fake_model import FakeModel
from adabm_kernels import cli
import adabm_kernels.models
sys.modules["adabm_kernels.models"].load_model = lambda name: FakeModel()
sys.exit(cli.main())
""",
    HELPERS,
    "upscale",
]


def frames_of(stream, count):
    """Random frames whose colours lie inside RGB, as planes."""
    most = 255 if stream.depth == 8 else 65535
    rgb = RNG.integers(0, most + 1, (count, stream.height, stream.width, 3), dtype=np.uint8 if most == 255 else np.uint16)
    if stream.subsampling != (1, 1):
        rgb[:] = rgb[:, :1, :1]  # one colour a frame: chroma loses nothing
    return [from_rgb(frame, stream) for frame in rgb]


def y4m(stream, frames):
    return stream.header() + b"".join(b"FRAME\n" + b"".join(plane.tobytes() for plane in planes) for planes in frames)


KINDS = {
    "C420jpeg": ((2, 2), 8),
    "C420mpeg2": ((2, 2), 8),
    "C422": ((1, 2), 8),
    "C411": ((1, 4), 8),
    "C444": ((1, 1), 8),
    "C420p9": ((2, 2), 9),
    "C420p10": ((2, 2), 10),
    "C444p12": ((1, 1), 12),
    "Cmono": ((0, 0), 8),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("full", [False, True])
def test_y4m_in_every_colour_space(empty_folder, model, adabm, kind, full):
    subsampling, depth = KINDS[kind]
    words = ("F25:1", "Ip", "A1:1", kind, *(["XCOLORRANGE=FULL"] if full else []))
    stream = Stream(7, 6, "", words, subsampling, depth, full)
    frames = frames_of(stream, 3)
    Path("in.y4m").write_bytes(y4m(stream, frames))
    status, out, err = adabm("upscale", "--y4m", "in.y4m", "-o", "out.y4m")
    assert (status, err) == (0, "") and rows(out)["frames"] == "3, 7x6 -> 28x24" and rows(out)["mean bits"] == "3.75"
    data = io.BytesIO(Path("out.y4m").read_bytes())
    header = data.readline()
    assert header.split() == [b"YUV4MPEG2", b"W28", b"H24", *(word.encode() for word in words)]
    larger = replace(stream, width=28, height=24)
    for planes in frames:
        assert data.readline() == b"FRAME\n"
        for plane, shape in zip(planes, larger.planes, strict=True):
            got = np.frombuffer(data.read(int(np.prod(shape)) * plane.itemsize), plane.dtype).reshape(shape)
            want = plane.repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]]
            # A code is at most half a unit of RGB off and rounded once more: one code, two where codes are finer than RGB's.
            assert np.abs(got.astype(int) - want).max() <= (2 if full or depth == 8 else 1)
    assert not data.read()


@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_are_those_of_the_standards(matrix):
    """White, black and red of ITU-R BT.601, BT.709 and BT.2020 in limited range, 8 bits."""
    stream = Stream(1, 1, "", (), (1, 1), 8, False, MATRICES[matrix])
    for rgb, want in {(255, 255, 255): (235, 128, 128), (0, 0, 0): (16, 128, 128)}.items():
        planes = from_rgb(np.array([[rgb]], np.uint8), stream)
        assert tuple(int(plane.item()) for plane in planes) == want
        assert to_rgb(planes, stream).flatten().tolist() == list(rgb)
    k_r = MATRICES[matrix][0]
    y, _, cr = (plane.item() for plane in from_rgb(np.array([[(255, 0, 0)]], np.uint8), stream))
    assert (y, cr) == (round(16 + 219 * k_r), 240)


@pytest.mark.parametrize(
    ("pixel_format", "dtype", "channels"), [("rgb24", "u1", 3), ("rgb48le", "<u2", 3), ("gray", "u1", 1), ("rgba", "u1", 4)]
)
def test_raw_frames(empty_folder, model, adabm, pixel_format, dtype, channels):
    frames = RNG.integers(1, 200, (2, 6, 7, channels)).astype(dtype)
    Path("in.raw").write_bytes(frames.tobytes())
    options = ["--raw", "7x6", "--pix-fmt", pixel_format, "--smooth", "network"]
    status, _, _ = adabm("upscale", "in.raw", "-o", "out.raw", "-q", *options)
    assert status == 0
    got = np.fromfile("out.raw", dtype).reshape(2, 24, 28, channels)
    assert np.array_equal(got, frames.repeat(4, 1).repeat(4, 2))


def test_a_pipe_from_and_to(empty_folder):
    stream = Stream(7, 6, "", ("F25:1", "C444"), (1, 1))
    frames = frames_of(stream, 4)
    done = subprocess.run([*PROGRAM, "--y4m", "-"], input=y4m(stream, frames), capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0 and b"frames     4, 7x6 -> 28x24" in done.stderr
    assert done.stdout.startswith(b"YUV4MPEG2 W28 H24 F25:1 C444\nFRAME\n")
    luma = [np.frombuffer(part[: 24 * 28], np.uint8).reshape(24, 28) for part in done.stdout.split(b"FRAME\n")[1:]]
    means = [planes[0].mean() for planes in frames]
    assert np.allclose([plane.mean() for plane in luma], means, atol=1)  # in order


@needs("ffmpeg")
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p10le", "yuva444p", "gray"])
def test_frames_from_and_to_ffmpeg(empty_folder, model, adabm, pixel_format):
    """Frames that ffmpeg makes, upscaled; it reads them again, in order, with their colours."""
    made = [FFMPEG, "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=36x28:rate=5:duration=1", "-pix_fmt", pixel_format]
    y4m_options = ["-strict", "-1", "-f", "yuv4mpegpipe"]  # ffmpeg calls more than 8 bits unofficial
    subprocess.run([*made, *y4m_options, "in.y4m"], check=True)
    status, out, err = adabm("upscale", "--y4m", "in.y4m", "-o", "out.y4m")
    assert (status, err) == (0, "") and rows(out)["frames"] == "5, 36x28 -> 144x112"
    frames = {}
    for name, scale in (("in", 1), ("out", 4)):
        chroma = ["-sws_flags", "bilinear+full_chroma_int+accurate_rnd"]  # is interpolated, which it is not by default
        to_raw = [FFMPEG, "-v", "error", "-i", f"{name}.y4m", *chroma, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        data = subprocess.run(to_raw, check=True, capture_output=True).stdout
        frames[name] = np.frombuffer(data, np.uint8).reshape(5, 28 * scale, 36 * scale, 3).astype(float)
    small = frames["out"].reshape(5, 28, 4, 36, 4, 3).mean((2, 4))  # the stand-in model repeats pixels
    errors = np.array([[np.abs(a - b).mean() for b in frames["in"]] for a in small])
    # Of every frame its own is the nearest. Edges between saturated colours lose something with half the chroma: 4.3 at most.
    assert (errors.argmin(1) == np.arange(5)).all() and errors.diagonal().max() < 5


GOOD = y4m(Stream(7, 6, "", ("C444",), (1, 1)), frames_of(Stream(7, 6, "", (), (1, 1)), 2))
BAD = {
    "no stream": (b"words\n", "--y4m must be given a YUV4MPEG2 stream"),
    "empty": (b"", "--y4m must be given a YUV4MPEG2 stream"),
    "no size": (b"YUV4MPEG2 C444\n", "with width and height in its header"),
    "no pixels": (b"YUV4MPEG2 W0 H5\n", "frames of at least one pixel, got 0x5"),
    "interlaced": (b"YUV4MPEG2 W7 H6 It\n", "progressive frames, got interlacing 'It'"),
    "colour space": (b"YUV4MPEG2 W7 H6 C440\n", "410, 411, 420, 422, 444 or mono of 8 to 16 bits, got 'C440'"),
    "no siting of deep colours": (b"YUV4MPEG2 W7 H6 C420jpegp10\n", "got 'C420jpegp10'"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_streams(empty_folder, model, adabm, case):
    data, message = BAD[case]
    Path("in.y4m").write_bytes(data)
    status, out, err = adabm("upscale", "--y4m", "in.y4m", "-o", "out.y4m")
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
    assert names(empty_folder) == ["in.y4m"]


INCOMPLETE = {
    "cut in the second frame": (["--y4m"], GOOD[:-5], 1, "the stream ends within frame 2: 1 frame was complete"),
    "cut in a FRAME": (["--y4m"], GOOD + b"FRA", 2, "the stream ends within frame 3: 2 frames were complete"),
    "cut after a FRAME": (["--y4m"], GOOD + b"FRAME\n", 2, "the stream ends within frame 3: 2 frames were complete"),
    "cut in the first frame": (["--y4m"], GOOD[:40], 0, "the stream ends within frame 1: no frame was complete"),
    "no FRAME": (["--y4m"], GOOD + b"JUNK\n", 2, "frame 3 does not begin with FRAME: 2 frames were complete"),
    "two streams": (["--y4m"], GOOD + GOOD, 2, "frame 3 does not begin with FRAME: 2 frames were complete"),
    "raw": (["--raw", "7x6"], bytes(7 * 6 * 3 * 3 + 1), 3, "the stream ends within frame 4: 3 frames were complete"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_what_is_complete_of_a_stream_is_kept(empty_folder, model, adabm, case):
    options, data, complete, message = INCOMPLETE[case]
    Path("in").write_bytes(data)
    status, out, err = adabm("upscale", *options, "in", "-o", "out", "--json")
    assert (status, err) == (1, f"adabm: error: {message}\n")
    assert names(empty_folder) == (["in", "out"] if complete else ["in"])
    if complete:
        report = json.loads(out)
        assert (report["frames"], report["complete"]) == (complete, False)
        size = 28 * 24 * 3 + (6 if "--y4m" in options else 0)
        head = GOOD.index(b"\n") + 3 if "--y4m" in options else 0  # two digits for one, twice
        assert Path("out").stat().st_size == head + complete * size
    else:
        assert out == ""


def test_a_stream_that_cannot_be_read_further(empty_folder, model, adabm, monkeypatch):
    """What was read before is kept, and the message says that reading failed."""
    Path("in").write_bytes(GOOD)
    read = os.readv

    def fail(descriptor, buffers):
        monkeypatch.setattr(os, "readv", refuse)
        return read(descriptor, [buffers[0][: len(GOOD) - 5]])

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "readv", fail)
    status, _, err = adabm("upscale", "--y4m", "in", "-o", "out", "-q")
    assert (status, err) == (1, "adabm: error: cannot read frame 2: Input/output error: 1 frame was complete\n")
    assert names(empty_folder) == ["in", "out"]


@pytest.mark.parametrize("options", [["--y4m"], ["--raw", "7x6"]], ids=lambda options: options[0])
def test_frames_from_and_to_named_pipes(empty_folder, model, adabm, options):
    data = GOOD if options == ["--y4m"] else bytes(2 * 7 * 6 * 3)
    os.mkfifo("pipe")
    os.mkfifo("larger")
    with ThreadPoolExecutor(2) as pool:
        pool.submit(Path("pipe").write_bytes, data)
        larger = pool.submit(Path("larger").read_bytes)
        try:
            status, out, err = adabm("upscale", *options, "pipe", "-o", "larger")
        finally:
            for name in ("pipe", "larger"):  # nobody waits for a command that opened neither
                os.close(os.open(name, os.O_RDWR | os.O_NONBLOCK))
    assert (status, err) == (0, "") and rows(out)["frames"] == "2, 7x6 -> 28x24"
    assert len(larger.result()) >= 2 * 28 * 24 * 3 and not Path("larger").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--y4m", "in", "-o", "out.y4m/"], "OUT must be a file or '-' for frames, got the folder 'out.y4m'"),
        (["--y4m", "in", "in"], "IN must be '-' or one file of frames, got 2 inputs"),
        (["--y4m", "in", "--raw", "7x6"], "--raw must be left out with --y4m"),
        (["--y4m", "in", "--compare"], "--compare must be left out for frames, got True"),
        (["--y4m", "in", "--format", "png"], "--format must be left out for frames, got 'png'"),
        (["--y4m", "in", "--quality", "90"], "--quality must be left out for frames, got 90"),
        (["--y4m", "in", "--suffix", "_large"], "--suffix must be left out for frames, got '_large'"),
        (["--y4m", "in", "-v"], "--verbose must be left out for frames, got True"),
        (["--y4m", "in", "--strict"], "--strict must be left out for frames, got True"),
        (["--raw", "7x6", "in", "--metadata", "strip"], "--metadata must be left out for frames, got 'strip'"),
        (["--y4m", "in", "-o", "out.PNG"], "OUT must not be named as a picture, as all frames go into one stream, got 'out.PNG'"),
        (["--y4m", "in", "--existing", "skip"], "--existing must be 'replace' or 'refuse' for frames, got 'skip'"),
        (["--y4m", "in", "--max-pixels", "41"], "frames must have at most 41 pixels (--max-pixels), got 7x6 = 42 pixels"),
        (["--raw", "7x6", "in", "--max-pixels", "41"], "frames must have at most 41 pixels (--max-pixels), got 7x6 = 42 pixels"),
        (["--y4m", "in", "--max-memory", "1M"], "--max-memory must be at least"),
        (["--raw", "7x6", "in", "--max-memory", "1M"], "--max-memory must be at least"),
        (["--y4m", "in", "--pix-fmt", "gray"], "--pix-fmt goes with --raw, got 'gray' without"),
        (["--raw", "7x6", "in", "--matrix", "bt709"], "--matrix goes with --y4m, got 'bt709' without"),
        (["in", "--matrix", "bt709"], "--matrix goes with --y4m, got 'bt709' without"),
        (["--y4m", "in", "-o", "in"], "OUT must not be the input file itself"),
        (["--y4m", "absent"], "cannot read 'absent'"),
        (["--raw", "7", "in"], "must be WIDTHxHEIGHT such as 1920x1080, got '7'"),
        (["--raw", "0x6", "in"], "got '0x6'"),
    ],
    ids=str,
)
def test_bad_usage(empty_folder, model, adabm, argv, message):
    Path("in").write_bytes(GOOD)
    status, out, err = adabm("upscale", *argv)
    assert (status, out) == (2, "") and message in err and names(empty_folder) == ["in"]


def test_a_closed_pipe_is_quiet(empty_folder):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, "--y4m", "-"], input=GOOD, stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("kind", "frames", "stop"), [("y4m", 0, signal.SIGTERM), ("y4m", 2, signal.SIGINT), ("raw", 2, signal.SIGTERM)]
)
def test_interrupted_while_the_producer_is_quiet(empty_folder, kind, frames, stop):
    stream = Stream(7, 6, "", ("C444",), (1, 1))
    options = ["--y4m"] if kind == "y4m" else ["--raw", "7x6"]
    sent = y4m(stream, frames_of(stream, frames)) if kind == "y4m" else bytes(7 * 6 * 3 * frames + 1)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PROGRAM, *options, "-", "-o", "out"], **pipes, env=ENVIRONMENT) as process:
        process.stdin.write(sent)
        process.stdin.flush()
        while process.poll() is None and not writes_into(process, empty_folder):
            time.sleep(0.05)
        time.sleep(0.5)  # the frames that are there are computed
        process.send_signal(stop)
        try:
            process.wait(30)
        finally:
            process.kill()
        said = process.stdout.read(), process.stderr.read()
        assert (process.returncode, *said) == (130, b"", b"adabm: interrupted\n")
    assert names(empty_folder) == []


def test_an_existing_output_is_kept_when_asked(empty_folder, model, adabm):
    Path("in").write_bytes(GOOD)
    assert adabm("upscale", "--y4m", "in", "-o", "out", "--existing", "refuse", "-q") == (0, "", "")
    Path("out").write_bytes(b"old")
    status, _, err = adabm("upscale", "--y4m", "in", "-o", "out", "--existing", "refuse")
    assert status == 2 and "OUT must not exist with --existing refuse, and 'out' does" in err
    assert Path("out").read_bytes() == b"old"
    assert adabm("upscale", "--y4m", "in", "-o", "out", "-q")[0] == 0 and Path("out").read_bytes() != b"old"


def test_a_terminal_is_not_filled(empty_folder, model, adabm, monkeypatch):
    Path("in").write_bytes(GOOD)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    status, out, err = adabm("upscale", "--y4m", "in")
    assert (status, out) == (2, "") and "OUT must be given for in (-o FILE), as standard output is a terminal" in err


def test_high_definition_is_bt709_unless_said_otherwise():
    header = b"YUV4MPEG2 W1280 H720\n"
    assert read_y4m(io.BytesIO(header), None).luma == MATRICES["bt709"]
    assert read_y4m(io.BytesIO(header), "bt2020").luma == MATRICES["bt2020"]
    assert read_y4m(io.BytesIO(b"YUV4MPEG2 W720 H576\n"), None).luma == MATRICES["bt601"]
