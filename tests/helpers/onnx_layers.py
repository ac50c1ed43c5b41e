"""Runs the ONNX file of a converted network in ONNX Runtime, and compares each layer in it with the network's own.

With u = 2^-24, the relative error of one rounding to float32, and for one output of a convolution of n products
S = SUM |q - zero| * step * |w|,
L = (|lower| + |apart|) * SUM |w|,
b = its bias,
the file's convolution errs by at most u ((n + 5) S + (R S + 5) (L + |b|)) in whatever order its runtime adds: step, scale, value
and weight are rounded once each, and so are the product and up to n - 1 sums; the same holds for the convolution that makes the
constant. The network's own kernel errs by at most u (3 |A| + 2 |B|) with |A| <= S + L and |B| <= L + |b| (docs/numerics.md). Each
further sum or product rounds its result once. docs/interchange.md has the same for codes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from layers_checked import HALF_ULP as U
from torch.nn import functional as F

from adabm_kernels.exporters.quantized_operators import Grid, QuantizedWriting, weights_of
from adabm_kernels.exporters.writing import Writing
from adabm_kernels.graph.fold import folded, slopes
from adabm_kernels.graph.fuse import FusedConv
from adabm_kernels.graph.nodes import Affine
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.nn.conv import IntegerConv2d
from adabm_kernels.quantize import padded_channels, rest_range


def run_onnx(model: bytes | Path, x: torch.Tensor, optimised: bool = True) -> list[np.ndarray]:
    """The outputs of an ONNX file in ONNX Runtime, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    given = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})


def check_file(model: ConvertedNetwork, x: torch.Tensor, bits: str | int, optimised: bool) -> int:
    """Checks every code and the result of every quantised convolution in the file of a network, given what the file made before.
    Returns how many codes are not those of exact arithmetic; each of these lies within the bound of a rounding boundary."""
    to = Writing(model.spec.input_channels)
    fixed = model.fixed_bits(bits)
    writing = QuantizedWriting(to, model, fixed)
    tensors = writing.write()
    made = to.model({f"y{i}": name for i, name in enumerate(tensors)}, {}, "")
    layers = [item for item in model.items if isinstance(item, FusedConv)]
    if model.collapsed is not None:
        key = model.spec.tail_names[0]
        layers = layers[: next(i for i, item in enumerate(layers) if item.conv.key == key)]
    codes = [name for name in to.taken if name.endswith("/codes") and ".weight" not in name]
    features = [writing.names[name] for item in layers for name in (item.name, *item.inputs)]
    wanted = list(dict.fromkeys([*codes, *features]))
    wanted = [name for name in wanted if name != "x"]
    made_whole = made.SerializeToString()
    del made.graph.output[:]
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    found = dict(zip(wanted, run_onnx(made.SerializeToString(), x, optimised), strict=True)) | {"x": x.numpy()}
    held = {name: torch.from_numpy(value) for name, value in found.items()}
    differ = sum(_check_layer(model, item, fixed, writing, held) for item in layers)
    if model.collapsed is not None:
        _check_collapsed(model.collapsed, held, torch.from_numpy(run_onnx(made_whole, x, optimised)[0]))
    return differ


def _check_collapsed(conv: IntegerConv2d, held: dict[str, torch.Tensor], got: torch.Tensor) -> None:
    """Compares the output of the file with that of the upsampler in one piece for the same codes. A pixel has one of several
    kernels; the bound is that of the largest weights."""
    codes = [_as_codes(held[name]) for name in ("tail/codes", "tail/second/codes") if name in held]
    number = torch.full((len(got),), 8, dtype=torch.int32)
    want = conv(codes[0], number)[0] if conv.rest is None else conv.two_digits(*codes, number)
    error = torch.zeros(1, dtype=torch.float64)
    for q, one in zip(codes, [conv, conv.rest], strict=False):
        w = one.weight.double().abs() * one.alpha[-1].double().view(-1, 1, 1, 1)  # [5, 5, K, R, S, C]
        constant = one.beta.double().abs() + 255 * w.sum((3, 4, 5))
        w = w.amax((0, 1)).permute(0, 3, 1, 2)
        products = F.conv2d(q.permute(0, 3, 1, 2)[:, : w.shape[1]].double(), w, padding=w.shape[2] // 2)
        constant = constant.amax((0, 1)).view(1, -1, 1, 1)
        error = error + U * ((w[0].numel() + 5 + 3) * (products + constant) + 10 * constant)
    # Outputs of the model are in the order of sub-pixels.
    factor = conv.shuffle
    n, k, h, w = error.shape
    error = F.pixel_shuffle(error.view(n, factor**2, -1, h, w).transpose(1, 2).reshape(n, k, h, w), factor)
    assert got.shape == error.shape and error.max() < 0.05
    assert ((got.double() - want.permute(0, 3, 1, 2)).abs() <= error).all()


def _check_layer(
    model: ConvertedNetwork, item: FusedConv, fixed: dict[str, int], writing: QuantizedWriting, held: dict[str, torch.Tensor]
) -> int:
    key, source = item.conv.key, item.inputs[0]
    conv, own = model.conv(key), model.parameters_by_name[key]

    def features(name: str) -> torch.Tensor:
        return held[writing.names[name]] / writing.units.get(name, 1.0)  # a power of two: exact

    x, bits, unit = features(source).double(), fixed[own.name], 1.0
    shift = torch.zeros(1, dtype=torch.float64)
    if source in model.spec.graph().inputs:
        unit = item.before.divisor if isinstance(item.before, Affine) and item.before.divisor is not None else 1.0
        shift = shift if conv.pixel_shift is None else conv.pixel_shift.double()
    grid = Grid.of(own.lower * unit, own.upper * unit, bits)
    x_q, differ = held[f"{key}/codes"], 0
    differ += _check_codes(x_q, x - shift.view(1, -1, 1, 1), grid, U * (shift.abs().view(1, -1, 1, 1) + x.abs()))
    values = (x_q.double() - grid.zero) * grid.step
    spans = [values.abs()]
    left_q = None
    if own.digits == 2:
        half = rest_range(own.lower, own.upper)
        second, left_q = Grid.of(-half, half, bits), held[f"{key}/second/codes"]
        moved = x - shift.view(1, -1, 1, 1) - grid.apart
        differ += _check_codes(left_q, moved - values, second, U * (2 * x.abs() + abs(grid.apart) + 3 * values.abs() + half))
        spans.append(((left_q.double() - second.zero) * second.step).abs())

    number = torch.full((len(x),), bits, dtype=torch.int32)
    residual = None if item.residual is None else features(item.residual).permute(0, 2, 3, 1).contiguous()
    if left_q is None:
        want = conv(_as_codes(x_q), number, residual=residual)[0]
    else:
        want = conv.two_digits(_as_codes(x_q), _as_codes(left_q), number)
    want = want.permute(0, 3, 1, 2).double()
    got = features(item.name).double()

    gain, more = folded(item, model.plain_tensor)
    weights = weights_of(own, gain, more)
    w = torch.from_numpy(weights.integers * weights.scale.reshape(-1, 1, 1, 1)).abs() / unit
    rows, columns = own.geometry.axes(*w.shape[2:])
    sizes = (own.geometry.stride, (rows.before, columns.before), own.geometry.dilation, own.geometry.groups)
    assert (rows.before, columns.before) == (rows.after, columns.after)
    lowest = torch.full_like(x, abs(grid.lower) + abs(grid.apart))
    if own.input_shift is not None:
        lowest += 2 * unit * own.input_shift.double().abs().view(1, -1, 1, 1)
    products = sum(F.conv2d(span, w, None, *sizes) for span in spans)
    constant = F.conv2d(lowest, w, torch.from_numpy(weights.bias).abs(), *sizes) * len(spans)
    n, taps = w[0].numel(), w.shape[2] * w.shape[3]
    error = U * ((n + 5 + 3) * products + (taps + 5 + 5) * constant + 3 * (products + constant))
    slope = slopes(item, model.plain_tensor)
    if slope is not None:
        error = error * slope.double().abs().clamp(min=1).view(1, -1, 1, 1) * (1 + 2 * U)
    error = F.pixel_shuffle(error, item.shuffle) if item.shuffle > 1 else error
    error = (error + 3 * U * (want.abs() + got.abs())) * (1 + 2.0**-16)  # sums with the residual, on both sides
    if item.clamp is not None:
        want = want.clamp(*item.clamp)
    if item.name in writing.units:
        scale = writing.units[item.name]
        assert torch.equal(got * scale, (got * scale).round()) and (got * scale).abs().max() <= 32767
        assert (scale * error).max() < 0.5  # else the check would prove little
        error = error + 0.5 / scale
    assert got.shape == want.shape
    assert ((got - want).abs() <= error).all(), (key, float(((got - want).abs() / error).max()))
    return differ


def _check_codes(q: torch.Tensor, value: torch.Tensor, grid: Grid, error: torch.Tensor) -> int:
    """Compares codes [N, C, H, W] with the float64 values that they stand for, which are known up to `error` once `apart` is
    subtracted from them. Returns how many codes differ.

    The file divides v - apart, each rounded once, by a step that is rounded, and rounds the quotient: 3 u |t - zero|, and u |t| for
    a runtime that adds the zero point before it rounds to a whole number.
    """
    t = (value - grid.lower) / grid.step
    bound = (error + 2 * U * abs(grid.apart)) / grid.step + U * (4 * (t - grid.zero).abs() + grid.levels)
    want = t.round().clamp(0, grid.levels)
    differ = q.double() != want
    near = ((t - t.floor() - 0.5).abs() <= bound) & (t > -1) & (t < grid.levels + 1)
    assert bound[(t > 0) & (t < grid.levels)].max() < 0.02  # else the check would prove little
    assert not (differ & ~near).any() and ((q.double() - want)[differ].abs() == 1).all()
    return int(differ.sum())


def _as_codes(q: torch.Tensor) -> torch.Tensor:
    """Codes [N, C, H, W] as the kernels read them, uint8 [N, H, W, C4]."""
    q = q.permute(0, 2, 3, 1)
    return F.pad(q, (0, padded_channels(q.shape[3]) - q.shape[3])).contiguous()
