"""The place and time of a measurement on a card, which every entry of a table states."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    run = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def place() -> dict[str, str]:
    from adabm_kernels.tuning import gpu as tune_gpu  # `commit` is asked for where torch is not loaded

    return tune_gpu.place() | {"commit": commit()}
