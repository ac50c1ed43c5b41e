"""Conversion: what is accepted, and the integer network against the reference and, layer by layer, the simulation."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from layers_checked import check_layers
from shared import shared_path
from small import one_thread  # noqa: F401
from torch import nn

from adabm_kernels import native
from adabm_kernels.calibrate import calibrate
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.images import read_image
from adabm_kernels.networks.carn import CARNSpec
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.detect import adabm_name, check_modules, float_network
from adabm_kernels.networks.dncnn import DnCNNSpec
from adabm_kernels.networks.edsr import EDSR, EDSRSpec
from adabm_kernels.networks.espcn import ESPCNSpec
from adabm_kernels.networks.fsrcnn import FSRCNNSpec
from adabm_kernels.networks.imdn import IMDNSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.rfdn import RFDNSpec
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.networks.span import SPANSpec
from adabm_kernels.networks.spec import NetworkSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.networks.srvgg import SRVGGSpec
from adabm_kernels.networks.vdsr import VDSRSpec
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.nn.conv import AdaptiveConv2d
from adabm_kernels.simulate import SimulatedNetwork, image_measure

BACKENDS = ["reference"] if native.why_missing("cpu") else ["cpu", "reference"]
needs_cpu = pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU library was not built")


@dataclass(frozen=True)
class Case:
    """A network and the settings of its conversion."""

    spec: NetworkSpec
    config: ConvertConfig

    def __str__(self) -> str:
        s, c = self.spec, self.config
        words = [f"{s.network}_x{s.scale}", f"{c.quantize}-w{c.weight_bits}a{c.act_bits}"]
        words += ["adaptive" if c.adaptive else "fixed", c.recipe]
        words += ["single"] * (getattr(s, "tail", "") == "single") + ["no_mean"] * (not getattr(s, "mean_shift", True))
        words += ["unit_range"] * getattr(s, "unit_range", False) + ["int16"] * (c.residual == "int16")
        return "-".join(words + [f"res{s.res_scale}"] * (s.res_scale != 1))


def case(scale: int, blocks: int, channels: int, *, spec: Mapping[str, Any] | None = None, **config: Any) -> Case:
    return other(EDSRSpec(scale, blocks, channels, **(spec or {})), **config)


def other(spec: NetworkSpec, **config: Any) -> Case:
    return Case(spec, ConvertConfig(**({"tail": "staged", "batch": 2, "recipe": "paper"} | config)))


CASES = [
    case(4, 3, 12),
    case(2, 2, 8, act_bits=6, weight_bits=6, spec={"mean_shift": False}),
    case(3, 2, 10, act_bits=5, weight_bits=8, spec={"res_scale": 0.1}),
    case(4, 2, 7, adaptive=False, act_bits=8, weight_bits=3, spec={"tail": "single"}),
    case(2, 3, 8, quantize="body", act_bits=6, weight_bits=8),
    case(3, 2, 12, quantize="body", spec={"tail": "single", "mean_shift": False, "res_scale": 0.1}),
    case(4, 1, 5, quantize="body", adaptive=False, act_bits=2, weight_bits=2),
    case(4, 2, 8, recipe="best", act_bits=6, weight_bits=6),
    other(RDNSpec(4, 2, 2, 5, 8)),
    other(RDNSpec(3, 2, 3, 4, 6), act_bits=6, weight_bits=8),  # slices that do not start at a multiple of four codes
    other(RDNSpec(2, 3, 2, 6, 7), quantize="body", recipe="best"),
    other(SRResNetSpec(4, 2, 8)),
    other(SRResNetSpec(3, 2, 6, bias=True, slopes=6, unit_range=True, res_scale=0.5), act_bits=6, weight_bits=6, recipe="best"),
    other(SRResNetSpec(2, 2, 8), quantize="body", act_bits=5, weight_bits=8),
    case(4, 3, 12, recipe="best", residual="int16", spec={"res_scale": 0.5}),
    other(SRResNetSpec(4, 2, 8), act_bits=6, weight_bits=6, residual="int16"),
    other(SRVGGSpec(4, 2, 8)),
    other(SRVGGSpec(1, 2, 6), quantize="body", recipe="best"),
    other(RRDBSpec(4, 1, 6, 4), act_bits=6, weight_bits=6),
]
OTHERS = {
    "span": SPANSpec(2, 5),
    "span_without_norm": SPANSpec(1, 4, norm=False),
    "imdn": IMDNSpec(2, 2, 8, 2),
    "rfdn": RFDNSpec(3, 1, 6, 2),
    "carn": CARNSpec(2, 4),
    "carn_m": CARNSpec(3, 4, 2, 2, efficient=True, mean_shift=False),
    "vdsr": VDSRSpec(2, 2, 5, brightness=True),
    "dncnn": DnCNNSpec(1, 2, 6, 1e-4),
    "espcn": ESPCNSpec(3, 6, 5, brightness=True),
    "fsrcnn": FSRCNNSpec(4, 1, 6, 4, brightness=True),
    "rrdb_unshuffled": RRDBSpec(1, 1, 4, 3, 4),
}  # by the name of a network, with what tells several apart
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def images(height: int = 11, width: int = 9) -> torch.Tensor:
    """A flat image, a smooth one and noise: float32 [3, 3, height, width]."""
    g = torch.Generator().manual_seed(2)
    flat = torch.full((3, height, width), 100.0)
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    smooth = (40 + 3 * rows + 4 * columns + 20 * torch.arange(3).view(3, 1, 1)).to(torch.float32)
    return torch.stack([flat, smooth, torch.rand(3, height, width, generator=g) * 255])


@functools.cache
def float_model(spec: NetworkSpec) -> nn.Module:
    """Random weights; BatchNorms with statistics of their own, and slopes on both sides of zero."""
    torch.manual_seed(getattr(spec, "blocks", 0) + spec.channels)
    model = float_network(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.3, 0.5)
    return model


@functools.cache
def simulated(case: Case) -> SimulatedNetwork:
    """A calibrated network in which layers and images of `images()` take every offset."""
    model = calibrate(float_model(case.spec), [images(20, 17)], case.config)
    if case.config.adaptive:
        low, middle, high = image_measure(images()).tolist()
        model.measure_l.data.fill_((low + middle) / 2)
        model.measure_u.data.fill_((middle + high) / 2)
        adaptive = [conv for conv in model.quantized_convs() if conv.adaptive]
        for i, conv in enumerate(adaptive):
            conv.measure_layer.data.fill_((0.9, -0.4, -3.0, 0.6)[i % 4])
    return model


def converted(case: Case, backend: str = BACKENDS[0]) -> ConvertedNetwork:
    model = convert_model(simulated(case))
    model.set_backend(backend)
    model.set_threads(1)
    return model


@needs_cpu
@each_case
def test_every_layer_agrees_with_the_simulation(case: Case) -> None:
    if case.config.digits == 2:  # two convolutions for one: tests/nn/test_digits.py
        case = replace(case, config=replace(case.config, tail_digits=1))
    check_layers(converted(case), simulated(case), images())


@needs_cpu
@pytest.mark.parametrize("spec", OTHERS.values(), ids=OTHERS)
def test_every_layer_of_other_networks_agrees_with_the_simulation(spec: NetworkSpec) -> None:
    case = other(spec, recipe="best", tail_digits=1)
    check_layers(converted(case), simulated(case), images())


@needs_cpu
@pytest.mark.parametrize(
    "name, config",
    [
        ("edsr_x4_fq_w4a4", ConvertConfig(tail="staged")),
        ("edsr_x2_body_w8a6", ConvertConfig(weight_bits=8, act_bits=6, quantize="body")),
        ("rdn_x4_fq_w4a4", ConvertConfig(tail="staged")),
        ("srresnet_x4_body_w4a4", ConvertConfig(quantize="body")),
    ],
)
def test_models_of_the_original_implementation(name: str, config: ConvertConfig) -> None:
    stored = torch.load(shared_path("reference", f"{name}.pt"), weights_only=True)
    model = convert_model(stored["state_dict"], config=config)
    model.set_threads(1)
    sim = SimulatedNetwork.from_state(stored["state_dict"], config)
    for what in ("batch", "odd"):
        x = stored[what].float()
        assert torch.equal(model.mean_bits(x), stored[f"{what}_mean_bits"].float())
        check_layers(model, sim, x)


# ---- whole networks


@needs_cpu
@each_case
def test_kernels_equal_the_reference(case: Case) -> None:
    fast, slow = converted(case, "cpu"), converted(case, "reference")
    for x in (images(), images(5, 6), images(1, 1)):
        want = slow(x)
        assert want.shape == (3, 3, case.spec.scale * x.shape[2], case.spec.scale * x.shape[3])
        assert want.dtype == torch.float32
        for threads in (1, 2):
            fast.set_threads(threads)
            assert torch.equal(fast(x), want)
    for bits in (2, 8):
        fast.set_bits(bits)
        slow.set_bits(bits)
        assert torch.equal(fast(images()), slow(images()))


@each_case
def test_bits_are_those_of_the_simulation(case: Case) -> None:
    model, sim, x = converted(case), simulated(case), images()
    assert torch.equal(model.image_offsets(x), sim.image_offsets(x))
    assert torch.equal(model.mean_bits(x), sim.mean_bits(x))
    want = sim.layer_bits(sim.image_offsets(x))
    got = model.layer_bits(x)
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) for name in want)
    if case.config.adaptive:
        assert model.image_offsets(x).tolist() == [-1, 0, 1]
        assert len({bits for widths in got.values() for bits in widths.tolist()}) >= 3


@each_case
def test_an_image_does_not_depend_on_its_batch(case: Case) -> None:
    model, x = converted(case), images()
    together = model(x)
    for i in range(3):
        # The float convolutions of a "body" network may sum in another order for another batch.
        alone = model(x[i : i + 1])
        if case.config.quantize == "full":
            assert torch.equal(together[i : i + 1], alone)
        assert torch.equal(model.mean_bits(x)[i : i + 1], model.mean_bits(x[i : i + 1]))


def test_results_of_earlier_calls_stay() -> None:
    """Feature buffers are kept between calls; what was returned is not among them."""
    model = converted(CASES[0])
    first = model(images())
    copied = first.clone()
    model(images().flip(0))
    assert torch.equal(first, copied)


def psnr(difference: torch.Tensor) -> float:
    return (10 * torch.log10(255**2 / difference.double().square().mean())).item()


@needs_cpu
def test_a_deep_network_is_as_close_to_the_simulation_as_that_to_itself() -> None:
    """The fine-tuned 16-block W4A4 network: every layer within its bound, whole pictures as close as float arithmetic allows.

    A deep 4-bit network amplifies differences: where a value lies on a rounding boundary, float32 and float64 arithmetic
    choose different codes, one level of sixteen changes nine pixels of every channel by far more than a rounding error, and
    those change further codes in turn, layer after layer. The simulation in float32 and the same simulation in float64 differ
    that way already, so whole pictures are held to the distance between those two.
    """
    path = shared_path("reference", "edsr_baseline_x4_fq_w4a4", "checkpoint.pt")
    folder = shared_path("data", "images", "set5", "LR_x4")
    sim = SimulatedNetwork.from_state(load_state(path), ConvertConfig(tail="staged"))
    double = copy.deepcopy(sim).double()
    model = convert_model(sim)
    model.set_threads(1)
    ours, theirs = [], []
    for name in ("woman", "baby", "head"):
        x = torch.from_numpy(read_image(folder / f"{name}.png")[:48, :48].copy()).permute(2, 0, 1)[None].float()
        assert torch.equal(model.mean_bits(x), sim.mean_bits(x))
        with torch.no_grad():
            want = double(x.double())
            ours.append(model(x) - want)
            theirs.append(sim(x) - want)
    assert psnr(torch.cat(ours)) >= psnr(torch.cat(theirs)) - 1
    check_layers(model, sim, x)


# ---- what is accepted


class OwnClass(nn.Module):
    """A user's network: another class, inside another module, with the same weights."""

    def __init__(self, edsr: EDSR):
        super().__init__()
        self.model = copy.deepcopy(edsr)


def test_every_form_of_the_same_network_converts_alike() -> None:
    spec, config = EDSRSpec(2, 2, 6), ConvertConfig(batch=2, recipe="paper")
    model, calibration = float_model(spec), [images(20, 17)]
    state = model.state_dict()
    sim = calibrate(model, calibration, config)
    adabm_state = {adabm_name(key): value for key, value in state.items()}
    x = images()
    want = convert_model(sim)(x)
    for form in (
        model,
        state,
        adabm_state,
        OwnClass(model),
        {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    ):
        assert torch.equal(convert_model(form, calibration, config)(x), want)
    for form in (sim.state_dict(), {"params": sim.state_dict()}):
        assert torch.equal(convert_model(form, config=config)(x), want)
    assert torch.equal(convert_model(sim, config=config)(x), want)


def test_the_residual_scale_is_taken_from_an_edsr_and_asked_for_otherwise() -> None:
    spec = EDSRSpec(2, 1, 6, res_scale=0.1)
    model, calibration, config = float_model(spec), [images(20, 17)], ConvertConfig(batch=2, recipe="paper")
    own = convert_model(model, calibration, config)
    assert own.spec.res_scale == 0.1
    asked = convert_model(model.state_dict(), calibration, config, res_scale=0.1)
    assert torch.equal(own(images()), asked(images()))
    plain = convert_model(model.state_dict(), calibration, config)
    assert plain.spec.res_scale == 1 and not torch.equal(plain(images()), own(images()))


def test_the_original_stays_as_it_is() -> None:
    model = float_model(CASES[0].spec)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    converted = convert_model(model, [images(20, 17)], ConvertConfig(batch=2, recipe="paper"))
    converted(images())
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    restored = converted.float_model()
    with torch.no_grad():
        assert torch.equal(restored(images()), model(images()))


def test_the_report_says_what_was_done() -> None:
    full, body = converted(CASES[0]).report, converted(CASES[4]).report
    assert full["skipped"] == ["add_mean", "sub_mean"] or full["skipped"] == []
    assert [layer["name"] for layer in full["layers"]] == [c.name for c in simulated(CASES[0]).quantized_convs()]
    assert {"head.0", "body.3", "tail.0.0", "tail.1"} <= set(body["skipped"])
    assert {layer["weight_bits"] for layer in full["layers"]} == {4, 8}
    assert {layer["layer_offset"] for layer in full["layers"]} == {-1, 0, 1}


def test_a_collapsed_tail_is_the_default_and_small_images_take_the_staged_one() -> None:
    """Its arithmetic has its own tests (test_tail.py); everything before it is the same."""
    collapsed = convert_model(simulated(replace(CASES[0], config=replace(CASES[0].config, tail="auto"))))
    staged = converted(CASES[0])
    assert collapsed.collapsed is not None and staged.collapsed is None
    assert collapsed(images()).shape == staged(images()).shape
    assert not torch.equal(collapsed(images()), staged(images()))
    assert torch.equal(collapsed(images(4, 9)), staged(images(4, 9)))
    assert torch.equal(collapsed.mean_bits(images()), staged.mean_bits(images()))


# ---- what is refused

SMALL_EDSR, SMALL_SRRESNET = EDSRSpec(2, 1, 4), SRResNetSpec(2, 1, 4)


def errors() -> list[tuple[str, type[Exception], str, dict[str, Any]]]:
    spec = EDSRSpec(2, 1, 4)
    state = float_model(spec).state_dict()
    one = [images(20, 17)]
    sim = SimulatedNetwork.from_float(state, ConvertConfig())
    missing = {key: value for key, value in state.items() if key != "body.0.body.2.bias"}
    broken = state | {"tail.1.weight": state["tail.1.weight"] * float("nan")}
    return [
        ("a path", TypeError, r"a state dict, got str \(adabm_kernels.read_network\(path\) reads the", {"model": "edsr.pt"}),
        (
            "no calibration",
            ValueError,
            "calibration is needed for a float network: pass low-resolution",
            {"model": state},
        ),
        ("empty calibration", ValueError, "images", {"model": state, "calibration": []}),
        (
            "config beside a simulation",
            ValueError,
            "config must be left out for a SimulatedNetwork, which has its own",
            {"model": sim, "config": ConvertConfig(act_bits=5)},
        ),
        (
            "calibration beside a simulation",
            ValueError,
            "calibration must be left out: the model is calibrated already",
            {"model": sim, "calibration": one},
        ),
        ("a missing key", ValueError, "missing 'body.0.body.2.bias'", {"model": missing, "calibration": one}),
        (
            "another key",
            ValueError,
            "unexpected 'attention.weight'",
            {"model": state | {"attention.weight": torch.zeros(1)}, "calibration": one},
        ),
        ("NaN", ValueError, "'tail.1.weight' holds NaN or infinite values", {"model": broken, "calibration": one}),
        (
            "a tail that cannot collapse",
            ValueError,
            "convert_model: config.tail='collapsed' needs a fully quantised network with a staged tail without activations, got",
            {"model": float_model(SMALL_SRRESNET), "calibration": one, "config": ConvertConfig(tail="collapsed")},
        ),
        (
            "a body that has no tail",
            ValueError,
            "got quantize='body' for EDSRSpec",
            {"model": state, "calibration": one, "config": ConvertConfig(tail="collapsed", quantize="body")},
        ),
        ("another module", ValueError, "no known network, and cannot be traced", {"model": nn.Linear(2, 2), "calibration": one}),
    ]


@pytest.mark.parametrize("what, kind, message, arguments", errors(), ids=lambda value: value if isinstance(value, str) else "")
def test_convert_names_what_is_wrong(what: str, kind: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(kind, match=message):
        convert_model(**arguments)


def changed(path: str, layer: nn.Module, spec: NetworkSpec) -> nn.Module:
    """The float network with one layer replaced by another that leaves the keys of its state dict as they are."""
    model = copy.deepcopy(float_model(spec))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
    return model


@pytest.mark.parametrize(
    "path, layer, spec, message",
    [
        ("body.0.body.1", nn.GELU(), SMALL_EDSR, "a GELU, and its layers must be Conv2d, PixelShuffle, ReLU"),
        ("body.0.body.1", nn.LeakyReLU(0.1), SMALL_EDSR, "a LeakyReLU, and its"),
        ("body.0.body.0", nn.Conv2d(4, 4, 3, padding=1, stride=2), SMALL_EDSR, r"a convolution with stride=\(2, 2\): it must"),
        ("head.0", nn.Conv2d(3, 4, 3), SMALL_EDSR, r"padding=\(0, 0\)"),
        ("head.0", nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), SMALL_EDSR, "padding_mode='reflect'"),
        ("RDBs.0.convs.0.conv.1", nn.SiLU(), RDNSpec(2, 1, 1, 4, 4), "it is a SiLU"),
        ("body.0.bn1", nn.BatchNorm2d(4, 1e-3), SMALL_SRRESNET, "a BatchNorm2d with eps=0.001: it must be 1e-05"),
    ],
)
def test_a_layer_that_weights_do_not_tell_is_named(path: str, layer: nn.Module, spec: NetworkSpec, message: str) -> None:
    model = changed(path, layer, spec)
    skipped = "no layer can be skipped, .* .known are EDSR .*SRResNet"
    with pytest.raises(ValueError, match=f"layer '{path}' is not supported in this .*{message}.*; {skipped}"):
        convert_model(model, [images(20, 17)])


def test_layers_that_change_nothing_are_accepted() -> None:
    """In eval mode, and classes of the user's own."""
    model = changed("body.0.body.1", nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Identity()), SMALL_EDSR)
    check_modules(model, SMALL_EDSR)
    check_modules(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(float_model(SMALL_SRRESNET))), SMALL_SRRESNET)
    check_modules(OwnClass(model), SMALL_EDSR)
    for spec in (RDNSpec(4, 1, 1, 4, 4), SRResNetSpec(4, 1, 4), EDSRSpec(3, 1, 4, tail="single")):
        check_modules(float_model(spec), spec)


def test_calibrated_models_are_not_calibrated_again() -> None:
    sim = simulated(CASES[0])
    with pytest.raises(ValueError, match="calibration must be left out: the state dict is calibrated already"):
        convert_model(sim.state_dict(), [images(20, 17)])
    with pytest.raises(TypeError, match="convert_model: config must be a ConvertConfig, got dict"):
        convert_model(sim.state_dict(), config={})
    with pytest.raises(ValueError, match="config.quantize must be 'full' as in the state dict, got 'body'"):
        convert_model(sim.state_dict(), config=ConvertConfig(quantize="body"))
    with pytest.raises(ValueError, match="convert_model: model is converted already"):
        convert_model(converted(CASES[0]))


def test_the_converted_model_names_what_is_wrong() -> None:
    model = converted(CASES[0])
    wrong = [
        (torch.zeros(3, 8, 8), r"float32 \[N, 3, H, W\] and not empty, got torch.float32 \(3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), r"got torch.float32 \(1, 4, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"got torch.uint8 \(1, 3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"got torch.float32 \(0, 3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 0), r"got torch.float32 \(1, 3, 8, 0\)"),
    ]
    for x, message in wrong:
        with pytest.raises(ValueError, match=message):
            model(x)
    x, message = images(), r"x must be float32 .* and not empty, got "
    for call in (model, model.pixels, model.image_offsets, model.layer_bits, model.mean_bits):
        for wrong in (None, [1], x.double(), x[0]):
            with pytest.raises(ValueError, match=message):
                call(wrong)
    for offset in (1, torch.tensor([1, 0, 1]), torch.tensor([0.5]), torch.zeros(2, dtype=torch.int32)):
        for call in (model, model.pixels):
            with pytest.raises(ValueError, match=r"offset must be int32 \[3\], got (1|torch.int64 \(3,\)|torch.float32|.* \(2,\))"):
                call(x, offset)
    for call in (model.layer_bits, model.mean_bits):
        with pytest.raises(ValueError, match=r"offset must be int32 \[N\], got 1"):
            call(None, offset=1)
    for bits in (1, 9, "many", True, 4.0):
        with pytest.raises(ValueError, match=f"bits must be 'auto' or 2..8, got {bits!r}"):
            model.set_bits(bits)
    for threads in (-1, 257, True, 1.5):
        with pytest.raises(ValueError, match=f"threads must be 1..256, .*, got {threads!r}"):
            model.set_threads(threads)
    want = model(images())
    for dtype in (torch.float16, torch.float64):
        with pytest.raises(TypeError, match=f"it cannot become {dtype}"):
            model.to(dtype)
        assert torch.equal(model(images()), want)


def test_tensors_alone_do_not_make_another_model() -> None:
    """They would leave the packed weights, the plan and the bits as they were."""
    model = converted(CASES[0])
    state = {key: -value if key.endswith("conv1.weight") else value for key, value in model.state_dict().items()}
    want = model(images())
    for holder, given in ((model, state), (nn.Sequential(model), {f"0.{key}": value for key, value in state.items()})):
        with pytest.raises(TypeError, match="load_state_dict: a converted model is more than its tensors .* adabm_kernels.load"):
            holder.load_state_dict(given)
    assert torch.equal(model(images()), want)


def test_settings_change_bits_and_threads() -> None:
    model = converted(CASES[0])
    model.set_bits(5)
    assert torch.equal(model.mean_bits(images()), torch.full((3,), 5.0))
    assert {bits for name, n in model.layer_bits(images()).items() for bits in n.tolist() if "body" not in name} == {8}
    model.set_bits("auto")
    assert torch.equal(model.mean_bits(images()), simulated(CASES[0]).mean_bits(images()))
    model.set_threads(2)
    assert "2 threads" in model.backend_summary() or model.choice.backend == "reference"
    assert all(isinstance(conv, AdaptiveConv2d) and conv.threads == 2 for conv in model.convs())


def test_models_can_be_copied() -> None:
    model = converted(CASES[0])
    want = model(images())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images()), want)
    twin.set_bits(2)
    assert torch.equal(model(images()), want)
