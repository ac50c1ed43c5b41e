"""What is counted of a convolution on a GPU agrees with what the libraries do of it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from cuda_calls import PACKED_HEADER_BYTES, pack_weights
from problems import PROBLEMS, ConvProblem, instantiate

from adabm_kernels.backends import counted, devices, rates
from adabm_kernels.backends.counted import ConvShape
from adabm_kernels.quantize import packed_pitch

needs_triton = pytest.mark.skipif(bool(devices.why_no_triton()), reason=devices.why_no_triton())
BODY = ConvShape(64, 64, 3, 3)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_cuda_library_packs_what_is_counted(problem: ConvProblem) -> None:
    """Its packed weights hold every product of a tile, in both forms: 32 bytes of each output for one."""
    layer = instantiate(problem).layer
    shape = layer.shape
    tiles, width = counted.output_tiles(shape.outputs, shape.shuffle)
    forms = (8, 4) if shape.four_bits and not shape.unfolds else (8,)
    want = PACKED_HEADER_BYTES + sum(tiles * counted.slices(shape, bits) * width * 32 for bits in forms) + 128 * shape.ones
    assert pack_weights(layer.weight, layer.box_filter, layer.shuffle).numel() == want


@pytest.mark.parametrize(
    ("values", "box_filter", "four_bits", "ones"),
    [
        ((-8, 7), False, True, False),
        ((-8, 8), False, False, False),
        ((-15, 15, 3), False, True, False),  # all odd: k' of m = 2k' + 1
        ((-15, 14), False, False, False),
        ((-17, 15), False, False, False),
        ((-8, 7), True, True, False),
        ((-64, 63), True, False, False),
        ((-65, 63), True, False, True),
    ],
)
def test_weights_that_four_bits_hold(values: tuple[int, ...], box_filter: bool, four_bits: bool, ones: bool) -> None:
    layer = instantiate(ConvProblem("weights", 3, 3, 8, 16, weight_bits=8)).layer
    repeats = -(-layer.weight.numel() // len(values))
    layer.weight.copy_(torch.tensor(values, dtype=torch.int8).repeat(repeats)[: layer.weight.numel()].view_as(layer.weight))
    layer.box_filter = box_filter
    assert (layer.shape.four_bits, layer.shape.ones) == (four_bits, ones)
    eight, four = (16 * 32 * counted.slices(layer.shape, bits) for bits in (8, 4))
    packed = PACKED_HEADER_BYTES + eight + four * four_bits + 128 * ones
    assert pack_weights(layer.weight, box_filter, 1).numel() == packed


def test_clocks_of_the_body_layer_by_hand() -> None:
    """docs/gpu_cuda.md: 18 products of 32 bytes, 72 columns each, at 2048 a clock; 4-bit ones are half as many."""
    four = replace(BODY, four_bits=True)
    assert counted.cuda_work(80, BODY, 8).products == 18 * 32 * 72 / 2048
    assert counted.cuda_work(80, four, 4).products == 9 * 32 * 72 / 2048
    assert counted.cuda_work(80, four, 5) == counted.cuda_work(80, BODY, 5)
    assert counted.cuda_work(100, four, 4).products == counted.cuda_work(100, four, 8).products  # emulated there, so not used
    assert counted.cuda_work(86, BODY, 8).products == 2 * counted.cuda_work(80, BODY, 8).products
    halo = 10 * 18 / 128
    assert counted.cuda_work(80, BODY, 8).loaded == (halo * 64 + 9 * 64 * 64 / 128) / rates.rates(80).l2
    # Weights are in registers: nothing but codes is loaded.
    assert counted.cuda_work(90, BODY, 8).loaded == 18 * 34 / 512 * 64 / rates.rates(90).l2
    assert counted.cuda_work(90, BODY, 8).products == 9 * 64 * 64 / 4096
    assert counted.clocks("cuda", 80, replace(four, bits=(3, 5))) == (2 * 9 + 18) * 32 * 72 / 2048 / 3


@pytest.mark.parametrize("capability", rates.RATES)
def test_rates_are_those_of_the_data_sheets(capability: int) -> None:
    """Each row's source names dense 8-bit operations a second; what is a power of two in a clock agrees to 4 %."""
    row = rates.rates(capability)
    assert row.mma_sync <= row.int8 and row.source
    if found := re.search(r"([\d.]+) ([TP])\b", row.source):
        stated = float(found[1]) * {"T": 1e12, "P": 1e15}[found[2]] / 2 / row.multiprocessors / (row.gigahertz * 1e9)
        used = 8192 if "unused" in row.source else row.int8
        assert abs(stated / used - 1) < 0.04, stated


def test_bytes_from_l2_are_those_of_the_microbenchmark() -> None:
    """Of every card that one names: rounded, and no more than the way is wide. Others say what they are taken from."""
    for capability, found in rates.MEASURED_L2.items():
        row = rates.rates(capability)
        assert row.l2 == round(found.bytes_a_clock) < 64 and "L2" not in row.assumed
    for capability in set(rates.RATES) - set(rates.MEASURED_L2):
        assert rates.rates(capability).l2 in {round(found.bytes_a_clock) for found in rates.MEASURED_L2.values()}
        assert re.search("L2|RTX 5090's", rates.rates(capability).assumed)


def test_int8_is_rare_on_10_3_and_not_all_used_on_10_0() -> None:
    assert rates.rates(103).int8 * 8 == rates.rates(100).int8 == 2048
    assert counted.cuda_work(103, BODY, 8).products == 8 * counted.cuda_work(100, BODY, 8).products


def test_issue_slots_of_the_body_layer_by_hand() -> None:
    strip = counted.SLOTS_WGMMA.product * 18 + counted.SLOTS_WGMMA.result * 64 + counted.SLOTS_WGMMA.producer * 2 / 4
    assert counted.cuda_work(90, BODY, 8).issued == strip / 128
    tile = counted.SLOTS_MMA_SYNC.product * 18 + counted.SLOTS_MMA_SYNC.result * 64
    assert counted.cuda_work(80, BODY, 8).issued == tile / 128
    four = replace(BODY, four_bits=True)
    assert counted.cuda_work(80, BODY, 8).issued - counted.cuda_work(80, four, 4).issued == counted.SLOTS_MMA_SYNC.product * 9 / 128


@needs_triton
def test_issue_slots_of_triton_are_not_known() -> None:
    assert counted.triton_work(80, BODY, 8).issued is None


@needs_triton
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_triton_loads_what_its_taps_meet(bits: int) -> None:
    work = counted.triton_work(80, BODY, bits)
    padding = 64 / 48 if bits == 2 else 1  # three pixels of 16 bytes in a block of 64
    assert work.products == padding * 9 * 64 * 64 / 2048  # 8-bit ones whatever the bits
    assert work.loaded == (9 * packed_pitch(64, bits) + padding * 9 * 64 * 64 / 128) / rates.rates(80).l2


@needs_triton
@pytest.mark.parametrize("capability", [80, 86, 87, 89, 90, 100, 103, 120, 121, 150])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_problem_has_clocks_on_every_card(problem: ConvProblem, capability: int) -> None:
    shape = instantiate(problem).layer.shape
    for backend in counted.WORK:
        least = shape.outputs * shape.channels * shape.kernel_h * shape.kernel_w / (4096 * 2)
        assert counted.clocks(backend, capability, shape) >= least
        assert counted.described(backend, capability, shape)
