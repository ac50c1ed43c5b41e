"""A card that is not there: `adabm tune` runs with it as far as a machine without a card can tell."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from adabm_kernels.backends import reference
from adabm_kernels.nn.conv import IntegerConv2d
from adabm_kernels.tuning import gpu as tune_gpu

PLACE = {"card": "a card", "date": "2026-01-02", "triton": "3", "torch": "2", "adabm": "1"}


class Card:
    """A pretended card that takes a time of its own for each config; notes what it timed."""

    def __init__(self) -> None:
        from adabm_kernels.backends.triton import tuning

        self.tuning, self.timed, self.times, self.wrong = tuning, [], {}, ""
        self.refuses: Callable[[Any], bool] = lambda config: False
        self.default = 9.0  # microseconds

    def milliseconds(self, work: Callable[[], None]) -> float:
        config = self.tuning._forced
        self.timed.append(config)
        return self.times.get(config, self.default) / 1e3

    def module(self, name: str) -> SimpleNamespace:
        def conv2d_out(conv: Any, to: Any) -> None:
            config = self.tuning._forced
            if name == "triton" and config is not None and self.refuses(config):
                raise ValueError("out of resource: shared memory\nmore of it")
            reference.conv2d_out(conv, to)
            if name == "triton" and self.wrong in (config, "any"):
                (to.y_q if to.y is None else to.y).add_(1)

        return SimpleNamespace(conv2d_out=conv2d_out)

    def stand_in(self, put: Callable[[Any, str, Any], None]) -> None:
        """Puts itself in the place of a card. put: sets an attribute of an object."""
        put(tune_gpu, "backend_module", self.module)
        put(tune_gpu, "capability", lambda: 90)
        put(tune_gpu, "place", lambda: PLACE)
        put(tune_gpu, "choose", lambda problem, backend: None)
        put(torch.nn.Module, "cuda", lambda module: module)
        put(torch.Tensor, "cuda", lambda tensor: tensor)
        put(IntegerConv2d, "set_backend", lambda conv, backend, threads: None)
