"""Calibrate a trained EDSR into the built-in models: W4A4 and W6A6, fully quantised, adaptive.

    python training/make_builtin.py --weights edsr.pt --images DIR --out adabm_kernels/assets

The photographs are halved first, so that they have the detail per pixel of a low-resolution image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adabm_kernels import ConvertConfig, convert_model, save
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.resize import imresize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="float state dict that train_edsr.py wrote")
    parser.add_argument("--images", type=Path, required=True, help="folder of PNG photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two models")
    args = parser.parse_args()
    photos = [np.array(Image.open(path).convert("RGB")) for path in sorted(args.images.glob("*.png"))]
    images = [torch.from_numpy(imresize(p, 0.5).transpose(2, 0, 1).copy())[None].float() for p in photos]
    for bits in (4, 6):
        model = convert_model(load_state(args.weights), images, ConvertConfig(weight_bits=bits, act_bits=bits))
        save(model, args.out / f"edsr_x{model.scale}_w{bits}a{bits}.safetensors")


if __name__ == "__main__":
    main()
