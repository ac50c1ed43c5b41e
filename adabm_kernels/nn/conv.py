"""AdaptiveConv2d: one quantised convolution, its tables and its packed weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .. import ops
from ..quantize import MAX_BITS, MIN_BITS, act_grid, act_steps, valid_tap_sums, weight_integers
from ..tiles import LayerPlan, plan_layer


@dataclass(frozen=True)
class ConvParameters:
    """A calibrated convolution, as checkpoints hold it.

    codes: int8 [K, C, R, S], k' of quantize.weight_codes. weight_upper: float32 [1] or [K], the weight's range.
    bias: float32 [K]. lower, upper: range of the input. act_bits: base bits, 2..8. layer_offset: -1, 0 or 1.
    adaptive: whether offsets apply. weight_bits: 2..8.
    """

    name: str
    codes: torch.Tensor
    weight_bits: int
    weight_upper: torch.Tensor
    bias: torch.Tensor
    lower: float
    upper: float
    act_bits: int
    layer_offset: int
    adaptive: bool

    @property
    def most_bits(self) -> int:
        """The most bits that any image's codes can have here."""
        return min(self.act_bits + self.layer_offset + 1, MAX_BITS) if self.adaptive else self.act_bits


class AdaptiveConv2d(nn.Module):
    """Integer convolution of codes, with the bit-width of each image as data.

    gain, shift: float64 [K] or None, applied to the convolution's result (residual scale, folded normalisation, mean colour):
    gain * (conv + bias) + shift. activation: "none", "relu" or "prelu" with `slope` [K]. shuffle: PixelShuffle factor; outputs
    are then stored sub-pixel first (ops.conv2d), so every per-output table is reordered here once.
    Raises ValueError when an accumulator could overflow.
    """

    def __init__(
        self,
        parameters: ConvParameters,
        *,
        activation: str = "none",
        slope: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
        shuffle: int = 1,
    ):
        super().__init__()
        self.parameters_ = parameters
        self.activation, self.shuffle = activation, shuffle
        k = parameters.codes.shape[0]
        order = torch.arange(k).view(k // shuffle**2, shuffle**2).T.reshape(-1)  # torch: c * r^2 + sub-pixel
        codes = parameters.codes[order]
        integers = weight_integers(codes)
        # Weights of 8 bits make 9-bit integers: keep k' and let the kernel add the sum of the codes (docs/numerics.md).
        self.box_filter = parameters.weight_bits == 8
        self.plan: LayerPlan = plan_layer(
            parameters.name, int(integers.to(torch.int64).abs().sum((1, 2, 3)).max()), parameters.most_bits
        )
        upper = parameters.weight_upper.to(torch.float64).reshape(-1).expand(k)[order]
        scale = upper / (2**parameters.weight_bits - 1)
        gain = torch.ones(k, dtype=torch.float64) if gain is None else gain.to(torch.float64)[order]
        shift = torch.zeros(k, dtype=torch.float64) if shift is None else shift.to(torch.float64)[order]
        bias = parameters.bias.to(torch.float64)[order]
        steps = act_steps(parameters.lower, parameters.upper)
        alpha = steps[:, None] * scale * gain
        beta = gain * (bias + scale * parameters.lower * valid_tap_sums(integers)) + shift
        self.register_buffer(
            "weight", (codes if self.box_filter else integers).to(torch.int8).permute(0, 2, 3, 1).contiguous()
        )
        self.register_buffer("alpha", alpha.to(torch.float32))
        self.register_buffer("beta", beta.to(torch.float32))
        self.register_buffer("slope", None if slope is None else slope.to(torch.float32)[order].contiguous())
        self.register_buffer("grid", act_grid(parameters.lower, parameters.upper))
        self.register_buffer("packed", torch.empty(0, dtype=torch.uint8), persistent=False)
        self.backend, self.threads = "reference", 0

    def set_backend(self, backend: str, threads: int) -> None:
        """Compute with a backend that the registry has chosen; packs the weights for it where needed."""
        if backend == "cpu" and self.packed.numel() == 0:
            from ..backends.cpu import pack

            self.packed = pack(self.weight, self.plan.tile_for_bits)
        self.backend, self.threads = backend, threads

    def bits(self, image_offset: torch.Tensor) -> torch.Tensor:
        """Bits of the input codes, int32 [N], from the image offsets int32 [N]."""
        p = self.parameters_
        if not p.adaptive:
            return torch.full_like(image_offset, p.act_bits)
        return (image_offset + (p.act_bits + p.layer_offset)).clamp(MIN_BITS, MAX_BITS)

    def forward(
        self,
        x_q: torch.Tensor,
        bits: torch.Tensor,
        *,
        residual: torch.Tensor | None = None,
        out: str = "float",
        out_grid: torch.Tensor | None = None,
        out_bits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ops.conv2d: codes [N, H, W, C4] in, (y, y_q) out."""
        return ops.conv2d(
            x_q,
            bits,
            self.weight,
            self.packed,
            self.alpha,
            self.beta,
            slope=self.slope,
            residual=residual,
            out_grid=out_grid,
            out_bits=out_bits,
            box_filter=self.box_filter,
            activation=self.activation,
            shuffle=self.shuffle,
            out=out,
            backend=self.backend,
            threads=self.threads,
        )
