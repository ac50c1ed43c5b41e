"""Outputs of another size than the network's: which size, by which steps, and what comes out in Python and on the command line."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from command_line import names, rows
from fake_model import FakeModel
from shared import shared_path
from small import one_thread, small_edsr  # noqa: F401 - a fixture

from adabm_kernels.commands.streams import Stream
from adabm_kernels.commands.yuv import from_rgb
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.evaluation.metrics import psnr
from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.images import Layout, PictureWriter, open_picture
from adabm_kernels.models import builtin_models
from adabm_kernels.upscale import upscale, upscale_file, upscale_many
from adabm_kernels.upscaling import cutting
from adabm_kernels.upscaling.enlarge import Enlarger
from adabm_kernels.upscaling.patchwise import Patchwise
from adabm_kernels.upscaling.resampling import Resampler
from adabm_kernels.upscaling.sizes import Size, Steps

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def larger(array, factor):
    """What the stand-in model makes."""
    return array.repeat(factor, 0).repeat(factor, 1)


def resized(array, width, height):
    rows = array if array.ndim == 3 else array[..., None]
    layout = Layout(rows.shape[1], rows.shape[0], rows.shape[2], 8 * rows.itemsize)
    return Resampler(layout, width, height).rows(rows).reshape(height, width, *array.shape[2:])


@pytest.mark.parametrize(
    ("asked", "picture", "want"),
    [
        ({}, (7, 5), (28, 20)),
        ({"scale": 2}, (7, 5), (14, 10)),
        ({"scale": 1.25}, (1280, 960), (1600, 1200)),
        ({"scale": 1.1}, (15, 30), (17, 33)),  # 16.5, halves up; 33.00000000000001 in doubles
        ({"scale": Fraction(4, 3)}, (9, 10), (12, 13)),
        ({"scale": np.float32(1.1)}, (30, 10), (33, 11)),
        ({"scale": 1}, (7, 5), (7, 5)),
        ({"width": 1020}, (192, 192), (1020, 1020)),
        ({"width": 1600}, (600, 800), (1600, 2133)),
        ({"width": 201}, (50, 50), (201, 201)),
        ({"height": 3056}, (1000, 764), (4000, 3056)),
        ({"height": 1}, (5, 1000), (1, 1)),
        ({"width": 100, "height": 7}, (50, 50), (100, 7)),
        ({"fit": (1920, 1080)}, (640, 480), (1440, 1080)),
        ({"fit": (1920, 1080)}, (480, 640), (810, 1080)),
        ({"fit": (100, 78)}, (78, 60), (100, 77)),
        ({"fit": (100, 100)}, (3, 1000), (1, 100)),
        ({"fit": [4, 4]}, (1, 1), (4, 4)),
    ],
    ids=str,
)
def test_the_size_is_the_one_that_was_asked_for(asked, picture, want):
    assert Size(**asked).of(*picture, 4) == want


@pytest.mark.parametrize(
    ("asked", "factor", "want"),
    [
        ({}, 4, Steps(1, (400, 320), (400, 320))),
        ({"scale": 4}, 4, Steps(1, (400, 320), (400, 320))),
        ({"scale": 1}, 4, Steps(1, (400, 320), (100, 80))),
        ({"scale": 5}, 4, Steps(1, (400, 320), (500, 400))),
        ({"scale": 5.02}, 4, Steps(2, (1600, 1280), (502, 402))),
        ({"scale": 16}, 4, Steps(2, (1600, 1280), (1600, 1280))),
        ({"scale": 3}, 2, Steps(2, (400, 320), (300, 240))),
        ({"width": 600, "height": 80}, 4, Steps(2, (1600, 1280), (600, 80))),
        ({"width": 100, "height": 80}, 4, Steps(1, (400, 320), (100, 80))),
        ({"width": 50}, 4, Steps(0, (100, 80), (50, 40))),
        ({"width": 100, "height": 79}, 4, Steps(0, (100, 80), (100, 79))),
        ({"fit": (90, 1000)}, 4, Steps(0, (100, 80), (90, 72))),
    ],
    ids=str,
)
def test_steps(asked, factor, want):
    got = Size(**asked).steps(100, 80, factor)
    assert got == want and got.resized == (want.made != want.size)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"scale": 0}, "scale must be a number from 1 to 1000, got 0"),
        ({"scale": 0.5}, "scale must be a number from 1 to 1000, got 0.5"),
        ({"scale": float("nan")}, "scale must be a number from 1 to 1000, got nan"),
        ({"scale": float("inf")}, "scale must be a number from 1 to 1000, got inf"),
        ({"scale": "2"}, "scale must be a number, got str"),
        ({"scale": True}, "scale must be a number, got bool"),
        ({"width": 0}, "width must be an integer from 1 to 2147483647, got 0"),
        ({"height": 1.5}, "height must be an integer from 1 to 2147483647, got 1.5"),
        ({"fit": 100}, "fit must be a pair of width and height, got 100"),
        ({"fit": (100, 0)}, r"fit must hold integers from 1 to 2147483647, got \(100, 0\)"),
        ({"scale": 2, "width": 7}, "scale must be left out where width is given, got 2"),
        ({"scale": 2, "fit": (7, 7)}, "scale must be left out where fit is given, got 2"),
        ({"fit": (7, 7), "height": 7}, r"fit must be left out where height is given, got \(7, 7\)"),
    ],
    ids=str,
)
def test_impossible_sizes(tmp_path, asked, message):
    with pytest.raises((TypeError, ValueError), match=message):
        upscale("absent.png", "no such model", **asked)
    with pytest.raises((TypeError, ValueError), match=message):
        next(upscale_many(["absent.png"], FakeModel(), **asked))
    with pytest.raises((TypeError, ValueError), match=message):
        upscale_file("absent.png", tmp_path / "a.png", "no such model", **asked)


@pytest.mark.parametrize("asked", [{"scale": 2}, {"scale": 5}, {"width": 13}, {"width": 13, "height": 29}], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_arrays_keep_their_kind(asked, dtype, channels):
    array = RNG.integers(0, np.iinfo(dtype).max + 1, (6, 8, *([channels] if channels else [])), dtype=dtype)
    model = FakeModel()
    got = upscale(array, model, **asked)
    width, height = Size(**asked).of(8, 6, 4)
    assert got.dtype == dtype and got.shape == (height, width, *array.shape[2:])
    assert np.array_equal(got, resized(upscale(array, model), width, height))


def test_the_network_is_applied_as_often_as_it_takes():
    model, patches, done = FakeModel(), [], []
    settings = {"smooth": "network", "progress": lambda *told: done.append(told)}
    got = upscale(RGB, model, scale=8, record=patches, **settings)
    assert np.array_equal(got, resized(larger(RGB, 16), 64, 48))
    assert [tuple(x.shape[2:]) for x in model.seen] == [(6, 8), (24, 32)]
    assert len(patches) == 1 and done == [(1, 2, "upscaling"), (2, 2, "upscaling")]
    assert np.array_equal(upscale(RGB, model, scale=16, smooth="network"), larger(RGB, 16))


def test_a_smaller_picture_is_made_without_the_network():
    model = FakeModel()
    assert np.array_equal(upscale(RGB, model, width=4), resized(RGB, 4, 3)) and not model.seen
    image = PIL.Image.fromarray(RGB)
    assert upscale(image, model, width=8, height=6).size == (8, 6) and len(model.seen) == 1


def test_images_tensors_and_many(tmp_path):
    model, want = FakeModel(), resized(larger(RGB, 4), 12, 9)
    image = PIL.Image.fromarray(RGB)
    image.info["dpi"] = (300, 300)
    image.save(tmp_path / "a.png", dpi=(300, 300))
    for got in (upscale(image, model, scale=1.5), *upscale_many([image, tmp_path / "a.png"], model, scale=1.5)):
        assert np.array_equal(np.array(got), want) and got.info["dpi"] == pytest.approx((300, 300), abs=0.02)
    x = torch.from_numpy(RGB.transpose(2, 0, 1).astype(np.float32))
    got = upscale(x, model, scale=1.5)
    assert got.dtype == torch.float32 and np.abs(got.permute(1, 2, 0).numpy() - want).max() <= 0.501
    assert upscale(x[None].double(), model, fit=(64, 64)).shape == (1, 3, 48, 64)
    assert upscale(x, model, width=3).shape == (3, 2, 3)
    done = upscale_file(tmp_path / "a.png", tmp_path / "b.png", model, scale=1.5)
    assert done.steps == Steps(1, (32, 24), (12, 9)) and np.array_equal(np.array(PIL.Image.open(tmp_path / "b.png")), want)


@pytest.mark.parametrize("asked", [{"scale": 1.5}, {"scale": 3}, {"width": 300, "height": 41}], ids=str)
@pytest.mark.parametrize("channels", [3, 4])
def test_no_window_and_no_band_shows(monkeypatch, asked, channels):
    """Cut into windows that stay apart, at fixed bits: the whole picture's output, bit for bit."""
    monkeypatch.setattr(cutting, "JOINED_PIXELS", 0)
    config = ConvertConfig(batch=1, steps=0)
    photo = imresize(RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8), 8)
    model = convert_model(small_edsr(), [torch.from_numpy(photo).permute(2, 0, 1)[None].float()], config, check=False)
    picture = np.dstack([photo, np.broadcast_to(RNG.integers(1, 256, (1, 72), dtype=np.uint8), (96, 72))])[..., :channels]
    whole = upscale(picture, model, bits=4, tile=0, **asked)
    assert np.array_equal(upscale(picture, model, bits=4, tile=32, **asked), whole)


@pytest.mark.skipif("edsr_x4_w4a4" not in builtin_models(), reason="the built-in model's file is not there")
def test_a_photograph_is_nearer_to_the_truth_than_by_bicubic():
    low = np.array(PIL.Image.open(shared_path("data", "images", "set5", "LR_x2", "butterfly.png")).convert("RGB"))
    high = np.array(PIL.Image.open(shared_path("data", "images", "set5", "HR", "butterfly.png")).convert("RGB"))
    high = torch.from_numpy(high[: 2 * len(low), : 2 * low.shape[1]].astype(float))
    got, plain = (torch.from_numpy(rgb.astype(float)) for rgb in (upscale(low, scale=2), imresize(low, 2)))
    assert psnr(got, high, 255.0) > psnr(plain, high, 255.0) + 3
    # At once the picture itself, as the network was trained to be reduced by this filter.
    same = torch.from_numpy(upscale(low, scale=1).astype(float))
    assert psnr(same, torch.from_numpy(low.astype(float)), 255.0) > 40


def test_memory_is_counted_with_the_filter_and_all_passes():
    model = FakeModel()
    model.spec = small_edsr(scale=4, blocks=8, channels=64).spec
    layout = Layout(1000, 800, 3)
    for asked, count in (({}, 1), ({"scale": 4.5}, 1), ({"scale": 12}, 2)):
        free = Enlarger(Patchwise(model), Size(**asked))
        assert [network.beside.fixed for network, _ in free._stages(layout)] == [0] * count
        needed = cutting.resident_bytes() + (1 << 29)
        bound = Enlarger(Patchwise(model, max_memory=needed), Size(**asked))
        stages = bound._stages(layout)
        assert bound.check(layout) == bound.output(layout) and len(stages) == count
        rows = [network.windows(each.height, each.width, each)[0] for network, each in stages]
        held = sum(network.held_bytes(spans, each) for spans, (network, each) in zip(rows, stages, strict=True))
        steps = bound.steps(1000, 800)
        if steps.resized:
            held += Resampler.held_bytes(Layout(*steps.made, 3), *steps.size)
            assert stages[-1][0].beside.share == pytest.approx(steps.size[0] * steps.size[1] / (steps.made[0] * steps.made[1]))
        assert held + cutting.resident_bytes() <= needed
    with pytest.raises(ValueError, match="max_memory must be at least"):
        Enlarger(Patchwise(model, max_memory=cutting.resident_bytes() + (70 << 20)), Size(scale=12)).check(layout)


# ---- the command line


@pytest.fixture
def photos(empty_folder):
    """in.png, and a folder of pictures of several shapes."""
    Path("d").mkdir()
    for name, (height, width) in {"in": (6, 8), "d/wide": (3, 20), "d/tall": (30, 2), "d/large": (40, 60)}.items():
        y, x = np.mgrid[:height, :width]
        PIL.Image.fromarray(np.stack([4 * x, 3 * y, 2 * (x + y)], 2).astype(np.uint8)).save(f"{name}.png")
    return empty_folder


@pytest.mark.parametrize(
    ("options", "name", "size", "told"),
    [
        (["--scale", 2], "in_x2.png", (16, 12), "8x6 -> 16x12, resized from 32x24"),
        (["--scale", "1.50"], "in_x1.5.png", (12, 9), "8x6 -> 12x9, resized from 32x24"),
        (["--scale", 4], "in_x4.png", (32, 24), "8x6 -> 32x24"),
        (["--scale", 8], "in_x8.png", (64, 48), "8x6 -> 64x48, resized from 128x96 (2 passes)"),
        (["--scale", 16], "in_x16.png", (128, 96), "8x6 -> 128x96 (2 passes)"),
        (["--width", 13], "in_w13.png", (13, 10), "8x6 -> 13x10, resized from 32x24"),
        (["--height", 3], "in_h3.png", (4, 3), "8x6 -> 4x3, resized without the network"),
        (["--width", 9, "--height", 30], "in_9x30.png", (9, 30), "8x6 -> 9x30, resized from 32x24"),
        (["--fit", "20x20"], "in_20x20.png", (20, 15), "8x6 -> 20x15, resized from 32x24"),
        (["--scale", 2.5, "--suffix=-{scale}"], "in-2.5.png", (20, 15), "8x6 -> 20x15, resized from 32x24"),
        (["--width", 20, "--suffix=-l", "--format", "jpg"], "in-l.jpg", (20, 15), "8x6 -> 20x15, resized from 32x24"),
        (["--fit", "20x20", "-o", "out.tif"], "out.tif", (20, 15), "8x6 -> 20x15, resized from 32x24"),
    ],
    ids=str,
)
def test_names_sizes_and_what_is_told(photos, model, adabm, options, name, size, told):
    status, out, err = adabm("upscale", "in.png", *options)
    assert (status, err) == (0, "") and rows(out)["image"] == told and rows(out)["written"] == name
    with PIL.Image.open(name) as image:
        assert image.size == size
    assert rows(out)["mean bits"] == {
        "without the network": "none, the network was not needed",
        "(2 passes)": "3.75, in the first pass",
    }.get(next((word for word in ("without the network", "(2 passes)") if word in told), ""), "3.75")


def test_a_folder_of_one_width(photos, model, adabm):
    status, out, err = adabm("upscale", "d", "--width", 40, "--json", "-v", "--smooth", "network")
    report = json.loads(out)
    assert status == 0 and names("d_w40") == ["large_w40.png", "tall_w40.png", "wide_w40.png"]
    sizes = {image["input"]: (image["output_size"], image["network_size"], image["passes"]) for image in report["images"]}
    assert sizes == {
        "d/large.png": ([40, 27], [60, 40], 0),
        "d/tall.png": ([40, 600], [32, 480], 2),
        "d/wide.png": ([40, 6], [80, 12], 1),
    }
    assert "d/large.png -> d_w40/large_w40.png: the network was not needed, 60x40 -> 40x27, resized without the network" in err
    assert "d/wide.png -> d_w40/wide_w40.png: 1 window, mean bits 3.75, 20x3 -> 40x6, resized from 80x12" in err
    assert "1 window, mean bits 3.75, in the first pass, 2x30 -> 40x600, resized from 32x480 (2 passes)" in err
    assert adabm("upscale", "d", "--width", 40, "--existing", "skip", "-q")[0] == 0
    assert rows(adabm("upscale", "d", "--fit", "9x9", "-o", "e")[1])["images"] == "3 done, 0 failed, 0 skipped"
    assert names("e") == ["large_9x9.png", "tall_9x9.png", "wide_9x9.png"]


def test_one_picture_that_gets_too_large_stops_no_other(photos, model, adabm):
    status, out, err = adabm("upscale", "d", "--width", 100, "--max-pixels", 10_000)
    assert (
        status == 1
        and rows(out)["images"] == "2 done, 1 failed, 0 skipped"
        and err.startswith(
            "adabm: error: 'd/tall.png': --width must ask for at most 160000 pixels (16 times --max-pixels), "
            "got 100x1500, resized from 128x1920, for a picture of 2x30\n"
        )
    )


def test_width_and_height_are_those_of_the_upright_picture(empty_folder, model, adabm):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(RGB).save("in.jpg", exif=exif)
    assert adabm("upscale", "in.jpg", "--width", 30, "-q") == (0, "", "")
    with PIL.Image.open("in_w30.png") as image:
        assert image.size == (30, 40)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_every_format_holds_what_was_resized(photos, model, adabm, suffix):
    options = ["--scale", 1.7, "--tile", 16, "--smooth", "network", "-q"]
    assert adabm("upscale", "d/large.png", "-o", f"out{suffix}", *options) == (0, "", "")
    with PIL.Image.open("d/large.png") as image, PIL.Image.open(f"out{suffix}") as got:
        want = resized(larger(np.array(image), 4), 102, 68)
        difference = np.abs(np.array(got.convert("RGB")).astype(int) - want)
    assert difference.mean() <= (8 if suffix in (".jpg", ".webp") else 0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_stay_sixteen(empty_folder, model, adabm, channels):
    source = RNG.integers(1, 65536, (6, 8, channels), dtype=np.uint16)
    with PictureWriter("in.png", "PNG", Layout(8, 6, channels, 16)) as out:
        out.write(source)
    assert adabm("upscale", "in.png", "--scale", 2, "-q") == (0, "", "")
    got = open_picture("in_x2.png")
    assert got.layout.depth == 16 and np.array_equal(got.read(12), resized(larger(source, 4), 16, 12))


def test_compare_resizes_both(photos, model, adabm):
    report = json.loads(adabm("upscale", "in.png", "--scale", 2, "--compare", "--json")[1])
    assert report["output_size"] == [16, 12] and report["network_size"] == [32, 24] and report["passes"] == 1
    assert report["psnr_db"] > 10 and report["runs"] > 1


BAD = {
    "scale 0": (["in.png", "--scale", "0"], "--scale: must be a number from 1 to 1000, got '0'"),
    "scale nan": (["in.png", "--scale", "nan"], "--scale: must be a number from 1 to 1000, got 'nan'"),
    "scale below 1": (["in.png", "--scale", "0.5"], "--scale: must be a number from 1 to 1000, got '0.5'"),
    "scale word": (["in.png", "--scale", "x2"], "--scale: must be a number from 1 to 1000, got 'x2'"),
    "width 0": (["in.png", "--width", "0"], "--width: must be an integer from 1 to 2147483647, got '0'"),
    "height": (["in.png", "--height", "2147483648"], "--height: must be an integer from 1 to 2147483647, got '2147483648'"),
    "fit": (["in.png", "--fit", "100"], "--fit: must be WIDTHxHEIGHT such as 1920x1080, got '100'"),
    "fit side": (["in.png", "--fit", "9x2147483648"], "--fit must hold integers from 1 to 2147483647, got (9, 2147483648)"),
    "scale and width": (["in.png", "--scale", "2", "--width", "9"], "--scale must be left out where --width is given, got 2"),
    "fit and width": (["in.png", "--fit", "9x9", "--width", "9"], "--fit must be left out where --width is given, got (9, 9)"),
    "scale in names": (["in.png", "--width", "9", "--suffix=-{scale}"], "--suffix must not hold '{scale}' with --width"),
    "absurd": (
        ["in.png", "--width", "1000000"],
        "--width must ask for at most 2863311520 pixels (16 times --max-pixels), got 1000000x750000, resized from 2097152x1572864",
    ),
    "absurd on the way": (["in.png", "--width", "300000", "--height", "2"], "--width and --height must ask for at most"),
    "above the limit": (["in.png", "--max-pixels", "48", "--scale", "4.1"], "--scale must ask for at most 768 pixels (16 times"),
    "JPEG": (["in.png", "--width", "65501", "--height", "6", "-o", "o.jpg", "--max-pixels", "9" * 12], "at most 65500 pixels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_usage(photos, model, adabm, case):
    argv, message = BAD[case]
    status, out, err = adabm("upscale", *argv)
    assert message in err and (status, out, err.count("\n")) == (2, "", 1) and not model.seen
    assert names(photos) == ["d", "in.png"]


def test_a_format_holds_what_is_made_smaller(empty_folder, model, adabm):
    """The limits of formats are for the output, whatever the picture's size."""
    PIL.Image.fromarray(np.zeros((2, 17000, 3), np.uint8)).save("in.png")
    assert adabm("upscale", "in.png", "--width", 1000, "-o", "out.webp", "-q") == (0, "", "")
    status, _, err = adabm("upscale", "in.png", "--scale", 1, "-o", "out2.webp")
    assert status == 2 and "WebP holds at most 16383 pixels a side, got 17000x2" in err


@pytest.mark.parametrize(
    ("kind", "subsampling"), [("C420jpeg", (2, 2)), ("C422", (1, 2)), ("C444", (1, 1)), ("Cmono", (0, 0))], ids=str
)
def test_frames_of_another_size(empty_folder, model, adabm, kind, subsampling):
    """Luma is resized, and chroma is that of the resized frame, whose odd sides it covers."""
    stream = Stream(8, 6, "", ("F25:1", kind), subsampling)
    planes = from_rgb(np.full((6, 8, 3), (200, 60, 90), np.uint8), stream)
    frame = b"FRAME\n" + b"".join(plane.tobytes() for plane in planes)
    Path("in.y4m").write_bytes(stream.header() + frame + frame)
    status, out, err = adabm("upscale", "--y4m", "in.y4m", "-o", "out.y4m", "--width", 15)
    assert (status, err) == (0, "") and rows(out)["frames"] == "2, 8x6 -> 15x11, resized from 32x24"
    header, *frames = Path("out.y4m").read_bytes().split(b"FRAME\n")
    assert header.split()[:3] == [b"YUV4MPEG2", b"W15", b"H11"] and len(frames) == 2
    down, across = subsampling
    chroma = -(-11 // down) * -(-15 // across) if down else 0
    luma = np.frombuffer(frames[0][: 15 * 11], np.uint8)
    assert len(frames[0]) == 15 * 11 + 2 * chroma and np.abs(luma.astype(int) - planes[0].flat[0]).max() <= 1


def test_raw_frames_of_another_size(empty_folder, model, adabm):
    frames = RNG.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    Path("in.raw").write_bytes(frames.tobytes())
    status, out, _ = adabm("upscale", "in.raw", "--raw", "8x6", "--fit", "20x20", "-o", "out.raw", "--json")
    assert status == 0 and json.loads(out)["output_size"] == [20, 15] and json.loads(out)["network_size"] == [32, 24]
    got = np.fromfile("out.raw", np.uint8).reshape(2, 15, 20, 3)
    assert all(np.array_equal(a, resized(larger(b, 4), 20, 15)) for a, b in zip(got, frames, strict=True))
    status, _, err = adabm("upscale", "in.raw", "--raw", "8x6", "--scale", 2, "--width", 7, "-o", "o")
    assert status == 2 and "--scale must be left out where --width is given" in err
    status, _, err = adabm("upscale", "in.raw", "--raw", "8x6", "--width", 1000000, "-o", "o")
    assert status == 2 and "--width must ask for at most 2863311520 pixels" in err and names(empty_folder) == ["in.raw", "out.raw"]
