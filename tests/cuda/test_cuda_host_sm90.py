"""The fiber runtime's instructions of compute capability 9.0: right kernels pass in every order, each mistake is found."""

from __future__ import annotations

import re
from ctypes import c_void_p

import numpy as np
import pytest
from cuda_library import LANDINGS, ORDERS, buffers, policy, runtime

# In the order of cuda_host/broken_sm90.cu: what each mistake must be called. None: the result is wrong.
MESSAGES = {
    "none": "",
    "no_wgmma_fence": r"wgmma_s8u8 without wgmma_fence since its registers were last in use",
    "no_wgmma_wait": None,
    "product_left_behind": r"the block ends with products under way",
    "no_async_fence": r"wgmma_s8u8 at byte \d+ of shared memory, which thread \d+ wrote without fence_async",
    "warps_differ": r"wgmma_s8u8: the warps of a warpgroup issue different products",
    "no_mbarrier_wait": r"wgmma_s8u8 at byte \d+ of shared memory, which (an asynchronous copy is writing|nothing has written)",
    "overwritten_in_flight": r"race: (store_shared|wgmma_s8u8) .* warp \d (read|wrote) with no barrier in between",
    "released_early": r"race: (store_shared|wgmma_s8u8) .* warp \d (read|wrote) with no barrier in between",
    "wrong_parity": r"which (an asynchronous copy is writing|nothing has written)",
    "wrong_bytes": r"deadlock: it waits at mbarrier_wait",
    "too_many_arrivals": r"mbarrier_arrive at byte 0 of shared memory: more than the 1 arrivals of a phase",
    "no_init": r"at byte \d+ of shared memory, which nothing has written",
    "no_sync_after_init": r"at byte \d+ of shared memory, which (nothing has written|warp 0 wrote with no barrier in between)",
    "bulk_misaligned": r"bulk_copy at byte 136 of shared memory, which must be a multiple of 16",
    "bulk_beyond": r"bulk_copy of 4096 bytes (at byte -?\d+ of a buffer of|outside every buffer)",
    "bulk_left_behind": r"the block ends with bulk copies under way",
    "named_barrier_count": r"deadlock: it waits at sync_threads",
    "swizzled": r"wgmma_s8u8 with a descriptor that asks for a swizzle or an offset",
    "tensor_misaligned": r"tensor_copy at byte 144 of shared memory, which must be a multiple of 128",
    "tensor_bytes": r"deadlock: it waits at mbarrier_wait",
    "tensor_right": "",
    "copies_right": "",
    "stores_right": "",
    "copies_unfenced": r"wgmma_s8u8 at byte \d+ of shared memory, which thread \d+ wrote without fence_async",
    "copies_fenced_before": r"wgmma_s8u8 at byte \d+ of shared memory, which thread \d+ wrote without fence_async",
    "copies_fenced_by_one": r"wgmma_s8u8 at byte \d+ of shared memory, which thread \d+ wrote without fence_async",
    "copies_not_tracked": r"wgmma_s8u8 at byte \d+ of shared memory, which an asynchronous copy is writing"
    r"|ends with asynchronous copies under way",
    "copies_arrive_before": r"wgmma_s8u8 at byte \d+ of shared memory, which (an asynchronous copy is writing|nothing has written)"
    r"|ends with asynchronous copies under way",
    "copies_too_many": r"cp_async_arrive at byte 0 of shared memory: more than the 32 arrivals of a phase"
    r"|which (an asynchronous copy is writing|nothing has written)",
}  # fmt: skip
MISTAKES = list(MESSAGES)
RIGHT = [name for name, message in MESSAGES.items() if message == ""]


def run(mistake: str) -> tuple[int, bool]:
    """(error, whether the result is right)."""
    generator = np.random.default_rng(0)
    a = generator.integers(-128, 128, (64, 32), dtype=np.int8)
    b = generator.integers(0, 256, (128, 32), dtype=np.uint8)
    stored = np.ascontiguousarray(b.reshape(128, 2, 16).transpose(1, 0, 2))
    y = np.full((64, 128), -1, np.int32)
    room = np.zeros(stored.nbytes + 16, np.uint8)
    aligned = room[-room.ctypes.data % 16 :][: stored.nbytes]
    aligned[:] = stored.reshape(-1)
    with buffers([a, aligned], [y]):
        error = runtime().dll.adabm_host_broken_sm90(MISTAKES.index(mistake), *(c_void_p(x.ctypes.data) for x in (a, aligned, y)))
    return error, np.array_equal(y, a.astype(np.int32) @ b.astype(np.int32).T)


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", RIGHT)
def test_a_right_kernel_passes_in_every_order(kernel: str, order: str, landing: str) -> None:
    for seed in range(3):
        with policy(order, landing, seed):
            assert run(kernel) == (0, True), runtime().error()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mistake", [name for name in MISTAKES if name not in RIGHT])
def test_every_mistake_is_found(mistake: str, order: str) -> None:
    with policy(order, seed=3):
        error, right = run(mistake)
    if MESSAGES[mistake] is None:
        assert (error, right) == (0, False)
        return
    assert error == 719
    assert re.search(MESSAGES[mistake], runtime().error()), runtime().error()


def test_without_detectors_the_orders_show_an_early_release() -> None:
    """What would go unnoticed on a card with luck: the producer overwrites a matrix that a product still reads."""
    with policy("descending", "late", detect=False):
        assert run("released_early") == (0, False)
    with policy("descending", "early", detect=False):
        assert run("released_early") == (0, True)
