"""AMD architectures that the Triton kernels are built for, by the name that torch and the compiler have for them.

Nothing here was measured, and nothing asks a card. Sources: AMD's instruction set documents of CDNA 2, 3 and 4 and of RDNA 2, 3 and
4, and LLVM's "User Guide for AMDGPU Backend".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """An architecture of AMD.

    lanes: the lanes of a wave, which is Triton's warp. shared: the bytes of local data share that one workgroup can have. products:
    the instructions that multiply int8: "mfma", "wmma", or "dot4" where there is no matrix unit. family, cards: their names in
    words.
    """

    family: str
    cards: str
    lanes: int
    shared: int
    products: str


_RDNA2 = Architecture("RDNA 2", "Radeon RX 6000", 32, 64 << 10, "dot4")
_RDNA3 = Architecture("RDNA 3", "Radeon RX 7000", 32, 64 << 10, "wmma")
_RDNA4 = Architecture("RDNA 4", "Radeon RX 9000", 32, 64 << 10, "wmma")
ARCHITECTURES = {
    "gfx90a": Architecture("CDNA 2", "Instinct MI200", 64, 64 << 10, "mfma"),
    "gfx942": Architecture("CDNA 3", "Instinct MI300", 64, 64 << 10, "mfma"),
    "gfx950": Architecture("CDNA 4", "Instinct MI350", 64, 160 << 10, "mfma"),
    "gfx1030": _RDNA2,
    "gfx1100": _RDNA3,
    "gfx1201": _RDNA4,
}


def short_name(gcn_arch_name: str) -> str:
    """The part of a name that tells the instructions: "gfx942" for "gfx942:sramecc+:xnack-". The rest says how a card is set up."""
    return gcn_arch_name.partition(":")[0]
