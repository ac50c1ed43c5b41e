"""Exported ONNX files beside the models that they were made of: how near the pictures are, and how long they take.

    python benchmarks/cpu/exported.py --lr ../shared/data/images/set5/LR_x4 --out benchmarks/results/NAME.json

For each model and number of bits a file is written, and every picture of the folder goes through ONNX Runtime, OpenVINO and the
model. Printed is the PSNR between each file's pictures and the model's, RGB in 0..255, clamped and not rounded: of all pictures
together, and of the worst one. Beside it stands the floor that docs/interchange.md derives, 3.01 dB below the PSNR between the
model's pictures and those of the same network whose inputs of convolutions are clamped and not rounded.

Times are those of all pictures, in turns, as seconds of processor time with one thread, which other programs lengthen least; the
file takes pictures of any size, and is not compiled for each. `--no-times` leaves them out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from adabm_kernels import builtin_models, export_onnx, load
from adabm_kernels.exporters.quantized_operators import Grid, QuantizedWriting
from adabm_kernels.exporters.writing import Writing
from adabm_kernels.images import list_images, read_image
from adabm_kernels.machine import describe_machine
from adabm_kernels.nn import ConvertedNetwork

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from onnx_baselines import RUNTIMES  # noqa: E402
from turns import in_turns  # noqa: E402

Forward = Callable[[torch.Tensor], torch.Tensor]
THREADS = 1


class Unrounded(QuantizedWriting):
    """A converted network whose inputs of convolutions are clamped to their grids and not rounded to codes."""

    def _quantized(self, x: str, grid: Grid, shift: Any, name: str) -> tuple[str, str]:
        moved, _ = super()._quantized(x, grid, shift, name)
        ends = [self.to.floats((end - grid.zero) * grid.step) for end in (0, grid.levels)]
        return moved, self.to.op("Clip", moved, *ends)


def unrounded(model: ConvertedNetwork, bits: int) -> Forward:
    to = Writing(model.spec.input_channels)
    tensors = Unrounded(to, model, model.fixed_bits(bits)).write()
    return RUNTIMES["onnxruntime"](to.model({"y": tensors[0]}, {}, "").SerializeToString(), THREADS)


def pictures(folder: Path) -> dict[str, torch.Tensor]:
    found = {path.name: read_image(path) for path in list_images(folder, "--lr")}
    return {name: torch.from_numpy(rgb.transpose(2, 0, 1).copy())[None].float() for name, rgb in found.items()}


def distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> dict[str, float]:
    """The PSNR of all pictures together, and of the worst one."""
    squares = [(x.clamp(0, 255) - y.clamp(0, 255)).double().square() for x, y in zip(a, b, strict=True)]

    def psnr(mean: float) -> float:
        return 10 * math.log10(255**2 / max(mean, 1e-20))

    whole = sum(float(one.sum()) for one in squares) / sum(one.numel() for one in squares)
    return {"together": psnr(whole), "worst": min(psnr(float(one.mean())) for one in squares)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(builtin_models()))
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6, 4])
    parser.add_argument("--lr", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    given = pictures(args.lr)
    rows = []
    for name in args.models:
        model = load(builtin_models()[name])
        model.set_threads(THREADS)
        model.set_depth("full")
        for bits in [*args.bits, None]:
            rows.append(measured(name, model, bits, given, 0 if args.no_times else args.rounds))
            print(words(rows[-1]), flush=True)
    if args.out:
        facts = {"date": datetime.date.today().isoformat(), "machine": describe_machine(), "threads": THREADS}
        facts |= {"pictures": {key: list(x.shape[2:]) for key, x in given.items()}, "clock": "time.process_time"}
        args.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


@torch.no_grad()
def measured(name: str, model: ConvertedNetwork, bits: int | None, given: dict[str, torch.Tensor], rounds: int) -> dict[str, Any]:
    """The figures of one file. bits: None for the float network."""
    ours: Forward = model.float_model() if bits is None else model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if bits is None:
            export_onnx(model, path, floats=True)
        else:
            export_onnx(model, path, bits=bits)
            model.set_bits(bits)
        cases: dict[str, Forward] = {"ours": ours} | {key: runtime(path.read_bytes(), THREADS) for key, runtime in RUNTIMES.items()}
    made = {key: [forward(x).clone() for x in given.values()] for key, forward in cases.items()}
    row: dict[str, Any] = {"model": name, "bits": bits}
    row["psnr"] = {key: distance(made["ours"], made[key]) for key in RUNTIMES}
    if bits is not None:
        plain = unrounded(model, bits)
        row["rounding"] = distance(made["ours"], [plain(x) for x in given.values()])
        row["floor"] = row["rounding"]["together"] - 10 * math.log10(2)
        for key in RUNTIMES:
            assert row["psnr"][key]["together"] >= row["floor"], (name, bits, key, row)
    if rounds:

        def whole(forward: Forward) -> Callable[[], None]:
            return lambda: [forward(x) for x in given.values()] and None

        row["seconds"] = in_turns({key: whole(forward) for key, forward in cases.items()}, rounds, time.process_time)
    return row


def words(row: dict[str, Any]) -> str:
    bits = "float32" if row["bits"] is None else f"{row['bits']} bits"
    parts = [f"{key} {found['together']:.1f} dB (worst {found['worst']:.1f})" for key, found in row["psnr"].items()]
    parts += [f"floor {row['floor']:.1f} dB"] if "floor" in row else []
    if "seconds" in row:
        least = median(row["seconds"]["ours"])
        parts += [f"{key} {1000 * median(found):.0f} ms ({median(found) / least:.2f})" for key, found in row["seconds"].items()]
    return f"{row['model']}, {bits}: {', '.join(parts)}"


if __name__ == "__main__":
    main()
