"""Measures what docs/images.md says of pictures in windows: `python benchmarks/quality/images.py patches|sky|seam|folder|startup`.

Sides of a comparison take turns; a figure is a ratio of medians. PICTURE is any photograph, best of several hundred pixels a side,
or for `folder` a folder of PNG files too, whose parts become the files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import PIL.Image
import torch

from adabm_kernels.evaluation.metrics import psnr
from adabm_kernels.images import MAX_PIXELS, Layout
from adabm_kernels.machine import cpu_name
from adabm_kernels.models import load_model
from adabm_kernels.upscaling import cutting
from adabm_kernels.upscaling.batch import Task, mean_bits, upscale_files
from adabm_kernels.upscaling.enlarge import Enlarger
from adabm_kernels.upscaling.patchwise import Patchwise

sys.path.append(str(Path(__file__).resolve().parents[1]))

from turns import in_turns  # noqa: E402

FOLDER_TURN = 20  # files that are read in one turn, since the speed of a shared machine changes within seconds


def measure(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each case, after one round to warm up."""
    seconds = in_turns(cases, rounds)
    for name, values in seconds.items():
        print(f"{name:24} {median(values):8.3f} s  ({min(values):.3f}..{max(values):.3f})")
    return {name: median(values) for name, values in seconds.items()}


def photograph(args: argparse.Namespace) -> np.ndarray:
    """The picture, shrunk so that it looks like a low-resolution one, and mirrored until it fills side x side pixels."""
    image = PIL.Image.open(args.picture).convert("RGB")
    rgb = np.array(image.reduce(args.shrink))
    for axis in (0, 1):
        parts = [rgb if i % 2 == 0 else np.flip(rgb, axis) for i in range(-(-args.side // rgb.shape[axis]))]
        rgb = np.concatenate(parts, axis)
    return np.ascontiguousarray(rgb[: args.side, : args.side])


def sky(rgb: np.ndarray, kind: str) -> np.ndarray:
    """The picture with a sky in place of its upper half. A "noisy" sky is brighter towards the horizon, has the noise of a sensor
    and is nowhere of one colour. A "blown" sky is white."""
    half = len(rgb) // 2
    down = np.linspace(0, 1, half)[:, None, None]
    noise = np.random.default_rng(0).normal(0, 1.5, (half, rgb.shape[1], 3))
    noisy = np.array([110, 160, 220]) * (1 - down) + np.array([190, 215, 240]) * down + noise
    above = noisy.round().astype(np.uint8) if kind == "noisy" else np.full_like(rgb[:half], 255)
    return np.concatenate([above, rgb[half:]])


def compare(args: argparse.Namespace, rgb: np.ndarray) -> None:
    model = load_model(args.model)
    model.set_threads(args.threads)
    base = model.config.act_bits
    layout, bits = Layout(rgb.shape[1], rgb.shape[0], 3), {}
    networks = {"whole": Patchwise(model, tile=0), "windows": Patchwise(model)}

    def case(kind: str, setting: str | int) -> None:
        record: list = []
        model.set_bits(setting)
        networks[kind].array(rgb, layout, record=record)
        flat = sum(patch.flat for patch in record) / (rgb.shape[0] * rgb.shape[1])
        bits[kind, setting] = f"{mean_bits(record):.2f} bits, {len(record)} windows, {100 * flat:.1f} % flat"

    cases = {f"{kind}, {setting}": lambda k=kind, s=setting: case(k, s) for kind in networks for setting in (base, "auto")}
    found = measure(cases, args.rounds)
    for key, text in bits.items():
        print(f"{key[0]}, {key[1]}: {text}")
    for setting in (base, "auto"):
        print(f"windows / whole, {setting}: {found[f'windows, {setting}'] / found[f'whole, {setting}']:.3f}")
    print(f"windows deciding / whole at {base} bits: {found['windows, auto'] / found[f'whole, {base}']:.3f}")


def seam(args: argparse.Namespace) -> None:
    model, rgb = load_model(args.model), photograph(args)
    layout = Layout(rgb.shape[1], rgb.shape[0], 3)
    cutting.JOINED_PIXELS = 0  # otherwise windows of the same bits would be joined, whatever their halo
    for bits in (3, 4, 6, 8):
        model.set_bits(bits)
        whole = torch.from_numpy(Patchwise(model, tile=0).array(rgb, layout).astype(np.float64))
        for halo in (None, round(0.95 * model.spec.radius), 8, 0):
            network = Patchwise(model, halo=halo, tile=args.tile)
            got = torch.from_numpy(network.array(rgb, layout).astype(np.float64))
            same = torch.equal(got, whole)
            print(f"{bits} bits, halo {network.halo:2}: {'equal' if same else f'{psnr(got, whole, 255.0):.1f} dB'}", flush=True)


def folder(args: argparse.Namespace) -> None:
    """Times files in and out, in turns with the network alone on tensors in memory."""
    model = load_model(args.model)
    model.set_threads(args.threads)
    network, side = Enlarger(Patchwise(model)), 256
    place = Path(args.picture)
    pictures = [np.array(PIL.Image.open(path).convert("RGB")) for path in sorted(place.rglob("*.png"))] if place.is_dir() else []
    pictures = [rgb for rgb in pictures if min(rgb.shape[:2]) >= side] or [photograph(args)]
    crops = []
    for i in range(args.first, args.first + args.count):
        rgb = pictures[i % len(pictures)]
        y, x = (i * 37) % (len(rgb) - side + 1), (i * 61) % (rgb.shape[1] - side + 1)
        crops.append(np.ascontiguousarray(rgb[y : y + side, x : x + side]))
    with tempfile.TemporaryDirectory() as place:
        tasks = []
        for i, crop in enumerate(crops):
            source = Path(place, f"{i}.png")
            PIL.Image.fromarray(crop).save(source)
            tasks.append(
                Task(source, Path(place, f"{i}_x4.{args.format}"), {"jpg": "JPEG"}.get(args.format, args.format.upper()), "")
            )
        tensors = [torch.from_numpy(crop).permute(2, 0, 1)[None].float().contiguous() for crop in crops]

        def files(some: slice) -> None:
            assert all(outcome.error is None for outcome in upscale_files(tasks[some], network, max_pixels=MAX_PIXELS))

        def alone(some: slice) -> None:
            with torch.no_grad():
                for x in tensors[some]:
                    model(x)

        seconds: dict[str, list[float]] = {"network alone": [], "files": []}
        for warm in (alone, files):
            warm(slice(0, 2))
        for first in range(0, args.count, FOLDER_TURN):
            for name, case in zip(seconds, (alone, files), strict=True):
                start = time.perf_counter()
                case(slice(first, first + FOLDER_TURN))
                seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        print(f"{name:24} {1000 * sum(values) / args.count:8.1f} ms a file, in turns of {FOLDER_TURN}")
    shares = [a / b for a, b in zip(*seconds.values(), strict=True)]
    whole = sum(seconds["network alone"]) / sum(seconds["files"])
    print(f"{args.count} files: {whole:.3f} of the rate alone; turns {', '.join(f'{share:.3f}' for share in shares)}")


def startup(args: argparse.Namespace) -> None:
    """Times a process from its start to the end of the first forward pass."""
    code = """
import sys
from adabm_kernels import cli
import adabm_kernels.models
module = sys.modules["adabm_kernels.models"]
load = module.load_model
def loaded(name):
    model = load(name)
    pixels = model.pixels
    def first(*args):
        print("first", flush=True)
        return pixels(*args)
    model.pixels = first
    return model
module.load_model = loaded
sys.exit(cli.main())
"""

    def run(*command: str) -> float:
        start = time.perf_counter()
        with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            return time.perf_counter() - start

    target = str(Path(tempfile.gettempdir(), "startup.png"))
    commands = {
        "to the first pass": ("-c", code, "upscale", args.picture, "-o", target, "-q", "--model", args.model),
        "import torch alone": ("-c", "import torch; print()"),
    }
    seconds = [{name: run(*command) for name, command in commands.items()} for _ in range(args.rounds + 1)][1:]
    for name in commands:
        values = [turn[name] for turn in seconds]
        print(f"{name}: {median(values):.2f} s  ({min(values):.2f}..{max(values):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("patches", "sky", "seam", "folder", "startup"))
    parser.add_argument("picture")
    parser.add_argument("--model", default="edsr_x4_w6a6")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--tile", type=int)
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--sky", choices=("noisy", "blown"), default="noisy")
    parser.add_argument("--format", default="png")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{cpu_name()}, {args.threads} threads, {load_model(args.model).backend_summary()}, {args.model}")
    run = {"patches": lambda: compare(args, photograph(args)), "sky": lambda: compare(args, sky(photograph(args), args.sky))}
    run |= {"seam": lambda: seam(args), "folder": lambda: folder(args), "startup": lambda: startup(args)}
    run[args.what]()


if __name__ == "__main__":
    main()
