"""Adds the provenance of every benchmark to the JSON: machine, commit, threads and versions."""

from __future__ import annotations

import pretend
import pytest
import torch
from gpu_place import commit
from turns import THREADS

from adabm_kernels import native


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dry-run", action="store_true", help="a pretended card on the CPU at tiny sizes: no figure means anything")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--dry-run"):
        pretend.install()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a dry run, takes each value of each parameter once. Sizes do not count, because all of them are the same there."""
    if not config.getoption("--dry-run"):
        return
    seen: set[tuple] = set()
    kept = []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {"": ""}
        values = {(item.originalname, name, repr(value)) for name, value in params.items() if name not in ("size", "batch")}
        if values - seen:
            kept.append(item)
        seen |= values
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    facts = native.describe()
    machine_info["adabm"] = {"isa": facts.get("isa_chosen"), "torch": torch.__version__, "threads": THREADS, "commit": commit()}
