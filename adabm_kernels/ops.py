"""The operators `torch.ops.adabm.*`: schemas, fakes, dispatch. The only file that calls torch.library.

Code tensors are uint8 [N, H, W, C4], C4 = C rounded up to a multiple of 4, padding channels 0. Features are float32 or, where a
fraction is given with them, int16 in units of 2^-fraction (quantize.to_fixed).
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Sequence
from types import ModuleType

import torch

from .backends import devices
from .backends.call import ACTIVATIONS, FEATURES, Conv
from .exits import MAX_BEND
from .measure import bits_by_rule, image_offsets, measure_images
from .quantize import CODE_CHANNELS, MAX_BITS, MAX_FRACTION, MIN_BITS, MIN_FRACTION, padded_channels
from .regions import MAX_DEPTH, MAX_TILE, NUMBERS, as_tiles, flat_length, passes_on, tiles_of

OUTPUTS = ("codes", "float", "both", "acc")
MAX_SHUFFLE = 16
_WIDTHS = MAX_BITS - MIN_BITS + 1
_BACKENDS = ("cuda", "triton", "cpu", "reference")  # each a module in backends/
RESBLOCKS = ("cuda",)  # backends that have residual blocks in one piece
QUANTIZE_MANY = ("cuda",)  # backends that quantise on several grids in one pass
PACKED_CODES = ("cuda", "triton", "reference")  # backends that know several codes a byte
INT16_FEATURES = ("cuda", "triton", "cpu", "reference")  # backends that know features of 16 bits

_LIB = torch.library.Library("adabm", "DEF")
# Compilers may change no strides on the way in: y and y_q are written where they lie. Torch before 2.7 has no such tag.
_TAGS = tuple(getattr(torch.Tag, name) for name in ("pt2_compliant_tag", "needs_exact_strides") if hasattr(torch.Tag, name))
# What a convolution reads (backends/call.py, Conv), in the order of the schemas.
_TABLES = "Tensor x_q, Tensor x_bits, Tensor weight, Tensor packed, Tensor alpha, Tensor beta, Tensor? slope, Tensor? residual"
_GRID, _FORM = "Tensor? out_grid, Tensor? out_bits", "bool box_filter, str activation, int shuffle"
_FEATURES = "str features, int fraction"  # how y and the residual are stored
_PLACE = "Tensor? depth, int[] region"  # regions.Depths.values, flat or not, and regions.Region.numbers
_LIB.define(
    f"conv2d({_TABLES}, {_GRID}, {_FORM}, str out, {_FEATURES}, bool packed_codes, str backend, int threads) -> (Tensor, Tensor)",
    tags=_TAGS,
)
_LIB.define(
    f"conv2d_out({_TABLES}, {_GRID}, {_FORM}, bool accumulate, {_FEATURES}, bool packed_codes, str backend, int threads, "
    f"{_PLACE}, Tensor(a!)? y, Tensor(b!)? y_q) -> ()",
    tags=_TAGS,
)
_LIB.define(
    f"conv2d_pixels({_TABLES}, {_FORM}, bool packed_codes, str backend, int threads) -> Tensor",
    tags=_TAGS,
)
_LIB.define(
    f"conv2d_pixels_out({_TABLES}, {_FORM}, bool packed_codes, str backend, int threads, {_PLACE}, Tensor(a!) image) -> ()",
    tags=_TAGS,
)
_LIB.define(
    "resblock_out(Tensor x_q, Tensor x_bits, Tensor weight, Tensor packed, Tensor alpha, Tensor beta, Tensor? slope, "
    "bool box_filter, str activation, Tensor inner_grid, Tensor inner_bits, Tensor weight2, Tensor packed2, Tensor alpha2, "
    "Tensor beta2, bool box_filter2, Tensor? residual, Tensor? out_grid, Tensor? out_bits, bool accumulate, "
    f"{_FEATURES}, bool packed_codes, str backend, {_PLACE}, Tensor(a!)? y, Tensor(b!)? y_q) -> ()",
    tags=_TAGS,
)
_LIB.define(
    "quantize(Tensor x, Tensor? shift, Tensor grid, Tensor bits, int fraction, bool packed_codes, str backend, int threads) -> "
    "Tensor",
    tags=_TAGS,
)
_LIB.define(
    "quantize_out(Tensor x, Tensor? shift, Tensor grid, Tensor bits, int fraction, bool packed_codes, int start, str backend, "
    f"int threads, {_PLACE}, Tensor(a!) y_q) -> ()",
    tags=_TAGS,
)
_LIB.define(
    "quantize_many_out(Tensor x, Tensor[] grids, Tensor[] bits, bool packed_codes, int[] starts, str backend, int threads, "
    "Tensor(a!)[] y_q) -> ()",
    tags=_TAGS,
)
_LIB.define(
    "tile_depths(Tensor x_q, int tile, int top, int left, int threshold, int deep, str backend, int threads) -> Tensor",
    tags=_TAGS,
)
_LIB.define("image_measure(Tensor x, str backend) -> Tensor", tags=_TAGS)
_LIB.define("layer_bits(Tensor x, Tensor lower, Tensor upper, Tensor rules, str backend) -> Tensor", tags=_TAGS)


def _require(condition: bool, message: Callable[[], str]) -> None:
    # torch._check says the same, at ten times the price: it runs some thirty times a layer.
    if not condition:
        raise RuntimeError(message())


@functools.cache
def _module(backend: str) -> ModuleType:
    # On first use: importing the package loads no backend that it may not need.
    return importlib.import_module(f".backends.{backend}", __package__)


def _check_place(operator: str, backend: str, packed_codes: bool, first: str, tensors: dict[str, torch.Tensor | None]) -> None:
    """All tensors on one device, which the backend can compute on; `first` names the one that decides."""
    _require(backend in _BACKENDS, lambda: f"{operator}: backend must be one of {_BACKENDS}, got {backend!r}")
    device = tensors[first].device
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise RuntimeError(f"{operator}: {name} must be on the device of {first}, {device}, got {tensor.device}")
    _require(
        backend != "cpu" or device.type == "cpu",
        lambda: f"{operator}: backend 'cpu' needs tensors in main memory, {first} is on {device}",
    )
    _require(
        backend != "triton" or device.type == "cuda" or devices.interpreting(),
        lambda: f"{operator}: backend 'triton' needs tensors on a CUDA device, {first} is on {device}",
    )
    _require(
        not packed_codes or backend in PACKED_CODES,
        lambda: f"{operator}: packed_codes needs a backend of {PACKED_CODES}, got {backend!r}",
    )


def _expect(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple) -> None:
    _require(tensor.dtype == dtype, lambda: f"{name} must be {dtype}, got {tensor.dtype}")
    _require(tuple(tensor.shape) == tuple(shape), lambda: f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")


def _check_features(operator: str, features: str, fraction: int, backend: str) -> None:
    """features, fraction: how the operator stores its features (`quantize.to_fixed`)."""
    _require(features in FEATURES, lambda: f"{operator}: features must be one of {tuple(FEATURES)}, got {features!r}")
    least, most = (0, 0) if features == "float32" else (MIN_FRACTION, MAX_FRACTION)
    _require(
        least <= fraction <= most,
        lambda: f"{operator}: fraction must be {f'{least}..{most}' if most else 0} with {features} features, got {fraction}",
    )
    _require(
        features == "float32" or backend in INT16_FEATURES,
        lambda: f"{operator}: features of int16 need a backend of {INT16_FEATURES}, got {backend!r}",
    )


def _conv2d_outputs(conv: Conv, out: str, packed_codes: bool, backend: str, threads: int) -> tuple[tuple, tuple]:
    """Checks every argument and returns (shape of y, shape of y_q)."""
    x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, _, activation, shuffle, *_ = conv
    _require(x_q.dim() == 4, lambda: f"conv2d: x_q must be [N, H, W, C4], got shape {list(x_q.shape)}")
    _require(
        weight.dim() in (4, 6),
        lambda: f"conv2d: weight must be [K, R, S, C] or [R, S, K, R, S, C], got shape {list(weight.shape)}",
    )
    n, h, w, _ = x_q.shape
    k, r, s, c = weight.shape[-4:]
    by_class = weight.dim() == 6
    _require(n > 0 and h > 0 and w > 0, lambda: f"conv2d: x_q must not be empty, got shape {list(x_q.shape)}")
    _expect("conv2d: x_q", x_q, torch.uint8, (n, h, w, padded_channels(c)))
    _expect("conv2d: x_bits", x_bits, torch.int32, (n,))
    _expect("conv2d: weight", weight, torch.int8, (r, s, k, r, s, c) if by_class else (k, r, s, c))
    _require(
        not by_class or (h >= r and w >= s),
        lambda: f"conv2d: an image with kernels by border class must be at least {r}x{s}, got {h}x{w}",
    )
    _require(packed.dtype == torch.uint8, lambda: f"conv2d: packed must be uint8, got {packed.dtype}")
    _expect("conv2d: alpha", alpha, torch.float32, (_WIDTHS, k))
    _require(r % 2 == 1 and s % 2 == 1, lambda: f"conv2d: the kernel must be odd, got {r}x{s}")
    classes = (r, s) if by_class else ((r // 2 + 1) ** 2, (s // 2 + 1) ** 2)
    _expect("conv2d: beta", beta, torch.float32, (*classes, k))
    _require(activation in ACTIVATIONS, lambda: f"conv2d: activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
    _require(out in OUTPUTS, lambda: f"conv2d: out must be one of {OUTPUTS}, got {out!r}")
    _check_place("conv2d", backend, packed_codes, "x_q", conv.tensors)
    _require(
        not packed_codes or x_q.is_contiguous(),
        lambda: f"conv2d: x_q must be contiguous with packed_codes, got strides {x_q.stride()}",
    )
    _require(threads >= 0, lambda: f"conv2d: threads must be 0 (as torch) or more, got {threads}")
    _require(1 <= shuffle <= MAX_SHUFFLE, lambda: f"conv2d: shuffle must be 1..{MAX_SHUFFLE}, got {shuffle}")
    _require(
        k % shuffle**2 == 0,
        lambda: f"conv2d: shuffle^2 must divide {k} outputs, got shuffle={shuffle}",
    )
    size = (n, h * shuffle, w * shuffle)
    channels = k // shuffle**2
    if activation == "prelu":
        _require(slope is not None, lambda: "conv2d: activation 'prelu' needs slope")
        _expect("conv2d: slope", slope, torch.float32, (k,))
    _check_features("conv2d", conv.features, conv.fraction, backend)
    if conv.features != "float32":
        _require(out != "acc", lambda: f"conv2d: out='acc' needs float32 features, got {conv.features}")
        _require(shuffle == 1, lambda: f"conv2d: shuffle must be 1 with {conv.features} features, got {shuffle}")
    if residual is not None:
        _expect("conv2d: residual", residual, FEATURES[conv.features], (*size, channels))
    if out in ("codes", "both"):
        _require(out_grid is not None and out_bits is not None, lambda: f"conv2d: out={out!r} needs out_grid and out_bits")
        _expect("conv2d: out_grid", out_grid, torch.float32, (_WIDTHS, 2))
        _expect("conv2d: out_bits", out_bits, torch.int32, (n,))
    y = (*size, channels) if out != "codes" else (0,)
    y_q = (*size, padded_channels(channels)) if out in ("codes", "both") else (0,)
    return y, y_q


def _check_quantize(x, shift, grid, bits, fraction, packed_codes, backend, threads):
    _require(x.dim() == 4, lambda: f"quantize: x must be [N, C, H, W], got shape {list(x.shape)}")
    n, c, h, w = x.shape
    _require(n * c * h * w > 0, lambda: f"quantize: x must not be empty, got shape {list(x.shape)}")
    _require(x.dtype in FEATURES.values(), lambda: f"quantize: x must be torch.float32 or torch.int16, got {x.dtype}")
    _check_features("quantize", "int16" if x.dtype == torch.int16 else "float32", fraction, backend)
    _require(x.dtype == torch.float32 or shift is None, lambda: f"quantize: shift must be None with x of {x.dtype}")
    _expect("quantize: grid", grid, torch.float32, (_WIDTHS, 2))
    _expect("quantize: bits", bits, torch.int32, (n,))
    if shift is not None:
        _expect("quantize: shift", shift, torch.float32, (c,))
    _check_place("quantize", backend, packed_codes, "x", {"x": x, "shift": shift, "grid": grid, "bits": bits})
    _require(threads >= 0, lambda: f"quantize: threads must be 0 (as torch) or more, got {threads}")
    return n, h, w, padded_channels(c)


def _expect_slice(name: str, tensor: torch.Tensor) -> None:
    """[N, H, W, C] must be some channels of dense [N, H, W, more channels]."""
    _, h, w, c = tensor.shape
    pitch = tensor.stride(2)
    dense = tensor.is_contiguous() or (pitch >= c and tensor.stride() == (h * w * pitch, w * pitch, pitch, 1))
    _require(
        dense, lambda: f"{name} must be contiguous or a slice of the channels of a contiguous tensor, got strides {tensor.stride()}"
    )


def _empty_outputs(conv, out, y, y_q):
    """(y, y_q) of these shapes; what `out` does not ask for has none and is empty."""
    y_dtype, device = torch.int32 if out == "acc" else FEATURES[conv.features], conv.x_q.device
    return torch.empty(y, dtype=y_dtype, device=device), torch.empty(y_q, dtype=torch.uint8, device=device)


def _conv2d(*args):
    conv, (out, features, fraction, packed_codes, backend, threads) = _split(args)
    conv = conv._replace(features=features, fraction=fraction)
    y, y_q = _empty_outputs(conv, out, *_conv2d_outputs(conv, out, packed_codes, backend, threads))
    wanted = (None if out == "codes" else y, y_q if out in ("codes", "both") else None)
    _module(backend).conv2d_out(conv, threads, *wanted, **_packing(packed_codes))
    return y, y_q


def _split(args: tuple) -> tuple[Conv, tuple]:
    """What the convolution reads, without a region, and the arguments behind it."""
    count = Conv._fields.index("depth")
    return Conv(*args[:count]), args[count:]


def _check_region(
    operator: str, depth: torch.Tensor | None, region: Sequence[int], like: torch.Tensor, size: Sequence[int]
) -> None:
    """depth, region: those of the operator. like: a tensor on the device they must be on. size: images, rows and columns."""
    count = 0 if depth is None else NUMBERS
    _require(len(region) == count, lambda: f"{operator}: region must be {count} numbers (regions.Region), got {list(region)}")
    if depth is None:
        return
    tile, *before = region[:3]
    _check_tiles(operator, tile, *before)
    reaches = region[7], region[10]
    _require(
        all(0 <= reach <= tile for reach in reaches), lambda: f"{operator}: reaches must be 0..{tile}, the tile, got {reaches}"
    )
    if depth.dim() == 1:
        shape = (flat_length(*size, tile, *before),)
    else:
        shape = size[0], *(tiles_of(length, tile, lacking) for length, lacking in zip(size[1:], before, strict=True))
    _expect(f"{operator}: depth", depth, torch.uint8, shape)
    _require(depth.is_contiguous(), lambda: f"{operator}: depth must be contiguous, got strides {depth.stride()}")
    _require(depth.device == like.device, lambda: f"{operator}: depth must be on {like.device}, got {depth.device}")


def _check_tiles(operator: str, tile: int, top: int, left: int) -> None:
    _require(
        1 <= tile <= MAX_TILE and 0 <= top < tile and 0 <= left < tile,
        lambda: f"{operator}: tile must be 1..{MAX_TILE}, and top and left 0..tile - 1, got {tile}, {top} and {left}",
    )


def _packing(packed_codes: bool) -> dict[str, bool]:
    # Only backends in PACKED_CODES take the argument.
    return {"packed_codes": True} if packed_codes else {}


def _conv2d_fake(*args):
    conv, (out, features, fraction, *settings) = _split(args)
    conv = conv._replace(features=features, fraction=fraction)
    return _empty_outputs(conv, out, *_conv2d_outputs(conv, out, *settings))


def _conv2d_out_check(conv, accumulate, features, fraction, packed_codes, backend, threads, depth, region, y, y_q):
    """Checks every argument; the convolution with its features and its region, whose residual is y where it accumulates."""
    conv = conv._replace(features=features, fraction=fraction)
    residual, shuffle = conv.residual, conv.shuffle
    _check_region("conv2d_out", depth, region, conv.x_q, conv.x_q.shape[:3])
    _require(
        not passes_on(region) or shuffle == 1, lambda: f"conv2d_out: pixels are passed on only without a shuffle, got {shuffle}",
    )
    _require(y is not None or y_q is not None, lambda: "conv2d_out: one of y and y_q must be given")
    _require(
        not accumulate or (y is not None and residual is None),
        lambda: "conv2d_out: accumulate needs y, and takes the place of residual",
    )
    out = "both" if y is not None and y_q is not None else "float" if y_q is None else "codes"
    shapes = _conv2d_outputs(conv, out, packed_codes, backend, threads)
    _check_place("conv2d_out", backend, packed_codes, "x_q", {"x_q": conv.x_q, "y": y, "y_q": y_q})
    if y_q is not None:
        _expect("conv2d_out: y_q", y_q, torch.uint8, shapes[1])
        _require(y_q.is_contiguous(), lambda: "conv2d_out: y_q must be contiguous")
    if y is not None:
        _expect("conv2d_out: y", y, FEATURES[features], shapes[0])
        _require(
            features == "float32" or y.is_contiguous(),
            lambda: f"conv2d_out: y must be contiguous with {features} features, got strides {y.stride()}",
        )
        if not y.is_contiguous():
            _expect_slice("conv2d_out: y", y)
            _require(shuffle == 1, lambda: f"conv2d_out: y must be contiguous with a shuffle, got shuffle={shuffle}")
            _require(
                residual is None or residual.stride() == y.stride(),
                lambda: f"conv2d_out: residual must have the strides of y, {y.stride()}, got {residual.stride()}",
            )
    return conv._replace(residual=y if accumulate else residual, depth=depth, region=tuple(region))


def _check_apart(operator: str, x_q: torch.Tensor, y_q: torch.Tensor | None) -> None:
    # Codes of a pixel are written while its neighbours' results still need those that were there.
    _require(y_q is None or y_q.data_ptr() != x_q.data_ptr(), lambda: f"{operator}: y_q must not be x_q")


def _conv2d_out(*args):
    conv, rest = _split(args)
    *_, packed_codes, backend, threads, _depth, _region, y, y_q = rest
    conv = _conv2d_out_check(conv, *rest)
    _check_apart("conv2d_out", conv.x_q, y_q)
    _module(backend).conv2d_out(conv, threads, y, y_q, **_packing(packed_codes))


def _conv2d_out_fake(*args):
    conv, rest = _split(args)
    _conv2d_out_check(conv, *rest)


def _conv2d_pixels_empty(*args):
    """Checks every argument; the output."""
    conv, settings = _split(_without_codes(args))
    shape, _ = _conv2d_outputs(conv, "float", *settings)
    return torch.empty(shape, dtype=torch.uint8, device=conv.x_q.device)


def _without_codes(args: tuple) -> tuple:
    """The arguments of conv2d_pixels with an out_grid and out_bits of None where Conv has them."""
    return (*args[:8], None, None, *args[8:])


def _conv2d_pixels(*args):
    image = _conv2d_pixels_empty(*args)
    conv, (packed_codes, backend, threads) = _split(_without_codes(args))
    _module(backend).conv2d_pixels_out(conv, threads, image, **_packing(packed_codes))
    return image


def _conv2d_pixels_out_check(*args):
    """Checks every argument; the convolution with its region, and the settings behind it."""
    conv, (packed_codes, backend, threads, depth, region, image) = _split(_without_codes(args))
    shape, _ = _conv2d_outputs(conv, "float", packed_codes, backend, threads)
    _check_region("conv2d_pixels_out", depth, region, conv.x_q, conv.x_q.shape[:3])
    _require(not passes_on(region), lambda: "conv2d_pixels_out: region must pass no pixels on")
    _expect("conv2d_pixels_out: image", image, torch.uint8, shape)
    _require(image.is_contiguous(), lambda: "conv2d_pixels_out: image must be contiguous")
    _check_place("conv2d_pixels_out", backend, packed_codes, "x_q", {"x_q": conv.x_q, "image": image})
    return conv._replace(depth=depth, region=tuple(region)), packed_codes, backend, threads, image


def _conv2d_pixels_out(*args):
    conv, packed_codes, backend, threads, image = _conv2d_pixels_out_check(*args)
    _module(backend).conv2d_pixels_out(conv, threads, image, **_packing(packed_codes))


def _conv2d_pixels_out_fake(*args):
    _conv2d_pixels_out_check(*args)


def _resblock_parts(
    x_q, x_bits, weight, packed, alpha, beta, slope, box_filter, activation, inner_grid, inner_bits, weight2, packed2, alpha2,
    beta2, box_filter2, residual, out_grid, out_bits, accumulate, features, fraction, packed_codes, backend, depth, region, y, y_q,
):  # fmt: skip
    """Checks every argument and returns both convolutions."""
    _require(backend in RESBLOCKS, lambda: f"resblock_out: backend must be one of {RESBLOCKS}, got {backend!r}")
    first = Conv(x_q, x_bits, weight, packed, alpha, beta, slope, None, inner_grid, inner_bits, box_filter, activation, 1)
    _conv2d_outputs(first, "codes", packed_codes, backend, 0)
    _require(
        weight.dim() == 4 and weight.shape[0] == weight.shape[-1],
        lambda: f"resblock_out: weight must have as many outputs as inputs, got shape {list(weight.shape)}",
    )
    # The codes in the middle, which no tensor holds, have the shape of x_q.
    second = Conv(x_q, inner_bits, weight2, packed2, alpha2, beta2, None, residual, out_grid, out_bits, box_filter2, "none", 1)
    place = depth, region, y, y_q
    return first, _conv2d_out_check(second, accumulate, features, fraction, packed_codes, backend, 0, *place)


def _resblock_out(*args):
    *_, packed_codes, backend, _depth, _region, y, y_q = args
    parts = _resblock_parts(*args)
    _check_apart("resblock_out", args[0], y_q)
    _module(backend).resblock_out(*parts, y, y_q, **_packing(packed_codes))


def _resblock_out_fake(*args):
    _resblock_parts(*args)


def _quantize(x, shift, grid, bits, fraction, packed_codes, backend, threads):
    y_q = _quantize_fake(x, shift, grid, bits, fraction, packed_codes, backend, threads)
    settings = _packing(packed_codes) | _held_in(fraction)
    _module(backend).quantize_out(x, shift, grid, bits, threads, y_q, **settings)
    return y_q


def _held_in(fraction: int) -> dict[str, int]:
    # Backends that know no features of 16 bits do not take the argument.
    return {"fraction": fraction} if fraction else {}


def _quantize_out_check(x, shift, grid, bits, fraction, packed_codes, start, backend, threads, depth, region, y_q):
    n, h, w, _ = _check_quantize(x, shift, grid, bits, fraction, packed_codes, backend, threads)
    _check_region("quantize_out", depth, region, x, (n, h, w))
    _require(not passes_on(region), lambda: "quantize_out: region must pass no pixels on")
    _check_place("quantize_out", backend, packed_codes, "x", {"x": x, "y_q": y_q})
    held = start + x.shape[1]
    _require(y_q.dim() == 4 and y_q.shape[3] >= held, lambda: f"quantize_out: y_q must hold {held} channels")
    _expect("quantize_out: y_q", y_q, torch.uint8, (n, h, w, y_q.shape[3]))
    if packed_codes:
        _require(
            y_q.is_contiguous() and y_q.shape[3] % CODE_CHANNELS == 0,
            lambda: (
                f"quantize_out: y_q must be all of a code buffer with packed_codes, got shape {list(y_q.shape)}, "
                f"strides {y_q.stride()}"
            ),
        )
        _require(
            start >= 0 and start % CODE_CHANNELS == 0,
            lambda: f"quantize_out: start must be a multiple of {CODE_CHANNELS}, got {start}",
        )
    else:
        _require(start == 0, lambda: f"quantize_out: start must be 0 without packed_codes (y_q is then the slice), got {start}")
        _expect_slice("quantize_out: y_q", y_q)


def _quantize_out(*args):
    _quantize_out_check(*args)
    *rest, fraction, packed_codes, start, backend, threads, depth, region, y_q = args
    settings = {"packed_codes": True, "start": start} if packed_codes else {}
    settings |= ({} if depth is None else {"depth": depth, "region": region}) | _held_in(fraction)
    _module(backend).quantize_out(*rest, threads, y_q, **settings)


def _quantize_many_out_check(x, grids, bits, packed_codes, starts, backend, threads, y_q):
    counts = [len(tensors) for tensors in (grids, bits, starts, y_q)]
    _require(
        counts[0] > 0 and len(set(counts)) == 1,
        lambda: f"quantize_many_out: as many grids, bits, starts and y_q must be given, and at least one, got {counts}",
    )
    _require(x.dtype == torch.float32, lambda: f"quantize_many_out: x must be torch.float32, got {x.dtype}")
    for target in zip(grids, bits, starts, y_q, strict=True):
        _quantize_out_check(x, None, *target[:2], 0, packed_codes, target[2], backend, threads, None, (), target[3])


def _quantize_many_out(x, grids, bits, packed_codes, starts, backend, threads, y_q):
    _quantize_many_out_check(x, grids, bits, packed_codes, starts, backend, threads, y_q)
    module = _module(backend)
    if backend in QUANTIZE_MANY:
        return module.quantize_many_out(x, grids, bits, starts, y_q, **_packing(packed_codes))
    for grid, own_bits, start, codes in zip(grids, bits, starts, y_q, strict=True):
        packing = {"packed_codes": True, "start": start} if packed_codes else {}
        module.quantize_out(x, None, grid, own_bits, threads, codes, **packing)
    return None


def _quantize_fake(x, shift, grid, bits, fraction, packed_codes, backend, threads):
    return x.new_empty(_check_quantize(x, shift, grid, bits, fraction, packed_codes, backend, threads), dtype=torch.uint8)


def _tile_depths_empty(x_q, tile, top, left, threshold, deep, backend, threads):
    """Checks every argument; the output."""
    _require(x_q.dim() == 4 and x_q.numel() > 0, lambda: f"tile_depths: x_q must be [N, H, W, 4], got shape {list(x_q.shape)}")
    n, h, w, _ = x_q.shape
    _expect("tile_depths: x_q", x_q, torch.uint8, (n, h, w, CODE_CHANNELS))
    _require(x_q.is_contiguous(), lambda: f"tile_depths: x_q must be contiguous, got strides {x_q.stride()}")
    _check_tiles("tile_depths", tile, top, left)
    _require(0 <= threshold <= MAX_BEND, lambda: f"tile_depths: threshold must be 0..{MAX_BEND}, got {threshold}")
    _require(1 <= deep <= MAX_DEPTH, lambda: f"tile_depths: deep must be 1..{MAX_DEPTH}, got {deep}")
    _require(threads >= 0, lambda: f"tile_depths: threads must be 0 (as torch) or more, got {threads}")
    _check_place("tile_depths", backend, False, "x_q", {"x_q": x_q})
    return x_q.new_zeros(flat_length(n, h, w, tile, top, left))


def _tile_depths(*args):
    depth = _tile_depths_empty(*args)
    x_q, tile, top, left, threshold, deep, backend, threads = args
    tiles = as_tiles(depth, *x_q.shape[:3], tile, top, left)
    _module(backend).tile_depths_out(x_q, tile, top, left, threshold, deep, threads, tiles)
    return depth


def _check_images(operator, x, backend):
    _require(
        x.dim() == 4 and x.shape[1] == 3 and x.numel() > 0,
        lambda: f"{operator}: x must be [N, 3, H, W] and not empty, got shape {list(x.shape)}",
    )
    _require(x.dtype == torch.float32, lambda: f"{operator}: x must be torch.float32, got {x.dtype}")
    _check_place(operator, backend, False, "x", {"x": x})


def _image_measure(x, backend):
    _check_images("image_measure", x, backend)
    return getattr(_module(backend), "image_measure", measure_images)(x)


def _image_measure_fake(x, backend):
    _check_images("image_measure", x, backend)
    return x.new_empty(x.shape[0])


def _check_layer_bits(x, lower, upper, rules, backend):
    _check_images("layer_bits", x, backend)
    _check_place("layer_bits", backend, False, "x", {"x": x, "lower": lower, "upper": upper, "rules": rules})
    _expect("layer_bits: lower", lower, torch.float32, ())
    _expect("layer_bits: upper", upper, torch.float32, ())
    _require(rules.dim() == 2, lambda: f"layer_bits: rules must be [L, 2], got shape {list(rules.shape)}")
    _expect("layer_bits: rules", rules, torch.int32, (rules.shape[0], 2))


def _layer_bits(x, lower, upper, rules, backend):
    _check_layer_bits(x, lower, upper, rules, backend)
    own = getattr(_module(backend), "layer_bits", None)
    if own is not None:
        return own(x, lower, upper, rules)
    return bits_by_rule(rules, image_offsets(_image_measure(x, backend), lower, upper))


def _layer_bits_fake(x, lower, upper, rules, backend):
    _check_layer_bits(x, lower, upper, rules, backend)
    return rules.new_empty(rules.shape[0], x.shape[0])


for _key in ("CPU", "CUDA"):
    _LIB.impl("conv2d", _conv2d, _key)
    _LIB.impl("conv2d_out", _conv2d_out, _key)
    _LIB.impl("conv2d_pixels", _conv2d_pixels, _key)
    _LIB.impl("conv2d_pixels_out", _conv2d_pixels_out, _key)
    _LIB.impl("resblock_out", _resblock_out, _key)
    _LIB.impl("quantize", _quantize, _key)
    _LIB.impl("quantize_out", _quantize_out, _key)
    _LIB.impl("quantize_many_out", _quantize_many_out, _key)
    _LIB.impl("tile_depths", _tile_depths, _key)
    _LIB.impl("image_measure", _image_measure, _key)
    _LIB.impl("layer_bits", _layer_bits, _key)


def _refusal(operator: str) -> Callable[..., None]:
    def refused(*args):
        tensors = [tensor for arg in args for tensor in (arg if isinstance(arg, (list, tuple)) else [arg])]
        found = next(t.device for t in tensors if isinstance(t, torch.Tensor) and devices.why_no_backend(str(t.device)))
        raise RuntimeError(f"{operator}: tensors must be on the CPU or on a CUDA device, got one on {found}")

    return refused


_OPERATORS = (
    "conv2d", "conv2d_out", "conv2d_pixels", "conv2d_pixels_out", "resblock_out", "quantize", "quantize_out", "quantize_many_out",
    "tile_depths", "image_measure", "layer_bits",
)  # fmt: skip
for _name, _key in itertools.product(_OPERATORS, ("XPU", "MPS", "HPU", "MTIA", "IPU", "VE", "XLA", "Lazy", "PrivateUse1")):
    _LIB.impl(_name, _refusal(_name), _key)
torch.library.register_fake("adabm::conv2d", _conv2d_fake, lib=_LIB)
torch.library.register_fake("adabm::conv2d_out", _conv2d_out_fake, lib=_LIB)
torch.library.register_fake("adabm::conv2d_pixels", _conv2d_pixels_empty, lib=_LIB)
torch.library.register_fake("adabm::conv2d_pixels_out", _conv2d_pixels_out_fake, lib=_LIB)
torch.library.register_fake("adabm::resblock_out", _resblock_out_fake, lib=_LIB)
torch.library.register_fake("adabm::quantize", _quantize_fake, lib=_LIB)
torch.library.register_fake("adabm::quantize_out", _quantize_out_check, lib=_LIB)
torch.library.register_fake("adabm::quantize_many_out", _quantize_many_out_check, lib=_LIB)
torch.library.register_fake("adabm::tile_depths", _tile_depths_empty, lib=_LIB)
torch.library.register_fake("adabm::image_measure", _image_measure_fake, lib=_LIB)
torch.library.register_fake("adabm::layer_bits", _layer_bits_fake, lib=_LIB)


def pack_weights(
    backend: str, weight: torch.Tensor, tile_for_bits: tuple[int, ...], box_filter: bool, shuffle: int
) -> torch.Tensor:
    """What `conv2d` takes as `packed` for int8 weights [K, R, S, C] or [R, S, K, R, S, C]: each backend has a form of its own.

    tile_for_bits: the tile that computes codes of 2..8 bits, seven indexes of tiles.TILES, for the CPU kernels (tiles.LayerPlan).
    box_filter, shuffle: those of the convolution. Raises ValueError naming the argument, the rule and the value.
    """

    def require(name: str, holds: bool, rule: str, seen: object) -> None:
        if not holds:
            raise ValueError(f"pack_weights: {name} must be {rule}, got {seen}")

    form = "int8 [K, R, S, C] or [R, S, K, R, S, C]"
    require("backend", backend in _BACKENDS, f"one of {_BACKENDS}", repr(backend))
    require("weight", weight.dtype == torch.int8 and weight.dim() in (4, 6), form, f"{weight.dtype} {list(weight.shape)}")
    if backend == "cpu":
        whole = len(tile_for_bits) == _WIDTHS and all(type(tile) is int for tile in tile_for_bits)
        require("weight", weight.device.type == "cpu", "in main memory for backend 'cpu'", weight.device)
        require("tile_for_bits", whole, f"{_WIDTHS} whole numbers", tile_for_bits)
        return _module(backend).pack(weight, tile_for_bits)
    if backend == "cuda":
        return _module(backend).pack(weight, box_filter, shuffle)
    return _module(backend).pack(weight, box_filter)


def conv2d(
    x_q: torch.Tensor,
    x_bits: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    *,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out_grid: torch.Tensor | None = None,
    out_bits: torch.Tensor | None = None,
    box_filter: bool = False,
    activation: str = "none",
    shuffle: int = 1,
    out: str = "float",
    features: str = "float32",
    fraction: int = 0,
    packed_codes: bool = False,
    backend: str = "cpu",
    threads: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integer convolution, stride 1, odd kernel, "same" zero padding, with its epilogue (formula: csrc/include/adabm/adabm.h).

    x_q: uint8 codes [N, H, W, C4], image n on x_bits[n] bits (int32 [N], 2..8). weight: int8 [K, R, S, C], the integers m,
    or k' with m = 2k' + 1 under `box_filter`;
    or [R, S, K, R, S, C], one kernel per border class of the pixel. packed: what `pack_weights` made of it for this
    backend (empty for the reference).
    alpha: float32 [7, K], per bit-width of x_q. beta: float32 [(R//2+1)^2, (S//2+1)^2, K] by border class; [R, S, K] with a
    kernel per class.
    slope: [K] for activation="prelu". residual: float32, shape of y. out_grid, out_bits: grid and bits of the output codes.
    out: "codes", "float", "both", or "acc" (the int32 accumulators). shuffle: factor of the PixelShuffle in the store, 1..16.
    features: "float32"; or "int16" for y and the residual in units of 2^-fraction (`quantize.to_fixed`), fraction -16..24: the
    codes, too, are then of the value that y holds, or would hold. Not with "acc" or a shuffle.
    packed_codes: x_q and y_q are buffers of `quantize.pack_codes`. threads: 0 takes torch.get_num_threads().

    Returns (y, y_q): float32 (int16, or int32) [N, H*r, W*r, K/r^2] and uint8 [N, H*r, W*r, (K/r^2)4]; what was not asked for is
    empty. Raises RuntimeError (from the dispatcher) or ValueError naming the argument, the rule and the value.
    """
    return torch.ops.adabm.conv2d(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, box_filter, activation, shuffle, out,
        features, fraction, packed_codes, backend, threads,
    )  # fmt: skip


def conv2d_out(
    x_q: torch.Tensor,
    x_bits: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    *,
    y: torch.Tensor | None = None,
    y_q: torch.Tensor | None = None,
    accumulate: bool = False,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out_grid: torch.Tensor | None = None,
    out_bits: torch.Tensor | None = None,
    box_filter: bool = False,
    activation: str = "none",
    shuffle: int = 1,
    features: str = "float32",
    fraction: int = 0,
    packed_codes: bool = False,
    backend: str = "cpu",
    threads: int = 0,
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
) -> None:
    """`conv2d` into tensors that exist already: float32 (or int16) y and uint8 y_q of the shapes it would return, at least one.

    y of float32 may be a slice of the channels of a wider contiguous tensor; a residual then has its strides. y_q must not be x_q.
    accumulate: y holds the residual and is added to. depth, region: which pixels are written, by the depth of each tile of the
    images, uint8 [N, rows, columns] (`regions.Depths`) or flat (`tile_depths`), and the numbers of a `regions.Region`; with y_q
    alone, no residual and no pixels passed on the codes around those are arbitrary. Raises as `conv2d`.
    """
    torch.ops.adabm.conv2d_out(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, box_filter, activation, shuffle,
        accumulate, features, fraction, packed_codes, backend, threads, depth, region, y, y_q,
    )  # fmt: skip


def conv2d_pixels(
    x_q: torch.Tensor,
    x_bits: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    *,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    box_filter: bool = False,
    activation: str = "none",
    shuffle: int = 1,
    packed_codes: bool = False,
    backend: str = "cpu",
    threads: int = 0,
) -> torch.Tensor:
    """The floats of `conv2d` as pixels, uint8 [N, H*r, W*r, K/r^2]: clamped to 0..255, rounded half to even (quantize.to_pixels).

    The kernels write them in place of floats; the reference makes them of floats. Raises as `conv2d`.
    """
    return torch.ops.adabm.conv2d_pixels(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, box_filter, activation, shuffle, packed_codes, backend, threads
    )


def conv2d_pixels_out(
    x_q: torch.Tensor,
    x_bits: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    *,
    image: torch.Tensor,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    box_filter: bool = False,
    activation: str = "none",
    shuffle: int = 1,
    packed_codes: bool = False,
    backend: str = "cpu",
    threads: int = 0,
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
) -> None:
    """`conv2d_pixels` into a contiguous image, uint8 of the shape it would return. depth, region: as in `conv2d_out`."""
    torch.ops.adabm.conv2d_pixels_out(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, box_filter, activation, shuffle, packed_codes, backend, threads,
        depth, region, image,
    )  # fmt: skip


def why_not_resblock(backend: str, *convs: tuple[torch.Tensor, bool]) -> str:
    """Why `resblock_out` cannot compute two convolutions, each (weight, box_filter), on a backend; empty where it can."""
    if backend not in RESBLOCKS:
        return f"backend {backend!r} computes convolutions one by one"
    return _module(backend).why_not_resblock(*convs)


def resblock_out(
    x_q: torch.Tensor,
    x_bits: torch.Tensor,
    first: tuple[torch.Tensor, ...],
    second: tuple[torch.Tensor, ...],
    inner_grid: torch.Tensor,
    inner_bits: torch.Tensor,
    *,
    y: torch.Tensor | None = None,
    y_q: torch.Tensor | None = None,
    accumulate: bool = False,
    residual: torch.Tensor | None = None,
    out_grid: torch.Tensor | None = None,
    out_bits: torch.Tensor | None = None,
    slope: torch.Tensor | None = None,
    activation: str = "none",
    box_filters: tuple[bool, bool] = (False, False),
    features: str = "float32",
    fraction: int = 0,
    packed_codes: bool = False,
    backend: str = "cuda",
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
) -> None:
    """Two convolutions as `conv2d_out` computes them one after the other, with the codes between them kept on the chip.

    first, second: (weight, packed, alpha, beta) of each. inner_grid, inner_bits: grid, float32 [7, 2], and bits, int32 [N], of the
    codes between them. slope, activation: the first's; the second has none. features, fraction: of y and the residual. depth,
    region: of the results, as in `conv2d_out`; the codes in the middle are those of 0 where no result is computed. y_q must not be
    x_q. Raises as `conv2d`, and RuntimeError where `why_not_resblock` gives a reason.
    """
    torch.ops.adabm.resblock_out(
        x_q, x_bits, *first, slope, box_filters[0], activation, inner_grid, inner_bits, *second, box_filters[1], residual, out_grid,
        out_bits, accumulate, features, fraction, packed_codes, backend, depth, region, y, y_q,
    )  # fmt: skip


def quantize(
    x: torch.Tensor,
    grid: torch.Tensor,
    bits: torch.Tensor,
    *,
    shift: torch.Tensor | None = None,
    fraction: int = 0,
    packed_codes: bool = False,
    backend: str = "cpu",
    threads: int = 0,
) -> torch.Tensor:
    """Codes of x - shift: float32 (or int16) [N, C, H, W] of any strides -> uint8 [N, H, W, C4].

    grid: float32 [7, 2] (quantize.act_grid). bits: int32 [N]. shift: float32 [C] or None. fraction: of an int16 x, which holds its
    values in units of 2^-fraction and has no shift. packed_codes: as in `conv2d`.
    Raises RuntimeError or ValueError naming the argument, the rule and the value.
    """
    return torch.ops.adabm.quantize(x, shift, grid, bits, fraction, packed_codes, backend, threads)


def quantize_out(
    x: torch.Tensor,
    grid: torch.Tensor,
    bits: torch.Tensor,
    y_q: torch.Tensor,
    *,
    shift: torch.Tensor | None = None,
    fraction: int = 0,
    packed_codes: bool = False,
    start: int = 0,
    backend: str = "cpu",
    threads: int = 0,
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
) -> None:
    """`quantize` into uint8 y_q [N, H, W, C or more], contiguous or a slice of the channels of a contiguous tensor.

    Channels of y_q beyond those of x become 0.
    packed_codes: y_q is all of a buffer [N, H, W, C4] of `quantize.pack_codes`, and the codes are its channels from `start`, a
    multiple of 4; those behind them become 0 up to the next multiple of 4 and, where that is C4, to the end of the pixel.
    depth, region: as in `conv2d_out`; no pixels are passed on. Raises as `quantize`.
    """
    torch.ops.adabm.quantize_out(x, shift, grid, bits, fraction, packed_codes, start, backend, threads, depth, region, y_q)


def quantize_many_out(
    x: torch.Tensor,
    grids: list[torch.Tensor],
    bits: list[torch.Tensor],
    y_q: list[torch.Tensor],
    *,
    packed_codes: bool = False,
    starts: list[int] | None = None,
    backend: str = "cpu",
    threads: int = 0,
) -> None:
    """`quantize_out` of the same x into several code buffers, each with a grid, bits and a start of its own.

    Backends of QUANTIZE_MANY read x once for all; the others do one after the other. Raises as `quantize`, and where there are not
    as many grids as bits, starts and y_q, at least one.
    """
    torch.ops.adabm.quantize_many_out(x, grids, bits, packed_codes, starts or [0] * len(grids), backend, threads, y_q)


def tile_depths(
    x_q: torch.Tensor,
    tile: int,
    threshold: int,
    deep: int,
    *,
    top: int = 0,
    left: int = 0,
    flat: bool = False,
    backend: str = "cpu",
    threads: int = 0,
) -> torch.Tensor:
    """The depth of each tile of images, by how much they bend (exits.tile_bends): uint8 [N, rows, columns] for `regions.Depths`.

    x_q: pixels as 8-bit codes, uint8 [N, H, W, 4], contiguous, the fourth channel 0. tile: pixels a side. threshold: 0..510; tiles
    that bend by more get the depth `deep`, 1..255, the others 0. top, left: rows and columns that the first tiles lack. flat: as
    the other operators take them too, and as programs traced for images of any size need them (regions.flat_length). Raises
    RuntimeError naming the argument, the rule and the value.
    """
    depth = torch.ops.adabm.tile_depths(x_q, tile, top, left, threshold, deep, backend, threads)
    return depth if flat else as_tiles(depth, *x_q.shape[:3], tile, top, left)


def image_measure(x: torch.Tensor, *, backend: str = "cpu") -> torch.Tensor:
    """`measure.image_measure` of float32 [N, 3, H, W] in 0..255 up to the rounding of its sums: float32 [N].

    Raises RuntimeError naming the argument, the rule and the value.
    """
    return torch.ops.adabm.image_measure(x, backend)


def layer_bits(
    x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, rules: torch.Tensor, *, backend: str = "cpu"
) -> torch.Tensor:
    """Bits of every layer's codes for every image, int32 [L, N], from the images float32 [N, 3, H, W] in 0..255.

    lower, upper: float32 [], thresholds of `image_measure`. rules: int32 [L, 2], see `measure.bits_by_rule`. Raises as
    `image_measure`.
    """
    return torch.ops.adabm.layer_bits(x, lower, upper, rules, backend)
