"""The Triton kernels in the form without assembly, which AMD's cards are built for, against the integer reference.

Run by test_triton_hip.py in a process of its own, as triton_kernels.py is, whose tests of what the two forms compute
differently are taken over: how codes are taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder
from triton_kernels import (  # noqa: F401
    poisoned,
    test_every_width_in_one_batch,
    test_extreme_codes_and_weights_neither_saturate_nor_overflow,
    test_the_probe_of_a_card_runs,
)

from adabm_kernels.backends.triton import codes


@pytest.fixture(autouse=True)
def without_assembly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As built for a card of AMD; whatever assembles fails."""

    def refused(*arguments: Any) -> None:
        raise AssertionError("assembly in a kernel for a card of AMD")

    monkeypatch.setattr(codes, "interpreted_as", "hip")
    monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", refused)
    yield


def test_assembly_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form for NVIDIA's cards runs into the refusal."""
    monkeypatch.setattr(codes, "interpreted_as", "cuda")
    with pytest.raises(Exception, match="assembly in a kernel for a card of AMD"):
        test_every_width_in_one_batch()


@triton.jit
def part_kernel(x, y, STORED: tl.constexpr, PART: tl.constexpr):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(y + at, codes.part_of(tl.load(x + at), STORED, PART))


@pytest.mark.parametrize("stored", [8, 4, 2])
def test_every_byte_is_taken_apart(stored: int) -> None:
    """All 256 of them, beside plain torch."""
    x = torch.arange(256, dtype=torch.uint8)
    for part in range(8 // stored):
        y = torch.zeros(256, dtype=torch.int8)
        part_kernel[(1,)](x, y, stored, part)
        want = (x ^ 128) if stored == 8 else (x >> part * stored) & (2**stored - 1)
        assert torch.equal(y, want.view(torch.int8))
