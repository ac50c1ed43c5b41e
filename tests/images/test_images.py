"""Files in and out: supported modes arrive as RGB, everything else is refused in a sentence, writes are atomic."""

import errno
import io
import os
import re
import stat
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adabm_kernels import files
from adabm_kernels.images import EXTENSIONS, Layout, PictureWriter, check_output, list_images, open_picture, read_image
from adabm_kernels.images import png as png_file
from adabm_kernels.images.pillow import from_array, to_array
from adabm_kernels.images.reader import read_8_bit

RNG = np.random.default_rng(1)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 255, (5, 7), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(24) * 4, np.arange(40) * 3)[..., None].repeat(3, 2).astype(np.uint8)


def encode(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def write_image(path, rows):
    """uint8 [H, W, C] into a file, in the format of its suffix."""
    height, width, channels = rows.shape
    with PictureWriter(path, EXTENSIONS[path.suffix.lower()], Layout(width, height, channels)) as out:
        out.write(rows)


def png(width, height, depth, colour, rows):
    """A PNG by hand: Pillow writes neither 16-bit colour nor pictures without pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


OTHERS = [encode(PIL.Image.fromarray(SMOOTH), kind) for kind in ("TIFF", "GIF", "WebP", "BMP", "JPEG2000")]
PNG_BYTES = encode(PIL.Image.fromarray(RGB), "PNG")
JPEG_BYTES = encode(PIL.Image.fromarray(SMOOTH), "JPEG", quality=95)


def test_png_round_trip_is_exact(tmp_path):
    write_image(tmp_path / "a.png", RGB)
    got, layout = read_8_bit(str(tmp_path / "a.png"))
    assert np.array_equal(got, RGB) and layout == Layout(7, 5, 3)


@pytest.mark.parametrize("compressor", ["isal", "zlib"])
@pytest.mark.parametrize("width", [1, 2, 1027, 40_000])  # one pixel a row; some rows a block of the filter; less than a row
@pytest.mark.parametrize("channels, depth", [(1, 8), (2, 8), (3, 8), (4, 8), (1, 16), (3, 16), (4, 16)])
def test_png_is_written_by_rows(monkeypatch, width, channels, depth, compressor):
    """Whatever pieces the rows come in, other readers find the picture, its colour profile and its resolution."""
    monkeypatch.setattr(png_file, "deflate", pytest.importorskip("isal.isal_zlib") if compressor == "isal" else zlib)
    srgb = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    icc = None if channels < 3 else srgb  # which grey pictures must not have
    layout = Layout(width, 67, channels, depth, icc, (300.0, 150.0))
    rows = np.random.default_rng(width).integers(0, 2**depth, (67, width, channels), layout.dtype)
    rows[20:50] //= 7
    stream = png_file.PngStream(layout)
    pieces = [chunk for first, last in ((0, 1), (1, 40), (40, 67)) for chunk in stream.rows(rows[first:last])]
    data = b"".join([stream.start(), *pieces, stream.end()])
    reader = open_picture(data)
    assert reader.layout.icc == icc and reader.layout.dpi == pytest.approx((300, 150), abs=0.02)
    assert np.array_equal(reader.read(67), rows)
    if depth == 8:
        assert np.array_equal(np.array(PIL.Image.open(io.BytesIO(data))).reshape(rows.shape), rows)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_is_written_as_jpeg_and_close(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_image(path, SMOOTH)
    with PIL.Image.open(path) as image:
        assert image.format == "JPEG"
    assert np.abs(read_image(path).astype(int) - SMOOTH).max() <= 4


def test_format_is_told_by_content_not_by_suffix(tmp_path):
    (tmp_path / "really_a_jpeg.png").write_bytes(JPEG_BYTES)
    assert read_image(tmp_path / "really_a_jpeg.png").shape == SMOOTH.shape


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb_and_comes_back_in_its_kind(tmp_path, mode):
    source = PIL.Image.fromarray(np.dstack([RGB, ALPHA]) if "A" in mode else RGB).convert(mode)
    source.save(tmp_path / "in.png")
    got, layout = read_8_bit(tmp_path / "in.png")
    assert np.array_equal(read_image(tmp_path / "in.png"), np.array(source.convert("RGB")))
    assert layout.grey == (mode in ("1", "L", "LA"))
    assert layout.alpha == (mode in ("LA", "RGBA"))
    write_image(tmp_path / "out.png", got)
    with PIL.Image.open(tmp_path / "out.png") as back:
        assert back.mode == {"1": "L", "P": "RGB"}.get(mode, mode)
        assert np.array_equal(np.array(back.convert("RGBA")), np.array(source.convert("RGBA")))


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_transparent_colour_key_becomes_alpha(tmp_path, mode):
    source = PIL.Image.fromarray(RGB).convert(mode)
    pixel = source.getpixel((2, 1))
    source.save(tmp_path / "key.png", transparency=pixel)
    got, layout = read_8_bit(tmp_path / "key.png")
    assert layout.alpha and got[1, 2, -1] == 0
    same = (np.array(source) == pixel).reshape(5, 7, -1).all(-1)
    assert np.array_equal(got[..., -1] == 0, same)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), upright(RGB))


FORMATS = ("PNG", "JPEG", "WebP", "TIFF", "BMP")


def written(format, layout, tile=None):
    """The bytes of a black picture, written whole or in bands."""
    out, rows = io.BytesIO(), np.zeros((layout.height, layout.width, layout.channels), layout.dtype)
    with PictureWriter(out, format, layout) as writer:
        for first in range(0, layout.height, tile or layout.height):
            writer.write(rows[first : first + (tile or layout.height)])
    return out.getvalue()


@pytest.mark.parametrize("tile", [None, 2], ids=["whole", "bands"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dpi", [None, (25.4, 25.4), (72.0, 72.0), (300.0, 150.0)], ids=str)
def test_resolution_is_that_of_the_layout(format, dpi, tile):
    got = open_picture(written(format, Layout(7, 5, 3, dpi=dpi), tile)).layout.dpi
    if dpi is None and format == "TIFF":
        dpi = (72.0, 72.0)
    if dpi is None or format == "WebP":
        assert got is None
    else:
        assert got == pytest.approx(dpi, abs=0.02)


@pytest.mark.parametrize("format", FORMATS)
def test_resolution_that_a_file_of_another_program_says(tmp_path, format):
    path = tmp_path / "a"
    options = {"dpi": (0, 0)} if format == "BMP" else {}
    PIL.Image.fromarray(SMOOTH).save(path, format, **options)
    assert open_picture(path).layout.dpi is None and open_picture(path.read_bytes()).layout.dpi is None
    if format != "WebP":
        PIL.Image.fromarray(SMOOTH).save(path, format, dpi=(72, 36))
        assert open_picture(path).layout.dpi == pytest.approx((72, 36), abs=0.02)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_resolution_turns_with_the_picture(tmp_path, format, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(SMOOTH).save(tmp_path / "a", format, exif=exif, dpi=(300, 150))
    layout = open_picture(tmp_path / "a").layout
    upright, size = ((150, 300), (24, 40)) if orientation > 4 else ((300, 150), (40, 24))
    assert (layout.width, layout.height) == size and layout.dpi == pytest.approx(upright, abs=0.02)


def test_broken_exif_does_not_spoil_a_good_picture(tmp_path):
    PIL.Image.fromarray(SMOOTH).save(tmp_path / "a.jpg", exif=b"Exif\0\0this is not TIFF")
    assert read_image(tmp_path / "a.jpg").shape == SMOOTH.shape


def test_of_several_pictures_it_is_the_first_and_says_so(tmp_path):
    path, first = tmp_path / "pages.tif", PIL.Image.fromarray(RGB)
    first.save(path, save_all=True, append_images=[PIL.Image.fromarray(255 - RGB)])
    reader = open_picture(path)
    with pytest.warns(UserWarning, match=f"'{path}' holds 2 pictures, of which only the first is read") as said:
        rows = np.concatenate([reader.read(2), reader.read(9)])
    assert np.array_equal(rows, RGB) and len(said) == 1


def test_one_pixel(tmp_path):
    write_image(tmp_path / "a.png", RGB[:1, :1])
    assert np.array_equal(read_image(tmp_path / "a.png"), RGB[:1, :1])


UNREADABLE = {
    "empty": (b"", r"the file is empty \(0 bytes\)"),
    "text": (b"just some words, no picture", "it is no PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF"),
    "photoshop": (b"8BPS and so on", "it is a Photoshop document, and read are PNG, JPEG"),
    "png-signature": (PNG_BYTES[:8], "header is truncated or damaged"),
    "png-header": (PNG_BYTES[:30], "truncated or damaged"),
    "png-half": (PNG_BYTES[: len(PNG_BYTES) // 2], "truncated or damaged"),
    "png-bit": (PNG_BYTES[:60] + bytes([PNG_BYTES[60] ^ 1]) + PNG_BYTES[61:], "truncated or damaged"),
    "jpeg-header": (JPEG_BYTES[:100], "truncated or damaged"),
    "jpeg-half": (JPEG_BYTES[: len(JPEG_BYTES) // 2], "truncated or damaged"),
    "no-columns": (png(0, 5, 8, 2, b""), "at least one pixel, its size is 0x5"),
    "no-rows": (png(5, 0, 8, 2, b""), "at least one pixel, its size is 5x0"),
    "grey16": (encode(PIL.Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), "PNG"), "16 bits per channel"),
    "rgb16": (png(2, 1, 16, 2, bytes(13)), "16 bits per channel and only 8 are supported"),
    "bomb": (png(60000, 60000, 8, 2, b""), "3600000000 pixels"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_content_is_a_value_error_naming_the_file(tmp_path, case):
    data, message = UNREADABLE[case]
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"cannot read '{re.escape(str(path))}': .*{message}"):
        read_image(path)


def bmp(width, height, core=False):
    """The header of a BMP file by hand, and no pixels."""
    size = struct.pack("<IHHHH" if core else "<IiiHH", 12 if core else 40, width, height, 1, 24)
    info = size if core else size + bytes(24)
    return struct.pack("<2sIHHI", b"BM", 14 + len(info), 0, 0, 14 + len(info)) + info


@pytest.mark.filterwarnings("error")
def test_the_limit_of_pixels_holds_for_bmp():
    """Told from the header, and not that of Pillow, which warns and refuses on its own."""
    for header, pixels in ((bmp(13400, 13400), 179_560_000), (bmp(100, -60), 6000), (bmp(100, 60, core=True), 6000)):
        with pytest.raises(ValueError, match=f"= {pixels} pixels, more than the limit of {pixels - 1}"):
            open_picture(header, max_pixels=pixels - 1)
        with pytest.raises(ValueError, match="the file is truncated or damaged"):  # it has no pixels
            open_picture(header, max_pixels=pixels)
    with pytest.raises(ValueError, match="the file is truncated or damaged"):
        open_picture(bmp(100, 60)[:20])
    with pytest.raises(ValueError, match="at least one pixel, its size is 0x60"):
        open_picture(bmp(0, 60))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_of_every_mode(mode):
    source = PIL.Image.fromarray(RGB).convert(mode)
    reader = open_picture(encode(source, "BMP"))
    got = reader.read(5)
    assert np.array_equal(got if got.shape[2] == 3 else got.repeat(3, 2), np.array(source.convert("RGB")))


def test_missing_file_and_folder_are_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="cannot read '.*absent.png': No such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(IsADirectoryError, match="cannot read"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore:.* is damaged")
@settings(max_examples=150)
@given(data=st.data(), source=st.sampled_from([PNG_BYTES, JPEG_BYTES, *OTHERS]))
def test_no_damage_escapes_as_another_error(tmp_path_factory, data, source):
    """Cut or overwritten anywhere, a file is read or refused with a ValueError: no other exception from a decoder."""
    damaged = bytearray(source[: data.draw(st.integers(0, len(source)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "a.png"
    path.write_bytes(damaged)
    try:
        got = read_image(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert got.size


@pytest.mark.filterwarnings("ignore:.* is damaged")
@pytest.mark.parametrize("source", [PNG_BYTES, JPEG_BYTES], ids=["png", "jpeg"])
def test_a_cut_file_never_gives_another_picture(tmp_path, source):
    (tmp_path / "whole").write_bytes(source)
    whole = read_image(tmp_path / "whole")
    read = 0
    for length in range(len(source)):
        (tmp_path / "cut").write_bytes(source[:length])
        try:
            got = read_image(tmp_path / "cut")
        except ValueError:
            continue
        read += 1
        assert np.array_equal(got, whole), length
    # All pixels are there when only the end chunk (12 bytes) and the two checksums before it (4 each) are cut.
    assert read <= 20


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_to_array_refuses_deep_modes(mode):
    with pytest.raises(ValueError, match=f"mode {mode} has more than 8 bits"):
        to_array(PIL.Image.new(mode, (2, 2)))


def jpeg_2000(bits):
    """RGB whose code stream says that its blue has so many bits."""
    out = io.BytesIO()
    PIL.Image.new("RGB", (8, 6)).save(out, "JPEG2000")
    data = bytearray(out.getvalue())
    data[data.index(b"\xff\x4f\xff\x51") + 42 + 6] = bits - 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"P6\n1 1\n65535\n" + bytes(6), "16 bits per channel, and of PNM 8"),
        (b"P5 # of\n# a scanner\n1 1 1023\n" + bytes(2), "10 bits per channel, and of PNM 8"),
        (b"P3 1 1 256 0 0 256", "9 bits per channel, and of PNM 8"),
        (jpeg_2000(12), "12 bits per channel, and of JPEG 2000 8"),
    ],
    ids=["P6", "P5", "P3", "JPEG 2000"],
)
def test_more_bits_than_are_read_are_refused(data, words):
    with pytest.raises(ValueError, match=f"it has {words} are read; make it a PNG or TIFF file first"):
        open_picture(data)


@pytest.mark.parametrize("data", [b"P6 1 1 255\n" + bytes(3), b"P5 1 1 100\n" + bytes(1), b"P4 9 1\n" + bytes(2), jpeg_2000(8)])
def test_so_many_bits_as_are_read(data):
    assert open_picture(data).layout.depth == 8


def test_to_array_refuses_other_colour_spaces_and_nothing():
    with pytest.raises(ValueError, match="mode LAB is not supported"):
        to_array(PIL.Image.new("LAB", (2, 2)))
    with pytest.raises(ValueError, match="at least one pixel, its size is 0x3"):
        to_array(PIL.Image.new("RGB", (0, 3)))


def test_from_array_modes():
    modes = [from_array(np.zeros((5, 7, channels), np.uint8)).mode for channels in (1, 2, 3, 4)]
    assert modes == ["L", "LA", "RGB", "RGBA"]


def test_output_is_checked_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"suffix must be one of .png, .jpg, .jpeg, .jpe, .jfif, .webp, .tif, .tiff, .bmp, got"):
        check_output(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="suffix must be one of"):
        check_output(tmp_path / "no_suffix")
    with pytest.raises(FileNotFoundError, match="the folder '.*absent' does not exist"):
        check_output(tmp_path / "absent" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        check_output(tmp_path / "folder.png")
    # Asked of the system, not tried: the superuser may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="is not writable"):
        check_output(tmp_path / "a.png")


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    for write in (check_output, lambda path: write_image(path, RGB), lambda path: files.write_file(path, b"words")):
        with pytest.raises(OSError, match=f"^cannot write '{re.escape(str(pipe))}': it is a device or a pipe"):
            write(pipe)
        assert pipe.is_fifo() and [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("there", [False, True])
def test_of_a_link_the_file_is_replaced_that_it_points_to(tmp_path, there):
    (tmp_path / "disk").mkdir()
    target, link, relative = tmp_path / "disk" / "real.png", tmp_path / "link.png", tmp_path / "again.png"
    link.symlink_to(target)
    relative.symlink_to("link.png")
    if there:
        target.write_bytes(b"before")
    for path in (link, relative):
        with pytest.raises(RuntimeError, match="stop"), files.PartialFile(path) as partial:
            partial.file.write(b"half")
            raise RuntimeError("stop")
        assert target.exists() == there and (not there or target.read_bytes() == b"before")
        check_output(path)
        write_image(path, RGB)
        assert np.array_equal(read_image(target), RGB) and not target.is_symlink()
        target.write_bytes(b"before")
        files.write_file(path, b"words")
        assert target.read_bytes() == b"words"
        if there:
            target.write_bytes(b"before")
        else:
            target.unlink()
    assert link.is_symlink() and os.readlink(relative) == "link.png"
    assert sorted(path.name for path in tmp_path.rglob("*") if path != target) == ["again.png", "disk", "link.png"]


def test_links_that_lead_nowhere_are_named(tmp_path):
    circle, absent = tmp_path / "circle.png", tmp_path / "absent.png"
    circle.symlink_to("circle.png")
    absent.symlink_to(tmp_path / "gone" / "a.png")
    for path, message in ((circle, "Too many levels of symbolic links"), (absent, "No such file or directory")):
        with pytest.raises(OSError, match=f"^cannot write '{re.escape(str(path))}': {message}"):
            files.write_file(path, b"words")
    with pytest.raises(FileNotFoundError, match="absent.png': the folder '.*gone' does not exist"):
        check_output(absent)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        check_output(circle)
    pipe = tmp_path / "pipe.png"
    os.mkfifo(tmp_path / "fifo")
    pipe.symlink_to("fifo")
    with pytest.raises(OSError, match="it is a device or a pipe"):
        check_output(pipe)
    assert circle.is_symlink() and absent.is_symlink() and not (tmp_path / "gone").exists()


def test_jpeg_takes_an_opaque_alpha_and_refuses_a_transparent_one(tmp_path):
    write_image(tmp_path / "a.jpg", np.dstack([RGB, np.full_like(ALPHA, 255)]))
    with PIL.Image.open(tmp_path / "a.jpg") as image:
        assert image.mode == "RGB"
    with pytest.raises(ValueError, match="use .png"):
        write_image(tmp_path / "b.jpg", np.dstack([RGB, ALPHA]))
    assert not (tmp_path / "b.jpg").exists()


def test_jpeg_refuses_sides_it_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="at most 65500 pixels a side, got 65536x1"):
        write_image(tmp_path / "a.jpg", np.zeros((1, 65536, 3), np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("where", ["open", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure, where):
    write_image(tmp_path / "a.png", RGB)
    before = (tmp_path / "a.png").read_bytes()

    def fail(*_):
        raise failure

    if where == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        real = open

        def open_half(path, mode):
            file = real(path, mode)
            file.write(b"half")
            file.flush()
            monkeypatch.setattr(files, "open", real, raising=False)
            fail()

        monkeypatch.setattr(files, "open", open_half, raising=False)
    with pytest.raises(type(failure)) as caught:
        write_image(tmp_path / "a.png", 255 - RGB)
    if isinstance(failure, OSError):
        assert str(caught.value) == f"cannot write '{tmp_path / 'a.png'}': No space left on device"
    assert (tmp_path / "a.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_written_files_have_the_permissions_of_the_umask(tmp_path):
    (tmp_path / "plain").touch()
    write_image(tmp_path / "a.png", RGB)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_pictures_of_a_folder_by_name(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b.PNG", "c.jpg"]


def test_folders_without_the_right_pictures(tmp_path):
    (tmp_path / "HR").mkdir()
    with pytest.raises(
        ValueError, match=r"--data must hold at least one PNG or JPEG picture, got none in '.*' \(did you mean '.*HR'\?\)"
    ):
        list_images(tmp_path, "--data")
    with pytest.raises(ValueError, match="got none in '.*HR'$"):
        list_images(tmp_path / "HR")
    (tmp_path / "a.png").touch()
    (tmp_path / "b.tif").touch()
    with pytest.raises(
        ValueError, match="folder must hold PNG or JPEG pictures only, and '.*' has 1 of another format, such as 'b.tif'"
    ):
        list_images(tmp_path)
    with pytest.raises(ValueError, match="folder must be a folder of pictures, got '.*', which is a file"):
        list_images(tmp_path / "a.png")
    with pytest.raises(ValueError, match="folder must be a folder of pictures, got '.*', which does not exist"):
        list_images(tmp_path / "absent")
