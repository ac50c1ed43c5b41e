"""Everything that a card has to tell, in one go: tests, tuning, benchmarks, and a table of the figures.

    python benchmarks/measure_gpu.py [--skip-tests] [--skip-tuning]

Writes benchmarks/results/CARD-DATE.json, as pytest-benchmark makes it, and CARD-DATE.md beside it. Stops where a test fails: no
figure is worth anything then.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from report import groups, short_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def run(*command: str) -> None:
    print("$", *command, flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise SystemExit(f"measure_gpu: failed: {' '.join(command)}")


def table(run: dict) -> str:
    """The benchmarks by group: time of one forward or call, spread, times the group's fastest, and the most memory held."""
    cards = {bench["extra_info"].get("gpu") for bench in run["benchmarks"]} - {None}
    facts = run["machine_info"]["adabm"]
    place = f"{run['datetime'][:10]}, torch {facts['torch']}, commit {facts['commit']}"
    lines = [f"# {', '.join(sorted(cards))}", "", f"{place}. Medians."]
    for name, benches in groups(run).items():
        lines += ["", f"## {name}", "", "| | us | spread (IQR) | times the fastest | peak MB |", "|---|---|---|---|---|"]
        for bench in benches:
            stats, extra = bench["stats"], bench["extra_info"]
            once = 1e6 / extra.get("replays", 1)
            memory = f"{extra['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in extra else ""
            times = stats["median"] / benches[0]["stats"]["median"]
            time = f"{stats['median'] * once:.1f} | {stats['iqr'] * once:.1f}"
            lines.append(f"| {short_name(bench)} | {time} | {times:.2f} | {memory} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--skip-tuning", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("measure_gpu: no GPU that torch can use")
    if not args.skip_tests:
        tests = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if re.search("triton|gpu|cuda", path.name)]
        run("-m", "pytest", "-q", *tests)
    if not args.skip_tuning:
        run("benchmarks/tune_triton.py")
    card = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    target = RESULTS / f"{card}-{datetime.date.today().isoformat()}.json"
    benches = [str(path) for path in sorted((ROOT / "benchmarks").glob("bench_gpu*.py"))]
    run("-m", "pytest", *benches, "--benchmark-only", "-q", f"--benchmark-json={target}")
    target.with_suffix(".md").write_text(table(json.loads(target.read_text())))
    print(f"written: {target} and {target.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
