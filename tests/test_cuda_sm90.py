"""Kernels of compute capability 9.0, executed on the CPU, against the integer reference: accumulators, floats and codes equal."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cuda_calls import POISON, CudaCall, assert_equal, check, check_codes, conv2d_call, conv_of, cuda_on_host
from cuda_library import LANDINGS, ORDERS, buffers, driver, host_library, policy, runtime
from problems import PROBLEMS, ConvInstance, ConvProblem, half_units, instantiate
from small import one_thread  # noqa: F401
from test_cuda_conv2d import by_class

import adabm_kernels
from adabm_kernels import native, ops
from adabm_kernels.backends import cuda, reference
from adabm_kernels.backends.call import Outputs
from adabm_kernels.backends.counted import on_wgmma
from adabm_kernels.backends.cuda import _place as real_place
from adabm_kernels.config import ConvertConfig
from adabm_kernels.networks.detect import float_network
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.quantize import to_pixels, unpack_codes
from adabm_kernels.registry import Choice

HOPPER = {"major": 9, "shared_limit": 227 << 10}
BLOCKS = [
    ConvProblem("resblock", 17, 33, 64, 64, bits=(4, 2), out_bits=(3, 6), activation="relu"),  # one more than a tile each way
    ConvProblem("narrow", 5, 3, 64, 64, bits=(8,), activation="relu"),
    ConvProblem("few_channels", 9, 31, 36, 36, bits=(4,), activation="prelu"),
    ConvProblem("w6_block", 14, 30, 64, 64, weight_bits=6, bits=(6,), activation="relu"),
]  # fmt: skip

DENSE = [
    ConvProblem("dense", 18, 35, 128, 64, bits=(4,), activation="relu"),
    ConvProblem("fusion", 5, 9, 576, 64, kernel=1, bits=(5,), residual=True),
    ConvProblem("many_outputs", 17, 9, 64, 256, bits=(4,)),
]
NETWORKS = [  # settings, and whether its blocks can be fused
    (EDSRSpec(4, 2, 40), {}, True),
    (EDSRSpec(2, 3, 36), {"quantize": "body"}, True),
    (SRResNetSpec(2, 2, 64), {}, True),
    (EDSRSpec(2, 1, 16), {}, False),
    (EDSRSpec(2, 1, 36), {"quantize": "body", "weight_bits": 8}, False),
]


@pytest.fixture(autouse=True)
def hopper():
    host_library()
    with driver(**HOPPER):
        yield


@pytest.mark.parametrize("problem", PROBLEMS + DENSE, ids=str)
def test_kernel_equals_reference(problem: ConvProblem) -> None:
    check(instantiate(problem))


@pytest.mark.parametrize("problem", PROBLEMS + DENSE, ids=str)
def test_its_own_kernel_takes_what_pays_on_it(problem: ConvProblem) -> None:
    """Which one it was is in the error of a launch that fails."""
    others = ("head", "tail_three", "one_by_one", "nine_by_nine", "one_pixel", "one_row", "one_column")
    with driver(**HOPPER, launch_error=9), pytest.raises(RuntimeError, match="conv2d(_sm90)?: invalid configuration") as error:
        conv2d_call(instantiate(problem)).run()
    assert ("conv2d_sm90" in str(error.value)) == (problem.name not in others)
    assert on_wgmma(instantiate(problem).layer.shape) == (problem.name not in others)


@pytest.mark.parametrize("problem", BLOCKS[:1] + PROBLEMS[1:2], ids=str)
@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_any_order_gives_the_same(problem: ConvProblem, order: str, landing: str) -> None:
    with policy(order, landing, seed=1):
        check(instantiate(problem))


# ---- the straight epilogues


def interior(bits: tuple[int, ...] = (8,), out_bits: tuple[int, ...] = (7,), **settings) -> ConvProblem:
    """Tiles without a pixel along the border, tiles along each border and in each corner, and strips that the image cuts off."""
    return ConvProblem("interior", 50, 75, 64, settings.pop("outputs", 64), bits=bits, out_bits=out_bits, **settings)


STRAIGHT = {  # outputs, whether codes are packed, and the problem
    "codes": ("q", False, interior(activation="relu")),
    "codes_from_zero": (
        "q",
        True,
        interior((4,), (4,), activation="relu", lower=0.0),
    ),  # whose clamp does what the activation would
    "codes_prelu": ("q", True, interior((2, 5), (2, 8), activation="prelu")),
    "codes_shuffled": ("q", True, interior((4,), (3,), outputs=256, shuffle=2)),
    "floats": ("y", False, interior(activation="relu")),
    "floats_shuffled": ("y", False, interior((3,), outputs=256, shuffle=2)),
    "residual_floats_codes": ("yq", False, interior(residual=True)),
    "residual_floats_packed": ("yq", True, interior((4,), (2,), residual=True, outputs=128, activation="relu")),
    "residual_floats_apart": ("yq", False, interior((4,), residual=True, outputs=128)),
    "residual_codes": ("q", True, interior((6,), (4,), residual=True)),
    "narrow": ("yq", False, ConvProblem("narrow", 3, 1, 64, 64, bits=(8,), residual=True)),
}


def wide(outputs: int = 64, bits: tuple[int, ...] = (8,), out_bits: tuple[int, ...] = (7,), **settings) -> ConvProblem:
    """As `interior`, of layers whose weights pass through shared memory."""
    settings = {"channels": 96, "kernel": 3} | settings
    return ConvProblem("wide", 37, 45, outputs=outputs, bits=bits, out_bits=out_bits, **settings)


STRAIGHT |= {  # four outputs at a time
    "staged_codes": ("q", True, wide(64, (8, 4), (8, 4), activation="relu")),
    "staged_codes_prelu": ("q", True, wide(64, (2,), (2,), activation="prelu", kernel=1, channels=320)),
    "staged_floats": ("y", False, wide(52, activation="relu")),  # a warp has four outputs of sixteen
    "staged_floats_shuffled": ("yq", False, wide(192, (4,), shuffle=2)),  # 48 outputs a sub-pixel
    "staged_residual": ("yq", True, wide(80, (5,), (3,), residual=True, kernel=5, channels=64)),  # 64 outputs and 16
}


def reference_of(call: CudaCall, instance: ConvInstance, packed: bool, **place) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What the reference leaves in the call's y and y_q, the latter unpacked, from what is in them before."""
    want_y, want_q = (None if t is None else t.clone() for t in (call.y, call.y_q))
    if packed and want_q is not None:
        want_q = unpack_codes(want_q, instance.out_bits)
    reference.conv2d_out(conv_of(instance, **place), Outputs(want_y, want_q))
    return want_y, want_q


def check_straight(name: str, in_place: bool = False, config: int = 0, instance: ConvInstance | None = None, **place) -> None:
    outputs, packed, problem = STRAIGHT[name]
    instance = instance or instantiate(problem)
    call = conv2d_call(instance, packed_x=packed, packed_y=packed, outputs=outputs, **place)
    call.args.config = config
    want_y, want_q = reference_of(call, instance, packed, **place)
    if in_place:
        residual = next(t for t in call.read if t.data_ptr() == call.args.residual)
        call.y.copy_(residual)
        call.args.residual = call.y.data_ptr()
    with driver(**HOPPER, multiprocessors=3):  # so that a block takes several tiles
        call.run()
    if want_y is not None:
        assert_equal(call.y, want_y)
    if want_q is not None:
        check_codes(call, instance, want_q, packed)


@pytest.mark.parametrize("fraction", [None, 9], ids=["float32", "int16"])
@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_epilogues_equal_the_reference(name: str, fraction: int | None) -> None:
    if fraction is not None and STRAIGHT[name][2].shuffle > 1:
        pytest.skip("features of 16 bits have no shuffle")
    check_straight(name, fraction=fraction)


@pytest.mark.parametrize("fraction", [None, 13], ids=["float32", "int16"])
@pytest.mark.parametrize("config", [2, 3, 4])
@pytest.mark.parametrize("order, landing", [("random", "random"), ("descending", "early")])
def test_straight_epilogues_in_any_order_and_in_place(order: str, landing: str, config: int, fraction: int | None) -> None:
    with policy(order, landing, seed=config):
        check_straight("residual_floats_codes", in_place=True, config=config, fraction=fraction)


@pytest.mark.parametrize("order", ["ascending", "random"])
@pytest.mark.parametrize("config", [1, 2, 3, 4])
def test_straight_epilogues_of_blocks(config: int, order: str) -> None:
    with policy(order, seed=config), driver(**HOPPER, multiprocessors=3):
        check_block(dataclasses.replace(interior(activation="relu"), height=46), config=config, packed=config == 2)
        check_block(ConvProblem("prelu", 30, 62, 64, 64, bits=(4, 2), out_bits=(4, 6), activation="prelu"), config=config)


@pytest.mark.parametrize("fraction", [-3, 0, 12, 24])
def test_features_of_16_bits_of_any_size(fraction: int) -> None:
    """Small units clamp, large ones round all to few values; what is no number is the lowest feature of all."""
    instance = instantiate(STRAIGHT["residual_floats_codes"][2])
    instance.layer.beta[..., 5] = torch.nan
    instance.layer.beta[..., 6], instance.layer.beta[..., 7] = torch.inf, -torch.inf
    check_straight("residual_floats_codes", instance=instance, fraction=fraction)
    instance = instantiate(ConvProblem("general", 18, 35, 40, 52, bits=(4, 8), out_bits=(3, 8), residual=True, activation="prelu"))
    call = conv2d_call(instance, outputs="yq", fraction=fraction)
    want_y, want_q = reference_of(call, instance, False, fraction=fraction)
    with driver(**HOPPER):
        call.run()
    assert_equal(call.y, want_y)
    assert_equal(call.y_q, want_q)


def test_straight_features_of_16_bits_are_rounded_and_bounded() -> None:
    """Halves of a unit to even, also where the residual is at one of its ends; sums beyond -32767..32767 to the nearer of them. The
    grid of codes lies within these, so that codes do not change beyond."""
    instance = half_units(64, "none", 9, (50, 75, 64))
    step, ends = 2.0**-9, torch.tensor([-32767.0, -32766.0, -1.0, 0.0, 1.0, 32766.0, 32767.0])
    place = torch.randint(len(ends), (2, 50, 75, 16), generator=torch.Generator().manual_seed(0))
    instance.residual[..., 8:24] = ends[place] * step
    instance.layer.alpha[:, 8:24] = 0
    instance.layer.beta[..., 8:24] = torch.arange(-8, 8) / 2 * step
    check_straight("residual_floats_codes", instance=instance, fraction=9)


@pytest.mark.parametrize("name", ["codes", "codes_prelu", "residual_floats_codes", "staged_codes", "staged_residual"])
def test_grids_whose_scale_is_next_to_nothing(name: str) -> None:
    instance = instantiate(STRAIGHT[name][2])
    for table in (instance.layer.alpha, instance.layer.beta):
        table *= 2.0**105
    if instance.residual is not None:
        instance.residual *= 2.0**105
    instance.out_grid[:, 0] *= 2.0**-105
    check_straight(name, instance=instance)


def test_a_straight_epilogue_writes_a_slice_of_wider_features() -> None:
    instance = instantiate(interior(activation="relu"))
    wide = torch.full((1, 50, 75, 192), 5.0)
    call = conv2d_call(instance, outputs="y")
    want = reference_of(call, instance, False)[0]
    call.y, call.args.y, call.args.y_pitch = wide, wide[..., 64:].data_ptr(), 192
    call.run()
    assert torch.equal(wide[..., 64:128], want)
    assert bool((wide[..., :64] == 5).all() and (wide[..., 128:] == 5).all())


@pytest.mark.parametrize("fraction", [None, 11], ids=["float32", "int16"])
@pytest.mark.parametrize("packed", [False, True], ids=["bytes", "packed"])
def test_blocks_with_features_of_16_bits(packed: bool, fraction: int | None) -> None:
    first, second, _ = block(dataclasses.replace(interior((4,), (4,), activation="relu"), height=33, width=64))
    call = run_block(first, second, packed, fraction=fraction)
    fresh = conv2d_call(second, packed_y=packed, outputs="yq", fraction=fraction)
    want_y, want_q = reference_of(fresh, second, packed, fraction=fraction)
    assert_equal(call.y, want_y)
    check_codes(call, second, want_q, packed)


# ---- kernels by border class, and images of bytes

TAILS = {
    "x4": (64, 48, {"shuffle": 4}, 21, 10),
    "x2_two_tiles_of_outputs": (40, 112, {"shuffle": 2}, 6, 35),
    "smallest": (64, 48, {"shuffle": 4}, 5, 5),
    "long_edges": (33, 52, {}, 5, 135),
}


@pytest.mark.parametrize("name", TAILS)
def test_kernels_by_border_class(name: str) -> None:
    channels, outputs, settings, height, width = TAILS[name]
    packed = name == "x4"
    check(by_class(5, height, width, channels, outputs, (4,), **settings), packed_x=packed, packed_y=packed)


@pytest.mark.parametrize("config, image", [(1, False), (2, True)], ids=["floats", "bytes"])
@pytest.mark.parametrize("name", ["x4", "x2_two_tiles_of_outputs", "long_edges"])
def test_kernels_by_border_class_four_outputs_at_a_time(name: str, config: int, image: bool) -> None:
    """Without sums beside the results, as networks call them: tiles along a border too."""
    channels, outputs, settings, height, width = TAILS[name]
    instance = by_class(5, height, width, channels, outputs, (4, 8), **settings)
    instance.layer.beta = instance.layer.beta * 100 + 60
    want = instance.run("reference", "float")[0]
    call = conv2d_call(instance, outputs="y")
    call.args.config = config
    if image:
        want = want.clamp(0, 255).round().to(torch.uint8)
        call.y = torch.full(want.shape, POISON, dtype=torch.uint8)
        call.args.y, call.args.y_image = None, call.y.data_ptr()
    with driver(**HOPPER, multiprocessors=2):
        call.run()
    assert_equal(call.y, want)


@pytest.mark.parametrize("order, major", [*((order, 9) for order in ORDERS), ("ascending", 8)])
@pytest.mark.parametrize("shuffle, outputs, kernel", [(4, 48, 3), (3, 63, 3), (2, 256, 3), (1, 64, 3), (4, 48, 5)])
def test_images_of_bytes_are_the_floats_clamped_and_rounded(
    shuffle: int, outputs: int, kernel: int, order: str, major: int
) -> None:
    settings = {"kernel": kernel, "weight_bits": 8, "shuffle": shuffle, "lower": -100.0, "upper": 160.0}
    instance = instantiate(ConvProblem("image", 18, 11, 64, outputs, bits=(8, 4), **settings))
    want = instance.run("reference", "float")[0]
    want = want.clamp(0, 255).round().to(torch.uint8)
    assert want.min() == 0 and want.max() == 255 and len(want.unique()) > 100
    call = conv2d_call(instance, outputs="y")
    image = torch.full(call.y.shape, POISON, dtype=torch.uint8)
    call.args.y, call.args.y_image, call.y = None, image.data_ptr(), image
    with policy(order), driver(**HOPPER | {"major": major}):
        call.run()
    assert torch.equal(image, want)


# ---- residual blocks


def block(problem: ConvProblem, activation: str = "none", residual: bool = True):
    """(first, second) instances of a residual block, the second of this activation, and what two convolutions of the reference make
    of it."""
    first = instantiate(problem)
    settings = {"bits": first.out_bits.tolist(), "activation": activation, "residual": residual}
    second = instantiate(dataclasses.replace(problem, channels=problem.outputs, **settings), seed=1)
    _, second.x_q = first.run("reference", "codes")
    return first, second, second.run("reference", "both")


def run_block(first, second, packed: bool = False, config: int = 0, outputs: str = "yq", **place):
    """The second's call, of a region where place names one (`conv2d_call`), after it was made as a block."""
    a, b = conv2d_call(first, packed_x=packed, outputs="q"), conv2d_call(second, packed_y=packed, outputs=outputs, **place)
    a.args.y_q, b.args.x_q, b.args.x_bits = None, None, a.args.out_bits
    a.args.config = config
    with buffers([*a.read, a.packed, *b.read, b.packed], [t for t in (b.y, b.y_q) if t is not None]):
        host_library().call("adabm_resblock_cuda", a.args, b.args, 0, None)
    return b


def check_block(problem: ConvProblem, packed: bool = False, config: int = 0) -> None:
    first, second, (want_y, want_q) = block(problem)
    call = run_block(first, second, packed, config)
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


@pytest.mark.parametrize("fraction", [None, 11], ids=["float32", "int16"])
@pytest.mark.parametrize("activation", ["none", "relu", "prelu"])
def test_blocks_that_give_codes_alone_without_a_residual(activation: str, fraction: int | None) -> None:
    first, second, _ = block(ConvProblem("codes", 17, 33, 64, 64, bits=(4, 8), activation="relu"), activation, residual=False)
    call = run_block(first, second, outputs="q", fraction=fraction)
    fresh = conv2d_call(second, outputs="q", fraction=fraction)
    assert_equal(call.y_q, reference_of(fresh, second, False, fraction=fraction)[1])


# ---- configurations


# Kernel: a problem of it, and its configurations in the table (height and width of a tile, stages, middles, tensor copies).
CONFIGS = {
    "resident": (
        ConvProblem("wide", 18, 67, 64, 64, bits=(4, 8), residual=True),
        [(16, 32, 4, 0, 0), (16, 16, 6, 0, 0), (16, 64, 2, 0, 0), (16, 32, 4, 0, 1)],
    ),
    "staged": (DENSE[0], [(16, 32, 4, 0, 0), (16, 16, 4, 0, 0), (16, 32, 4, 0, 1)]),
    "resblock": (
        ConvProblem("wide", 17, 49, 64, 64, bits=(5, 2), activation="relu"),
        [(16, 32, 3, 2, 0), (16, 16, 4, 2, 0), (16, 48, 2, 2, 0), (16, 32, 3, 2, 1)],
    ),
}
CASES = [(kernel, i + 1) for kernel, (_, rows) in CONFIGS.items() for i in range(len(rows))]


@pytest.mark.parametrize("kernel", CONFIGS)
def test_the_library_says_which_configurations_it_has(kernel: str) -> None:
    with cuda_on_host():
        found = [tuple(config.values()) for config in native.kernel_configs(kernel)]
    assert found == CONFIGS[kernel][1]
    config = native.KernelConfig()
    with pytest.raises(
        ValueError, match=f"index must be 0..{len(found) - 1} for kernel {native.KERNELS[kernel]}, got {len(found)}"
    ):
        host_library().call("adabm_config_cuda", native.KERNELS[kernel], len(found), config)
    with pytest.raises(ValueError, match=r"kernel must be 0..2, got 3"):
        host_library().call("adabm_config_cuda", 3, 0, config)


@pytest.mark.parametrize("packed", [False, True], ids=["bytes", "packed"])
@pytest.mark.parametrize("kernel, config", CASES)
def test_every_configuration_equals_the_reference(kernel: str, config: int, packed: bool) -> None:
    problem = CONFIGS[kernel][0]
    with driver(**HOPPER, multiprocessors=3):  # so that a block takes several tiles, and there are several blocks
        if kernel == "resblock":
            check_block(problem, packed, config)
        else:
            check(instantiate(problem), packed_x=packed, packed_y=packed, config=config)


TENSOR_COPIES = [  # channels that end within the last box; fewer than the box's planes; several stages of weights, 1x1
    ConvProblem("ragged", 17, 33, 48, 64, bits=(8,)),
    ConvProblem("not_of_16", 17, 33, 40, 64, bits=(8,)),
    ConvProblem("fusion", 5, 9, 320, 64, kernel=1, bits=(8, 3), residual=True),
    ConvProblem("five_by_five", 3, 40, 64, 64, kernel=5, bits=(8,)),
]


@pytest.mark.parametrize("landing", ["late", "early"])
@pytest.mark.parametrize("problem", TENSOR_COPIES, ids=str)
def test_tensor_copies_of_other_shapes(problem: ConvProblem, landing: str) -> None:
    staged = problem.name in ("fusion", "five_by_five")
    with policy("random", landing, seed=4):
        check(instantiate(problem), packed_x=True, config=3 if staged else 4)
        if not staged:
            check_block(dataclasses.replace(problem, outputs=problem.channels, activation="relu"), config=4)


@pytest.mark.parametrize(
    "problem, config, copies",
    [
        (ConvProblem("c64", 5, 9, 64, 64, bits=(8,)), 4, "tensor_copy"),
        (ConvProblem("c64", 5, 9, 64, 64, bits=(8,)), 1, "cp_async"),
        (ConvProblem("c40", 5, 9, 40, 64, bits=(8,)), 4, "cp_async"),
        (ConvProblem("c64_packed", 5, 9, 64, 64, bits=(4,)), 4, "load_constant"),
        (DENSE[1], 3, "tensor_copy"),
    ],
)
def test_who_brings_tiles_in(problem: ConvProblem, config: int, copies: str) -> None:
    """Told by the instruction that finds no x_q."""
    call = conv2d_call(instantiate(problem), packed_x=True)
    call.args.config = config
    x_q, read = call.read[0], call.read[1:]
    assert x_q.data_ptr() == call.args.x_q
    with (
        buffers([*read, call.packed], [call.y, call.y_q, call.y_acc]),
        pytest.raises(RuntimeError, match=f"{copies} of .*(outside every buffer|of a buffer of)"),
    ):
        host_library().call("adabm_conv2d_cuda", call.args, 0, None)


# Three tiles each way, so that one of them and its halo are inside the image. Images differ by how their codes are stored.
# Channels: multiples of 32, which threads unpack by whole vectors; of 16, which they copy by 16 bytes; of neither. Wide tiles have
# their offsets made anew, the others keep them in registers. Two images end one column or row before a halo does.
INTAKE = [
    ("conv2d", 1, 64, 33, 65, (8, 4, 2)),
    ("conv2d", 3, 64, 33, 129, (2, 4)),
    ("conv2d", 2, 48, 33, 33, (8, 4, 2)),
    ("conv2d", 2, 36, 33, 33, (8, 4, 2)),
    ("conv2d", 2, 96, 33, 33, (8, 4, 2)),
    ("conv2d", 2, 72, 33, 33, (8, 4, 2)),
    ("conv2d", 2, 64, 33, 32, (8, 4, 2)),
    ("conv2d", 2, 64, 32, 33, (2, 4, 8)),
    ("resblock", 1, 64, 30, 62, (8, 4, 2)),
    ("resblock", 3, 64, 30, 94, (4, 2)),
]


@pytest.mark.parametrize("kernel, config, channels, height, width, bits", INTAKE)
def test_tiles_inside_the_image_come_in(kernel: str, config: int, channels: int, height: int, width: int, bits: tuple) -> None:
    problem = ConvProblem("inside", height, width, channels, 64, bits=bits, activation="relu")
    with driver(**HOPPER, multiprocessors=2), policy("random", "random", seed=5):
        if kernel == "resblock":
            return check_block(problem, packed=True, config=config)
        instance = instantiate(problem)
        call = conv2d_call(instance, packed_x=True, outputs="q")
        call.args.config = config
        call.run()
        assert torch.equal(call.y_q, instance.run("reference", "codes")[1])


@pytest.mark.parametrize("config", [1, 2])
@pytest.mark.parametrize("name", ["x4", "long_edges"])
def test_kernels_by_border_class_in_every_configuration(name: str, config: int) -> None:
    channels, outputs, settings, height, width = TAILS[name]
    check(by_class(5, height, width, channels, outputs, (4,), **settings), config=config)


def test_long_edges_of_a_wide_kernel() -> None:
    """A tile along an edge has 128 pixels whatever the kernel: its halo is larger than that of a tile inside."""
    with driver(**HOPPER, multiprocessors=2):  # what a tile wrote of its neighbour would no longer be overwritten in time
        check(by_class(7, 7, 140, 33, 48, (4,)))


@pytest.mark.parametrize("order, landing", [("ascending", "early"), ("descending", "late"), ("random", "random")])
@pytest.mark.parametrize("kernel, config", [case for case in CASES if case[1] > 1])
def test_configurations_in_any_order(kernel: str, config: int, order: str, landing: str) -> None:
    with policy(order, landing, seed=3):
        if kernel == "resblock":
            check_block(BLOCKS[0], config=config)
        else:
            check(instantiate(CONFIGS[kernel][0]), config=config)


# Images of residual blocks on 132 multiprocessors, and the blocks launched for them. 128x128 has 100 tiles of two strips, 50 of
# four, 30 of six, one round each; 16 of 256x256 have more than 132 of any.
@pytest.mark.parametrize("batch, side, blocks", [(1, 128, 100), (1, 14, 1), (16, 256, 132)])
def test_the_configuration_with_the_fewest_rounds_is_taken(batch: int, side: int, blocks: int) -> None:
    first, second, _ = block(ConvProblem("few", 3, 3, 64, 64, bits=(4,), activation="relu"))
    a, b = conv2d_call(first, outputs="q"), conv2d_call(second, outputs="q")
    a.args.y_q, b.args.x_q, b.args.x_bits = None, None, a.args.out_bits
    for args in (a.args, b.args):
        args.batch, args.height, args.width = batch, side, side
    with driver(**HOPPER, multiprocessors=132, launch_error=9):  # so it is not run
        with pytest.raises(RuntimeError, match="invalid configuration"):
            host_library().call("adabm_resblock_cuda", a.args, b.args, 0, None)
        assert runtime().last_blocks() == blocks


# ---- what is refused


BROKEN_BLOCKS = [
    ("first", {"region": native.Region(64, 8)}, ValueError, "the first convolution's region.depth must be null"),
    ("second", {"region": native.Region(64, 8, 8)}, ValueError, "region.top and left must be 0..7, got 8 and 0"),
    ("first", {"y": 64}, ValueError, "the first convolution must have no output and no residual"),
    ("first", {"y_format": 1}, ValueError, r"the first convolution's y_format must be 0 \(float32\), .* got 1"),
    ("second", {"x_q": 64}, ValueError, "x_q must be null and its x_bits the first's out_bits"),
    ("second", {"height": 4}, ValueError, r"must take what the first gives, got \[1, 4, 3, 64\] for \[1, 5, 3, 64\]"),
    ("first", {"struct_bytes": 8}, ValueError, "first and second must be structs of [0-9]+ bytes"),
    ("first", {"packed_bytes": 5}, ValueError, "packed_bytes must be .* got 5"),
    ("second", {"y_image": 64, "y_q": None}, ValueError, "y_image must be null in a residual block"),
    ("second", {"y_q": "x_q"}, ValueError, "y_q must not be x_q"),
    ("first", {"config": 5}, ValueError, r"config must be 0..4 for this kernel, got 5"),
]


@pytest.mark.parametrize("which, change, error, message", BROKEN_BLOCKS, ids=[m for _, _, _, m in BROKEN_BLOCKS])
def test_broken_blocks_are_refused(which: str, change: dict, error: type, message: str) -> None:
    first, second, _ = block(BLOCKS[1])
    a, b = conv2d_call(first, outputs="q"), conv2d_call(second, outputs="yq")
    a.args.y_q, b.args.x_q, b.args.x_bits = None, None, a.args.out_bits
    for name, value in change.items():
        setattr((a if which == "first" else b).args, name, getattr(a.args, value) if isinstance(value, str) else value)
    with pytest.raises(error, match=message):
        host_library().call("adabm_resblock_cuda", a.args, b.args, 0, None)


def test_blocks_that_cannot_be_fused_say_why() -> None:
    problem = dataclasses.replace(BLOCKS[1], channels=96, outputs=96)
    with pytest.raises(RuntimeError, match="not 3x3 with 33 to 64 channels"):
        run_block(*block(problem)[:2])
    with driver(**HOPPER | {"major": 8}), pytest.raises(RuntimeError, match="the device has another compute capability"):
        run_block(*block(BLOCKS[1])[:2])


def test_what_images_and_configurations_need() -> None:
    call = conv2d_call(instantiate(PROBLEMS[0]), outputs="y")
    call.args.y, call.args.y_image = None, call.args.y
    other = conv2d_call(instantiate(PROBLEMS[0]))
    other.args.config = 1
    with driver(major=8), pytest.raises(RuntimeError, match="config needs the kernel of compute capability 9.0"):
        other.run()
    other.args.config = -1
    with driver(**HOPPER), pytest.raises(ValueError, match="config must be 0..4 for this kernel, got -1"):
        other.run()
    call.args.y_q, call.args.out_grid, call.args.out_bits = call.args.y_image, call.args.alpha, call.args.x_bits
    with pytest.raises(ValueError, match="y_q and y_image must not both be given"):
        call.run()
    call.args.y_q, call.args.y_pitch = None, 64
    with pytest.raises(ValueError, match="y_pitch must be 0 with y_image, got 64"):
        call.run()


# ---- through the operators and networks


@pytest.mark.parametrize("network, settings, fused", NETWORKS, ids=[type(n).__name__ + str(n.channels) for n, _, _ in NETWORKS])
def test_networks_equal_the_reference(network, settings: dict, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images = [torch.rand(1, 3, 16, 16) * 255 * scale for scale in (0.1, 0.5, 1.0)]
    model = adabm_kernels.convert_model(float_network(network), images, ConvertConfig(batch=1, recipe="paper", **settings))
    x = torch.cat([images[0], images[2]])[..., :9, :]
    model.set_backend("reference")
    want = model(x)
    assert model.why_not_fused == "backend 'reference' computes convolutions one by one"
    monkeypatch.setattr(adabm_kernels.nn.network, "choose", lambda problem, requested: Choice("cuda"))
    with cuda_on_host():
        model.set_backend("cuda")
        assert (model.why_not_fused == "") == fused
        for packed in (False, True):
            model.packed_codes = packed
            for conv in model.convs():
                conv.packed_codes = packed
            assert torch.equal(model(x), want)
        assert torch.equal(model.pixels(x), to_pixels(want))
        with driver(major=8, minor=6):
            model.set_backend("cuda")
            assert model.why_not_fused == "compute capability 8.6 has no wgmma: only 9.0 has"
        assert torch.equal(model(x), want)


def test_a_backend_can_be_set_before_the_model_moves_to_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--backend cuda` does: whether residual blocks are one kernel is known once the model is there."""
    torch.manual_seed(0)
    images, config = [torch.rand(1, 3, 16, 16) * 255], ConvertConfig(batch=1, recipe="paper", quantize="body")
    model = adabm_kernels.convert_model(float_network(EDSRSpec(2, 1, 36)), images, config)
    monkeypatch.setattr(adabm_kernels.nn.network, "choose", lambda problem, requested: Choice("cuda"))
    with cuda_on_host():
        on_a_card = cuda._place
        monkeypatch.setattr(cuda, "_place", real_place)
        model.set_backend("cuda")
        assert model.why_not_fused == "cuda: the tensors must be on a CUDA device, got cpu"
        monkeypatch.setattr(cuda, "_place", on_a_card)
        monkeypatch.setattr(type(model), "_device", lambda self: torch.device("cuda", 0))
        model._apply(lambda tensor: tensor)
        assert model.why_not_fused == ""


def test_the_operator_says_what_is_wrong() -> None:
    first, second, _ = block(BLOCKS[1])
    tables = [(conv.layer.weight, torch.empty(0, dtype=torch.uint8), conv.layer.alpha, conv.layer.beta) for conv in (first, second)]
    y = torch.empty(1, 5, 3, 64)
    arguments = {"first": tables[0], "second": tables[1], "inner_grid": second.layer.grid, "inner_bits": first.out_bits, "y": y}
    wrong = [
        ({"backend": "cpu"}, r"resblock_out: backend must be one of \('cuda',\), got 'cpu'"),
        ({"inner_bits": first.out_bits.float()}, "out_bits must be torch.int32, got torch.float32"),
        ({"y": None}, "one of y and y_q must be given"),
        ({"second": (second.layer.weight[:, :1], *tables[1][1:])}, r"beta must have shape"),
        ({"y": y[:, :4]}, r"y must have shape \[1, 5, 3, 64\], got \[1, 4, 3, 64\]"),
    ]
    for change, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            ops.resblock_out(first.x_q, first.bits, **arguments | change)
