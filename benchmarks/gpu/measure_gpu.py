"""Everything that a card has to tell, in one go: tests, tuning, benchmarks, and a table of the figures.

    python benchmarks/gpu/measure_gpu.py [--skip-tests] [--skip-tuning]
    python benchmarks/gpu/measure_gpu.py --dry-run      # without a card: all of it at tiny sizes, nothing kept (pretend.py)

Tuning compiles some 1900 forms of one Triton kernel, a few seconds each: --skip-tuning where there is no hour for it.
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
import tempfile
from pathlib import Path

import pretend
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from report import groups, short_name  # noqa: E402

pretend.from_arguments()

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def run(*command: str) -> None:
    print("$", *command, flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise SystemExit(f"measure_gpu: failed: {' '.join(command)}")


def table(run: dict) -> str:
    """The benchmarks as a table by group: the time of one forward pass or call, the spread, the ratio to the fastest of the group,
    and the most memory held."""
    cards = {bench["extra_info"].get("gpu") for bench in run["benchmarks"]} - {None}
    facts = run["machine_info"]["adabm"]
    place = f"{run['datetime'][:10]}, torch {facts['torch']}, commit {facts['commit']}"
    lines = [f"# {', '.join(sorted(cards))}", "", f"{place}. Medians."]
    for name, benches in groups(run).items():
        lines += ["", f"## {name}", "", "| | us | spread (IQR) | times the fastest | peak MB |", "|---|---|---|---|---|"]
        once = {id(bench): 1e6 / bench["extra_info"].get("replays", 1) for bench in benches}  # microseconds of one forward or call
        benches = sorted(benches, key=lambda bench: bench["stats"]["median"] * once[id(bench)])
        fastest = benches[0]["stats"]["median"] * once[id(benches[0])]
        for bench in benches:
            stats, extra = bench["stats"], bench["extra_info"]
            median, spread = stats["median"] * once[id(bench)], stats["iqr"] * once[id(bench)]
            memory = f"{extra['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in extra else ""
            lines.append(f"| {short_name(bench)} | {median:.1f} | {spread:.1f} | {median / fastest:.2f} | {memory} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--skip-tuning", action="store_true")
    pretend.asked(parser)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("measure_gpu: no GPU that torch can use (--dry-run needs none)")
    dry = ["--dry-run"] if args.dry_run else []
    if not args.skip_tests:
        tests = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if re.search("triton|gpu|cuda", path.name)]
        run("-m", "pytest", "-q", *tests, *(["--collect-only"] if args.dry_run else []))
    if not args.skip_tuning:
        run("benchmarks/gpu/tune_triton.py", *dry)
        run("benchmarks/gpu/tune_choice.py", *dry)
    card = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    benches = [str(path) for path in sorted(Path(__file__).parent.glob("bench_gpu*.py"))]
    with tempfile.TemporaryDirectory() as folder:
        target = (Path(folder) if args.dry_run else RESULTS) / f"{card}-{datetime.date.today().isoformat()}.json"
        run("-m", "pytest", *benches, "--benchmark-only", "-q", f"--benchmark-json={target}", *dry)
        text = table(json.loads(target.read_text()))
        target.with_suffix(".md").write_text(text)
    if args.dry_run:
        print(f"{text}\ndry run: nothing is written to {RESULTS.relative_to(ROOT)}, and no figure above means anything")
    else:
        print(f"written: {target} and {target.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
