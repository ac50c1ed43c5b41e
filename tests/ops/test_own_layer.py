"""The example of a layer of one's own runs, its checks find faults, and docs/ops.md shows it as it is."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from problems import ConvProblem, random_parameters
from torch.nn import functional as F

from adabm_kernels import ops, quantize
from adabm_kernels.nn.conv import AdaptiveConv2d
from adabm_kernels.quantize import Geometry

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE, PAGE = ROOT / "examples" / "own_layer.py", ROOT / "docs" / "ops.md"
beside = pytest.mark.skipif(not EXAMPLE.exists(), reason="the example is not beside the tests")
SMALL = ["--side", "13", "--rounds", "1", "--threads", "1"]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    return importlib.import_module("own_layer")


@beside
def test_the_example_runs(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        example.main(SMALL)
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "accumulators equal the plain formula" in printed
    widths = [int(width) for width in re.findall(r"image \d, (\d) bits", printed)]
    assert len(set(widths)) > 1, "the images of the batch are to have different bits"


def one_sum_less(conv2d: Callable) -> Callable:
    """Accumulators of which one is wrong by one."""

    def wrong(*args, **settings):
        y, y_q = conv2d(*args, **settings)
        if settings.get("out") == "acc":
            y.view(-1)[7] -= 1
        return y, y_q

    return wrong


def border_forgotten(conv_tables: Callable) -> Callable:
    """The same beta everywhere."""

    def wrong(*args):
        alpha, beta = conv_tables(*args)
        return alpha, beta[:1, :1].expand_as(beta).contiguous()

    return wrong


@beside
@pytest.mark.parametrize(
    ("home", "name", "broken"), [(ops, "conv2d", one_sum_less), (quantize, "conv_tables", border_forgotten)], ids=["sum", "border"]
)
def test_the_example_finds_faults(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, home: ModuleType, name: str, broken: Callable
) -> None:
    monkeypatch.setattr(home, name, broken(getattr(home, name)))
    with pytest.raises(AssertionError):
        example.main(SMALL)


@beside
def test_the_page_shows_the_example_as_it_is() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## A layer of one's own")[2]
    shown = "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    lines = [[line for line in text.splitlines() if line] for text in (shown, EXAMPLE.read_text(encoding="utf-8"))]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    "geometry",
    [Geometry(), Geometry(groups=4), Geometry(stride=(2, 1), padding=(2, 1)), Geometry(dilation=(2, 2), groups=20, padding=(1, 2))],
    ids=["plain", "groups", "strided", "depthwise, dilated"],
)
def test_tables_make_the_float_convolution_of_what_codes_stand_for(geometry: Geometry) -> None:
    g = torch.Generator().manual_seed(0)
    channels, outputs, lower, upper = 20, 40, -1.5, 2.25
    codes = torch.randint(-8, 8, (outputs, channels // geometry.groups, 3, 3), generator=g)
    w_step, bias = torch.rand(outputs, generator=g).double(), torch.randn(outputs, generator=g).double()
    steps, bits = quantize.act_steps(lower, upper), torch.tensor([3, 6], dtype=torch.int32)
    alpha, beta = quantize.conv_tables(codes, w_step, bias, lower, steps, geometry)
    x_q = (torch.rand(2, 7, 6, channels, generator=g) * torch.tensor([8, 64]).view(2, 1, 1, 1)).to(torch.uint8)
    settings = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": geometry.groups, "padding": geometry.padding}
    weight, empty = codes.permute(0, 2, 3, 1).to(torch.int8).contiguous(), torch.empty(0, dtype=torch.uint8)
    y, _ = ops.conv2d(x_q, bits, weight, empty, alpha.float(), beta.float(), backend="reference", **settings)

    rows, columns = geometry.axes(3, 3)
    conv = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": geometry.groups}
    conv["padding"] = (rows.before, columns.before)
    scaled = steps[bits.long() - 2].view(2, 1, 1, 1) * x_q.permute(0, 3, 1, 2)
    integers = codes * w_step.view(-1, 1, 1, 1)
    products, constant = (F.conv2d(values, integers, **conv) for values in (scaled, torch.full_like(scaled, lower)))
    constant += bias.view(-1, 1, 1)
    bound = 2.0**-24 * (3 * products.abs() + 2 * constant.abs()) * (1 + 2.0**-20)  # docs/numerics.md; the last factor for u^2
    assert ((y.permute(0, 3, 1, 2) - products - constant).abs() <= bound).all()


@pytest.mark.parametrize(("grid", "geometry"), [("odd", Geometry()), ("signed", Geometry()), ("signed", Geometry(stride=(2, 2)))])
def test_tiles_are_those_of_a_converted_layer(grid: str, geometry: Geometry) -> None:
    parameters = random_parameters(ConvProblem("tiles", 5, 5, 20, 24), torch.Generator().manual_seed(0))
    layer = AdaptiveConv2d(replace(parameters, weight_grid=grid, geometry=geometry))
    tiles = ops.choose_tiles(layer.weight, box_filter=layer.box_filter, geometry=geometry)
    assert tiles == layer.plan.tile_for_bits and any(tiles) == (geometry == Geometry())


@pytest.mark.parametrize(
    ("weight", "most_bits", "message"),
    [
        (torch.zeros(4, 3, 3, 4), 8, r"weight must be int8 \[K, R, S, C\]"),
        (torch.zeros(4, 3, 3, 4, dtype=torch.int8), 9, r"most_bits must be a whole number in 2\.\.8, got 9"),
        (torch.full((1, 15, 15, 2048), 127, dtype=torch.int8), 8, "could reach a sum of"),
    ],
)
def test_tiles_of_what_is_no_layer_are_refused(weight: torch.Tensor, most_bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.choose_tiles(weight, most_bits)
