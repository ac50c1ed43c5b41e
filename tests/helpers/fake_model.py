"""A stand-in with the interface of a converted model, with which files and the command line are tested apart from the kernels."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import nn

from adabm_kernels.config import ConvertConfig
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.nn import ConvertedModel


class FakeModel(ConvertedModel):
    """Repeats each pixel `scale` times, and remembers its settings and its inputs."""

    scale = 4
    config = ConvertConfig()
    full = varies_depth = False
    exit = running_thresholds = None
    threads = 2

    def __init__(self, float_weights=True, backend_reason=None):
        super().__init__()
        self.spec = EDSRSpec(self.scale, blocks=1, channels=2)
        self.parameters_by_name = {conv.name: SimpleNamespace(weight_bits=4, digits=1) for conv in self.spec.convs()}
        self.float_state = {} if float_weights else None
        self.settings = {}
        self.seen = []
        self.float_weights = float_weights
        self.backend_reason = backend_reason

    def forward(self, x, offset=None):
        self.seen.append(x)
        return nn.functional.interpolate(x, scale_factor=self.scale, mode="nearest")

    def set_bits(self, bits):
        self.settings["bits"] = bits

    def set_depth(self, depth):
        self.settings["depth"] = depth

    def set_backend(self, backend):
        if self.backend_reason:
            raise RuntimeError(self.backend_reason)
        self.settings["backend"] = backend

    def set_threads(self, threads):
        self.settings["threads"] = threads

    def lending_output(self):
        return nullcontext()

    def bytes_per_pixel(self):
        return 290

    def image_offsets(self, x, learn=False):
        return torch.zeros(len(x), dtype=torch.int32)

    def mean_bits(self, x, *, offset=None):
        return torch.full((len(x if offset is None else offset),), 3.75)

    def layer_bits(self, x, *, offset=None):
        """5 bits everywhere, but 3 in the first convolution, for every image."""
        count = len(x if offset is None else offset)
        return {name: torch.full((count,), 3 if name == "head.0" else 5) for name in self.parameters_by_name}

    def float_model(self):
        if not self.float_weights:
            raise ValueError("float_model: this file carries no float weights")
        model = nn.Upsample(scale_factor=self.scale, mode="bilinear")
        model.spec = self.spec
        return model

    def backend_summary(self):
        return "fake (2 threads)"
