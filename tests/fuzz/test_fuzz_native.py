"""A short run of the fuzzer of the C interface, on the library that the package loads. `make fuzz` has it with sanitizers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from needs import needs

from adabm_kernels import native

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests" / "fuzz" / "native" / "abi.cpp"
INPUTS = 3000


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library, program = native.LIBRARIES / "libadabm_cpu.so", tmp_path_factory.mktemp("abi") / "abi"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-DADABM_FUZZ_MAIN", f"-I{ROOT}/csrc/include"]
    linked = [f"-L{library.parent}", f"-l:{library.name}", f"-Wl,-rpath,{library.parent}"]
    subprocess.run(["g++", *flags, SOURCE, "-o", program, *linked], check=True)
    return program


@needs("cpu")
@needs("g++")
def test_problems_are_computed_or_refused(fuzzer: Path) -> None:
    done = subprocess.run([fuzzer, "1", "300", str(INPUTS)], cwd=fuzzer.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inputs, valid, refused = map(int, re.findall(r"\d+", done.stdout))
    assert inputs == INPUTS and valid > INPUTS / 5 and refused > INPUTS / 5


@needs("cpu")
@needs("g++")
def test_it_would_tell(fuzzer: Path, tmp_path: Path) -> None:
    """With another reference, whose ReLU is none, it fails and leaves the input behind."""
    text, relu = SOURCE.read_text(), "if (a.activation == ADABM_ACT_RELU) v = std::max(v, 0.0f);"
    assert text.count(relu) == 1
    (tmp_path / "abi.cpp").write_text(text.replace(relu, ""))
    library = native.LIBRARIES / "libadabm_cpu.so"
    linked = [f"-L{library.parent}", f"-l:{library.name}", f"-Wl,-rpath,{library.parent}"]
    options = ["-std=c++17", "-DADABM_FUZZ_MAIN", f"-I{ROOT}/csrc/include", "-o", tmp_path / "abi"]
    subprocess.run(["g++", *options, tmp_path / "abi.cpp", *linked], check=True)
    done = subprocess.run([tmp_path / "abi", "1", "300", str(INPUTS)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode < 0 and "failed: y" in done.stderr
    assert subprocess.run([fuzzer, tmp_path / "abi.failed"], capture_output=True).returncode == 0
