"""The Triton kernels against the integer reference. On a CPU in Triton's interpreter, where TRITON_INTERPRET=1, else on the GPU.

Not collected with the rest: the interpreter must be chosen before Triton is first imported, so test_triton.py runs this file
in a process of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drawn import drawn_problems
from hypothesis import given, settings
from operators import QUANTIZE, by_border_class, order, settings_of
from problems import PROBLEMS, ConvInstance, ConvProblem, half_units, instantiate, int16_features
from small import poison_empty, small_edsr

from adabm_kernels import ConvertConfig, convert_model, ops
from adabm_kernels.backends import launches, reference
from adabm_kernels.backends.call import Outputs
from adabm_kernels.backends.cards import interpreting
from adabm_kernels.backends.triton import conv2d as kernels
from adabm_kernels.backends.triton import launch, probe
from adabm_kernels.image_bits import bits_by_rule, image_measure, image_offsets
from adabm_kernels.networks.rdn import RDN, RDNSpec
from adabm_kernels.networks.srresnet import SRResNet, SRResNetSpec
from adabm_kernels.nn import network
from adabm_kernels.ops import library
from adabm_kernels.quantize import MAX_FRACTION, MIN_FRACTION, act_grid, pack_codes, padded_channels, to_fixed, unpack_codes
from adabm_kernels.regions import Depths, Region, tiles_of
from adabm_kernels.registry import Choice

DEVICE = torch.device("cpu" if interpreting() else "cuda")
on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
poison_outputs = pytest.mark.usefixtures("poisoned")
POISON, POISON_INT16 = -1e9, 21846  # features that nothing wrote
packing = pytest.mark.parametrize("packed", [False, True], ids=["bytes", "packed"])


def moved(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def placed(problem: ConvProblem, seed: int = 0, extreme: bool = False) -> ConvInstance:
    """The problem on the device."""
    return on_device(instantiate(problem, seed, extreme))


def on_device(instance: ConvInstance) -> ConvInstance:
    instance.layer.to(DEVICE)
    for name in ("x_q", "bits", "residual", "out_grid", "out_bits"):
        setattr(instance, name, moved(getattr(instance, name)))
    return instance


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs begin as garbage: what a kernel leaves out would show, padding channels included.

    Not for tests that compile: the compiler takes no torch.empty of ours.
    """
    poison_empty(monkeypatch)


def check(instance: ConvInstance, packed: bool, outs: tuple[str, ...] = ("both", "acc")) -> None:
    codes = instance.x_q
    for out in outs:
        instance.x_q, instance.layer.packed_codes = codes, False
        want_y, want_q = instance.run("reference", out)
        if packed:
            instance.x_q, instance.layer.packed_codes = pack_codes(codes, instance.bits), True
        y, y_q = instance.run("triton", out)
        assert torch.equal(y, want_y)
        if packed and y_q.numel():
            assert torch.equal(y_q, as_written(pack_codes(want_q, instance.out_bits), y_q, instance.out_bits))
        else:
            assert torch.equal(y_q, want_q)
    instance.x_q, instance.layer.packed_codes = codes, False


def as_written(want: torch.Tensor, got: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """`want` up to the last byte of each image that its bits need, and then what the kernel found there."""
    used = pack_codes(torch.ones_like(want), bits).flatten(1).ne(0)
    last = used.shape[1] - used.flip(1).int().argmax(1)
    pixel_end = -(-last // 4) * 4
    inside = torch.arange(used.shape[1], device=used.device) < pixel_end[:, None]
    return torch.where(inside.view_as(want), want, got)


# ---- convolution


def test_the_probe_of_a_card_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides whether Triton is used at all, and hides whatever it raises in a reason: a fault of its own must show here."""
    probe(DEVICE)
    wrong = torch.full((1, 3, 4, 4), -1, dtype=torch.int32, device=DEVICE)
    monkeypatch.setattr(reference, "accumulate", lambda *tensors: wrong)
    with pytest.raises(RuntimeError, match="a small convolution gives wrong results"):
        probe(DEVICE)


@poison_outputs
@packing
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernel_equals_reference(problem: ConvProblem, packed: bool) -> None:
    small = {"edsr_body": (5, 9), "edsr_residual": (4, 7), "w6_body": (3, 6)}.get(problem.name)
    if small and interpreting():
        problem = ConvProblem(**{**vars(problem), "height": small[0], "width": small[1]})
    check(placed(problem), packed)


@poison_outputs
@pytest.mark.parametrize("out", ["float", "codes"])
def test_one_output_alone(out: str) -> None:
    check(placed(ConvProblem("alone", 4, 6, 8, 9, bits=(4, 2), activation="relu", residual=True)), True, (out,))


@packing
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("bits", range(2, 9))
def test_extreme_codes_and_weights_neither_saturate_nor_overflow(weight_bits: int, bits: int, packed: bool) -> None:
    check(placed(ConvProblem("extreme", 3, 4, 64, 16, weight_bits=weight_bits, bits=(bits,)), extreme=True), packed)


@poison_outputs
def test_every_width_in_one_batch() -> None:
    widths = (2, 3, 4, 5, 6, 7, 8)
    check(placed(ConvProblem("mixed", 3, 5, 12, 20, bits=widths, out_bits=widths[::-1], activation="prelu", residual=True)), True)


def check_int16(instance: ConvInstance, fraction: int, packed: bool) -> None:
    """Features of 16 bits beside codes and alone, codes alone, and where the residual was; all but the last over garbage."""
    want_y, want_q = reference.conv2d(int16_features(instance.conv("reference"), fraction), "both")
    conv = int16_features(instance.conv("triton"), fraction)
    x_q, want_q = (pack_codes(q, b) if packed else q for q, b in ((conv.x_q, conv.x_bits), (want_q, conv.out_bits)))
    for features, codes, in_place in ((1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1)):
        if in_place and conv.residual is None:
            continue
        y = (conv.residual.clone() if in_place else torch.full_like(want_y, POISON_INT16)) if features else None
        y_q = torch.full_like(want_q, 171) if codes else None
        given = replace(conv, x_q=x_q, residual=y if in_place else conv.residual, packed_codes=packed)
        kernels.conv2d_out(given, Outputs(y, y_q))
        assert y is None or torch.equal(y, want_y)
        assert y_q is None or torch.equal(y_q, as_written(want_q, y_q, conv.out_bits) if packed else want_q)


@packing
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("fraction", [12, 15, 2])
def test_int16_features(fraction: int, residual: bool, packed: bool) -> None:
    problem = ConvProblem("int16", 5, 7, 12, 20, bits=(4, 2, 7), out_bits=(2, 8, 3), activation="prelu", residual=residual)
    check_int16(placed(problem), fraction, packed)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("fraction", [MIN_FRACTION, -3, 0, 11, MAX_FRACTION])
def test_int16_features_round_half_to_even_and_saturate(fraction: int, activation: str) -> None:
    check_int16(on_device(half_units(18, activation, fraction)), fraction, False)


@settings(max_examples=8 if interpreting() else 60)
@given(problem=drawn_problems())
def test_drawn_problems_equals_the_reference(problem: ConvProblem) -> None:
    check(placed(problem), packed=True, outs=("both",))


def tiles_of_size(pixels: int, outputs: int) -> AbstractContextManager[None]:
    """A program computes so many pixels and outputs, whatever would suit."""
    return kernels.tuning.always(kernels.tuning.Config(pixels, outputs, num_warps=4, num_stages=2))


@pytest.mark.parametrize("tile", [(32, 16), (64, 32)])
def test_tiles_of_any_size_and_wide_offsets_change_nothing(tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "NARROW", 100)
    with tiles_of_size(*tile):
        check(placed(ConvProblem("tiles", 5, 9, 20, 36, bits=(3, 8), shuffle=2, out_bits=(2, 6))), True)
        check_by_class(0, packed=False)


@contextmanager
def weights_kept(pixels: int = 32, outputs: int = 16, multiprocessors: int = 1) -> Iterator[list]:
    """Programs keep the weights and take several tiles each; gives the list of whether each launch was one of that form."""
    config, kept = kernels.tuning.Config(pixels, outputs, 4, 1, kernels.tuning.PERSISTENT, 2), []
    kernel_of = kernels.kernel_of

    def noted(constants: dict[str, Any]) -> Any:
        kept.append(kernel_of(constants) is kernels.persistent_kernel)
        return kernel_of(constants)

    with pytest.MonkeyPatch.context() as patch, kernels.tuning.always(config):
        patch.setattr(kernels, "kernel_of", noted)
        patch.setattr(kernels, "rates", lambda capability: SimpleNamespace(multiprocessors=multiprocessors))
        yield kept


KEPT = {
    "mixed": ({"bits": (2, 4, 7), "out_bits": (8, 3, 2), "activation": "prelu", "residual": True}, {}),
    "shuffle": ({"outputs": 36, "shuffle": 2, "bits": (3, 8), "out_bits": (2, 6)}, {"pixels": 64, "outputs": 32}),
    "wide": ({"channels": 40, "outputs": 12, "bits": (2, 8), "activation": "relu"}, {"multiprocessors": 3}),
    "head": ({"channels": 3, "bits": (8,)}, {}),
    "point": ({"kernel": 1, "channels": 20, "bits": (4, 6)}, {}),
    "body": ({"channels": 64, "bits": (4, 2)}, {}),
}


@poison_outputs
@packing
@pytest.mark.parametrize("name", KEPT)
def test_programs_that_keep_the_weights_equal_the_reference(name: str, packed: bool) -> None:
    problem, form = KEPT[name]
    settings = {"channels": 12, "outputs": 20} | problem
    with weights_kept(**form) as kept:
        check(placed(ConvProblem(name, 3, 18, **settings)), packed, ("both",))
    assert kept and all(kept)


def test_programs_that_keep_the_weights_and_int16_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "NARROW", 100)
    problem = ConvProblem("int16", 5, 7, 12, 20, bits=(4, 2, 7), out_bits=(2, 8, 3), activation="prelu", residual=True)
    with weights_kept() as kept:
        check_int16(placed(problem), 12, True)
    assert kept and all(kept)


def test_layers_that_the_form_is_not_for_take_the_other() -> None:
    with weights_kept() as kept:
        check_by_class(0, packed=True)
        instance = placed(ConvProblem("box", 4, 6, 8, 9, bits=(4, 2), weight_bits=8, kernel=3))
        instance.layer.box_filter = True
        check(instance, True)
        check(placed(ConvProblem("many", 2, 3, 200, 4, bits=(4,))), True, ("float",))
    assert kept and not any(kept)


def check_by_class(seed: int, packed: bool, box: bool = False, size: tuple[int, int] = (4, 5)) -> None:
    arguments = {key: moved(value) for key, value in by_border_class("reference").items()}
    g = torch.Generator().manual_seed(seed)
    x_q = torch.zeros(2, *size, 8, dtype=torch.uint8)
    bits = torch.tensor([4, 8], dtype=torch.int32)
    x_q[..., :5] = (torch.rand(2, *size, 5, generator=g) * (2**bits).view(2, 1, 1, 1)).to(torch.uint8)
    bits = bits.to(DEVICE)
    arguments |= {"x_q": x_q.to(DEVICE), "x_bits": bits, "out_bits": bits.flip(0), "box_filter": box, "out": "both"}
    want_y, want_q = torch.ops.adabm.conv2d(*order("conv2d", arguments))
    arguments |= {"backend": "triton", "packed": ops.pack_weights("triton", arguments["weight"], (), box, 1)}
    arguments["packed_codes"] = packed
    arguments["x_q"] = pack_codes(arguments["x_q"], bits) if packed else arguments["x_q"]
    y, y_q = torch.ops.adabm.conv2d(*order("conv2d", arguments))
    assert torch.equal(y, want_y)
    assert torch.equal(unpack_codes(y_q, arguments["out_bits"]) if packed else y_q, want_q)


@poison_outputs
@packing
@pytest.mark.parametrize("box", [False, True], ids=["m", "box"])
@pytest.mark.parametrize("size", [(3, 3), (4, 70), (67, 3)])
def test_kernels_by_border_class(size: tuple[int, int], box: bool, packed: bool) -> None:
    check_by_class(1, packed, box, size)


@pytest.mark.parametrize("offset", [0, 3, 8])
def test_outputs_can_be_slices_of_wider_features(offset: int) -> None:
    instance = placed(ConvProblem("slice", 5, 7, 6, 9, bits=(4, 2), activation="relu", residual=True))
    want, want_q = instance.run("reference", "both")
    instance.layer.set_backend("triton", 1)
    arguments = settings_of(instance)
    wide, other = torch.full((2, 5, 7, 20), -1e9, device=DEVICE), torch.zeros(2, 5, 7, 20, device=DEVICE)
    y, residual = wide[..., offset : offset + 9], other[..., offset : offset + 9]
    residual.copy_(instance.residual)
    y_q = torch.empty_like(want_q)
    ops.conv2d_out(**arguments | {"residual": residual}, y=y, y_q=y_q)
    assert torch.equal(y, want) and torch.equal(y_q, want_q)
    assert (torch.cat([wide[..., :offset], wide[..., offset + 9 :]], 3) == -1e9).all()
    y.copy_(instance.residual)
    ops.conv2d_out(**arguments | {"residual": None}, y=y, accumulate=True)
    assert torch.equal(y, want)


def narrow(h: int, c: int, dtype: torch.dtype) -> torch.Tensor:
    """[1, H, 1, C], contiguous as torch sees it, with room for pixels as far apart as the stride of its columns says."""
    made = torch.zeros(h * h * c, dtype=dtype, device=DEVICE).as_strided((1, h, 1, c), (h * c, c, h * c, 1))
    assert made.is_contiguous() and made.stride(2) != c
    return made


def test_images_one_pixel_wide_with_any_stride_of_columns() -> None:
    instance = placed(ConvProblem("narrow", 6, 1, 6, 9, bits=(4,), activation="relu", residual=True))
    want, want_q = instance.run("reference", "both")
    instance.layer.set_backend("triton", 1)
    y, y_q, residual = narrow(6, 9, torch.float32), narrow(6, 12, torch.uint8), narrow(6, 9, torch.float32)
    residual.copy_(instance.residual)
    ops.conv2d_out(**settings_of(instance) | {"residual": residual}, y=y, y_q=y_q)
    assert torch.equal(y, want) and torch.equal(y_q, want_q)
    x, grid, bits = torch.rand(1, 9, 6, 1, device=DEVICE), moved(act_grid(0.0, 1.0)), moved(torch.tensor([8], dtype=torch.int32))
    ops.quantize_out(x, grid, bits, y_q, backend="triton")
    assert torch.equal(y_q, ops.quantize(x, grid, bits, backend="reference"))


def test_bits_that_have_no_grid_count_as_the_nearest() -> None:
    """Nothing on the host sees bits: a wrong one must stay within the tables."""
    instance = placed(ConvProblem("bits", 3, 4, 5, 6, bits=(2, 8)))
    instance.x_q.clamp_(max=3)
    want = instance.run("reference", "both")
    instance.bits, instance.out_bits = instance.bits + moved(torch.tensor([-7, 90], dtype=torch.int32)), instance.out_bits * 0 - 1
    want_q = placed(ConvProblem("bits", 3, 4, 5, 6, bits=(2, 8), out_bits=(2, 2))).run("reference", "codes")[1]
    y, y_q = instance.run("triton", "both")
    assert torch.equal(y[0], want[0][0]) and y_q.max() <= 3 and torch.equal(y_q[0], want_q[0])


def test_operators_keep_to_their_schemas() -> None:
    """Each but the residual block, which this backend has not."""
    instance = placed(ConvProblem("plain", 3, 4, 6, 9, bits=(4, 2)))
    instance.layer.set_backend("triton", 1)
    checked = set()

    def check_operator(name: str, arguments: dict[str, Any]) -> None:
        given = order(name, {"backend": "triton", "threads": 0, "packed_codes": False} | arguments)
        torch.library.opcheck(getattr(torch.ops.adabm, name), given, test_utils=("test_schema", "test_faketensor"))
        checked.add(name)

    region, shape = place(Region(own=(1, 2)), 2, 3, 4), (2, 3, 4)
    check_operator("conv2d", settings_of(instance, out="both"))
    for accumulate in (False, True):
        into = {"accumulate": accumulate, "y": torch.zeros(*shape, 9, device=DEVICE), "y_q": None}
        check_operator("conv2d_out", settings_of(instance, **into) | region)
    check_operator("conv2d_pixels", settings_of(instance))
    image = torch.zeros(*shape, 9, dtype=torch.uint8, device=DEVICE)
    check_operator("conv2d_pixels_out", settings_of(instance, image=image) | region)
    x, codes = torch.rand(2, 3, 4, 5, device=DEVICE), torch.zeros(2, 4, 5, 4, dtype=torch.uint8, device=DEVICE)
    grid, bits = moved(act_grid(0.0, 1.0)), moved(torch.tensor([4, 7], dtype=torch.int32))
    quantized = {"x": x, "shift": None, "grid": grid, "bits": bits, "start": 0, "y_q": codes}
    check_operator("quantize", quantized)
    check_operator("quantize_out", quantized)
    lists = {"grids": [grid] * 2, "bits": [bits] * 2, "starts": [0, 0], "y_q": [codes, codes.clone()]}
    check_operator("quantize_many_out", {"x": x} | lists)
    check_operator("tile_depths", {"x_q": codes, "tile": 2, "top": 0, "left": 1, "threshold": 9, "deep": 2})
    check_operator("image_measure", {"x": x})
    low, rules = torch.zeros((), device=DEVICE), torch.tensor([[4, 1]], dtype=torch.int32, device=DEVICE)
    check_operator("layer_bits", {"x": x, "lower": low, "upper": low, "rules": rules})
    assert checked == set(library.IMPLEMENTATIONS) - {"resblock_out"}


def test_sizes_past_a_launch_are_named() -> None:
    instance = placed(ConvProblem("many", 1, 1, 1, 1, bits=(4,)))
    instance.layer.set_backend("triton", 1)
    instance.x_q = instance.x_q.expand(65536, 1, 1, 4)
    instance.bits = instance.out_bits = instance.bits.expand(65536)
    with pytest.raises(ValueError, match="conv2d: x_q must have at most 65535 images, got 65536"):
        instance.run("triton", "codes")
    with pytest.raises(ValueError, match=f"an image of x_q must give at most {2**31 - 2**12} pixels, got {2**31}"):
        launch.check("conv2d", "x_q", instance.x_q[:1].expand(1, 2**16, 2**15, 4), 2**31)


# ---- regions

TILE = {"tile": 4, "top": 3, "left": 1}


def place(region: Region, images: int, height: int, width: int, seed: int = 0, depths: int = 4, **tile: int) -> dict[str, Any]:
    """A region of tiles of random depths, below `depths`, as the operators take it."""
    tile = TILE | tile
    shape = images, tiles_of(height, tile["tile"], tile["top"]), tiles_of(width, tile["tile"], tile["left"])
    values = torch.randint(0, depths, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    found = Depths(values.to(DEVICE), **tile)
    return {"depth": found.values, "region": region.numbers(found)}


def on_both(
    problem: ConvProblem,
    region: dict[str, Any],
    outs: str = "yq",
    in_place: bool = False,
    packed: bool = False,
    fraction: int | None = None,
) -> list[list]:
    """[[y, y_q] of the reference, the same of the kernel], those that `outs` names of "y" and "q", over poison or the residual.

    fraction: of int16 features, None for those of float32.
    """
    instance = placed(problem)
    size = len(problem.bits), problem.height * problem.shuffle, problem.width * problem.shuffle
    channels = problem.outputs // problem.shuffle**2
    stored, garbage = {}, torch.tensor(POISON, device=DEVICE)
    if fraction is not None:
        stored, garbage = {"features": "int16", "fraction": fraction}, torch.tensor(POISON_INT16, dtype=torch.int16, device=DEVICE)
        instance.residual = None if instance.residual is None else to_fixed(instance.residual, fraction)
    x_q = pack_codes(instance.x_q, instance.bits) if packed else instance.x_q
    made = []
    for backend in ("reference", "triton"):
        instance.layer.set_backend(backend, 1)
        y = garbage.repeat(*size, channels) if "y" in outs else None
        y_q = torch.full((*size, padded_channels(channels)), 171, dtype=torch.uint8, device=DEVICE) if "q" in outs else None
        arguments = settings_of(instance, x_q=x_q, packed_codes=packed, accumulate=in_place, y=y, y_q=y_q) | region | stored
        if in_place:
            arguments["residual"] = None
            y.copy_(instance.residual)
        ops.conv2d_out(**arguments)
        if packed and y_q is not None:  # the reference clears what lies behind the codes of an image
            y_q = as_written(y_q, torch.full_like(y_q, 171), instance.out_bits) if backend == "reference" else y_q
        made.append([tensor for tensor in (y, y_q) if tensor is not None])
    return made


# As a network of blocks asks for them: its first layer, both convolutions of a block, the first block's second, and an exit. A
# block's first has no residual, and zeros around what it computes.
INSIDE = Region(own=(1, 255), passed=(1, 255), pass_reach=1)
LAYERS = {
    "head": (Region(near=(3, 255), reach=3), {"kernel": 1, "channels": 3}, {"outs": "q"}),
    "first": (Region(near=(2, 255), reach=1), {"activation": "relu"}, {"outs": "q", "packed": True}),
    "inside": (INSIDE, {"activation": "relu"}, {"outs": "q", "packed": True}),
    "inside_in_bytes": (INSIDE, {"activation": "prelu", "outputs": 14}, {"outs": "q"}),
    "inside_floats": (INSIDE, {}, {"outs": "y"}),
    "inside_both": (INSIDE, {"outputs": 14}, {"packed": True}),
    "second": (Region(own=(2, 255), passed=(3, 255), pass_reach=2), {"residual": True}, {"in_place": True, "packed": True}),
    "second_in_bytes": (Region(own=(2, 255), passed=(3, 255), pass_reach=2), {"residual": True}, {"in_place": True}),
    "second_of_the_first_block": (Region(own=(1, 1), passed=(2, 255), pass_reach=2), {"residual": True}, {"packed": True}),
    "codes_alone": (Region(own=(2, 2), passed=(3, 3), pass_reach=1), {"residual": True}, {"outs": "q", "packed": True}),
    "exit": (Region(own=(2, 2)), {"residual": True}, {"outs": "y"}),
    "easy_beside_hard": (Region(own=(0, 0), near=(3, 255), reach=2), {"activation": "prelu"}, {"packed": True}),
    "none": (Region(own=(9, 9), passed=(7, 8)), {"residual": True}, {}),
    "inside_int16": (INSIDE, {"outputs": 14}, {"packed": True, "fraction": 12}),
    "second_int16": (
        Region(own=(2, 255), passed=(3, 255), pass_reach=2),
        {"residual": True},
        {"in_place": True, "packed": True, "fraction": 9},
    ),
    "second_of_the_first_block_int16": (
        Region(own=(1, 1), passed=(2, 255), pass_reach=2),
        {"residual": True},
        {"packed": True, "fraction": 12},
    ),
    "codes_alone_int16": (Region(own=(2, 2), passed=(3, 3), pass_reach=1), {"residual": True}, {"outs": "q", "fraction": 9}),
}


KEPT_LAYERS = ("inside_both", "second_in_bytes", "second_of_the_first_block_int16", "codes_alone", "none")


@pytest.mark.parametrize(("layer", "form"), [*((x, "tiles") for x in LAYERS), *((x, "kept") for x in KEPT_LAYERS)])
def test_regions_of_a_convolution_equal_the_reference(layer: str, form: str) -> None:
    region, changes, settings = LAYERS[layer]
    changes = {"channels": 20, "outputs": 16, "bits": (4, 2, 7), "out_bits": (2, 8, 3)} | changes
    with tiles_of_size(32, 16) if form == "tiles" else weights_kept():
        want, got = on_both(ConvProblem(layer, 4, 19, **changes), place(region, 3, 4, 19), **settings)
    assert all(map(torch.equal, got, want))
    poison = {torch.uint8: 171, torch.int16: POISON_INT16, torch.float32: POISON}
    written = [(tensor != poison[tensor.dtype]).any(3).float().mean() for tensor in want]
    assert written[-1] == 0 if layer == "none" else 0 < written[-1] < 1


@pytest.mark.parametrize("tile", [{"tile": 1, "top": 0, "left": 0}, {"tile": 5, "top": 0, "left": 4}, {"tile": 40, "top": 39}])
def test_tiles_of_a_region_can_be_cut_small_or_large(tile: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "NARROW", 100)
    reach = min(tile["tile"], 3)
    region = Region(own=(1, 3), near=(2, 2), reach=reach, passed=(3, 3), pass_reach=reach)
    problem = ConvProblem("cut", 7, 11, 5, 6, bits=(4, 4), residual=True)
    launches.changed()
    want, got = on_both(problem, place(region, 2, 7, 11, **tile))
    launches.changed()
    assert all(map(torch.equal, got, want))


@pytest.mark.skipif(not interpreting(), reason="counts calls of the interpreter")
def test_programs_without_computed_pixels_multiply_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    products, called = kernels._accumulate, []
    monkeypatch.setattr(kernels, "_accumulate", lambda *args: called.append(args) or products(*args))
    region = place(Region(own=(1, 1), passed=(1, 1), pass_reach=1), 2, 2, 48, tile=8, top=0, left=0)
    region["depth"].zero_()[1, 0, 2] = 1
    with tiles_of_size(16, 16):
        want, got = on_both(ConvProblem("few", 2, 48, 4, 4, bits=(4, 4), residual=True), region, "y")
    assert torch.equal(got[0], want[0]) and (got[0] != -1e9).any(3).sum() == 2 * 10
    assert len(called) == 2  # the second of three programs to a row, of one image


def test_pixels_of_two_layers_meet_in_an_image() -> None:
    """An upsampler where there are blocks, and a filter for the other tiles; its kernels may differ by border class."""
    tail = {"outputs": 12, "bits": (8, 4), "out_bits": (8, 8), "weight_bits": 8, "shuffle": 2, "lower": -100.0, "upper": 160.0}
    upsampler, linear = (placed(ConvProblem(name, 5, 9, 6, kernel=kernel, **tail)) for name, kernel in (("up", 3), ("linear", 5)))
    for instance in (upsampler, linear):
        assert torch.equal(instance.pixels("triton"), instance.pixels("reference"))
    classes = {name: moved(value) for name, value in by_border_class("reference").items()}
    classes |= {"alpha": classes["alpha"] * 20, "beta": classes["beta"] * 50 + 100, "x_q": classes["x_q"][:, :, :4]}
    packed = ops.pack_weights("triton", classes["weight"], (), False, 1)
    images = {}
    for backend in ("reference", "triton"):
        images[backend] = [torch.full((2, 10, 18, 3), 171, dtype=torch.uint8, device=DEVICE)]
        for instance, own in ((upsampler, (1, 255)), (linear, (0, 0))):
            instance.layer.set_backend(backend, 1)
            arguments = settings_of(instance, image=images[backend][0]) | place(Region(own=own), 2, 5, 9, depths=2)
            del arguments["out_grid"], arguments["out_bits"]
            ops.conv2d_pixels_out(**arguments)
        images[backend].append(torch.full((2, 4, 4, 8), 171, dtype=torch.uint8, device=DEVICE))
        arguments = classes | {"backend": backend, "image": images[backend][1]} | place(Region(own=(1, 1)), 2, 4, 4, depths=2)
        arguments |= {"packed": packed} if backend == "triton" else {}
        del arguments["out_grid"], arguments["out_bits"]
        ops.conv2d_pixels_out(**arguments)
    assert all(map(torch.equal, *images.values()))
    assert len(images["triton"][0].unique()) > 50 and (images["triton"][1] == 171).all(3).any()


@pytest.mark.parametrize(("packed", "start"), [(False, 0), (False, 8), (True, 0), (True, 8)], ids=str)
@pytest.mark.parametrize(
    "region", [Region(near=(2, 2), reach=2), Region(own=(0, 1), near=(2, 255), reach=4)], ids=["exit", "beside"]
)
def test_regions_of_a_quantisation_equal_the_reference(region: Region, packed: bool, start: int) -> None:
    x = (torch.randn(3, 13, 7, 8, generator=torch.Generator().manual_seed(1)) * 2).to(DEVICE)
    bits, grid = torch.tensor([2, 4, 7], dtype=torch.int32, device=DEVICE), act_grid(-2.0, 1.0).to(DEVICE)
    shift = torch.linspace(-1, 1, 13, device=DEVICE)
    made = []
    for backend in ("reference", "triton"):
        y_q = torch.full((3, 7, 8, 32), 171, dtype=torch.uint8, device=DEVICE)
        codes, settings = (y_q, {"packed_codes": True, "start": start}) if packed else (y_q[..., start : start + 16], {})
        settings |= place(region, 3, 7, 8)
        ops.quantize_out(x, grid, bits, codes, shift=shift, backend=backend, **settings)
        made.append(as_written(y_q, torch.full_like(y_q, 171), bits) if packed and backend == "reference" else y_q)
    assert torch.equal(*made)
    assert (made[1] == 171).all(3).any() and (made[1] != 171).any()


# ---- quantisation


@poison_outputs
@packing
@pytest.mark.parametrize(("features", "channels"), [*(("float32", c) for c in (1, 3, 5, 20, 70)), ("int16", 5), ("int16", 20)])
def test_quantize(features: str, channels: int, packed: bool) -> None:
    g = torch.Generator().manual_seed(channels)
    x = torch.randn(7, channels, 5, 6, generator=g).to(DEVICE) * 2
    bits = torch.arange(2, 9, dtype=torch.int32, device=DEVICE)
    read = {"shift": torch.randn(channels, generator=g).to(DEVICE)}
    if features == "int16":
        x, read = to_fixed(x, 13), {"fraction": 13}
    for value in (x, x.to(memory_format=torch.channels_last), x[:, :, ::2, ::3], x.flip(3), x[:, :1].expand(7, channels, 5, 6)):
        want = ops.quantize(value, act_grid(-2.0, 1.0).to(DEVICE), bits, **read, backend="reference")
        got = ops.quantize(value, act_grid(-2.0, 1.0).to(DEVICE), bits, **read, backend="triton", packed_codes=packed)
        assert torch.equal(got, as_written(pack_codes(want, bits), got, bits) if packed else want)


def test_nan_and_infinity_have_codes() -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, -3e38, nan, 3e38, inf], device=DEVICE).view(1, 1, 1, 5)
    bits = torch.tensor([5], dtype=torch.int32, device=DEVICE)
    assert ops.quantize(x, moved(QUANTIZE["grid"]), bits, backend="triton")[0, 0, :, 0].tolist() == [0, 0, 0, 31, 31]


def test_codes_that_lie_between_two_are_rounded_to_the_even_one() -> None:
    x = (torch.arange(0, 255, device=DEVICE) + 0.5).view(1, 1, 1, -1)
    bits = torch.tensor([8], dtype=torch.int32, device=DEVICE)
    codes = ops.quantize(x, act_grid(0.0, 255.0).to(DEVICE), bits, backend="triton")[0, 0, :, 0]
    assert codes.tolist() == [i + i % 2 for i in range(255)]


@pytest.mark.parametrize(("offset", "fill"), [(0, 6), (4, 6), (5, 8), (12, 8)])
def test_codes_can_be_made_into_slices(offset: int, fill: int) -> None:
    features = torch.randn(2, 3, 5, 17, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    x, grid = features[..., 2:8].permute(0, 3, 1, 2), act_grid(-1.0, 2.0).to(DEVICE)
    bits = torch.tensor([3, 6], dtype=torch.int32, device=DEVICE)
    want, got = (torch.full((2, 3, 5, 20), 171, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    ops.quantize_out(x, grid, bits, want[..., offset : offset + fill], backend="reference")
    ops.quantize_out(x, grid, bits, got[..., offset : offset + fill], backend="triton")
    assert torch.equal(got, want)


@pytest.mark.parametrize(("total", "parts"), [(20, (4, 16)), (24, (8, 8, 8)), (18, (16, 2)), (140, (64, 64, 12))])
def test_packed_codes_are_made_side_by_side(total: int, parts: tuple[int, ...]) -> None:
    grid, bits = act_grid(-1.0, 2.0).to(DEVICE), torch.tensor([2, 4, 7], dtype=torch.int32, device=DEVICE)
    x = torch.randn(3, total, 3, 5, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    y_q = torch.full((3, 3, 5, padded_channels(total)), 171, dtype=torch.uint8, device=DEVICE)
    start = 0
    for part in parts:
        ops.quantize_out(x[:, start : start + part], grid, bits, y_q, backend="triton", packed_codes=True, start=start)
        start += part
    want = pack_codes(ops.quantize(x, grid, bits, backend="reference"), bits)
    assert torch.equal(y_q, as_written(want, y_q, bits))


# ---- the image decides


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (33, 48), (40, 70)])
def test_measure_equals_the_published_one_up_to_rounding(size: tuple[int, int]) -> None:
    x = (torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0)) * 255).to(DEVICE)
    want = image_measure(x.double())
    got = ops.image_measure(x, backend="triton")
    # A luma in 0..1 carries at most 4 roundings of u = 2^-24 and a gradient weighs 8 of them by 1/8 in sum; a gradient is the
    # sum of 6 terms, and 1024 of them are added in a tree of 10 floors.
    assert ((got - want).abs() <= 1000 * 8 * 2**-24 + want * (6 + 10 + 1) * 2**-24).all()
    assert torch.equal(got, ops.image_measure(x.to(memory_format=torch.channels_last), backend="triton"))


def test_layer_bits_follow_the_thresholds() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.stack([torch.rand(3, 9, 50, generator=g) * 255 * contrast for contrast in (0.0, 0.3, 1.0)]).to(DEVICE)
    measures = ops.image_measure(x, backend="triton")
    rules = torch.tensor([[4, 1], [8, 0], [2, 1], [8, 1], [6, 1]], dtype=torch.int32, device=DEVICE)
    for low, high in ((measures[1], measures[1]), (measures[0], measures[2]), (measures[1] + 1, measures[2] - 1)):
        got = ops.layer_bits(x, low, high, rules, backend="triton")
        assert torch.equal(got, bits_by_rule(rules, image_offsets(measures, low, high)))
    assert got[0].tolist() == [3, 3, 5]


# ---- networks


def images(contrasts: tuple[float, ...] = (0.02, 1.0), size: tuple[int, int] = (6, 7)) -> torch.Tensor:
    """A flat one, which gets a bit fewer, and a busy one, which gets one more."""
    g = torch.Generator().manual_seed(4)
    contrast = torch.tensor(contrasts).view(-1, 1, 1, 1)
    return (torch.rand(len(contrasts), 3, *size, generator=g) - 0.5) * 255 * contrast + 127.5


FLOATS = {
    "edsr": lambda: small_edsr(blocks=1),
    "edsr_x4": lambda: small_edsr(blocks=1, scale=4),
    "rdn": lambda: RDN(RDNSpec(scale=2, blocks=2, layers=2, channels=8, growth=4)).eval(),
    "rdn_odd": lambda: RDN(RDNSpec(scale=2, blocks=2, layers=1, channels=6, growth=3)).eval(),
    "srresnet": lambda: SRResNet(SRResNetSpec(scale=2, blocks=1, channels=8)).eval(),
}


def converted(name: str, quantize: str = "full", tail: str = "auto", recipe: str = "best") -> torch.nn.Module:
    torch.manual_seed(0)
    config = ConvertConfig(quantize=quantize, tail=tail, recipe=recipe, steps=0, batch=3, bit_aware_clipping=False)
    return convert_model(FLOATS[name](), [images((0.02, 0.5, 1.0), (16, 18))], config).to(DEVICE)


CASES = [
    ("edsr", "full", "staged", "paper"), ("edsr", "body", "auto", "best"), ("edsr_x4", "full", "auto", "best"),
    ("rdn", "full", "staged", "paper"), ("rdn", "body", "auto", "paper"), ("rdn_odd", "full", "staged", "paper"),
    ("srresnet", "full", "auto", "paper"), ("srresnet", "body", "auto", "paper"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_network_equals_the_reference(case: tuple[str, ...]) -> None:
    model, x = converted(*case), images().to(DEVICE)
    model.set_backend("reference")
    offsets = model.image_offsets(x)
    assert len(set(offsets.tolist())) > 1  # mixed bits in one batch
    want = model(x)
    model.set_backend("triton")
    assert model.packed_codes == (case[0] != "rdn_odd")
    assert torch.equal(model.image_offsets(x), offsets)
    got = model(x)
    assert torch.equal(got, want)  # the float convolutions of "body" are torch's in both, on equal inputs
    if case[2] == "staged":
        assert torch.equal(model(x[1:]), got[1:])


@pytest.mark.skipif(not interpreting(), reason="the CUDA library runs on the CPU here, under its own runtime")
@pytest.mark.parametrize("first", ["cuda", "triton"])
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[3]], ids="-".join)
def test_a_network_of_both_gpu_backends_equals_the_reference(
    case: tuple[str, ...], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the registry mixes them: convolutions in turn on one and on the other, everything else on the first."""
    from cuda_calls import cuda_on_host

    model, x = converted(*case), images()
    model.set_backend("reference")
    want = model(x)
    turns = itertools.cycle(("cuda", "triton"))
    monkeypatch.setattr(network, "choose", lambda problem, backend: Choice(first if problem.conv is None else next(turns)))
    with cuda_on_host():
        model.set_backend("auto")
        assert {conv.backend for conv in model.convs()} == {"cuda", "triton"} and model.packed_codes
        assert torch.equal(model(x), want)


def test_images_too_small_for_the_collapsed_tail_take_the_staged_one() -> None:
    model, x = converted("edsr", recipe="paper"), images((0.5,), (4, 9)).to(DEVICE)
    model.set_backend("reference")
    want = model(x)
    model.set_backend("triton")
    assert torch.equal(model(x), want)


def test_fixed_bits_and_running_thresholds() -> None:
    model, x = converted("edsr", tail="staged", recipe="paper"), images().to(DEVICE)
    for prepare in (lambda: model.set_bits(3), lambda: (model.set_bits("auto"), model.set_running_thresholds(0.1))):
        outputs = []
        for backend in ("reference", "triton"):
            model.set_running_thresholds(0)
            model.set_backend(backend)
            prepare()
            outputs.append(model(x))
        assert torch.equal(*outputs)


@pytest.mark.parametrize("momentum", [0.0, 0.1], ids=["fixed", "running"])
def test_a_network_compiles_into_one_graph(momentum: float) -> None:
    model, x = converted("edsr", tail="staged", recipe="paper"), images().to(DEVICE)
    model.set_backend("triton")
    model.set_running_thresholds(momentum)
    want, left = model(x), model.running_thresholds
    model.set_running_thresholds(0)
    model.set_running_thresholds(momentum)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want)
    assert model.running_thresholds == left


# ---- what only a GPU can show


@on_gpu
@pytest.mark.parametrize("case", CASES[:4], ids="-".join)
def test_a_captured_forward_equals_the_plain_one(case: tuple[str, ...]) -> None:
    model = converted(*case)
    model.set_backend("triton")
    x = images(size=(24, 30)).to(DEVICE)
    want = [model(image) for image in (x, x.flip(0), x[:, :, :20])]
    model.set_backend("triton", graph=True)
    for _ in range(2):
        got = [model(image) for image in (x, x.flip(0), x[:, :, :20])]  # outputs of earlier replays must survive later ones
        assert all(map(torch.equal, got, want))
    model.set_bits(3)
    model.set_backend("triton", graph=False)
    want = model(x)
    model.set_backend("triton", graph=True)
    assert torch.equal(model(x), want)


@on_gpu
@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_a_compiled_forward_follows_its_thresholds(mode: str) -> None:
    """max-autotune replays CUDA graphs of its own: the thresholds must move in each replay."""
    model = converted("edsr", tail="staged", recipe="paper")
    model.set_backend("triton")
    model.set_running_thresholds(0.1)
    x = images().to(DEVICE)
    want = [(model(x * contrast).clone(), model.running_thresholds) for contrast in (1.0, 0.3, 0.6, 1.0)]
    model.set_running_thresholds(0)
    model.set_running_thresholds(0.1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for contrast, (y, thresholds) in zip((1.0, 0.3, 0.6, 1.0), want, strict=True):
        assert torch.equal(compiled(x * contrast), y)
        assert model.running_thresholds == pytest.approx(thresholds, rel=1e-12)  # Inductor may fuse a multiply-add in float64


@on_gpu
def test_no_forward_waits_for_the_device() -> None:
    model, x = converted("edsr"), images().to(DEVICE)
    model.set_backend("triton")
    want = model(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = model(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got, want)


@on_gpu
def test_a_captured_layer_follows_its_depths() -> None:
    instance = placed(ConvProblem("captured", 20, 30, 6, 9, bits=(4, 2), residual=True))
    arguments = place(Region(own=(1, 2), passed=(2, 2), pass_reach=1), 2, 20, 30)
    depth, y = arguments["depth"], torch.full((2, 20, 30, 9), -1e9, device=DEVICE)

    def run(backend: str, into: torch.Tensor) -> None:
        ops.conv2d_out(**settings_of(instance) | arguments | {"y": into, "backend": backend})

    instance.layer.set_backend("triton", 1)
    run("triton", y)  # which compiles it
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            run("triton", y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for others in (depth.flip(1), torch.zeros_like(depth), depth.flip(0)):
        depth.copy_(others.clone())
        want = torch.full_like(y, -1e9)
        y.copy_(want)
        graph.replay()
        run("reference", want)
        assert torch.equal(y, want)


@on_gpu
def test_streams_do_not_share_buffers() -> None:
    model, x = converted("edsr"), images(size=(64, 70)).to(DEVICE)
    model.set_backend("triton")
    want = [model(image[None]) for image in x]
    streams = [torch.cuda.Stream() for _ in x]
    torch.cuda.synchronize()
    got: list[torch.Tensor] = []
    for image, stream in zip(x, streams, strict=True):
        with torch.cuda.stream(stream):
            got.append(model(image[None]))
    torch.cuda.synchronize()
    assert all(map(torch.equal, got, want))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_runs_on_the_device_that_holds_it() -> None:
    model, x = converted("edsr"), images()
    want = model.to("cuda:0")(x.to("cuda:0"))
    assert torch.equal(model.to("cuda:1")(x.to("cuda:1")).cpu(), want.cpu())
    with pytest.raises(RuntimeError, match="must be on the device of x, cuda:0"):
        model(x.to("cuda:0"))
