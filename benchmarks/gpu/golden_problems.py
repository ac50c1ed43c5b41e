"""Golden problems: calls of every family of CUDA kernels with the reference's answers, made beforehand for a machine with a card.

    python benchmarks/gpu/golden_problems.py build/on_card/golden [--only NAME]

Each becomes a small .npz that golden_run.py runs without torch and compares. Images have tiles inside and along every border, of
32x16 pixels and smaller ones. To add a problem, add it to PROBLEMS.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card_memory import POISON
from golden_run import Golden

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from problems import ConvInstance, ConvProblem, bell_codes, instantiate, set_weights  # noqa: E402

from adabm_kernels import native, ops  # noqa: E402
from adabm_kernels.backends import reference, structs  # noqa: E402
from adabm_kernels.backends.call import EVERYWHERE, FEATURES, Conv, DepthRule, Outputs, Place, Quantization  # noqa: E402
from adabm_kernels.quantize import act_grid, packed_pitch, padded_channels, to_fixed  # noqa: E402
from adabm_kernels.regions import Depths, Region, tiles_of  # noqa: E402

HEIGHT, WIDTH = 35, 70  # the size of images: a tile of 32x16 pixels inside, and a part of a tile at every border
Tensors = dict[str, torch.Tensor | None]


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An output with the contents that golden_run.py gives it before the call."""
    size = torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.full(size.nbytes, POISON, np.uint8)).view(dtype).view(shape).clone()


def arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items() if tensor is not None}


def described(struct: ctypes.Structure, tensors: Tensors) -> dict[str, Any]:
    """The fields of a struct that are not 0, with the names of tensors in place of pointers to them."""
    names = {tensor.data_ptr(): name for name, tensor in tensors.items() if tensor is not None}
    fields: dict[str, Any] = {}
    for name, kind in struct._fields_:
        value = getattr(struct, name)
        if isinstance(value, ctypes.Structure):
            fields[name] = described(value, tensors)
        elif value and name not in ("struct_bytes", "packed_bytes"):
            fields[name] = names[value] if kind is ctypes.c_void_p else value
    return fields


def keep_beyond(codes: torch.Tensor, bits: torch.Tensor) -> None:
    """Puts poison behind the codes of each image of a packed buffer, where kernels write nothing."""
    n, h, w, c4 = codes.shape
    for image, width in enumerate(bits.tolist()):
        codes[image].view(-1)[h * w * packed_pitch(c4, width) :] = POISON


def instance_of(problem: ConvProblem, seed: int, signed: bool, fraction: int | None = None) -> ConvInstance:
    """The problem with data that compresses well. signed: whether weights are on the signed grid, with the distribution that
    calibration gives. fraction: the fraction of a 16-bit residual, None for float32."""
    instance = instantiate(problem, seed)
    if signed:
        set_weights(instance, bell_codes(problem.weight_bits, problem.outputs, problem.channels), "signed", "auto")
    if instance.residual is not None:
        coarse = (instance.residual * 32).round() / 32
        instance.residual = coarse if fraction is None else to_fixed(coarse, fraction)
    return instance


def conv_of(instance: ConvInstance, packed: bool, place: Place, fraction: int | None = None) -> Conv:
    """The arguments that backends take, with a `packed` that stands for the weights. fraction: the fraction of 16-bit features,
    None for float32."""
    layer = instance.layer
    x_q = reference.pack_codes(instance.x_q, instance.bits) if packed else instance.x_q
    tables = (layer.weight, torch.zeros(1, dtype=torch.uint8), layer.alpha, layer.beta, layer.slope)
    codes = (instance.residual, instance.out_grid, instance.out_bits)
    features = {} if fraction is None else {"features": "int16", "fraction": fraction}
    return Conv(x_q, instance.bits, *tables, *codes, layer.box_filter, layer.activation, layer.shuffle, place=place, **features)


def outputs_of(conv: Conv, which: str) -> dict[str, torch.Tensor]:
    """Poisoned outputs. which: the letters of those that are wanted: y, q (y_q), a (y_acc) and i (y_image)."""
    n, h, w, _ = conv.x_q.shape
    channels = conv.weight.shape[-4] // conv.shuffle**2
    size = (n, h * conv.shuffle, w * conv.shuffle)
    forms = {
        "y": ("y", channels, FEATURES[conv.features]), "q": ("y_q", padded_channels(channels), torch.uint8),
        "a": ("y_acc", channels, torch.int32), "i": ("y_image", channels, torch.uint8),
    }  # fmt: skip
    return {forms[key][0]: poisoned((*size, forms[key][1]), forms[key][2]) for key in which}


def compute(conv: Conv, packed: bool, outputs: dict[str, torch.Tensor]) -> None:
    """Computes the reference's answers into the outputs."""
    conv = replace(conv, packed_codes=packed)
    if "y" in outputs or "y_q" in outputs:
        reference.conv2d_out(conv, Outputs(outputs.get("y"), outputs.get("y_q")))
    if packed and "y_q" in outputs:
        keep_beyond(outputs["y_q"], conv.out_bits)
    if "y_acc" in outputs:
        reference.conv2d_out(replace(conv, residual=None), Outputs(outputs["y_acc"]))
    if "y_image" in outputs:
        reference.conv2d_out(conv, Outputs(outputs["y_image"]))


def fields_of(conv: Conv, packing: int, outputs: dict[str, torch.Tensor], names: Tensors, **settings: Any) -> dict[str, Any]:
    """The fields of the struct of the call. names: every tensor in it by its name."""
    to = Outputs(outputs.get("y"), outputs.get("y_q"))
    args, _held = structs.conv2d_args(conv, to, packed_codes=packing, border_kernels=conv.weight.dim() == 6, **settings)
    for name in ("y_acc", "y_image"):
        setattr(args, name, structs.pointer(outputs.get(name)))
    fields = described(args, names)
    return fields | {"packed": next(name for name, tensor in names.items() if tensor is conv.weight)}


def tensors_of(conv: Conv, suffix: str = "") -> Tensors:
    """The tensors of a convolution by the names that the file has for them."""
    found = {name: tensor for name, tensor in conv.tensors.items() if name != "packed"}
    return {f"{name}{suffix}": tensor for name, tensor in found.items()} | {f"packed{suffix}": conv.packed}


def inputs_of(*named: Tensors) -> dict[str, np.ndarray]:
    return {name: array for tensors in named for name, array in arrays(tensors).items() if not name.startswith("packed")}


def depths(images: int, height: int, width: int) -> Place:
    """A map with tiles of every kind, and a region with pixels that are computed, passed on and left out."""
    tile, top, left = 8, 3, 5
    g = torch.Generator().manual_seed(0)
    values = torch.randint(0, 4, (images, tiles_of(height, tile, top), tiles_of(width, tile, left)), dtype=torch.uint8, generator=g)
    region = Region(own=(2, 255), near=(1, 255), reach=2, passed=(3, 255), pass_reach=3)
    return Place(values, tuple(region.numbers(Depths(values, tile, top, left))))


def convolution(
    family: str, problem: ConvProblem, outputs: str = "yq", *, packed: bool = False, signed: bool = True, region: bool = False,
    configs: str = "", by_class: bool = False, in_place: bool = False, fraction: int | None = None,
) -> Golden:  # fmt: skip
    """A problem with one convolution.

    outputs: the same letters as in `outputs_of`. packed: whether codes in and out are packed. by_class: whether every border class
    has a kernel. in_place: whether y is the residual. fraction: the fraction of 16-bit features, None for float32. The other
    arguments are those of `instance_of` and `Golden`.
    """
    instance = instance_of(problem, 0, signed and problem.kernel == 3 and not by_class, fraction)
    if by_class:
        k, r, s, c = instance.layer.weight.shape
        g, most = torch.Generator().manual_seed(5), 2 ** (problem.weight_bits - 1)
        instance.layer.weight = torch.randint(-most, most, (r, s, k, r, s, c), generator=g).to(torch.int8)
        instance.layer.box_filter, instance.layer.beta = False, torch.randn(r, s, k, generator=g)
    place = depths(len(problem.bits), problem.height, problem.width) if region else EVERYWHERE
    conv = conv_of(instance, packed, place, fraction)
    made, started = outputs_of(conv, outputs), {}
    if in_place:
        made["y"] = started["y"] = conv.residual
        started = arrays({"y": conv.residual.clone()})
        conv = replace(conv, residual=made["y"])
    names = tensors_of(conv) | made  # where y is the residual, both pointers get the name y
    packing = (native.PACKED_X | (native.PACKED_Y if "q" in outputs else 0)) if packed else 0
    fields = fields_of(conv, packing, made, names)
    compute(replace(conv, residual=conv.residual.clone() if in_place else conv.residual), packed, made)
    inputs = inputs_of(tensors_of(replace(conv, residual=None) if in_place else conv))
    return Golden(
        family,
        "adabm_conv2d_cuda",
        [("Conv2dArgs", fields)],
        inputs,
        arrays(made),
        started,
        major=9 if configs else 0,
        configs=configs,
    )


def residual_block(
    problem: ConvProblem, outputs: str = "yq", *, packed: bool = False, region: bool = False, configs: str = "resblock",
    fraction: int | None = None,
) -> Golden:  # fmt: skip
    """A problem with a residual block. problem: the first convolution, whose out_bits are those of the codes between the two. The
    other arguments are the same as for `convolution`."""
    first = instance_of(replace(problem, residual=False), 0, True)
    between = tuple(first.out_bits.tolist())
    second = instance_of(replace(problem, bits=between, out_bits=problem.bits, activation="none", residual=True), 1, True, fraction)
    place = depths(len(problem.bits), problem.height, problem.width) if region else EVERYWHERE
    a, b = conv_of(first, packed, EVERYWHERE), conv_of(second, False, place, fraction)
    inner = torch.empty_like(b.x_q)
    middle = a if not region else replace(a, place=Place(place.depth, (*place.region[:8], 0, 255, 0)))
    unpacked = replace(middle, x_q=first.x_q)
    reference.conv2d_out(unpacked, Outputs(y_q=inner.zero_()))  # between the convolutions, passed-on pixels are the codes of 0
    b = replace(b, x_q=inner)
    made = outputs_of(b, outputs)
    names = tensors_of(b, "2") | tensors_of(a) | made
    fields = [fields_of(a, native.PACKED_X if packed else 0, {}, names)]
    fields.append(fields_of(b, native.PACKED_Y if packed and "q" in outputs else 0, made, names))
    fields[1] = {name: value for name, value in fields[1].items() if name != "x_q"} | {"x_bits": fields[0]["out_bits"]}
    compute_second(b, packed, made)
    inputs = inputs_of(tensors_of(a), {n: t for n, t in tensors_of(b, "2").items() if n not in ("x_q2", "x_bits2")})
    structs_of = [("Conv2dArgs", each) for each in fields]
    return Golden("resblock", "adabm_resblock_cuda", structs_of, inputs, arrays(made), major=9, configs=configs)


def compute_second(conv: Conv, packed: bool, outputs: dict[str, torch.Tensor]) -> None:
    """Computes the reference's answers of the second convolution, whose input codes are not packed yet."""
    if packed:
        conv = replace(conv, x_q=reference.pack_codes(conv.x_q, conv.x_bits))
    compute(conv, packed, outputs)


def quantisation(
    channels: int,
    *,
    packed: bool = False,
    shift: bool = False,
    region: bool = False,
    strided: bool = False,
    fraction: int | None = None,
) -> Golden:
    """A problem with a quantisation. strided: whether the channels of a pixel lie together. fraction: the fraction of 16-bit
    features, None for float32."""
    g = torch.Generator().manual_seed(channels)
    bits = torch.tensor([2, 5, 8], dtype=torch.int32)
    height, width = 18, 37
    x = (torch.randn(3, height, width, channels, generator=g) * 32).round() / 32
    x = x if fraction is None else to_fixed(x, fraction)
    x = x.permute(0, 3, 1, 2) if strided else x.permute(0, 3, 1, 2).contiguous()
    grid, offset = act_grid(-1.5, 2.25), torch.randn(channels, generator=g) if shift else None
    y_q = poisoned((3, height, width, padded_channels(channels)), torch.uint8)
    place = depths(3, height, width) if region else EVERYWHERE
    if region:
        place = replace(place, region=(*place.region[:8], 1, 0, 0))  # a quantisation passes no pixels on
    read = Quantization(x, offset, grid, bits, fraction or 0, packed, place=place)
    settings = {"packed_codes": native.PACKED_Y} if packed else {"y_channels": y_q.shape[3]}
    args, _held = structs.quantize_args(read, y_q, **settings)
    names: Tensors = {"x": x, "shift": offset, "grid": grid, "bits": bits, "y_q": y_q, "depth": place.depth}
    fields = described(args, names)
    reference.quantize_out(read, y_q)
    if packed:
        keep_beyond(y_q, bits)
    memory = x.permute(0, 2, 3, 1) if strided else x
    inputs = arrays(names | {"x": memory, "y_q": None})
    return Golden("quantize", "adabm_quantize_cuda", [("QuantizeArgs", fields)], inputs, arrays({"y_q": y_q}))


def quantisation_many(targets: int, channels: int = 64) -> Golden:
    """A problem that quantises the same features, channels last, on several grids and to several bits."""
    g = torch.Generator().manual_seed(1)
    x = (torch.randn(2, channels, 18, 37, generator=g) * 32).round() / 32
    x = x.contiguous(memory_format=torch.channels_last)
    names: Tensors = {"x": x}
    held, wanted, made = [], {}, []
    for i in range(targets):
        grid, bits = act_grid(-1.0 - i, 2.0), torch.tensor([2 + i % 7, 8 - i % 7], dtype=torch.int32)
        y_q = poisoned((2, 18, 37, channels), torch.uint8)
        names |= {f"grid{i}": grid, f"bits{i}": bits, f"y_q{i}": y_q}
        read = Quantization(x, None, grid, bits)
        args, kept = structs.quantize_args(read, y_q, y_channels=channels)
        held.append(kept)
        made.append(("QuantizeArgs", described(args, names)))
        reference.quantize_out(read, y_q)
        wanted[f"y_q{i}"] = y_q
    inputs = arrays({name: tensor for name, tensor in names.items() if name not in wanted} | {"x": x.permute(0, 2, 3, 1)})
    return Golden("quantize", "adabm_quantize_many_cuda", made, inputs, arrays(wanted))


def tile_depths() -> Golden:
    g = torch.Generator().manual_seed(2)
    x_q = torch.randint(0, 256, (3, 50, 60, 4), dtype=torch.uint8, generator=g)
    x_q //= torch.tensor([1, 8, 40], dtype=torch.uint8).view(3, 1, 1, 1)
    tile, top, left, threshold, deep = 24, 3, 7, 30, 16
    depth = poisoned((3, tiles_of(50, tile, top), tiles_of(60, tile, left)), torch.uint8)
    rule = DepthRule(tile, top, left, threshold, deep)
    fields = described(structs.depths_args(x_q, rule, depth), {"x_q": x_q, "depth": depth})
    reference.tile_depths_out(x_q, rule, depth)
    return Golden("depths", "adabm_depths_cuda", [("DepthsArgs", fields)], arrays({"x_q": x_q}), arrays({"depth": depth}))


def image_bits() -> Golden:
    """A problem about the bits of images alone. The sum of the image measure may be rounded in another way, and its images lie far
    from the thresholds."""
    g = torch.Generator().manual_seed(3)
    x = (torch.rand(3, 3, 65, 130, generator=g) * 255).round() * torch.tensor([0.02, 0.4, 1.0]).view(3, 1, 1, 1)
    measure = ops.image_measure(x, backend="reference")
    lower, upper = ((measure[i] + measure[i + 1]).reshape(()) / 2 for i in range(2))
    rules = torch.tensor([[4, 1], [8, 0], [2, 1], [6, 1]], dtype=torch.int32)
    bits = poisoned((4, 3), torch.int32)
    names: Tensors = {"x": x, "lower": lower, "upper": upper, "rules": rules, "bits": bits}
    stride_n, stride_c, stride_h, stride_w = x.stride()
    args = native.ImageBitsArgs(
        batch=3, height=65, width=130, stride_n=stride_n, stride_c=stride_c, stride_h=stride_h, stride_w=stride_w, layers=4,
        **{name: tensor.data_ptr() for name, tensor in names.items()},
    )  # fmt: skip
    fields = described(args, names) | {"workspace": "workspace", "workspace_bytes": 3 * native.MEASURE_BYTES}
    want = ops.layer_bits(x, lower, upper, rules, backend="reference")
    scratch = {"workspace": 3 * native.MEASURE_BYTES}
    inputs = arrays({name: tensor for name, tensor in names.items() if name != "bits"})
    return Golden(
        "image_bits", "adabm_image_bits_cuda", [("ImageBitsArgs", fields)], inputs, arrays({"bits": want}), scratch=scratch
    )


def body(bits: tuple[int, ...], out_bits: tuple[int, ...] | None = None, **settings: Any) -> ConvProblem:
    """A layer of a network's body, 3x3 from 64 to 64 channels unless `settings` differ."""
    sizes = {"height": HEIGHT, "width": WIDTH, "channels": 64, "outputs": 64} | settings
    return ConvProblem("body", **sizes, bits=bits, out_bits=out_bits)


# Problems by name, the most telling first, which is also the order in which they run. On compute capability 9.0, "resident",
# "staged" and "resblock" are kernels of that architecture, by wgmma. All other kernels, and all kernels on other cards, are those
# of 8.0 and newer.
PROBLEMS: dict[str, Callable[[], Golden]] = {
    "resident_a8": lambda: convolution("resident", body((8,), activation="relu"), "q"),
    "resident_a4_packed": lambda: convolution("resident", body((4,), activation="relu"), "q", packed=True),
    "resblock_a4_packed": lambda: residual_block(body((4,), (5,), activation="relu"), packed=True),
    "resident_residual_a4": lambda: convolution("resident", body((4,), (5,), residual=True), packed=True),
    "resident_residual_a8": lambda: convolution("resident", body((8,), residual=True, height=33), "yq"),
    "resblock_a8": lambda: residual_block(body((8,), activation="relu"), "q"),
    "resident_a2_packed": lambda: convolution("resident", body((2,), (3,), activation="relu"), "q", packed=True),
    "resident_odd_weights": lambda: convolution("resident", body((6,), (4,)), "q", signed=False),
    "resident_sums": lambda: convolution("resident", body((3,), activation="prelu", outputs=56), "a"),
    "resident_in_place": lambda: convolution("resident", body((5,), residual=True, outputs=48, height=18), in_place=True),
    "resident_batch": lambda: convolution(
        "resident", body((8, 2, 4, 6), (3, 8, 2, 5), activation="relu", height=20, width=37), "q", packed=True
    ),
    "resident_small": lambda: convolution("resident", body((7,), height=3, width=5), "yq"),
    "resident_configurations": lambda: convolution(
        "resident", body((8,), (4,), activation="relu", height=33, width=133), "q", configs="resident"
    ),
    "resblock_batch": lambda: residual_block(body((8, 2), (3, 6), activation="prelu", height=20, width=37), "q"),
    "resblock_few_channels": lambda: residual_block(body((4,), channels=36, outputs=36, activation="relu"), "q"),
    "staged_a4": lambda: convolution("staged", body((4,), channels=128, activation="relu"), "q", packed=True),
    "staged_a8_residual": lambda: convolution("staged", body((8,), (6,), channels=96, residual=True), "q"),
    "staged_one_by_one": lambda: convolution("staged", body((5,), channels=576, kernel=1, height=18, width=37), "q", packed=True),
    "staged_shuffle": lambda: convolution("staged", body((8,), outputs=256, shuffle=2, height=18, width=37), "q"),
    "staged_ones": lambda: convolution("staged", body((8,), weight_bits=8), "q", signed=False),
    "staged_configurations": lambda: convolution("staged", body((8,), (4,), channels=80), "q", configs="staged"),
    "tail_pixels": lambda: convolution(
        "staged",
        body((8,), channels=40, outputs=48, kernel=5, shuffle=4, weight_bits=2, lower=-80.0, upper=140.0),
        "i",
        by_class=True,
    ),
    "tail_floats": lambda: convolution(
        "staged", body((4,), channels=40, outputs=48, kernel=5, shuffle=4, weight_bits=2, height=9, width=11), "y", by_class=True
    ),
    "head": lambda: convolution("sm80", body((8,), (4,), channels=3, weight_bits=8), "q", packed=True, signed=False),
    "nine_by_nine": lambda: convolution("sm80", body((8,), channels=3, kernel=9, weight_bits=8, activation="prelu"), "q"),
    "tail_three": lambda: convolution("sm80", body((8,), outputs=3, weight_bits=8), "y", signed=False),
    "one_by_one": lambda: convolution("sm80", body((4, 8), channels=80, outputs=16, kernel=1, height=18), "yq"),
    "few_outputs": lambda: convolution("sm80", body((4, 8), outputs=32, residual=True), "q", packed=True),
    "region_resident": lambda: convolution("region", body((4,), residual=True), packed=True, region=True),
    "region_staged": lambda: convolution("region", body((8,), channels=96, residual=True), "q", region=True),
    "region_sm80": lambda: convolution("region", body((4,), outputs=32), "y", packed=True, region=True),
    "region_resblock": lambda: residual_block(body((4,), activation="relu"), "q", packed=True, region=True, configs=""),
    "quantize": lambda: quantisation(64, strided=True),
    "quantize_image": lambda: quantisation(3, shift=True),
    "quantize_packed": lambda: quantisation(20, packed=True, strided=True),
    "quantize_region": lambda: quantisation(32, strided=True, region=True),
    "quantize_many": lambda: quantisation_many(3),
    "int16_resident": lambda: convolution("int16", body((4,), (5,), residual=True), packed=True, fraction=8),
    "int16_resblock": lambda: residual_block(body((4,), activation="relu"), packed=True, configs="", fraction=9),
    "int16_codes_alone": lambda: convolution("int16", body((8,), residual=True, height=18), "q", fraction=6),
    "int16_clamped": lambda: convolution("int16", body((8,), (3,), height=18), "yq", fraction=13),
    "int16_in_place": lambda: convolution("int16", body((5,), residual=True, height=18), in_place=True, fraction=8),
    "int16_staged": lambda: convolution("int16", body((8,), channels=96, residual=True, height=18), "yq", fraction=8),
    "int16_sm80": lambda: convolution("int16", body((4, 8), outputs=32, residual=True, height=18), "yq", fraction=8),
    "int16_region": lambda: convolution("int16", body((4,), residual=True), packed=True, region=True, fraction=8),
    "int16_region_resblock": lambda: residual_block(
        body((4,), activation="relu", height=20, width=37), packed=True, region=True, configs="", fraction=8
    ),
    "int16_quantize": lambda: quantisation(64, strided=True, fraction=8),
    "int16_quantize_packed": lambda: quantisation(20, strided=True, packed=True, fraction=5),
    "depths": tile_depths,
    "image_bits": image_bits,
}


def make(folder: Path, only: list[str] | None = None) -> list[Path]:
    """Writes all problems, or the named ones, as folder/NN_NAME.npz, and removes files of earlier problems. Raises ValueError for a
    name that is not in PROBLEMS."""
    unknown = sorted(set(only or ()) - set(PROBLEMS))
    if unknown:
        raise ValueError(f"golden_problems: only must be names of {sorted(PROBLEMS)}, got {unknown}")
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.npz"):
        stale.unlink()
    made = []
    for number, (name, problem) in enumerate(PROBLEMS.items()):
        if not only or name in only:
            made.append(folder / f"{number:02}_{name}.npz")
            problem().save(made[-1])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", metavar="NAME")
    args = parser.parse_args()
    made = make(args.folder, args.only)
    print(f"{len(made)} problems, {sum(path.stat().st_size for path in made) / 1e6:.1f} MB, in {args.folder}")


if __name__ == "__main__":
    main()
