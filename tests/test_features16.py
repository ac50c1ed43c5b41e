"""Features of 16 bits: the number format, the operators on the reference, and networks that hold their residual stream so."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from problems import ConvInstance, ConvProblem, instantiate
from small import one_thread, small_edsr  # noqa: F401
from test_ops import BACKENDS, QUANTIZE, fake_outputs, order, place, prepared, settings_of

from adabm_kernels import ConvertConfig, convert_model, ops
from adabm_kernels.calibrate import calibrate
from adabm_kernels.calibration.residual import HEADROOM, fraction_for, largest_feature
from adabm_kernels.networks.detect import float_network
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.nn.layer_times import layer_times
from adabm_kernels.quantize import MAX_FRACTION, MIN_FRACTION, act_grid, from_fixed, to_fixed
from adabm_kernels.regions import Depths, Region
from adabm_kernels.simulate import SimulatedNetwork

# Fractions at which the results of the second saturate in part, are rounded coarsely, and are held almost as they are.
FRACTIONS = (15, 2, 8)
INT16 = {"features": "int16", "fraction": 8}
PROBLEMS = [
    ConvProblem("plain", 5, 7, 6, 9, bits=(4, 2)),
    ConvProblem("residual", 9, 11, 12, 8, bits=(3, 8), out_bits=(5, 2), activation="relu", residual=True),
    ConvProblem("prelu", 4, 6, 8, 16, bits=(6,), activation="prelu", residual=True),
]
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
fractions = pytest.mark.parametrize("fraction", FRACTIONS)


def held_by(value: torch.Tensor, fraction: int) -> np.ndarray:
    """int16 in units of 2^-fraction by the formula of docs/numerics.md, in float64, where the product is exact too."""
    scaled = np.rint(value.double().numpy() * 2.0**fraction)
    return np.where(np.isnan(scaled), -32767, np.clip(scaled, -32767, 32767)).astype(np.int16)


def int16_residual(instance: ConvInstance, fraction: int, seed: int = 3) -> torch.Tensor | None:
    """In place of the instance's residual: all of int16's values may come, the ends too."""
    if instance.residual is None:
        return None
    g = torch.Generator().manual_seed(seed)
    spread = torch.randn(instance.residual.shape, generator=g) * 2.0 ** (fraction - 1)
    stored = spread.clamp(-32767, 32767).round().to(torch.int16)
    stored.view(-1)[:2] = torch.tensor([-32767, 32767], dtype=torch.int16)
    return stored


def wanted(instance: ConvInstance, fraction: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, y_q) from the operator on floats and the formula."""
    residual = int16_residual(instance, fraction)
    floats = None if residual is None else torch.from_numpy(residual.numpy() * 2.0**-fraction).float()
    arguments = settings_of(instance, out="float", backend="reference", residual=floats)
    y, _ = torch.ops.adabm.conv2d(*order("conv2d", arguments))
    stored = torch.from_numpy(held_by(y, fraction))
    values = torch.from_numpy(stored.numpy() * 2.0**-fraction).float()
    return stored, ops.quantize(values.permute(0, 3, 1, 2), instance.out_grid, instance.out_bits, backend="reference")


def test_the_format_rounds_half_to_even_and_saturates() -> None:
    steps = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, -0.0, 32766.5, 32767.5, 4e4, -32767.5, -4e4, 1e-40])
    want = [0, 2, 2, 0, -2, -2, 0, 0, 32766, 32767, 32767, -32767, -32767, 0]
    for fraction in (MIN_FRACTION, -1, 0, 5, MAX_FRACTION):
        stored = to_fixed(steps * 2.0**-fraction, fraction)
        assert stored.dtype == torch.int16 and stored.tolist() == want
    ends = torch.tensor([float("inf"), -float("inf"), float("nan"), 3e38, -3e38])
    for fraction in (MIN_FRACTION, MAX_FRACTION):
        assert to_fixed(ends, fraction).tolist() == [32767, -32767, -32767, 32767, -32767]


@pytest.mark.parametrize("fraction", [MIN_FRACTION, 0, 7, MAX_FRACTION])
def test_every_stored_number_is_a_value_of_its_own(fraction: int) -> None:
    stored = torch.arange(-32767, 32768).to(torch.int16)
    values = from_fixed(stored, fraction)
    assert torch.equal(values.double(), stored.double() * 2.0**-fraction)
    assert torch.equal(to_fixed(values, fraction), stored)


@problems
@fractions
def test_the_reference_computes_the_formula(problem: ConvProblem, fraction: int) -> None:
    instance = instantiate(problem)
    want, want_q = wanted(instance, fraction)
    held = {"features": "int16", "fraction": fraction, "residual": int16_residual(instance, fraction), "backend": "reference"}
    for out in ("float", "both", "codes"):
        y, y_q = torch.ops.adabm.conv2d(*order("conv2d", settings_of(instance, out=out) | held))
        assert y.dtype == torch.int16
        assert torch.equal(y, want if out != "codes" else want[:0].view(-1))
        assert torch.equal(y_q, want_q if out != "float" else want_q[:0].view(-1))
    assert ((want.abs() == 32767).float().mean() > 0.05) == (fraction == 15)  # the cases are what they are said to be


def test_infinities_and_nan_are_held() -> None:
    instance = instantiate(ConvProblem("plain", 3, 4, 4, 3, bits=(4,)))
    instance.x_q[:, :, :2] = 0
    tables = {"alpha": torch.full((7, 3), float("inf")), "beta": torch.zeros(4, 4, 3)}  # 0 * inf beside +inf and -inf
    settings = settings_of(instance, out="both", backend="reference", features="int16", fraction=3) | tables
    y, y_q = torch.ops.adabm.conv2d(*order("conv2d", settings))
    assert set(y.unique().tolist()) == {-32767, 32767} and (y[:, :, 0] == -32767).all()
    assert torch.equal(y_q[..., :3] > 0, y > 0)


@problems
@pytest.mark.parametrize("how", ["y", "codes", "both", "accumulate"])
def test_outputs_that_exist_already_are_written_alike(problem: ConvProblem, how: str) -> None:
    fraction, instance = 11, instantiate(problem)
    want, want_q = wanted(instance, fraction)
    residual = int16_residual(instance, fraction)
    y = None if how == "codes" else torch.full_like(want, 123)
    y_q = None if how == "y" else torch.full_like(want_q, 171)
    arguments = settings_of(instance, backend="reference") | {"features": "int16", "fraction": fraction, "residual": residual}
    accumulate = how == "accumulate" and residual is not None
    if accumulate:
        y.copy_(residual)
        arguments["residual"] = None
    ops.conv2d_out(**arguments, y=y, y_q=y_q, accumulate=accumulate)
    assert y is None or torch.equal(y, want)
    assert y_q is None or torch.equal(y_q, want_q)


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "zeros"])
@pytest.mark.parametrize("with_y", [True, False], ids=["both", "codes"])
def test_pixels_that_are_passed_on_hold_the_residual(residual: bool, with_y: bool) -> None:
    fraction = 9
    problem = ConvProblem("regions", 13, 11, 8, 8, bits=(4, 6), out_bits=(5, 3), residual=residual)
    instance = instantiate(problem)
    want, want_q = wanted(instance, fraction)
    given = int16_residual(instance, fraction)
    where = place(Region(own=(1, 9), passed=(1, 9), pass_reach=1), 2, 13, 11)
    y, y_q = torch.full_like(want, 77), torch.full_like(want_q, 171)
    settings = settings_of(instance, backend="reference") | {"features": "int16", "fraction": fraction, "residual": given}
    ops.conv2d_out(**settings, **where, y=y if with_y else None, y_q=y_q)
    depths = Depths(where["depth"], *where["region"][:3])
    computed, passed = (mask[..., None] for mask in Region.of(where["region"]).masks(depths, 13, 11))
    assert computed.any() and passed.any() and not (computed | passed).all()
    handed = torch.zeros_like(want) if given is None else given
    floats = from_fixed(handed, fraction).permute(0, 3, 1, 2)
    handed_q = ops.quantize(floats, instance.out_grid, instance.out_bits, backend="reference")
    assert torch.equal(y_q, torch.where(computed, want_q, torch.where(passed, handed_q, 171)).to(torch.uint8))
    if with_y:
        assert torch.equal(y, torch.where(computed, want, torch.where(passed, handed, 77)).to(torch.int16))


@pytest.mark.parametrize("fraction", [0, 6, 13])
def test_codes_of_features_are_those_of_their_values(fraction: int) -> None:
    g = torch.Generator().manual_seed(0)
    stored = torch.randint(-32767, 32768, (2, 4, 6, 5), generator=g).to(torch.int16).permute(0, 3, 1, 2)
    grid, bits = act_grid(-(2.0 ** (14 - fraction)), 1.5 * 2.0 ** (13 - fraction)), torch.tensor([8, 3], dtype=torch.int32)
    want = ops.quantize(from_fixed(stored, fraction), grid, bits, backend="reference")
    assert len(want.unique()) > 50
    assert torch.equal(ops.quantize(stored, grid, bits, fraction=fraction, backend="reference"), want)
    y_q = torch.full((2, 4, 6, 8), 171, dtype=torch.uint8)
    ops.quantize_out(stored, grid, bits, y_q, fraction=fraction, backend="reference")
    assert torch.equal(y_q, want)


# ---- schemas, fakes and messages


@pytest.mark.parametrize("out", ["codes", "float", "both"])
def test_opcheck(out: str) -> None:
    instance = prepared(PROBLEMS[1], "reference")
    held = {"features": "int16", "fraction": 8, "residual": int16_residual(instance, 8)}
    arguments = settings_of(instance, out=out) | held
    torch.library.opcheck(torch.ops.adabm.conv2d, order("conv2d", arguments))
    real = torch.ops.adabm.conv2d(*order("conv2d", arguments))
    assert [(t.shape, t.dtype) for t in fake_outputs("conv2d", arguments)] == [(t.shape, t.dtype) for t in real]
    y, y_q = (t if t.numel() else None for t in real)
    into = {"y": y, "y_q": y_q, "accumulate": False}
    torch.library.opcheck(torch.ops.adabm.conv2d_out, order("conv2d_out", arguments | into))
    stored = torch.zeros(2, 5, 4, 6, dtype=torch.int16)
    quantize = QUANTIZE | {"x": stored, "shift": None, "fraction": 3, "backend": "reference"}
    torch.library.opcheck(torch.ops.adabm.quantize, order("quantize", quantize))


def test_the_fake_of_a_residual_block_knows_features_of_16_bits() -> None:
    """A block has no kernel but on a card; its fake is the same everywhere."""
    conv = settings_of(prepared(ConvProblem("block", 5, 7, 8, 8, bits=(4, 2)), "reference"))
    second = {f"{name}2": conv[name] for name in ("weight", "packed", "alpha", "beta", "box_filter")}
    arguments = conv | second | INT16 | {"inner_grid": conv["out_grid"], "inner_bits": conv["out_bits"]}
    arguments |= {"accumulate": True, "y": torch.zeros(2, 5, 7, 8, dtype=torch.int16), "y_q": None, "backend": "cuda"}
    assert fake_outputs("resblock_out", arguments) is None
    with pytest.raises(RuntimeError, match="conv2d_out: y must be torch.int16, got torch.float32"):
        fake_outputs("resblock_out", arguments | {"y": torch.zeros(2, 5, 7, 8)})


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"features": "half"}, r"conv2d: features must be one of \('float32', 'int16'\), got 'half'"),
        ({"fraction": 1}, "conv2d: fraction must be 0 with float32 features, got 1"),
        (INT16 | {"fraction": 25}, "conv2d: fraction must be -16..24 with int16 features, got 25"),
        (INT16 | {"fraction": -17}, "conv2d: fraction must be -16..24 with int16 features, got -17"),
        (INT16 | {"out": "acc"}, "conv2d: out='acc' needs float32 features, got int16"),
        (INT16 | {"shuffle": 3}, "conv2d: shuffle must be 1 with int16 features, got 3"),
        (INT16 | {"residual": torch.zeros(2, 5, 7, 9)}, "conv2d: residual must be torch.int16, got torch.float32"),
        ({"residual": torch.zeros(2, 5, 7, 9, dtype=torch.int16)}, "conv2d: residual must be torch.float32, got torch.int16"),
    ],
)
def test_conv2d_names_what_is_wrong(changes: dict[str, Any], message: str, fake: bool) -> None:
    arguments = settings_of(prepared(PROBLEMS[0], "reference"), out="float") | changes
    with pytest.raises(RuntimeError, match=message):
        fake_outputs("conv2d", arguments) if fake else torch.ops.adabm.conv2d(*order("conv2d", arguments))


@pytest.mark.parametrize(
    "y, message",
    [
        (torch.zeros(2, 5, 7, 9), "conv2d_out: y must be torch.int16, got torch.float32"),
        (torch.zeros(2, 5, 7, 12, dtype=torch.int16)[..., :9], "conv2d_out: y must be contiguous with int16 features, got strides"),
    ],
)
def test_conv2d_out_names_what_is_wrong(y: torch.Tensor, message: str) -> None:
    arguments = settings_of(prepared(PROBLEMS[0], "reference")) | INT16
    with pytest.raises(RuntimeError, match=message):
        ops.conv2d_out(**arguments, y=y)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": torch.zeros(2, 5, 4, 6, dtype=torch.int32)}, "quantize: x must be torch.float32 or torch.int16, got torch.int32"),
        ({"fraction": 2}, "quantize: fraction must be 0 with float32 features, got 2"),
        ({"x": torch.zeros(2, 5, 4, 6, dtype=torch.int16)}, "quantize: shift must be None with x of torch.int16"),
        ({"x": torch.zeros(2, 5, 4, 6, dtype=torch.int16), "fraction": 30}, "quantize: fraction must be -16..24 .*, got 30"),
    ],
)
def test_quantize_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.quantize(**QUANTIZE | {"backend": "reference"} | changes)
    many = {"x": torch.zeros(2, 5, 4, 6, dtype=torch.int16), "grids": [QUANTIZE["grid"]], "bits": [QUANTIZE["bits"]]}
    with pytest.raises(RuntimeError, match=r"quantize_many_out: x must be torch.float32, got torch.int16"):
        ops.quantize_many_out(**many, y_q=[torch.zeros(2, 4, 6, 8, dtype=torch.uint8)], backend="reference")


# ---- networks

STREAM = ("stream0", "stream1")  # buffers of the features that pass the blocks by


def images(height: int = 24, width: int = 24, count: int = 2) -> torch.Tensor:
    """Noise on the left and a slope on the right: float32 [count, 3, height, width] in 0..255."""
    g = torch.Generator().manual_seed(6)
    x = torch.rand(count, 3, height, width, generator=g) * 255
    x[..., width // 2 :] = torch.linspace(30, 200, width - width // 2)
    return x


@functools.cache
def simulated() -> SimulatedNetwork:
    config = ConvertConfig(residual="int16", adaptive=False, depths="none")
    return calibrate(small_edsr(blocks=3), [images()], config, check=False)


def converted(backend: str = "reference") -> ConvertedNetwork:
    model = convert_model(simulated())
    model.set_backend(backend)
    model.set_threads(1)
    return model


@pytest.mark.parametrize("largest", [0.01, 1.0, 170.3, 255.9921875, 256.0, 4000.0])
def test_the_unit_is_the_smallest_that_leaves_room(largest: float) -> None:
    fraction = fraction_for(largest)
    assert HEADROOM * largest * 2.0**fraction <= 32767 < HEADROOM * largest * 2.0 ** (fraction + 1)
    assert (fraction_for(0.0), fraction_for(1e-9), fraction_for(1e12)) == (MAX_FRACTION, MAX_FRACTION, MIN_FRACTION)


def test_the_unit_is_chosen_from_all_features_of_the_quantised_network() -> None:
    sim, seen = copy.deepcopy(simulated()), []
    sim.fraction = None
    with torch.no_grad(), sim.watching(seen.append):
        feature, blocks = sim.trunk(images(), sim.image_offsets(images()))
    assert len(seen) == 5 and seen[-1] is feature and all(a is b for a, b in zip(seen[1:-1], blocks, strict=True))
    largest = max(float(x.abs().max()) for x in seen)
    # The calibration's batch lies in memory otherwise, and sums in another order.
    assert simulated().report["residual"]["largest"] == pytest.approx(largest, rel=1e-4)
    assert simulated().fraction == fraction_for(simulated().report["residual"]["largest"])
    with pytest.raises(ValueError, match="NaN or infinite values: features between its blocks"), torch.no_grad():
        sim.head[0].bias.fill_(float("nan"))
        largest_feature(sim, images())


def test_the_simulation_rounds_all_features_and_its_teacher_none() -> None:
    sim, fraction = simulated(), simulated().fraction
    with torch.no_grad():
        feature, blocks = sim.trunk(images(), sim.image_offsets(images()))
        for held in (feature, *blocks):
            assert torch.equal(from_fixed(to_fixed(held, fraction), fraction), held)
        with sim.float_mode():
            teacher = sim(images())
        assert torch.allclose(teacher, small_edsr(blocks=3)(images()), rtol=0, atol=1e-3)
    x = torch.tensor([[0.3, -40000.0, 40000.0]], requires_grad=True)
    assert sim.held(x * 2.0**-fraction).mul(2.0**fraction).tolist() == [[0.0, -32767.0, 32767.0]]
    sim.held(x * 2.0**-fraction).sum().backward()
    assert x.grad.mul(2.0**fraction).tolist() == [[1.0, 0.0, 0.0]]


def test_a_state_dict_carries_the_unit() -> None:
    state, config = simulated().state_dict(), simulated().config
    again = SimulatedNetwork.from_state(state, config)
    assert again.fraction == simulated().fraction
    assert torch.equal(convert_model(state, config=config)(images()), converted(BACKENDS[0])(images()))
    floats = SimulatedNetwork.from_state(state, ConvertConfig(residual="float32", adaptive=False))
    assert floats.fraction is None and not torch.equal(floats(images()), again(images()))
    del state["residual_fraction"]
    with pytest.raises(ValueError, match="config.residual must be 'auto' or 'float32': the state dict has no 'residual_fraction'"):
        SimulatedNetwork.from_state(state, config)
    with pytest.raises(ValueError, match="fraction must be a whole number in -16..24, got 0.5"):
        SimulatedNetwork.from_state(state | {"residual_fraction": torch.tensor([0.5])}, config)


def test_features_are_kept_in_half_the_bytes() -> None:
    def buffers(model: ConvertedNetwork) -> dict[str, torch.Tensor]:
        model(images())
        return {key[0]: buffer for key, buffer in model._workspace._buffers.items() if key[0] in STREAM}

    sim = copy.deepcopy(simulated())
    sim.fraction = None
    narrow, wide = buffers(converted(BACKENDS[0])), buffers(convert_model(sim))
    assert {name: buffer.dtype for name, buffer in narrow.items()} == dict.fromkeys(STREAM, torch.int16)
    assert {name: buffer.dtype for name, buffer in wide.items()} == dict.fromkeys(STREAM, torch.float32)
    assert all(2 * narrow[name].nbytes == wide[name].nbytes > 0 for name in wide)


def test_nothing_saturates_on_hard_pictures() -> None:
    i = torch.arange(24)
    checkers = ((i[:, None] + i) % 2).float().expand(3, 24, 24) * 255
    colours = [torch.tensor([255.0 * (c >> b & 1) for b in range(3)]).view(3, 1, 1).expand(3, 24, 24) for c in range(8)]
    noise = (torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0)) < 0.5) * 255.0
    sim, most = simulated(), 32767 * 2.0 ** -simulated().fraction
    x = torch.stack([checkers, noise, *colours])
    with torch.no_grad(), sim.watching(lambda features: found.append(float(features.abs().max()))):
        found: list[float] = []
        sim(x)
    assert len(found) == 5 and max(found) < most


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 24, 24), (2, 7, 30)])
def test_compiled_and_exported_it_computes_the_same(backend: str, shape: tuple[int, ...]) -> None:
    model, x = converted(backend), images(*shape[1:], count=shape[0])
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in ((0, 2, 3) if len(x) > 1 else (2, 3))}
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": sizes}).module()
    for given in (x, images(9, 13, count=len(x))):
        assert torch.equal(exported(given), model(given))


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_batches_and_times_of_layers(backend: str) -> None:
    model, x = converted(backend), images(13, 17, count=3)
    with layer_times(model) as seconds:
        together = model(x)
    assert all(value > 0 for name, value in seconds.items() if not name.startswith("tail.")) and "feature" not in model.plan()
    for i in range(3):
        assert torch.equal(model(x[i : i + 1]), together[i : i + 1])
    assert torch.equal(together, converted("reference")(x))
    assert torch.equal(copy.deepcopy(model)(x), together)


def test_networks_whose_features_stay_float_are_refused_with_the_reason() -> None:
    network = float_network(RDNSpec(2, 1, 2, 3, 5))
    why = "got 'int16': the features of an RDN are slices of wider ones"
    with pytest.raises(ValueError, match=f"calibrate: config.residual must be 'auto' or 'float32' here, {why}"):
        convert_model(network, [images()], ConvertConfig(residual="int16"), check=False)
    sim = SimulatedNetwork.from_float(network.state_dict(), ConvertConfig(recipe="paper"))
    with pytest.raises(ValueError, match=why):
        sim.fraction = 4
    with pytest.raises(ValueError, match="got 'int16': with quantize='body' convolutions in float read and write them"):
        body = SimulatedNetwork.from_float(small_edsr().state_dict(), ConvertConfig(quantize="body"))
        body.fraction = 4
