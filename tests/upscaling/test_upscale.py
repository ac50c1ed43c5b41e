"""`upscale` gives back the kind of picture it was given, and refuses what it cannot take before it loads a model."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from fake_model import FakeModel

from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.images import Layout, PictureWriter
from adabm_kernels.models import builtin_models, load_model
from adabm_kernels.networks.edsr import EDSR, EDSRSpec
from adabm_kernels.upscale import upscale, upscale_file, upscale_many

MODELS = sys.modules["adabm_kernels.models"]
PACKAGE = Path(MODELS.__file__).parent
RNG = np.random.default_rng(2)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
LARGE = RGB.repeat(4, 0).repeat(4, 1)

needs_builtin = pytest.mark.skipif(
    not (MODELS._ASSETS / "edsr_x4_w4a4.safetensors").is_file(), reason="the built-in model's file is not there"
)


def test_array():
    model = FakeModel()
    got = upscale(RGB, model)
    assert got.dtype == np.uint8 and np.array_equal(got, LARGE)
    assert model.seen[0].dtype == torch.float32 and model.seen[0].shape == (1, 3, 5, 7)
    assert model.seen[0].is_contiguous()
    assert model.settings == {}


@pytest.mark.filterwarnings("error")
def test_array_of_any_strides_even_read_only():
    source = RGB[::-1, ::2]
    source.setflags(write=False)
    assert np.array_equal(upscale(source, FakeModel()), source.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("kind", [str, Path])
def test_path_gives_a_pillow_image(tmp_path, kind):
    PIL.Image.fromarray(RGB).save(tmp_path / "a.png")
    got = upscale(kind(tmp_path / "a.png"), FakeModel())
    assert isinstance(got, PIL.Image.Image) and got.mode == "RGB" and np.array_equal(np.array(got), LARGE)


@pytest.mark.parametrize("opened", [False, True], ids=["path", "image"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_profile_and_resolution_stay_with_the_picture(tmp_path, opened, orientation):
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=profile, dpi=(300, 150), exif=exif)
    got = upscale(PIL.Image.open(tmp_path / "a.png") if opened else tmp_path / "a.png", FakeModel())
    assert got.info["icc_profile"] == profile
    assert got.info["dpi"] == pytest.approx((300, 150) if orientation == 1 else (150, 300), abs=0.02)
    got.save(tmp_path / "large.png")
    with PIL.Image.open(tmp_path / "large.png") as large:
        assert large.info["icc_profile"] == profile
    PIL.Image.fromarray(RGB).save(tmp_path / "b.png")
    assert upscale(PIL.Image.open(tmp_path / "b.png") if opened else tmp_path / "b.png", FakeModel()).info == {}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pillow_image_of_every_mode(mode):
    source = PIL.Image.fromarray(RGB).convert(mode)
    got = upscale(source, FakeModel())
    assert got.size == (28, 20)
    assert got.mode == {"1": "L", "P": "RGB"}.get(mode, mode)
    grey = mode in ("1", "L", "LA")
    assert np.array_equal(
        np.array(got.convert("L" if grey else "RGB")),
        np.array(source.convert("L" if grey else "RGB")).repeat(4, 0).repeat(4, 1),
    )


def test_transparency_goes_through_the_network_too():
    alpha = RNG.integers(1, 256, (5, 7), dtype=np.uint8)
    alpha[0, :2] = 0
    got = np.array(upscale(PIL.Image.fromarray(np.dstack([RGB, alpha])), FakeModel()))
    assert np.array_equal(got[..., 3], alpha.repeat(4, 0).repeat(4, 1))
    # Colours come back from being multiplied and divided; what cannot be seen has none.
    assert np.array_equal(got[..., :3], np.where(got[..., 3:] > 0, LARGE, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_tensor_keeps_rank_and_dtype(dtype, batch):
    x = (torch.rand(3, 5, 7) if batch is None else torch.rand(batch, 3, 5, 7)).mul(255).to(dtype)
    got = upscale(x, FakeModel())
    assert got.dtype == dtype and not got.requires_grad
    assert torch.equal(got, x.repeat_interleave(4, -2).repeat_interleave(4, -1))


@pytest.mark.parametrize("settings", [{}, {"tile": 16}, {"scale": 8}], ids=str)
def test_a_tensor_in_main_memory_is_computed_where_the_model_is(settings):
    class There(FakeModel):
        def __init__(self):
            super().__init__()
            self.register_buffer("place", torch.zeros(1))

    x = torch.rand(2, 3, 32, 48) * 255
    want, model = upscale(x, FakeModel(), **settings), There()
    with Elsewhere():
        model.to(DEVICE)
        got = upscale(x, model, **settings)
    assert {seen.device for seen in model.seen} == {DEVICE}
    assert got.device.type == "cpu" and type(got) is torch.Tensor and torch.equal(got, want)


@pytest.mark.parametrize(("settings", "windows"), [({}, 1), ({"tile": 16}, 6), ({"tile": 16, "scale": 8}, 6 + 96)], ids=str)
def test_progress_of_tensors_counts_the_windows_of_all_images_and_passes(settings, windows):
    told = []
    upscale(torch.rand(2, 3, 32, 48) * 255, FakeModel(), progress=lambda *now: told.append(now), **settings)
    counts = [done for done, _, _ in told]
    assert counts == sorted(set(counts)) and counts[-1] == 2 * windows
    assert {now[1:] for now in told} == {(2 * windows, "upscaling")}


def test_memory_of_tensors_is_not_bounded():
    x, message = torch.zeros(3, 5, 7), "max_memory must be left out for tensors, which are held whole, got 1024"
    with pytest.raises(ValueError, match=message):
        upscale(x, FakeModel(), max_memory=1024)
    with pytest.raises(ValueError, match=message):
        next(upscale_many([x], FakeModel(), max_memory=1024))


def test_results_are_clamped_and_rounded():
    class Shifted(FakeModel):
        def forward(self, x, offset=None):
            return super().forward(x) * 3 - 300.4

    x = torch.tensor([0.0, 128.0, 255.0]).view(3, 1, 1).expand(3, 2, 2)
    got = upscale(x, Shifted())
    assert got[:, 0, 0].tolist() == pytest.approx([0, 83.6, 255])
    array = upscale(x.permute(1, 2, 0).to(torch.uint8).numpy(), Shifted(), smooth="network")
    assert array[0, 0].tolist() == [0, 84, 255]


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'widht' \(did you mean 'width'\?\)"):
        upscale(RGB, widht=100)
    with pytest.raises(TypeError, match="unexpected keyword argument 'zzz'$"):
        next(upscale_many([RGB], zzz=1))


def test_settings_are_set_when_given():
    model = FakeModel()
    upscale(RGB, model, bits=6, depth="full", backend="reference", threads=2)
    assert model.settings == {"bits": 6, "depth": "full", "backend": "reference", "threads": 2}
    upscale(RGB, model, bits="auto")
    assert model.settings["bits"] == "auto"


@pytest.mark.parametrize("bits", [1, 9, 0, -4, "4", "none", True, 4.5])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="bits must be 'auto' or an integer from 2 to 8, got"):
        upscale(RGB, FakeModel(), bits=bits)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_out_of_range(threads):
    with pytest.raises(ValueError, match="threads must be an integer of at least 1, got"):
        upscale(RGB, FakeModel(), threads=threads)


@pytest.mark.parametrize("quality", [0, 101, 95.0, "x", True, None])
def test_quality_out_of_range(tmp_path, quality):
    message = f"quality must be an integer from 1 to 100, got {quality!r}"
    with pytest.raises(ValueError, match=message):
        upscale_file("absent.png", tmp_path / "a.jpg", "no such model", quality=quality)
    with pytest.raises(ValueError, match=message):
        PictureWriter(tmp_path / "a.jpg", "JPEG", Layout(1, 1, 3), quality=quality)


@pytest.mark.parametrize("max_pixels", [0, -1, "x", 1e6, True])
def test_max_pixels_out_of_range(tmp_path, max_pixels):
    with pytest.raises(ValueError, match=re.escape(f"max_pixels must be an integer of at least 1, got {max_pixels!r}")):
        upscale_file("absent.png", tmp_path / "a.jpg", "no such model", max_pixels=max_pixels)


def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(RuntimeError, match="no nvcc at install"):
        upscale(RGB, FakeModel(backend_reason="cuda: library not built: no nvcc at install"), backend="cuda")


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (None, TypeError, "image must be a path, a Pillow image, a NumPy array or a torch tensor, got NoneType"),
        ([[1]], TypeError, "got list"),
        (RGB[0, :, 0], ValueError, r"image must be uint8 or uint16 \[H, W\] or .* got uint8 \[7\]"),
        (np.zeros((2, 2, 5), np.uint8), ValueError, r"got uint8 \[2, 2, 5\]"),
        (RGB.astype(np.float32), ValueError, r"got float32 \[5, 7, 3\]"),
        (RGB[:0], ValueError, r"at least one pixel, got uint8 \[0, 7, 3\]"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, "must be a floating tensor .*, got torch.uint8"),
        (torch.zeros(4, 4), ValueError, r"got shape \[4, 4\]"),
        (torch.zeros(1, 4, 4, 4), ValueError, r"got shape \[1, 4, 4, 4\]"),
        (torch.zeros(3, 0, 4), ValueError, r"not empty, got shape \[3, 0, 4\]"),
        (torch.full((3, 4, 4), torch.nan), ValueError, "image must be finite"),
        (torch.full((3, 4, 4), torch.inf), ValueError, "image must be finite"),
        (PIL.Image.new("CMYK", (2, 2)), ValueError, "image: mode CMYK is not supported"),
        (PIL.Image.new("I;16", (2, 2)), ValueError, "image: mode I;16 has more than 8 bits"),
        (PIL.Image.new("RGB", (0, 2)), ValueError, "image: it must have at least one pixel"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__),
)
def test_other_input_is_refused_before_a_model_is_loaded(image, error, message):
    with pytest.raises(error, match=message):
        upscale(image, "no such model")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="cannot read '.*absent.png': No such file"):
        upscale(tmp_path / "absent.png", FakeModel())


def test_missing_model_names_the_built_in_ones(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="built-in model .* or an existing file, got 'no_such_model'"):
        upscale(RGB, "no_such_model")
    (tmp_path / "b.safetensors").touch()
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "sample.png").touch()
    monkeypatch.setattr(MODELS, "_ASSETS", tmp_path)
    assert builtin_models() == {"a": tmp_path / "a.safetensors", "b": tmp_path / "b.safetensors"}
    with pytest.raises(FileNotFoundError, match=r"built-in model \(a, b\)"):
        load_model("c")
    with pytest.raises(FileNotFoundError, match="existing file"):
        load_model(tmp_path)


def test_a_misspelt_model_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "mine_x4.safetensors").touch()
    near = {"EDSR_x4_w6a": "edsr_x4_w6a6", str(tmp_path / "mine_x.safetensors"): str(tmp_path / "mine_x4.safetensors")}
    for name, meant in near.items():
        with pytest.raises(FileNotFoundError, match=re.escape(f"got '{name}' (did you mean '{meant}'?)")):
            load_model(name)
    with pytest.raises(FileNotFoundError, match="got 'something else'$"):
        load_model("something else")


def test_a_tensor_in_another_unit_is_warned_of():
    with pytest.warns(UserWarning, match=r"image holds 0.1..0.9 only, where 0..255 is expected: multiply it by 255"):
        upscale(torch.full((3, 4, 4), 0.1).index_fill(2, torch.tensor([1]), 0.9), FakeModel())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pixels in (torch.zeros(3, 4, 4), torch.ones(3, 4, 4), torch.full((3, 4, 4), 1.5)):  # nearly black
            upscale(pixels, FakeModel())


def test_model_of_another_type():
    with pytest.raises(TypeError, match="model must be a built-in name, a path or a module .* got int"):
        upscale(RGB, 4)


def test_a_float_network_is_not_a_converted_one():
    with pytest.raises(TypeError, match="model must be a converted one, a module from load or convert_model, got EDSR"):
        upscale(RGB, EDSR(EDSRSpec(2, 1, 4)))


def test_many_pictures_are_not_the_letters_of_one_path(tmp_path):
    for path in ("photo.png", tmp_path):
        with pytest.raises(TypeError, match=f"images must be an iterable of pictures or their paths, got one path, '{path}'"):
            next(upscale_many(path, FakeModel()))


def test_importing_upscale_is_light():
    """The package imports this module eagerly, so nothing heavy may come with it."""
    code = "import adabm_kernels.upscale, sys; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "set()"


def test_public_names_stay_functions_whatever_is_imported():
    """Importing the modules `upscale` and `backends` must not put them in the place of the functions of that name."""
    code = (
        "import adabm_kernels, adabm_kernels.upscale, adabm_kernels.backends.reference, adabm_kernels.cli\n"
        "for _ in range(2): print(*(n for n in adabm_kernels.__all__ if not callable(getattr(adabm_kernels, n))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.split() == []


@needs_builtin
def test_builtin_models_upscale_the_sample():
    assert {"edsr_x4_w4a4", "edsr_x4_w6a6"} <= builtin_models().keys()
    sample = MODELS._ASSETS / "sample.png"
    with PIL.Image.open(sample) as image:
        small = image.convert("RGB")
    large = upscale(sample)
    assert large.size == (small.width * 4, small.height * 4)
    # A picture of the same scene: shrunk again it is the input, which noise, a wrong colour order or a shift is not.
    back = imresize(np.array(large), 0.25).astype(float)
    assert np.sqrt(((back - np.array(small)) ** 2).mean()) < 4


@needs_builtin
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 20), (33, 17)], ids=str)
def test_builtin_model_takes_every_size(size):
    rgb = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    assert upscale(rgb).shape == (size[0] * 4, size[1] * 4, 3)


@needs_builtin
def test_fixed_bits_change_the_result():
    model = load_model("edsr_x4_w4a4")
    crop = np.array(PIL.Image.open(MODELS._ASSETS / "sample.png").convert("RGB"))[:48, :48]
    results = [upscale(crop, model, bits=bits) for bits in (2, 8)]
    assert not np.array_equal(*results)


def test_the_examples_run(tmp_path, monkeypatch):
    """Those of the README and of docs/images.md, on a small network and a few pictures of its own, in an empty folder."""
    pages = [Path(__file__).parents[2] / page for page in ("README.md", "docs/images.md")]
    example = "".join(text for page in pages for text in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(EDSR(EDSRSpec(scale=4, blocks=2, channels=8)).state_dict(), "my_edsr_x4.pt")
    Path("photos").mkdir()
    for i in range(4):
        smooth = imresize(RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8), 8)
        PIL.Image.fromarray(smooth).save(f"photos/{i}.png")
    PIL.Image.fromarray(smooth[:20, :30]).save("photo.jpg")
    PIL.Image.fromarray(smooth).save("photo.png")
    subprocess.run([sys.executable, "-c", example], check=True, env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)})
    for name, size in {"photo_x4.png": (192, 192), "photo_x4.tif": (192, 192), "bits.png": (168, 76)}.items():
        with PIL.Image.open(name) as image:
            assert image.size == size
