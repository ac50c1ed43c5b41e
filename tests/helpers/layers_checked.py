"""Compares every convolution of a converted network with the simulation in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adabm_kernels import ops
from adabm_kernels.graph.fold import folded, slopes
from adabm_kernels.graph.fuse import FusedConv, fuse
from adabm_kernels.graph.module import MeanShift
from adabm_kernels.networks.span import SPANSpec
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.nn.conv import ConvParameters, IntegerConv2d
from adabm_kernels.quantize import act_grid
from adabm_kernels.simulate import SimulatedConv2d, SimulatedNetwork

HALF_ULP = 2.0**-24  # the relative error of one rounding to float32


@dataclass
class Step:
    """One convolution as the integer network ran it. The tensors are copies, [N, H, W, C]."""

    conv: IntegerConv2d
    x_q: torch.Tensor
    bits: torch.Tensor
    residual: torch.Tensor | None
    out_grid: torch.Tensor | None
    out_bits: torch.Tensor | None
    y: torch.Tensor | None = None
    y_q: torch.Tensor | None = None
    fraction: int | None = None  # the fraction of y and the residual where they are int16


def clone(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None or not tensor.numel() else tensor.clone()


@contextmanager
def recorded() -> Iterator[tuple[list[Step], list[tuple[dict[str, Any], torch.Tensor]]]]:
    """Records every convolution and every quantisation of floats inside the context."""
    steps: list[Step] = []
    quantized: list[tuple[dict[str, Any], torch.Tensor]] = []
    patch = pytest.MonkeyPatch()
    forward, into, quantize, quantize_out = IntegerConv2d.forward, IntegerConv2d.into, ops.quantize, ops.quantize_out

    def begin(conv, x_q, bits, residual, more):
        grid, out_bits = more.get("out_grid"), more.get("out_bits")
        steps.append(Step(conv, x_q.clone(), bits.clone(), clone(residual), grid, clone(out_bits), fraction=more.get("fraction")))

    def record_forward(conv, x_q, bits, **more):
        begin(conv, x_q, bits, more.get("residual"), more)
        y, y_q = forward(conv, x_q, bits, **more)
        steps[-1].y, steps[-1].y_q = clone(y), clone(y_q)
        return y, y_q

    def record_into(conv, x_q, bits, *, accumulate=False, **more):
        begin(conv, x_q, bits, more["y"] if accumulate else more.get("residual"), more)
        into(conv, x_q, bits, accumulate=accumulate, **more)
        steps[-1].y, steps[-1].y_q = clone(more.get("y")), clone(more.get("y_q"))

    def record_quantize(x, grid, bits, **more):
        codes = quantize(x, grid, bits, **more)
        quantized.append(({"x": x.clone(), "grid": grid, "bits": bits, "shift": more.get("shift")}, codes.clone()))
        return codes

    def record_quantize_out(x, grid, bits, y_q, **more):
        quantize_out(x, grid, bits, y_q, **more)
        quantized.append(({"x": x.clone(), "grid": grid, "bits": bits, "shift": more.get("shift")}, y_q.clone()))

    patch.setattr(IntegerConv2d, "forward", record_forward)
    patch.setattr(IntegerConv2d, "into", record_into)
    patch.setattr(ops, "quantize", record_quantize)
    patch.setattr(ops, "quantize_out", record_quantize_out)
    try:
        yield steps, quantized
    finally:
        patch.undo()


def in_double(conv: SimulatedConv2d) -> SimulatedConv2d:
    """The simulated convolution in float64, with the weights that its float32 arithmetic rounds to."""
    double = copy.deepcopy(conv).double()
    double.weight.data.copy_(conv.quantized_weight())
    return double


def check_codes(y_q: torch.Tensor, value: torch.Tensor, error: torch.Tensor, lower: float, upper: float, bits: torch.Tensor) -> int:
    """Compares codes [N, H, W, C4] with the float64 values [N, C, H, W] they stand for, which are known up to `error`. Returns how
    many codes differ.

    The kernel rounds t' = fma(v', scale, offset) where the simulation rounds t = (v - lower) / (upper - lower) * levels. scale,
    offset and the sum are rounded once each, so |t' - t| <= scale * error + u (2 |v * scale| + 2 |offset|) for u = 2^-24, up to
    terms of u^2. A code may differ only where t lies within that distance of a rounding boundary, and then by one.
    """
    channels = value.shape[1]
    assert not y_q[..., channels:].any()
    levels = (2.0 ** bits.double() - 1).view(-1, 1, 1, 1)
    scale = levels / (upper - lower)
    t = (value.clamp(lower, upper) - lower) / (upper - lower) * levels
    bound = (scale * error + HALF_ULP * (2 * (value * scale).abs() + 2 * abs(lower) * scale)) * (1 + 2.0**-20)
    got = y_q[..., :channels].permute(0, 3, 1, 2).double()
    differ = got != t.round()
    near = ((t - t.floor() - 0.5).abs() <= bound) & (t > 0) & (t < levels)
    assert bound[(value > lower) & (value < upper)].max() < 1e-2  # with a larger bound the check would prove little
    assert not (differ & ~near).any()
    assert int(differ.sum()) <= int(near.sum())
    assert ((got - t.round())[differ].abs() == 1).all()
    return int(differ.sum())


@dataclass
class After:
    """The function between a convolution and any residual: activation(gain * y + shift), by output channel, in float64."""

    gain: torch.Tensor
    shift: torch.Tensor
    slope: torch.Tensor | None = None  # the slope for negative values, 0 for a ReLU


def of_published(sim: SimulatedNetwork, conv: SimulatedConv2d) -> After:
    """Reads the function off the modules of the simulation."""
    spec, name, k = sim.spec, conv.name, conv.out_channels
    one, zero = torch.ones(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)

    def norm(module: nn.BatchNorm2d, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        gain = module.weight.double() / (module.running_var.double() + module.eps).sqrt()
        return gain * scale, (module.bias.double() - module.running_mean.double() * gain) * scale

    def slopes(module: nn.PReLU, repeat: int = 1) -> torch.Tensor:
        return module.weight.double().expand(k // repeat).repeat_interleave(repeat)

    if spec.network == "rdn":
        return After(one, zero, zero if ".convs." in name else None)
    if spec.network == "edsr":
        gain = one * (spec.res_scale if name.endswith("conv2") else 1.0)
        mean = MeanShift(1, spec.mean).bias if spec.mean_shift and name == spec.tail_names[-1] else torch.zeros(1)
        return After(gain, zero + mean.double().repeat_interleave(k // len(mean)), zero if name.endswith("conv1") else None)
    part, _, leaf = name.rpartition(".")
    if spec.network == "srvgg":
        return After(one, zero, slopes(sim.acts[leaf]) if name not in spec.tail_names else None)
    if spec.network == "rrdb":
        if name.endswith("convs.4"):
            return After(one * 0.2, zero)
        return After(one, zero, None if name in ("stem", "after_blocks", "last") else zero + 0.2)
    if spec.network in ("span", "imdn", "rfdn", "carn", "vdsr", "dncnn", "espcn", "fsrcnn"):
        return what_follows_in(sim, name, one, zero)
    if name == "head.0":
        return After(one, zero, slopes(sim.head[1]))
    if name == "tail.1":
        half = 127.5 if spec.unit_range else 0.0
        return After(one * (half or 1.0), zero + half)
    if name.startswith("tail"):
        return After(one, zero, slopes(sim.tail[0][int(leaf) + 2], k // spec.channels))
    if leaf not in ("conv1", "conv2"):
        return After(*norm(sim.body[-1]))
    block = sim.get_submodule(part)
    if leaf == "conv1":
        return After(*norm(block["bn1"]), slopes(block["act"]))
    return After(*norm(block["bn2"], spec.res_scale))


def of_graph(sim: SimulatedNetwork, conv: SimulatedConv2d) -> After:
    """Reads the function off the graph, for a network that is only known as a graph."""
    items = fuse(sim.spec.graph(), [one.name for one in sim.quantized_convs()])
    item = next(item for item in items if isinstance(item, FusedConv) and item.conv.key == conv.name)
    state = sim.state_dict()

    def values(key: str) -> torch.Tensor | None:
        return state.get(sim.spec.simulated_name(key))

    gain, shift = folded(item, values)
    slope = slopes(item, values)
    if item.function == "relu":
        slope = torch.zeros(len(gain))
    return After(gain, shift, None if slope is None else slope.double())


def what_follows(sim: SimulatedNetwork, conv: SimulatedConv2d) -> After:
    return (of_graph if sim.spec.network == "graph" else of_published)(sim, conv)


def what_follows_in(sim: SimulatedNetwork, name: str, one: torch.Tensor, zero: torch.Tensor) -> After:
    """The function in networks whose activations and factors follow from the names of their convolutions."""
    spec, leaf = sim.spec, name.rpartition(".")[2]
    slope, gain, shift = None, one, zero
    if spec.network in ("imdn", "rfdn"):
        leaky = name == "merge" or ".given." in name or (spec.network == "imdn" and ".convs." in name and leaf != "3")
        slope = zero + 0.05 if leaky else None
    elif spec.network == "carn":
        first = ".convs." in name and (leaf == "0" or (spec.efficient and leaf == "1"))
        slope = zero if first or "merge" in name or name.startswith("up.") else None
        mean = MeanShift(1, spec.mean).bias.double()
        shift = zero + mean if name == "last" and spec.mean_shift else zero
    elif spec.network == "vdsr":
        slope = zero if int(leaf) <= spec.layers else None
    elif spec.network == "dncnn":
        last = int(leaf) > spec.layers
        slope, gain = (None, -one) if last else (zero, one)
        if 0 < int(leaf) <= spec.layers:
            norm = sim.denoise.norms[leaf]
            gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            shift = norm.bias.double() - norm.running_mean.double() * gain
    elif spec.network == "fsrcnn":
        slope = sim.fsrcnn.acts[leaf].weight.double() if leaf != "last" else None
    if name == spec.tail_names[-1] and getattr(spec, "unit_range", False):
        gain = one * 255
    return After(gain, shift, slope)


def check_step(step: Step, model: ConvertedNetwork, sim: SimulatedNetwork, offset: torch.Tensor) -> int:
    """Compares one layer, given the codes it really got, with the simulation in float64. Returns how many output codes differ.

    The kernel computes fma(float(acc), alpha, beta), then + residual, in float32. With A = acc * alpha and B = beta exact, and u =
    2^-24: float(acc), alpha and the result are rounded for A, beta and the result for B, so the error is at most u (3 |A| + 2 |B|)
    up to terms of u^2, and adding the residual adds u |sum|. A float64 sum of n terms errs by n 2^-53 SUM |x| |w|. 16-bit features
    may differ by a unit where the value lies within that distance of a rounding boundary.
    """
    name = step.conv.name
    plain: SimulatedConv2d = sim.layer_named(name)
    conv = in_double(plain)
    assert torch.equal(step.bits, conv.bits(offset))
    top = (2**step.bits - 1).view(-1, 1, 1, 1)
    assert (step.x_q <= top).all() and not step.x_q[..., conv.in_channels :].any()

    lower, upper = conv.lower_a.item(), conv.upper_a.item()
    codes = step.x_q[..., : conv.in_channels].permute(0, 3, 1, 2).double()
    lowest = torch.full((1, conv.in_channels, 1, 1), lower, dtype=torch.float64)
    if conv.shift_a is not None:
        lowest += conv.shift_a.view(1, -1, 1, 1)
    x = lowest + codes * ((upper - lower) / top.double())
    weight = conv.quantized_weight()
    with torch.no_grad():
        value = conv(x, offset)
        bias = torch.zeros(conv.out_channels, dtype=torch.float64) if conv.bias is None else conv.bias
        sizes = (conv.stride, conv.padding, conv.dilation, conv.groups)
        constant = F.conv2d(lowest.expand_as(x).contiguous(), weight, bias, *sizes)
        terms = weight[0].numel() + 1
        after = what_follows(sim, plain)
        gain, shift = after.gain.view(1, -1, 1, 1), after.shift.view(1, -1, 1, 1)
        noise = terms * 2.0**-53 * F.conv2d(x.abs(), weight.abs(), bias.abs(), *sizes) * gain.abs()
        value, constant = value * gain + shift, constant * gain + shift
    # A shift may cancel most of a sum, whose float64 terms were larger and were rounded before, by 2^-53 of each.
    noise = noise + 2.0**-50 * (shift.abs() + value.abs())
    error = HALF_ULP * (3 * (value - constant).abs() + 2 * constant.abs()) * (1 + 2.0**-20) + noise
    if after.slope is not None:
        slope = after.slope.view(1, -1, 1, 1)
        error = error * slope.abs().clamp(min=1) + HALF_ULP * (value * slope).abs()
        value = torch.where(value < 0, value * slope, value)
    value, error = (F.pixel_shuffle(t, step.conv.shuffle) for t in (value, error))
    if step.residual is not None:
        unit = 1.0 if step.fraction is None else 2.0**-step.fraction
        value = value + step.residual.permute(0, 3, 1, 2).double() * unit
        error = error + HALF_ULP * (1 + 2.0**-20) * (value.abs() + error)
    following = None if step.y_q is None else next(conv for conv in model.convs() if conv.grid is step.out_grid)
    parameters = None if following is None else following.parameters_
    if step.fraction is not None:
        value, error = held(step, value, error, parameters), torch.zeros_like(error)
    elif step.y is not None:
        assert ((step.y.permute(0, 3, 1, 2).double() - value).abs() <= error).all()
    if step.y_q is None:
        return 0
    return check_codes(step.y_q, value, error, parameters.lower, parameters.upper, step.out_bits)


def held(step: Step, value: torch.Tensor, error: torch.Tensor, reader: ConvParameters | None) -> torch.Tensor:
    """The values that int16 holds for values known up to `error`, as the layer rounded them: float64, exact.

    Where a value lies so near to a rounding boundary that both its neighbours are right, the features tell which one it was, or the
    codes where there are no features. reader: the convolution whose grid the codes are on.
    """
    scaled, near_by = value * 2.0**step.fraction, error * 2.0**step.fraction
    near = (scaled - scaled.floor() - 0.5).abs() <= near_by
    assert near.double().mean() < 0.02  # with more such values the check would prove little
    stored = scaled.round()
    if step.y is not None:
        got = step.y.permute(0, 3, 1, 2).double()
        either = (got == scaled.floor()) | (got == scaled.ceil())
        stored = torch.where(near & either, got, stored).clamp(-32767, 32767)
        assert torch.equal(got, stored)
    else:
        levels = (2.0 ** step.out_bits.double() - 1).view(-1, 1, 1, 1)
        codes = step.y_q[..., : value.shape[1]].permute(0, 3, 1, 2)
        for neighbour in (scaled.floor(), scaled.ceil()):
            at = (neighbour * 2.0**-step.fraction).clamp(reader.lower, reader.upper) - reader.lower
            stored = torch.where(near & ((at / (reader.upper - reader.lower) * levels).round() == codes), neighbour, stored)
    return stored * 2.0**-step.fraction


def check_layers(model: ConvertedNetwork, sim: SimulatedNetwork, x: torch.Tensor) -> None:
    """Checks every convolution of one forward pass at full depth, and the quantisation of the network's input."""
    model.set_depth("full")
    offset = sim.image_offsets(x)
    assert torch.equal(model.image_offsets(x), offset)
    with recorded() as (steps, quantized):
        model(x)
    ran, all_convs = [step.conv.name for step in steps], [conv.name for conv in sim.quantized_convs()]
    assert ran == all_convs or (sim.spec.network == "graph" and sorted(ran) == sorted(all_convs))
    for step in steps:
        check_step(step, model, sim, offset)
    grids = {conv.grid.data_ptr(): conv.parameters_ for conv in model.convs()}
    for i, (given, codes) in enumerate(quantized):
        value, error = given["x"].double(), torch.zeros((), dtype=torch.float64)
        if given["shift"] is not None:
            value = value - given["shift"].double().view(1, -1, 1, 1)
            error = HALF_ULP * value.abs()
        parameters = grids.get(given["grid"].data_ptr(), steps[0].conv.parameters_)
        own = given["grid"].data_ptr() in grids or isinstance(sim.spec, SPANSpec) and sim.spec.norm  # not the grid of pixels
        unit = 255 if i == 0 and not own and getattr(sim.spec, "unit_range", False) and sim.config.quantize == "full" else 1
        lower, upper = parameters.lower * unit, parameters.upper * unit
        assert torch.equal(given["grid"], act_grid(lower, upper))
        check_codes(codes, value, error, lower, upper, given["bits"])
