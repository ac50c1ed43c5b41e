"""Upscaling as a service over HTTP: an ASGI application, and the server behind `adabm serve`. docs/service.md describes it."""

# Importing this loads neither torch nor the packages of the extra [serve].
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..models import DEFAULT_MODEL
from .limits import Limits, needing_extra

if TYPE_CHECKING:
    import torch
    from fastapi import FastAPI

__all__ = ["Limits", "create_app"]


def create_app(
    model: str | os.PathLike | torch.nn.Module = DEFAULT_MODEL, *, limits: Limits | None = None, **settings: Any
) -> FastAPI:
    """The service as an ASGI application, for a server of your own: `uvicorn.run(create_app(), port=8000)`.

    model, settings: as for `adabm_kernels.upscale`, without the sizes, which each request chooses. max_memory bounds what the
    process holds. limits: what a client may ask for.

    The threads that compute start with the application (lifespan "startup") and end with it, after all accepted pictures are done.
    One process has one model, so start one worker; its kernels have threads of their own. Raises as `upscale` does, and ImportError
    where the packages of the extra are missing.
    """
    with needing_extra():
        from .app import application
    from ..upscale import prepare
    from .service import Service

    return application(Service(prepare(model, **settings).network, limits or Limits()))
