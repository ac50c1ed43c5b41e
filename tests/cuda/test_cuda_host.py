"""The fiber runtime finds what it is there to find: each detector on a kernel that is broken in one way."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cuda_library import LANDINGS, ORDERS, buffers, policy, runtime

THREADS = 64
MISTAKES = [
    "none", "no_barrier", "no_barrier_before_write", "not_written", "beyond_shared", "beyond_global_read", "beyond_global_write",
    "write_to_input", "no_wait", "read_while_copying", "copy_into_use", "barrier_in_branch", "parted_warp", "misaligned",
    "copy_left_behind",
]  # fmt: skip
MESSAGES = {
    "no_barrier": r"(race: load_shared at byte \d+ of shared memory, which warp \d wrote with no barrier|nothing has written)",
    "no_barrier_before_write": r"race: (store_shared .* warp \d read|load_shared .* warp \d wrote) with no barrier in between",
    "not_written": r"load_shared at byte \d+ of shared memory, which nothing has written",
    "beyond_shared": r"load_shared of 4 bytes at 256 outside the block's 256 bytes of shared memory",
    "beyond_global_read": r"cp_async of 4 bytes at byte 256 of a buffer of 256 bytes",
    "beyond_global_write": r"store_global of 4 bytes at byte 256 of a buffer of 256 bytes",
    "write_to_input": r"store_global of 4 bytes into a buffer that is only read",
    "no_wait": r"load_shared at byte \d+ of shared memory, which (an asynchronous copy is writing|nothing has written)",
    "read_while_copying": r"load_shared at byte \d+ of shared memory, which (an asynchronous copy is writing|nothing has written)",
    "copy_into_use": r"race: (cp_async .* warp \d read|load_shared .* warp \d wrote) with no barrier in between",
    "barrier_in_branch": r"(the thread ends while \d+ threads wait at sync_block|sync_block after \d+ threads have ended)",
    "parted_warp": r"deadlock: it waits at (sync_block|shuffle_down) and nobody can go on",
    "misaligned": r"load_shared at byte \d+ of shared memory, which must be a multiple of 4",
    "copy_left_behind": r"the thread ends with asynchronous copies under way",
}


def run(mistake: str) -> tuple[int, np.ndarray, np.ndarray]:
    """(error, y, what y should be)."""
    x = np.arange(100, 100 + THREADS, dtype=np.uint32)
    y = np.zeros(THREADS, np.uint32)
    with buffers([x], [y]):
        error = runtime().broken(MISTAKES.index(mistake), x.ctypes.data, y.ctypes.data)
    return error, y, x[::-1]


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_right_kernel_passes_in_every_order(order: str, landing: str) -> None:
    for seed in range(5):
        with policy(order, landing, seed):
            error, y, want = run("none")
        assert error == 0 and runtime().error() == ""
        assert np.array_equal(y, want)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mistake", MISTAKES[1:])
def test_every_mistake_is_found_and_placed(mistake: str, order: str) -> None:
    with policy(order, seed=3):
        error, _, _ = run(mistake)
    assert error == 719
    assert re.match(r"block \(0, 0, 0\) warp \d lane \d+: ", runtime().error())
    assert re.search(MESSAGES[mistake], runtime().error()), runtime().error()


@pytest.mark.parametrize(
    "mistake, order, landing",
    [
        ("no_barrier", "ascending", "late"),
        ("no_barrier", "descending", "late"),
        ("no_wait", "ascending", "late"),
        ("copy_into_use", "ascending", "early"),
    ],
)
def test_an_adversarial_order_alone_shows_a_wrong_result(mistake: str, order: str, landing: str) -> None:
    """Without the detectors: what would go unnoticed on a card with luck."""
    with policy(order, landing, detect=False):
        error, y, want = run(mistake)
    assert error == 0
    assert not np.array_equal(y, want)


def test_luck_hides_what_the_orders_show() -> None:
    """An early landing hides a missing wait: that is why both are run."""
    with policy(landing="early", detect=False):
        error, y, want = run("no_wait")
    assert error == 0
    assert np.array_equal(y, want)
