"""One layer of one's own on the integer kernels: a Conv2d and a ReLU with random weights.

Its weights and its input become codes, the weights are packed, and one call convolves, with a bit-width for each image that is
chosen when the image is seen. The result is held to the plain integer formula (equal) and to the float layer (within a bound that
follows from the grids), and then timed. docs/ops.md goes through it step by step.

    python examples/own_layer.py --side 96 --threads 1
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from adabm_kernels import ops, quantize
from adabm_kernels.registry import Problem, choose

CHANNELS, OUTPUTS, WEIGHT_BITS = 32, 48, 6


@dataclass(frozen=True)
class OwnLayer:
    """The layer in integers. lower, upper: range of its input. w_step: the value of the integer 1 of each output's weights."""

    lower: float
    upper: float
    grid: torch.Tensor  # float32 [7, 2]: how values become codes of 2..8 bits
    w_step: torch.Tensor  # float64 [K]
    weight: torch.Tensor  # int8 [K, R, S, C]
    alpha: torch.Tensor  # float32 [7, K]
    beta: torch.Tensor  # float32 [4, 4, K] for a kernel of 3x3
    packed: torch.Tensor  # uint8, in the order in which the backend reads them
    backend: str

    def codes(self, x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, H, W] -> uint8 [N, H, W, C4]. bits: int32 [N]."""
        return ops.quantize(x, self.grid, bits, backend=self.backend)

    def convolve(self, x_q: torch.Tensor, bits: torch.Tensor, backend: str = "", **more) -> tuple[torch.Tensor, torch.Tensor]:
        """(y, y_q) of ops.conv2d, both [N, H, W, ...]."""
        tables = self.weight, self.packed, self.alpha, self.beta
        return ops.conv2d(x_q, bits, *tables, activation="relu", backend=backend or self.backend, **more)


def in_integers(conv: nn.Conv2d, lower: float, upper: float) -> OwnLayer:
    """The layer for inputs in lower..upper."""
    weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
    most = weight.abs().amax((1, 2, 3))  # the range of each output's weights
    codes = quantize.weight_codes(weight, most.view(-1, 1, 1, 1), WEIGHT_BITS, "signed")
    w_step = quantize.weight_step(most, WEIGHT_BITS, "signed")
    alpha, beta = quantize.conv_tables(codes, w_step, bias, lower, quantize.act_steps(lower, upper))
    integers = codes.permute(0, 2, 3, 1).contiguous()  # [K, C, R, S] -> [K, R, S, C]
    backend = choose(Problem("cpu")).backend
    packed = ops.pack_weights(backend, integers, ops.choose_tiles(integers), box_filter=False, shuffle=1)
    grid = quantize.act_grid(lower, upper)
    return OwnLayer(lower, upper, grid, w_step, integers, alpha.float(), beta.float(), packed, backend)


def choose_bits(x: torch.Tensor) -> torch.Tensor:
    """A rule of one's own: images whose neighbouring pixels differ more get more bits, 4..7. int32 [N]."""
    differences = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    return 4 + torch.bucketize(differences, torch.tensor([0.2, 0.4, 0.8]), out_int32=True)


def plain_sums(x_q: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """SUM x_q * m over the taps inside the image, as the definition says it: int64 [N, H, W, K]."""
    kernel, channels = weight.shape[1], weight.shape[3]
    height, width = x_q.shape[1:3]
    around = F.pad(x_q.long(), (0, 0, kernel // 2, kernel // 2, kernel // 2, kernel // 2))  # codes are padded with 0
    sums = torch.zeros(*x_q.shape[:3], len(weight), dtype=torch.int64)
    for r in range(kernel):
        for s in range(kernel):
            sums += around[:, r : r + height, s : s + width, :channels] @ weight[:, r, s].long().T
    return sums


def error_bound(layer: OwnLayer, conv: nn.Conv2d, x_q: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """How far the layer in integers may lie from the float layer: float64 [N, K, H, W]. docs/ops.md derives it."""
    unit = 2.0**-24  # relative error of one rounding to float32
    weight, bias = conv.weight.detach().double(), conv.bias.detach().double().view(-1, 1, 1)
    step = quantize.act_steps(layer.lower, layer.upper)[bits.long() - quantize.MIN_BITS].view(-1, 1, 1, 1)
    values = layer.lower + step * x_q[..., : weight.shape[1]].permute(0, 3, 1, 2)  # what the codes stand for
    largest = max(abs(layer.lower), abs(layer.upper))
    of_input = step / 2 + unit * (2 * largest + 2 * abs(layer.lower))
    of_weights = F.conv2d(values.abs(), torch.ones_like(weight), padding=1) * (layer.w_step / 2).view(-1, 1, 1)
    integers = layer.weight.permute(0, 3, 1, 2).double() * layer.w_step.view(-1, 1, 1, 1)
    scaled = F.conv2d(step * x_q[..., : weight.shape[1]].permute(0, 3, 1, 2), integers, padding=1)
    constant = bias + F.conv2d(torch.full_like(values[:1], layer.lower), integers, padding=1)
    rounding = unit * (3 * scaled.abs() + 2 * constant.abs())
    return F.conv2d(of_input.expand_as(values), weight.abs(), padding=1) + of_weights + rounding


def in_turns(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each case; they take turns, so that what else the machine does meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 2):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if turn > 1:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=96, help="pixels a side of the images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each case")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)

    # The float layer, and four images, the first smooth and the last all noise.
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, OUTPUTS, 3, padding=1).requires_grad_(False)
    smooth = F.interpolate(torch.randn(4, CHANNELS, 5, 5, generator=generator), (args.side, args.side), mode="bilinear")
    noise = torch.randn(smooth.shape, generator=generator)
    x = 2 * smooth + torch.tensor([0.0, 0.2, 0.5, 1.0]).view(-1, 1, 1, 1) * noise

    # The same in integers. Packed once, it serves every bit-width.
    layer = in_integers(conv, float(x.min()), float(x.max()))
    bits = choose_bits(x)
    x_q = layer.codes(x, bits)
    y, _ = layer.convolve(x_q, bits)
    print(f"backend {layer.backend}, bits {bits.tolist()}, codes {list(x_q.shape)}, result {list(y.shape)}")

    # Accumulators are equal to the plain formula, and what is made of them to the reference, to the last bit.
    sums, _ = layer.convolve(x_q, bits, out="acc")
    assert torch.equal(sums.long(), plain_sums(x_q, layer.weight))
    assert torch.equal(y, layer.convolve(x_q, bits, backend="reference")[0])
    print(f"accumulators equal the plain formula: {sums.numel()} of them, up to {sums.abs().max()}")

    # The float layer is as near as its grids allow.
    want = F.relu(F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1))
    error, bound = (y.permute(0, 3, 1, 2) - want).abs(), error_bound(layer, conv, x_q, bits)
    assert (error <= bound).all()
    for image, width in enumerate(bits.tolist()):
        relative = (error[image].square().mean() / want[image].square().mean()).sqrt()
        share = (error / bound)[image].max()
        print(f"image {image}, {width} bits: error {relative:.4f} of the result, at most {share:.2f} of the bound")

    # The codes of a next layer, with bits of its own for each image, come out of the same call.
    next_grid, next_bits = quantize.act_grid(0.0, float(y.max())), torch.tensor([6, 4, 5, 2], dtype=torch.int32)
    _, y_q = layer.convolve(x_q, bits, out="codes", out_grid=next_grid, out_bits=next_bits)
    assert torch.equal(y_q, ops.quantize(y.permute(0, 3, 1, 2), next_grid, next_bits, backend=layer.backend))

    # Time, with the quantisation of the input and without it.
    plain = nn.Sequential(conv, nn.ReLU()).to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    cases: dict[str, Callable[[], object]] = {"PyTorch float32, channels_last": lambda: plain(x_last)}
    for width in (3, 4, 6, 8):
        same = torch.full_like(bits, width)
        q = layer.codes(x_last, same)
        cases[f"{width} bits, from floats"] = lambda same=same: layer.convolve(layer.codes(x_last, same), same)
        cases[f"{width} bits, from codes to codes"] = lambda same=same, q=q: layer.convolve(
            q, same, out="codes", out_grid=next_grid, out_bits=same
        )
    seconds = in_turns(cases, args.rounds)
    for name, value in seconds.items():
        print(f"{name:32} {1000 * value:8.2f} ms {value / seconds['PyTorch float32, channels_last']:6.2f}")


if __name__ == "__main__":
    main()
