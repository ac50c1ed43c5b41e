"""Regions in the CUDA kernels, executed on the CPU, against the reference: they write what it writes, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from cuda_calls import (
    HOPPER,
    POISON,
    assert_equal,
    block,
    by_class,
    check_codes,
    conv2d_call,
    conv_of,
    cuda_on_host,
    reference_of,
    run_block,
)
from cuda_library import ORDERS, buffers, driver, host_library, policy
from problems import ConvInstance, ConvProblem, instantiate

from adabm_kernels import ops
from adabm_kernels.backends import reference
from adabm_kernels.backends.call import Outputs
from adabm_kernels.quantize import act_grid, unpack_codes
from adabm_kernels.regions import EVERY, Depths, Region, tiles_of

REGIONS = {
    "around": Region(near=(1, 255), reach=3),
    "own": Region(own=(1, 255)),
    "one_depth": Region(own=(2, 2)),
    "near_one_depth": Region(near=(2, 2), reach=1),
    "easy_beside_hard": Region(own=(0, 0), near=(2, 255), reach=3),
    "nowhere": Region(own=(1, 0)),
}
PASSING = {
    "block": Region(own=(1, 255), passed=(2, 255), pass_reach=2),
    "inside_a_block": Region(own=(1, 255), passed=(1, 255), pass_reach=1),
    "passed_on_alone": Region(near=(1, 0), passed=(1, 255), pass_reach=1),
}
MAPS = {"small_tiles": (5, 2, 3), "whole_tiles": (8, 0, 0), "one_cut_tile": (64, 20, 40), "pixels": (1, 0, 0)}  # tile, top, left

# Compute capability, problem and configuration of each kernel.
KERNELS = {
    "sm80": (8, ConvProblem("sm80", 19, 35, 20, 24, bits=(4, 8, 2), residual=True), 0),
    "sm80_wide": (8, ConvProblem("sm80", 9, 19, 36, 64, bits=(4, 8, 2), out_bits=(2, 5, 3), residual=True), 0),
    "resident": (9, ConvProblem("resident", 18, 37, 40, 52, bits=(4, 8, 2), residual=True), 1),
    "resident_tensor_copies": (9, ConvProblem("resident", 18, 37, 64, 64, bits=(8, 8, 8), residual=True), 4),
    "straight": (9, ConvProblem("straight", 18, 37, 64, 64, bits=(4, 8, 2), residual=True), 1),  # takes tiles computed everywhere
    "staged": (9, ConvProblem("staged", 18, 37, 68, 52, bits=(4, 8, 2), residual=True), 1),
    "staged_in_fours": (9, ConvProblem("staged", 18, 37, 68, 64, bits=(4, 8, 2), residual=True), 1),  # tiles computed everywhere
    "staged_narrow_tiles": (9, ConvProblem("staged", 18, 37, 68, 52, bits=(4, 8, 2), residual=True), 2),
}
FRACTION = 9  # of features of 16 bits


def with_int16(kernels: Iterable[str], int16: Iterable[str]) -> pytest.MarkDecorator:
    """Each of these kernels with float features, and each of those with features of 16 bits."""
    cases = [pytest.param(kernel, None, id=kernel) for kernel in kernels]
    return pytest.mark.parametrize("kernel, fraction", cases + [pytest.param(name, FRACTION, id=f"{name}_int16") for name in int16])


@pytest.fixture(autouse=True)
def built() -> Iterator[None]:
    host_library()
    with cuda_on_host():
        yield


def on(major: int):
    """A pretended card, with so few multiprocessors that the blocks of 9.0 take several tiles each."""
    return driver(**HOPPER, multiprocessors=2) if major == 9 else driver(major=8)


def depths_of(problem: ConvProblem, place: str = "small_tiles") -> Depths:
    """One image of any depths, one of depth 0, one of depth 3."""
    tile, top, left = MAPS[place]
    shape = tiles_of(problem.height, tile, top), tiles_of(problem.width, tile, left)
    values = torch.randint(0, 4, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(tile))
    values[1], values[2] = 0, 3
    return Depths(values, tile, top, left)


def problem_of(kernel: str) -> tuple[int, ConvInstance, ConvProblem, int]:
    major, problem, config = KERNELS[kernel]
    instance = instantiate(problem)
    instance.residual[..., 1] = -0.0  # passed on as it is
    return major, instance, problem, config


def check(kernel: str, region: Region, place: str = "small_tiles", packed: bool = False, fraction: int | None = None) -> None:
    major, instance, problem, config = problem_of(kernel)
    check_instance(instance, depths_of(problem, place), region, major, config, packed, fraction=fraction)


def check_instance(
    instance: ConvInstance,
    depths: Depths,
    region: Region,
    major: int,
    config: int,
    packed: bool,
    outputs: str = "yq",
    fraction: int | None = None,
) -> None:
    place = {"depths": depths, "region": region, "fraction": fraction}
    call = conv2d_call(instance, packed_x=packed, packed_y=packed, outputs=outputs, **place)
    call.args.config = config
    want_y, want_q = reference_of(call, instance, packed, **place)
    with on(major):
        call.run()
    if want_y is not None:
        assert_equal(call.y, want_y)
    if want_q is not None:
        check_codes(call, instance, want_q, packed)


@pytest.mark.parametrize("region", REGIONS | PASSING)
@pytest.mark.parametrize("kernel", ["sm80", "resident", "staged"])
def test_a_region_is_written_and_nothing_else(kernel: str, region: str) -> None:
    check(kernel, (REGIONS | PASSING)[region], packed=region in ("own", "block"))


@pytest.mark.parametrize("region", ["around", "block"])
@pytest.mark.parametrize("kernel", ["sm80", "sm80_wide", "resident", "straight", "staged", "staged_in_fours"])
def test_a_region_of_features_of_16_bits(kernel: str, region: str) -> None:
    check(kernel, (REGIONS | PASSING)[region], "whole_tiles", packed=region == "block", fraction=FRACTION)


@pytest.mark.parametrize("place", MAPS)
@pytest.mark.parametrize("kernel", ["sm80_wide", "resident_tensor_copies", "staged_narrow_tiles"])
def test_tiles_of_any_size_and_place(kernel: str, place: str) -> None:
    region = PASSING["block"] if MAPS[place][0] > 1 else dataclasses.replace(PASSING["block"], pass_reach=1)
    check(kernel, region, place, packed=place == "small_tiles")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("outputs", ["y", "q"])
@with_int16(["sm80", "resident", "staged", "staged_in_fours"], ["sm80_wide", "straight"])
def test_in_place_and_with_codes_alone(kernel: str, fraction: int | None, outputs: str, order: str) -> None:
    major, instance, problem, config = problem_of(kernel)
    place = {"depths": depths_of(problem), "region": PASSING["block"], "fraction": fraction}
    call = conv2d_call(instance, outputs=outputs, **place)
    call.args.config = config
    if outputs == "y":
        call.y.copy_(next(t for t in call.read if t.data_ptr() == call.args.residual))
        call.args.residual = call.y.data_ptr()
    want_y, want_q = reference_of(call, instance, False, **place)
    with on(major), policy(order, "random", seed=1):
        call.run()
    assert_equal(*((call.y, want_y) if outputs == "y" else (call.y_q, want_q)))


@pytest.mark.parametrize("outputs, region", [("q", "inside_a_block"), ("y", "passed_on_alone"), ("yq", "block")])
@with_int16([kernel for kernel in KERNELS if kernel != "straight"], ["sm80_wide", "straight"])
def test_zeros_are_passed_on_without_a_residual(kernel: str, fraction: int | None, outputs: str, region: str) -> None:
    major, problem, config = KERNELS[kernel]
    instance = instantiate(dataclasses.replace(problem, residual=False, activation="relu"))
    depths, packed = depths_of(problem), outputs == "q"
    zero = reference.codes_of(torch.zeros(3, 1, 1, 4), instance.out_grid, instance.out_bits)
    assert zero.all()  # so that zeros written in its place would show
    check_instance(instance, depths, PASSING[region], major, config, packed, outputs, fraction)


@pytest.mark.parametrize("kernel", ["sm80", "resident", "staged"])
def test_codes_without_a_residual_may_go_around_a_region(kernel: str) -> None:
    major, problem, config = KERNELS[kernel]
    instance = instantiate(dataclasses.replace(problem, residual=False, activation="relu"))
    depths, region = depths_of(problem), Region(near=(2, 255), reach=1)
    call = conv2d_call(instance, outputs="q", depths=depths, region=region)
    call.args.config = config
    with on(major):
        call.run()
    computed = region.masks(depths, problem.height, problem.width)[0]
    assert_equal(call.y_q[computed], instance.run("reference", "codes")[1][computed])
    assert bool((call.y_q[1] == POISON).all())  # no tile of the image of depth 0 is near enough


@pytest.mark.parametrize("tensor_copies", [False, True])
@pytest.mark.parametrize("columns", [(0, 1), (8, 15), (17, 18), (7, 9), (24, 39), (0, 40)], ids=str)
def test_strips_without_a_pixel_of_the_region_are_left_out(columns: tuple[int, int], tensor_copies: bool) -> None:
    """Two tiles of four strips of 8 columns: codes without a residual fill each strip with work, and show those without."""
    problem = ConvProblem("resident", 16, 40, 64, 64, bits=(8,), activation="relu")
    instance = instantiate(problem)
    values = torch.zeros(1, 16, 40, dtype=torch.uint8)
    values[0, 5, columns[0] : columns[1]] = 1
    call = conv2d_call(instance, outputs="q", depths=Depths(values, 1), region=Region(own=(1, 1)))
    call.args.config = 4 if tensor_copies else 1
    with on(9):
        call.run()
    with_work = torch.zeros(40, dtype=torch.bool)
    with_work[columns[0] // 8 * 8 : -(-columns[1] // 8) * 8] = True
    want = torch.where(with_work[:, None], instance.run("reference", "codes")[1], POISON)
    assert_equal(call.y_q, want)


@pytest.mark.parametrize("major", [8, 9])
@pytest.mark.parametrize("depth", [0, 1], ids=["easy", "hard"])
def test_an_image_of_bytes_with_pixels_that_are_shuffled(depth: int, major: int) -> None:
    """The tail, with kernels by border class, and the linear filter: both write one image, each its own pixels."""
    problem = ConvProblem("tail", 19, 37, 36, 48, 5, bits=(4, 8, 2), shuffle=4, weight_bits=8, lower=-100.0, upper=160.0)
    instance = by_class(5, 19, 37, 36, 48, (4, 8, 2), shuffle=4) if depth else instantiate(problem)
    depths, region = depths_of(problem), Region(own=(1, 255) if depth else (0, 0))
    call = conv2d_call(instance, outputs="a", depths=depths, region=region)
    image = torch.full(call.y_acc.shape, POISON, dtype=torch.uint8)
    want, want_acc = image.clone(), call.y_acc.clone()
    conv = conv_of(instance, depths, region)
    reference.conv2d_out(conv, Outputs(want))
    reference.conv2d_out(conv, Outputs(want_acc))
    call.args.y_image = image.data_ptr()
    with on(major), buffers([*call.read, call.packed], [image, call.y_acc]):
        host_library().call("adabm_conv2d_cuda", call.args, 0, None)
    assert_equal(image, want)
    assert_equal(call.y_acc, want_acc)


@pytest.mark.parametrize("region", ["around", "nowhere"])
def test_the_first_layer_whose_few_channels_are_unfolded(region: str) -> None:
    problem = ConvProblem("head", 19, 35, 3, 16, bits=(8, 8, 8), weight_bits=8)
    instance, depths = instantiate(problem), depths_of(problem)
    call = conv2d_call(instance, outputs="yq", depths=depths, region=REGIONS[region])
    want_y, want_q = call.y.clone(), call.y_q.clone()
    reference.conv2d_out(conv_of(instance, depths, REGIONS[region]), Outputs(want_y, want_q))
    call.run()
    assert_equal(call.y, want_y)
    assert_equal(call.y_q, want_q)


@pytest.mark.parametrize("passed", [None, (0, 0)], ids=["untouched", "passed_on"])
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "straight"])
def test_tiles_without_a_pixel_to_compute_read_no_codes(kernel: str, passed: tuple[int, int] | None) -> None:
    """Those of the image of depth 0 are not even there."""
    major, instance, problem, config = problem_of(kernel)
    call = conv2d_call(instance, outputs="y", depths=depths_of(problem), region=Region(own=(1, 255), passed=passed))
    call.args.config = config
    x_q, *others = call.read
    assert x_q.data_ptr() == call.args.x_q
    read = [x_q] if "tensor_copies" in kernel else [x_q[0], x_q[2]]  # a tensor copy must be allowed all of its tensor
    written = [call.y[0], call.y[2]] if passed is None else [call.y]
    with on(major), buffers([*read, *others, call.packed], written):
        host_library().call("adabm_conv2d_cuda", call.args, 0, None)
    assert_equal(call.y[1], torch.full_like(call.y[1], -987654.0) if passed is None else instance.residual[1])


# ---- residual blocks


BLOCK = ConvProblem("block", 17, 37, 36, 36, bits=(4, 8, 2), out_bits=(3, 6, 8), activation="relu")
STRAIGHT_BLOCK = dataclasses.replace(BLOCK, channels=64, outputs=64)


def two_calls_of(first: ConvInstance, second: ConvInstance, depths: Depths, inner: Region) -> None:
    """Gives the second what the first makes of a region of its own, within poison."""
    second.x_q = torch.full_like(second.x_q, POISON)
    reference.conv2d_out(conv_of(first, depths, inner), Outputs(y_q=second.x_q))


def check_block(
    region: Region,
    config: int,
    packed: bool,
    place: str = "small_tiles",
    inner: Region | None = None,
    problem: ConvProblem = BLOCK,
    fraction: int | None = None,
) -> None:
    """inner: the first convolution's region, where it is not zeros at all pixels that the second does not compute."""
    depths = depths_of(problem, place)
    first, second, _ = block(problem)
    settings = {"depths": depths, "region": region, "fraction": fraction}
    with driver(**HOPPER, multiprocessors=2):
        call = run_block(first, second, packed, config, **settings)
    two_calls_of(first, second, depths, inner or dataclasses.replace(region, passed=EVERY))
    fresh = conv2d_call(second, packed_y=packed, outputs="yq", **settings)
    want_y, want_q = reference_of(fresh, second, packed, **settings)
    assert_equal(call.y, want_y)
    check_codes(call, second, want_q, packed)


@pytest.mark.parametrize("region", REGIONS | PASSING)
def test_a_residual_block_writes_the_second_convolutions_region(region: str) -> None:
    check_block((REGIONS | PASSING)[region], 1, packed=region in ("own", "block"))


@pytest.mark.parametrize("place", MAPS)
@pytest.mark.parametrize("config", [1, 2])
def test_a_residual_block_equals_two_calls_with_the_regions_of_a_network(config: int, place: str) -> None:
    inside = PASSING["inside_a_block"]
    ends = inside if MAPS[place][0] == 1 else dataclasses.replace(inside, pass_reach=2)
    check_block(ends, config, packed=False, place=place, inner=inside)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("config", [1, 2, 3, 4])
def test_residual_blocks_of_every_configuration_in_any_order(config: int, order: str) -> None:
    with policy(order, "random", seed=config):
        check_block(PASSING["block"], config, packed=False)


@pytest.mark.parametrize("config, place", [(1, "small_tiles"), (2, "whole_tiles"), (3, "whole_tiles"), (4, "small_tiles")])
def test_residual_blocks_with_features_of_16_bits(config: int, place: str) -> None:
    with policy("random", "random", seed=config):
        check_block(PASSING["block"], config, place == "whole_tiles", place, problem=STRAIGHT_BLOCK, fraction=FRACTION)


# ---- quantisation


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("packed", [False, True])
def test_quantisation_writes_a_region_alone(packed: bool, layout: torch.memory_format, region: str) -> None:
    problem = ConvProblem("features", 7, 19, 10, 10)
    depths, numbers = depths_of(problem), REGIONS[region]
    bits, grid = torch.tensor([4, 8, 2], dtype=torch.int32), act_grid(-2.0, 3.0)
    x = torch.randn(3, 10, 7, 19, generator=torch.Generator().manual_seed(2)).contiguous(memory_format=layout)
    got = torch.full((3, 7, 19, 24), POISON, dtype=torch.uint8)
    want = got.clone()
    place = {"depth": depths.values, "region": numbers.numbers(depths)}
    with buffers([x, bits, grid, depths.values], [got]):
        if packed:
            ops.quantize_out(x, grid, bits, got, packed_codes=True, start=4, backend="cuda", **place)
            ops.quantize_out(x, grid, bits, want, packed_codes=True, start=4, backend="reference", **place)
            got, want = unpack_codes(got, bits), unpack_codes(want, bits)
        else:
            ops.quantize_out(x, grid, bits, got[..., 4:14], backend="cuda", **place)
            ops.quantize_out(x, grid, bits, want[..., 4:14], backend="reference", **place)
    assert_equal(got, want)


# ---- through the operators


def test_operators_hand_regions_over() -> None:
    depths, region = depths_of(BLOCK), PASSING["block"]
    first, second, _ = block(BLOCK)
    two_calls_of(first, second, depths, dataclasses.replace(region, passed=EVERY))
    want = second.residual.clone()
    reference.conv2d_out(replace(conv_of(second, depths, region), residual=want), Outputs(want))
    place = {"depth": depths.values, "region": region.numbers(depths), "accumulate": True, "backend": "cuda"}
    a, b = (conv_of(instance) for instance in (first, second))
    of_a, of_b = ((conv.weight, conv.packed, conv.alpha, conv.beta) for conv in (a, b))
    with driver(**HOPPER, multiprocessors=2):
        got = second.residual.clone()
        ops.conv2d_out(second.x_q, second.bits, *of_b, box_filter=b.box_filter, y=got, **place)
        assert_equal(got, want)
        got = second.residual.clone()
        tables = {"activation": "relu", "box_filters": (a.box_filter, b.box_filter)}
        ops.resblock_out(first.x_q, first.bits, of_a, of_b, first.out_grid, first.out_bits, y=got, **tables, **place)
        assert_equal(got, want)
