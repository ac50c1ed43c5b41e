"""Calibration of Real-ESRGAN's networks with small crops, and how far the result lies from the float network.

    python benchmarks/quality/sharpened.py WEIGHTS PHOTOS LOW --weight-bits 6 --act-bits 8 --fixed --steps 300 -o M.safetensors

PHOTOS: a folder of photographs, which are shrunk four times. LOW: a folder of low-resolution pictures that are not calibrated on;
drawings made by the program are measured beside them. `--equalize off` leaves out the factors on channels and the joint rounding of
weights. Prints the PSNR of the integer network, clamped to 0..255, to the float network for each picture, and its mean bits.
`--study` instead calibrates step by step, without fine-tuning and with fixed bits, and prints after each step the mean PSNR of the
simulation with weights rounded alone, codes alone, and both.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adabm_kernels import convert_model, save
from adabm_kernels.calibrate import PROBED_IMAGES, SEARCH_IMAGES, calibrate
from adabm_kernels.calibration.equalize import equalize
from adabm_kernels.calibration.made import drawn_pictures
from adabm_kernels.calibration.ranges import Observer, search_ranges, set_weight_ranges
from adabm_kernels.calibration.rounding import fit_rounding
from adabm_kernels.config import BestTuning, ConvertConfig
from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.images import read_image
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.simulate import SimulatedNetwork

SHRINK = 4
DRAWINGS, SIDE, SEED = 4, 64, 77  # another seed than that of calibration's own drawings


def picture(path: Path, shrink: int = 1) -> torch.Tensor:
    """Reads a picture, shrunk by a factor, as float32 [1, 3, h, w] in 0..255."""
    rgb = read_image(path)
    if shrink > 1:
        height, width = (side // shrink * shrink for side in rgb.shape[:2])
        rgb = imresize(rgb[:height, :width], 1 / shrink)
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("low", type=Path)
    parser.add_argument("--weight-bits", type=int, default=6)
    parser.add_argument("--act-bits", type=int, default=6)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--count", type=int, default=40, help="photographs")
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--crop", type=int, default=32, help="side of the crops of fine-tuning")
    parser.add_argument("--lr-weight", type=float)
    parser.add_argument("--equalize", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--fixed", action="store_true", help="no bits by image and layer, and up to 8")
    parser.add_argument("--target-bits", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--study", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    photos = [picture(path, SHRINK) for path in sorted(args.photos.glob("*.png"))[: args.count]]
    config = ConvertConfig(
        args.weight_bits,
        args.act_bits,
        steps=args.steps,
        adaptive=not args.fixed,
        patch=args.patch,
        tuning=BestTuning(patch=args.crop, **({} if args.lr_weight is None else {"lr_weight": args.lr_weight})),
        equalize=args.equalize,
        target_bits=args.target_bits,
    )
    low = {path.stem: picture(path) for path in sorted(args.low.glob("*.png"))}
    low |= {f"drawing {i}": x[None] for i, x in enumerate(drawn_pictures(DRAWINGS, SIDE, SEED))}
    if args.study:
        study(load_state(args.weights), photos, replace(config, adaptive=False, steps=0), low)
        return
    start = said = time.perf_counter()

    def progress(done: int, total: int, stage: str) -> None:
        nonlocal said
        if time.perf_counter() - said > 60:
            said = time.perf_counter()
            print(f"{done} of {total}, {stage}, {said - start:.0f} s", flush=True)

    model = convert_model(calibrate(load_state(args.weights), photos, config, progress, check=False))
    if args.output:
        save(model, args.output)
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    plain, found, bits = model.float_model(), [], []
    with torch.no_grad():
        for name, x in low.items():
            found.append(psnr(model(x), plain(x)))
            bits.append(float(model.mean_bits(x)))
            print(f"{name:14} {found[-1]:6.2f} dB  {bits[-1]:.2f} bits", flush=True)
    print(f"{'mean':14} {sum(found) / len(found):6.2f} dB  {sum(bits) / len(bits):.2f} bits")


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return 10 * math.log10(255**2 / float((a.clamp(0, 255) - b.clamp(0, 255)).square().mean()))


STUDIED = ("ranges observed", "ranges searched", "factors on channels", "weights rounded together")


@torch.no_grad()
def study(state: Mapping[str, Any], photos: list[torch.Tensor], config: ConvertConfig, low: dict[str, torch.Tensor]) -> None:
    """Takes the steps of STUDIED one after the other, on as many images as `calibrate` looks at, and prints the figures after
    each."""
    photos, side = photos[: SEARCH_IMAGES - SEARCH_IMAGES // 3], config.patch
    crops = [x[:, :, :side, :side] for x in photos]
    drawn = list(torch.stack(drawn_pictures(SEARCH_IMAGES // 3, side, config.seed)).split(1))
    batch = torch.cat([*crops, *drawn]).contiguous(memory_format=torch.channels_last)
    probed = torch.cat([*crops[: PROBED_IMAGES - PROBED_IMAGES // 3], *drawn[: PROBED_IMAGES // 3]])
    for number, name in enumerate(STUDIED):
        has_factors = number >= STUDIED.index("factors on channels")
        model = SimulatedNetwork.from_float(state, replace(config, equalize="on" if has_factors else "off"))
        model.requires_grad_(False)
        if has_factors:
            equalize(model, probed, torch.Generator().manual_seed(config.seed))
        set_weight_ranges(model)
        observer = Observer(model)
        observer.update(batch)
        observer.store()
        if number >= STUDIED.index("ranges searched"):
            search_ranges(model, batch)
        with rounding(model, weights=False):
            codes = distance(model, low)
        if name == "weights rounded together":
            fit_rounding(model, batch, torch.Generator().manual_seed(config.seed))
        with rounding(model, codes=False):
            weights = distance(model, low)
        print(f"{name:24} weights {weights:6.2f} dB  codes {codes:6.2f} dB  both {distance(model, low):6.2f} dB", flush=True)


@contextmanager
def rounding(model: SimulatedNetwork, weights: bool = True, codes: bool = True) -> Iterator[None]:
    """Inside the context weights, or the inputs of convolutions, are rounded only where the argument of this name is true."""
    for conv in model.quantized_convs():
        if not weights:
            conv.quantized_weight = partial(getattr, conv, "weight")  # type: ignore[method-assign]
        if not codes:
            conv.rounded_input = lambda x, _: x  # type: ignore[method-assign]
    yield
    for conv in model.quantized_convs():
        conv.__dict__.pop("quantized_weight", None)
        conv.__dict__.pop("rounded_input", None)


def distance(model: SimulatedNetwork, low: dict[str, torch.Tensor]) -> float:
    """The mean PSNR in dB over the pictures."""
    found = []
    for x in low.values():
        with model.float_mode():
            want = model(x)
        found.append(psnr(model(x), want))
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
