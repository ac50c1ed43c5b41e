"""Super-resolution within torch.utils.data: crops of a folder of pictures, upscaled in batches, with the bits that each one got.

    python torch_data.py photos --workers 2 --where workers
    python torch_data.py photos --workers 2 --where main

With "workers" the pictures are upscaled where they are read, in the processes of the DataLoader, each with a model of its own and
one thread: the way for a training step that needs the machine's other half, a card, for itself. With "main" the workers only read,
and one model takes whole batches. Both give the same pixels. docs/torch_data.md tells more.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset

import adabm_kernels

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class Crops(Dataset):
    """The middle of every picture of a folder: name, and float32 [3, side, side] in 0..255. Smaller pictures are left out."""

    def __init__(self, folder: Path, side: int = 96):
        self.side = side
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        self.paths = [path for path in found if min(PIL.Image.open(path).size) >= side]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        with PIL.Image.open(self.paths[index]) as picture:
            left, top = ((length - self.side) // 2 for length in picture.size)
            pixels = np.array(picture.convert("RGB").crop((left, top, left + self.side, top + self.side)))
        return self.paths[index].name, torch.from_numpy(pixels).permute(2, 0, 1).float()


class Upscaled(Crops):
    """The same, upscaled: name, uint8 [3, scale*side, scale*side], and the mean bits."""

    def __init__(self, folder: Path, side: int = 96, model: str = "edsr_x4_w4a4"):
        super().__init__(folder, side)
        self.name = model
        self._network: torch.nn.Module | None = None

    @property
    def network(self) -> torch.nn.Module:
        """The model of this process, read at the first picture. A dataset that goes to another process takes no model with it."""
        if self._network is None:
            self._network = adabm_kernels.load(self.name)  # it computes with as many threads as torch: in a worker with one
        return self._network

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_network": None}

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor, float]:
        name, low = super().__getitem__(index)
        large, bits = upscaled(self.network, low[None])
        return name, large[0], float(bits[0])


def upscaled(network: torch.nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [N, 3, s*H, s*W] and the mean bits [N] of images [N, 3, H, W] in 0..255, each with bits of its own."""
    return network.pixels(batch), network.mean_bits(batch)


def batches(
    folder: Path, where: str, *, side: int = 96, batch: int = 8, model: str = "edsr_x4_w4a4", **loading
) -> Iterator[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """Batches of names, large pictures and mean bits. loading: num_workers, multiprocessing_context, ... of the DataLoader."""
    if where == "workers":
        yield from DataLoader(Upscaled(folder, side, model), batch, **loading)
        return
    network = adabm_kernels.load(model)
    for names, low in DataLoader(Crops(folder, side), batch, **loading):
        yield names, *upscaled(network, low)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--where", choices=["workers", "main"], default="workers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--start", choices=["fork", "spawn", "forkserver"], help="how workers are started, torch's way by default")
    parser.add_argument("--side", type=int, default=96, help="pixels a side of the crops")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--model", default="edsr_x4_w4a4")
    args = parser.parse_args(arguments)
    loading = {"num_workers": args.workers, "multiprocessing_context": args.start if args.workers else None}
    start, count = time.perf_counter(), 0
    for names, large, bits in batches(args.folder, args.where, side=args.side, batch=args.batch, model=args.model, **loading):
        count += len(large)
        for name, mean in zip(names, bits.tolist(), strict=True):
            print(f"{name}: {mean:.2f} bits")
    print(f"{count} pictures in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
