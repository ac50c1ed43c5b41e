"""Pictures as people bring them: further formats, damage, thumbnails before pictures, colours that are said in other ways, and what
becomes of EXIF."""

import errno
import importlib.util
import io
import json
import os
import re
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import odd_pictures as odd
import PIL.Image
import PIL.ImageCms
import PIL.IptcImagePlugin
import pytest
from command_line import rows as table_of
from fake_model import FakeModel
from odd_pictures import ALPHA, GREY, HEIGHT, SMOOTH, WIDTH, encode

from adabm_kernels import upscale_file
from adabm_kernels.images import Layout, PictureWriter, find_pictures, jpeg_scan, list_images, open_picture
from adabm_kernels.images.colour import Colour, grey_profile, profile_kind
from adabm_kernels.images.formats import missing_package
from adabm_kernels.images.metadata import Metadata
from adabm_kernels.images.pillow import from_array, layout_of, to_array
from adabm_kernels.images.vips import vips

SRGB = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
ADOBE = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)  # chromaticities of Adobe RGB


def read(data, **options):
    """Pixels, layout and what was said of a file."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        reader = open_picture(data, name="it", **options)
        rows = np.concatenate([reader.read(7), reader.read(1000)])
    words = [str(one.message) for one in said]
    assert words == reader.warnings
    return rows, reader.layout, words


def written(format, layout, rows):
    out = io.BytesIO()
    with PictureWriter(out, format, layout) as writer:
        writer.write(rows)
    return out.getvalue()


# ---- formats and folders


@pytest.mark.parametrize(("kind", "near"), [("GIF", 30), ("AVIF", 30), ("JPEG2000", 0), ("PPM", 0), ("HEIF", 30), ("JXL", 30)])
def test_further_formats_are_read(kind, near):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind == "JXL":
        pytest.importorskip("pillow_jxl")
    rows, layout, said = read(encode(SMOOTH, kind))
    assert (layout.height, layout.width, layout.grey) == (HEIGHT, WIDTH, False) and not said
    assert np.abs(rows[..., :3].astype(int) - SMOOTH).max() <= near


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_of_an_animation_the_first_frame_is_read_and_that_is_said(kind):
    frames = [PIL.Image.fromarray(np.roll(SMOOTH, 8 * turn, 1)) for turn in range(3)]
    rows, _, said = read(encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100))
    many = "is an animation, of which only the first picture" if kind == "AVIF" else "holds 3 pictures, of which only the first"
    assert said == [f"'it' {many} is read"]
    assert np.abs(rows[..., :3].astype(int) - SMOOTH).mean() < 8


@pytest.fixture
def mixed(empty_folder):
    """A folder of pictures and of much else."""
    Path("in/sub").mkdir(parents=True)
    PIL.Image.fromarray(SMOOTH).save("in/a.png")
    Path("in/sub/b.JPE").write_bytes(encode(SMOOTH, "JPEG"))
    Path("in/c.jfif").write_bytes(encode(SMOOTH, "JPEG"))
    Path("in/d.gif").write_bytes(encode(SMOOTH, "GIF"))
    Path("in/e.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    Path("in/f.DNG").touch()
    Path("in/g").write_bytes(encode(SMOOTH, "PNG"))
    Path("in/h.png").symlink_to("nowhere.png")
    Path("in/i").symlink_to("sub")
    Path("in/._a.png").write_bytes(b"of another system")
    Path("in/notes.txt").write_text("words")
    Path("in/desktop.ini").write_text("words")
    return empty_folder


def test_jpeg_xl_is_turned_by_itself_and_not_by_its_exif():
    pytest.importorskip("pillow_jxl")
    rows, layout, _ = read(encode(SMOOTH, "JXL", exif=odd.exif(orientation=6), lossless=True))
    assert np.array_equal(rows, SMOOTH) and layout.metadata.exif is not None


def test_what_a_folder_holds_besides_is_named_and_counted(mixed, model, adabm, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pillow_heif" else real(name))
    reasons = {
        "in/e.heic": "HEIC is read where the package pillow-heif is installed (pip install pillow-heif)",
        "in/f.DNG": "it is a raw picture of a camera, which is not read",
        "in/g": "it is a PNG file whose name does not say so",
        "in/h.png": "it is a link that leads nowhere",
        "in/i": "it is a link to a folder, which is not followed",
    }
    status, out, err = adabm("upscale", "in")
    assert status == 0 and table_of(out)["images"] == "4 done, 0 failed, 0 skipped"
    assert table_of(out)["passed over"] == "5 that look like pictures and are not read" and table_of(out)["other files"] == "2"
    assert err.splitlines() == [f"adabm: warning: '{name}' is passed over: {reason}" for name, reason in reasons.items()]
    assert sorted(str(path) for path in Path("in_x4").rglob("*.*")) == [
        "in_x4/a_x4.png", "in_x4/c_x4.png", "in_x4/d_x4.png", "in_x4/sub/b_x4.png"
    ]  # fmt: skip
    status, out, err = adabm("upscale", "in", "--json", "-q")
    report = json.loads(out)
    assert err == "" and {item["input"]: item["reason"] for item in report["passed_over"]} == reasons
    assert report["other_files"] == 2 and len(report["images"]) == 4
    status, _, err = adabm("upscale", "in/e.heic")
    assert status == 2 and "it is a HEIC file, which is read where the package pillow-heif is installed" in err
    for path in (*Path("in").glob("*.*"), Path("in/sub/b.JPE")):
        if path.suffix in (".png", ".jfif", ".gif", ".JPE") and not path.name.startswith("._"):
            path.unlink()
    status, _, err = adabm("upscale", "in")
    assert status == 2 and "folder 'in' has none, but 4 that cannot, such as 'in/e.heic': HEIC is read where" in err


def test_a_folder_that_may_be_listed_and_not_entered_stops_no_other(tmp_path, monkeypatch):
    for name in ("a.png", "closed/b.png", "closed/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    real = os.stat

    def refusing(path, **options):  # as the system does for all users but its administrator
        if "closed/" in os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return real(path, **options)

    monkeypatch.setattr(os, "stat", refusing)
    found = find_pictures(tmp_path)
    assert found.pictures == [tmp_path / "a.png"] and found.others == 1
    assert [(passed.path.name, passed.reason) for passed in found.passed_over] == [
        ("b.png", "it cannot be opened: Permission denied")
    ]


def test_a_folder_to_measure_on_hides_nothing(tmp_path):
    for name in ("a.jfif", "b.JPE", "c.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jfif", "b.JPE", "c.png"]
    (tmp_path / "d.avif").touch()
    with pytest.raises(ValueError, match="has 1 of another format, such as 'd.avif'"):
        list_images(tmp_path)
    (tmp_path / "d.avif").unlink()
    (tmp_path / "e.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match="1 cannot be read, such as 'e.png': it is a link that leads nowhere"):
        list_images(tmp_path)


# ---- damage

JPEG = encode(SMOOTH, "JPEG", quality=92)
PROGRESSIVE = encode(SMOOTH, "JPEG", quality=92, progressive=True)
RESTARTS = encode(SMOOTH, "JPEG", quality=92, restart_marker_rows=1)
SCAN = JPEG.index(b"\xff\xda")
END_MISSING = "it ends without its end marker (EOI), after all of its picture"


def with_palette(bits, colours, indices):
    """A PNG of these indices, [H, W]."""
    rows = np.unpackbits(indices.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(len(indices), -1)
    data = b"".join(b"\0" + row.tobytes() for row in np.packbits(rows, axis=-1))
    head = struct.pack(">IIBBBBB", indices.shape[1], len(indices), bits, 3, 0, 0, 0)
    table = np.arange(10, 10 + 3 * colours, dtype=np.uint8).tobytes()
    parts = ((b"IHDR", head), (b"PLTE", table), (b"tRNS", b"\xff\xff"), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(odd.chunk(*part) for part in parts)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_colour_that_the_palette_does_not_have_is_damage(bits, tmp_path):
    indices = np.arange(48).reshape(6, 8) % 3
    assert read(with_palette(bits, 3, indices), strict=True)[2] == []
    indices[4, 5] = 3
    (tmp_path / "a.png").write_bytes(with_palette(bits, 3, indices))
    for source in (with_palette(bits, 3, indices), tmp_path / "a.png"):
        rows, _, said = read(source)
        assert said == [
            "'it' is damaged, and read nevertheless: some pixels have colours that its palette does not have, and become black"
        ]
        assert not rows[4, 5, :3].any() and rows[0, 0].tolist() == [10, 11, 12, 255]
    assert read(with_palette(bits, 4, indices), strict=True)[2] == []


def flipped(data, place, bits=0x5A):
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def spoilt(data, name):
    """The first byte of a chunk's checksum changed."""
    place = data.index(name)
    return flipped(data, place + 4 + int.from_bytes(data[place - 4 : place], "big"))


TEXT = odd.chunk(b"tEXt", b"Title\0words")
DAMAGED = {
    "a flipped byte": (flipped(JPEG, 648), "Corrupt JPEG data: 24 extraneous bytes before marker 0xd9"),
    "a flipped byte between restarts": (flipped(RESTARTS, 648), "its data holds codes that no encoder writes"),
    "bytes before the scan": (JPEG[:SCAN] + bytes(3) + JPEG[SCAN:], "Corrupt JPEG data: 3 extraneous bytes before marker 0xda"),
    "bytes after the scan": (JPEG[:-2] + b"\x12\x34\x56" + JPEG[-2:], "3 bytes of its data are left after its picture"),
    "no end": (JPEG[:-2], re.escape(END_MISSING)),
    "no end, progressive": (PROGRESSIVE[:-2], re.escape(END_MISSING)),
    "zeros for the end": (JPEG[:-2] + bytes(64), re.escape(END_MISSING)),
    "checksum of a text": (spoilt(odd.png(TEXT), b"tEXt"), "the checksum of its chunk tEXt is wrong, which is left out"),
    "no end chunk": (odd.png()[:-12], r"it ends without its end chunk \(IEND\)"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_that_leaves_all_rows_is_warned_of_and_refused_when_strict(case):
    pytest.importorskip("simplejpeg")
    data, fault = DAMAGED[case]
    if case == "a flipped byte between restarts" and b"\xff\xd0" not in RESTARTS:
        pytest.skip(f"Pillow {PIL.__version__} writes no restarts")
    rows, _, said = read(data)
    assert rows.shape == SMOOTH.shape and len(said) == 1
    assert re.fullmatch(f"'it' is damaged, and read nevertheless: ({fault})", said[0])
    if "flipped" not in case:
        assert np.abs(rows.astype(int) - read(JPEG if data[:1] == b"\xff" else odd.png())[0]).max() <= 1
    with pytest.raises(ValueError, match=rf"cannot read 'it': the file is damaged: ({fault}) \(--strict\)"):
        open_picture(data, name="it", strict=True)


@pytest.mark.parametrize(
    "data",
    [JPEG[: len(JPEG) * 2 // 3], PROGRESSIVE[: len(PROGRESSIVE) // 2], odd.png()[:900], spoilt(odd.png(), b"IDAT")],
    ids=["jpeg", "progressive jpeg", "png", "png checksum"],
)
@pytest.mark.parametrize("strict", [False, True])
def test_a_file_that_misses_rows_is_refused_and_nothing_else_said(data, strict):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="cannot read 'it': the file is (truncated or damaged|damaged: it ends without)"):
            open_picture(data, name="it", strict=strict).read(HEIGHT)


WHOLE = {
    "grey": encode(GREY, "JPEG"),
    "cmyk": encode(PIL.Image.fromarray(SMOOTH).convert("CMYK"), "JPEG"),
    "finest": encode(SMOOTH, "JPEG", quality=100, subsampling=0),
    "4:1:1": encode(SMOOTH, "JPEG", subsampling="4:1:1"),
    "own codes": encode(SMOOTH, "JPEG", optimize=True),
    "odd size": encode(SMOOTH[:33, :17], "JPEG", subsampling="4:2:0", restart_marker_rows=1),
    "progressive": PROGRESSIVE,
    "bytes behind": JPEG + b"\0\0\0\x18ftypmp42" + bytes(3000),
    "padded": JPEG[:-2] + b"\xff\xff" + JPEG[-2:],
    # As phones write it: an end of the spectrum that a sequential scan should have otherwise. libjpeg complains and reads on.
    "spectrum": JPEG[:SCAN] + JPEG[SCAN:].replace(b"\x00\x3f\x00", b"\x00\x00\x00", 1),
}


@pytest.mark.parametrize("case", WHOLE)
def test_nothing_is_said_of_a_whole_jpeg(case):
    said = read(WHOLE[case], strict=True)[2]
    assert said == ([] if case != "cmyk" else ["'it' is in CMYK and becomes sRGB by a common profile"])
    for size in (1, 200, 700):  # of what is looked at of the data
        assert jpeg_scan.fault(WHOLE[case], size) is None


def test_no_file_is_refused_in_the_words_for_another():
    """libvips keeps what its decoders complain of, and hands it out with the next error."""
    read(DAMAGED["bytes before the scan"][0])
    reader = open_picture(odd.png()[:900], name="it")
    read(DAMAGED["bytes before the scan"][0])
    for refuse in (lambda: reader.read(HEIGHT), lambda: open_picture(odd.png()[:40], name="it").read(HEIGHT)):
        with pytest.raises(ValueError, match="truncated or damaged") as refused:
            refuse()
        assert "JPEG" not in str(refused.value).upper()


def test_a_resolution_that_none_can_be_is_none(capfd):
    rows, layout, _ = read(odd.png(odd.chunk(b"pHYs", struct.pack(">IIB", 1 << 30, 1 << 30, 1))))
    assert np.array_equal(rows, SMOOTH) and layout.dpi is None
    written("TIFF", layout, rows)
    assert capfd.readouterr() == ("", "")


def test_what_libvips_says_need_not_be_text(capfd, caplog):
    """Names of a damaged file, for instance."""
    pyvips = vips()
    said = pyvips.ffi.new("char[]", b"chunk \x97")
    pyvips._log_handler_callback(said, 1 << 4, said, pyvips.ffi.NULL)
    assert caplog.messages == ["chunk \ufffd: chunk \ufffd"] and capfd.readouterr() == ("", "")


def test_strict_on_the_command_line(empty_folder, model, adabm):
    Path("a.jpg").write_bytes(JPEG[:-2])
    sentence = f"'a.jpg' is damaged, and read nevertheless: {END_MISSING}"
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        status, out, _ = adabm("upscale", "a.jpg", "--json")
    assert status == 0 and json.loads(out)["warnings"] == [sentence]
    Path("a_x4.png").unlink()
    status, _, err = adabm("upscale", "a.jpg", "--strict")
    assert status == 2 and f"cannot read 'a.jpg': the file is damaged: {END_MISSING} (--strict)" in err
    assert not Path("a_x4.png").exists()
    with pytest.raises(ValueError, match="damaged"):
        upscale_file("a.jpg", "b.png", model, strict=True)


# ---- which picture, which channels

SMALL = {"rows": SMOOTH[::3, ::3], "tags": {254: (4, [1])}}
CFA = {"rows": np.kron(GREY, np.ones((4, 4), np.uint8)), "tags": {254: (4, [0]), 262: (3, [32803])}}


@pytest.mark.parametrize(
    "data",
    [
        odd.tiff(SMALL, {"rows": SMOOTH, "tags": {254: (4, [0])}}),
        odd.tiff({"rows": SMOOTH[::3, ::3], "tags": {255: (3, [2])}}, {"rows": SMOOTH}),
        odd.tiff({**SMALL, "below": [{"rows": SMOOTH}]}),
        odd.tiff({"rows": SMOOTH, "below": [SMALL]}),
        odd.tiff({"rows": SMOOTH}, SMALL),
    ],
    ids=["page before", "page before, old tag", "picture below", "thumbnail below", "thumbnail after"],
)
def test_of_a_tiff_the_full_picture_is_taken(data):
    rows, layout, said = read(data)
    assert np.array_equal(rows, SMOOTH) and not said


def test_raw_pictures_are_refused_and_not_their_thumbnails_taken():
    dng = odd.tiff({**SMALL, "below": [CFA]})
    nef = odd.tiff({**SMALL, "below": [{"rows": SMOOTH, "tags": {254: (4, [1])}}, CFA]})
    linear = odd.tiff({"rows": SMOOTH, "tags": {50706: (1, [1, 4, 0, 0])}})
    cr2 = b"II*\0\x10\0\0\0CR\2\0" + bytes(40)
    cr3 = b"\0\0\0\x18ftypcrx \0\0\0\1crx isom"
    for data in (dng, nef, linear, cr2, cr3):
        with pytest.raises(ValueError, match="cannot read 'it': it is a raw picture of a camera"):
            open_picture(data, name="it")


NIR = GREY[::-1]
CHANNELS = {
    "near infrared": ((SMOOTH, NIR), [0], (0, 1, 2)),
    "grey and another": ((GREY, NIR), [0], (0,)),
    "two others": ((SMOOTH, NIR, NIR), [0, 0], (0, 1, 2)),
    "alpha and another": ((SMOOTH, ALPHA, NIR), [2, 0], (0, 1, 2, 3)),
    "another and alpha": ((SMOOTH, NIR, ALPHA), [0, 2], (0, 1, 2, 4)),
    "alpha": ((SMOOTH, ALPHA), [2], (0, 1, 2, 3)),
}


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("case", CHANNELS)
def test_only_what_a_tiff_calls_alpha_is_alpha(case, depth):
    parts, extra, kept = CHANNELS[case]
    whole = np.dstack(parts) if depth == 8 else np.dstack(parts).astype(np.uint16) * 257
    rows, _, said = read(odd.tiff({"rows": whole, "tags": {338: (3, extra)}}))
    assert np.array_equal(rows, whole[..., kept])
    dropped = whole.shape[2] - len(kept)
    what = {1: "a channel that it does not call alpha", 2: "2 channels that it does not call alpha"}.get(dropped)
    assert said == ([f"'it' has {what}, left out here"] if dropped else [])


def test_colours_that_a_tiff_has_multiplied_by_alpha_are_divided_again():
    multiplied = np.dstack([(SMOOTH * (ALPHA[..., None] / 255.0)).round().astype(np.uint8), ALPHA])
    rows = read(odd.tiff({"rows": multiplied, "tags": {338: (3, [1])}}))[0]
    opaque = ALPHA > 128
    assert np.abs(rows[..., :3].astype(int) - SMOOTH)[opaque].max() <= 2 and np.array_equal(rows[..., 3], ALPHA)


def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque():
    rows, layout, _ = read(odd.bmp_with_alpha(np.zeros_like(ALPHA)))
    assert np.array_equal(rows, SMOOTH) and not layout.alpha
    rows, layout, _ = read(odd.bmp_with_alpha(ALPHA))
    assert np.array_equal(rows, np.dstack([SMOOTH, ALPHA]))


# ---- colours


def test_lab_and_cmyk_become_srgb():
    profiles = (PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.createProfile("LAB"))
    lab = PIL.ImageCms.profileToProfile(PIL.Image.fromarray(SMOOTH), *profiles, outputMode="LAB")
    rows, layout, said = read(encode(lab, "TIFF"))
    assert np.abs(rows.astype(int) - SMOOTH).mean() < 2 and said == ["'it' is in CIE Lab and becomes sRGB"]
    deep = odd.tiff({"rows": np.zeros((4, 4, 3), np.uint16), "tags": {262: (3, [8])}})
    assert read(deep)[1].depth == 16
    cmyk = PIL.Image.merge("CMYK", [PIL.Image.new("L", (16, 16), value) for value in (0, 255, 255, 0)])
    for kind in ("JPEG", "TIFF"):  # of which Pillow's JPEG has its values turned round, as Adobe's have
        rows, layout, said = read(encode(cmyk, kind))
        red, green, blue = rows[8, 8].astype(int)
        assert red > 200 and green < 80 and blue < 80 and layout.icc is None
        assert said == ["'it' is in CMYK and becomes sRGB by a common profile"]


def test_a_cmyk_picture_is_converted_by_its_own_profile():
    import pyvips

    own = pyvips.Image.black(16, 16, bands=3).copy(interpretation="srgb").icc_transform("cmyk").get("icc-profile-data")
    cmyk = PIL.Image.new("CMYK", (16, 16), (20, 200, 100, 0))
    rows, layout, said = read(encode(cmyk, "TIFF", icc_profile=own))
    assert said == ["'it' is in CMYK and becomes sRGB by its own profile"] and layout.icc is None
    assert np.abs(rows[8, 8].astype(int) - read(encode(cmyk, "TIFF"))[0][8, 8]).max() <= 1  # which has the common one


COLOURS = {
    "gAMA": (Colour(gamma=1.0), [(b"gAMA", struct.pack(">I", 100000))]),
    "gAMA cHRM": (
        Colour(gamma=0.45455, chromaticities=ADOBE),
        [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *(round(1e5 * value) for value in ADOBE)))],
    ),
    "sRGB": (Colour(gamma=0.45455, srgb=1), [(b"sRGB", b"\1"), (b"gAMA", struct.pack(">I", 45455))]),
    "cICP": (Colour(cicp=bytes([9, 16, 0, 1])), [(b"cICP", bytes([9, 16, 0, 1]))]),
}


@pytest.mark.parametrize("case", COLOURS)
def test_what_a_png_says_of_its_colours_is_said_again(empty_folder, model, adabm, case):
    colour, expected = COLOURS[case]
    Path("in.png").write_bytes(odd.png(*(odd.chunk(*one) for one in expected)))
    assert read(Path("in.png"))[1].colour == colour
    assert adabm("upscale", "in.png", "-q") == (0, "", "")
    got = odd.chunks(Path("in_x4.png").read_bytes())
    assert [one for one in got if one[0] not in (b"IHDR", b"IDAT", b"IEND")] == expected
    # Another format has a profile instead, where one is needed and can say the same.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        status, out, _ = adabm("upscale", "in.png", "-o", "out.webp", "--json")
    lost = "'out.webp' will show other colours: WebP has no place for what the picture says of them; use .png"
    assert [str(one.message) for one in said] == json.loads(out)["warnings"] == ([lost] if case == "cICP" else [])
    assert status == 0
    assert (read(Path("out.webp"))[1].icc is not None) == (case in ("gAMA", "gAMA cHRM"))


def seen(rgb, icc):
    """A colour as sRGB, through the profile."""
    profile = PIL.ImageCms.ImageCmsProfile(io.BytesIO(icc))
    image = PIL.Image.new("RGB" if len(rgb) == 3 else "L", (1, 1), rgb if len(rgb) == 3 else rgb[0])
    turned = PIL.ImageCms.profileToProfile(image, profile, PIL.ImageCms.createProfile("sRGB"), 1, outputMode="RGB")
    return np.array(turned)[0, 0].astype(int)


def test_profiles_say_what_the_chunks_said():
    def encoded(light):
        return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.abs(light) ** (1 / 2.4) - 0.055)

    linear = Colour(gamma=1.0)
    for grey in (False, True):
        got = seen((100,) if grey else (100, 100, 100), linear.profile(grey))
        assert np.abs(got - encoded(100 / 255)).max() <= 1
    # Adobe RGB's own matrix to linear sRGB.
    matrix = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]])
    colour = np.array([150, 120, 90])
    wide = Colour(gamma=0.45455, chromaticities=ADOBE)
    assert np.abs(seen(tuple(map(int, colour)), wide.profile(False)) - encoded(matrix @ (colour / 255) ** 2.2)).max() <= 2
    assert wide.profile(True) is None  # grey is the same in all of these
    p3 = Colour(cicp=bytes([12, 13, 0, 1]))
    assert p3.named and seen((200, 100, 100), p3.profile(False))[0] > 205
    assert Colour(cicp=bytes([1, 13, 0, 1])).profile(False) is None and Colour(srgb=0, gamma=0.45455).profile(False) is None


def test_a_grey_picture_keeps_the_tones_of_an_rgb_profile(empty_folder, model, adabm):
    steep = Colour(gamma=0.4).profile(False)
    Path("grey.jpg").write_bytes(encode(GREY, "JPEG", icc_profile=steep))
    Path("grey.png").write_bytes(odd.png(odd.chunk(b"iCCP", b"p\0\0" + zlib.compress(steep)), rows=GREY))
    for name in ("grey.jpg", "grey.png"):
        layout = read(Path(name))[1]
        assert layout.grey and profile_kind(layout.icc) == "grey" and layout.icc == grey_profile(steep)
        assert np.abs(seen((100,), layout.icc) - seen((100, 100, 100), steep)).max() <= 1
        assert adabm("upscale", name, "-o", "out.png", "-q") == (0, "", "")
        with PIL.Image.open("out.png") as image:
            assert image.mode == "L" and image.info["icc_profile"] == layout.icc
        # WebP stores grey as RGB.
        assert adabm("upscale", name, "-o", "out.webp", "-q") == (0, "", "")
        icc, said = read(Path("out.webp"))[1].icc, read(Path("out.webp"))[2]
        assert said == [] and np.abs(seen((100, 100, 100), icc) - seen((100,), layout.icc)).max() <= 1


def test_a_grey_profile_without_a_curve_is_missed_in_webp(empty_folder, model, adabm):
    grey = bytearray(Colour(gamma=0.4).profile(True))
    grey[grey.index(b"curv\0")] ^= 1
    layout = Layout(8, 6, 1, icc=bytes(grey))
    with pytest.warns(UserWarning, match="'out.webp' will show other colours"):
        PictureWriter("out.webp", "WebP", layout)


@pytest.mark.parametrize(
    ("icc", "reason"),
    [(Colour(gamma=0.4).profile(True), "is for grey, where its pixels are RGB"), (b"x" * 200, "is none")],
    ids=["grey", "no profile"],
)
def test_a_profile_that_does_not_fit_is_left_out_with_a_word(icc, reason):
    layout, said = read(encode(SMOOTH, "TIFF", icc_profile=icc))[1:]
    assert layout.icc is None and said == [f"'it' has a colour profile that {reason}, and it is left out"]


def test_colours_of_avif_are_kept():
    """A picture in Display P3 of a telephone has no profile, but a box that names it."""
    plain = encode(SMOOTH, "AVIF")
    place = plain.index(b"colrnclx") + 8
    p3 = plain[:place] + struct.pack(">HH", 12, 13) + plain[place + 4 :]
    assert read(plain)[1].colour is None and read(p3)[1].colour == Colour(cicp=bytes([12, 13, 0, 1]))


# ---- what else a file says

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" dc:title="words"/></x:xmpmeta>'


@pytest.mark.parametrize("to", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("start", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_and_xmp_are_carried_over(empty_folder, model, adabm, start, to):
    turned = odd.exif(orientation=6)
    if start == "PNG":
        xmp = odd.chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP)
        Path("in").write_bytes(odd.png(xmp, after=odd.chunk(b"eXIf", turned)))  # behind the pixels, where it may stand
    elif start == "TIFF":
        layout = Layout(WIDTH, HEIGHT, 3, metadata=Metadata(turned, XMP))
        Path("in").write_bytes(written("TIFF", layout, SMOOTH))
    elif start == "JPEG":
        Path("in").write_bytes(odd.jpeg_with_xmp(encode(SMOOTH, "JPEG", exif=b"Exif\0\0" + turned), XMP))
    else:
        Path("in").write_bytes(encode(SMOOTH, start, exif=b"Exif\0\0" + turned, xmp=XMP))
    assert adabm("upscale", "in", "-o", f"out.{to}", "-q") == (0, "", "")
    size = (4 * WIDTH, 4 * HEIGHT) if start == "TIFF" else (4 * HEIGHT, 4 * WIDTH)
    with PIL.Image.open(f"out.{to}") as image:
        assert image.size == size
        exif = image.getexif()
        assert (exif[271].rstrip("\0"), exif[306], exif.get(274, 1)) == ("Maker", "2026:01:02 03:04:05", 1)
        inner = exif.get_ifd(34665)
        assert inner[36867] == "2026:01:02 03:04:05" and inner[37500] == b"the note\0"
        assert (inner[40962], inner[40963]) == size
        assert exif.get_ifd(34853)[2] == (48.0, 8.0, 30.0)
    said = read(Path(f"out.{to}"))[1].metadata
    assert said.xmp.rstrip(b"\0") == XMP.replace(b'"6"', b'"1"')
    assert b"thumbnail" not in Path(f"out.{to}").read_bytes()
    assert adabm("upscale", "in", "-o", f"bare.{to}", "-q", "--metadata", "strip") == (0, "", "")
    assert read(Path(f"bare.{to}"))[1].metadata is None
    with PIL.Image.open(f"bare.{to}") as image:
        assert image.size == size


def test_exif_is_changed_in_place_and_only_where_it_must():
    """A maker's note refers to places in the EXIF it stands in."""
    before = odd.exif(orientation=8)
    after = Metadata(before).upright(77, 66).exif
    assert after.index(b"the note") == before.index(b"the note") and len(after) < len(before)
    differing = [place for place in range(len(after)) if after[place] != before[place]]
    assert len(differing) <= 16
    for broken in (b"", b"no TIFF", before[:9], b"II*\0\xff\xff\xff\xff"):
        assert Metadata(broken).upright(1, 1).exif is None
    assert all(Metadata(before[:size]).upright(4, 4) for size in range(len(before)))


def test_iptc_of_a_jpeg_goes_into_a_jpeg():
    title = b"\x1c\x02\x05\0\x05Title"
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(title)) + title
    rows, layout, _ = read(JPEG[:2] + b"\xff\xed" + struct.pack(">H", 2 + len(block)) + block + JPEG[2:])
    again = {to: written(to, layout, rows) for to in ("JPEG", "TIFF", "PNG")}
    assert [to for to in again if title in again[to]] == ["JPEG"]
    with PIL.Image.open(io.BytesIO(again["JPEG"])) as image:
        assert PIL.IptcImagePlugin.getiptcinfo(image) == {(2, 5): b"Title"}


def test_xmp_of_what_lies_behind_the_picture_is_left_out():
    gain_map = b"<x xmlns:hdrgm='http://ns.adobe.com/hdr-gain-map/1.0/' hdrgm:Version='1.0'/>"
    assert Metadata(xmp=gain_map).upright(1, 1).xmp is None


def test_texts_and_resolution_of_a_png(empty_folder, model, adabm):
    texts = [
        (b"tEXt", b"parameters\0steps: 20"),
        (b"iTXt", b"Title\0\0\0de\0Titel\0gr\xc3\xbcn"),
        (b"zTXt", b"a\0\0" + zlib.compress(b"b")),
    ]
    bomb = (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(5 << 20)))
    Path("in.png").write_bytes(odd.png(*(odd.chunk(*text) for text in (*texts, bomb, (b"zTXt", b"c\0\0rubbish")))))
    assert adabm("upscale", "in.png", "-q") == (0, "", "")
    assert [one for one in odd.chunks(Path("in_x4.png").read_bytes()) if one[0] in (b"tEXt", b"iTXt", b"zTXt")] == texts
    assert adabm("upscale", "in.png", "-q", "--metadata", "strip") == (0, "", "")
    assert [name for name, _ in odd.chunks(Path("in_x4.png").read_bytes())] == [b"IHDR", b"IDAT", b"IEND"]


@pytest.mark.parametrize("dpi", [None, (300.0, 150.0)])
def test_resolution_of_a_jpeg_with_exif(dpi):
    layout = Layout(WIDTH, HEIGHT, 3, dpi=dpi, metadata=Metadata(odd.exif()))
    data = written("JPEG", layout, SMOOTH)
    assert read(data)[1].dpi == dpi
    with PIL.Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[271] == "Maker" and (dpi is None or image.info["dpi"] == dpi)


@pytest.mark.parametrize("rows", [HEIGHT, 8], ids=["whole", "bands"])
def test_a_full_disk_says_so_where_exif_is_put_in(tmp_path, rows):
    class Full:
        def __init__(self, file):
            self.file, self.left = file, 300

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    layout = Layout(WIDTH, HEIGHT, 3, metadata=Metadata(odd.exif()))
    full = pytest.raises(OSError, match="^cannot write '.*a.jpg': No space left on device")
    with full, PictureWriter(tmp_path / "a.jpg", "JPEG", layout) as out:
        out._file = Full(out._file)
        for first in range(0, HEIGHT, rows):
            out.write(SMOOTH[first : first + rows])
    assert not list(tmp_path.iterdir())


def test_python_results_say_what_their_source_said(tmp_path):
    path = tmp_path / "in.jpg"
    path.write_bytes(odd.jpeg_with_xmp(encode(SMOOTH, "JPEG", exif=b"Exif\0\0" + odd.exif()), XMP))
    with PIL.Image.open(path) as image:
        layout = layout_of(image, to_array(image))
        tells_xmp = "xmp" in image.info  # of a JPEG from Pillow 11 on
    for found in (*([layout] if tells_xmp else []), replace(read(path)[1], dpi=layout.dpi)):
        result = from_array(np.zeros((2 * WIDTH, 2 * HEIGHT, 3), np.uint8), found)
        assert result.getexif()[274] == 1 and result.getexif().get_ifd(34665)[40962] == 2 * HEIGHT
        assert b'tiff:Orientation="1"' in result.info["xmp"]
    wide = odd.png(odd.chunk(b"cHRM", struct.pack(">8I", *(round(1e5 * value) for value in ADOBE))))
    with PIL.Image.open(io.BytesIO(wide)) as image:
        layout = layout_of(image, to_array(image))
    assert from_array(SMOOTH, layout).info["icc_profile"] == Colour(chromaticities=ADOBE).profile(False)


def test_metadata_must_be_kept_or_stripped(tmp_path):
    with pytest.raises(ValueError, match="metadata must be 'keep' or 'strip', got 'drop'"):
        upscale_file(tmp_path / "a.png", tmp_path / "b.png", FakeModel(), metadata="drop")


def test_a_png_of_an_app_is_refused_by_name():
    data = odd.png()
    with pytest.raises(ValueError, match=r"it is what Apple's tools make of a PNG in an app \(CgBI\)"):
        open_picture(data[:8] + odd.chunk(b"CgBI", b"\x50\0\x20\2") + data[8:])


def test_missing_packages_are_named_as_they_are_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert missing_package("PNG") is None
    assert missing_package("JPEG XL") == "read where the package pillow-jxl-plugin is installed (pip install pillow-jxl-plugin)"
