"""Provenance of every benchmark: machine, commit, threads and versions go into the JSON beside the figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from gpu_place import commit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from adabm_kernels import native  # noqa: E402

THREADS = torch.get_num_threads()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    facts = native.describe()
    machine_info["adabm"] = {"isa": facts.get("isa_chosen"), "torch": torch.__version__, "threads": THREADS, "commit": commit()}
