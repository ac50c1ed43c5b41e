"""`python tests/faults/load.py --minutes 60 --json benchmarks/results/load-MACHINE-DATE.json`: work of all kinds in one process.

Passes of pictures of any size, through several networks, alone and in several threads; pictures upscaled from files to files in
every format; models loaded, saved, copied and dropped; forks that compute; conversions. Every result is computed in two ways, or
more than once, and must be equal. The memory that the process holds is read every few seconds. It may grow by less than LIMIT after
the first minute, which is the median of the last tenth of the readings, less the median of those in the second minute.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "helpers")]

import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402
import torch  # noqa: E402
from small import NETWORKS, noise, same  # noqa: E402

import adabm_kernels  # noqa: E402
from adabm_kernels import cli, machine  # noqa: E402
from adabm_kernels.files import write_file  # noqa: E402

LIMIT = 5 << 20  # bytes that the process may grow by after the first minute
WARM, READING = 60.0, 5.0  # seconds of the beginning that do not count, and between two readings of memory
LARGEST = 96  # pixels a side
SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".bmp")


class Load:
    """The models and pictures of one process, and what is done with them. random: decides sizes and kinds of work."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.config = adabm_kernels.ConvertConfig(steps=0)
        self.builtin = adabm_kernels.builtin_models()
        networks = {
            name: adabm_kernels.convert_model(make(), calibration=noise(2), config=self.config) for name, make in NETWORKS.items()
        }
        self.models = networks | {name: adabm_kernels.load(path) for name, path in self.builtin.items()}
        self.networks = list(networks)
        for name in self.networks[::2]:
            self.models[name].set_threads(3)  # the library's own pool of threads; the others compute in the thread that calls
        self.picture = np.random.default_rng(seed).integers(0, 256, (LARGEST, LARGEST, 3), np.uint8)

    def images(self, most: int = LARGEST) -> torch.Tensor:
        """Noise in 0..255 of any size and count."""
        size = [self.random.randint(1, 3), 3, self.random.randint(4, most), self.random.randint(4, most)]
        return torch.rand(*size, generator=torch.Generator().manual_seed(self.random.randrange(1 << 30))) * 255

    def largest(self) -> None:
        """Every network with the largest images, whose buffers the smaller ones then take as well."""
        for name in self.networks:
            self.models[name](torch.full((3, 3, LARGEST, LARGEST), 100.0))
        for name in self.builtin:
            adabm_kernels.upscale(self.picture, self.models[name], tile=0)

    def forward(self) -> None:
        """A batch, and its images one by one."""
        model, x = self.models[self.random.choice(self.networks)], self.images()
        assert torch.equal(model(x), torch.cat([model(one) for one in x.split(1)])), f"another result alone, {list(x.shape)}"

    def whole(self) -> None:
        """A picture of a built-in model as one window and in windows of any size."""
        model, side = self.models[self.random.choice(list(self.builtin))], self.random.randint(16, 48)
        height, width = self.random.randint(16, LARGEST), self.random.randint(16, LARGEST)
        picture = self.picture[:height, :width]
        whole, cut = (adabm_kernels.upscale(picture, model, bits=4, tile=tile) for tile in (0, side))
        model.set_bits("auto")
        assert np.array_equal(whole, cut), f"another result of {height}x{width} pixels in windows of {side}"

    def threads(self) -> None:
        """Several threads in one model at once."""
        model, images = self.models[self.random.choice(self.networks)], [self.images(48) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(model, images))
        assert all(torch.equal(model(x), y) for x, y in zip(images, got, strict=True)), "another result beside other threads"

    def drawn(self, most: int) -> Path:
        """A picture file of any size and format."""
        height, width, path = self.random.randint(16, most), self.random.randint(16, most), self.folder / f"in{self.suffix()}"
        PIL.Image.fromarray(self.picture[:height, :width]).save(path)
        return path

    def suffix(self) -> str:
        return self.random.choice(SUFFIXES)

    def file(self) -> None:
        """A picture file to a picture file, twice, in any format."""
        source, suffix = self.drawn(64), self.suffix()
        model = self.models[self.random.choice(["edsr", "srresnet", "rdn"])]
        for name in ("a", "b"):
            adabm_kernels.upscale(source, model).save(self.folder / f"{name}{suffix}")
        assert (self.folder / f"a{suffix}").read_bytes() == (self.folder / f"b{suffix}").read_bytes(), suffix

    def command(self) -> None:
        """The command on a picture file."""
        names = [str(self.drawn(48)), "-o", str(self.folder / f"out{self.suffix()}")]
        assert cli.main(["upscale", *names, "-q", "--threads", "1"]) == 0

    def model(self) -> None:
        """A model that is loaded, copied, saved, loaded again and dropped."""
        name = self.random.choice(list(self.models))
        path = self.folder / "m.safetensors"
        twin = copy.deepcopy(self.models[name])
        adabm_kernels.save(twin, path)
        loaded, x = adabm_kernels.load(path), self.images(24)
        assert same(self.models[name].state_dict(), loaded.state_dict()), f"{name} is saved otherwise"
        assert torch.equal(self.models[name](x), loaded(x)), f"another result of {name} after it was saved and loaded"

    def conversion(self) -> None:
        """The same network converted twice."""
        network = NETWORKS["edsr"]()
        first, second = (adabm_kernels.convert_model(network, calibration=noise(2), config=self.config) for _ in range(2))
        assert same(first.state_dict(), second.state_dict())

    def fork(self) -> None:
        """A child of this process computes what this process computes."""
        model, x = self.models[self.random.choice(self.networks)], self.images(48)
        want = model(x)
        child = os.fork()
        if child == 0:
            equal = False
            try:
                equal = torch.equal(model(x), want)
            finally:
                os._exit(0 if equal else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "another result in a fork"

    def works(self) -> dict[str, tuple[Callable[[], None], int]]:
        """Every kind of work with how often it comes."""
        kinds = {"forward": (self.forward, 30), "whole": (self.whole, 4), "threads": (self.threads, 6), "file": (self.file, 12)}
        kinds |= {"model": (self.model, 3), "command": (self.command, 3), "conversion": (self.conversion, 1)}
        return kinds | ({"fork": (self.fork, 3)} if os.name == "posix" else {})


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in names]


def in_use() -> int:
    """The bytes that are allocated from the C library, in the heap and beside it; 0 where it does not tell. What it keeps of freed
    memory, which `resident_bytes` has too, is not among them."""
    library = ctypes.CDLL(None)
    try:
        library.mallinfo2.restype = _Mallinfo
    except AttributeError:
        return 0
    found = library.mallinfo2()
    return found.uordblks + found.hblkhd


def run(minutes: float, seed: int) -> dict[str, object]:
    """Works for so long, and returns what was done and how the memory went."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    curve: list[tuple[float, int, int]] = []
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="adabm-load-") as folder, torch.no_grad():
        load = Load(Path(folder), seed)
        works = load.works()
        names = [name for name, (_, often) in works.items() for _ in range(often)]
        start = time.monotonic()
        load.largest()
        while (now := time.monotonic() - start) < 60 * minutes:
            load.random.shuffle(names)
            for name in names:
                works[name][0]()
                done[name] += 1
                now = time.monotonic() - start
                if not curve or now - curve[-1][0] >= READING:
                    curve.append((round(now, 1), machine.resident_bytes(), in_use()))
                if now >= 60 * minutes:
                    break
    return {
        "seconds": round(now, 1),
        "done": dict(done),
        "resident": growth([(second, held) for second, held, _ in curve], minutes),
        "allocated": growth([(second, held) for second, _, held in curve], minutes),
        "seconds_resident_allocated": curve,
    }


def growth(curve: list[tuple[float, int]], minutes: float) -> dict[str, int]:
    """How many bytes were held in the second minute and at the end, and the most after the first minute."""
    first = [held for second, held in curve if WARM <= second < 2 * WARM]
    last = [held for second, held in curve if second >= 60 * minutes * 0.9]
    if not first or not last:
        return {}
    begin, end = int(statistics.median(first)), int(statistics.median(last))
    return {"begin": begin, "end": end, "most": max(held for second, held in curve if second >= WARM), "growth": end - begin}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    place = {"date": time.strftime("%Y-%m-%d"), "machine": machine.describe_machine(), "seed": args.seed}
    report = place | run(args.minutes, args.seed)
    if args.json:
        write_file(args.json, f"{json.dumps(report)}\n".encode())
    for name in ("resident", "allocated"):
        print(f"{name} bytes after the first minute: {report[name]}", flush=True)
    print(report["done"], flush=True)
    return 1 if report["allocated"].get("growth", 0) >= LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
