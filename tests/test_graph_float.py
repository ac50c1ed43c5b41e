"""A graph as a module of floats: names, order and initial values of its parameters, and what its nodes compute."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adabm_kernels.graph.builder import Builder
from adabm_kernels.graph.module import GraphModule, computed, steps
from adabm_kernels.graph.nodes import (
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Float,
    Graph,
    Key,
    Linear,
    Multiply,
    Node,
    PixelShuffle,
    PixelUnshuffle,
    Pool,
    Ref,
    Resize,
)
from adabm_kernels.networks.detect import adabm_name
from adabm_kernels.networks.edsr import EDSR, EDSRSpec
from adabm_kernels.networks.float_network import float_network, float_shapes
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.srresnet import SRResNet, SRResNetSpec


class Published(nn.Module):
    """An EDSR as EDSR-PyTorch writes it, without mean shifts."""

    def __init__(self, c: int, res_scale: float) -> None:
        super().__init__()

        def conv(channels_in: int, channels_out: int) -> nn.Conv2d:
            return nn.Conv2d(channels_in, channels_out, 3, padding=1)

        self.res_scale = res_scale
        self.head = nn.Sequential(conv(3, c))
        blocks = [nn.Module() for _ in range(2)]
        for block in blocks:
            block.body = nn.Sequential(conv(c, c), nn.ReLU(), conv(c, c))
        self.body = nn.Sequential(*blocks, conv(c, c))
        upsampler = nn.Sequential(conv(c, 4 * c), nn.PixelShuffle(2), conv(c, 4 * c), nn.PixelShuffle(2))
        self.tail = nn.Sequential(upsampler, conv(c, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = first = self.head(x)
        for block in self.body[:-1]:
            y = y + block.body(y) * self.res_scale
        return self.tail(first + self.body[-1](y))


def test_the_published_module_to_the_last_bit() -> None:
    """The same initial values under one seed, the same state dict in the same order, the same outputs in every precision."""
    torch.manual_seed(1)
    published = Published(6, 0.1)
    torch.manual_seed(1)
    ours = EDSR(EDSRSpec(4, 2, 6, mean_shift=False, res_scale=0.1))
    want, got = published.state_dict(), ours.state_dict()
    assert list(want) == list(got) and all(torch.equal(want[key], got[key]) for key in want)
    x = torch.rand(2, 3, 9, 7) * 255
    for change in (lambda v: v, lambda v: v.to(memory_format=torch.channels_last), lambda v: v.double()):
        x = change(x)
        assert torch.equal(change(published)(x), change(ours)(x))
    assert ours.body[1].body[2] is ours.body[-2].body["2"] and len(ours.body) == 3 and ours.training


def test_modules_are_declared_as_people_do() -> None:
    keys = list(float_shapes(SRResNetSpec(4, 1, 4, bias=True, unit_range=True)))
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in keys))
    block = [f"body.0.{part}" for part in ("conv1", "conv2", "act", "bn1", "bn2")]
    assert modules == ["", "head.0", "head.1", *block, "body.1", "body.2", *(f"tail.0.{i}" for i in (0, 2, 3, 5)), "tail.1"]
    assert keys[0] == "unit_range"
    assert [key for key in float_shapes(EDSRSpec(2, 1, 4)) if "mean" in key][2] == "add_mean.weight"
    assert list(float_shapes(EDSRSpec(2, 1, 4)))[4] == "head.0.weight"


@pytest.mark.parametrize(
    "spec", [EDSRSpec(2, 2, 4), RDNSpec(2, 2, 2, 3, 4), SRResNetSpec(2, 1, 4, unit_range=True)], ids=lambda s: s.network
)
def test_copies_files_and_compilation(spec: Any) -> None:
    torch.manual_seed(0)
    model = float_network(spec)
    assert {adabm_name(key): tuple(value.shape) for key, value in model.state_dict().items()} == spec.graph().parameters()
    x, file = torch.rand(1, 3, 8, 6) * 255, io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        want, copied = model(x), copy.deepcopy(model)
        nn.init.zeros_(next(copied.parameters()))
        assert torch.equal(torch.load(file, weights_only=False)(x), want) and torch.equal(model(x), want)
        assert not torch.equal(copied(x), want)
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), want)


def test_hooks_see_the_layers() -> None:
    model, seen = SRResNet(SRResNetSpec(2, 1, 4)).eval(), []
    model.tail[1].register_forward_hook(lambda module, args, y: seen.append(tuple(y.shape)))
    model(torch.zeros(1, 3, 4, 4))
    assert seen == [(1, 3, 8, 8)]


def image(channels: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, 6, 8, generator=torch.Generator().manual_seed(channels))


COLUMN = torch.tensor([1.0, 2, 3, 4]).view(-1, 1, 1)


@pytest.mark.parametrize(
    ("node", "want"),
    [
        (Affine("n", ("x",), (2.0,), (1.0,)), lambda x, y: x * 2 + 1),
        (Affine("n", ("x",), (2.0,), (1.0,), first="shift"), lambda x, y: (x + 1) * 2),
        (Affine("n", ("x",), None, (3.0,), 255.0), lambda x, y: x / 255 + 3),
        (Affine("n", ("x",), (1.0, 2.0, 3.0, 4.0)), lambda x, y: x * COLUMN),
        (Activation("n", ("x",), "leaky_relu", (("negative_slope", 0.2),)), lambda x, y: F.leaky_relu(x, 0.2)),
        (Activation("n", ("x",), "silu"), lambda x, y: F.silu(x)),
        (Add("n", ("x", "y", "x"), (1.0, 0.3, -1.0)), lambda x, y: x + y * 0.3 + x * -1.0),
        (Multiply("n", ("x", "y")), lambda x, y: x * y),
        (Concat("n", ("y", "x")), lambda x, y: torch.cat([y, x], 1)),
        (PixelShuffle("n", ("x",), 2), lambda x, y: F.pixel_shuffle(x, 2)),
        (PixelUnshuffle("n", ("x",), 2), lambda x, y: F.pixel_unshuffle(x, 2)),
        (Resize("n", ("x",), 2, "bilinear", False), lambda x, y: F.interpolate(x, scale_factor=2, mode="bilinear")),
        (Pool("n", ("x",), "avg_pool2d", (("kernel_size", 2),)), lambda x, y: F.avg_pool2d(x, 2)),
        (Float("n", ("x",), ".mean", ((2, 3),), (("keepdim", True),)), lambda x, y: x.mean((2, 3), keepdim=True)),
        (Float("n", ("x", "y"), "torch.cat", ([Ref(1), Ref(0)], 1)), lambda x, y: torch.cat([y, x], 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_nodes_compute(node: Node, want: Any) -> None:
    x, y = image(), image().flip(0)
    module = GraphModule(Graph((node,), ("x", "y"), ("n",)))
    assert torch.equal(module(x, y), want(x, y)) and not module.state_dict()
    if not isinstance(node, Float):
        given = {"x": x, "y": y}
        assert torch.equal(computed(node, [given[name] for name in node.inputs]), want(x, y))


def test_layers_and_values_under_the_names_that_are_asked_for() -> None:
    """Sizes of a convolution, one weight for two nodes, several outputs, and a value that a function takes."""
    conv = Conv("down", ("x",), "part.0", 4, 6, (3, 1), (2, 1), (1, 1), (1, 0), groups=2, bias=False)
    scaled = Float("scaled", ("down",), "torch.mul", (Ref(0), Key("part.gain")), shapes=(("part.gain", (6, 1, 1)),))
    lines = [Linear(name, (x,), "lines", 8, 8) for name, x in (("once", "scaled"), ("twice", "once"))]
    module = GraphModule(Graph((conv, scaled, *lines), outputs=("once", "twice")), lambda key: f"net.{key}")
    assert list(module.state_dict()) == ["net.part.gain", "net.part.0.weight", "net.lines.weight", "net.lines.bias"]
    weight, gain = image(2)[..., :3, :1].repeat(3, 1, 1, 1), COLUMN[[0, 1, 2, 3, 0, 1]]
    module.load_state_dict(module.state_dict() | {"net.part.0.weight": weight, "net.part.gain": gain})
    y = F.conv2d(image(), weight, stride=(2, 1), padding=(1, 0), groups=2) * gain
    once, twice = module(image())
    assert torch.equal(once, F.linear(y, module.net.lines.weight, module.net.lines.bias))
    assert torch.equal(twice, module.net.lines(once))


def test_tensors_are_let_go_after_their_last_reader() -> None:
    b = Builder()
    y = b.sum("sum", b.relu("b", b.relu("a", "x")), "x")
    assert [unread for _, unread in steps(b.nodes, [y])] == [(), ("a",), ("b", "x")]
    with pytest.raises(TypeError, match="computed: 'c' is a Conv, which no function of its inputs alone computes"):
        computed(Conv("c", ("x",), "c", 1, 1), [image()])
