"""A converted network as a torch.nn.Module: copies, dtypes, layouts, autograd, threads, forks, compile and export."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small import OnOtherDevice, one_thread, small_edsr  # noqa: F401
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import adabm_kernels
from adabm_kernels import native, registration
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.networks.rdn import RDN, RDNSpec
from adabm_kernels.networks.srresnet import SRResNet, SRResNetSpec
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.nn.contexts import as_imported
from adabm_kernels.registry import Problem, choose

BACKENDS = ["reference"] if native.why_missing("cpu") else ["cpu", "reference"]
SIDE = 12


def images(count: int = 2, height: int = SIDE, width: int = SIDE + 3) -> torch.Tensor:
    """float32 [count, 3, height, width] in 0..255: noise below smooth rows, which differ in bits."""
    g = torch.Generator().manual_seed(5)
    x = torch.rand(count, 3, height, width, generator=g) * 255
    x[1::2] = torch.linspace(0, 255, width)
    return x


@functools.cache
def fresh(backend: str) -> ConvertedNetwork:
    config = ConvertConfig(batch=2)
    model = convert_model(small_edsr(), [images(4, 20, 20)], config)
    model.set_backend(backend)
    model.set_threads(1)
    return model


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest) -> ConvertedNetwork:
    return copy.deepcopy(fresh(request.param))


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch_save": through_torch_save,
    "float": lambda model: model.float(),
    "to_cpu": lambda model: model.to("cpu"),
    "to_channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "train": lambda model: model.train(),
    "requires_grad": lambda model: model.requires_grad_(),
    "share_memory": lambda model: model.share_memory(),
    "data_parallel": nn.DataParallel,
    "sequential": nn.Sequential,
}


@pytest.mark.parametrize("name", COPIES)
def test_what_is_done_to_a_module_leaves_its_results(model: ConvertedNetwork, name: str) -> None:
    model.set_bits(5)  # a setting that copies must keep
    want = model(images())
    assert torch.equal(COPIES[name](model)(images()), want)


@pytest.mark.parametrize("name", ["copy", "deepcopy", "pickle"])
def test_what_is_done_to_a_copy_leaves_the_original(name: str) -> None:
    model = copy.deepcopy(fresh(BACKENDS[0]))
    want, made = model(images()), COPIES[name](model)
    made.set_bits(8)
    made.conv("head.0").weight.zero_()
    made.set_backend("reference")
    assert not torch.equal(made(images()), want)
    assert torch.equal(model(images()), want) and model.choice.backend == BACKENDS[0]


@torch.inference_mode()
def in_inference_mode(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "slice": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "reversed_batch": lambda x: x.flip(0)[torch.arange(len(x)).flip(0)],
    "negative_view": lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
    "subclass": lambda x: x.as_subclass(type("Image", (torch.Tensor,), {})),
    "inference_tensor": in_inference_mode,
    "one_pixel_high": lambda x: x[:, :, :1],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_of_the_input_does_not_matter(model: ConvertedNetwork, name: str) -> None:
    x = LAYOUTS[name](images())
    got = model(x)
    assert torch.equal(got, model(torch.tensor(x.tolist())))


def test_a_forward_pass_leaves_inference_mode(model: ConvertedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the inputs which a recorded graph keeps are ordinary tensors, too."""
    seen = []

    def replay(x: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled(), x.clone().is_inference()))
        return x

    monkeypatch.setattr(model, "_graph", True)
    monkeypatch.setattr(model, "_replay", replay)
    with torch.inference_mode():
        model(images())
        model.pixels(images())
    assert seen == [(False, False, False)] * 2


def test_a_profiler_sees_the_operators(model: ConvertedNetwork) -> None:
    want = copy.deepcopy(model)(images())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert torch.equal(model(images()), want)
    assert {"adabm::layer_bits", "adabm::conv2d_out"} <= {event.key for event in profile.key_averages()}


def test_an_expanded_input(model: ConvertedNetwork) -> None:
    grey = images(1)[:, :1].expand(2, 3, -1, -1)
    assert torch.equal(model(grey), model(grey.contiguous()))


def test_a_batch_is_its_images_one_by_one(model: ConvertedNetwork) -> None:
    x = images(5)
    assert torch.equal(model(x), torch.cat([model(image) for image in x.split(1)]))


@contextmanager
def default_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CONTEXTS = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "autocast_bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast_float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default_dtype": default_float64,
    "default_device": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "dispatch_mode": lambda: FlopCounterMode(display=False),
}


def networks() -> dict[str, ConvertedNetwork]:
    """Each form of a forward pass that torch has a part in."""
    srresnet, rdn = SRResNet(SRResNetSpec(2, 1, 8)).eval(), RDN(RDNSpec(2, 1, 2, 8, 8)).eval()
    small = small_edsr(blocks=1)
    made = {
        "edsr": (small, {}),
        "two_digits": (small, {"tail_digits": 2}),
        "body": (small, {"quantize": "body"}),
        "srresnet_body": (srresnet, {"quantize": "body"}),
        "rdn_body": (rdn, {"quantize": "body"}),
    }
    return {name: convert_model(net, [images(2, 20, 20)], ConvertConfig(batch=2, **config)) for name, (net, config) in made.items()}


@pytest.fixture(scope="module")
def many() -> dict[str, ConvertedNetwork]:
    return networks()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_of_torch_change_nothing(many: dict[str, ConvertedNetwork], name: str, backend: str) -> None:
    """A context around the first forward pass, which makes the buffers, around a later one, and around the settings."""
    x = images()
    for kind, model in many.items():
        model.set_backend(backend)
        model.set_threads(1)
        first, later, set_inside = (copy.deepcopy(model) for _ in range(3))
        want = later(x)
        with CONTEXTS[name]():
            inside = first(x)
            assert inside.dtype == torch.float32 and torch.equal(inside, want), kind
            assert torch.equal(later(x), want), kind
            set_inside.set_bits(3)
            set_inside.set_bits("auto")
            set_inside.set_backend(backend)
            set_inside.set_running_thresholds(0.1)
            set_inside(x)
            set_inside.set_running_thresholds(0.0)
        for used in (first, later, set_inside):
            assert torch.equal(used(x), want) and not any(buffer.is_inference() for buffer in used.buffers()), kind


@functools.cache
def tuned() -> ConvertedNetwork:
    return convert_model(small_edsr(blocks=1), [images(2, 16, 16)], ConvertConfig(batch=2, steps=1))


@pytest.mark.parametrize("name", ["inference_mode", "no_grad", "autocast_bfloat16", "default_dtype", "default_device"])
def test_a_model_made_in_a_context_is_as_any_other(tmp_path: Path, name: str) -> None:
    """Converted with fine-tuning, which needs gradients, saved and read."""
    want, network, given = tuned(), small_edsr(blocks=1), [images(2, 16, 16)]
    with CONTEXTS[name]():
        default = torch.get_default_dtype()
        made = convert_model(network, given, want.config)
        adabm_kernels.save(made, tmp_path / "model.safetensors")
        read = adabm_kernels.load(tmp_path / "model.safetensors")
        read.set_threads(1)
        assert torch.get_default_dtype() == default
    for model in (made, read):
        assert not any(buffer.is_inference() for buffer in model.buffers())
        assert torch.equal(model(images()), want(images()))
        model.set_bits(4)
        model(images())


def test_models_made_in_threads_at_once_leave_the_default_dtype() -> None:
    """The first in leaves first; the last one out restores."""
    inside = [threading.Event(), threading.Event()]

    def first() -> None:
        with as_imported():
            inside[0].set()
            inside[1].wait(20)

    with default_float64():
        thread = threading.Thread(target=first)
        thread.start()
        assert inside[0].wait(20)
        with as_imported():
            inside[1].set()
            thread.join()
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("name", ["copy", "deepcopy", "pickle", "torch_save", "float", "to_cpu", "share_memory"])
def test_a_model_copied_or_moved_in_inference_mode_is_as_any_other(model: ConvertedNetwork, name: str) -> None:
    want = model(images())
    with torch.inference_mode():
        model.state_dict()
        copied = COPIES[name](model)
    assert not any(buffer.is_inference() for buffer in copied.buffers())
    copied.set_bits(2)
    copied(images())
    copied.set_bits("auto")
    assert torch.equal(copied(images()), want)


def test_what_is_traced_leaves_no_buffers_behind(model: ConvertedNetwork) -> None:
    """Buffers of fake tensors, or of a program that is being recorded, mean nothing to the calls that follow."""
    x, want = images(), copy.deepcopy(model)(images())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(x)).shape == want.shape
    assert torch.equal(model(x), want)
    program = make_fx(model)(x)
    assert torch.equal(program(x.flip(0)), model(x.flip(0)))
    assert torch.equal(model(x), want)
    assert torch.equal(torch.func.functional_call(model, dict(model.named_buffers()), (x,)), want)


def forward_mode(model: nn.Module, x: torch.Tensor) -> None:
    with forward_ad.dual_level():
        model(forward_ad.make_dual(x, torch.ones_like(x)))


def checkpointed(model: nn.Module, x: torch.Tensor) -> None:
    checkpoint(model, x.requires_grad_(), use_reentrant=False).sum().backward()


DERIVATIVES: dict[str, Callable[[nn.Module, torch.Tensor], object]] = {
    "backward": lambda model, x: (model(x.requires_grad_()).sum() + x.sum()).backward(),
    "checkpoint": checkpointed,
    "forward_ad": forward_mode,
    "functional": lambda model, x: torch.autograd.functional.jacobian(model, x),
    "grad": lambda model, x: torch.func.grad(lambda x: model(x).sum())(x),
    "jvp": lambda model, x: torch.func.jvp(model, (x,), (x,)),
    "jacrev": lambda model, x: torch.func.jacrev(model)(x),
    "jacfwd": lambda model, x: torch.func.jacfwd(model)(x),
    "vmap_of_grad": lambda model, x: torch.vmap(torch.func.grad(lambda image: model(image[None]).sum()))(x),
    "compiled": lambda model, x: torch.compile(model, backend="aot_eager")(x.requires_grad_()).sum().backward(),
    "grad_of_compiled": lambda model, x: torch.func.grad(lambda x: torch.compile(model, backend="aot_eager")(x).sum())(x),
    "compiled_grad": lambda model, x: torch.compile(torch.func.grad(lambda x: model(x).sum()), backend="aot_eager")(x),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_a_derivative_is_an_error_and_never_silently_zero(name: str) -> None:
    model = copy.deepcopy(fresh(BACKENDS[0]))
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="ConvertedEDSR has no derivative: it computes in integers"):
        DERIVATIVES[name](model, images(2, 6, 7))


def test_what_requires_gradients_is_computed_all_the_same(model: ConvertedNetwork) -> None:
    assert list(model.parameters()) == []
    x, want = images().requires_grad_(), model(images())
    y = model(x)
    assert torch.equal(y, want) and torch.equal(model(x).clamp_(0, 255), want.clamp(0, 255))
    assert torch.equal(model.pixels(x), model.pixels(images()))
    with torch.no_grad():
        assert not model(x).requires_grad
    (y.detach() + x.mean()).sum().backward()  # around the model gradients pass
    assert x.grad.abs().sum() > 0


def test_a_mapped_model_computes_a_batch_of_batches(model: ConvertedNetwork) -> None:
    x, offsets = images(4).view(2, 2, 3, SIDE, SIDE + 3), torch.tensor([[0, 1], [-1, 0]], dtype=torch.int32)
    want = torch.stack([model(batch) for batch in x])
    assert torch.equal(torch.vmap(model)(x), want)
    assert torch.equal(torch.vmap(model.pixels, in_dims=1)(x.transpose(0, 1)), torch.stack([model.pixels(batch) for batch in x]))
    assert torch.equal(torch.vmap(torch.vmap(lambda image: model(image[None])[0]))(x), want)
    assert torch.equal(torch.vmap(model)(x, offsets), torch.stack([model(*given) for given in zip(x, offsets, strict=True)]))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(torch.vmap(model), backend="eager")(x), want)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="ConvertedEDSR: torch.compile cannot look through a transform of torch.func"):
        torch.compile(torch.vmap(model), backend="eager", fullgraph=True)(x)
    assert torch.equal(torch.vmap(lambda offset: model(x[0], offset))(offsets), torch.stack([model(x[0], o) for o in offsets]))


def mapped_over_buffers(model: nn.Module) -> torch.Tensor:
    x, stacked = images(), {name: torch.stack([buffer, buffer]) for name, buffer in model.named_buffers()}
    return torch.vmap(lambda buffers: torch.func.functional_call(model, buffers, (x,)))(stacked)


def with_buffer(model: nn.Module) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """The forward pass as a function of one buffer, and the buffer."""
    x, (name, buffer) = images(), next(item for item in model.named_buffers() if item[0].endswith("_adaptive.head_0.beta"))
    return lambda value: torch.func.functional_call(model, {name: value}, (x,)), buffer


def mapped_over_a_buffer(model: nn.Module) -> torch.Tensor:
    function, buffer = with_buffer(model)
    return torch.vmap(function)(torch.stack([buffer, buffer]))


def derived_by_a_buffer(model: nn.Module) -> torch.Tensor:
    function, buffer = with_buffer(model)
    return torch.func.grad(lambda value: function(value).sum())(buffer)


RECORDERS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "jit_trace": (lambda model: torch.jit.trace(model, images()), "torch.jit.trace cannot hold a converted model"),
    "jit_script": (torch.jit.script, "torch.jit.script cannot hold a converted model"),
    "functionalize": (lambda model: torch.func.functionalize(model)(images()), "torch.func.functionalize knows no operators"),
    "vmap": (mapped_over_buffers, "torch.func can transform x and offset, not the tensors of the model"),
    "vmap_of_a_buffer": (mapped_over_a_buffer, "torch.func can transform x and offset, not the tensors of the model"),
    "grad_of_a_buffer": (derived_by_a_buffer, "torch.func can transform x and offset, not the tensors of the model"),
    "fx": (torch.fx.symbolic_trace, "torch.fx.symbolic_trace cannot follow the forward pass"),
    "onnx": (lambda model: torch.onnx.export(model, (images(),), io.BytesIO(), dynamo=False), "ONNX has no operator"),
}


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in_another"])
@pytest.mark.parametrize("name", RECORDERS)
def test_what_cannot_record_a_model_is_told_what_can(name: str, inside: bool) -> None:
    model, (record, message) = fresh(BACKENDS[0]), RECORDERS[name]
    with pytest.raises(RuntimeError, match=f"ConvertedEDSR: {message}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of exporters that it is about to drop
        record(nn.Sequential(model, nn.ReLU()) if inside else model)


@pytest.mark.parametrize("strict", [False, True])
def test_the_newer_exporter_to_onnx_is_told_too(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exports with torch.export first, strictly where the other way fails; it needs a package that is not always there."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(RuntimeError, match="ConvertedEDSR: ONNX has no operator"):
        torch.export.export(fresh(BACKENDS[0]), (images(),), strict=strict)


REFUSED: dict[str, tuple[Callable[[ConvertedNetwork], object], str]] = {
    "half": (lambda model: model.half(), "computes in integers and float32: it cannot become torch.float16"),
    "bfloat16": (lambda model: model.bfloat16(), "it cannot become torch.bfloat16"),
    "double": (lambda model: model.double(), "it cannot become torch.float64"),
    "type": (lambda model: model.type(torch.int8), "it cannot become torch.int8"),
    "complex": (lambda model: model.to(torch.complex64), "it cannot become torch.complex64"),
    "to_empty": (lambda model: model.to_empty(device="cpu"), r"to_empty\('cpu'\) would lose the tensors, .*: use .to\('cpu'\)"),
    "load_state_dict": (lambda model: model.load_state_dict(model.state_dict()), "read one with adabm_kernels.load"),
    "prune": (lambda model: prune.l1_unstructured(model.conv("head.0"), "weight", 0.5), "parameter 'weight_orig' cannot be added"),
    "parametrize": (
        lambda model: register_parametrization(model.conv("head.0"), "weight", nn.Identity()),
        "AdaptiveConv2d: buffer 'weight' cannot be removed: .* Prune or parametrize the float network, then convert it",
    ),
    "float16_input": (lambda model: model(images().half()), "x must be float32 .*, got torch.float16"),
    "bfloat16_input": (lambda model: model(images().bfloat16()), "x must be float32 .*, got torch.bfloat16"),
    "float64_input": (lambda model: model(images().double()), "x must be float32 .*, got torch.float64"),
    "int_input": (lambda model: model(images().int()), "x must be float32 .*, got torch.int32"),
    "no_batch": (lambda model: model(images()[0]), r"x must be float32 .*, got torch.float32 \(3, 12, 15\)"),
    "empty_batch": (lambda model: model(images()[:0]), r"and not empty, got torch.float32 \(0, 3, 12, 15\)"),
    "sparse": (
        lambda model: model(images().to_sparse()),
        r"x must be float32 .*, got torch.float32 \(2, 3, 12, 15\) of layout torch.sparse_coo",
    ),
    "nested": (lambda model: model(torch.nested.nested_tensor(list(images()))), "x must be float32 .*, got a nested tensor"),
    "other_device": (lambda model: model(images().to("meta")), "backend 'cpu' needs tensors in main memory, x is on meta"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_a_sentence(name: str) -> None:
    model = copy.deepcopy(fresh(BACKENDS[0]))
    act, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        act(model)
    assert torch.equal(model(images()), fresh(BACKENDS[0])(images()))  # and nothing has changed


def test_on_the_meta_device_there_are_shapes() -> None:
    model = copy.deepcopy(fresh("reference"))
    model.set_backend("auto")
    y = model.to("meta")(images().to("meta"))
    assert (y.device.type, y.dtype, tuple(y.shape)) == ("meta", torch.float32, (2, 3, 2 * SIDE, 2 * SIDE + 6))
    with pytest.raises(RuntimeError, match="ConvertedEDSR is on the device 'meta', where tensors hold nothing"):
        model.cpu()


@pytest.mark.parametrize("device", ["mps", "xpu:1", "hpu", "privateuseone:0"])
def test_devices_that_no_backend_knows_are_refused(device: str) -> None:
    with pytest.raises(RuntimeError, match=f"device must be 'cpu' or 'cuda', got '{device}': no kernel computes on"):
        choose(Problem(device))
    with pytest.raises(RuntimeError, match="backend 'reference' cannot run: no kernel computes on"):
        choose(Problem(device), "reference")


def test_a_model_stays_where_it_is_when_it_cannot_go() -> None:
    model = copy.deepcopy(fresh(BACKENDS[0]))
    with pytest.raises(RuntimeError, match="device must be 'cpu' or 'cuda', got 'xpu"):
        model._apply(OnOtherDevice)
    assert torch.equal(model(images()), fresh(BACKENDS[0])(images()))


def test_threads_share_a_model(model: ConvertedNetwork) -> None:
    inputs = [images(2, SIDE + i, SIDE) for i in range(3)]
    want, wrong = [model(x) for x in inputs], []

    def work(i: int) -> None:
        for turn in range(6):
            which = (i + turn) % len(inputs)  # other shapes than the threads beside, at every turn
            if not torch.equal(model(inputs[which]), want[which]):
                wrong.append((i, turn))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Upscaled(torch.utils.data.Dataset):
    """Pictures upscaled where they are loaded."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.model(images(4)[i : i + 1])[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_use_the_model_of_their_parent(model: ConvertedNetwork, start: str) -> None:
    if start == "spawn" and model.choice.backend == "reference":
        pytest.skip("seconds of imports, and pickled alike")
    model.set_threads(2)
    want = model(images(4))  # the parent's pool of threads is running when the workers begin
    loader = torch.utils.data.DataLoader(Upscaled(model), batch_size=2, num_workers=2, multiprocessing_context=start, timeout=120)
    assert torch.equal(torch.cat(list(loader)), want)


def half_flat(count: int, height: int, width: int) -> torch.Tensor:
    """`images` with easy tiles, where they have several."""
    x = images(count, height, width)
    x[..., width // 2 :] = 100
    return x


SIZES = {"one_tile": (1, SIDE, SIDE + 3), "a_batch": (2, SIDE, SIDE), "many_tiles": (1, 20, 50)}


@pytest.mark.parametrize("traced", SIZES)
@pytest.mark.parametrize("depth", ["auto", 0])
def test_compiled_and_exported_it_computes_the_same(model: ConvertedNetwork, depth: str | int, traced: str) -> None:
    """Traced with few or many tiles, the program is right for images of any number of them."""
    model.set_depth(depth)
    x = half_flat(*SIZES[traced])
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in ((0, 2, 3) if len(x) > 1 else (2, 3))}
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": sizes}).module()
    several = half_flat(len(x), 33, 40)
    assert depth == 0 or 0 < model.computed_share(several).min() < 1
    for given in (x, several, half_flat(len(x), SIDE - 1, 17), half_flat(3 if len(x) > 1 else 1, 50, 8)):
        assert torch.equal(exported(given), model(given))


@pytest.mark.parametrize("imports", ["adabm_kernels, torch", "torch, adabm_kernels"])
def test_an_exported_program_needs_only_the_package_in_a_fresh_process(tmp_path: Path, imports: str) -> None:
    """Whichever is imported first; the package alone loads no torch, and nothing waits for it afterwards."""
    model, x = copy.deepcopy(fresh(BACKENDS[0])), images(1, 9, 10)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    torch.save((x, model(x)), tmp_path / "tensors.pt")
    code = f"""
import sys
import {imports.split(", ")[0]}
print("torch" in sys.modules, "adabm_kernels.ops" in sys.modules)
import {imports.split(", ")[1]}
assert torch.ops.adabm.conv2d is not None and "_Hook" not in {{type(finder).__name__ for finder in sys.meta_path}}
assert "adabm" not in type(torch.__spec__.loader).__module__ and torch.__loader__ is torch.__spec__.loader
x, y = torch.load("tensors.pt")
print(torch.equal(torch.export.load("model.pt2").module()(x), y))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(adabm_kernels.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(imports.startswith("torch")), "False", "True"], done.stderr


def test_a_module_that_the_operators_need_may_be_imported_before_torch() -> None:
    """torch is then loaded in the midst of it, when the operators cannot be: they come with the next import, here of a built-in
    module, for which the finder just behind the hook must still be asked (setuptools would put another one between)."""
    code = "import adabm_kernels.quantize, xxsubtype, torch; print(torch.ops.adabm.conv2d.default)"
    environment = os.environ | {"PYTHONPATH": str(Path(adabm_kernels.__file__).parents[1]), "SETUPTOOLS_USE_DISTUTILS": "stdlib"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["adabm.conv2d.default"], done.stderr


def test_operators_that_cannot_be_loaded_break_no_import_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """One import alone tries: those of other threads that come to the hook meanwhile go on."""
    tried, hook = [], registration._Hook()

    def load(name: str) -> None:
        hook.find_spec("something.else")  # as another thread would
        tried.append(name)
        raise OSError("libtorch is of another version")

    monkeypatch.setattr(registration.importlib, "import_module", load)
    monkeypatch.setattr(sys, "meta_path", [hook, *sys.meta_path])
    walked = sys.meta_path
    with pytest.warns(RuntimeWarning, match="torch.ops.adabm is missing, .*OSError: libtorch is of another version"):
        assert hook.find_spec("something") is None
    assert hook.find_spec("something") is None and tried == ["adabm_kernels.ops"]
    assert hook not in sys.meta_path and hook in walked


def test_its_text_says_what_it_is(model: ConvertedNetwork) -> None:
    lines = repr(model).splitlines()
    assert lines[0] == "ConvertedEDSR(" and lines[1].strip().startswith(f"edsr x2, W4A4 adaptive, {model.choice.backend}")
    low, high = model.conv("body.0.conv1").bit_range
    assert f"(body_0_conv1): AdaptiveConv2d(8 -> 8, 3x3, {low}..{high}-bit codes, relu)" in repr(model)
    assert "(head_0): AdaptiveConv2d(3 -> 8, 3x3, 8-bit codes)" in repr(model)
    model.set_bits(3)
    assert "W4A4 adaptive at 3 bits throughout" in repr(model)


def test_conversion_tells_its_progress() -> None:
    calls = []
    model = convert_model(small_edsr(), [images(4, 20, 20)], ConvertConfig(batch=2), progress=lambda *call: calls.append(call))
    assert calls and all(0 <= done <= total and what for done, total, what in calls)
    assert calls[-1][0] == calls[-1][1]
    assert torch.equal(model(images()), fresh(BACKENDS[0])(images()))  # watching changes nothing


def test_completion_in_an_interpreter_shows_what_there_is_to_use() -> None:
    assert set(adabm_kernels.__all__) <= set(dir(adabm_kernels))
    assert [name for name in dir(adabm_kernels) if not hasattr(adabm_kernels, name)] == []
    assert not {"importlib", "Any", "TYPE_CHECKING"} & set(dir(adabm_kernels))
