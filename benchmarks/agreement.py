"""How closely integer kernels, the float32 simulation and the same simulation in float64 agree on whole pictures.

    python benchmarks/agreement.py [--weight-bits 4 --act-bits 4]

Prints a Markdown table over Set5 x4: PSNR between each pair of outputs, and the PSNR-Y of each against the ground truth.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

from adabm_kernels import ConvertConfig, convert_model  # noqa: E402
from adabm_kernels.calibrate import calibrate  # noqa: E402
from adabm_kernels.metrics import psnr, psnr_y  # noqa: E402
from adabm_kernels.networks.checkpoints import load_state  # noqa: E402
from adabm_kernels.resize import imresize  # noqa: E402
from adabm_kernels.simulate import SimulatedNetwork  # noqa: E402


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float()


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def picture(y: torch.Tensor) -> np.ndarray:
    return y[0].permute(1, 2, 0).clamp(0, 255).round().to(torch.uint8).numpy()


def simulate(weights: Path, config: ConvertConfig, original: bool) -> SimulatedNetwork:
    state = load_state(weights)
    if original:
        return SimulatedNetwork.from_state(state, config)
    images = [tensor(imresize(read(path), 0.5)) for path in sorted((SHARED / "images" / "calib").glob("*.png"))]
    return calibrate(state, images, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=SHARED / "weights" / "edsr_baseline_x4.pt")
    parser.add_argument("--weight-bits", type=int, default=4)
    parser.add_argument("--act-bits", type=int, default=4)
    parser.add_argument("--original", action="store_true", help="the weights are a calibrated state dict of the authors' code")
    args = parser.parse_args()
    if not SHARED.exists():
        sys.exit("agreement.py: the images and weights it measures on are not there")
    config = ConvertConfig(weight_bits=args.weight_bits, act_bits=args.act_bits, tail="staged")
    simulation = simulate(args.weights, config, args.original)
    exact, integer = copy.deepcopy(simulation).double(), convert_model(simulation)
    print("| image | mean bits | int : sim32 | int : sim64 | sim32 : sim64 | int PSNR-Y | sim32 PSNR-Y | sim64 PSNR-Y |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for path in sorted((SHARED / "images" / "set5" / "LR_x4").glob("*.png")):
        x, hr = tensor(read(path)), read(SHARED / "images" / "set5" / "HR" / path.name)
        with torch.no_grad():
            outs = {"int": integer(x), "sim32": simulation(x), "sim64": exact(x.double())}
        assert torch.equal(integer.mean_bits(x), simulation.mean_bits(x))
        pairs = (("int", "sim32"), ("int", "sim64"), ("sim32", "sim64"))
        between = [psnr(outs[a].double().clamp(0, 255), outs[b].double().clamp(0, 255), 255) for a, b in pairs]
        h, w = (4 * side for side in x.shape[2:])
        truth = [psnr_y(picture(out), hr[:h, :w], 4) for out in outs.values()]
        rows.append([float(integer.mean_bits(x)), *between, *truth])
        print(f"| {path.stem} | " + " | ".join(f"{value:.2f}" for value in rows[-1]) + " |")
    print("| mean | " + " | ".join(f"{value:.3f}" for value in np.mean(rows, 0)) + " |")


if __name__ == "__main__":
    main()
