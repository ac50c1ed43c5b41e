"""The CUDA convolution, executed on the CPU, against the integer reference: every accumulator, float and code equal."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from cuda_calls import PACKED_HEADER_BYTES, by_class, check, check_codes, conv2d_call, pack_weights
from cuda_library import LANDINGS, ORDERS, driver, host_library, policy
from drawn import drawn_problems
from features_int16 import int16_residual, wanted
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PROBLEMS, ConvInstance, ConvProblem, instantiate

from adabm_kernels.quantize import act_grid


@pytest.fixture(autouse=True)
def built() -> None:
    host_library()


@pytest.mark.parametrize("packed", [(False, False), (True, True)], ids=["bytes", "packed"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernel_equals_reference(problem: ConvProblem, packed: tuple[bool, bool]) -> None:
    check(instantiate(problem), packed_x=packed[0], packed_y=packed[1])


@pytest.mark.parametrize("weight_bits", [2, 4, 6, 7, 8])
def test_extreme_codes_and_weights_in_a_mixed_batch_of_all_bits(weight_bits: int) -> None:
    for packed in (False, True):
        problem = ConvProblem(
            "extreme", 4, 7, 72, 24, weight_bits=weight_bits, bits=tuple(range(2, 9)), out_bits=tuple(range(8, 1, -1))
        )
        check(instantiate(problem, extreme=True), packed_x=packed, packed_y=packed)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_pair_of_input_and_output_bits(bits: int) -> None:
    problem = ConvProblem("pairs", 3, 5, 20, 16, bits=(bits,) * 7, out_bits=tuple(range(2, 9)), residual=True)
    instance = instantiate(problem, seed=bits)
    check(instance, packed_x=True, packed_y=True)
    check(instance, packed_x=True)
    check(instance, packed_y=True)


def test_images_that_begin_off_a_multiple_of_16_bytes() -> None:
    check(instantiate(ConvProblem("off", 3, 5, 28, 16, bits=(4, 3, 8, 4))), packed_x=True)


@settings(max_examples=40)
@given(problem=drawn_problems(), packed_x=st.booleans(), packed_y=st.booleans(), seed=st.integers(0, 99))
def test_any_problem_equals_the_reference(problem: ConvProblem, packed_x: bool, packed_y: bool, seed: int) -> None:
    with policy("random", "random", seed):
        check(instantiate(problem, seed), packed_x=packed_x, packed_y=packed_y)


@pytest.mark.parametrize("channels, kernel", [(1, 3), (3, 9), (4, 5), (4, 15), (3, 1)])
def test_few_channels_are_unfolded(channels: int, kernel: int) -> None:
    instance = instantiate(ConvProblem("few", 9, 19, channels, 16, kernel, weight_bits=8, bits=(8, 4, 2)), extreme=True)
    check(instance)
    check(instance, packed_x=True)


# Several chunks of channels and several stages of weights, so that every buffer is used again.
DEEP = [
    ConvProblem("deep", 9, 17, 200, 16, bits=(4, 8), activation="relu"),
    ConvProblem("deep_point", 9, 17, 700, 32, kernel=1, bits=(3, 6)),
    ConvProblem("wide_kernel", 9, 17, 68, 16, kernel=5, bits=(2, 7)),
]


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("problem", DEEP, ids=str)
def test_no_order_of_warps_and_copies_changes_the_result(problem: ConvProblem, order: str, landing: str) -> None:
    with policy(order, landing, seed=1):
        check(instantiate(problem), packed_x=True, packed_y=True)


# ---- straight lines: tiles of 64 outputs that leave without the general form


@dataclass(frozen=True)
class Straight:
    """What a layer of 64 outputs gives. outputs: of `conv2d_call`; grid: of its codes, whose offset says whether a ReLU is kept;
    None for codes that fall as values grow."""

    outputs: str
    activation: str = "none"
    residual: bool = False
    grid: tuple[float, float] | None = (-2.0, 3.0)


STRAIGHT = {
    "codes": Straight("q"),
    "codes_of_relu": Straight("q", "relu", grid=(0.0, 3.0)),
    "codes_after_relu": Straight("q", "relu"),
    "codes_that_fall": Straight("q", "relu", grid=None),
    "features": Straight("y", "relu"),
    "features_and_codes": Straight("yq", "relu"),
    "residual": Straight("y", residual=True),
    "residual_and_codes": Straight("yq", residual=True),
    "codes_of_a_sum": Straight("q", "relu", residual=True),
}
# Nine tiles, of 8x16 pixels or 16x8: one that touches no border, and those that the image cuts off.
SIZES = [(17, 33), (33, 17)]


def check_straight(instance: ConvInstance, outputs: str, fraction: int | None, packed: bool) -> None:
    """Features and codes are the reference's."""
    if fraction is None:
        want_y, want_q = instance.run("reference", "both")
    else:
        want_y, want_q = wanted(instance, fraction)
        instance = replace(instance, residual=int16_residual(instance, fraction))
    call = conv2d_call(instance, outputs=outputs, packed_x=packed, packed_y=packed, fraction=fraction)
    call.run()
    assert call.y is None or torch.equal(call.y, want_y)
    if call.y_q is not None:
        check_codes(call, instance, want_q, packed)


@pytest.mark.parametrize("fraction", [None, 9], ids=["float32", "int16"])
@pytest.mark.parametrize("form", STRAIGHT)
def test_straight_lines_equal_the_reference(form: str, fraction: int | None) -> None:
    """Codes in of each form of products, codes out of each storage, where both are packed and where neither is."""
    straight = STRAIGHT[form]
    for (height, width), packed in zip(SIZES, (True, False), strict=True):
        results = {"out_bits": (2, 8, 4), "activation": straight.activation, "residual": straight.residual}
        problem = ConvProblem(form, height, width, 64, 64, bits=(8, 4, 2), **results)
        instance = instantiate(problem)
        instance.out_grid = act_grid(*straight.grid) if straight.grid else torch.tensor([[-20.0, 100.0]] * 7)
        check_straight(instance, straight.outputs, fraction, packed)


@pytest.mark.parametrize(
    "settings",
    [
        {"outputs": 256, "weight_bits": 8, "shuffle": 2},
        {"outputs": 128},
        {"outputs": 512, "channels": 8, "shuffle": 2},  # sub-pixels of two tiles
        {"kernel": 1, "channels": 96},
        {"kernel": 5, "channels": 20},
    ],
    ids=lambda settings: "-".join(f"{name}{value}" for name, value in settings.items()),
)
def test_straight_lines_of_other_layers(settings: dict) -> None:
    settings = {"channels": 64, "outputs": 64} | settings
    problem = ConvProblem("straight", 19, 34, bits=(8, 4), out_bits=(4, 8), residual=True, **settings)
    check_straight(instantiate(problem), "yq", None, packed=True)


@pytest.mark.parametrize("weight_bits", [6, 8])
def test_straight_lines_of_sums_of_any_size(weight_bits: int) -> None:
    """Extreme weights of 8 bits, whose sums need a conversion, and some of 6, whose sums of codes of 8 bits do not."""
    problem = ConvProblem("sums", 17, 33, 64, 64, weight_bits=weight_bits, bits=(8,), out_bits=(8,))
    instance = instantiate(problem, extreme=weight_bits == 8)
    check_straight(instance, "yq", None, packed=False)


def test_sums_of_weights_packed_without_their_reach_are_taken_as_large() -> None:
    """Older libraries packed zeros where the reach stands: sums beyond 2^22 are right all the same."""
    instance = instantiate(ConvProblem("sums", 17, 33, 64, 64, weight_bits=8, bits=(8,), out_bits=(8,)), extreme=True)
    want = instance.run("reference", "float")[0]
    assert instance.run("reference", "acc")[0].abs().max() >= 1 << 22
    call = conv2d_call(instance, outputs="y")
    header = call.packed[:PACKED_HEADER_BYTES].view(torch.int32)
    assert header[4] * 255 >= 1 << 22
    header[4] = 0
    call.run()
    assert torch.equal(call.y, want)


def test_straight_lines_need_aligned_slices() -> None:
    """Features in a slice of wider ones, at a multiple of 16 bytes and beside one."""
    instance = instantiate(ConvProblem("slice", 17, 33, 64, 64, bits=(4,), residual=True))
    want = instance.run("reference", "float")[0]
    for pitch, first in ((96, 32), (97, 1)):
        wide = torch.full((1, 17, 33, pitch), 7.0)
        wide[..., first : first + 64] = instance.residual
        call = conv2d_call(instance, outputs="y")
        call.args.y = call.args.residual = wide.data_ptr() + 4 * first
        call.args.y_pitch, call.y = pitch, wide
        call.run()
        assert torch.equal(wide[..., first : first + 64], want)


@pytest.mark.parametrize(("scale", "fraction"), [(1e-36, None), (2.0**-90, 15), (2.0**-95, 9)])
def test_a_grid_too_fine_for_straight_lines_is_rounded_all_the_same(scale: float, fraction: int | None) -> None:
    """Of values as they are, and of features of 16 bits, whose unit makes a scale finer still."""
    instance = instantiate(ConvProblem("fine", 17, 33, 64, 64, bits=(4,)))
    instance.out_grid = torch.tensor([[scale, 1.5]] * 7)
    check_straight(instance, "q", fraction, packed=False)


# ---- features of 16 bits


@pytest.mark.parametrize("fraction", [15, 2, -3])
@pytest.mark.parametrize("outputs", ["y", "q", "yq"])
@pytest.mark.parametrize("settings", [{"residual": True}, {"activation": "prelu"}], ids=["residual", "prelu"])
def test_features_of_16_bits_of_any_layer(settings: dict, outputs: str, fraction: int) -> None:
    problem = ConvProblem("int16", 9, 13, 12, 21, bits=(3, 8), out_bits=(5, 2), **settings)
    check_straight(instantiate(problem), outputs, fraction, packed=False)


# ---- kernels by border class


@pytest.mark.parametrize(
    "kernel, height, width, settings",
    [
        (5, 13, 21, {"shuffle": 4, "outputs": 48}),
        (5, 5, 5, {"outputs": 12}),
        (3, 3, 40, {"outputs": 16, "weight_bits": 4}),
        (3, 41, 4, {"outputs": 16, "activation": "relu"}),
        (1, 4, 6, {"outputs": 8}),
    ],
)
def test_kernels_by_border_class(kernel: int, height: int, width: int, settings: dict) -> None:
    for channels in (20, 3):
        instance = by_class(kernel, height, width, channels, bits=(8, 4, 2), **settings)
        check(instance, packed_x=True, packed_y=True)
        check(instance)


# ---- slices and accumulation in place


def test_floats_go_into_a_slice_of_wider_features_and_are_added_in_place() -> None:
    instance = instantiate(ConvProblem("slice", 6, 11, 16, 24, bits=(4, 5), residual=True))
    want = instance.run("reference", "float")[0]
    n, h, w, k = want.shape
    for pitch, first in ((40, 8), (33, 5)):
        wide = torch.full((n, h, w, pitch), 7.0)
        wide[..., first : first + k] = instance.residual
        call = conv2d_call(instance, outputs="y")
        call.args.y = call.args.residual = wide.data_ptr() + 4 * first
        call.args.y_pitch, call.y = pitch, wide
        call.run()
        assert torch.equal(wide[..., first : first + k], want)
        wide[..., first : first + k] = 7.0
        assert bool((wide == 7.0).all())


# ---- which arithmetic


def spoiled(instance: ConvInstance, form: int) -> torch.Tensor:
    """Accumulators where the packed weights of 8 bits (form 0) or of 4 bits (1) are wrong: the images that use them show it."""
    call = conv2d_call(instance, outputs="a")
    four = pack_weights(instance.layer.weight * 0, instance.layer.box_filter, 1).numel()  # zeros fit 4 bits: both forms
    assert call.packed.numel() == four
    eight = (four - PACKED_HEADER_BYTES) * 2 // 3
    weights = call.packed[PACKED_HEADER_BYTES:]
    (weights[eight:] if form else weights[:eight]).zero_()
    call.run()
    want = instance.run("reference", "acc")[0]
    return torch.tensor([not torch.equal(a, b) for a, b in zip(call.y_acc, want, strict=True)])


@pytest.mark.parametrize("major, four", [(8, True), (9, False), (10, False), (12, False)])
def test_images_of_up_to_4_bits_take_the_4_bit_form_where_it_is_one_instruction(major: int, four: bool) -> None:
    bits = tuple(range(2, 9))
    instance = instantiate(ConvProblem("which", 5, 6, 128, 16, weight_bits=4, bits=bits))
    few = torch.tensor([b <= 4 for b in bits])
    with driver(major=major):
        assert torch.equal(spoiled(instance, 1), few & four)
        assert torch.equal(spoiled(instance, 0), ~(few & four))


@pytest.mark.parametrize("weight_bits, fits", [(2, True), (3, True), (4, True), (5, False), (8, False)])
def test_the_4_bit_form_is_packed_where_the_weights_fit(weight_bits: int, fits: bool) -> None:
    instance = instantiate(ConvProblem("fits", 2, 2, 64, 64, weight_bits=weight_bits))
    for box_filter, weight in ((False, 2 * instance.layer.parameters_.codes + 1), (True, instance.layer.parameters_.codes)):
        if weight_bits == 8 and not box_filter:
            continue
        size = pack_weights(weight.permute(0, 2, 3, 1), box_filter, 1).numel()
        box_bytes = 128 if weight_bits == 8 else 0  # narrower k' are packed as 2k' + 1, which needs no sum of the codes
        assert size == PACKED_HEADER_BYTES + 9 * 64 * 64 + (9 * 64 * 64 // 2 if fits else 0) + box_bytes
