"""The operators `torch.ops.adabm.*`: schemas, fakes, dispatch. The only file that calls torch.library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from ..backends import TABLE, cards, devices, kernels, launches
from ..backends.call import (
    FEATURES,
    Conv,
    DepthRule,
    Kernels,
    ManyGrids,
    Outputs,
    Place,
    Quantization,
    ResidualBlocks,
    RunConv2d,
    RunQuantize,
    Target,
)
from ..exits import MAX_BEND
from ..quantize import CODE_CHANNELS, Geometry
from ..regions import MAX_DEPTH, as_tiles, flat_length
from .checks import (
    Shape,
    check_conv2d_out,
    check_conv2d_pixels,
    check_conv2d_pixels_out,
    check_images,
    check_layer_bits,
    check_place,
    check_quantize,
    check_quantize_out,
    check_resblock,
    check_tiles,
    conv2d_outputs,
    expect,
    many_targets,
    ready_apart,
    ready_apart_from_x,
    require,
)
from .ready import READY, keep, signature

_LIB = torch.library.Library("adabm", "DEF")
# Compilers must not change strides on the way in, because y and y_q are written where they lie. Torch before 2.7 has no such tag.
TAGS = tuple(tag for name, tag in torch.Tag.__members__.items() if name in ("pt2_compliant_tag", "needs_exact_strides"))
# The arguments of a convolution (backends/call.py, Conv), in the order of the schemas.
_TABLES = "Tensor x_q, Tensor x_bits, Tensor weight, Tensor packed, Tensor alpha, Tensor beta, Tensor? slope, Tensor? residual"
_GRID, _FORM = "Tensor? out_grid, Tensor? out_bits", "bool box_filter, str activation, int shuffle"
_FEATURES = "str features, int fraction"  # how y and the residual are stored
_GEOMETRY = "int[] geometry=[]"  # quantize.Geometry.numbers
_PLACE = "Tensor? depth, int[] region"  # regions.Depths.values, flat or not, and regions.Region.numbers
_LIB.define(
    f"conv2d({_TABLES}, {_GRID}, {_FORM}, str out, {_FEATURES}, bool packed_codes, str backend, int threads, "
    f"{_GEOMETRY}) -> (Tensor, Tensor)",
    tags=TAGS,
)
_LIB.define(
    f"conv2d_out({_TABLES}, {_GRID}, {_FORM}, bool accumulate, {_FEATURES}, bool packed_codes, str backend, int threads, "
    f"{_PLACE}, Tensor(a!)? y, Tensor(b!)? y_q, {_GEOMETRY}) -> ()",
    tags=TAGS,
)
_LIB.define(
    f"conv2d_pixels({_TABLES}, {_FORM}, bool packed_codes, str backend, int threads, {_GEOMETRY}) -> Tensor",
    tags=TAGS,
)
_LIB.define(
    f"conv2d_pixels_out({_TABLES}, {_FORM}, bool packed_codes, str backend, int threads, {_PLACE}, Tensor(a!) image, {_GEOMETRY}) "
    "-> ()",
    tags=TAGS,
)
_LIB.define(
    "resblock_out(Tensor x_q, Tensor x_bits, Tensor weight, Tensor packed, Tensor alpha, Tensor beta, Tensor? slope, "
    "bool box_filter, str activation, Tensor inner_grid, Tensor inner_bits, Tensor weight2, Tensor packed2, Tensor alpha2, "
    "Tensor beta2, bool box_filter2, Tensor? residual, Tensor? out_grid, Tensor? out_bits, bool accumulate, "
    f"{_FEATURES}, bool packed_codes, str backend, {_PLACE}, Tensor(a!)? y, Tensor(b!)? y_q) -> ()",
    tags=TAGS,
)
_LIB.define(
    "quantize(Tensor x, Tensor? shift, Tensor grid, Tensor bits, int fraction, bool packed_codes, str backend, int threads) -> "
    "Tensor",
    tags=TAGS,
)
_LIB.define(
    "quantize_out(Tensor x, Tensor? shift, Tensor grid, Tensor bits, int fraction, bool packed_codes, int start, str backend, "
    f"int threads, {_PLACE}, Tensor(a!) y_q) -> ()",
    tags=TAGS,
)
_LIB.define(
    "quantize_many_out(Tensor x, Tensor[] grids, Tensor[] bits, bool packed_codes, int[] starts, str backend, int threads, "
    "Tensor(a!)[] y_q) -> ()",
    tags=TAGS,
)
_LIB.define(
    "tile_depths(Tensor x_q, int tile, int top, int left, int threshold, int deep, str backend, int threads) -> Tensor",
    tags=TAGS,
)
_LIB.define("image_measure(Tensor x, str backend) -> Tensor", tags=TAGS)
_LIB.define("layer_bits(Tensor x, Tensor lower, Tensor upper, Tensor rules, str backend) -> Tensor", tags=TAGS)


def backend_module(backend: str) -> Kernels:
    """The module that computes with a backend (backends.kernels)."""
    return kernels(backend)


# Layers call these operators at every forward pass, so arguments are checked once for each signature (ready.py). For an operator X,
# `_ready_X` checks the arguments of the first call of a signature and returns a function that runs this call and all later ones of
# that signature. `_X` looks this function up, or has it made, and calls it. The function is kept for as long as the signature. It
# would keep alive any tensor that it held, so it must hold none. The records (backends/call.py) are built where the function is
# made.


def _launched(backend: str, tensor: torch.Tensor) -> tuple[bool, int] | None:
    """The values on which calls of backend "triton" depend besides tensors and settings: whether they are interpreted, which
    check_place asks, and the generation of launches (backends/launches.py). None for other backends."""
    if backend != "triton":
        return None
    return not tensor.is_cuda and cards.interpreting(), launches.generation


def _empty_outputs(conv: Conv, out: str, y: Shape, y_q: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty y and y_q of these shapes. The one that `out` does not ask for has no elements."""
    y_dtype, device = torch.int32 if out == "acc" else FEATURES[conv.features], conv.x_q.device
    return torch.empty(y, dtype=y_dtype, device=device), torch.empty(y_q, dtype=torch.uint8, device=device)


def _ready_into(operator: str, conv: Conv, to: Outputs, backend: str, y_name: str = "y") -> RunConv2d:
    """A function that runs a checked convolution into outputs that the caller gives."""
    run = backend_module(backend).ready_conv2d_out(conv, to)
    check = ready_apart(operator, conv.x_q, conv.residual, to.y, to.y_q, y_name)

    def run_apart(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q) -> None:
        check(x_q, residual, y, y_q)
        run(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q)

    return run_apart


def _conv2d_arguments(
    x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, box_filter, activation, shuffle, out, features,
    fraction, packed_codes, backend, threads, geometry=(),
) -> tuple[Conv, str, str]:  # fmt: skip
    """The convolution, the requested outputs and the backend, from the arguments of conv2d."""
    conv = Conv(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, box_filter, activation, shuffle, features,
        fraction, packed_codes, threads, geometry=Geometry.of(geometry),
    )  # fmt: skip
    return conv, out, backend


def _conv2d(
    x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, box_filter, activation, shuffle, out, features,
    fraction, packed_codes, backend, threads, geometry=(),
):  # fmt: skip
    tensors = x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits
    settings = box_filter, activation, shuffle, out, features, fraction, packed_codes, backend, threads, tuple(geometry)
    key = "conv2d", signature(tensors), settings, _launched(backend, x_q)
    return (READY.get(key) or keep(key, _ready_conv2d(*_conv2d_arguments(*tensors, *settings))))(*tensors)


def _ready_conv2d(conv: Conv, out: str, backend: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    y_shape, q_shape = conv2d_outputs(conv, out, backend)
    y, y_q = _empty_outputs(conv, out, y_shape, q_shape)
    wants_y, wants_q, y_dtype, device = out != "codes", out in ("codes", "both"), y.dtype, y.device
    to = Outputs(y if wants_y else None, y_q if wants_q else None)
    run_into = backend_module(backend).ready_conv2d_out(conv, to)

    def run(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        y = torch.empty(y_shape, dtype=y_dtype, device=device)
        y_q = torch.empty(q_shape, dtype=torch.uint8, device=device)
        run_into(
            x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, None, y if wants_y else None,
            y_q if wants_q else None,
        )  # fmt: skip
        return y, y_q

    return run


def _conv2d_fake(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    conv, out, backend = _conv2d_arguments(*args)
    return _empty_outputs(conv, out, *conv2d_outputs(conv, out, backend))


def _conv2d_out_arguments(
    x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, box_filter, activation, shuffle, accumulate,
    features, fraction, packed_codes, backend, threads, depth, region, y, y_q, geometry=(),
) -> tuple[Conv, Outputs, bool, str]:  # fmt: skip
    """The convolution, its outputs, whether y holds the residual, and the backend, from the arguments of conv2d_out."""
    conv = Conv(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, box_filter, activation, shuffle, features,
        fraction, packed_codes, threads, Place(depth, tuple(region)), Geometry.of(geometry),
    )  # fmt: skip
    return conv, Outputs(y, y_q), accumulate, backend


def _conv2d_out(
    x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, box_filter, activation, shuffle, accumulate,
    features, fraction, packed_codes, backend, threads, depth, region, y, y_q, geometry=(),
):  # fmt: skip
    tensors = x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q
    settings = box_filter, activation, shuffle, accumulate, features, fraction, packed_codes, backend, threads
    key = "conv2d_out", signature(tensors), settings, tuple(region), tuple(geometry), _launched(backend, x_q)
    run = READY.get(key)
    if run is None:
        run = keep(key, _ready_conv2d_out(*_conv2d_out_arguments(*tensors[:10], *settings, depth, region, y, y_q, geometry)))
    residual = y if accumulate else residual
    run(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q)


def _ready_conv2d_out(conv: Conv, to: Outputs, accumulate: bool, backend: str) -> RunConv2d:
    check_conv2d_out(conv, to, accumulate, backend)
    return _ready_into("conv2d_out", replace(conv, residual=to.y) if accumulate else conv, to, backend)


def _conv2d_out_fake(*args: Any) -> None:
    check_conv2d_out(*_conv2d_out_arguments(*args))


def _conv2d_pixels_arguments(
    x_q, x_bits, weight, packed, alpha, beta, slope, residual, box_filter, activation, shuffle, packed_codes, backend, threads,
    geometry=(), depth=None, region=(),
) -> tuple[Conv, str]:  # fmt: skip
    """The convolution and the backend, from the arguments of conv2d_pixels, or from those of conv2d_pixels_out without the
    image."""
    conv = Conv(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, None, None, box_filter, activation, shuffle,
        packed_codes=packed_codes, threads=threads, place=Place(depth, tuple(region)), geometry=Geometry.of(geometry),
    )  # fmt: skip
    return conv, backend


def _conv2d_pixels_empty(*args: Any) -> torch.Tensor:
    """Checks every argument and returns an empty output."""
    conv, backend = _conv2d_pixels_arguments(*args)
    return torch.empty(check_conv2d_pixels(conv, backend), dtype=torch.uint8, device=conv.x_q.device)


def _conv2d_pixels(*args: Any) -> torch.Tensor:
    image = _conv2d_pixels_empty(*args)
    conv, backend = _conv2d_pixels_arguments(*args)
    backend_module(backend).conv2d_out(conv, Outputs(image))
    return image


def _conv2d_pixels_out(
    x_q, x_bits, weight, packed, alpha, beta, slope, residual, box_filter, activation, shuffle, packed_codes, backend, threads,
    depth, region, image, geometry=(),
):  # fmt: skip
    tensors = x_q, x_bits, weight, packed, alpha, beta, slope, residual, depth, image
    settings = box_filter, activation, shuffle, packed_codes, backend, threads, tuple(geometry)
    key = "conv2d_pixels_out", signature(tensors), settings, tuple(region), _launched(backend, x_q)
    run = READY.get(key)
    if run is None:
        conv, backend = _conv2d_pixels_arguments(*tensors[:8], *settings, depth, region)
        run = keep(key, _ready_conv2d_pixels_out(conv, image, backend))
    run(x_q, x_bits, weight, packed, alpha, beta, slope, residual, None, None, depth, image, None)


def _ready_conv2d_pixels_out(conv: Conv, image: torch.Tensor, backend: str) -> RunConv2d:
    check_conv2d_pixels_out(conv, image, backend)
    return _ready_into("conv2d_pixels_out", conv, Outputs(image), backend, "image")


def _conv2d_pixels_out_fake(*args: Any) -> None:
    depth, region, image = args[14:17]
    read: list[Any] = [*args[:14], args[17] if len(args) > 17 else (), depth, region]
    conv, backend = _conv2d_pixels_arguments(*read)
    check_conv2d_pixels_out(conv, image, backend)


def _resblock_arguments(
    x_q, x_bits, weight, packed, alpha, beta, slope, box_filter, activation, inner_grid, inner_bits, weight2, packed2, alpha2,
    beta2, box_filter2, residual, out_grid, out_bits, accumulate, features, fraction, packed_codes, backend, depth, region, y, y_q,
) -> tuple[Conv, Conv, Outputs, bool, str]:  # fmt: skip
    """Both convolutions, the outputs, whether y holds the residual, and the backend, from the arguments of resblock_out."""
    first = Conv(
        x_q, x_bits, weight, packed, alpha, beta, slope, None, inner_grid, inner_bits, box_filter, activation, 1,
        packed_codes=packed_codes,
    )  # fmt: skip
    # The codes between the convolutions, which no tensor holds, have the shape of x_q.
    second = Conv(
        x_q, inner_bits, weight2, packed2, alpha2, beta2, None, residual, out_grid, out_bits, box_filter2, "none", 1, features,
        fraction, packed_codes, place=Place(depth, tuple(region)),
    )  # fmt: skip
    return first, second, Outputs(y, y_q), accumulate, backend


def _resblock_out(
    x_q, x_bits, weight, packed, alpha, beta, slope, box_filter, activation, inner_grid, inner_bits, weight2, packed2, alpha2,
    beta2, box_filter2, residual, out_grid, out_bits, accumulate, features, fraction, packed_codes, backend, depth, region, y, y_q,
):  # fmt: skip
    first = x_q, x_bits, weight, packed, alpha, beta, slope, None, inner_grid, inner_bits, None
    second = x_q, inner_bits, weight2, packed2, alpha2, beta2, None, residual, out_grid, out_bits, depth
    settings = box_filter, activation, box_filter2, accumulate, features, fraction, packed_codes, backend
    key = "resblock_out", signature((*first, *second, y, y_q)), settings, tuple(region)
    run = READY.get(key)
    if run is None:
        arguments = _resblock_arguments(
            x_q, x_bits, weight, packed, alpha, beta, slope, box_filter, activation, inner_grid, inner_bits, weight2, packed2,
            alpha2, beta2, box_filter2, residual, out_grid, out_bits, accumulate, features, fraction, packed_codes, backend, depth,
            region, y, y_q,
        )  # fmt: skip
        run = keep(key, _ready_resblock_out(*arguments))
    run(first, second, y, y_q)


def _ready_resblock_out(first: Conv, second: Conv, to: Outputs, accumulate: bool, backend: str) -> Callable[..., None]:
    check_resblock(first, second, to, accumulate, backend)
    # As elsewhere, a residual that y holds is not looked at here, since there are no codes in its memory.
    check = ready_apart("resblock_out", first.x_q, second.residual, to.y, to.y_q)
    second = replace(second, residual=to.y) if accumulate else second
    run_block = cast(ResidualBlocks, backend_module(backend)).ready_resblock_out(first, second, to)

    def run(first, second, y, y_q) -> None:
        check(first[0], second[7], y, y_q)
        run_block(first, (*second[:7], y, *second[8:]) if accumulate else second, y, y_q)

    return run


def _resblock_out_fake(*args: Any) -> None:
    check_resblock(*_resblock_arguments(*args))


def _quantize(x, shift, grid, bits, fraction, packed_codes, backend, threads):
    settings = fraction, packed_codes, backend, threads
    key = "quantize", signature((x, shift, grid, bits)), settings, _launched(backend, x)
    run = READY.get(key)
    if run is None:
        read = Quantization(x, shift, grid, bits, fraction, packed_codes, threads=threads)
        run = keep(key, _ready_quantize(read, backend))
    return run(x, shift, grid, bits)


def _ready_quantize(read: Quantization, backend: str) -> Callable[..., torch.Tensor]:
    shape = check_quantize(read, backend)
    run_into = backend_module(backend).ready_quantize_out(read, read.x.new_empty(shape, dtype=torch.uint8))

    def run(x, shift, grid, bits) -> torch.Tensor:
        y_q = x.new_empty(shape, dtype=torch.uint8)
        run_into(x, shift, grid, bits, None, y_q)
        return y_q

    return run


def _quantize_fake(x, shift, grid, bits, fraction, packed_codes, backend, threads):
    read = Quantization(x, shift, grid, bits, fraction, packed_codes, threads=threads)
    return x.new_empty(check_quantize(read, backend), dtype=torch.uint8)


def _quantize_out(x, shift, grid, bits, fraction, packed_codes, start, backend, threads, depth, region, y_q):
    settings = fraction, packed_codes, start, backend, threads
    key = "quantize_out", signature((x, shift, grid, bits, depth, y_q)), settings, tuple(region), _launched(backend, x)
    run = READY.get(key)
    if run is None:
        read = Quantization(x, shift, grid, bits, fraction, packed_codes, start, threads, Place(depth, tuple(region)))
        run = keep(key, _ready_quantize_out(read, y_q, backend))
    run(x, shift, grid, bits, depth, y_q)


def _ready_quantize_out(read: Quantization, y_q: torch.Tensor, backend: str) -> RunQuantize:
    check_quantize_out(read, y_q, backend)
    check = ready_apart_from_x("quantize_out", read.x, y_q)
    run_into = backend_module(backend).ready_quantize_out(read, y_q)

    def run(x, shift, grid, bits, depth, y_q) -> None:
        check(x, y_q)
        run_into(x, shift, grid, bits, depth, y_q)

    return run


def _quantize_out_fake(x, shift, grid, bits, fraction, packed_codes, start, backend, threads, depth, region, y_q):
    read = Quantization(x, shift, grid, bits, fraction, packed_codes, start, threads, Place(depth, tuple(region)))
    check_quantize_out(read, y_q, backend)


def _many_arguments(
    x, grids, bits, packed_codes, starts, backend, threads, y_q
) -> tuple[torch.Tensor, list[Target], Quantization, str]:
    """Checks every argument of quantize_many_out. Returns x, the targets, what their quantisations share, and the backend."""
    targets = many_targets(x, grids, bits, starts, y_q)
    first = Quantization(x, None, targets[0].grid, targets[0].bits, 0, packed_codes, threads=threads)
    for target in targets:
        check_quantize_out(_quantization_of(first, target), target.y_q, backend)
    return x, targets, first, backend


def _quantization_of(like: Quantization, target: Target) -> Quantization:
    return replace(like, grid=target.grid, bits=target.bits, start=target.start)


def _quantize_many_out(*args: Any) -> None:
    x, targets, like, backend = _many_arguments(*args)
    for target in targets:
        ready_apart_from_x("quantize_many_out", x, target.y_q)(x, target.y_q)
    if TABLE[backend].many_grids:
        cast(ManyGrids, backend_module(backend)).quantize_many_out(x, targets, like.packed_codes)
        return
    for target in targets:
        backend_module(backend).quantize_out(_quantization_of(like, target), target.y_q)


def _quantize_many_out_fake(*args: Any) -> None:
    _many_arguments(*args)


def _tile_depths_empty(x_q, tile, top, left, threshold, deep, backend, threads):
    """Checks every argument and returns an empty output."""
    require(x_q.dim() == 4 and x_q.numel() > 0, lambda: f"tile_depths: x_q must be [N, H, W, 4], got shape {list(x_q.shape)}")
    n, h, w, _ = x_q.shape
    expect("tile_depths: x_q", x_q, torch.uint8, (n, h, w, CODE_CHANNELS))
    require(x_q.is_contiguous(), lambda: f"tile_depths: x_q must be contiguous, got strides {x_q.stride()}")
    check_tiles("tile_depths", tile, top, left)
    require(0 <= threshold <= MAX_BEND, lambda: f"tile_depths: threshold must be 0..{MAX_BEND}, got {threshold}")
    require(1 <= deep <= MAX_DEPTH, lambda: f"tile_depths: deep must be 1..{MAX_DEPTH}, got {deep}")
    require(threads >= 0, lambda: f"tile_depths: threads must be 0 (as torch) or more, got {threads}")
    check_place("tile_depths", backend, False, "x_q", {"x_q": x_q})
    return x_q.new_zeros(flat_length(n, h, w, tile, top, left))


def _tile_depths(x_q, tile, top, left, threshold, deep, backend, threads):
    depth = _tile_depths_empty(x_q, tile, top, left, threshold, deep, backend, threads)
    tiles = as_tiles(depth, *x_q.shape[:3], tile, top, left)
    backend_module(backend).tile_depths_out(x_q, DepthRule(tile, top, left, threshold, deep, threads), tiles)
    return depth


def _image_measure(x, backend):
    check_images("image_measure", x, backend)
    return backend_module(backend).image_measure(x)


def _image_measure_fake(x, backend):
    check_images("image_measure", x, backend)
    return x.new_empty(x.shape[0])


def _layer_bits(x, lower, upper, rules, backend):
    check_layer_bits(x, lower, upper, rules, backend)
    return backend_module(backend).layer_bits(x, lower, upper, rules)


def _layer_bits_fake(x, lower, upper, rules, backend):
    check_layer_bits(x, lower, upper, rules, backend)
    return rules.new_empty(rules.shape[0], x.shape[0])


IMPLEMENTATIONS = {
    "conv2d": _conv2d,
    "conv2d_out": _conv2d_out,
    "conv2d_pixels": _conv2d_pixels,
    "conv2d_pixels_out": _conv2d_pixels_out,
    "resblock_out": _resblock_out,
    "quantize": _quantize,
    "quantize_out": _quantize_out,
    "quantize_many_out": _quantize_many_out,
    "tile_depths": _tile_depths,
    "image_measure": _image_measure,
    "layer_bits": _layer_bits,
}


def refusal(name: str) -> Callable[..., None]:
    """A function for tensors on a device that no backend knows. It raises an error that names the argument and the device."""

    def refused(*args):
        names = [argument.name for argument in getattr(torch.ops.adabm, name).default._schema.arguments]
        for argument, arg in zip(names, args, strict=False):
            for tensor in arg if isinstance(arg, (list, tuple)) else [arg]:
                if isinstance(tensor, torch.Tensor) and devices.why_no_backend(str(tensor.device)):
                    raise RuntimeError(f"{name}: {argument} must be on the CPU or on a CUDA device, got {tensor.device}")

    return refused


for _name, _implementation in IMPLEMENTATIONS.items():
    for _key in ("CPU", "CUDA"):
        _LIB.impl(_name, _implementation, _key)
    for _key in ("XPU", "MPS", "HPU", "MTIA", "IPU", "VE", "XLA", "Lazy", "PrivateUse1"):
        _LIB.impl(_name, refusal(_name), _key)
torch.library.register_fake("adabm::conv2d", _conv2d_fake, lib=_LIB)
torch.library.register_fake("adabm::conv2d_out", _conv2d_out_fake, lib=_LIB)
torch.library.register_fake("adabm::conv2d_pixels", _conv2d_pixels_empty, lib=_LIB)
torch.library.register_fake("adabm::conv2d_pixels_out", _conv2d_pixels_out_fake, lib=_LIB)
torch.library.register_fake("adabm::resblock_out", _resblock_out_fake, lib=_LIB)
torch.library.register_fake("adabm::quantize", _quantize_fake, lib=_LIB)
torch.library.register_fake("adabm::quantize_out", _quantize_out_fake, lib=_LIB)
torch.library.register_fake("adabm::quantize_many_out", _quantize_many_out_fake, lib=_LIB)
torch.library.register_fake("adabm::tile_depths", _tile_depths_empty, lib=_LIB)
torch.library.register_fake("adabm::image_measure", _image_measure_fake, lib=_LIB)
torch.library.register_fake("adabm::layer_bits", _layer_bits_fake, lib=_LIB)
conv2d_out = torch.ops.adabm.conv2d_out.default
