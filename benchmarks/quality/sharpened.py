"""Calibration of Real-ESRGAN's networks with small crops, and how far the result lies from the float network.

    python benchmarks/quality/sharpened.py WEIGHTS PHOTOS LOW --weight-bits 6 --act-bits 8 --fixed --steps 300 -o M.safetensors

PHOTOS: a folder of photographs, which are shrunk four times. LOW: a folder of low-resolution pictures that are not calibrated on;
drawings made by the program are measured beside them. `--equalize off` leaves out the factors on channels and the joint rounding of
weights. Prints the PSNR of the integer network, clamped to 0..255, to the float network for each picture, and its mean bits.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch

from adabm_kernels import convert_model, save
from adabm_kernels.calibrate import calibrate
from adabm_kernels.calibration.made import drawn_pictures
from adabm_kernels.config import BestTuning, ConvertConfig
from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.images import read_image
from adabm_kernels.networks.checkpoints import load_state

SHRINK = 4
DRAWINGS, SIDE, SEED = 4, 64, 77  # another seed than that of calibration


def picture(path: Path, shrink: int = 1) -> torch.Tensor:
    """float32 [1, 3, h, w] in 0..255"""
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
    parser.add_argument("--equalize", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--fixed", action="store_true", help="no bits by image and layer, and up to 8")
    parser.add_argument("--target-bits", type=float)
    parser.add_argument("--threads", type=int, default=1)
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
        tuning=BestTuning(patch=args.crop),
        equalize=args.equalize,
        target_bits=args.target_bits,
    )
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
    low = {path.stem: picture(path) for path in sorted(args.low.glob("*.png"))}
    low |= {f"drawing {i}": x[None] for i, x in enumerate(drawn_pictures(DRAWINGS, SIDE, SEED))}
    plain, found, bits = model.float_model(), [], []
    with torch.no_grad():
        for name, x in low.items():
            error = (model(x).clamp(0, 255) - plain(x).clamp(0, 255)).square().mean()
            found.append(10 * math.log10(255**2 / float(error)))
            bits.append(float(model.mean_bits(x)))
            print(f"{name:14} {found[-1]:6.2f} dB  {bits[-1]:.2f} bits", flush=True)
    print(f"{'mean':14} {sum(found) / len(found):6.2f} dB  {sum(bits) / len(bits):.2f} bits")


if __name__ == "__main__":
    main()
