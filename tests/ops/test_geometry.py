"""Strides, dilation, groups, even kernels and padding of the operators: the reference against torch's convolution, and what each
wrong argument is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drawn import drawn_geometries
from hypothesis import given, settings
from operators import fake_outputs, order, outputs, settings_of
from problems import GEOMETRIES, ConvProblem, instantiate
from torch.nn import functional as F

from adabm_kernels import ops
from adabm_kernels.nn.conv import AdaptiveConv2d
from adabm_kernels.quantize import Geometry, act_steps, weight_integers, weight_step


def torch_of(problem: ConvProblem, layer: AdaptiveConv2d, x_q: torch.Tensor) -> torch.Tensor:
    """float64 [N, H, W, K] of what the codes stand for, by torch's convolution of it."""
    p, (rows, columns) = layer.parameters_, problem.geometry.axes(*problem.kernel_size)
    steps = act_steps(p.lower, p.upper)[torch.tensor(problem.bits) - 2].view(-1, 1, 1, 1)
    x = p.lower + steps * x_q[..., : problem.channels].permute(0, 3, 1, 2).double()
    upper = p.weight_upper.double().expand(problem.outputs).view(-1, 1, 1, 1)
    weight = weight_integers(p.codes).double() * weight_step(upper, p.weight_bits, "odd")
    x = F.pad(x, (columns.before, columns.after, rows.before, rows.after))
    geometry = problem.geometry
    y = F.conv2d(x, weight, p.bias.double(), geometry.stride, 0, geometry.dilation, geometry.groups)
    return F.pixel_shuffle(y, problem.shuffle).permute(0, 2, 3, 1)


@pytest.mark.parametrize("problem", GEOMETRIES, ids=str)
def test_the_reference_is_torchs_convolution_of_what_codes_stand_for(problem: ConvProblem) -> None:
    """To within float32's rounding of its sum: the bound of docs/numerics.md, with the largest sum that the layer can have."""
    instance = instantiate(problem)
    layer = instance.layer
    want = torch_of(problem, layer, instance.x_q)
    layer.activation = "none"
    y, _ = layer(instance.x_q, instance.bits)
    assert y.shape == want.shape and tuple(y.shape[1:3]) == layer.out_size(problem.height, problem.width)
    alpha = layer.alpha.double().abs().max() * layer.plan.largest_sum
    bound = 2.0**-24 * (3 * alpha + 2 * layer.beta.double().abs().max())
    torch.testing.assert_close(y.double(), want, rtol=0, atol=bound.item())


@settings(max_examples=40)
@given(problem=drawn_geometries())
def test_any_geometry_has_torchs_size_and_sums(problem: ConvProblem) -> None:
    instance = instantiate(problem)
    layer, (rows, columns) = instance.layer, problem.geometry.axes(*problem.kernel_size)
    acc, _ = layer(instance.x_q, instance.bits, out="acc")
    p, geometry = layer.parameters_, problem.geometry
    x = F.pad(instance.x_q[..., : problem.channels].permute(0, 3, 1, 2), (columns.before, columns.after, rows.before, rows.after))
    sums = F.conv2d(x.double(), weight_integers(p.codes).double(), None, geometry.stride, 0, geometry.dilation, geometry.groups)
    assert torch.equal(acc, F.pixel_shuffle(sums, problem.shuffle).permute(0, 2, 3, 1).to(torch.int32))


SMALL = ConvProblem("small", 5, 7, 6, 9, bits=(4, 2), geometry=Geometry((2, 1), (1, 2), 3, (1, 0)))


def arguments_of(problem: ConvProblem, **changes: Any) -> dict[str, Any]:
    instance = instantiate(problem)
    return settings_of(instance, geometry=list(instance.layer.geometry_numbers)) | changes


def test_every_operator_takes_a_geometry() -> None:
    arguments = arguments_of(SMALL)
    y, y_q = torch.ops.adabm.conv2d(*order("conv2d", arguments | {"out": "both"}))
    into = {"y": torch.full_like(y, -1e9), "y_q": torch.full_like(y_q, 171)}
    words = {name: getattr(SMALL.geometry, name) for name in ("stride", "dilation", "groups", "padding")}
    by_name = {name: value for name, value in arguments.items() if name != "geometry"} | words
    ops.conv2d_out(**by_name, **into)
    assert torch.equal(into["y"], y) and torch.equal(into["y_q"], y_q)
    assert torch.equal(ops.conv2d(**by_name)[0], y)
    pixels = {name: value for name, value in by_name.items() if name not in ("out_grid", "out_bits")}
    want = y.clamp(0, 255).round().to(torch.uint8)
    image = torch.full_like(want, 9)
    ops.conv2d_pixels_out(**pixels, image=image)
    assert torch.equal(ops.conv2d_pixels(**pixels), want) and torch.equal(image, want)
    for operator, more in (("conv2d", {"out": "both"}), ("conv2d_out", {"accumulate": False} | outputs(SMALL, True, True))):
        torch.library.opcheck(getattr(torch.ops.adabm, operator), order(operator, arguments | more))
    arguments = {name: value for name, value in arguments.items() if name not in ("out_grid", "out_bits")}
    torch.library.opcheck(torch.ops.adabm.conv2d_pixels, order("conv2d_pixels", arguments))
    torch.library.opcheck(torch.ops.adabm.conv2d_pixels_out, order("conv2d_pixels_out", arguments | {"image": image}))


PLACE = {"depth": torch.zeros(2, 1, 1, dtype=torch.uint8), "region": [8, 0, 0, 0, 255, 0, 255, 0, 1, 0, 0]}


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"geometry": [1, 1, 1]}, "geometry must be no numbers or 9"),
        ({"geometry": [0, 1, 1, 1, 1, 0, 0, 0, 0]}, "stride must be 2 whole numbers in 1..1024"),
        ({"geometry": [1, 1, 1, 1, 7, 1, 1, 1, 1]}, "conv2d: x_q must have shape .2, 5, 7, 16., got .2, 5, 7, 8."),
        (
            {"weight": torch.zeros(8, 3, 3, 2, dtype=torch.int8), "alpha": torch.zeros(7, 8)},
            "conv2d: groups must divide 8 outputs, got 3",
        ),
        ({"beta": torch.zeros(4, 4, 9)}, r"conv2d: beta must have shape \[4, 1, 9\], got \[4, 4, 9\]"),
        (
            {"geometry": [1, 1, 9, 9, 3, 1, 1, 1, 1]},
            "conv2d: a kernel of 19x19 pixels must fit the image with its padding, 7x9",
        ),
        ({"residual": torch.zeros(2, 5, 7, 9)}, r"conv2d: residual must have shape \[2, 3, 3, 9\], got \[2, 5, 7, 9\]"),
        ({"backend": "cuda"}, "conv2d: stride 2x1, dilation 1x2, 3 groups needs a backend of"),
    ],
)
def test_wrong_geometries_are_named(changes: dict[str, Any], message: str, fake: bool) -> None:
    arguments = arguments_of(SMALL, out="float") | changes
    with pytest.raises((RuntimeError, ValueError), match=message):
        fake_outputs("conv2d", arguments) if fake else torch.ops.adabm.conv2d(*order("conv2d", arguments))


def test_regions_need_an_output_of_the_images_size() -> None:
    arguments = arguments_of(SMALL) | {"accumulate": False} | outputs(SMALL, True, False) | PLACE
    with pytest.raises(RuntimeError, match="conv2d_out: depth needs an output of the image's size, 5x7, got 3x3"):
        torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments))


def test_kernels_by_border_class_are_plain() -> None:
    weight, bits = torch.zeros(3, 3, 4, 3, 3, 4, dtype=torch.int8), torch.tensor([4], dtype=torch.int32)
    given = torch.zeros(1, 5, 5, 4, dtype=torch.uint8), bits, weight, torch.zeros(0, dtype=torch.uint8), torch.ones(7, 4)
    with pytest.raises(RuntimeError, match="conv2d: kernels by border class must be plain, got stride 2x2"):
        ops.conv2d(*given, torch.zeros(3, 3, 4), stride=2, backend="reference")
    with pytest.raises(ValueError, match="pack_weights: geometry must be plain with a kernel for each border class"):
        ops.pack_weights("reference", weight, (0,) * 7, False, 1, Geometry(stride=(2, 2)))
