"""The CUDA convolution, executed on the CPU, against the integer reference: every accumulator, float and code equal."""

from __future__ import annotations

import pytest
from cuda_calls import check
from cuda_library import driver, host_library, policy
from problems import PROBLEMS, ConvProblem, instantiate


@pytest.fixture(autouse=True)
def built() -> None:
    host_library()


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernel_equals_reference(problem: ConvProblem) -> None:
    check(instantiate(problem))
