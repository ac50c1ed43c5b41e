"""Factors on channels with which few bits lose less, and which do not change what the float network computes.

A layer's codes have one range for all channels, so a channel that reaches less far than the widest one has fewer levels. Where an
activation gives c times its output for c times its input, a channel can be multiplied by a factor in the weights of the convolution
that makes it and divided by it in those that read it (Meller et al., "Same, Same But Different", ICML 2019; Nagel et al.,
"Data-Free Quantization", ICCV 2019). Here the factors minimise the noise at the output of the network. Codes and weights both
contribute to it, each amplified by the layers that follow.

Behind a PReLU a factor may be negative, too: with a slope a above 0, -a PReLU(-v) of the slope 1/a is PReLU(v) of the slope a. A
channel that reaches further below zero than above is turned round. As codes have one range for all channels, a part of the range
that only some channels need is wasted on the others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..graph.channels import FIXED, scalable_channels
from ..graph.nodes import Activation, Conv, Graph
from ..graph.properties import needed, readers, upsampler_input
from ..simulate import SimulatedConv2d, SimulatedNetwork
from .hooks import before_each_conv

PROBES = 4  # random projections of the output that sensitivities are averaged over
STEPS = 200  # steps of Adam on the logarithms of the factors, a few milliseconds each
RATE = 0.05
SHARPNESS = 24  # the sharpness of the smooth maximum over channels, which is within 13 % of the largest where twenty are equal
FLOOR = 1e-3  # the extent that a channel without values is taken to have, as a share of the widest channel's
# the share of the noise of weights that is left once they are rounded together (calibration/rounding.py) and fine-tuned
WEIGHTS = 0.05
LEAST_SLOPE = 0.05  # the least slope of a PReLU whose channels are turned round, which becomes its inverse
MOST = 6.0  # the largest magnitude of the logarithm of a factor


@dataclass(frozen=True)
class _Layer:
    """The statistics of one quantised convolution in the float network.

    read: classes of its input channels, int64 [C]. above, below: how far its input reaches above and below zero, the mean over
    images, float32 [C]. power: mean square of its input, [C]. at_input, at_output: the energy at the output of the network that
    noise of variance 1 in each value of a channel causes, [C] and [K]. weight: the largest magnitude of the weights over the
    kernel, [K, C]. taps: the number of taps of the kernel.
    """

    conv: SimulatedConv2d
    read: torch.Tensor
    above: torch.Tensor
    below: torch.Tensor
    power: torch.Tensor
    at_input: torch.Tensor
    at_output: torch.Tensor
    weight: torch.Tensor
    taps: int

    def with_turned(self, turned: list[int]) -> _Layer:
        """A copy of this record with the channels of these classes turned round."""
        swapped = torch.isin(self.read, torch.tensor(turned, dtype=self.read.dtype).to(self.read.device))
        above, below = torch.where(swapped, self.below, self.above), torch.where(swapped, self.above, self.below)
        return replace(self, above=above, below=below)

    def noise(self, log_factors: torch.Tensor) -> torch.Tensor:
        """The energy that its rounding causes at the output of the network, by the factors of all classes."""
        factors = log_factors[self.read]
        width = _largest(self.above.log() + factors).exp() + _largest(self.below.log() + factors).exp()
        step = width / (2.0 ** (self.conv.act_bits * self.conv.digits) - 1)
        codes = (step.square() / 12 * self.at_input * (-2 * factors).exp()).sum()
        steps = _largest(self.weight.log() - factors).exp() / (2.0 ** (self.conv.weight_bits - 1) - 1)
        read = self.taps * (self.power * (2 * factors).exp()).sum()
        return codes + WEIGHTS * (steps.square() / 12 * self.at_output).sum() * read


def _largest(logarithms: torch.Tensor) -> torch.Tensor:
    """A smooth maximum over the last dimension."""
    return torch.logsumexp(SHARPNESS * logarithms, -1) / SHARPNESS


@dataclass(frozen=True)
class Equalized:
    """The result of `equalize`.

    factors: float32, one for each class of `scalable_channels`, see `apply_factors`. before, after: the predicted energy of the
    noise of few bits at the output of the network.
    """

    factors: torch.Tensor
    before: float
    after: float


def equalize(model: SimulatedNetwork, batch: torch.Tensor, generator: torch.Generator) -> Equalized:
    """Multiplies channels by the factors with which few bits lose least, in the weights and in the teacher's weights.

    batch: float32 [N, 3, H, W] in 0..255. generator: draws the projections, on the CPU.
    """
    classes = scalable_channels(model.graph)
    layers = _looked_at(model, classes, batch, generator)
    turned = _turned(model, classes, layers)
    layers = [layer.with_turned(turned) for layer in layers]
    count = 1 + max((one for channels in classes.values() for one in channels), default=FIXED)
    device = batch.device
    free = torch.zeros(count, dtype=torch.bool, device=device)
    for layer in layers:
        free[layer.read] = True  # no layer of few bits reads the others
    for name in _collapsed(model):
        free[list(classes[name])] = False
    free[FIXED] = False
    logarithms = torch.zeros(count, device=device).requires_grad_()

    def total() -> torch.Tensor:
        factors = torch.where(free, logarithms, torch.zeros(())).clamp(-MOST, MOST)
        return torch.stack([layer.noise(factors) for layer in layers]).sum().clamp(min=1e-30)

    before = float(total().detach())
    with torch.enable_grad():
        optimizer = torch.optim.Adam([logarithms], lr=RATE)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - step / STEPS))
            optimizer.zero_grad()
            total().log().backward()
            optimizer.step()
    with torch.no_grad():
        factors = torch.where(free, logarithms, torch.zeros(())).clamp(-MOST, MOST).exp()
        signs = torch.ones(count)
        signs[turned] = -1
        factors = factors * signs.to(device)
        apply_factors(model, factors)
        return Equalized(factors, before, float(total()))


def _turnable(graph: Graph) -> list[Activation]:
    """The PReLUs with a slope for each channel that stand between one convolution and others, where nothing else reads what lies in
    between."""
    reading = readers(graph)
    keys = Counter(node.key for node in graph.nodes if isinstance(node, (Conv, Activation)))
    found = []
    for node in graph.nodes:
        if isinstance(node, Activation) and node.function == "prelu" and node.slopes > 1 and node.name not in graph.outputs:
            conv = None if node.x in graph.inputs else graph[node.x]
            alone = isinstance(conv, Conv) and reading[conv.name] == (node.name,) and keys[conv.key] == keys[node.key] == 1
            if alone and all(isinstance(graph[name], Conv) for name in reading[node.name]):
                found.append(node)
    return found


def _turned(model: SimulatedNetwork, classes: dict[str, tuple[int, ...]], layers: list[_Layer]) -> list[int]:
    """The classes of channels that reach further below zero than above, and can be turned round."""
    found: list[int] = []
    reach = {layer.conv.name: layer for layer in layers}
    for node in _turnable(model.graph):
        slope = model.layer_named(node.name).weight
        behind = [reach[conv.name] for conv in model.graph.readers(node.name) if conv.name in reach]
        if behind:
            below, above = (torch.stack([getattr(layer, side) for layer in behind]).amax(0) for side in ("below", "above"))
            turned = (below > above) & (slope > LEAST_SLOPE)
            found += [one for one, turn in zip(classes[node.name], turned.cpu(), strict=True) if bool(turn) and one != FIXED]
    return found


def _collapsed(model: SimulatedNetwork) -> list[str]:
    """The tensor that a collapsed upsampler, which is made of the published weights, reads, and the tensors within that
    upsampler."""
    if not model.spec.linear_upsampler:
        return []
    entry = upsampler_input(model.graph)
    return [entry, *(node.name for node in needed(model.graph, model.graph.outputs, (entry,)))]


def apply_factors(model: SimulatedNetwork, factors: torch.Tensor) -> None:
    """Multiplies the output of convolutions by the factor of its class, and undoes this where convolutions read it.

    factors: float32, one for each class of `scalable_channels`; that of FIXED is 1. Factors may be negative only for classes of
    `_turnable`, and then they apply to the output of the activation.
    """
    classes = scalable_channels(model.graph)
    slopes = {node.x: model.layer_named(node.name).weight for node in _turnable(model.graph)}
    for node in model.graph.nodes:
        if not isinstance(node, Conv):
            continue
        layer = model.layer_named(node.name)
        read, made = (factors[list(classes[name])].to(layer.weight) for name in (node.x, node.name))
        if node.name in slopes:
            slope = slopes[node.name]
            made = torch.where(made < 0, made * slope, made)
            slope.copy_(torch.where(made < 0, 1 / slope, slope))

        def scaled(
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            read: torch.Tensor = read,
            made: torch.Tensor = made,
            groups: int = node.groups,
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            columns = read.view(groups, -1).repeat_interleave(len(weight) // groups, 0)[:, :, None, None]
            return weight * made[:, None, None, None] / columns, None if bias is None else bias * made

        _set(layer, *scaled(layer.weight, layer.bias))
        if isinstance(layer, SimulatedConv2d) and layer.float_weights is not None:
            layer.float_weights = scaled(*layer.float_weights)


def _set(layer: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    layer.weight.copy_(weight)
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)


def _looked_at(
    model: SimulatedNetwork, classes: dict[str, tuple[int, ...]], batch: torch.Tensor, generator: torch.Generator
) -> list[_Layer]:
    """Collects the statistics of each quantised convolution while the float network runs a batch, one image at a time."""
    convs = {conv.name: conv for conv in model.quantized_convs()}
    nodes = {node.key: node for node in model.graph.nodes if isinstance(node, Conv) and node.key in convs}
    sums: dict[str, dict[str, torch.Tensor]] = {name: {} for name in convs}
    probes: dict[tuple[str, str], torch.Tensor] = {}

    def add(name: str, what: str, value: torch.Tensor) -> None:
        sums[name][what] = sums[name].get(what, 0) + value

    def probed(key: tuple[str, str], value: torch.Tensor) -> torch.Tensor:
        probes[key] = torch.zeros_like(value, requires_grad=True)
        return value + probes[key]

    def look(conv: SimulatedConv2d, x: torch.Tensor) -> torch.Tensor:
        values = x.detach()
        add(conv.name, "above", values.amax((0, 2, 3)).clamp(min=0) / len(batch))
        add(conv.name, "below", (-values.amin((0, 2, 3))).clamp(min=0) / len(batch))
        add(conv.name, "power", values.square().mean((0, 2, 3)) / len(batch))
        return probed((conv.name, "at_input"), x)

    def after(conv: SimulatedConv2d, _: tuple, y: torch.Tensor) -> torch.Tensor:
        return probed((conv.name, "at_output"), y)

    handles = [conv.register_forward_hook(after) for conv in convs.values()]
    try:
        for image in batch.split(1):
            with torch.enable_grad(), model.float_mode(), before_each_conv(model, look):
                y = model(image)
            for probe in range(PROBES):
                v = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
                gradients = torch.autograd.grad(y, list(probes.values()), v, retain_graph=probe + 1 < PROBES)
                for (name, what), gradient in zip(probes, gradients, strict=True):
                    add(name, what, gradient.square().sum((0, 2, 3)) / (PROBES * len(batch) * y.numel()))
            probes.clear()
    finally:
        for handle in handles:
            handle.remove()
    return [_layer(conv, nodes[conv.name], classes, sums[conv.name]) for conv in convs.values()]


def _layer(conv: SimulatedConv2d, node: Conv, classes: dict[str, tuple[int, ...]], found: dict[str, torch.Tensor]) -> _Layer:
    device = conv.weight.device
    floor = FLOOR * max(float(found["above"].max()), float(found["below"].max()), 2.0**-60)
    weight = conv.weight.detach().abs().amax((2, 3))
    return _Layer(
        conv=conv,
        read=torch.tensor(classes[node.x]).to(device),
        above=found["above"].clamp(min=floor),
        below=found["below"].clamp(min=floor),
        power=found["power"],
        at_input=found["at_input"],
        at_output=found["at_output"],
        weight=weight.clamp(min=FLOOR * max(float(weight.max()), 2.0**-60)),
        taps=conv.weight[0, 0].numel(),
    )
