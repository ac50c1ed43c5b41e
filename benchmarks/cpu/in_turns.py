"""A network against its rivals in turns, for machines whose speed changes within minutes.

    python benchmarks/cpu/in_turns.py [NAME]

Two forwards of each after the other, the second of them timed, `--rounds` times, so that what else the machine does meets all
alike. Converted networks are checked against the integer reference first. NAME is a network of `bench_network.py`. Prints medians
and their ratios to the first; keeps them as JSON with `--out`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

from adabm_kernels.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "helpers")]

from baselines import torch_float32  # noqa: E402
from bench_network import NETWORKS, SIZE, check, float_network, network, photo  # noqa: E402
from onnx_baselines import onnx_bytes, openvino_forward  # noqa: E402

PAUSE = 0.3  # seconds, after which the threads of the previous case have stopped spinning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="edsr_baseline_x4", choices=NETWORKS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x, plain = photo(), float_network(args.name)
    cases = {}
    for bits in (4, 6):
        cases[f"W{bits}A{bits}"] = model = network(args.name, bits)
        model.set_threads(args.threads)
        model.set_bits(bits)
        check(model)
    for collapsed in (False, True)[: 1 + hasattr(plain.spec, "tail")]:
        runtime = openvino_forward(onnx_bytes(plain, SIZE, True, collapsed), args.threads)
        cases["OpenVINO int8" + (", collapsed tail" if collapsed else "")] = runtime
    cases["PyTorch float32, channels_last"] = torch_float32(plain)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with torch.no_grad():
        for turn in range(args.rounds + 2):
            for name, forward in cases.items():
                time.sleep(PAUSE)
                forward(x)  # this run is not timed, as the caches hold data of another case
                start = time.perf_counter()
                forward(x)
                if turn >= 2:
                    seconds[name].append(time.perf_counter() - start)
    first = median(seconds["W4A4"])
    print(f"{args.name} {SIZE}x{SIZE}, {args.threads} threads, {cases['W4A4'].backend_summary()}")
    for name, values in seconds.items():
        print(f"{name:32} {1000 * median(values):8.1f} ms  (least {1000 * min(values):.1f})  {median(values) / first:5.2f}")
    if args.out:
        facts = {"network": args.name, "date": datetime.date.today().isoformat(), "machine": describe_machine()}
        facts |= {"threads": args.threads, "backend": cases["W4A4"].backend_summary(), "seconds": seconds}
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
