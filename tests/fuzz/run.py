"""`python tests/fuzz/run.py --minutes 30`: every fuzzer in turns for that long, each input another one.

What fails is shrunk, printed and kept under build/fuzz, where the next run begins. Prints a table of the inputs tried.
"""

from __future__ import annotations

import argparse
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    args = parser.parse_args()
    chosen = args.targets or list(TARGETS)
    if unknown := set(chosen) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    tried = {name: Tried() for name in chosen}
    end = time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        # What has had least time has the next turn; a target that fails is not tried again.
        name = min((name for name in chosen if not tried[name].failures), key=lambda name: tried[name].seconds, default=None)
        if name is None:
            break
        turn(name, TARGETS[name](), tried[name])
    print("| target | inputs | seconds | failures |\n|---|---:|---:|---:|")
    for name, found in tried.items():
        print(f"| {name.replace('_', ' ')} | {found.inputs} | {found.seconds:.0f} | {len(found.failures)} |")
    return int(any(found.failures for found in tried.values()))


if __name__ == "__main__":
    sys.exit(main())
