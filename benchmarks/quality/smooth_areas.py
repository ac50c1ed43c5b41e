"""Interpolation beside a model of few bits, by how much a picture bends.

    python benchmarks/quality/smooth_areas.py FOLDER [--model M]

PSNR in dB of the interpolation, of the network and of what `adabm upscale` makes of both, to the network's float form, over the
pixels of the PNG pictures of FOLDER, which are taken as they are. "bends" is the largest second difference within two pixels, in
levels.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from adabm_kernels.images import read_image
from adabm_kernels.models import load_model
from adabm_kernels.upscale import upscale
from adabm_kernels.upscaling.smooth import REACH, bends, enlarge, phases, rules

CLASSES = (0, 2, 4, 8, 12, 16, 24, 32, 48, 510)
NEAR = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="edsr_x4_w4a4")
    parser.add_argument("--side", type=int, default=256, help="of the part of each picture that is taken, from its top left")
    parser.add_argument("--every", type=int, default=1, help="take only every so many pictures")
    args = parser.parse_args()
    model = load_model(args.model)
    float_model, scale = model.float_model(), model.scale
    counts, errors, seconds = np.zeros(len(CLASSES)), np.zeros((len(CLASSES), 3)), [0.0, 0.0]
    for path in sorted(args.folder.glob("*.png"))[:: args.every]:
        rgb = read_image(path)[: args.side, : args.side]
        with torch.no_grad():
            want = float_model(torch.from_numpy(rgb.transpose(2, 0, 1).copy())[None].float())
        want = want[0].permute(1, 2, 0).clamp(0, 255).numpy()
        around = np.pad(rgb, ((REACH, REACH), (REACH, REACH), (0, 0)), mode="edge")
        outputs = [np.clip(enlarge(around, scale, phases(scale, "cubic")), 0, 255)]
        for i, smooth in enumerate(("network", "interpolate")):
            start = time.perf_counter()
            outputs.append(upscale(rgb, model, smooth=smooth).astype(np.float32))
            seconds[i] += time.perf_counter() - start
        bend = np.pad(bends(rgb, 1), NEAR, mode="edge")
        bend = sliding_window_view(bend, (2 * NEAR + 1, 2 * NEAR + 1)).max((2, 3))
        which = np.searchsorted(CLASSES, bend)
        counts += np.bincount(which.ravel(), minlength=len(CLASSES))
        for i, output in enumerate(outputs):
            error = ((output - want) ** 2).mean(2).reshape(len(rgb), scale, -1, scale).mean((1, 3))
            errors[:, i] += np.bincount(which.ravel(), error.ravel(), len(CLASSES))
    rule, _ = rules(min(model.config.weight_bits, model.config.act_bits))
    print(f"{args.model}: interpolated up to {rule.smooth}, the network's from {rule.rough} on; time {seconds[1] / seconds[0]:.2f}")
    print("| bends by at most | share | interpolation | network | both, as mixed |\n|---|---|---|---|---|")
    for name, count, error in [*zip(CLASSES, counts, errors, strict=True), ("all", counts.sum(), errors.sum(0))]:
        if count:
            print(f"| {name} | {count / counts.sum():.1%} | " + " | ".join(f"{_db(e / count):.1f}" for e in error) + " |")


def _db(error: float) -> float:
    return 10 * np.log10(255**2 / error)


if __name__ == "__main__":
    main()
