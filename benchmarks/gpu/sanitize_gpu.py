"""Runs the tests of a GPU backend under compute-sanitizer's four tools. Needs a card, and compute-sanitizer from CUDA's toolkit.

python benchmarks/gpu/sanitize_gpu.py [--backend cuda|triton] [--tool memcheck]
python benchmarks/gpu/sanitize_gpu.py --golden FOLDER     # golden problems (golden_run.py) in place of the tests, without torch
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 9  # the exit status where a tool has found something


def command(sanitizer: str, tool: str, *target: str) -> list[str]:
    """The command that runs a target under a tool."""
    return [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all", *target]


def golden(files: list[Path]) -> list[str]:
    """The command of the runner of golden problems, as a target."""
    return [sys.executable, str(Path(__file__).with_name("golden_run.py")), "--bare", *map(str, files)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("cuda", "triton"), default="cuda")
    parser.add_argument("--tool", choices=TOOLS, action="append", help="only this one; may be repeated")
    parser.add_argument("--golden", type=Path, metavar="FOLDER", help="run the golden problems in it; of the CUDA library alone")
    options = parser.parse_args()
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("sanitize_gpu: needs compute-sanitizer on PATH, from CUDA's toolkit", file=sys.stderr)
        return 2
    tests = [sys.executable, "-m", "pytest", "-q", "-x", str(ROOT / "tests" / "gpu" / "test_gpu.py")]
    # A caching allocator would hide reads beyond a tensor. Graphs are left out, because not all replayed kernels are instrumented.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    failed = []
    for tool in options.tool or TOOLS:
        # By name tests of one backend alone would be left out: residual blocks and configurations are the CUDA library's.
        select = "triton and not graph" if options.backend == "triton" else "not triton and not graph"
        target = golden(sorted(options.golden.glob("*.npz"))) if options.golden else [*tests, "-k", select]
        print(f"== {tool}", flush=True)
        if subprocess.run(command(sanitizer, tool, *target), cwd=ROOT, env=environment).returncode:
            failed.append(tool)
    print("all clean" if not failed else f"errors from {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
