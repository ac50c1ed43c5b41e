"""Calibrate a trained EDSR into the built-in models: W4A4 and W6A6, fully quantised, adaptive, with an exit for easy tiles.

    python training/make_builtin.py --weights edsr.pt --images DIR --out adabm_kernels/assets

The photographs are halved first, so that they have the detail per pixel of a low-resolution image; the exit sees them as they are,
too. --weights may be a built-in model, whose float weights are then taken.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adabm_kernels import ConvertConfig, convert_model, load, save
from adabm_kernels.calibrate import calibrate
from adabm_kernels.config import DEFAULT_STEPS
from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.networks.checkpoints import load_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="float state dict that train_edsr.py wrote, or a model")
    parser.add_argument("--images", type=Path, required=True, help="folder of PNG photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two models")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 6], choices=(4, 6), help="of which models to make")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS["best"], help="of fine-tuning (default: %(default)s)")
    args = parser.parse_args()
    photos = [np.array(Image.open(path).convert("RGB")) for path in sorted(args.images.glob("*.png"))]
    halved = [tensor(imresize(photo, 0.5)) for photo in photos]
    converted = args.weights.suffix == ".safetensors"
    state = load(args.weights).float_state if converted else load_state(args.weights)
    for bits in args.bits:
        config = ConvertConfig(weight_bits=bits, act_bits=bits, steps=args.steps)
        model = convert_model(calibrate(state, halved, config, own_resolution=map(tensor, photos)))
        save(model, args.out / f"edsr_x{model.scale}_w{bits}a{bits}.safetensors")


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float()


if __name__ == "__main__":
    main()
