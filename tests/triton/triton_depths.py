"""Depths of tiles in the Triton kernel against the reference: run by test_triton_depths.py, as triton_kernels.py is."""

from __future__ import annotations

import pytest
import torch
from small import poison_empty
from tile_pictures import PLACES, THRESHOLDS, pictures

from adabm_kernels import ops
from adabm_kernels.backends.cards import interpreting
from adabm_kernels.backends.triton import depths, launch

DEVICE = torch.device("cpu" if interpreting() else "cuda")


@pytest.mark.parametrize("place", PLACES)
def test_depths_equal_the_reference(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)
    height, width, tile, top, left = PLACES[place]
    x_q = pictures(height, width).to(DEVICE)
    place = {"top": top, "left": left}
    for threshold in THRESHOLDS[1:4]:
        want, got = (ops.tile_depths(x_q, tile, threshold, 16, **place, backend=name) for name in ("reference", "triton"))
        assert torch.equal(got, want)


def test_codes_may_begin_at_any_byte() -> None:
    x_q = pictures(9, 10)
    moved = torch.zeros(x_q.numel() + 1, dtype=torch.uint8, device=DEVICE)[1:].view_as(x_q).copy_(x_q)
    got = ops.tile_depths(moved, 4, 20, 3, backend="triton")
    assert torch.equal(got.cpu(), ops.tile_depths(x_q, 4, 20, 3, backend="reference"))


def test_any_block_of_a_tile_may_decide() -> None:
    x_q = torch.full((3, 40, 50, 4), 7, dtype=torch.uint8)
    x_q[0, 0, 0, 0], x_q[1, 39, 49, 2] = 200, 200
    assert x_q[0].numel() // 4 > 2 * depths.BLOCK
    assert ops.tile_depths(x_q.to(DEVICE), 64, 100, 9, backend="triton").flatten().tolist() == [9, 9, 0]


def test_sizes_past_a_launch_are_named() -> None:
    x_q = torch.empty(launch.MOST_IMAGES + 1, 1, 1, 4, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(ValueError, match="tile_depths: x_q must have at most 65535 images, got 65536"):
        ops.tile_depths(x_q, 4, 20, 3, backend="triton")


def test_tracing_knows_the_output() -> None:
    torch.library.opcheck(torch.ops.adabm.tile_depths, (pictures(9, 10).to(DEVICE), 4, 1, 2, 20, 16, "triton", 0))
