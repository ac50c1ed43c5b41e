"""Quality of calibrated models: what each ingredient brings, what bits and time cost, how few images and steps will do.

    python benchmarks/quality/quality.py ablation|budget|images|steps|crops|recipes|residual [--weights W ...] [--out results.json]

Measures on Set5 and Set14 (PSNR-Y, `scale` pixels shaved) with the integer kernels; calibrates on other pictures, downscaled to
the network's own input size. Prints a Markdown table and keeps every number as JSON; `quality_report.py` draws the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"

from adabm_kernels import convert_model, machine  # noqa: E402
from adabm_kernels.calibrate import calibrate  # noqa: E402
from adabm_kernels.calibration.images import most_informative  # noqa: E402
from adabm_kernels.config import BestTuning, ConvertConfig  # noqa: E402
from adabm_kernels.evaluation.metrics import psnr_y  # noqa: E402
from adabm_kernels.evaluation.resize import imresize  # noqa: E402
from adabm_kernels.networks.checkpoints import load_state  # noqa: E402
from adabm_kernels.networks.detect import detect  # noqa: E402

TIMED_SIDE = 192  # pixels a side of the image that is timed
TIMED_ROUNDS = 20


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def cropped(image: np.ndarray, scale: int) -> np.ndarray:
    h, w = (side // scale * scale for side in image.shape[:2])
    return image[:h, :w]


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float()


def picture(y: torch.Tensor) -> np.ndarray:
    return y[0].permute(1, 2, 0).clamp(0, 255).round().to(torch.uint8).numpy()


class Bench:
    """The pictures of one network: those for calibration, and those for measuring."""

    def __init__(self, weights: Path, downscale: int | None = None, count: int | None = None, only: str = ""):
        self.weights, self.state = weights, load_state(weights)
        self.scale = detect(self.state).spec.scale
        shrink = self.scale if downscale is None else downscale
        paths = sorted((SHARED / "images" / "calib").glob("*.png"))[:count]
        self.images = [tensor(imresize(cropped(read(path), shrink), 1 / shrink)) for path in paths]
        self.sets = {}
        for name in ("set5", "set14"):
            folder = SHARED / "images" / name
            truths = sorted((folder / "HR" if name == "set5" else folder).glob("*.png"))
            pairs = [cropped(read(path), self.scale) for path in truths]
            self.sets[name] = [(tensor(imresize(hr, 1 / self.scale)), hr) for hr in pairs]
        self.float_psnr: dict[str, float] = {}
        self.model: torch.nn.Module | None = None  # the model of the last run
        self.only = only

    def measure(self, model: torch.nn.Module) -> dict[str, Any]:
        """By test set: the mean PSNR-Y, its loss against the float network, and mean bits."""
        result: dict[str, Any] = {}
        with torch.no_grad():
            for name, pairs in self.sets.items():
                if name not in self.float_psnr:
                    plain = model.float_model()
                    self.float_psnr[name] = float(np.mean([psnr_y(picture(plain(x)), hr, self.scale) for x, hr in pairs]))
                scores = [psnr_y(picture(model(x)), hr, self.scale) for x, hr in pairs]
                bits = [float(model.mean_bits(x)) for x, _ in pairs]
                result[name] = {"psnr": float(np.mean(scores)), "bits": float(np.mean(bits)), "float": self.float_psnr[name]}
                result[name]["loss"] = result[name]["float"] - result[name]["psnr"]
        return result

    def seconds(self, models: list[torch.nn.Module]) -> list[float]:
        """The median seconds of a forward pass of each model. They run in turns, so that other work on the machine slows all of
        them alike."""
        x = torch.nn.functional.interpolate(self.sets["set5"][0][0], (TIMED_SIDE, TIMED_SIDE), mode="bilinear")
        seconds = np.zeros((TIMED_ROUNDS, len(models)))
        for turn in range(TIMED_ROUNDS):
            for i, model in enumerate(models):
                start = time.perf_counter()
                model(x)
                seconds[turn, i] = time.perf_counter() - start
        return [float(median(column[1:])) for column in seconds.T]

    def run(self, label: str, images: list[torch.Tensor] | None = None, **settings: Any) -> dict[str, Any] | None:
        """Calibrates with these settings, converts and measures. Returns None where the label is not among the wanted ones."""
        if self.only not in label:
            return None
        config = ConvertConfig(**settings)
        with tqdm(desc=f"{self.weights.stem}: {label}", leave=False, unit="step") as bar:

            def progress(done: int, total: int, stage: str) -> None:
                bar.total, bar.n = total, done
                bar.set_postfix_str(stage)

            simulated = calibrate(self.state, self.images if images is None else images, config, progress)
        row = {"network": self.weights.stem, "label": label, "images": simulated.report["images"]}
        row["steps"] = simulated.report["steps"]
        self.model = convert_model(simulated)
        row |= self.measure(self.model) | {"calibration_seconds": simulated.report["seconds"]}
        return row | {"config": config.to_dict()}


def ablation(bench: Bench, steps: int) -> Iterator[dict[str, Any] | None]:
    """Goes from the published calibration to recipe "best", one ingredient after the other."""
    yield bench.run("paper: ranges only", recipe="paper")
    signed = {"act_ranges": "minmax", "layer_map": "deviation"}
    yield bench.run("signed grid, a range for each output channel", **signed)
    yield bench.run("+ activation ranges searched in the quantised network", layer_map="deviation")
    yield bench.run("+ layer offsets by sensitivity under a budget of bits")
    still = {"lr_weight": 0.0, "lr_bias": 0.0, "lr_weight_range": 0.0, "lr_act_range": 0.0}
    for label, name in (("biases", "lr_bias"), ("activation ranges", "lr_act_range"), ("weights", "lr_weight")):
        rates = {key: value for key, value in still.items() if key != name}
        yield bench.run(f"+ {label} learned alone, {steps} steps", steps=steps, tuning=BestTuning(**rates))
    yield bench.run(f"best: all learned together, {steps} steps", steps=steps)
    yield bench.run(f"best, but on the published grid, {steps} steps", steps=steps, weight_grid="odd")


def budget(bench: Bench, steps: int) -> Iterator[dict[str, Any]]:
    """Measures bits, time and quality for budgets of bits, and for the same budgets in time."""
    rows, models = [], []
    for objective in ("bits", "latency"):
        for target in (3.2, 3.4, 3.6, 3.8, 4.0, 4.4):
            settings = {"target_bits": target, "objective": objective, "steps": steps}
            if row := bench.run(f"{objective} {target:g}", **settings):
                rows.append(row)
                models.append(bench.model)
    for row, seconds in zip(rows, bench.seconds(models), strict=True):
        yield row | {"seconds": seconds}


def images(bench: Bench, steps: int) -> Iterator[dict[str, Any] | None]:
    """Measures PSNR against the number of calibration images, chosen at random or as the most informative ones."""
    order = most_informative([image[0] for image in bench.images], 16)
    for count in (1, 4, 16):
        yield bench.run(f"first {count}", bench.images[:count], steps=steps)
        yield bench.run(f"informative {count}", [bench.images[i] for i in order[:count]], steps=steps)
    yield bench.run("all", steps=steps)


def steps(bench: Bench, steps: int) -> Iterator[dict[str, Any] | None]:
    """Measures PSNR against the number of fine-tuning steps. Each number is a run of its own, because rates fall to zero at the end
    of a run."""
    for count in (0, steps // 8, steps // 4, steps // 2, steps):
        yield bench.run(f"{count} steps", steps=count)
    for tolerance in (0.05, 0.02):
        tuning = BestTuning(tolerance=tolerance, span=steps // 8, cooldown=steps // 4)
        yield bench.run(f"until converged, tolerance {tolerance:g}", steps=2 * steps, tuning=tuning)


def crops(bench: Bench, steps: int) -> Iterator[dict[str, Any] | None]:
    """Measures fine-tuning on the most detailed of several random crops instead of on one random crop."""
    for candidates in (1, 4, 16):
        yield bench.run(f"best of {candidates} crops, {steps} steps", steps=steps, tuning=BestTuning(candidates=candidates))


def recipes(bench: Bench, steps: int) -> Iterator[dict[str, Any] | None]:
    """Measures recipe "best" at 4 and 6 bits."""
    for bits in (4, 6):
        yield bench.run(f"w{bits}a{bits} best", weight_bits=bits, act_bits=bits, steps=steps)


def residual(bench: Bench, steps: int) -> Iterator[dict[str, Any] | None]:
    """Compares 16-bit features between the blocks with float32, from one calibration. Small crops suffice, because only the
    difference matters."""
    small = {"patch": 48, "depths": "none", "tuning": BestTuning(batch=2, patch=32), "residual": "int16"}
    for bits in (4, 6):
        row = bench.run(f"w{bits}a{bits} int16", weight_bits=bits, act_bits=bits, steps=steps, **small)
        if row is None:
            continue
        yield row
        m = bench.model
        wide = type(m)(m.spec, m.config, m.parameters_by_name, m.floats, m.thresholds, m.float_state, m.exit).eval()
        yield row | {"label": f"w{bits}a{bits} float32"} | bench.measure(wide)


STUDIES: dict[str, Callable[[Bench, int], Iterator[dict[str, Any] | None]]] = {
    study.__name__: study for study in (ablation, budget, images, steps, crops, recipes, residual)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--weights", type=Path, nargs="+", default=[SHARED / "weights" / "edsr_baseline_x4.pt"])
    parser.add_argument("--steps", type=int, default=400, help="fine-tuning steps (default %(default)s)")
    parser.add_argument("--downscale", type=int, help="of the calibration pictures (default: the network's scale)")
    parser.add_argument("--count", type=int, help="of calibration pictures, the first ones (default: all)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose label contains this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file for every number")
    args = parser.parse_args()
    if not SHARED.exists():
        sys.exit("quality.py: the images and weights it measures on are not there")
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    print("| network | settings | Set5 | bits | loss | Set14 | bits | loss | ms | calibration |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for weights in args.weights:
        for row in filter(None, STUDIES[args.study](Bench(weights, args.downscale, args.count, args.only), args.steps)):
            rows.append(row)
            decimals = 4 if args.study == "residual" else 2
            cells = [f"{row[s][key]:.{decimals}f}" for s in ("set5", "set14") for key in ("psnr", "bits", "loss")]
            cells += [f"{1000 * row['seconds']:.1f}" if "seconds" in row else "", f"{row['calibration_seconds']:.0f} s"]
            print(f"| {row['network']} | {row['label']} | " + " | ".join(cells) + " |", flush=True)
            if args.out:
                results = {"study": args.study, "machine": machine.describe_machine(), "threads": args.threads, "rows": rows}
                args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
