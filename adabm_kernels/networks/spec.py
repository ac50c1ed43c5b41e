"""What the networks have in common: a list of their convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..graph.nodes import Conv


@dataclass(frozen=True)
class ConvSpec:
    """One convolution of a network, stride 1, "same" zero padding.

    name: its key in AdaBM state dicts. channels_in, channels_out, kernel: its shape. role: "adaptive" where image and layer
    decide the bits of its input, "fixed" at the base bits, "end" (first, last, upsampler) at 8 bits. scale: its resolution
    relative to the low-resolution image. bias: whether it has one. body: quantised even when only the body is.
    """

    name: str
    channels_in: int
    channels_out: int
    kernel: int
    role: str
    scale: int = 1
    bias: bool = True
    body: bool = False

    @property
    def products(self) -> int:
        """Multiplications for each pixel of the low-resolution image."""
        return self.channels_in * self.channels_out * self.kernel**2 * self.scale**2

    def node(self, x: str) -> Conv:
        """The convolution of the tensor `x` in a graph."""
        padding = (self.kernel // 2, self.kernel // 2)
        sizes = {"kernel": (self.kernel, self.kernel), "padding": padding, "bias": self.bias}
        return Conv(self.name, (x,), self.name, self.channels_in, self.channels_out, role=self.role, body=self.body, **sizes)


RESIDUAL_FRACTION = "residual_fraction"  # in state dicts: float32 [1], of features that are held in 16 bits (quantize.to_fixed)

# No network has nearly as many; a damaged or hostile file must not have a network built that takes minutes and gigabytes.
MAX_BLOCKS = 1000  # or layers of a block
MAX_CHANNELS = 1 << 16  # of the kernels


class NetworkSpec:
    """Base of the specifications of the networks: dataclasses with a `scale`, a `res_scale` and `convs()`."""

    network: str
    scale: int
    res_scale: float = 1.0
    skips_blocks = False  # whether tiles of an image can go without its blocks (exits.py)
    residual_stream = False  # whether its blocks add to features of one width, which can be held in 16 bits

    def check_sizes(self, *names: str) -> None:
        """ValueError for a number of blocks, layers or channels that is none, or that no network has."""
        for name in names:
            value, most = getattr(self, name), MAX_BLOCKS if name in ("blocks", "layers") else MAX_CHANNELS
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{type(self).__name__}: {name} must be an integer from 1 to {most}, got {value!r}")

    @property
    def linear_upsampler(self) -> bool:
        """Whether the upsampler is several convolutions without activations between them: it can then be computed as one."""
        return False

    def why_float_residual(self, quantize: str) -> str:
        """Why the features beside the codes cannot be held in 16 bits, with `ConvertConfig.quantize`; empty where they can."""
        if not self.residual_stream:
            return f"the features of an {self.network.upper()} are slices of wider ones"
        return "" if quantize == "full" else "with quantize='body' convolutions in float read and write them"

    def check_int16_residual(self, quantize: str) -> None:
        """ValueError unless the features beside the codes can be held in 16 bits, with `ConvertConfig.quantize`."""
        if why := self.why_float_residual(quantize):
            raise ValueError(f"residual must be 'auto' or 'float32' here, got 'int16': {why}")

    def convs(self) -> tuple[ConvSpec, ...]:
        """Every convolution in the order it runs."""
        raise NotImplementedError

    @property
    def radius(self) -> int:
        """Low-resolution pixels on each side that an output pixel depends on: the receptive field's radius."""
        return math.ceil(sum(conv.kernel // 2 / conv.scale for conv in self.convs()))

    def quantized(self, quantize: str) -> dict[str, ConvSpec]:
        """The convolutions that `ConvertConfig.quantize` ("full" or "body") quantises, by name in the order they run."""
        return {conv.name: conv for conv in self.convs() if quantize == "full" or conv.body}
