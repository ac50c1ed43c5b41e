"""Nodes for ComfyUI: load a converted model, upscale images by it, and show which bits each part of an image got.

Copy this file into ComfyUI's folder custom_nodes, install the package into the Python that runs ComfyUI, and start ComfyUI again.
Models of your own go into ComfyUI's folder models/adabm, as .safetensors. docs/comfyui.md tells more.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F

import adabm_kernels

FOLDER = "adabm"
folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
STEPS = 1000  # of the progress bar, for each image


def to_array(image: torch.Tensor) -> np.ndarray:
    """Values 0..1 of any shape as uint16, what is no number as 0. 16 bits lose nothing that a file of 8 or 16 bits could show."""
    return (image.nan_to_num().clamp(0, 1) * 65535).round().to("cpu", torch.int32).numpy().astype(np.uint16)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Pixels of 8 or 16 bits as float32 in 0..1."""
    return torch.from_numpy(array.astype(np.float32) / np.iinfo(array.dtype).max)


def report_progress(images: int) -> Callable[[int], Callable[[int, int, str], None]]:
    """A function of an image's number that gives what `upscale` takes as progress. It moves ComfyUI's bar, and ends the work where
    the user pressed Cancel."""
    bar = comfy.utils.ProgressBar(images * STEPS)

    def of_image(number: int) -> Callable[[int, int, str], None]:
        def progress(done: int, total: int, what: str) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(number * STEPS + done * STEPS // total)

        return progress

    return of_image


class AdaBMModelLoader:
    """Reads a built-in model, or one from models/adabm."""

    CATEGORY, FUNCTION = "loaders", "load"
    RETURN_TYPES, RETURN_NAMES = ("ADABM_MODEL",), ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        own = [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(".safetensors")]
        device = ["cpu", "gpu"], {"default": "cpu", "tooltip": "gpu is the card that ComfyUI uses."}
        return {"required": {"model_name": ([*adabm_kernels.builtin_models(), *own],), "device": device}}

    def load(self, model_name: str, device: str) -> tuple[torch.nn.Module]:
        known = adabm_kernels.builtin_models()
        path = known[model_name] if model_name in known else folder_paths.get_full_path(FOLDER, model_name)
        if path is None:
            raise FileNotFoundError(f"model_name must be a built-in model or a file in models/{FOLDER}, got {model_name!r}")
        model = adabm_kernels.load(path)
        return (model.to(comfy.model_management.get_torch_device()) if device == "gpu" else model,)


class AdaBMUpscale:
    """Upscales a batch of images, each with bits of its own, and a mask beside them."""

    CATEGORY, FUNCTION = "image/upscaling", "upscale"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "MASK", "FLOAT"), ("image", "mask", "mean_bits")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        scale = {"default": 0.0, "min": 0.0, "max": 16.0, "step": 0.25, "tooltip": "0 is the model's own. Least otherwise: 1."}
        bits = ["auto", *(str(bits) for bits in range(2, 9))], {"default": "auto"}
        required = {"model": ("ADABM_MODEL",), "image": ("IMAGE",), "scale": ("FLOAT", scale), "bits": bits}
        return {"required": required, "optional": {"mask": ("MASK",)}}

    def upscale(
        self, model: torch.nn.Module, image: torch.Tensor, scale: float, bits: str, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """image: [B, H, W, C] in 0..1. mask: [B, H, W], [1, H, W] or [H, W] of any size, where 1 is masked; without one nothing is.
        Returns images, masks of their size, and the mean bits over all of them."""
        settings = {"scale": scale or None, "bits": bits if bits == "auto" else int(bits)}
        progress, images, masks, mean_bits = report_progress(len(image)), [], [], []
        for number, one in enumerate(image):
            windows: list[adabm_kernels.Patch] = []
            large = adabm_kernels.upscale(to_array(one), model, record=windows, progress=progress(number), **settings)
            images.append(to_tensor(large))
            pixels = [window.height * window.width for window in windows]
            mean_bits.append(np.average([window.mean_bits for window in windows], weights=pixels))
            masks.append(self.mask_of(mask, number, one.shape[:2], large.shape[:2], model, settings))
        return torch.stack(images), torch.stack(masks), float(np.mean(mean_bits))

    @staticmethod
    def mask_of(
        mask: torch.Tensor | None, number: int, size: torch.Size, target: tuple, model: torch.nn.Module, settings: dict
    ) -> torch.Tensor:
        """The mask of one image in the size of the result. ComfyUI gives images without transparency an empty one of 64x64."""
        if mask is None or not mask.any():
            return torch.zeros(target)
        masks = mask.reshape(-1, 1, *mask.shape[-2:])
        fitted = F.interpolate(masks[number % len(masks)][None].float(), tuple(size), mode="bilinear")[0, 0]
        return to_tensor(adabm_kernels.upscale(to_array(fitted), model, **settings))


class AdaBMBitMap:
    """Shows the bits of every window of an image, in colours over it."""

    CATEGORY, FUNCTION = "image/upscaling", "draw"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("bit_map",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        window = {"default": 32, "min": 16, "max": 4096, "step": 16, "tooltip": "Pixels a side of the parts that get bits."}
        shown = ["bits", "blocks"], {"default": "bits", "tooltip": "blocks: where a model with an exit computes its blocks."}
        return {"required": {"model": ("ADABM_MODEL",), "image": ("IMAGE",), "window": ("INT", window), "show": shown}}

    def draw(self, model: torch.nn.Module, image: torch.Tensor, window: int, show: str) -> tuple[torch.Tensor]:
        progress, drawn = report_progress(len(image)), []
        for number, one in enumerate(image):
            array = to_array(one[..., :3].expand(-1, -1, 3))  # grey as RGB, no alpha
            windows: list[adabm_kernels.Patch] = []
            adabm_kernels.upscale(array, model, bits="auto", tile=window, record=windows, progress=progress(number))
            bits = adabm_kernels.bit_map(model, windows, array.shape[1], array.shape[0])
            picture = PIL.Image.fromarray((array >> 8).astype(np.uint8))
            drawn.append(to_tensor(np.asarray(bits.to_image(picture, group=None if show == "bits" else "blocks"))))
        return (torch.stack(drawn),)


NODE_CLASS_MAPPINGS = {"AdaBMModelLoader": AdaBMModelLoader, "AdaBMUpscale": AdaBMUpscale, "AdaBMBitMap": AdaBMBitMap}
NODE_DISPLAY_NAME_MAPPINGS = {
    "AdaBMModelLoader": "Load AdaBM Model",
    "AdaBMUpscale": "Upscale Image (AdaBM)",
    "AdaBMBitMap": "AdaBM Bit Map",
}
