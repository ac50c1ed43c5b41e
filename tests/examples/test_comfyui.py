"""The nodes for ComfyUI, against a stand-in of its documented interface: no registry has ComfyUI itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from comfyui_host import Host, InterruptProcessingException
from pages import EXAMPLES, beside
from small import one_thread  # noqa: F401

import adabm_kernels
from adabm_kernels.models import _ASSETS

pytestmark = beside


@pytest.fixture
def comfyui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    (tmp_path / "models" / "adabm").mkdir(parents=True)
    return Host(monkeypatch, tmp_path, EXAMPLES / "comfyui_adabm.py")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """The model that the loader gives by default, for nodes that have it as an input."""
    return adabm_kernels.load("edsr_x4_w4a4")


def sample(*box: int) -> np.ndarray:
    with PIL.Image.open(_ASSETS / "sample.png") as image:
        return np.asarray(image.convert("RGB").crop(box))


def as_image(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures).astype(np.float32) / 255)


def test_images_are_those_of_upscale(comfyui: Host) -> None:
    pictures = sample(0, 0, 32, 24), sample(96, 96, 128, 120)
    (model,) = comfyui.run("AdaBMModelLoader")
    image, mask, mean_bits = comfyui.run("AdaBMUpscale", model=model, image=as_image(*pictures))
    assert image.shape == (2, 96, 128, 3) and mask.shape == (2, 96, 128) and not mask.any()
    assert comfyui.bar == [0.5, 1.0]
    windows: list[adabm_kernels.Patch] = []
    for got, picture in zip(image, pictures, strict=True):
        want = adabm_kernels.upscale(picture.astype(np.uint16) * 257, "edsr_x4_w4a4", record=windows)
        assert np.array_equal((got * 65535).round().numpy(), want)
    assert mean_bits == pytest.approx(np.mean([window.mean_bits for window in windows]))

    six, _, bits = comfyui.run("AdaBMUpscale", model=model, image=as_image(*pictures), bits="6", scale=1.5)
    assert six.shape == (2, 36, 48, 3) and bits == 6
    assert comfyui.run("AdaBMUpscale", model=model, image=as_image(*pictures))[0].equal(image)  # no setting stays


def test_masks_go_with_their_images(comfyui: Host, model: torch.nn.Module) -> None:
    image = as_image(sample(0, 0, 32, 24), sample(32, 0, 64, 24))
    half = torch.zeros(2, 24, 32)
    half[1, :, 16:] = 1
    large, mask, _ = comfyui.run("AdaBMUpscale", model=model, image=image, mask=half)
    assert large.equal(comfyui.run("AdaBMUpscale", model=model, image=image)[0])  # a mask leaves the colours alone
    assert not mask[0].any() and mask[1, :, :48].max() < 0.02 and mask[1, :, 80:].min() > 0.98
    empty = comfyui.run("AdaBMUpscale", model=model, image=image, mask=torch.zeros(1, 64, 64))[1]  # that of a picture without alpha
    assert empty.shape == (2, 96, 128) and not empty.any()
    other = comfyui.run("AdaBMUpscale", model=model, image=image, mask=torch.ones(1, 64, 64))[1]  # one of another size for all
    assert other.shape == (2, 96, 128) and other.min() > 0.98


def test_models_of_the_folder_are_offered(comfyui: Host) -> None:
    shutil.copy(adabm_kernels.builtin_models()["edsr_x4_w6a6"], comfyui.models / "adabm" / "my own.safetensors")
    (comfyui.models / "adabm" / "put_models_here").touch()
    offered = comfyui.nodes["AdaBMModelLoader"].INPUT_TYPES()["required"]["model_name"][0]
    assert offered == [*adabm_kernels.builtin_models(), "my own.safetensors"]
    (model,) = comfyui.run("AdaBMModelLoader", model_name="my own.safetensors", device="gpu")
    assert model.config.act_bits == 6
    with pytest.raises(FileNotFoundError, match="model_name must be a built-in model or a file in models/adabm, got 'gone"):
        comfyui.nodes["AdaBMModelLoader"]().load("gone.safetensors", "cpu")


@pytest.mark.parametrize("show", ["bits", "blocks"])
def test_the_bit_map_of_a_batch(comfyui: Host, model: torch.nn.Module, show: str) -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    (drawn,) = comfyui.run("AdaBMBitMap", model=model, image=as_image(flat, sample(0, 0, 64, 64)), show=show)
    assert drawn.shape[0] == 2 and drawn.shape[3] == 3 and not drawn[0, :64, :64].equal(drawn[1, :64, :64])
    (grey,) = comfyui.run("AdaBMBitMap", model=model, image=as_image(flat[..., :1]), show=show)
    assert grey[0].equal(drawn[0])


def test_cancel_ends_the_work_between_windows(comfyui: Host, model: torch.nn.Module) -> None:
    comfyui.cancel_at = 0.5
    with pytest.raises(InterruptProcessingException):
        comfyui.run("AdaBMUpscale", model=model, image=as_image(*[sample(0, 0, 32, 24)] * 4))
    assert comfyui.bar == [0.25, 0.5]


def test_values_that_are_no_numbers_become_black(comfyui: Host, model: torch.nn.Module) -> None:
    image = as_image(np.zeros((8, 8, 3), np.uint8))
    black = comfyui.run("AdaBMUpscale", model=model, image=image)[0]
    image[0, 3, 3] = torch.nan
    node = comfyui.nodes["AdaBMUpscale"]()
    assert node.upscale(model, image, 0.0, "auto")[0].equal(black)
