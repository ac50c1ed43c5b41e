"""A short run of the fuzzer of the C interface, on the library that the package loads, and the inputs that are kept.

`make fuzz` has it with sanitizers and with all kernels that can be emulated."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import native_programs as programs
import pytest
from mutations import CORPUS
from needs import needs

INPUTS = 8000
KEPT = sorted((CORPUS / "c_interface").glob("*"))


@dataclass(frozen=True)
class Counts:
    """The inputs of one target, and how many calls gave the right results, and how many broken ones were refused."""

    inputs: int
    computed: int
    refused: int


def counts(output: str) -> dict[str, Counts]:
    rows = [line.split() for line in output.splitlines()[1:]]
    return {row[0]: Counts(*map(int, row[1:])) for row in rows if len(row) == 4}


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return programs.own(tmp_path_factory.mktemp("abi") / "abi")


@needs("cpu")
@needs("g++")
def test_problems_are_computed_or_refused(fuzzer: Path) -> None:
    done = subprocess.run([fuzzer, "1", "600", str(INPUTS)], cwd=fuzzer.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = counts(done.stdout)
    assert sum(target.inputs for target in found.values()) == INPUTS and len(found) == 8
    for name, target in found.items():
        assert target.computed > (target.inputs / 4 if name != "rest" else 0) and target.refused > target.inputs / 2, name


@needs("cpu")
@needs("g++")
@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_inputs_that_are_kept(fuzzer: Path, path: Path) -> None:
    done = subprocess.run([fuzzer, path], cwd=fuzzer.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sum(target.inputs for target in counts(done.stdout).values()) >= 1


# What a fuzzer must tell: results of another reference, whose ReLU is none, and a rule that nothing checks, such as fewer threads.
CHANGES = {
    "a result": ("conv2d.h", "if (a.activation == ADABM_ACT_RELU) v = std::max(v, 0.0f);", "", "failed: y"),
    "a rule": ("wrong.h", "{AT(Args, threads), 1, 256}", "{AT(Args, threads), 1, 255}", "took a broken rule, status 0"),
}


@needs("cpu")
@needs("g++")
@pytest.mark.parametrize("what", ["a result", pytest.param("a rule", marks=pytest.mark.slow)])
def test_it_would_tell(fuzzer: Path, tmp_path: Path, what: str) -> None:
    """It fails, and leaves behind the input, which the fuzzer as it is takes."""
    name, old, new, said = CHANGES[what]
    for path in programs.SOURCE.parent.iterdir():
        text = path.read_text()
        assert path.name != name or text.count(old) == 1
        (tmp_path / path.name).write_text(text.replace(old, new) if path.name == name else text)
    program = programs.own(tmp_path / "abi", tmp_path / "abi.cpp")
    done = subprocess.run([program, "1", "600", str(INPUTS)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode < 0 and said in done.stderr
    assert subprocess.run([fuzzer, tmp_path / "abi.failed"], capture_output=True).returncode == 0
