"""The operators `torch.ops.adabm.*`: schemas, fakes, dispatch. The only file that calls torch.library."""

from __future__ import annotations

import functools
import importlib
import operator
import sys
from collections.abc import Callable
from types import ModuleType

import torch

from ..backends import devices
from ..backends.call import FEATURES, Conv
from ..exits import MAX_BEND
from ..image_bits import bits_by_rule, image_offsets, measure_images
from ..quantize import CODE_CHANNELS
from ..regions import MAX_DEPTH, as_tiles, flat_length
from .checks import (
    MAKES_READY,
    QUANTIZE_MANY,
    check_conv2d_out,
    check_conv2d_pixels_out,
    check_images,
    check_layer_bits,
    check_place,
    check_quantize,
    check_quantize_many_out,
    check_quantize_out,
    check_resblock,
    check_tiles,
    conv2d_outputs,
    expect,
    ready_apart,
    require,
    resblock_convs,
    split_conv,
    without_codes,
)
from .ready import READY, keep, signature

_LIB = torch.library.Library("adabm", "DEF")
# Compilers may change no strides on the way in: y and y_q are written where they lie. Torch before 2.7 has no such tag.
TAGS = tuple(getattr(torch.Tag, name) for name in ("pt2_compliant_tag", "needs_exact_strides") if hasattr(torch.Tag, name))
# What a convolution reads (backends/call.py, Conv), in the order of the schemas.
_TABLES = "Tensor x_q, Tensor x_bits, Tensor weight, Tensor packed, Tensor alpha, Tensor beta, Tensor? slope, Tensor? residual"
_GRID, _FORM = "Tensor? out_grid, Tensor? out_bits", "bool box_filter, str activation, int shuffle"
_FEATURES = "str features, int fraction"  # how y and the residual are stored
_PLACE = "Tensor? depth, int[] region"  # regions.Depths.values, flat or not, and regions.Region.numbers
_LIB.define(
    f"conv2d({_TABLES}, {_GRID}, {_FORM}, str out, {_FEATURES}, bool packed_codes, str backend, int threads) -> (Tensor, Tensor)",
    tags=TAGS,
)
_LIB.define(
    f"conv2d_out({_TABLES}, {_GRID}, {_FORM}, bool accumulate, {_FEATURES}, bool packed_codes, str backend, int threads, "
    f"{_PLACE}, Tensor(a!)? y, Tensor(b!)? y_q) -> ()",
    tags=TAGS,
)
_LIB.define(
    f"conv2d_pixels({_TABLES}, {_FORM}, bool packed_codes, str backend, int threads) -> Tensor",
    tags=TAGS,
)
_LIB.define(
    f"conv2d_pixels_out({_TABLES}, {_FORM}, bool packed_codes, str backend, int threads, {_PLACE}, Tensor(a!) image) -> ()",
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


@functools.cache
def backend_module(backend: str) -> ModuleType:
    # On first use: importing the package loads no backend that it may not need.
    return importlib.import_module(f"..backends.{backend}", __package__)


def _packing(packed_codes: bool) -> dict[str, bool]:
    # Only backends in PACKED_CODES take the argument.
    return {"packed_codes": True} if packed_codes else {}


def _held_in(fraction: int) -> dict[str, int]:
    # Backends that know no features of 16 bits do not take the argument.
    return {"fraction": fraction} if fraction else {}


def _empty_outputs(conv, out, y, y_q):
    """(y, y_q) of these shapes; what `out` does not ask for has none and is empty."""
    y_dtype, device = torch.int32 if out == "acc" else FEATURES[conv.features], conv.x_q.device
    return torch.empty(y, dtype=y_dtype, device=device), torch.empty(y_q, dtype=torch.uint8, device=device)


# Layers call these operators at every forward pass, so that arguments are checked once for each signature (ready.py). For an
# operator X, `_ready_X` checks the arguments of the first call of a signature and returns a function that runs this call and all
# later ones of that signature; `_X` looks this function up, or has it made, and calls it. The function is kept for as long as the
# signature and would keep alive any tensor it held, so it must hold none.


_TUNING = f"{__package__.rpartition('.')[0]}.backends.triton.tuning"


def _launched(tensor: torch.Tensor) -> tuple[bool, int]:
    """What calls of backend "triton" depend on beside tensors and settings: whether they are interpreted, which check_place asks,
    and the generation of what decides how they are launched (tuning.forget_launches), 0 before Triton is imported."""
    generation = getattr(sys.modules.get(_TUNING), "generation", 0)
    return not tensor.is_cuda and devices.interpreting(), generation


def _ready_conv(conv: Conv, threads: int, packed_codes: bool, backend: str, y, y_q) -> Callable[..., None]:
    """What runs a checked convolution: a function of the ten tensors in front of Conv, depth, y and y_q. A uint8 y takes pixels."""
    packing = _packing(packed_codes)
    if backend in MAKES_READY:
        return backend_module(backend).ready_conv2d_out(conv, threads, y, y_q, **packing)
    before, region, behind = conv[10:13], conv.region, (conv.features, conv.fraction)
    pixels = y is not None and y.dtype == torch.uint8

    def run(*tensors):
        *read, depth, y, y_q = tensors
        conv, module = Conv(*read, *before, depth, region, *behind), backend_module(backend)
        if pixels:
            module.conv2d_pixels_out(conv, threads, y, **packing)
        else:
            module.conv2d_out(conv, threads, y, y_q, **packing)

    return run


def _ready_into(operator: str, conv: Conv, threads: int, packed_codes: bool, backend: str, y, y_q, y_name: str = "y"):
    """`_ready_conv` for outputs that the caller gives."""
    run = _ready_conv(conv, threads, packed_codes, backend, y, y_q)
    check = ready_apart(operator, conv.x_q, conv.residual, y, y_q, y_name)

    def run_apart(*tensors):
        check(tensors[0], tensors[7], tensors[11], tensors[12])
        run(*tensors)

    return run_apart


def _conv2d(*args):
    key = "conv2d", signature(args[:10]), args[10:], args[17] == "triton" and _launched(args[0])
    return (READY.get(key) or keep(key, _ready_conv2d(args)))(*args[:10])


def _ready_conv2d(args):
    conv, (out, features, fraction, packed_codes, backend, threads) = split_conv(args)
    conv = conv._replace(features=features, fraction=fraction)
    y_shape, q_shape = conv2d_outputs(conv, out, packed_codes, backend, threads)
    y, y_q = _empty_outputs(conv, out, y_shape, q_shape)
    wants_y, wants_q, y_dtype, device = out != "codes", out in ("codes", "both"), y.dtype, y.device
    run_into = _ready_conv(conv, threads, packed_codes, backend, y if wants_y else None, y_q if wants_q else None)

    def run(*tensors):
        y = torch.empty(y_shape, dtype=y_dtype, device=device)
        y_q = torch.empty(q_shape, dtype=torch.uint8, device=device)
        run_into(*tensors, None, y if wants_y else None, y_q if wants_q else None)
        return y, y_q

    return run


def _conv2d_fake(*args):
    conv, (out, features, fraction, *settings) = split_conv(args)
    conv = conv._replace(features=features, fraction=fraction)
    return _empty_outputs(conv, out, *conv2d_outputs(conv, out, *settings))


def _conv2d_out(*args):
    read, settings, (depth, region, y, y_q) = args[:10], args[10:19], args[19:]
    key = "conv2d_out", signature((*read, depth, y, y_q)), settings, tuple(region), args[17] == "triton" and _launched(args[0])
    run = READY.get(key) or keep(key, _ready_conv2d_out(args))
    run(*args[:7], y if args[13] else args[7], *args[8:10], depth, y, y_q)


def _ready_conv2d_out(args):
    conv, rest = split_conv(args)
    *_, packed_codes, backend, threads, _depth, _region, y, y_q = rest
    conv = check_conv2d_out(conv, *rest)
    return _ready_into("conv2d_out", conv, threads, packed_codes, backend, y, y_q)


def _conv2d_out_fake(*args):
    conv, rest = split_conv(args)
    check_conv2d_out(conv, *rest)


def _conv2d_pixels_empty(*args):
    """Checks every argument; the output."""
    conv, settings = split_conv(without_codes(args))
    shape, _ = conv2d_outputs(conv, "float", *settings)
    return torch.empty(shape, dtype=torch.uint8, device=conv.x_q.device)


def _conv2d_pixels(*args):
    image = _conv2d_pixels_empty(*args)
    conv, (packed_codes, backend, threads) = split_conv(without_codes(args))
    backend_module(backend).conv2d_pixels_out(conv, threads, image, **_packing(packed_codes))
    return image


def _conv2d_pixels_out(*args):
    read, settings, (depth, region, image) = args[:8], args[8:14], args[14:]
    launched = args[12] == "triton" and _launched(args[0])
    key = "conv2d_pixels_out", signature((*read, depth, image)), settings, tuple(region), launched
    run = READY.get(key) or keep(key, _ready_conv2d_pixels_out(args))
    run(*read, None, None, depth, image, None)


def _ready_conv2d_pixels_out(args):
    conv, packed_codes, backend, threads, image = check_conv2d_pixels_out(*args)
    return _ready_into("conv2d_pixels_out", conv, threads, packed_codes, backend, image, None, "image")


def _conv2d_pixels_out_fake(*args):
    check_conv2d_pixels_out(*args)


_RESBLOCK_TENSORS = operator.itemgetter(*range(7), *range(9, 15), 16, 17, 18, 24, 26, 27)
_RESBLOCK_SETTINGS = operator.itemgetter(7, 8, 15, *range(19, 24))


def _resblock_out(*args):
    key = "resblock_out", signature(_RESBLOCK_TENSORS(args)), _RESBLOCK_SETTINGS(args), tuple(args[25])
    packed_codes, backend, y, y_q = args[22], args[23], *args[26:]
    check = READY.get(key)
    if check is None:
        check_resblock(*args)
        check = keep(key, ready_apart("resblock_out", args[0], args[16], y, y_q))
    check(args[0], args[16], y, y_q)
    backend_module(backend).resblock_out(*resblock_convs(*args), y, y_q, **_packing(packed_codes))


def _ready_quantization(x, shift, grid, bits, fraction, packed_codes, start, backend, threads, depth, region, y_q):
    """What runs a checked quantisation: a function of (x, shift, grid, bits, depth, y_q)."""
    settings = ({"packed_codes": True, "start": start} if packed_codes else {}) | _held_in(fraction)
    if backend in MAKES_READY:
        place = {"depth": depth, "region": region}
        return backend_module(backend).ready_quantize_out(x, shift, grid, bits, threads, y_q, **settings, **place)

    def run(x, shift, grid, bits, depth, y_q):
        place = {} if depth is None else {"depth": depth, "region": region}
        backend_module(backend).quantize_out(x, shift, grid, bits, threads, y_q, **settings, **place)

    return run


def _quantize(*args):
    key = "quantize", signature(args[:4]), args[4:], args[6] == "triton" and _launched(args[0])
    return (READY.get(key) or keep(key, _ready_quantize(args)))(*args[:4])


def _ready_quantize(args):
    x, shift, grid, bits, fraction, packed_codes, backend, threads = args
    shape = check_quantize(*args)
    into = x.new_empty(shape, dtype=torch.uint8)
    run_into = _ready_quantization(x, shift, grid, bits, fraction, packed_codes, 0, backend, threads, None, (), into)

    def run(x, shift, grid, bits):
        y_q = x.new_empty(shape, dtype=torch.uint8)
        run_into(x, shift, grid, bits, None, y_q)
        return y_q

    return run


def _quantize_fake(x, shift, grid, bits, fraction, packed_codes, backend, threads):
    return x.new_empty(check_quantize(x, shift, grid, bits, fraction, packed_codes, backend, threads), dtype=torch.uint8)


def _quantize_out(*args):
    tensors = (*args[:4], args[9], args[11])
    key = "quantize_out", signature(tensors), args[4:9], tuple(args[10]), args[7] == "triton" and _launched(args[0])
    (READY.get(key) or keep(key, _ready_quantize_out(args)))(*tensors)


def _ready_quantize_out(args):
    check_quantize_out(*args)
    return _ready_quantization(*args)


def _quantize_many_out(x, grids, bits, packed_codes, starts, backend, threads, y_q):
    check_quantize_many_out(x, grids, bits, packed_codes, starts, backend, threads, y_q)
    module = backend_module(backend)
    if backend in QUANTIZE_MANY:
        return module.quantize_many_out(x, grids, bits, starts, y_q, **_packing(packed_codes))
    for grid, own_bits, start, codes in zip(grids, bits, starts, y_q, strict=True):
        packing = {"packed_codes": True, "start": start} if packed_codes else {}
        module.quantize_out(x, None, grid, own_bits, threads, codes, **packing)
    return None


def _tile_depths_empty(x_q, tile, top, left, threshold, deep, backend, threads):
    """Checks every argument; the output."""
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


def _tile_depths(*args):
    depth = _tile_depths_empty(*args)
    x_q, tile, top, left, threshold, deep, backend, threads = args
    tiles = as_tiles(depth, *x_q.shape[:3], tile, top, left)
    backend_module(backend).tile_depths_out(x_q, tile, top, left, threshold, deep, threads, tiles)
    return depth


def _image_measure(x, backend):
    check_images("image_measure", x, backend)
    return _measured(x, backend)


def _measured(x, backend):
    return getattr(backend_module(backend), "image_measure", measure_images)(x)


def _image_measure_fake(x, backend):
    check_images("image_measure", x, backend)
    return x.new_empty(x.shape[0])


def _layer_bits(x, lower, upper, rules, backend):
    check_layer_bits(x, lower, upper, rules, backend)
    own = getattr(backend_module(backend), "layer_bits", None)
    if own is not None:
        return own(x, lower, upper, rules)
    return bits_by_rule(rules, image_offsets(_measured(x, backend), lower, upper))


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
    """What an operator does with tensors of a device that no backend knows: an error that names the argument and the device."""

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
torch.library.register_fake("adabm::resblock_out", check_resblock, lib=_LIB)
torch.library.register_fake("adabm::quantize", _quantize_fake, lib=_LIB)
torch.library.register_fake("adabm::quantize_out", check_quantize_out, lib=_LIB)
torch.library.register_fake("adabm::quantize_many_out", check_quantize_many_out, lib=_LIB)
torch.library.register_fake("adabm::tile_depths", _tile_depths_empty, lib=_LIB)
torch.library.register_fake("adabm::image_measure", _image_measure_fake, lib=_LIB)
torch.library.register_fake("adabm::layer_bits", _layer_bits_fake, lib=_LIB)
conv2d_out = torch.ops.adabm.conv2d_out.default
