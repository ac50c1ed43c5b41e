"""Train an EDSR on a folder of photographs: low-resolution inputs are made from them by MATLAB-exact bicubic downscaling.

    python training/train_edsr.py --images DIR --out edsr.pt

The built-in model was made by this script with its defaults; `adabm_kernels/assets/README.md` records the run.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.networks.edsr import EDSR, EDSRSpec

SHRINKS = (1.0, 0.8, 0.6)  # each photograph is also used smaller: more detail per pixel than the photograph itself has


def image_pairs(folder: Path, scale: int, patch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(LR, HR) uint8 [3, H, W] pairs of every PNG in `folder` at every size in SHRINKS that holds a patch."""
    pairs = []
    for path in sorted(folder.glob("*.png")):
        photo = np.array(Image.open(path).convert("RGB"))
        for shrink in SHRINKS:
            hr = photo if shrink == 1 else imresize(photo, shrink)
            h, w = (side // scale * scale for side in hr.shape[:2])
            hr = hr[:h, :w]
            if min(h, w) >= patch * scale:
                lr = imresize(hr, 1 / scale)
                pairs.append(tuple(torch.from_numpy(a.transpose(2, 0, 1).copy()) for a in (lr, hr)))
    if not pairs:
        raise ValueError(f"images: no PNG of at least {patch * scale} pixels a side in {folder}")
    return pairs


def random_batch(pairs: list, batch: int, patch: int, scale: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """[batch, 3, patch, patch] and its HR twin in 0..255, each crop mirrored and turned at random."""
    lrs, hrs = [], []
    for _ in range(batch):
        lr, hr = rng.choice(pairs)
        y, x = rng.randrange(lr.shape[1] - patch + 1), rng.randrange(lr.shape[2] - patch + 1)
        lr = lr[:, y : y + patch, x : x + patch]
        hr = hr[:, y * scale : (y + patch) * scale, x * scale : (x + patch) * scale]
        turns, mirror = rng.randrange(4), rng.random() < 0.5
        lr, hr = (torch.rot90(t, turns, (1, 2)) for t in (lr, hr))
        lrs.append(lr.flip(2) if mirror else lr)
        hrs.append(hr.flip(2) if mirror else hr)
    return torch.stack(lrs).float(), torch.stack(hrs).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of PNG photographs")
    parser.add_argument("--out", type=Path, required=True, help="state dict to write; a .state file beside it allows resuming")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--tail", choices=("staged", "single"), default="single")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=32, help="LR pixels a side")
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate; 500 steps of warm-up, then a half cosine to 0")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    pairs = image_pairs(args.images, args.scale, args.patch)
    model = EDSR(EDSRSpec(args.scale, args.blocks, args.channels, tail=args.tail)).to(
        args.device, memory_format=torch.channels_last
    )
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 500, 0.5 + 0.5 * math.cos(math.pi * min(i / args.steps, 1)))
    )
    state_path, start = args.out.with_suffix(".state"), 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        for part, key in ((model, "model"), (average, "average"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(state[key])
        start = state["step"]
        rng.seed(args.seed + start)

    seen, loss_sum = time.time(), 0.0
    for step in range(start, args.steps):
        lr, hr = (t.to(args.device) for t in random_batch(pairs, args.batch, args.patch, args.scale, rng))
        with torch.autocast(args.device, dtype=torch.bfloat16):
            sr = model(lr.contiguous(memory_format=torch.channels_last))
        loss = (sr.float() - hr).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 50.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        loss_sum += loss.item()
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            print(f"step {step + 1}: L1 {loss_sum / 500:.3f}, {(time.time() - seen) / 500:.3f} s a step", flush=True)
            seen, loss_sum = time.time(), 0.0
            parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
            torch.save({k: v.state_dict() for k, v in parts.items()} | {"step": step + 1}, state_path)
            torch.save({k: v.contiguous() for k, v in average.module.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
