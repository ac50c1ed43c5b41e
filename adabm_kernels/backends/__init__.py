"""The table of the backends' names and abilities, and the way to their kernels. Loading this module loads no backend.

A backend is a module of this folder that implements `call.Kernels`, and more than that where the table says so. The registry
chooses among the names here, the operators check against the abilities here, and the command line offers the names.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from .call import Kernels


@dataclass(frozen=True)
class Backend:
    """The abilities of a backend.

    device: the type of the devices whose tensors it computes on, or "any" for all that torch knows. packed_codes: it stores several
    codes in a byte (quantize.pack_codes). int16_features: it takes features of 16 bits (quantize.to_fixed). pixels: it writes
    images of bytes in place of floats. depths: it computes only a region of the pixels, by the depth of tiles. residual_blocks: it
    computes two convolutions in one piece (call.ResidualBlocks). many_grids: it quantises features to codes on several grids in one
    pass (call.ManyGrids). any_geometry: it computes convolutions that are not plain (quantize.Geometry): with strides, dilation,
    groups, kernels of even size or any padding.
    """

    name: str
    device: str
    packed_codes: bool = False
    int16_features: bool = False
    pixels: bool = False
    depths: bool = False
    residual_blocks: bool = False
    many_grids: bool = False
    any_geometry: bool = False


# The fastest backend comes first.
TABLE = {
    backend.name: backend
    for backend in (
        Backend(
            "cuda", "cuda", packed_codes=True, int16_features=True, pixels=True, depths=True, residual_blocks=True, many_grids=True
        ),
        Backend("triton", "cuda", packed_codes=True, int16_features=True, pixels=True, depths=True),
        Backend("cpu", "cpu", int16_features=True, pixels=True, depths=True, any_geometry=True),
        Backend("reference", "any", packed_codes=True, int16_features=True, pixels=True, depths=True, any_geometry=True),
    )
}
BACKENDS = tuple(TABLE)
GPU_BACKENDS = tuple(name for name, backend in TABLE.items() if backend.device == "cuda")
# The order in which a user is offered them: what every machine has comes first.
CHOICES = ("auto", *(name for name in BACKENDS if name not in GPU_BACKENDS), *reversed(GPU_BACKENDS))


def having(ability: str) -> tuple[str, ...]:
    """Names of the backends that have an ability, which is one of the fields of `Backend`."""
    return tuple(name for name, backend in TABLE.items() if getattr(backend, ability))


@functools.cache
def kernels(name: str) -> Kernels:
    """The module of a backend. It is imported when it is first asked for, because a backend may need what is not installed."""
    return cast("Kernels", importlib.import_module(f".{name}", __name__))
