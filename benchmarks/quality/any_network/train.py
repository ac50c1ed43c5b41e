"""Trains the networks of the tasks, a few minutes each on one core: `python train.py classifier --out DIR`, or all of them.

Writes DIR/NAME.pt, a state dict. The photographs are those of `../shared/data/images/calib` beside the checkout, or of
`--photographs`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from scenes import scenes
from tasks import TASKS, Task
from torch import nn

IMAGES = Path(__file__).resolve().parents[4] / "shared" / "data" / "images"
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TASKS), metavar="NAME", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--photographs", type=Path, default=IMAGES / "calib", help="folder of PNG files to train over")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="in place of the task's own")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        network = train(TASKS[name], args.photographs, args.steps or TASKS[name].steps, name)
        torch.save(network.state_dict(), args.out / f"{name}.pt")


def train(task: Task, photographs: Path, steps: int, name: str) -> nn.Module:
    """Returns the trained network in evaluation mode. It is trained by AdamW, whose rate rises for a tenth of the steps and then
    falls as a cosine."""
    torch.manual_seed(SEED)
    network = task.network().to(memory_format=torch.channels_last).train()
    drawn = scenes(photographs, trained=True, seed=SEED)
    optimiser = torch.optim.AdamW(network.parameters(), task.rate, weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, task.rate, steps, pct_start=0.1)
    began, running = time.perf_counter(), 0.0
    for step in range(steps):
        x, targets = task.draw(drawn, task.batch, task.side)
        loss = task.loss(network(x.contiguous(memory_format=torch.channels_last)), targets)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        rates.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if step % 50 == 49 or step == steps - 1:
            print(f"{name}: step {step + 1} of {steps}, loss {running:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    return network.to(memory_format=torch.contiguous_format).eval()


if __name__ == "__main__":
    main()
