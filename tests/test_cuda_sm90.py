"""The kernels of compute capability 9.0, executed on the CPU, against the integer reference: every accumulator, float and code equal."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cuda_calls import POISON, check, conv2d_call
from cuda_library import LANDINGS, ORDERS, buffers, driver, host_library, policy
from problems import PROBLEMS, ConvProblem, instantiate

from adabm_kernels import native
from adabm_kernels.quantize import pack_codes, padded_channels, unpack_codes

HOPPER = {"major": 9, "shared_limit": 227 << 10}
BLOCKS = [
    ConvProblem("resblock", 17, 33, 64, 64, bits=(4, 2), out_bits=(3, 6), activation="relu"),  # one more than a tile each way
    ConvProblem("narrow", 5, 3, 64, 64, bits=(8,), activation="relu"),
    ConvProblem("few_channels", 9, 31, 36, 36, bits=(4,), activation="prelu"),
    ConvProblem("w6_block", 14, 30, 64, 64, weight_bits=6, bits=(6,), activation="relu"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def hopper():
    host_library()
    with driver(**HOPPER):
        yield


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernel_equals_reference(problem: ConvProblem) -> None:
    check(instantiate(problem))


@pytest.mark.parametrize("problem", BLOCKS[:1] + PROBLEMS[1:2], ids=str)
@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_any_order_gives_the_same(problem: ConvProblem, order: str, landing: str) -> None:
    with policy(order, landing, seed=1):
        check(instantiate(problem))


def block(problem: ConvProblem, packed: bool = False):
    """(first, second) instances of a residual block, and what two convolutions of the reference make of it."""
    first = instantiate(problem)
    second = instantiate(dataclasses.replace(problem, channels=problem.outputs, bits=first.out_bits.tolist(), activation="none", residual=True), seed=1)
    _, second.x_q = first.run("reference", "codes")
    return first, second, second.run("reference", "both")


def run_block(first, second, packed: bool = False):
    a, b = conv2d_call(first, packed_x=packed, outputs="q"), conv2d_call(second, packed_y=packed, outputs="yq")
    a.args.y_q, b.args.x_q, b.args.x_bits = None, None, a.args.out_bits
    with buffers([*a.read, a.packed, *b.read, b.packed], [b.y, b.y_q]):
        host_library().call("adabm_resblock_cuda", a.args, b.args, 0, None)
    return b


def check_block(problem: ConvProblem, packed: bool = False) -> None:
    first, second, (want_y, want_q) = block(problem)
    call = run_block(first, second, packed)
    assert torch.equal(call.y, want_y)
    assert torch.equal(unpack_codes(call.y_q, second.out_bits) if packed else call.y_q, want_q)


@pytest.mark.parametrize("packed", [False, True], ids=["bytes", "packed"])
@pytest.mark.parametrize("problem", BLOCKS, ids=str)
def test_block_equals_two_convolutions(problem: ConvProblem, packed: bool) -> None:
    check_block(problem, packed)


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_block_in_any_order(order: str, landing: str) -> None:
    with policy(order, landing, seed=2):
        check_block(BLOCKS[0])
