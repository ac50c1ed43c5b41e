"""Checks the arguments of the operators. The error of each check names the argument, the rule and the value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..backends import BACKENDS, cards, having
from ..backends.call import ACTIVATIONS, FEATURES, Conv, Outputs, Place, Quantization, Target
from ..quantize import CODE_CHANNELS, MAX_BITS, MAX_FRACTION, MIN_BITS, MIN_FRACTION, PLAIN, Geometry, padded_channels
from ..regions import MAX_TILE, NUMBERS, flat_length, passes_on, tiles_of

OUTPUTS = ("codes", "float", "both", "acc")
MAX_SHUFFLE = 16
WIDTHS = MAX_BITS - MIN_BITS + 1
Shape = tuple[int, ...]


def require(condition: bool, message: Callable[[], str]) -> None:
    """Raises RuntimeError with the message where the condition does not hold."""
    # torch._check does the same at ten times the cost, and this runs some thirty times for each layer.
    if not condition:
        raise RuntimeError(message())


def expect(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Shape) -> None:
    """Checks that the tensor has this type and shape."""
    require(tensor.dtype == dtype, lambda: f"{name} must be {dtype}, got {tensor.dtype}")
    require(tuple(tensor.shape) == tuple(shape), lambda: f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")


def expect_slice(name: str, tensor: torch.Tensor) -> None:
    """Checks that a tensor [N, H, W, C] is a slice of the channels of a dense tensor [N, H, W, more channels]."""
    _, h, w, c = tensor.shape
    pitch = tensor.stride(2)
    dense = tensor.is_contiguous() or (pitch >= c and tensor.stride() == (h * w * pitch, w * pitch, pitch, 1))
    require(
        dense, lambda: f"{name} must be contiguous or a slice of the channels of a contiguous tensor, got strides {tensor.stride()}"
    )


def check_place(operator: str, backend: str, packed_codes: bool, first: str, tensors: dict[str, torch.Tensor | None]) -> None:
    """Checks that all tensors are on one device, which the backend can compute on. `first` names the tensor whose device
    decides."""
    require(backend in BACKENDS, lambda: f"{operator}: backend must be one of {BACKENDS}, got {backend!r}")
    decides = tensors[first]
    assert decides is not None
    device = decides.device
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise RuntimeError(f"{operator}: {name} must be on the device of {first}, {device}, got {tensor.device}")
    require(
        backend != "cpu" or device.type == "cpu",
        lambda: f"{operator}: backend 'cpu' needs tensors in main memory, {first} is on {device}",
    )
    require(
        backend != "triton" or device.type == "cuda" or cards.interpreting(),
        lambda: f"{operator}: backend 'triton' needs tensors on a CUDA device, {first} is on {device}",
    )
    if packed_codes:
        check_ability(operator, backend, "packed_codes", "packed_codes needs")


def check_ability(operator: str, backend: str, ability: str, what_needs: str) -> None:
    """Checks that the backend has an ability (backends.having), which the call needs."""
    able = having(ability)
    require(backend in able, lambda: f"{operator}: {what_needs} a backend of {able}, got {backend!r}")


def why_not_geometry(backend: str, geometry: Geometry, kernel: Sequence[int]) -> str:
    """Why a backend cannot compute a convolution with this geometry and size of the kernel; empty where it can."""
    able = having("any_geometry")
    if backend in able or geometry.is_plain(*kernel):
        return ""
    return f"{geometry.describe(*kernel)} needs a backend of {able}, got {backend!r}"


def check_geometry(operator: str, backend: str, geometry: Geometry, kernel: Sequence[int]) -> None:
    """Checks that the backend can compute a convolution with this geometry."""
    why = why_not_geometry(backend, geometry, kernel)
    require(not why, lambda: f"{operator}: {why}")


def check_features(operator: str, features: str, fraction: int, backend: str) -> None:
    """Checks features and fraction, which say how the operator stores its features (`quantize.to_fixed`)."""
    require(features in FEATURES, lambda: f"{operator}: features must be one of {tuple(FEATURES)}, got {features!r}")
    least, most = (0, 0) if features == "float32" else (MIN_FRACTION, MAX_FRACTION)
    require(
        least <= fraction <= most,
        lambda: f"{operator}: fraction must be {f'{least}..{most}' if most else 0} with {features} features, got {fraction}",
    )
    if features != "float32":
        check_ability(operator, backend, "int16_features", "features of int16 need")


def conv2d_outputs(conv: Conv, out: str, backend: str) -> tuple[Shape, Shape]:
    """Checks every argument but the place, and returns the shapes of y and of y_q."""
    x_q, x_bits, weight, packed, alpha, beta = conv.x_q, conv.x_bits, conv.weight, conv.packed, conv.alpha, conv.beta
    slope, residual, out_grid, out_bits = conv.slope, conv.residual, conv.out_grid, conv.out_bits
    activation, shuffle, packed_codes, threads = conv.activation, conv.shuffle, conv.packed_codes, conv.threads
    require(x_q.dim() == 4, lambda: f"conv2d: x_q must be [N, H, W, C4], got shape {list(x_q.shape)}")
    require(
        weight.dim() in (4, 6),
        lambda: f"conv2d: weight must be [K, R, S, C] or [R, S, K, R, S, C], got shape {list(weight.shape)}",
    )
    n, h, w, _ = x_q.shape
    k, r, s, c = weight.shape[-4:]
    by_class = weight.dim() == 6
    require(n > 0 and h > 0 and w > 0, lambda: f"conv2d: x_q must not be empty, got shape {list(x_q.shape)}")
    require(conv.geometry is not PLAIN or (r % 2 == 1 and s % 2 == 1), lambda: f"conv2d: the kernel must be odd, got {r}x{s}")
    groups, plain = conv.geometry.groups, conv.geometry.is_plain(r, s)
    expect("conv2d: x_q", x_q, torch.uint8, (n, h, w, padded_channels(c * groups)))
    expect("conv2d: x_bits", x_bits, torch.int32, (n,))
    expect("conv2d: weight", weight, torch.int8, (r, s, k, r, s, c) if by_class else (k, r, s, c))
    require(
        not by_class or (h >= r and w >= s),
        lambda: f"conv2d: an image with kernels by border class must be at least {r}x{s}, got {h}x{w}",
    )
    require(packed.dtype == torch.uint8, lambda: f"conv2d: packed must be uint8, got {packed.dtype}")
    require(packed.is_contiguous(), lambda: f"conv2d: packed must be contiguous, got strides {packed.stride()}")
    expect("conv2d: alpha", alpha, torch.float32, (WIDTHS, k))
    require(
        not by_class or plain,
        lambda: f"conv2d: kernels by border class must be plain, got {conv.geometry.describe(r, s)}",
    )
    require(k % groups == 0, lambda: f"conv2d: groups must divide {k} outputs, got {groups}")
    rows, columns = conv.axes
    out_h, out_w = rows.outputs(h), columns.outputs(w)
    require(
        out_h > 0 and out_w > 0,
        lambda: (
            f"conv2d: a kernel of {rows.extent}x{columns.extent} pixels must fit the image with its padding, "
            f"{h + rows.before + rows.after}x{w + columns.before + columns.after}"
        ),
    )
    classes = (r, s) if by_class else (rows.classes, columns.classes)
    expect("conv2d: beta", beta, torch.float32, (*classes, k))
    require(activation in ACTIVATIONS, lambda: f"conv2d: activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
    require(out in OUTPUTS, lambda: f"conv2d: out must be one of {OUTPUTS}, got {out!r}")
    tensors = conv.tensors
    del tensors["depth"]  # check_region looks at it
    check_place("conv2d", backend, packed_codes, "x_q", tensors)
    check_geometry("conv2d", backend, conv.geometry, (r, s))
    require(
        not packed_codes or x_q.is_contiguous(),
        lambda: f"conv2d: x_q must be contiguous with packed_codes, got strides {x_q.stride()}",
    )
    require(threads >= 0, lambda: f"conv2d: threads must be 0 (as torch) or more, got {threads}")
    require(1 <= shuffle <= MAX_SHUFFLE, lambda: f"conv2d: shuffle must be 1..{MAX_SHUFFLE}, got {shuffle}")
    require(
        k % shuffle**2 == 0,
        lambda: f"conv2d: shuffle^2 must divide {k} outputs, got shuffle={shuffle}",
    )
    size = (n, out_h * shuffle, out_w * shuffle)
    channels = k // shuffle**2
    if activation == "prelu":
        if slope is None:
            raise RuntimeError("conv2d: activation 'prelu' needs slope")
        expect("conv2d: slope", slope, torch.float32, (k,))
    check_features("conv2d", conv.features, conv.fraction, backend)
    if conv.features != "float32":
        require(out != "acc", lambda: f"conv2d: out='acc' needs float32 features, got {conv.features}")
        require(shuffle == 1, lambda: f"conv2d: shuffle must be 1 with {conv.features} features, got {shuffle}")
    if residual is not None:
        expect("conv2d: residual", residual, FEATURES[conv.features], (*size, channels))
    if out in ("codes", "both"):
        if out_grid is None or out_bits is None:
            raise RuntimeError(f"conv2d: out={out!r} needs out_grid and out_bits")
        expect("conv2d: out_grid", out_grid, torch.float32, (WIDTHS, 2))
        expect("conv2d: out_bits", out_bits, torch.int32, (n,))
    y: Shape = (*size, channels) if out != "codes" else (0,)
    y_q: Shape = (*size, padded_channels(channels)) if out in ("codes", "both") else (0,)
    return y, y_q


def check_region(operator: str, place: Place, like: torch.Tensor, size: Sequence[int]) -> None:
    """Checks the depths and the region of a place. like: a tensor on the device that the depths must be on. size: images, rows and
    columns."""
    depth, region = place.depth, place.region
    count = 0 if depth is None else NUMBERS
    require(len(region) == count, lambda: f"{operator}: region must be {count} numbers (regions.Region), got {list(region)}")
    if depth is None:
        return
    tile, *before = region[:3]
    check_tiles(operator, tile, *before)
    reaches = region[7], region[10]
    require(all(0 <= reach <= tile for reach in reaches), lambda: f"{operator}: reaches must be 0..{tile}, the tile, got {reaches}")
    if depth.dim() == 1:
        shape: Shape = (flat_length(size[0], size[1], size[2], tile, *before),)
    else:
        shape = size[0], *(tiles_of(length, tile, lacking) for length, lacking in zip(size[1:], before, strict=True))
    expect(f"{operator}: depth", depth, torch.uint8, shape)
    require(depth.is_contiguous(), lambda: f"{operator}: depth must be contiguous, got strides {depth.stride()}")
    require(depth.device == like.device, lambda: f"{operator}: depth must be on {like.device}, got {depth.device}")


def check_depths(operator: str, backend: str, place: Place, conv: Conv | None = None) -> None:
    """Checks that the backend knows regions, where there is one, and that the convolution gives as many pixels as it reads."""
    if place.depth is None:
        return
    check_ability(operator, backend, "depths", "depth needs")
    if conv is not None:
        size, (rows, columns) = conv.x_q.shape[1:3], conv.axes
        given = rows.outputs(size[0]), columns.outputs(size[1])
        require(
            given == tuple(size),
            lambda: f"{operator}: depth needs an output of the image's size, {size[0]}x{size[1]}, got {given[0]}x{given[1]}",
        )


def check_tiles(operator: str, tile: int, top: int, left: int) -> None:
    """Checks how images lie in tiles (regions.Depths)."""
    require(
        1 <= tile <= MAX_TILE and 0 <= top < tile and 0 <= left < tile,
        lambda: f"{operator}: tile must be 1..{MAX_TILE}, and top and left 0..tile - 1, got {tile}, {top} and {left}",
    )


def check_conv2d_out(conv: Conv, to: Outputs, accumulate: bool, backend: str) -> None:
    """Checks every argument. Where the convolution accumulates, the residual of `conv` is not yet y."""
    residual, shuffle, features, packed_codes, y, y_q = conv.residual, conv.shuffle, conv.features, conv.packed_codes, to.y, to.y_q
    check_region("conv2d_out", conv.place, conv.x_q, conv.x_q.shape[:3])
    require(
        not passes_on(conv.place.region) or shuffle == 1,
        lambda: f"conv2d_out: pixels are passed on only without a shuffle, got {shuffle}",
    )
    require(y is not None or y_q is not None, lambda: "conv2d_out: one of y and y_q must be given")
    require(
        not accumulate or (y is not None and residual is None),
        lambda: "conv2d_out: accumulate needs y, and takes the place of residual",
    )
    out = "both" if y is not None and y_q is not None else "float" if y_q is None else "codes"
    shapes = conv2d_outputs(conv, out, backend)
    check_depths("conv2d_out", backend, conv.place, conv)
    check_place("conv2d_out", backend, packed_codes, "x_q", {"x_q": conv.x_q, "y": y, "y_q": y_q})
    if y_q is not None:
        expect("conv2d_out: y_q", y_q, torch.uint8, shapes[1])
        require(y_q.is_contiguous(), lambda: "conv2d_out: y_q must be contiguous")
    if y is not None:
        expect("conv2d_out: y", y, FEATURES[features], shapes[0])
        require(
            features == "float32" or y.is_contiguous(),
            lambda: f"conv2d_out: y must be contiguous with {features} features, got strides {y.stride()}",
        )
        if not y.is_contiguous():
            expect_slice("conv2d_out: y", y)
            require(shuffle == 1, lambda: f"conv2d_out: y must be contiguous with a shuffle, got shuffle={shuffle}")
            if residual is not None and residual.stride() != y.stride():
                raise RuntimeError(f"conv2d_out: residual must have the strides of y, {y.stride()}, got {residual.stride()}")


def ready_apart(
    operator: str,
    x_q: torch.Tensor,
    residual: torch.Tensor | None,
    y: torch.Tensor | None,
    y_q: torch.Tensor | None,
    y_name: str = "y",
) -> Callable[..., None]:
    """A check that must be made at each call, for all calls with tensors of these sizes and strides.

    It is a function of (x_q, residual, y, y_q). y and y_q must share no memory with each other or with the other two, except that y
    may be the residual.
    """
    # The codes of a pixel are written while the results of its neighbours still need what was there before.
    x_bytes, r_bytes, y_bytes, q_bytes = (0 if t is None else _extent(t) for t in (x_q, residual, y, y_q))

    def check(x_q: torch.Tensor, residual: torch.Tensor | None, y: torch.Tensor | None, y_q: torch.Tensor | None) -> None:
        x_at = x_q.data_ptr()
        r_at = 0 if residual is None else residual.data_ptr()
        if y is not None:
            y_at = y.data_ptr()
            y_end = y_at + y_bytes
            if y_at < x_at + x_bytes and x_at < y_end:
                raise RuntimeError(_overlap(operator, y_name, y, "x_q", x_q))
            if (
                residual is not None
                and residual is not y
                and y_at < r_at + r_bytes
                and r_at < y_end
                and not _interleave(y, residual)
            ):
                raise RuntimeError(_overlap(operator, y_name, y, "residual", residual))
        if y_q is not None:
            q_at = y_q.data_ptr()
            q_end = q_at + q_bytes
            if q_at < x_at + x_bytes and x_at < q_end:
                raise RuntimeError(_overlap(operator, "y_q", y_q, "x_q", x_q))
            if y is not None and q_at < y_end and y_at < q_end:
                raise RuntimeError(_overlap(operator, "y_q", y_q, "y", y))
            if residual is not None and q_at < r_at + r_bytes and r_at < q_end:
                raise RuntimeError(_overlap(operator, "y_q", y_q, "residual", residual))

    return check


def ready_apart_from_x(operator: str, x: torch.Tensor, y_q: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A check that must be made at each call, for all calls with tensors of these sizes and strides: a function of (x, y_q), which
    must share no memory."""
    x_bytes, q_bytes = _extent(x), _extent(y_q)

    def check(x: torch.Tensor, y_q: torch.Tensor) -> None:
        x_at, q_at = x.data_ptr(), y_q.data_ptr()
        if q_at < x_at + x_bytes and x_at < q_at + q_bytes:
            raise RuntimeError(_overlap(operator, "y_q", y_q, "x", x))

    return check


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _interleave(y: torch.Tensor, residual: torch.Tensor) -> bool:
    """Whether two features [N, H, W, C], one of which begins or ends within the other, are the same or are different channels of
    the same wider features."""
    apart, size = abs(y.data_ptr() - residual.data_ptr()), y.element_size()
    channels, pitch = y.shape[3] * size, y.stride(2) * size
    alike = y.dtype == residual.dtype and y.stride() == residual.stride()
    return alike and (apart == 0 or channels <= apart % pitch <= pitch - channels)


def _overlap(operator: str, name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> str:
    start, other_start = tensor.data_ptr(), other.data_ptr()
    shared = min(start + _extent(tensor), other_start + _extent(other)) - max(start, other_start)
    but = ", unless it is the residual" if name == "y" and other_name == "residual" else ""
    return f"{operator}: {name} must share no memory with {other_name}{but}, got an overlap of {shared} bytes"


def check_conv2d_pixels(conv: Conv, backend: str) -> Shape:
    """Checks every argument but the place and returns the shape of the image."""
    shape, _ = conv2d_outputs(conv, "float", backend)
    check_ability("conv2d_pixels", backend, "pixels", "pixels need")
    return shape


def check_conv2d_pixels_out(conv: Conv, image: torch.Tensor, backend: str) -> None:
    """Checks every argument."""
    shape = check_conv2d_pixels(conv, backend)
    check_region("conv2d_pixels_out", conv.place, conv.x_q, conv.x_q.shape[:3])
    check_depths("conv2d_pixels_out", backend, conv.place, conv)
    require(not passes_on(conv.place.region), lambda: "conv2d_pixels_out: region must pass no pixels on")
    expect("conv2d_pixels_out: image", image, torch.uint8, shape)
    require(image.is_contiguous(), lambda: "conv2d_pixels_out: image must be contiguous")
    check_place("conv2d_pixels_out", backend, conv.packed_codes, "x_q", {"x_q": conv.x_q, "image": image})


def check_resblock(first: Conv, second: Conv, to: Outputs, accumulate: bool, backend: str) -> None:
    """Checks every argument. No tensor holds the codes between the convolutions; x_q, which has their shape, stands for them."""
    able = having("residual_blocks")
    require(backend in able, lambda: f"resblock_out: backend must be one of {able}, got {backend!r}")
    conv2d_outputs(first, "codes", backend)
    weight = first.weight
    require(
        weight.dim() == 4 and weight.shape[0] == weight.shape[-1],
        lambda: f"resblock_out: weight must have as many outputs as inputs, got shape {list(weight.shape)}",
    )
    check_conv2d_out(second, to, accumulate, backend)


def check_quantize(read: Quantization, backend: str) -> Shape:
    """Checks every argument but the place and the start, and returns the shape of the codes."""
    x, shift = read.x, read.shift
    require(x.dim() == 4, lambda: f"quantize: x must be [N, C, H, W], got shape {list(x.shape)}")
    n, c, h, w = x.shape
    require(n * c * h * w > 0, lambda: f"quantize: x must not be empty, got shape {list(x.shape)}")
    require(x.dtype in FEATURES.values(), lambda: f"quantize: x must be torch.float32 or torch.int16, got {x.dtype}")
    check_features("quantize", "int16" if x.dtype == torch.int16 else "float32", read.fraction, backend)
    require(x.dtype == torch.float32 or shift is None, lambda: f"quantize: shift must be None with x of {x.dtype}")
    expect("quantize: grid", read.grid, torch.float32, (WIDTHS, 2))
    expect("quantize: bits", read.bits, torch.int32, (n,))
    if shift is not None:
        expect("quantize: shift", shift, torch.float32, (c,))
    check_place("quantize", backend, read.packed_codes, "x", {"x": x, "shift": shift, "grid": read.grid, "bits": read.bits})
    require(read.threads >= 0, lambda: f"quantize: threads must be 0 (as torch) or more, got {read.threads}")
    return n, h, w, padded_channels(c)


def check_quantize_out(read: Quantization, y_q: torch.Tensor, backend: str) -> None:
    """Checks every argument."""
    x, start, packed_codes = read.x, read.start, read.packed_codes
    n, h, w, _ = check_quantize(read, backend)
    check_region("quantize_out", read.place, x, (n, h, w))
    check_depths("quantize_out", backend, read.place)
    require(not passes_on(read.place.region), lambda: "quantize_out: region must pass no pixels on")
    check_place("quantize_out", backend, packed_codes, "x", {"x": x, "y_q": y_q})
    held = start + x.shape[1]
    require(y_q.dim() == 4 and y_q.shape[3] >= held, lambda: f"quantize_out: y_q must hold {held} channels")
    expect("quantize_out: y_q", y_q, torch.uint8, (n, h, w, y_q.shape[3]))
    if packed_codes:
        require(
            y_q.is_contiguous() and y_q.shape[3] % CODE_CHANNELS == 0,
            lambda: (
                f"quantize_out: y_q must be all of a code buffer with packed_codes, got shape {list(y_q.shape)}, "
                f"strides {y_q.stride()}"
            ),
        )
        require(
            start >= 0 and start % CODE_CHANNELS == 0,
            lambda: f"quantize_out: start must be a multiple of {CODE_CHANNELS}, got {start}",
        )
    else:
        require(start == 0, lambda: f"quantize_out: start must be 0 without packed_codes (y_q is then the slice), got {start}")
        expect_slice("quantize_out: y_q", y_q)


def many_targets(
    x: torch.Tensor, grids: Sequence[torch.Tensor], bits: Sequence[torch.Tensor], starts: Sequence[int], y_q: Sequence[torch.Tensor]
) -> list[Target]:
    """The targets of quantize_many_out. Checks the type of x, and that grids, bits, starts and buffers are equally many."""
    counts = [len(grids), len(bits), len(starts), len(y_q)]
    require(
        counts[0] > 0 and len(set(counts)) == 1,
        lambda: f"quantize_many_out: as many grids, bits, starts and y_q must be given, and at least one, got {counts}",
    )
    require(x.dtype == torch.float32, lambda: f"quantize_many_out: x must be torch.float32, got {x.dtype}")
    return [Target(*target) for target in zip(grids, bits, y_q, starts, strict=True)]


def check_images(operator: str, x: torch.Tensor, backend: str) -> None:
    """Checks that x is images as `image_measure` takes them."""
    require(
        x.dim() == 4 and x.shape[1] == 3 and x.numel() > 0,
        lambda: f"{operator}: x must be [N, 3, H, W] and not empty, got shape {list(x.shape)}",
    )
    require(x.dtype == torch.float32, lambda: f"{operator}: x must be torch.float32, got {x.dtype}")
    check_place(operator, backend, False, "x", {"x": x})


def check_layer_bits(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, rules: torch.Tensor, backend: str) -> None:
    """Checks every argument."""
    check_images("layer_bits", x, backend)
    check_place("layer_bits", backend, False, "x", {"x": x, "lower": lower, "upper": upper, "rules": rules})
    expect("layer_bits: lower", lower, torch.float32, ())
    expect("layer_bits: upper", upper, torch.float32, ())
    require(rules.dim() == 2, lambda: f"layer_bits: rules must be [L, 2], got shape {list(rules.shape)}")
    expect("layer_bits: rules", rules, torch.int32, (rules.shape[0], 2))
