"""Where and when something was measured on a card: what every entry of a table says of itself."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

from adabm_kernels.machine import version

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    run = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def place() -> dict[str, str]:
    import torch  # `commit` is asked for where torch is not loaded

    return {
        "card": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "triton": version("triton"),
        "torch": torch.__version__,
        "commit": commit(),
    }
