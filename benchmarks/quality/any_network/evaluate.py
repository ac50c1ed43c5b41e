"""What conversion costs and brings four networks of other tasks: `python evaluate.py --weights DIR`, after `train.py --out DIR`.

For each network and each setting of bits: the task's metric of the float network, of the simulation and of the converted network,
over the same test scenes; mean bits; and the time of one picture against PyTorch float32 in the faster of its two memory formats,
as a ratio of medians of runs in turns: by the clock, or with `--clock processor` by the processor's time, to which other programs
that run beside make less of a difference; the JSON has both. Before a network is timed its result is held to the integer reference.
Scenes for tests are drawn over `../shared/data/images/bsd100` beside the checkout (`--photographs`), with digits that no network
was trained on; calibration takes scenes of the kind that the network was trained on.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scenes import scenes
from tasks import TASKS, Task
from torch import nn
from train import IMAGES

import adabm_kernels
from adabm_kernels import ConvertConfig
from adabm_kernels.calibrate import calibrate_graph
from adabm_kernels.calibration.tensors import Tensors, read_tensors
from adabm_kernels.calibration.tracing import traced_spec
from adabm_kernels.machine import describe_machine
from adabm_kernels.simulate import SimulatedGraph

SETTINGS = {"W4A4": (4, 4, 0), "W4A4-tuned": (4, 4, 200), "W6A6": (6, 6, 0)}  # bits of weights and activations, steps of tuning
TEST_SEED, CALIBRATION_SEED = 7, 5
TEST_BATCH, CALIBRATION = 20, 100
CHECKED = 2  # pictures that are compared with the reference
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
PAUSE = 0.05  # seconds, after which the threads of the previous case have stopped spinning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TASKS), metavar="NAME", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--weights", type=Path, required=True, help="folder of NAME.pt, as train.py writes them")
    parser.add_argument("--bits", nargs="+", default=list(SETTINGS), choices=SETTINGS, metavar="BITS", help=", ".join(SETTINGS))
    parser.add_argument("--scenes", type=int, default=400, help="test scenes")
    parser.add_argument("--train-photographs", type=Path, default=IMAGES / "calib", help="of the scenes to calibrate on")
    parser.add_argument("--photographs", type=Path, default=IMAGES / "bsd100", help="of the test scenes")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="scenes to calibrate on")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each case")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="of the times in the tables")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": describe_machine(), "threads": args.threads}
    figures |= {"torch": torch.__version__, "scenes": args.scenes, "networks": {}}
    for name in args.names:
        figures["networks"][name] = measured(TASKS[name], name, args)
        print_table(figures["networks"][name], args.clock)
        if args.out:
            args.out.write_text(json.dumps(figures, indent=1) + "\n")


@torch.no_grad()
def measured(task: Task, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one network and returns its figures."""
    network = task.network().eval()
    network.load_state_dict(torch.load(args.weights / f"{name}.pt", weights_only=True))
    tests = scenes(args.photographs, trained=False, seed=TEST_SEED)
    batches = [task.draw(tests, TEST_BATCH, task.side) for _ in range(args.scenes // TEST_BATCH)]
    inputs, targets = [x for x, _ in batches], [target for _, target in batches]

    def score(model: Callable[[torch.Tensor], Any]) -> float:
        return task.score([model(x) for x in inputs], targets)

    drawn = scenes(args.train_photographs, trained=True, seed=CALIBRATION_SEED)
    calibration = list(task.draw(drawn, args.calibration, task.side)[0].split(1))
    parameters = sum(p.numel() for p in network.parameters())
    found: dict[str, Any] = {"title": task.title, "metric": task.metric, "float": score(network), "parameters": parameters}
    found |= {"settings": {}, "seconds": {}}
    converted = {}
    for setting in args.bits:
        weight_bits, act_bits, steps = SETTINGS[setting]
        began = time.perf_counter()
        with torch.enable_grad():
            data = read_tensors(calibration)
            graph = SimulatedGraph.of_graph(*traced_spec(network, data), ConvertConfig(weight_bits, act_bits, steps=steps))
            simulated = calibrate_graph(graph, Tensors(data, graph.spec))
        converted[setting] = model = adabm_kernels.convert_model(simulated)
        took = time.perf_counter() - began
        check(model, inputs[0][:CHECKED])
        model.set_threads(args.threads)
        found["settings"][setting] = {
            "simulated": score(simulated),
            "integer": score(model),
            "mean_bits": float(torch.cat([model.mean_bits(x) for x in inputs]).mean()),
            "in_floats": model.report["floats"],
            "calibration_seconds": took,
        }
        found["backend"] = model.backend_summary()
    for side in task.timed:
        found["seconds"][side] = in_turns(cases(network, converted, task.draw(tests, 1, side)[0]), args.rounds)
    return found


def check(model: nn.Module, x: torch.Tensor) -> None:
    """Compares the kernels with the integer reference."""
    got = model(x)
    backend = model.choice.backend
    model.set_backend("reference")
    want = model(x)
    model.set_backend(backend)
    pairs = zip(*(value if isinstance(value, tuple) else (value,) for value in (got, want)), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs):
        raise AssertionError(f"the result of backend {backend} is not that of the reference")


def cases(network: nn.Module, converted: dict[str, nn.Module], x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The cases that are timed, by name."""
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    found: dict[str, Callable[[], object]] = {"float32": lambda: network(x), "float32, channels_last": lambda: last(x_last)}
    return found | {name: partial(model, x) for name, model in converted.items()}


def in_turns(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """The median seconds of each case by each clock. Cases take turns, and each runs once untimed before it is timed, because the
    caches hold data of another case."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in cases}
    for turn in range(rounds + 2):
        for name, case in cases.items():
            time.sleep(PAUSE)
            case()
            start = [clock() for clock in CLOCKS.values()]
            case()
            took = [clock() - began for clock, began in zip(CLOCKS.values(), start, strict=True)]
            if turn >= 2:
                seconds[name].append(took)
    return {name: dict(zip(CLOCKS, map(median, zip(*rows, strict=True)), strict=True)) for name, rows in seconds.items()}


def print_table(found: dict[str, Any], clock: str) -> None:
    seconds = {side: {name: times[clock] for name, times in by_name.items()} for side, by_name in found["seconds"].items()}
    faster = {side: min(("float32", "float32, channels_last"), key=times.__getitem__) for side, times in seconds.items()}
    print(f"\n{found['title']}, {found['parameters'] / 1e3:.0f} thousand parameters, {found['backend']}")
    floats = [f"{side}x{side}: {1000 * times[faster[side]]:.1f} ms in {faster[side]}" for side, times in seconds.items()]
    print(f"PyTorch, {'; '.join(floats)}")
    heads = " | ".join(f"time, {side}x{side}" for side in seconds)
    print(f"| | {found['metric']}: float | simulated | integer | mean bits | {heads} |")
    print("|---" * (5 + len(seconds)) + "|")
    for setting, row in found["settings"].items():
        scores = [f"{value:.2f}" for value in (found["float"], row["simulated"], row["integer"], row["mean_bits"])]
        ratios = [f"{times[setting] / times[faster[side]]:.2f}" for side, times in seconds.items()]
        print(f"| {setting} | {' | '.join([*scores, *ratios])} |", flush=True)
        for part, why in row["in_floats"].items():
            print(f"  in floats: {part}: {why}")


if __name__ == "__main__":
    main()
