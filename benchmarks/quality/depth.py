"""What tiles without blocks save and cost: `python benchmarks/quality/depth.py pictures|budgets|shares|drawings MODEL [FOLDER...]`.

pictures: every picture of the folders, taken as it is or cut (--crop), and drawings (--drawn): time at the model's own depths
against full depth, in turns, and PSNR to the float network of both and of the network alone (full depth, nothing interpolated),
over all and by classes of detail.
budgets: the same for several thresholds of what an easy tile is, and for the models `--beside` it, of the same float network,
at full depth, with their own bits and with 8; `--figure` draws it. drawings: SSIM of drawings, texts and gradients, made four
times as large and shrunk by bicubic, of the model, of bicubic and of the float network. shares: time against the share of easy
tiles, of a made picture, where they lie together and where they are scattered. Times are ratios of medians of runs in turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from adabm_kernels.evaluation.metrics import ssim_y
from adabm_kernels.evaluation.resize import imresize
from adabm_kernels.images import Layout, list_images, read_image
from adabm_kernels.machine import describe_machine
from adabm_kernels.models import load_model
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.quantize import to_pixels
from adabm_kernels.upscaling.patchwise import Patchwise

sys.path.append(str(Path(__file__).resolve().parents[1]))

from turns import in_turns  # noqa: E402

CLASSES = 10  # classes of detail, each with equally many places
PLACE = 24  # pixels a side of a place
THRESHOLDS = (8, 12, 16, 24, 32, 45, 60, 80, 110)
SHARES = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
SIDE = 256  # pixels a side of the made picture
DRAWN, DRAWN_SIDE = 4, 512  # the number of drawings of each kind, and their side in pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(COMMANDS))
    parser.add_argument("model")
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take only every so many pictures of a folder")
    parser.add_argument("--crop", type=int, default=0, help="take only so many pixels a side of a picture, from its middle")
    parser.add_argument("--drawn", type=int, default=0, help="look at so many drawings of each kind, too")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--beside", nargs="+", default=[], metavar="MODEL", help="budgets: other models of the same network")
    parser.add_argument(
        "--thresholds", type=int, nargs="+", default=THRESHOLDS, help="budgets: levels that an easy tile may bend by"
    )
    parser.add_argument("--figure", type=Path, help="budgets: picture of time against quality to draw, PNG")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    if model.exit is None:
        parser.error(f"{args.model} has no exit for easy tiles")
    figures = COMMANDS[args.what](model, args)
    figures |= {"what": args.what, "model": args.model, "date": datetime.date.today().isoformat(), "machine": describe_machine()}
    figures |= {"backend": model.backend_summary(), "threshold": model.exit.threshold, "tile": model.exit.tile}
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


def medians(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each case."""
    return {name: median(seconds) for name, seconds in in_turns(cases, rounds).items()}


def as_network(model: ConvertedNetwork, threshold: int | None) -> ConvertedNetwork:
    """The same network with another threshold, or at full depth where this is None."""
    parts = model.spec, model.config, model.parameters_by_name, model.floats, model.thresholds, model.float_state
    made = type(model)(*parts, model.exit if threshold is None else replace(model.exit, threshold=threshold)).eval()
    made.set_threads(model.threads)
    made.set_depth("full" if threshold is None else "auto")
    return made


@dataclass
class Folder:
    """The figures of the pictures of one folder.

    detail: for each picture, the detail of every place. errors: by case, the squared error of every place. psnr, seconds, shares:
    by case, one number for each picture.
    """

    name: str
    detail: list[np.ndarray]
    errors: dict[str, list[np.ndarray]]
    psnr: dict[str, list[float]]
    seconds: dict[str, list[float]]
    shares: dict[str, list[float]]


def looked_at(scale: int, args: argparse.Namespace) -> dict[str, Iterator[np.ndarray]]:
    """The pictures by the name of their folder, uint8 [H, W, 3]: those of the folders or their middles, and drawings that are
    shrunk."""

    def middle(rgb: np.ndarray) -> np.ndarray:
        rows, columns = (slice(max(size - args.crop, 0) // 2, max(size - args.crop, 0) // 2 + args.crop) for size in rgb.shape[:2])
        return np.ascontiguousarray(rgb[rows, columns]) if args.crop else rgb

    def read(folder: Path) -> Iterator[np.ndarray]:
        return (middle(read_image(path)) for path in list_images(folder, "FOLDER")[:: args.every])

    def drawn(make: Callable[[np.random.Generator, int], np.ndarray]) -> Iterator[np.ndarray]:
        return (imresize(make(np.random.default_rng(seed), DRAWN_SIDE), 1 / scale) for seed in range(args.drawn))

    found = {folder.name: read(folder) for folder in args.folders}
    return found | {kind: drawn(make) for kind, make in KINDS.items() if args.drawn}


def measure(model: ConvertedNetwork, networks: dict[str, Patchwise], args: argparse.Namespace) -> list[Folder]:
    """Runs every picture through every network and returns the figures by folder."""
    float_model, scale = model.float_model().to(memory_format=torch.channels_last), model.scale
    found = []
    for folder, pictures in looked_at(scale, args).items():
        one = Folder(folder, [], *({name: [] for name in networks} for _ in range(4)))
        for rgb in pictures:
            layout = Layout(rgb.shape[1], rgb.shape[0], 3)
            x = torch.from_numpy(rgb.transpose(2, 0, 1).copy())[None].float()
            with torch.no_grad():
                want = float_model(x.contiguous(memory_format=torch.channels_last))
            want = want[0].permute(1, 2, 0).clamp(0, 255).numpy()
            one.detail.append(places(detail(rgb), PLACE))
            times = medians({name: partial(network.array, rgb, layout) for name, network in networks.items()}, args.rounds)
            for name, network in networks.items():
                error = ((network.array(rgb, layout) - want) ** 2).mean(2)
                one.errors[name].append(places(error, PLACE * scale))
                one.psnr[name].append(decibels(error.mean()))
                one.seconds[name].append(times[name])
                one.shares[name].append(float(network.model.computed_share(x)))
        found.append(one)
    return found


def detail(rgb: np.ndarray) -> np.ndarray:
    """The detail of each pixel, [H, W]: the mean over the channels of the differences to the pixel above and to the pixel on the
    left."""
    values = rgb.astype(np.float32)
    found = np.zeros(rgb.shape[:2], np.float32)
    found[1:] += np.abs(np.diff(values, axis=0)).mean(2)
    found[:, 1:] += np.abs(np.diff(values, axis=1)).mean(2)
    return found


def places(values: np.ndarray, side: int) -> np.ndarray:
    """The mean of each place of side x side pixels. Pixels at the ends that fill no place are left out."""
    height, width = (length // side for length in values.shape)
    return values[: height * side, : width * side].reshape(height, side, width, side).mean((1, 3)).ravel()


def decibels(error: float) -> float:
    return 10 * float(np.log10(255**2 / max(error, 1e-10)))


def by_class(folders: list[Folder], name: str) -> list[float]:
    """The PSNR of a case in each class of detail, over all folders."""
    values = np.concatenate([part for folder in folders for part in folder.detail])
    errors = np.concatenate([part for folder in folders for part in folder.errors[name]])
    order = np.argsort(values, kind="stable")
    return [decibels(errors[some].mean()) for some in np.array_split(order, CLASSES)]


def summary(folder: Folder, name: str, to: str) -> dict[str, float]:
    """Compares a case with another one. time: the ratio of the summed times. slowest: the largest ratio of a picture. psnr: the
    mean over the pictures. psnr_pooled: over all places. computed: the mean share of pixels with blocks."""
    ratios = [a / b for a, b in zip(folder.seconds[name], folder.seconds[to], strict=True)]
    return {
        "time": sum(folder.seconds[name]) / sum(folder.seconds[to]),
        "slowest": max(ratios),
        "psnr": fmean(folder.psnr[name]),
        "psnr_pooled": decibels(np.concatenate(folder.errors[name]).mean()),
        "computed": fmean(folder.shares[name]),
    }


def pictures(model: ConvertedNetwork, args: argparse.Namespace) -> dict:
    full, own = as_network(model, None), as_network(model, model.exit.threshold)
    networks = {"network alone": Patchwise(full, smooth="network"), "full": Patchwise(full), "auto": Patchwise(own)}
    networks |= {"auto, nothing interpolated": Patchwise(own, smooth="network")}
    folders = measure(model, networks, args)
    figures = {"folders": {}, "classes": {name: by_class(folders, name) for name in networks}}
    for folder in folders:
        figures["folders"][folder.name] = {name: summary(folder, name, "full") for name in networks}
        print(f"\n{folder.name}, {len(folder.detail)} pictures")
        print("| | computed | time | slowest picture | PSNR |\n|---|---|---|---|---|")
        for name in networks:
            row = figures["folders"][folder.name][name]
            print(f"| {name} | {row['computed']:.2f} | {row['time']:.3f} | {row['slowest']:.3f} | {row['psnr']:.2f} |")
    print("\nPSNR by class of detail\n| | " + " | ".join(map(str, range(1, CLASSES + 1))) + " |\n" + "|---" * (CLASSES + 1) + "|")
    for name, values in figures["classes"].items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return figures


def budgets(model: ConvertedNetwork, args: argparse.Namespace) -> dict:
    networks = {"full": Patchwise(as_network(model, None))}
    networks["network alone"] = Patchwise(as_network(model, None), smooth="network")
    networks |= {str(threshold): Patchwise(as_network(model, threshold)) for threshold in args.thresholds}
    for name in args.beside:
        other = load_model(name)
        if other.spec != model.spec:
            raise SystemExit(f"depth.py: {name} must be of the same network as the model")
        networks[Path(name).stem] = Patchwise(as_network(other, None))
        at_8 = as_network(other, None)
        at_8.set_bits(8)
        networks[f"{Path(name).stem}, 8 bits"] = Patchwise(at_8)
    folders = measure(model, networks, args)
    figures = {folder.name: {name: summary(folder, name, "full") for name in networks} for folder in folders}
    for folder in folders:
        print(f"\n{folder.name}\n| | computed | time | PSNR | against the network alone |\n|---|---|---|---|---|")
        for name, row in figures[folder.name].items():
            gained = row["psnr_pooled"] - figures[folder.name]["network alone"]["psnr_pooled"]
            print(f"| {name} | {row['computed']:.2f} | {row['time']:.3f} | {row['psnr_pooled']:.2f} | {gained:+.2f} |")
    if args.figure:
        draw(figures, [str(threshold) for threshold in args.thresholds], args.figure)
    return {"folders": figures}


def draw(figures: dict[str, dict[str, dict[str, float]]], thresholds: list[str], path: Path) -> None:
    """Draws the distance from the float network against time, with a panel for each folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(figures), figsize=(4.5 * len(figures), 3.6), squeeze=False)
    for axes, (folder, rows) in zip(panels[0], figures.items(), strict=True):
        chosen = [rows[name] for name in thresholds]
        axes.plot([row["time"] for row in chosen], [row["psnr_pooled"] for row in chosen], marker="o", label="depths, by threshold")
        for name, marker in zip([name for name in rows if name not in thresholds], "sDv^<>", strict=False):
            axes.plot(rows[name]["time"], rows[name]["psnr_pooled"], marker=marker, ls="", label=f"{name}")
        for name, row in zip(thresholds, chosen, strict=True):
            axes.annotate(name, (row["time"], row["psnr_pooled"]), textcoords="offset points", xytext=(3, -10), fontsize=7)
        axes.set(title=folder, xlabel="time, full depth = 1", ylabel="PSNR to the float network, dB")
        axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def drawings(model: ConvertedNetwork, args: argparse.Namespace) -> dict:
    scale, float_model = model.scale, model.float_model()
    network = Patchwise(model)
    figures: dict[str, dict[str, float]] = {}
    print("| | bicubic | this model | float network |\n|---|---|---|---|")
    for kind, make in KINDS.items():
        found: dict[str, list[float]] = {"bicubic": [], "model": [], "float": []}
        for seed in range(DRAWN):
            high = make(np.random.default_rng(seed), DRAWN_SIDE)
            low = imresize(high, 1 / scale)
            x = torch.from_numpy(low.transpose(2, 0, 1).copy())[None].float()
            with torch.no_grad():
                want = to_pixels(float_model(x))[0].permute(1, 2, 0).numpy()
            made = {"bicubic": imresize(low, scale), "model": network.array(low, Layout(*low.shape[1::-1], 3)), "float": want}
            for name, picture in made.items():
                picture = picture if picture.dtype == np.uint8 else np.rint(picture.clip(0, 255)).astype(np.uint8)
                found[name].append(ssim_y(picture, high, scale))
        figures[kind] = {name: fmean(values) for name, values in found.items()}
        print(f"| {kind} | " + " | ".join(f"{figures[kind][name]:.3f}" for name in found) + " |")
    return {"ssim": figures}


def draw_shapes(random: np.random.Generator, side: int) -> np.ndarray:
    """Draws rectangles and ellipses with black outlines on a flat colour."""
    image = Image.new("RGB", (side, side), tuple(map(int, random.integers(0, 256, 3))))
    pen = ImageDraw.Draw(image)
    for i in range(12):
        (left, top), (width, height) = random.integers(0, side * 3 // 4, 2), random.integers(side // 12, side // 3, 2)
        box = tuple(map(int, (left, top, left + width, top + height)))
        (pen.ellipse, pen.rectangle)[i % 2](box, fill=tuple(map(int, random.integers(0, 256, 3))), outline=(0, 0, 0), width=6)
    return np.asarray(image)


def draw_text(random: np.random.Generator, side: int) -> np.ndarray:
    """Draws lines of dark text of several sizes on a light ground."""
    image = Image.new("RGB", (side, side), tuple(map(int, random.integers(200, 256, 3))))
    pen, top = ImageDraw.Draw(image), 8
    for size in (64, 56, 48, 40, 36, 32, 28):
        words = "".join(chr(int(code)) if code < 123 else " " for code in random.integers(97, 127, 40))
        pen.text((8, top), words, fill=tuple(map(int, random.integers(0, 80, 3))), font=ImageFont.load_default(size))
        top += size + 12
    return np.asarray(image)


def draw_gradient(random: np.random.Generator, side: int) -> np.ndarray:
    """Draws a gradient of colours from corner to corner."""
    corners, share = random.integers(0, 256, (2, 2, 3)).astype(np.float64), np.linspace(0, 1, side)
    rows = corners[0] * (1 - share[:, None, None]) + corners[1] * share[:, None, None]
    return np.rint(rows[:, :1] * (1 - share[:, None]) + rows[:, 1:] * share[:, None]).astype(np.uint8)


KINDS = {"shapes": draw_shapes, "text": draw_text, "gradient": draw_gradient}


def shares(model: ConvertedNetwork, args: argparse.Namespace) -> dict:
    own, full = as_network(model, model.exit.threshold), as_network(model, None)
    tile, rng = model.exit.tile, np.random.default_rng(1)
    count = SIDE // tile
    figures: dict[str, dict[int, float]] = {"together": {}, "scattered": {}}
    print("| easy tiles | together | scattered |\n|---|---|---|")
    for share in SHARES:
        for how, ratios in figures.items():
            easy = np.arange(count**2) < round(share / 100 * count**2)
            easy = (easy if how == "together" else rng.permutation(easy)).reshape(count, count)
            noise = rng.integers(0, 256, (3, SIDE, SIDE))
            x = np.where(easy.repeat(tile, 0).repeat(tile, 1), 128, noise).astype(np.float32)
            x = torch.from_numpy(x)[None]
            offset = torch.zeros(1, dtype=torch.int32)
            times = medians({"own": partial(own.pixels, x, offset), "full": partial(full.pixels, x, offset)}, 3 * args.rounds)
            ratios[share] = times["own"] / times["full"]
        print(f"| {share} % | {figures['together'][share]:.3f} | {figures['scattered'][share]:.3f} |")
    return figures


COMMANDS = {"pictures": pictures, "budgets": budgets, "shares": shares, "drawings": drawings}

if __name__ == "__main__":
    main()
