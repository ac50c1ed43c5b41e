"""Any module: traced, calibrated and converted, it computes what its simulation does and hands out what the module does."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import traced_modules
from layers_checked import check_layers
from safetensors import safe_open
from safetensors.torch import save_file
from small import one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import adabm_kernels
from adabm_kernels import native
from adabm_kernels.calibrate import calibrate_graph
from adabm_kernels.calibration.tensors import Tensors, read_tensors
from adabm_kernels.calibration.tracing import traced_spec
from adabm_kernels.checkpoint import HEADER_KEY, load, save
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.graph.nodes import Float, Graph, Ref
from adabm_kernels.graph.stored import from_plain, to_plain
from adabm_kernels.networks.traced import GraphSpec
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.simulate import SimulatedGraph, image_measure

BACKENDS = ["reference"] if native.why_missing("cpu") else ["cpu", "reference"]


class Mobile(nn.Module):
    """Parts of MobileNet and ConvNeXt: depthwise convolutions, ReLU6, linear layers of pixels, names that modules here have too."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.graph = nn.Sequential(
            nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=8), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 1)
        )
        self.norm, self.features, self.spec = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale_, self.last = nn.Parameter(torch.tensor([0.3, 3.0])), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = self.keys(x)
        y = F.relu(y + self.graph(y))
        y = y + self.spec(F.gelu(self.features(self.norm(y.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        pooled = torch.stack([y.mean((2, 3)), y.amax((2, 3))], 1) * self.scale_[:, None]
        return [self.last(pooled), y]


class Decoder(nn.Module):
    """Enlarges by transposed convolutions what is then put beside other features, or added to some that lie beside others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
        self.up, self.finer = nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.ConvTranspose2d(12, 8, 2, 2, bias=False)
        self.both, self.other, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        y = F.relu(self.down(x))
        z = torch.cat([self.up(y), x], 1)
        z = torch.cat([self.both(z), self.other(z)], 1)
        return self.last(F.relu(z)) + self.last(torch.cat([z[:, 8:] + self.finer(y), x], 1))


class Repeated(nn.Module):
    """Repeats the pixels of two features that lie beside each other, for a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, k, 3, padding=1) for c, k in ((3, 8), (8, 8), (16, 8), (8, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third, last = self.convs
        x = F.relu(first(x))
        y = F.interpolate(torch.cat([x, F.relu(second(x))], 1), scale_factor=2, mode="nearest")
        return last(F.relu(third(y)))


class Halves(nn.Module):
    """What a convolution gives is cut into halves of its columns, which are read when other features have taken its place."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, k, 3, padding=1) for c, k in ((3, 8), (8, 8), (8, 8), (8, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third, last = self.convs
        left, right = F.relu(first(x)).chunk(2, 3)
        right = F.relu(third(F.relu(second(right))))
        return last(F.relu(right) + third(F.relu(left)))


@dataclass(frozen=True)
class Kind:
    """A module and what is asked of it. size: of its input. crops: whether parts of the data stand for the whole."""

    module: type[nn.Module]
    size: tuple[int, int, int] = (3, 32, 40)
    recipe: str = "paper"
    crops: bool = False


KINDS = {
    "classifier": Kind(traced_modules.ResNeXt),
    "denoiser": Kind(traced_modules.DnCNN),
    "unet": Kind(traced_modules.UNet, recipe="best"),
    "detector": Kind(traced_modules.Detector, (3, 30, 34)),
    "decoder": Kind(Decoder, recipe="best"),
    "mobile": Kind(Mobile, (4, 32, 28), recipe="best"),
    "halves": Kind(Halves),
    "repeated": Kind(Repeated, (3, 20, 24), recipe="best"),
}
each_kind = pytest.mark.parametrize("name", KINDS)


def data(size: tuple[int, ...], count: int = 3) -> torch.Tensor:
    """A flat image, a smooth one and noise, in the range of a normalised picture."""
    g = torch.Generator().manual_seed(2)
    rows = torch.linspace(-1, 1, size[1]).view(1, -1, 1).expand(size)
    return torch.stack([torch.full(size, 0.3), rows * 1.5, torch.randn(size, generator=g)][:count])


@functools.cache
def module_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = KINDS[name].module().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            part.running_var.uniform_(0.5, 2)
            part.running_mean.normal_(0, 0.1)
    return module


@functools.cache
def simulated(name: str) -> SimulatedGraph:
    """A calibrated network in which layers and images of `data` take every offset."""
    kind, given = KINDS[name], read_tensors([data(KINDS[name].size), data(KINDS[name].size).flip(3)])
    spec, state = traced_spec(module_of(name), given)
    config = ConvertConfig(recipe=kind.recipe, act_bits=5, weight_bits=6, patch=24, batch=4)
    sim = calibrate_graph(SimulatedGraph.of_graph(spec, state, config), Tensors(given, spec))
    low, middle, high = image_measure(data(kind.size)).tolist()
    sim.measure_l.data.fill_((low + middle) / 2)
    sim.measure_u.data.fill_((middle + high) / 2)
    for i, conv in enumerate(conv for conv in sim.quantized_convs() if conv.adaptive):
        conv.measure_layer.data.fill_((0.9, -0.4, -3.0, 0.6)[i % 4])
    return sim


def converted(name: str, backend: str = BACKENDS[0]) -> ConvertedNetwork:
    model = convert_model(simulated(name))
    model.set_backend(backend)
    model.set_threads(1)
    return model


def same(a: Any, b: Any) -> bool:
    ones, others = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return ones[1] == others[1] and all(torch.equal(one, other) for one, other in zip(ones[0], others[0], strict=True))


@each_kind
def test_every_layer_agrees_with_the_simulation(name: str) -> None:
    check_layers(converted(name), simulated(name), data(KINDS[name].size))


@each_kind
def test_it_gives_what_the_module_gives(name: str) -> None:
    model, x = converted(name), data(KINDS[name].size)
    with torch.no_grad():
        want, sim = module_of(name)(x), copy.deepcopy(simulated(name)).double()(x.double())
    given = model(x)
    assert pytree.tree_structure(given) == pytree.tree_structure(want)
    for got, near, exact in zip(*map(pytree.tree_leaves, (given, sim, want)), strict=True):
        assert got.dtype == torch.float32 and got.shape == exact.shape
        assert (got - near).norm() <= 0.02 * near.norm()  # codes that lie on a boundary may differ
        assert (got - exact).norm() <= 0.5 * exact.norm()
    assert torch.equal(model.mean_bits(x), simulated(name).mean_bits(x)) and model.image_offsets(x).tolist() == [-1, 0, 1]


@each_kind
def test_kernels_equal_the_reference_and_images_their_batch(name: str) -> None:
    x, slow = data(KINDS[name].size), converted(name, "reference")
    want = slow(x)
    for backend in BACKENDS:
        assert same(converted(name, backend)(x), want)
    if name in ("classifier", "unet"):  # whose floats in between sum nothing over a batch
        alone = slow(x[1:2])
        assert torch.allclose(alone, want[1:2], rtol=1e-5, atol=1e-5)


@each_kind
def test_a_file_holds_the_graph(name: str, tmp_path: Path) -> None:
    model, x = converted(name), data(KINDS[name].size)
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    again.set_threads(1)
    want = model(x)
    assert same(again(x), want) and again.spec == model.spec
    for twin in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert same(twin(x), want)
    with torch.no_grad():
        ours, theirs = again.float_model()(x), module_of(name)(x)
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    for one, other in zip(*map(pytree.tree_leaves, (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


# ---- what stays in floats, and what is refused


class Small(nn.Module):
    """A convolution, and what is done with its result."""

    def __init__(self, forward: Any = None):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.conv(x) if self.function is None else self.function(self.conv(x))


class TwoInputs(Small):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.conv(x) + y


def given(*size: int) -> list[torch.Tensor]:
    return [torch.rand(2, *(size or (3, 16, 16)), generator=torch.Generator().manual_seed(0))]


QUICK = ConvertConfig(recipe="paper", batch=2)
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "training": (lambda: Small().train(), given(), r"'' \(Small\) is in training mode: call .eval\(\) on the module first"),
    "two inputs": (TwoInputs, given(), r"TwoInputs must take one tensor, but its forward needs \['x', 'y'\]"),
    "control flow": (
        lambda: Small(lambda y: y if y.sum() > 0 else -y),
        given(),
        r"'' \(Small\): control flow depends on the values of a tensor",
    ),
    "no convolution": (lambda: nn.Sequential(nn.ReLU()), given(), "Sequential must have a convolution on the way to its outputs"),
    "a number": (lambda: Small(lambda y: (y, 3)), given(), "outputs of Small must be tensors, but number 1"),
    "no data": (Small, None, r"calibration is needed for a float network: pass floating-point tensors \[N, C, H, W\]"),
    "a tensor": (Small, given()[0], r"calibration must be an iterable of .*, got Tensor \(put it into a list\)"),
    "empty": (Small, [], "calibration must hold at least one tensor, got none"),
    "a path": (Small, ["photo.png"], r"calibration\[0\] must be one of floating-point tensors .*, got str"),
    "a pair": (
        Small,
        [(given()[0], given()[0])],
        r"calibration\[0\] must be one of .*, got tuple of 2: a module with one input is",
    ),
    "bytes": (Small, [given()[0].byte()], r"calibration\[0\] must be floating point .*, got torch.uint8 \(2, 3, 16, 16\)"),
    "three dimensions": (Small, [given()[0][0]], r"calibration\[0\] must be floating point .*, got torch.float32 \(3, 16, 16\)"),
    "other channels": (Small, [*given(), *given(1, 16, 16)], r"calibration\[1\] must have 3 channels as those before it, got 1"),
    "channels of another module": (Small, given(5, 16, 16), r"'conv' \(Conv2d\): .*expected input.* to have 3 channels"),
    "infinite": (Small, [given()[0] / 0], r"calibration\[0\] must be finite, and holds NaN or infinite values"),
    "sides": (
        traced_modules.UNet,
        given(3, 18, 16),
        r"(sides that are multiples of 4, got 18x16|Sizes of tensors must match|depends on the size)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_converted_is_said_in_a_sentence(what: str, capfd: pytest.CaptureFixture[str]) -> None:
    module, calibration, message = REFUSED[what]
    made = module()
    made = made if what == "training" else made.eval()
    with pytest.raises((ValueError, TypeError), match=message) as error:
        convert_model(made, calibration, QUICK)
    assert len(str(error.value)) < 300, "a sentence, without the keys of all known networks"
    assert "def forward" not in "".join(capfd.readouterr()), "torch prints no graph"


def test_what_stays_in_floats_is_named_and_strict_refuses_it() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 80 * 64, 3)).eval()
    model = convert_model(wide, given(3, 160, 128), QUICK)
    why = "sums of 40960 products of 8 bits could overflow 32 bits"
    assert list(model.report["floats"]) == ["1", "3"] and model.report["skipped"] == ["3"]
    assert model.report["floats"]["1"] == "integer kernels have no silu" and why in model.report["floats"]["3"]
    assert [layer["name"] for layer in model.report["layers"]] == ["0"]
    with pytest.raises(ValueError, match=f"strict must be False where layers stay in floats, here '3': {why}"):
        convert_model(wide, given(3, 160, 128), QUICK, strict=True)
    # It depends on the size of its input.
    with pytest.raises(ValueError, match="x must have 160x128 rows and columns, the size that the module .*, got 16x16"):
        model(given()[0])
    with pytest.raises(ValueError, match=r"x must be float32 \[N, 3, H, W\] and not empty, got torch.float32 \(2, 1, 16, 16\)"):
        model(given(1, 16, 16)[0])
    with pytest.raises(ValueError, match=r"pixels\(\) is for super-resolution networks"):
        model.pixels(given(3, 160, 128)[0])


def test_a_picture_is_not_upscaled_by_a_classifier() -> None:
    with pytest.raises(ValueError, match="model must be a super-resolution network of pixels in 0..255, this one is"):
        adabm_kernels.upscale(torch.rand(3, 32, 32) * 255, converted("classifier"))


def test_sides_must_be_multiples_and_data_are_cut_to_them() -> None:
    model = converted("unet")
    with pytest.raises(ValueError, match="x must have sides that are multiples of 4, got 30x32"):
        model(torch.rand(1, 3, 30, 32))
    spec = simulated("unet").spec
    assert spec.local and spec.multiple == 4 and not simulated("classifier").spec.local
    cut = Tensors([torch.rand(3, 31, 45)], spec)
    assert cut.items[0].shape == (3, 28, 44)
    import random

    rng = random.Random(0)
    assert [tuple(batch.shape) for batch in cut.batches(26, 4, rng)] == [(1, 3, 24, 24)]
    whole = Tensors([torch.rand(3, 31, 45), torch.rand(3, 20, 20), torch.rand(3, 31, 45)], simulated("classifier").spec)
    shapes = sorted(tuple(batch.shape) for batch in whole.batches(26, 4, rng))
    assert shapes == [(1, 3, 20, 20), (2, 3, 31, 45)]
    assert whole.first(whole.batches(26, 4, rng), 1).shape == (1, 3, 31, 45)
    queue = whole.queue(26, 2, rng, 1)
    assert sum(len(queue.next()) for _ in range(2)) == 3 and queue.order == []


def test_a_known_network_is_traced_where_that_is_asked_for() -> None:
    from small import small_edsr

    edsr, x = small_edsr(), [torch.rand(2, 3, 16, 16) * 255]
    assert convert_model(edsr, x, QUICK).spec.network == "edsr"
    model = convert_model(edsr, x, QUICK, traced=True)
    assert model.spec.network == "graph" and model(x[0]).shape == (2, 3, 32, 32)
    with pytest.raises(TypeError, match="traced must be True, False or None, got 'yes'"):
        convert_model(edsr, x, QUICK, traced="yes")
    with pytest.raises(TypeError, match="model must be a torch.nn.Module to be traced, got a state dict"):
        convert_model(edsr.state_dict(), x, QUICK, traced=True)
    with pytest.raises(ValueError, match="not an EDSR"):
        convert_model(Small().eval(), x, QUICK, traced=False)
    with pytest.raises(ValueError, match="config.input_range must be 'auto' for a traced module, got 'pixels'"):
        convert_model(Small().eval(), x, replace(QUICK, input_range="pixels"))


def test_a_traced_network_of_residual_blocks_has_no_easy_tiles() -> None:
    class Block(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv(F.relu(x)[:, :3])

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Block(), Block(), nn.Conv2d(4, 3, 3, padding=1)).eval()
    config = ConvertConfig(recipe="best", batch=2, patch=16)
    model = convert_model(module, given(), config)
    assert model.exit is None and model.spec.trunk is not None
    assert "easy tiles are for super-resolution networks" in model.spec.why_full_depth


def test_fine_tuning_brings_all_outputs_nearer() -> None:
    """Outputs of very different sizes and numbers of values."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.small, self.large = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 1, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = F.relu(self.inner(F.relu(self.first(x))))
            return {"small": self.small(y).mean((2, 3)) / 100, "large": self.large(y) * 100}

    torch.manual_seed(0)
    module, x = Heads().eval(), given(3, 24, 24) * 4
    quick = ConvertConfig(weight_bits=2, act_bits=4, batch=4)
    with torch.no_grad():
        want = module(x[0])
    errors = []
    for steps in (0, 60):
        got = convert_model(module, x, replace(quick, steps=steps))(x[0])
        errors.append({name: float((got[name] - want[name]).norm() / want[name].norm()) for name in want})
    assert errors[1]["small"] < errors[0]["small"] and errors[1]["large"] < errors[0]["large"]


# ---- files that are not what `save` wrote


def changed(header: dict[str, Any], what: str) -> None:
    nodes = header["spec"]["definition"]["nodes"]
    calls = [node for node in nodes if node["kind"] == "Float"]
    pools = [node for node in nodes if node["kind"] == "Pool"]
    match what:
        case "a call":
            calls[0]["target"] = "os.system"
        case "a method":
            calls[0]["target"] = ".__class__"
        case "an operator":
            calls[0]["target"] = "torch.ops.aten.from_file.default"
        case "an attribute":
            calls[0] |= {"target": "builtins.getattr", "arguments": [{"ref": 0}, "__class__"]}
        case "a function":
            pools[0]["function"] = "warnings.warn"
        case "a kind":
            nodes[0]["kind"] = "Node"
        case "a field":
            nodes[0]["bias"] = 1
        case "a reference":
            calls[0]["arguments"] = [{"ref": 7}]
        case "a layout":
            header["spec"]["layout"] = ["tuple", [0, 0]]
        case "a shape":
            next(node for node in nodes if node["kind"] == "Conv")["channels_in"] = 1 << 40
        case "a negative size":
            next(node for node in nodes if node["kind"] == "Conv")["channels_out"] = -1
        case "a stride of 0":
            next(node for node in nodes if node["kind"] == "Conv")["stride"] = [0, 1]
        case "a dtype":
            header["spec"]["dtypes"] = {"x": "storage"}
        case "a deep value":
            calls[0]["arguments"] = "DEEP"


@pytest.mark.parametrize(
    "what, message",
    [
        ("a call", "'os.system' is no call that files hold"),
        ("a method", "'.__class__' is no call that files hold"),
        ("an operator", "from_file.default' is no call that files hold"),
        ("an attribute", "'builtins.getattr' is no call that files hold"),
        ("a function", "a pool must be one of"),
        ("a kind", "a node must be an object of a known kind"),
        ("a field", "a value must be true or false, got '1'"),
        ("a reference", "must refer to inputs that it has"),
        ("a layout", "layout must name each of 1 outputs once and in order"),
        ("a shape", "must have (shape|sizes)"),
        ("a negative size", "must have sizes from 0 on"),
        ("a stride of 0", "must be a convolution of sizes, strides and groups from 1 on"),
        ("a dtype", "dtypes must be of int64"),
        ("a deep value", "its JSON is nested too deeply"),
    ],
)
def test_a_changed_file_is_refused(what: str, message: str, tmp_path: Path) -> None:
    save(converted("classifier"), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    changed(header, what)
    text = json.dumps(header).replace('"DEEP"', "[" * 5000 + "]" * 5000)
    save_file(tensors, tmp_path / "m.safetensors", {HEADER_KEY: text})
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "m.safetensors")


def test_a_graph_comes_back_as_it_was_and_unlisted_calls_are_not_written(tmp_path: Path) -> None:
    arguments = (Ref(0), (1, -1), [2.5, None], slice(None, 3), ..., torch.float16, float("-inf"), torch.device("cpu"))
    node = Float("f", ("x",), "torch.ops.aten.where.self", arguments, (("dim", 1),))
    graph = Graph((node,), outputs=("f",), buffers={"b": (1, 2)})
    assert from_plain(json.loads(json.dumps(to_plain(graph)))) == graph
    other = Graph((replace(node, target="torch.fft.fft"),), outputs=("f",))
    with pytest.raises(ValueError, match="'f': 'torch.fft.fft' is no call that files hold"):
        to_plain(other)
    model = convert_model(Small(lambda y: torch.fft.fft(y).real).eval(), given(), QUICK)
    with pytest.raises(ValueError, match="save: the graph of a traced module cannot be written: .*fft"):
        save(model, tmp_path / "m.safetensors")


def test_layers_that_share_weights_have_ranges_of_their_own() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), conv, nn.Sigmoid(), conv, nn.Conv2d(4, 1, 1)).eval()
    model = convert_model(module, given(), QUICK)
    assert list(model.parameters_by_name) == ["0", "1", "1_1", "4"]
    assert model.parameters_by_name["1"].lower != model.parameters_by_name["1_1"].lower
    assert isinstance(model.spec, GraphSpec) and model(given()[0]).shape == (2, 1, 14, 14)
