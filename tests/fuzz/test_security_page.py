"""Each promise of SECURITY.md names tests that are there, and the inputs that it says were tried are those that were counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "SECURITY.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documents are not beside the tests")


def test_promises_are_held_by_tests_that_exist() -> None:
    text = PAGE.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`tests/" in line]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(rows) >= 20 and len(named) >= len(rows)
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_tried_inputs_are_those_that_were_counted() -> None:
    counted = json.loads((Path(__file__).parent / "tried.json").read_text())
    rows = re.findall(r"^\| `([\w ]+)` \| ([\d,]*) \| ([\d,]*) \|$", PAGE.read_text(), re.MULTILINE)
    said = {}  # by a program and an entry, or by a parser
    for name, first, second in rows:
        names = (f"{name}, computed", f"{name}, refused") if " " in name else (name, "")
        said |= {one: int(number.replace(",", "")) for one, number in zip(names, (first, second), strict=True) if number}
    assert said == counted
    total = re.search(r"\*\*([\d,]+)\*\* inputs", PAGE.read_text())
    assert total and int(total[1].replace(",", "")) == sum(counted.values())
