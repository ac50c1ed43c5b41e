"""Upscale a picture, an array or a tensor with a converted model: the whole image in one forward."""

# The package imports `upscale` from here eagerly, so that its name is the function and not this module: nothing heavy
# may be imported at the top.
from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .images import Image

DEFAULT_MODEL = "edsr_x4_w4a4"
_ASSETS = Path(__file__).parent / "assets"


def upscale(
    image: Any,
    model: str | os.PathLike | torch.nn.Module = DEFAULT_MODEL,
    *,
    bits: str | int | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Upscale one picture (or a batch of tensors) and return the same kind of thing, `model.scale` times as large.

    image: path of a PNG or JPEG file -> Pillow image; Pillow image -> Pillow image; NumPy uint8 [H, W, 3] -> the same;
        floating torch tensor [3, H, W] or [N, 3, H, W] in 0..255 -> the same dtype and device, clamped to 0..255.
        Transparency is upscaled on its own by bicubic interpolation; a grey picture stays grey.
    model: name of a built-in model (`builtin_models()`), path of a converted model, or a module from `load` or
        `convert_model`. A name or path is loaded anew in every call: load once and pass the module for many pictures.
    bits: "auto" (decided per image and layer) or 2..8 for all adaptive layers. backend: "auto" or a backend's name.
    threads: CPU threads, at least 1. These three, when given, are set on the module and stay; None leaves them as they
        are ("auto" for a freshly loaded model).

    Raises TypeError and ValueError for unsupported input, OSError for a file that cannot be opened, RuntimeError for a
    backend that cannot run here.
    """
    check_settings(bits, threads)
    picture, tensor = _take(image)
    model = model if _is_module(model) else load_model(model)
    configure(model, bits, backend, threads)
    if tensor is not None:
        y = run(model, tensor if tensor.ndim == 4 else tensor[None])
        y = y.clamp(0, 255).to(tensor.dtype)
        return y if tensor.ndim == 4 else y[0]
    result = to_image(run(model, to_tensor(picture)), picture)
    if _is_array(image):
        return result.rgb
    from .images import to_pil

    return to_pil(result)


def builtin_models() -> dict[str, Path]:
    """Names of the models shipped with the package and where their files are."""
    return {path.stem: path for path in sorted(_ASSETS.glob("*.safetensors"))}


def load_model(name_or_path: str | os.PathLike) -> torch.nn.Module:
    """Converted model by built-in name or by path; FileNotFoundError says which names there are."""
    from .checkpoint import load

    return load(model_path(name_or_path))


def model_path(name_or_path: str | os.PathLike) -> Path:
    """The file of a model by built-in name or by path; FileNotFoundError says which names there are."""
    builtin = builtin_models()
    path = builtin.get(os.fspath(name_or_path), Path(name_or_path))
    if not path.is_file():
        names = ", ".join(builtin) or "none in this installation"
        raise FileNotFoundError(f"model must be a built-in model ({names}) or an existing file, got '{name_or_path}'")
    return path


def check_settings(bits: str | int | None, threads: int | None) -> None:
    """Refuse impossible settings before anything is read or loaded."""
    if bits is not None and bits != "auto" and (isinstance(bits, bool) or bits not in range(2, 9)):
        raise ValueError(f"bits must be 'auto' or an integer from 2 to 8, got {bits!r}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads must be an integer of at least 1, got {threads!r}")


def configure(model: torch.nn.Module, bits: str | int | None, backend: str | None, threads: int | None) -> None:
    """Set what is not None on a converted model; RuntimeError when the backend cannot run here."""
    if threads is not None:
        model.set_threads(threads)
    if backend is not None:
        model.set_backend(backend)
    if bits is not None:
        model.set_bits(bits)


def to_tensor(image: Image) -> torch.Tensor:
    """Image -> float32 [1, 3, H, W] in 0..255."""
    import numpy as np
    import torch

    # A copy: torch takes neither negative strides nor read-only memory.
    planes = np.array(image.rgb.transpose(2, 0, 1), dtype=np.float32, order="C")
    return torch.from_numpy(planes)[None]


def run(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One forward without gradients: [N, 3, H, W] -> float32 [N, 3, s*H, s*W], not clamped."""
    import torch

    with torch.no_grad():
        return model(x.to(torch.float32))


def to_image(y: torch.Tensor, source: Image) -> Image:
    """Output [1, 3, s*H, s*W] of a model for `source` -> Image: rounded to 8 bits, transparency and greyness added."""
    import torch

    from .images import Image
    from .resize import imresize

    rgb = y[0].clamp(0, 255).round().to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy()
    scale = rgb.shape[0] // source.rgb.shape[0]
    alpha = None if source.alpha is None else imresize(source.alpha, scale)
    return Image(rgb, alpha, source.grey)


def _take(image: Any) -> tuple[Image | None, torch.Tensor | None]:
    """Tell the kinds of input apart and check them: (picture, None) or (None, tensor)."""
    from .images import Image, from_pil, read_image

    if isinstance(image, str | os.PathLike):
        return read_image(image), None
    if _is_array(image):
        return Image(image), None
    import PIL.Image

    if isinstance(image, PIL.Image.Image):
        try:
            return from_pil(image), None
        except ValueError as error:
            raise ValueError(f"image: {error}") from error
    import torch

    if not isinstance(image, torch.Tensor):
        raise TypeError(f"image must be a path, a Pillow image, a NumPy array or a torch tensor, got {type(image).__name__}")
    if not image.is_floating_point():
        raise TypeError(f"image must be a floating tensor with values 0..255, got {image.dtype}")
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
        raise ValueError(f"image must be [3, H, W] or [N, 3, H, W] and not empty, got shape {list(image.shape)}")
    if not torch.isfinite(image).all():
        raise ValueError("image must be finite, got NaN or infinite values")
    return None, image


def _is_array(image: Any) -> bool:
    import numpy as np

    return isinstance(image, np.ndarray)


def _is_module(model: Any) -> bool:
    if isinstance(model, str | os.PathLike):
        return False
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a built-in name, a path or a module from load or convert_model, got {type(model).__name__}")
    return True
