"""The simulation of a network that is none of the known ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..config import ConvertConfig
from ..graph.module import steps
from ..graph.properties import needed, residual_blocks
from ..networks.traced import GraphSpec
from .conv import SimulatedConv2d
from .network import SimulatedNetwork, Structure, body_of


class SimulatedGraph(SimulatedNetwork):
    """The simulation, with few bits, of a module that is none of the known networks (networks/traced.py). It takes and gives the
    same tensors as the module.

    It has no upsampler: `trunk` is the whole network, and fine-tuning compares all outputs side by side, each divided by its size.
    output_sizes: the root mean square of each output over the calibration data (`measure_outputs`).
    """

    # The size of the outputs that are compared. It is that of pictures in 0..255, for which the rates of losses were chosen.
    CONTRAST = 50.0

    spec: GraphSpec

    @classmethod
    def of_graph(cls, spec: GraphSpec, state: Mapping[str, torch.Tensor], config: ConvertConfig) -> SimulatedGraph:
        """The network with float weights in place and every range still NaN, for `calibrate` to fill.

        state: values by the keys of the graph.
        """
        model = cls(spec, config, config.chosen("weight_grid"))
        held = {key: state[key] for key in spec.graph().parameters()}
        model._take_float({spec.simulated_name(key): value for key, value in held.items()}, held)
        return model.eval()

    def __init__(self, spec: GraphSpec, config: ConvertConfig, weight_grid: str = "odd"):
        super().__init__(spec, config, weight_grid)
        self.output_sizes = [1.0] * len(self.graph.outputs)

    def _structured(self) -> Structure:
        graph = self.graph
        blocks = tuple(block.output for block in residual_blocks(graph))
        kept = (*graph.outputs, *blocks)
        whole = steps(needed(graph, kept), kept)
        return Structure((), body_of(graph), "", whole, [], None, blocks, frozenset(), frozenset())

    @property
    def after_trunk(self) -> SimulatedConv2d | None:
        return None

    def _outputs(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Two values: the outputs of the graph, and the features after each block."""
        values = {self.graph.inputs[0]: x}
        self.run_steps(values, self._structure.trunk, self._few_bits(self.image_offsets(x)))
        return [values[name] for name in self.graph.outputs], [values[name] for name in self._structure.blocks]

    def measure_outputs(self, batches: Iterable[torch.Tensor]) -> None:
        """Measures the size of every output from what the float network gives for batches. Raises ValueError where it is not
        finite."""
        sums = [0.0] * len(self.output_sizes)
        counts = [0] * len(sums)
        with torch.no_grad(), self.float_mode():
            for batch in batches:
                for i, output in enumerate(self._outputs(batch)[0]):
                    sums[i] += float(output.double().square().sum())
                    counts[i] += output.numel()
        sizes = [math.sqrt(total / max(count, 1)) for total, count in zip(sums, counts, strict=True)]
        if not all(map(math.isfinite, sizes)):
            raise ValueError("calibrate: model computes NaN or infinite values: its output holds some")
        self.output_sizes = [size or 1.0 for size in sizes]

    def _compared(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """All outputs as one vector, in which each output weighs as much as every other, however many values it has."""
        total = sum(output.numel() for output in outputs)
        parts = []
        for output, size in zip(outputs, self.output_sizes, strict=True):
            share = math.sqrt(total / (len(outputs) * max(output.numel(), 1)))
            parts.append(output.flatten() * (self.CONTRAST / size * share))
        return torch.cat(parts)

    def trunk(
        self, x: torch.Tensor, image_offset: torch.Tensor, computed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The whole network. Returns its outputs as `preview` gives them, and the features after each residual block."""
        outputs, blocks = self._outputs(x)
        return self._compared(outputs), blocks

    def preview(self, x: torch.Tensor) -> torch.Tensor:
        """All outputs as one vector, in which each weighs alike. Fine-tuning compares it."""
        return self._compared(self._outputs(x)[0])

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The result of `preview`, and the features after each residual block. Where there is no block, the latter are the same
        outputs."""
        outputs, blocks = self._outputs(x)
        compared = self._compared(outputs)
        return compared, blocks or [compared[None]]

    def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]
        """The outputs of the module for x, [N, C, H, W]. Raises ValueError unless x is floating point of such a shape."""
        spec = self.spec
        if x.ndim != 4 or x.shape[1] != spec.input_channels or not x.is_floating_point():
            wanted = f"floating point [N, {spec.input_channels}, H, W]"
            raise ValueError(f"{type(self).__name__}: x must be {wanted}, got {x.dtype} {tuple(x.shape)}")
        spec.check_size(x.shape[2], x.shape[3], f"{type(self).__name__}: x")
        return spec.arranged(tuple(self._outputs(x)[0]))
