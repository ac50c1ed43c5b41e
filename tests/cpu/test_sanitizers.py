"""The CPU library's own code with sanitizers, valgrind, and the flags that harden what is shipped.

In every run these are the scalar kernels and everything that all instruction sets share. The others are held to them by
tests/cpu/test_twins.py, and to their memory by tests/cpu/test_guard_pages.py; `make sanitize` has them with sanitizers too.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import native_programs as programs
import pytest
from needs import needs, processor_has

from adabm_kernels import native

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("common", "cpu", "cpu/isa") for path in (ROOT / "csrc" / folder).glob("*.cpp"))
CALLERS, FUZZER = ROOT / "tests/cpu/native/many_callers.cpp", ROOT / "tests/fuzz/native/abi.cpp"
FLAGS = ["-std=c++17", "-O0", "-g1", "-ffp-contract=off", f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/include", "-DADABM_FUZZ_MAIN"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}


@dataclass(frozen=True)
class Sanitized:
    """The library as object files, compiled with `flags`."""

    flags: list[str]
    folder: Path

    def compile(self, *sources: Path) -> None:
        subprocess.run(["g++", *FLAGS, *self.flags, "-c", *sources], cwd=self.folder, check=True)

    def program(self, main: Path) -> Path:
        """The library and one file with a main, linked."""
        self.compile(main)
        objects = [f"{source.stem}.o" for source in (*SOURCES, main)]
        subprocess.run(["g++", *self.flags, *objects, "-pthread", "-o", main.stem], cwd=self.folder, check=True)
        return self.folder / main.stem

    def changed(self, source: Path, old: str, new: str) -> Path:
        """A copy of a source with one line of it changed."""
        text = source.read_text()
        assert text.count(old) == 1
        copy = self.folder / source.name
        copy.write_text(text.replace(old, new))
        return copy


def run(*command: str | Path) -> subprocess.CompletedProcess:
    """A sanitizer for threads finds no room for its shadow where addresses are too random: then it runs where they are not."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if "unexpected memory mapping" in done.stderr and shutil.which("setarch"):
        return subprocess.run(["setarch", "-R", *command], capture_output=True, text=True, timeout=3600)
    return done


@pytest.fixture(scope="module", params=SANITIZERS)
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sanitized:
    made = Sanitized(SANITIZERS[request.param], tmp_path_factory.mktemp(request.param))
    made.compile(*SOURCES)
    return made


@needs("g++")
def test_many_callers_at_once(sanitized: Sanitized) -> None:
    done = run(sanitized.program(CALLERS), "6", "4")
    assert done.returncode == 0 and done.stdout == "0 failures\n", done.stdout + done.stderr


@needs("g++")
def test_drawn_problems(sanitized: Sanitized) -> None:
    if "-fsanitize=thread" in sanitized.flags:
        pytest.skip("one thread calls here, and test_many_callers_at_once has more")
    done = run(sanitized.program(FUZZER), "2", "300", "1000")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs("g++")
def test_it_would_tell(sanitized: Sanitized) -> None:
    """Memory that is not freed; results that a thread reads before those who made them have said so."""
    if "-fsanitize=thread" not in sanitized.flags:
        program = sanitized.program(sanitized.changed(CALLERS, "{ std::free(memory); }", "{ (void)memory; }"))
        said = "detected memory leaks"
    else:
        pool = ROOT / "csrc/cpu/thread_pool.cpp"
        sanitized.compile(
            sanitized.changed(
                pool, "running_.fetch_sub(1, std::memory_order_release)", "running_.fetch_sub(1, std::memory_order_relaxed)"
            )
        )
        program = sanitized.program(CALLERS)
        sanitized.compile(pool)
        said = "data race"
    done = run(program, "6", "4")
    assert done.returncode != 0 and said in done.stderr, done.stdout + done.stderr


# ---- all kernels


@pytest.mark.slow
@needs("g++")
def test_drawn_problems_on_every_instruction_set(tmp_path: Path) -> None:
    """With addresses, undefined behaviour and leaks watched. What the processor lacks is emulated."""
    done = run(programs.with_sanitizers(tmp_path), "3", "3000", "20000")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = dict(re.findall(r"^isa (\w+) ([0-9]+)$", done.stdout, re.MULTILINE))
    if platform.machine() == "x86_64" and processor_has("avx2", "fma"):
        assert all(int(calls[isa]) > 500 for isa in ("auto", "scalar", "avx2", "avxvnni", "amx"))


@pytest.mark.slow
@needs("cpu")
@needs("g++")
@needs("valgrind")
def test_valgrind_finds_nothing(tmp_path: Path) -> None:
    """On the library as it is shipped, with the instruction sets that valgrind knows: memory, leaks, values never written.

    What the sleeping threads of the pool hold counts as possibly lost.
    """
    watched = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"]
    for main, arguments in ((CALLERS, ("1", "2")), (FUZZER, ("4", "3000", "600"))):
        program = programs.own(tmp_path / main.stem, main)
        done = run(*watched, program, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        if main == FUZZER and platform.machine() == "x86_64" and processor_has("avx2", "fma"):
            assert int(re.findall(r"^isa avx2 ([0-9]+)$", done.stdout, re.MULTILINE)[0]) > 20


# ---- what is shipped


@pytest.mark.parametrize("name", ["cpu", "cuda"])
@needs("readelf")
def test_shipped_libraries_are_hardened(name: str) -> None:
    library = native.LIBRARIES / f"libadabm_{name}.so"
    if not library.exists():
        pytest.skip(f"no {library.name}")
    text = subprocess.run(["readelf", "-dlW", "--dyn-syms", library], capture_output=True, text=True, check=True).stdout
    if "__asan_init" in text:
        pytest.skip("the library with sanitizers is not shipped")
    assert re.search(r"GNU_RELRO", text) and re.search(r"FLAGS.*\bNOW\b", text), "relocations stay writable"
    assert re.search(r"GNU_STACK .* RW +0x", text), "the stack can be executed"
    assert not re.search(r"LOAD .* RWE ", text)
    if sys.platform.startswith("linux") and platform.machine() == "x86_64":
        assert "__stack_chk_fail" in text and "__vsnprintf_chk" in text
