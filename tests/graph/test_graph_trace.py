"""`trace`: the graph of a module computes what the module computes, and says what it cannot trace."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import traced_modules
from graph_values import evaluate
from published_networks import EDSR, RDN, SRResNet
from small import one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from adabm_kernels.graph.nodes import Add, Conv, Graph
from adabm_kernels.graph.trace import Traced, trace
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.srresnet import SRResNetSpec

MODULES = {
    "resnext": (traced_modules.ResNeXt, 1),
    "unet": (traced_modules.UNet, 4),
    "dncnn": (traced_modules.DnCNN, 4),
    "compact": (traced_modules.Compact, 1),
    "rrdbnet": (traced_modules.RRDBNet, 1),
    "span": (traced_modules.SPAN, 1),
    "detector": (traced_modules.Detector, 1),
    "window_attention": (traced_modules.WindowAttention, 4),
    "attention": (traced_modules.Attention, 1),
    "one_layer": (lambda: nn.Conv2d(3, 4, 3), 1),
    "oddments": (traced_modules.Oddments, 1),
}


def made(kind: type[nn.Module], *args: Any) -> nn.Module:
    """A module in eval mode whose norms have statistics and weights of their own."""
    torch.manual_seed(0)
    module = kind(*args).eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for value in (part.weight, part.running_var):
                value is None or nn.init.uniform_(value, 0.5, 2)
            for value in (part.bias, part.running_mean):
                value is None or nn.init.uniform_(value, -1, 1)
    return module


SIZES = ((1, 3, 32, 56), (3, 3, 44, 36))
# Of the sums of the attention between 14 x 8 pixels, twice, with 8 channels: in which order torch adds them up depends on the
# processor and on which of its algorithms takes the call, and the graph calls another one than the module.
ATTENTION_TERMS = 4 * (14 * 8 + 8)


def assert_same(traced: Traced, module: nn.Module, sizes: tuple[tuple[int, ...], ...] = SIZES, terms: int = 0) -> None:
    """The outputs of the graph are those of the module in float64, to the last bit, or where `terms` numbers are added up in an
    order that torch chooses within a rounding of the largest output for each."""
    assert traced.state.keys() == traced.graph.parameters().keys()
    module.double()
    with torch.no_grad():
        for size in sizes:
            x = torch.rand(size, dtype=torch.float64)
            got = evaluate(traced.graph, traced.state, x.clone())
            for one, want in zip(got, pytree.tree_leaves(module(x)), strict=True):
                assert torch.equal(one, want) or (one - want).abs().max() <= terms * 2.0**-53 * want.abs().max()


@pytest.mark.parametrize("name", MODULES)
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    kind, multiple = MODULES[name]
    module = made(kind)
    traced = trace(module)
    assert traced.recorder == "torch.export"
    # torch up to 2.12 finds more conditions on the size of ResNeXt's input than there are.
    early = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
    assert traced.multiple == multiple or (name == "resnext" and early and traced.multiple == 4)
    assert_same(traced, module, terms=ATTENTION_TERMS if name == "attention" else 0)


@pytest.mark.parametrize("name", ["resnext", "unet", "compact", "rrdbnet", "span", "detector", "oddments"])
def test_what_torch_export_refuses_is_recorded_by_torch_fx(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise RuntimeError("not today")

    monkeypatch.setattr(torch.export, "export", refuse)
    module = made(MODULES[name][0])
    traced = trace(module)
    assert traced.recorder == "torch.fx"
    assert_same(traced, module)


def structure(graph: Graph) -> list[Any]:
    """What a graph computes, without names, roles, and the order of two terms of a sum (which changes no bit)."""
    numbers = {name: i for i, name in enumerate(graph.inputs)}
    found: list[Any] = []
    for node in graph.nodes:
        inputs: Any = [numbers[name] for name in node.inputs]
        fields = {
            key: value for key, value in vars(node).items() if key not in ("name", "inputs", "key", "role", "body", "factors")
        }
        if isinstance(node, Add):
            inputs = sorted((number, node.factor(i)) for i, number in enumerate(inputs))
        numbers[node.name] = len(numbers)
        found.append((type(node), inputs, fields))
    return [*found, [numbers[name] for name in graph.outputs]]


@pytest.mark.parametrize(
    "module",
    [
        EDSR(EDSRSpec(scale=4, blocks=2, channels=8, res_scale=0.1)),
        EDSR(EDSRSpec(scale=3, blocks=1, channels=4, mean_shift=False, tail="single")),
        RDN(RDNSpec(scale=4, blocks=2, layers=2, growth=4, channels=8)),
        SRResNet(SRResNetSpec(scale=4, blocks=2, channels=4, slopes=4, unit_range=True)),
        SRResNet(SRResNetSpec(scale=3, blocks=1, channels=4, bias=True)),
    ],
    ids=["edsr_x4", "edsr_x3_single", "rdn_x4", "srresnet_x4_unit_range", "srresnet_x3"],
)
def test_known_networks_give_the_graphs_of_their_builders(module: Any) -> None:
    traced, built = trace(module.eval()), module.spec.graph()
    assert structure(traced.graph) == structure(built)
    ends = [[node.role == "end" for node in graph.nodes if isinstance(node, Conv)] for graph in (traced.graph, built)]
    if isinstance(module, RDN):
        ends[0][1] = True  # its second convolution is an end as well, for a reason that no rule knows
    assert ends[0] == ends[1]
    assert set(traced.state) <= set(module.state_dict())


class Small(nn.Module):
    """A convolution, and what `then` makes of it: what may go wrong."""

    def __init__(self, then: Any = lambda self, x, y: y, conv: bool = True):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)) if conv else nn.Sequential()
        self.last, self.then = nn.Identity(), then
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.then(self, x, self.inner(x)))


class Two(Small):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + y


def complex_parameter() -> nn.Module:
    module = Small()
    module.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return module


REFUSED = {
    "training": (lambda: Small().train(), "'' (Small) is in training mode"),
    "part in training": (lambda: _training(Small()), "'inner.0' (Conv2d) is in training mode"),
    "control flow": (lambda: Small(lambda self, x, y: y if y.mean() > 0 else -y), "'' (Small): control flow depends on the values"),
    "size": (lambda: Small(lambda self, x, y: y if x.shape[2] > 40 else -y), "'' (Small): what it computes depends on the size"),
    "large size": (
        lambda: Small(lambda self, x, y: y if x.shape[3] < 2000 else -y),
        "'' (Small): what it computes depends on the size",
    ),
    "two inputs": (Two, "Two must take one tensor, but its forward needs ['x', 'y']"),
    "a number": (lambda: Small(lambda self, x, y: (y, 3)), "outputs of Small must be tensors, but number 1"),
    "no convolution": (lambda: Small(conv=False), "must have a convolution"),
    "complex": (complex_parameter, "'phase' is torch.complex64"),
    "random": (lambda: Small(lambda self, x, y: F.dropout(y, 0.5, True)), "(dropout) draws random numbers"),
    "noise": (lambda: Small(lambda self, x, y: y + torch.randn_like(y)), "(randn_like) draws random numbers"),
    "counter": (lambda: Small(lambda self, x, y: y + self.count.add_(1)), "(add) changes 'count'"),
    "write into a view": (lambda: Small(lambda self, x, y: (y[:, :1].mul_(2), y)[1]), "(mul) writes in place into memory"),
    "write into a part": (lambda: Small(lambda self, x, y: (y.relu_(), y.flatten(1), y.neg_())[1]), "(neg) writes in place into"),
}


def _training(module: nn.Module) -> nn.Module:
    module.eval().get_submodule("inner.0").train()
    return module


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_says_where_and_why(name: str) -> None:
    make, message = REFUSED[name]
    module = make()
    with pytest.raises(ValueError, match=re.escape(message)):
        trace(module if name.endswith("training") else module.eval())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("x", TypeError, "example_inputs must be a tensor, got str"),
        ((torch.zeros(1, 3, 8, 8),) * 2, ValueError, "must be one tensor, got 2 inputs"),
        (torch.zeros(3, 8, 8), ValueError, r"must be floating point \[N, C, H, W\], got torch.float32 \(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), ValueError, "got torch.int64"),
    ],
)
def test_examples_are_one_batch_of_pictures(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trace(Small().eval(), given)


def test_in_place_writes_that_nothing_else_sees_are_kept() -> None:
    module = Small(lambda self, x, y: y.mul_(2) + y.clone().relu_() + y.detach().sub_(1).contiguous())
    with pytest.raises(ValueError, match="writes in place"):  # the last one also changes what the sum reads
        trace(Small(lambda self, x, y: y + y.detach().sub_(1) + y).eval())
    assert_same(trace(module.eval(), torch.rand(1, 3, 24, 24)), module)


def test_shared_layers_and_parameters_keep_their_keys() -> None:
    module = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)]).eval()
    module[1].weight = module[0].weight  # one parameter under two keys, each with a bias of its own
    module[2] = module[0]  # one layer under two names
    traced = trace(module)
    keys = [node.key for node in traced.graph.nodes if isinstance(node, Conv)]
    assert keys == ["0", "1", "0"] and len({node.name for node in traced.graph.nodes}) == 3
    assert_same(traced, module)


def test_roles_follow_the_rule_or_what_is_given() -> None:
    def roles(traced: Traced) -> dict[str, str]:
        return {node.name: node.role for node in traced.graph.nodes if isinstance(node, Conv)}

    rrdb = made(traced_modules.RRDBNet)
    found = roles(trace(rrdb, roles={"conv_body": "fixed"}))
    assert {name for name, role in found.items() if role == "end"} == {"conv_first", "conv_up", "conv_last"}
    assert found["conv_body"] == "fixed" and found["body.0.1.convs.2"] == "adaptive"
    assert [name for name, role in roles(trace(made(traced_modules.Detector))).items() if role == "end"] == [
        "stem.0",
        "boxes",
        "scores",
    ]
    with pytest.raises(ValueError, match=r"must name convolutions of the graph, got \['nothing'\]"):
        trace(rrdb, roles={"nothing": "end"})
    with pytest.raises(ValueError, match="one of adaptive, fixed, end, got 'last'"):
        trace(rrdb, roles={"conv_body": "last"})


class Deep(nn.Module):
    def __init__(self, layers: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(layers)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + F.relu_(layer(x))
        return x


@pytest.mark.parametrize("layers", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_deep_networks_are_traced(layers: int) -> None:
    module = Deep(layers).eval()
    traced = trace(module)
    assert len(traced.graph.nodes) == 3 * layers
    assert_same(traced, module, ((1, 3, 8, 9),))


class Pyramid(nn.Module):
    """Adds features of half the size to enlarged ones of a quarter: sizes that are equal and written differently."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.lateral = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.lateral(x) + F.interpolate(self.second(x), scale_factor=2, mode="nearest")


def test_sums_of_sizes_that_must_be_equal_are_sums() -> None:
    module = made(Pyramid)
    traced = trace(module)
    assert isinstance(traced.graph.nodes[-1], Add)
    assert_same(traced, module)
