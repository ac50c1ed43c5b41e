"""The model of a worker: what travels to it once, and how it becomes a network that upscales."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models import check_settings, is_converted_module, model_path
from ..upscaling.sizes import Size

if TYPE_CHECKING:
    from ..upscaling.enlarge import Enlarger

_OF_MODULE = ("bits", "depth", "backend", "device", "threads", "graph")  # settings that stay set on a loaded model
_ON_CARDS = ("cuda", "triton")  # backends that need a card


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to upscale.

    model: the bytes of a model's file, so that no worker needs the file, or a converted module. settings: those of `upscale`, but
    its size. size: the size of the outputs. max_pixels, strict: as for `open_picture`. quality, metadata: as for `upscale_files`.
    """

    model: Any
    settings: dict[str, Any] = field(default_factory=dict)
    size: Size = field(default_factory=Size)
    max_pixels: int | None = None
    quality: int = 95
    strict: bool = False
    metadata: str = "keep"

    @classmethod
    def of(cls, model: Any, settings: dict[str, Any], size: Size, **others: Any) -> Recipe:
        """The recipe for a model by its name, its path or itself. Raises as `upscale` does for settings that cannot be."""
        check_settings(settings.get("bits"), settings.get("threads"), settings.get("depth"))
        if not is_converted_module(model):
            model = model_path(model).read_bytes()
        return cls(model, {"threads": 1} | {name: value for name, value in settings.items() if value is not None}, size, **others)

    @property
    def threads(self) -> int:
        return self.settings["threads"]

    @property
    def cards(self) -> int:
        """How many cards a worker needs: one, or none."""
        device = str(self.settings.get("device", "cpu"))
        return int(device.startswith("cuda") or self.settings.get("backend") in _ON_CARDS)

    @property
    def for_each(self) -> dict[str, Any]:
        """The settings that `upscale` takes with each picture: the size, and how it is cut."""
        size = {name: getattr(self.size, name) for name in ("scale", "width", "height", "fit")}
        return size | {name: value for name, value in self.settings.items() if name not in _OF_MODULE}

    def network(self) -> Enlarger:
        """The model, loaded and set up on this machine."""
        import torch

        torch.set_num_threads(self.threads)
        return self._prepared(self.settings)

    def plain_network(self) -> Enlarger:
        """The model without settings of the machine: a driver asks it for scale and sizes, and need not be able to compute it."""
        return self._prepared({name: value for name, value in self.settings.items() if name not in ("backend", "device", "graph")})

    def _prepared(self, settings: dict[str, Any]) -> Enlarger:
        from ..upscale import prepare

        return prepare(self._module(), size=self.size, max_pixels=self.max_pixels, **settings)

    def _module(self) -> Any:
        if not isinstance(self.model, bytes):
            return self.model
        from ..checkpoint import load

        descriptor, name = tempfile.mkstemp(suffix=".safetensors")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.model)
            return load(Path(name))
        finally:
            os.unlink(name)
