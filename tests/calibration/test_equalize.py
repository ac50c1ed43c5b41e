"""Factors on channels: which can have them, that they change nothing in floats, and that few bits then lose less."""

from __future__ import annotations

import pytest
import torch
from small import NETWORKS, noise, one_thread  # noqa: F401

from adabm_kernels.calibrate import calibrate
from adabm_kernels.calibration.equalize import _turnable, apply_factors, equalize
from adabm_kernels.calibration.ranges import Observer
from adabm_kernels.config import BestTuning, ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.graph.builder import Builder
from adabm_kernels.graph.channels import FIXED, scalable_channels
from adabm_kernels.graph.nodes import Activation, Affine, Concat, Float, Multiply, PixelUnshuffle, Slice
from adabm_kernels.networks.float_network import float_network
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.networks.srvgg import SRVGGSpec
from adabm_kernels.simulate import SimulatedNetwork

SRVGG = SRVGGSpec(scale=2, layers=2, channels=8)
RRDB = RRDBSpec(scale=4, blocks=1, channels=8, growth=4)
ALL = NETWORKS | {"rrdb": lambda: float_network(RRDB)}


def made(name: str) -> torch.nn.Module:
    torch.manual_seed(1)
    return ALL[name]()


def scaled_channels(spec: SRVGGSpec) -> torch.nn.Module:
    """A network whose channels reach differently far, by powers of two: it computes what one without them does, to the last bit."""
    torch.manual_seed(1)
    network = float_network(spec)
    with torch.no_grad():
        for before, after in zip(network.convs, list(network.convs)[1:], strict=False):
            factors = 2.0 ** torch.randint(-3, 4, (spec.channels,)).float()
            before.weight *= factors[:, None, None, None]
            before.bias *= factors
            after.weight /= factors[:, None, None]
    return network


# Which channels.


def test_channels_between_convolutions_have_factors_of_their_own() -> None:
    classes = scalable_channels(SRVGG.graph())
    inner = [classes[f"convs.{i}"] for i in range(SRVGG.layers + 1)]
    assert len({one for channels in inner for one in channels} - {FIXED}) == 3 * 8
    assert all(classes[f"acts.{i}"] == inner[i] for i in range(3))
    assert set(classes["x"]) == set(classes["convs.3"]) == set(classes["sum"]) == {FIXED}


def test_what_is_added_shares_its_factors() -> None:
    classes = scalable_channels(RRDB.graph())
    stream = classes["stem"]
    assert len(set(stream) - {FIXED}) == 8
    for name in ("blocks.0.dense.0.convs.4", "blocks.0.dense.2", "blocks.0", "after_blocks", "blocks", "up.0.enlarged"):
        assert classes[name] == stream
    dense = classes["blocks.0.dense.1.convs.3.dense"]
    assert dense[:8] == stream and len(set(dense)) == 8 + 4 * 4
    assert set(classes["last"]) == {FIXED} and FIXED not in classes["fine.act"]


@pytest.mark.parametrize(
    ("between", "free"),
    [
        (lambda b, y: b.add(Activation("z", (y,), "silu")), 0),
        (lambda b, y: b.add(Multiply("z", (y, y))), 0),
        (lambda b, y: b.add(Affine("z", (y,), shift=(1.0,))), 0),
        (lambda b, y: b.add(Affine("z", (y,), gain=(2.0,))), 4),
        (lambda b, y: b.add(Float("z", (y,), "torch.sin")), 0),
        (lambda b, y: b.add(Concat("z", (b.add(Slice("s", (y,), 2, 4)), b.add(Slice("t", (y,), 0, 2))))), 4),
        (lambda b, y: b.add(PixelUnshuffle("z", (b.shuffle("s", y, 2),), 2)), 1),
        (lambda b, y: b.sum("z", y, b.conv("side", "x", (3, 4))), 4),
        (lambda b, y: b.sum("z", y, b.add(Concat("s", (b.add(Slice("t", (y,), 2, 4)), b.add(Slice("u", (y,), 0, 2)))))), 2),
    ],
    ids=["silu", "product", "shift", "gain", "unknown", "parts", "shuffle", "sum", "exchanged"],
)
def test_what_lies_between_convolutions_decides(between, free) -> None:
    b = Builder()
    z = between(b, b.conv("conv", "x", (3, 4)))
    classes = scalable_channels(b.graph(b.conv("last", z, (4, 3))))
    assert len(set(classes["conv"]) - {FIXED}) == free


def test_a_convolution_of_two_places_has_no_factors() -> None:
    b = Builder()
    first = b.conv("conv", "x", (3, 3))
    again = b.add(type(b.nodes[0])("again", (first,), "conv", 3, 3))
    assert set(scalable_channels(b.graph(b.conv("last", again, (3, 3))))["conv"]) == {FIXED}


# That nothing changes.


@pytest.mark.parametrize("quantize", ["full", "body"])
@pytest.mark.parametrize("name", ALL)
def test_factors_change_nothing_in_floats(name: str, quantize: str) -> None:
    model = SimulatedNetwork.from_float(made(name).state_dict(), ConvertConfig(quantize=quantize)).double()
    x = torch.rand(1, 3, 12, 13, dtype=torch.float64) * 255
    classes = scalable_channels(model.graph)
    count = 1 + max(one for channels in classes.values() for one in channels)
    factors = torch.exp(2 * torch.rand(count, dtype=torch.float64) - 1)
    factors[FIXED] = 1
    for node in _turnable(model.graph):
        slope = model.layer_named(node.name).weight
        slope.data[::2] = 0.3
        factors[list(classes[node.name])[::2]] *= -1
    with torch.no_grad():
        for conv in model.quantized_convs():
            conv.quantized = False
        want = model(x)
        weights = [conv.weight.clone() for conv in model.quantized_convs()]
        apply_factors(model, factors)
        changed = [not torch.equal(before, conv.weight) for before, conv in zip(weights, model.quantized_convs(), strict=True)]
        assert any(changed) or (name, quantize) == ("srresnet", "body")  # a BatchNorm stands behind each of them
        torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)
        for conv in model.quantized_convs():
            conv.float_weights = None
        torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


# That few bits lose less.


def distance(model: SimulatedNetwork, images: list[torch.Tensor], exact: torch.nn.Module) -> float:
    with torch.no_grad():
        return sum(float((model(x) - exact(x)).square().mean()) for x in images)


def test_channels_that_reach_differently_far_are_made_alike() -> None:
    """The scales of the channels, which the float network does not see, matter no more; without factors they cost a lot."""
    images, settings = noise(4), {"weight_bits": 6, "act_bits": 6, "adaptive": False, "tail_digits": 1}
    torch.manual_seed(1)
    even, uneven = float_network(SRVGG), scaled_channels(SRVGG)
    with torch.no_grad():
        assert torch.equal(even(images[0]), uneven(images[0]))
    lost = {}
    for name, network in (("even", even), ("uneven", uneven)):
        for how in ("on", "off"):
            model = calibrate(network, images, ConvertConfig(equalize=how, **settings), check=False)
            lost[name, how] = distance(model, images, even)
    assert lost["uneven", "on"] < 0.3 * lost["uneven", "off"]
    assert lost["uneven", "on"] < 1.5 * lost["even", "on"]
    assert lost["even", "on"] < lost["even", "off"]


def test_the_prediction_falls_and_says_what_is_reported() -> None:
    images = noise(2)
    report = calibrate(scaled_channels(SRVGG), images, ConvertConfig(), check=False).report["equalized"]
    assert 0 < report["after"] < 0.5 * report["before"]
    assert calibrate(made("edsr"), images, ConvertConfig(), check=False).report["equalized"] is None


def test_a_network_without_such_channels_stays() -> None:
    model = SimulatedNetwork.from_float(made("edsr").state_dict(), ConvertConfig(equalize="on", quantize="body"))
    weights = {key: value.clone() for key, value in model.state_dict().items() if key.endswith("weight")}
    with torch.no_grad():
        factors = equalize(model, torch.cat(noise(1)), torch.Generator().manual_seed(0)).factors
        assert len(factors.unique()) > 1  # between the two convolutions of a block there is a ReLU
        assert any(not torch.equal(value, model.state_dict()[key]) for key, value in weights.items())
        tail = [key for key in weights if key.startswith("tail")]
        assert tail and all(torch.equal(weights[key], model.state_dict()[key]) for key in tail)


@pytest.mark.parametrize("name", ALL)
def test_who_gets_factors_without_asking(name: str) -> None:
    """EDSR, RDN and SRResNet stay as they were."""
    found = {
        (how, recipe): SimulatedNetwork.from_float(made(name).state_dict(), ConvertConfig(equalize=how, recipe=recipe)).equalized
        for how in ("auto", "on", "off")
        for recipe in ("best", "paper")
    }
    assert found["auto", "best"] == (name in ("srvgg", "rrdb")) and not found["auto", "paper"]
    assert found["on", "best"] and found["on", "paper"] and not found["off", "best"]


@pytest.mark.parametrize("name", ["edsr", "srvgg", "rrdb"])
def test_the_teacher_and_the_integers_stay_those_of_the_network(name: str) -> None:
    network, images = made(name), noise(3)
    config = ConvertConfig(6, 6, equalize="on", steps=2, tuning=BestTuning(batch=1, patch=16), depths="none")
    model = calibrate(network, images, config, check=False)
    x = images[-1]
    with torch.no_grad():
        want = network(x)
        with model.float_mode():
            torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-3)
        converted = convert_model(model)
        torch.testing.assert_close(converted.float_model()(x), want, rtol=0, atol=1e-4)
        error = (converted(x) - want).square().mean() / want.var()
    assert error < 0.02


def test_ranges_are_observed_with_the_factors_in_place() -> None:
    model = SimulatedNetwork.from_float(scaled_channels(SRVGG).state_dict(), ConvertConfig(act_ranges="minmax"))
    batch = torch.cat(noise(2))
    with torch.no_grad():
        equalize(model, batch, torch.Generator().manual_seed(0))
        observer = Observer(model)
        observer.update(batch)
        inputs: dict[str, tuple[float, float]] = {}
        for conv in model.quantized_convs():
            conv.quantized = False
            conv.float_weights = None
            conv.register_forward_pre_hook(
                lambda conv, args: inputs.update({conv.name: (float(args[0].min()), float(args[0].max()))})
            )
        model(batch)
    assert observer.ranges.keys() == inputs.keys()
    for name, ends in inputs.items():
        assert observer.ranges[name] == pytest.approx(ends, rel=1e-4)


# Rates of fine-tuning.


def test_steps_of_a_channel_follow_its_reach() -> None:
    from adabm_kernels.calibration.tune import make_tuning

    config = ConvertConfig(steps=4, tuning=BestTuning(batch=1, patch=16, warmup=1), adaptive=False)
    model = calibrate(scaled_channels(SRVGG), noise(2), config, check=False)
    conv = model.quantized_convs()[1]
    with torch.no_grad():
        conv.weight[0] *= 16
        conv.bias[0] *= 16
        conv.weight_range[0] *= 16
        tuning = make_tuning(model)
        before, reach = conv.weight.clone(), conv.weight_range.flatten().clone()
        tuning.step(noise(1)[0])
    moved = (conv.weight - before).detach().abs().amax((1, 2, 3)) / reach
    assert float(moved.max() / moved.min()) < 1.5  # Adam's first step is its rate whatever the gradient


# Interruption.


def test_an_interrupted_run_goes_on_with_its_factors(tmp_path) -> None:
    """Channels have factors and are turned round in what is kept, in the teacher's weights and slopes as well."""
    network, images, path = scaled_channels(SRVGG), noise(3), tmp_path / "run.resume"
    with torch.no_grad():
        network.acts[0].weight.fill_(0.3)
        network.convs[0].bias -= 3 * network.convs[0].weight.abs().sum((1, 2, 3)) * 255 / 2  # far below zero
    config = ConvertConfig(6, 8, adaptive=False, steps=4, tuning=BestTuning(batch=1, patch=16), depths="none")
    want = calibrate(network, images, config, check=False)

    def interrupt(done: int, total: int, stage: str) -> None:
        if stage == "fine-tuning" and done == total - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(network, images, config, interrupt, resume=path, check=False)
    assert float(torch.load(path)["factors"].min()) < 0
    got = calibrate(network, images, config, resume=path, check=False)
    assert got.report["resumed_at"] == 2 and got.report["equalized"] == want.report["equalized"]
    assert got.state_dict().keys() == want.state_dict().keys()
    assert all(torch.equal(value, want.state_dict()[key]) for key, value in got.state_dict().items())
    with torch.no_grad(), got.float_mode(), want.float_mode():
        assert torch.equal(got(images[0]), want(images[0]))
        torch.testing.assert_close(got(images[0]), network(images[0]), rtol=1e-4, atol=1e-3)
