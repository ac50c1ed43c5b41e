"""The measure that converted networks use on a CPU, against the published one."""

from __future__ import annotations

import pytest
import torch

from adabm_kernels.image_bits import image_measure, measure_images


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (33, 48)])
def test_measure_equals_the_published_one_up_to_rounding(size: tuple[int, int]) -> None:
    x = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
    want = image_measure(x.double())
    # A luma in 0..1 carries at most 4 roundings of 2^-24, and a gradient weighs 8 of them by 1/8 in sum.
    assert (measure_images(x) - want).abs().max() < 1000 * 8 * 2**-24 + want.max() * 2**-23


def test_a_flat_image_measures_nothing_that_counts() -> None:
    assert measure_images(torch.full((1, 3, 9, 9), 200.0)).item() == 0
