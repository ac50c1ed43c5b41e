"""`python tests/fuzz/run.py --minutes 30`: every fuzzer in turns for that long, each input another one.

What fails is shrunk, printed and kept under build/fuzz, where the next run begins. Prints a table of the inputs tried.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "helpers")]

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.database import DirectoryBasedExampleDatabase  # noqa: E402
from targets import TARGETS, Target  # noqa: E402

FOUND = Path("build/fuzz")
A_TURN = 200  # inputs
# tests/fuzz/native/abi.cpp, as `make fuzz` builds it.
NATIVE = {"c_interface": FOUND / "abi", "c_interface_sanitized": FOUND / "abi_sanitized"}
NATIVE_SECONDS = 20  # of a turn


KNOWN = [*TARGETS, *(name for name, program in NATIVE.items() if program.exists())]


@dataclass
class Tried:
    inputs: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def turn(name: str, target: Target, tried: Tried) -> None:
    """Some more inputs for one target."""

    def counted(value: Any) -> None:
        tried.inputs += 1
        target.check(value)

    options = settings(
        max_examples=A_TURN,
        database=DirectoryBasedExampleDatabase(FOUND / name),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run: Callable[[], None] = options(given(target.inputs)(counted))
    start = time.perf_counter()
    try:
        run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        tried.failures.append("".join(traceback.format_exception(error)))
        print(f"{name}: {tried.failures[-1]}", file=sys.stderr)
    tried.seconds += time.perf_counter() - start


def native_turn(program: Path, tried: Tried) -> None:
    """Some more inputs for the C interface; what fails is in build/fuzz/abi.failed."""
    start = time.perf_counter()
    seed = str(time.time_ns())
    done = subprocess.run([program.resolve(), seed, str(NATIVE_SECONDS)], cwd=FOUND, capture_output=True, text=True)
    tried.seconds += time.perf_counter() - start
    if done.returncode:
        tried.failures.append(f"seed {seed}: {done.stderr}")
        print(f"the C interface: {tried.failures[-1]}", file=sys.stderr)
    else:
        tried.inputs += int(done.stdout.split()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(KNOWN)} (default: all)")
    args = parser.parse_args()
    chosen = args.targets or KNOWN
    if unknown := set(chosen) - set(KNOWN):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    tried = {name: Tried() for name in chosen}
    end = time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        # What has had least time has the next turn; a target that fails is not tried again.
        name = min((name for name in chosen if not tried[name].failures), key=lambda name: tried[name].seconds, default=None)
        if name is None:
            break
        if name in NATIVE:
            native_turn(NATIVE[name], tried[name])
        else:
            turn(name, TARGETS[name](), tried[name])
    print("| target | inputs | seconds | failures |\n|---|---:|---:|---:|")
    for name, found in tried.items():
        print(f"| {name.replace('_', ' ')} | {found.inputs} | {found.seconds:.0f} | {len(found.failures)} |")
    return int(any(found.failures for found in tried.values()))


if __name__ == "__main__":
    sys.exit(main())
