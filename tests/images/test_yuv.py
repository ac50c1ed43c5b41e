"""Chroma of video frames, sited as the header says, on the way to RGB and back; frames that ffmpeg makes and says the siting of."""

import io
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from adabm_kernels.commands.streams import read_y4m
from adabm_kernels.commands.yuv import from_rgb, to_rgb

FFMPEG = shutil.which("ffmpeg")
SIDE = 64
# Rows and columns from the first luma sample to the first chroma sample; luma samples a chroma sample, down and across.
SITINGS = {
    "C420jpeg": ((0.5, 0.5), (2, 2)),
    "C420mpeg2": ((0.5, 0), (2, 2)),
    "C420paldv": ((0, 0), (2, 2)),
    "C420": ((0.5, 0.5), (2, 2)),
    "": ((0.5, 0.5), (2, 2)),
    "XYSCSS=420MPEG2": ((0.5, 0), (2, 2)),
    "C420p10": ((0.5, 0), (2, 2)),
    "C422": ((0, 0), (1, 2)),
    "C422p10": ((0, 0), (1, 2)),
    "C411": ((0, 0), (1, 4)),
    "C410": ((1.5, 1.5), (4, 4)),
    "C444": ((0, 0), (1, 1)),
}


def stream_of(kind, width=SIDE, height=SIDE):
    return read_y4m(io.BytesIO(f"YUV4MPEG2 W{width} H{height} Ip {kind}\n".encode()), None)


def enlarged(stream):
    return replace(stream, width=4 * stream.width, height=4 * stream.height)


def edge(kind, axis, place):
    """A frame of one luma whose colour changes before luma sample `place`, each chroma sample the mean of its area."""
    stream, (siting, factors) = stream_of(kind), SITINGS[kind]
    unit = 2 ** (stream.depth - 8)
    centres = siting[axis] + factors[axis] * np.arange(SIDE // factors[axis])
    before = np.clip((place - 0.5 - centres) / factors[axis] + 0.5, 0, 1)
    planes = []
    for low, high in ((90, 170), (170, 90)):
        line = np.rint(unit * (high + (low - high) * before)).astype(stream.dtype)
        plane = np.broadcast_to(line if axis else line[:, None], stream.planes[1])
        planes.append(np.ascontiguousarray(plane))
    return stream, [np.full((SIDE, SIDE), 120 * unit, stream.dtype), *planes]


def place_of_edge(kind, axis, plane):
    """Where the colour changes, in luma samples."""
    line = plane[:, plane.shape[1] // 2] if axis == 0 else plane[plane.shape[0] // 2]
    line = line.astype(float)
    samples = ((line - line[-1]) / (line[0] - line[-1])).sum()
    siting, factors = SITINGS[kind]
    return siting[axis] + factors[axis] * (samples - 0.5) + 0.5


@pytest.mark.parametrize("kind", SITINGS)
def test_edges_of_colour_stay_in_place(kind):
    """Scaled four times by repeating pixels, which moves nothing; codes round a place by less than 0.2 output samples."""
    for axis in (0, 1):
        for place in (20, 21, 23, 34):
            stream, planes = edge(kind, axis, place)
            larger = from_rgb(to_rgb(planes, stream).repeat(4, 0).repeat(4, 1), enlarged(stream))
            places = [place_of_edge(kind, axis, plane) for plane in larger[1:]]
            assert np.abs(np.array(places) - 4 * place).max() < 0.2, (axis, place, places)


@pytest.mark.parametrize("kind", SITINGS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 5), (8, 6)])
def test_one_colour_stays_that_colour(kind, width, height):
    stream = stream_of(kind, width, height)
    unit = 2 ** (stream.depth - 8)
    for codes in ((120, 90, 170), (16, 128, 128), (235, 128, 128), (77, 128, 128)):
        planes = [np.full(shape, code * unit, stream.dtype) for shape, code in zip(stream.planes, codes, strict=True)]
        rgb = to_rgb(planes, stream)
        assert (rgb == rgb[0, 0]).all() and (codes[1] != 128 or (rgb == rgb[..., :1]).all())
        for plane, code in zip(from_rgb(rgb.repeat(4, 0).repeat(4, 1), enlarged(stream)), codes, strict=True):
            assert (plane == plane[0, 0]).all() and abs(int(plane[0, 0]) - code * unit) <= 1


@pytest.mark.parametrize("kind", ["C420jpeg", "C420mpeg2", "C420paldv", "C420p10", "C422", "C411"])
@pytest.mark.parametrize("chroma", [(128, 128), (110, 140)], ids=["grey", "colour"])
def test_constant_chroma_under_any_luma_stays_constant(kind, chroma):
    """Rounding to codes of RGB moves chroma by at most 0.44 codes of 8 bits, which the other rounding undoes."""
    stream = stream_of(kind)
    unit = 2 ** (stream.depth - 8)
    low, high = (16, 235) if chroma == (128, 128) else (60, 190)  # inside RGB
    y = np.random.default_rng(5).integers(low * unit, high * unit + 1, (SIDE, SIDE)).astype(stream.dtype)
    planes = [y, *(np.full(shape, code * unit, stream.dtype) for shape, code in zip(stream.planes[1:], chroma, strict=True))]
    rgb = to_rgb(planes, stream)
    assert (rgb == rgb[..., :1]).all() == (chroma == (128, 128))
    back = from_rgb(rgb.repeat(4, 0).repeat(4, 1), enlarged(stream))
    assert [set(plane.flatten().tolist()) for plane in back[1:]] == [{code * unit} for code in chroma]
    assert np.abs(back[0].astype(int) - y.repeat(4, 0).repeat(4, 1)).max() <= 1


def test_chroma_between_its_samples_by_hand():
    """Cr 128 and 144 beside each other: 3/4 and 1/4 of the way in the middle, or half the way where sited left."""
    luma, cb = np.full((2, 4), 120, np.uint8), np.full((1, 2), 128, np.uint8)
    for kind, want in {"C420jpeg": (0, 4, 12, 16), "C420mpeg2": (0, 8, 16, 16)}.items():
        stream = stream_of(kind, 4, 2)
        red = to_rgb([luma, cb, np.array([[128, 144]], np.uint8)], stream)[..., 0]
        expected = np.rint(255 * ((120 - 16) / 219 + 2 * (1 - 0.299) * np.array(want) / 224))
        assert np.array_equal(red, np.tile(expected, (2, 1)))


def test_alpha_of_frames_is_kept():
    stream = stream_of("C444alpha", 4, 3)
    planes = list(np.random.default_rng(1).integers(60, 190, (4, 3, 4), dtype=np.uint8))
    rgba = to_rgb(planes, stream)
    assert rgba.shape == (3, 4, 4) and np.array_equal(from_rgb(rgba, stream)[3], planes[3])


@pytest.mark.skipif(FFMPEG is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize(("location", "kind"), [("left", "C420mpeg2"), ("center", "C420jpeg"), ("topleft", "C420paldv")])
def test_ffmpeg_calls_these_sitings_so(location, kind):
    source = ["-f", "lavfi", "-i", "testsrc2=size=8x8:duration=0.1", "-pix_fmt", "yuv420p"]
    done = subprocess.run(
        [FFMPEG, "-v", "error", *source, "-chroma_sample_location", location, "-f", "yuv4mpegpipe", "-"],
        check=True, capture_output=True,
    )  # fmt: skip
    stream = read_y4m(io.BytesIO(done.stdout), None)
    assert kind in stream.y4m and stream.siting == tuple(int(2 * offset) for offset in SITINGS[kind][0])
