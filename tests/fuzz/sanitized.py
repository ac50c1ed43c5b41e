"""`python tests/fuzz/sanitized.py [PYTEST ARGUMENTS]`: tests, with sanitizers in every kernel of the CPU library that they load.

Addresses and undefined behaviour, in all instruction sets, without suppressions. What ends a process fails its test. Without
arguments it runs the tests of all that calls the library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "helpers")]

from native_programs import ROOT, SANITIZERS, build_library  # noqa: E402

FOLDER = ROOT / "build" / "fuzz" / "sanitized"
# What compiles libraries of its own gains nothing here. GCC's sanitizer of addresses may wait for ever in a forked process whose
# parent has threads, so tests that fork are left out: what they try of memory has pages of its own to guard it.
LEFT_OUT = ("tests/cpu/test_sanitizers.py", "tests/cpu/test_twins.py", "tests/cpu/test_guard_pages.py")
FORKS = "not fork and not test_no_memory_beside"
SUITE = ("tests/cpu", "tests/ops", "tests/nn", "tests/upscaling", "tests/fuzz/test_fuzz_native.py")


def package(folder: Path = FOLDER) -> Path:
    """A folder for PYTHONPATH that has the package with sanitizers in its CPU library; all else is the package's own files."""
    made = build_library(folder, f"g++ {' '.join(SANITIZERS)}", ["-O1"]).parent.parent
    for path in (ROOT / "adabm_kernels").iterdir():
        if path.name not in ("_lib", "__pycache__") and not (made / path.name).exists():
            (made / path.name).symlink_to(path)
    return made.parent


def preloaded() -> dict[str, str]:
    """The environment of an interpreter that loads that package.

    Leaks are not looked for: Python leaves much for the system to free, and tests/cpu/test_sanitizers.py looks for ours in programs
    without it. Tests that touch memory on purpose see the signal as they do without sanitizers.
    """
    found = [
        subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("asan", "ubsan", "stdc++")  # the last for exceptions, which sanitizers look for as soon as they are loaded
    ]
    options = "detect_leaks=0:handle_segv=0:allocator_may_return_null=1"
    return {"LD_PRELOAD": ":".join(found), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}


def main() -> int:
    arguments = sys.argv[1:] or [*SUITE, *(f"--ignore={path}" for path in LEFT_OUT), "-k", FORKS]
    folder = package()
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | preloaded()
    python = [sys.executable, "-P"]  # the working directory has the package too, which must not be found before this one
    probe = "from adabm_kernels import native; print(native.library('cpu').path)"
    loaded = subprocess.run([*python, "-c", probe], env=environment, capture_output=True, text=True, check=True).stdout
    if not loaded.startswith(str(folder)):
        raise SystemExit(f"the package with sanitizers must be loaded, got {loaded}")
    return subprocess.run([*python, "-m", "pytest", *arguments], env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
