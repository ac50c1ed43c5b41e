"""Upscales pictures, arrays, tensors and files of any size with a converted model."""

# The package imports its functions from here eagerly, so that `upscale` is the function and not this module. Nothing heavy may
# therefore be imported at the top.
from __future__ import annotations

import functools
import itertools
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import models
from .models import DEFAULT_MODEL, check_settings, configure, did_you_mean, is_converted_module
from .upscaling.sizes import Size

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    import torch

    from .images import Layout
    from .nn.lanes import Lane
    from .upscaling.batch import Outcome
    from .upscaling.enlarge import Enlarger
    from .upscaling.picture import Patch

_CUTTING = ("tile", "halo", "protocol", "tta", "max_memory", "smooth")  # arguments of `patchwise.Patchwise`
_SETTINGS = ("bits", "depth", "backend", "device", "threads", "graph", "scale", "width", "height", "fit", "progress", *_CUTTING)
_END = object()  # stands for the end of the images


def upscale(
    image: Any,
    model: str | os.PathLike | torch.nn.Module = DEFAULT_MODEL,
    *,
    bits: str | int | None = None,
    depth: str | int | None = None,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    graph: bool | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    record: list[Patch] | None = None,
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    fit: tuple[int, int] | None = None,
    **cutting: Any,
) -> Any:
    """Upscales one picture, or a batch of tensors, to `model.scale` times its size or to another size. Returns the result in the
    form of the input, and a Pillow image for a path.

    image: the picture, in one of these forms:
        - the path of a picture file of 8 bits per channel (docs/images.md), or a Pillow image. The result gets the colour profile,
          the resolution, EXIF and XMP of the input, as info["icc_profile"], info["dpi"], info["exif"] and info["xmp"]. Pillow
          writes the profile into PNG by itself, and the others when `save` is given them.
        - a NumPy array, uint8 or uint16, [H, W] or [H, W, C], with C = 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for RGBA.
        - a floating torch tensor [3, H, W] or [N, 3, H, W] in 0..255. The result has the same dtype and device and is clamped to
          0..255, wherever the model computes. A tensor whose values all lie within 0..1 brings a warning.
        Colours with transparency are upscaled as they are seen, multiplied by their alpha. A grey picture stays grey.
    model: the name of a built-in model (`builtin_models()`), the path of a converted model, or a module from `load` or
        `convert_model`. A name or path is loaded anew in every call, so for many pictures load once and pass the module.
    bits: "auto", by which every window and layer gets bits of its own, or 2..8 for all adaptive layers.
    depth: "auto" leaves out the residual blocks in the easy tiles of a picture, where the model has an exit for them. "full", or
        the number of the network's blocks, computes all blocks everywhere, and 0 computes none anywhere.
    backend: "auto" or the name of a backend.
    device: a device of torch, such as "cuda".
    threads: the number of CPU threads, at least 1.
    graph: whether forward passes on a CUDA device are recorded and replayed as CUDA graphs. If it is left out, a shape is recorded
        when it comes the third time, where that works.
        The six settings from bits to graph stay set on the module when they are given. None leaves a setting as it is, which is
        "auto" for a freshly loaded model.
    progress: a function that is called with (windows done, windows in all, "upscaling").
    record: a list to which every window of a picture is appended as a Patch. Windows of tensors, and windows of further passes over
        the network's own output, are not appended.
    scale, width, height, fit: the size of the result where it is not the model's own (`sizes.Size`). scale=1.5, width=1920 or
        height=1080 keep the shape of the picture, width and height together give exactly this size, and fit=(1920, 1080) gives the
        largest size that fits into it. A bicubic filter resamples the network's output to this size; where the output lacks more
        than a quarter of it, the network first enlarges its output again (docs/images.md).
    cutting: tile, halo, protocol, tta, max_memory and smooth of `patchwise.Patchwise`. They say how a large picture is cut into
        windows and whether its smooth areas are interpolated. Tensors take no max_memory, and their smooth areas are always
        computed by the network.

    Several threads may call it at once with one module, as long as they ask for the same settings. Raises TypeError and ValueError
    for unsupported input, OSError for a file that cannot be opened, and RuntimeError for a backend that cannot run here.
    """
    check_settings(bits, threads, depth)
    size = Size(scale, width, height, fit)
    taken = _take(image)
    given = {"bits": bits, "depth": depth, "backend": backend, "device": device, "threads": threads, "graph": graph}
    network = prepare(model, size=size, **given, **cutting)  # type: ignore[arg-type]
    return _upscaled(taken, network, progress, record)


def upscale_many(
    images: Iterable[Any],
    model: str | os.PathLike | torch.nn.Module = DEFAULT_MODEL,
    *,
    progress: Callable[[int, int | None], None] | None = None,
    in_flight: int | None = None,
    **settings: Any,
) -> Iterator[Any]:
    """Yields the result of `upscale` for each of any number of images, in their order. The next image is read while one is
    computed.

    progress: a function that is called with (images done, images in all). The second is None where the images cannot be counted.
    settings: the settings of `upscale`.
    in_flight: how many images are computed at once, at least 1. Each has a thread of its own and, on a CUDA device, a stream with
    its own buffers and graphs. None stands for 2 on a CUDA device, unless max_memory bounds the memory or running thresholds make
    an image depend on the images before it, and else for 1.
    The error of an image that cannot be read or is not supported is raised when its turn comes.
    """
    from concurrent.futures import ThreadPoolExecutor

    if isinstance(images, str | os.PathLike):
        raise TypeError(f"images must be an iterable of pictures or their paths, got one path, '{os.fspath(images)}'")
    check_settings(settings.get("bits"), settings.get("threads"), settings.get("depth"))
    size = _take_size(settings)
    network = prepare(model, size=size, **settings)
    lanes = network.lanes(in_flight)
    total = len(images) if isinstance(images, Sized) else None
    with ThreadPoolExecutor(1, "adabm decode") as pool:
        source = iter(images)

        def following() -> Any:
            image = next(source, _END)
            return _END if image is _END else _take(image)

        read = functools.partial(pool.submit, following)
        results = _one_by_one(read, network) if len(lanes) == 1 else _side_by_side(read, network, lanes)
        for done, result in enumerate(results, 1):
            if progress is not None:
                progress(done, total)
            yield result


def _one_by_one(read: Callable[[], Future], network: Enlarger) -> Iterator[Any]:
    """Yields each image, upscaled on the calling thread. `read` begins to read the next image, and gives _END after the last."""
    coming = read()
    while (taken := coming.result()) is not _END:
        coming = read()
        yield _upscaled(taken, network, None, None)


def _side_by_side(read: Callable[[], Future], network: Enlarger, lanes: list[Lane]) -> Iterator[Any]:
    """Yields what `_one_by_one` yields, but computes several images at once, one in each lane on a thread of its own."""
    from concurrent.futures import ThreadPoolExecutor

    def compute(coming: Future, lane: Lane) -> tuple[Lane, Any, Any]:
        taken = coming.result()
        if taken is _END:
            return lane, _END, None
        with lane:
            result = _upscaled(taken, network, None, None)
            return lane, result, lane.finish(taken)

    turns = itertools.cycle(lanes)
    with ThreadPoolExecutor(len(lanes), "adabm image") as workers:
        under_way = deque(workers.submit(compute, read(), next(turns)) for _ in lanes)
        while (finished := under_way.popleft().result())[1] is not _END:
            lane, result, done = finished
            yield lane.hand_out(result, done)
            under_way.append(workers.submit(compute, read(), next(turns)))


def upscale_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    model: str | os.PathLike | torch.nn.Module = DEFAULT_MODEL,
    *,
    quality: int = 95,
    max_pixels: int | None = None,
    strict: bool = False,
    metadata: str = "keep",
    progress: Callable[[int, int, str], None] | None = None,
    **settings: Any,
) -> Outcome:
    """Upscales a picture file of any size into another file, row by row: neither picture is ever held whole.

    target: the path of the result, whose suffix says the format (images.EXTENSIONS). The file appears when it is complete and
        replaces an existing one. 16 bits per channel stay 16 where the format holds them.
    quality: the quality of JPEG and WebP, 1..100.
    max_pixels: the most pixels of a source; a larger one is refused. The default is images.MAX_PIXELS.
    strict: whether every damaged source is refused. If False, one in which no row is missing only brings a warning.
    metadata: "keep" writes EXIF, XMP and IPTC into the target, "strip" leaves them out.
    settings: the settings of `upscale`, its sizes among them. max_memory bounds the bytes that the process holds.

    Returns an Outcome with the layout of the source, the steps to the output's size, patches, mean_bits and seconds. Raises as
    `upscale` does, and OSError when the target cannot be written.
    """
    from .images import EXTENSIONS, MAX_PIXELS, check_output
    from .images.writer import check_quality
    from .upscaling.batch import Task, check_metadata, upscale_files

    check_settings(settings.get("bits"), settings.get("threads"), settings.get("depth"))
    size = _take_size(settings)
    check_quality(quality)
    check_metadata(metadata)
    if max_pixels is not None and (isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1):
        raise ValueError(f"max_pixels must be an integer of at least 1, got {max_pixels!r}")
    target = check_output(target)
    if Path(source).exists() and target.exists() and os.path.samefile(source, target):
        raise ValueError(f"target must not be the source itself, got '{target}'")
    task = Task(Path(source), target, EXTENSIONS[target.suffix.lower()], os.fspath(source))
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    network = prepare(model, size=size, max_pixels=limit, **settings)
    options: dict[str, Any] = {"max_pixels": limit, "quality": quality, "strict": strict, "metadata": metadata}
    (outcome,) = upscale_files([task], network, **options, progress=lambda task: progress)
    if outcome.error is not None:
        raise outcome.error
    return outcome


def prepare(
    model: str | os.PathLike | torch.nn.Module,
    *,
    bits: str | int | None = None,
    depth: str | int | None = None,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    graph: bool | None = None,
    size: Size | None = None,
    max_pixels: int | None = None,
    **cutting: Any,
) -> Enlarger:
    """The model with these settings, ready for pictures of any size. The arguments are those of `upscale` and `upscale_file`."""
    if unknown := [name for name in cutting if name not in _CUTTING]:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}{did_you_mean(unknown[0], _SETTINGS)}")
    is_module = is_converted_module(model)
    from .images import MAX_PIXELS
    from .upscaling.enlarge import Enlarger
    from .upscaling.patchwise import Patchwise

    loaded: Any = model
    if not is_module:
        loaded = models.load_model(loaded)
    configure(loaded, bits, backend, threads, device, depth, graph)
    return Enlarger(Patchwise(loaded, **cutting), size, max_pixels=MAX_PIXELS if max_pixels is None else max_pixels)


def _take_size(settings: dict[str, Any]) -> Size:
    """The size that keyword arguments ask for. The arguments that say it are removed from `settings`."""
    return Size(**{name: settings.pop(name, None) for name in ("scale", "width", "height", "fit")})


def _upscaled(taken: Any, network: Enlarger, progress: Any, record: list[Patch] | None) -> Any:
    import torch

    if isinstance(taken, torch.Tensor):
        if (bound := network.network.max_memory) is not None:
            raise ValueError(f"max_memory must be left out for tensors, which are held whole, got {bound}")
        y = network.tensor((taken if taken.ndim == 4 else taken[None]).to(torch.float32), progress)
        y = y.clamp(0, 255).to(taken.dtype)
        return y if taken.ndim == 4 else y[0]
    rows, layout, finish = taken
    return finish(network.array(rows, layout, record=record, progress=progress))


def _take(image: Any) -> tuple[np.ndarray, Layout, Callable[[np.ndarray], Any]] | torch.Tensor:
    """Checks an input of any kind. Returns a tensor as it is, and for every other kind its rows [H, W, C], their layout, and a
    function that turns the upscaled rows into the result."""
    from .images import Layout

    if isinstance(image, str | os.PathLike):
        from .images.pillow import from_array
        from .images.reader import read_8_bit

        rows, layout = read_8_bit(image)
        return rows, layout, functools.partial(from_array, like=layout)
    if _is_array(image):
        rows = _rows(image)
        depth = 8 * rows.dtype.itemsize
        return rows, Layout(rows.shape[1], rows.shape[0], rows.shape[2], depth), lambda out: out[..., 0] if image.ndim == 2 else out
    import PIL.Image

    if isinstance(image, PIL.Image.Image):
        from .images.pillow import from_array, layout_of, to_array

        try:
            rows = to_array(image)
        except ValueError as error:
            raise ValueError(f"image: {error}") from error
        layout = layout_of(image, rows)
        return rows, layout, functools.partial(from_array, like=layout)
    import torch

    if not isinstance(image, torch.Tensor):
        raise TypeError(f"image must be a path, a Pillow image, a NumPy array or a torch tensor, got {type(image).__name__}")
    if not image.is_floating_point():
        raise TypeError(f"image must be a floating tensor with values 0..255, got {image.dtype}")
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
        raise ValueError(f"image must be [3, H, W] or [N, 3, H, W] and not empty, got shape {list(image.shape)}")
    if not torch.isfinite(image).all():
        raise ValueError("image must be finite, got NaN or infinite values")
    # An array of only 0 and 1 is a picture that is nearly black. An array with values between them is a picture in another unit.
    if image.abs().max() <= 1 and bool(image.frac().any()):
        warnings.warn(
            f"image holds {image.min():.3g}..{image.max():.3g} only, where 0..255 is expected: multiply it by 255", stacklevel=3
        )
    return image


def _rows(array: np.ndarray) -> np.ndarray:
    """The picture in a NumPy array as rows [H, W, C]. Raises ValueError for an array that is no picture."""
    import numpy as np

    rows = array[..., None] if array.ndim == 2 else array
    if rows.dtype not in (np.uint8, np.uint16) or rows.ndim != 3 or rows.shape[2] not in (1, 2, 3, 4) or 0 in rows.shape:
        raise ValueError(
            "image must be uint8 or uint16 [H, W] or [H, W, 1, 2, 3 or 4] with at least one pixel, "
            f"got {array.dtype} {list(array.shape)}"
        )
    return rows


def _is_array(image: Any) -> bool:
    import numpy as np

    return isinstance(image, np.ndarray)
