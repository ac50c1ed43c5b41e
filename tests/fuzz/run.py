"""`python tests/fuzz/run.py --minutes 30`: every fuzzer in turns for that long, each input another one.

Structures that hypothesis draws (targets.py), bytes of valid inputs that are changed (mutations.py), and the C interface
(tests/helpers/native_programs.py). What fails is printed and kept under build/fuzz. Prints a table of the inputs tried.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "helpers")]

import native_programs as programs  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.database import DirectoryBasedExampleDatabase  # noqa: E402
from mutations import PARSERS, Parser, changed  # noqa: E402
from targets import TARGETS, Target  # noqa: E402

from adabm_kernels import native  # noqa: E402

FOUND = Path("build/fuzz").resolve()
A_TURN = 200  # inputs that hypothesis draws
SECONDS = 10  # of a turn of all others
HANG = 5  # seconds of the processor after which an input is taken for one that never ends


@dataclass
class Tried:
    """inputs: how many, by the name that the table has for them."""

    inputs: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def fail(self, name: str, text: str) -> None:
        self.failures.append(text)
        print(f"{name}: {text}", file=sys.stderr)


Turn = Callable[[Tried], None]


def drawn(name: str, target: Target, tried: Tried) -> None:
    """Some more inputs that hypothesis draws, and shrinks where one fails."""

    def counted(value: Any) -> None:
        tried.inputs[name] += 1
        target.check(value)

    options = settings(
        max_examples=A_TURN,
        database=DirectoryBasedExampleDatabase(FOUND / name),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run: Callable[[], None] = options(given(target.inputs)(counted))
    try:
        run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        tried.fail(name, "".join(traceback.format_exception(error)))


def of_bytes(name: str, parser: Parser, tried: Tried) -> None:
    """Some more seeds with bytes changed. One that fails is kept in build/fuzz/NAME."""

    def hangs(*_: Any) -> None:
        raise AssertionError(f"it takes longer than {HANG} s")

    random, end = Random(time.time_ns()), time.monotonic() + SECONDS
    before = signal.signal(signal.SIGPROF, hangs)
    try:
        while time.monotonic() < end and not tried.failures:
            data = changed(random, parser)
            signal.setitimer(signal.ITIMER_PROF, HANG)
            try:
                parser.check(data)
            except Exception as error:
                path = FOUND / name / hashlib.sha1(data).hexdigest()[:16]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                tried.fail(name, f"{path}\n" + "".join(traceback.format_exception(error)))
            tried.inputs[name] += 1
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def of_program(name: str, program: Path, arguments: list[str], tried: Tried) -> None:
    """Some more inputs for the C interface. The one that fails is in abi.failed beside the program."""
    seed = str(time.time_ns())
    done = subprocess.run(
        [program, seed, str(SECONDS), str(1 << 40), *arguments], cwd=program.parent, capture_output=True, text=True
    )
    if done.returncode:
        tried.fail(name, f"seed {seed}: {done.stderr}")
    for target, _, computed, refused in (line.split() for line in done.stdout.splitlines()[1:] if line.count(" ") == 3):
        tried.inputs[f"{name} {target}, computed"] += int(computed)
        tried.inputs[f"{name} {target}, refused"] += int(refused)


def guided(name: str, program: Path, tried: Tried) -> None:
    """libFuzzer for a turn, with the inputs that it has found so far."""
    corpus = program.parent / "corpus"
    corpus.mkdir(exist_ok=True)
    options = [
        f"-max_total_time={SECONDS}",
        "-max_len=512",
        "-timeout=60",
        "-print_final_stats=1",
        f"-artifact_prefix={program.parent}/",
    ]
    done = subprocess.run([program, *options, corpus], cwd=program.parent, capture_output=True, text=True)
    if done.returncode:
        tried.fail(name, done.stderr[-4000:])
    if count := re.search(r"number_of_executed_units: (\d+)", done.stderr):
        tried.inputs[name] += int(count[1])


def turns_of_programs() -> dict[str, Callable[[], Turn]]:
    """The fuzzers of the C interface that can be built here; each is built when its first turn comes."""
    if native.why_missing("cpu") or not shutil.which("g++"):
        return {}
    clang = programs.find_clang()

    def own(*arguments: str) -> Turn:
        program = programs.own(FOUND / "own" / "abi")
        return lambda tried: of_program("c_interface", program, list(arguments), tried)

    def sanitized() -> Turn:
        program = programs.with_sanitizers(FOUND / "sanitized")
        return lambda tried: of_program("c_interface_sanitized", program, [], tried)

    def by_coverage(cxx: str) -> Turn:
        program = programs.guided(FOUND / "guided", cxx)
        return lambda tried: guided("c_interface_guided", program, tried)

    found: dict[str, Callable[[], Turn]] = {
        "c_interface": own,
        "c_interface_broken": lambda: own("wrong"),
        "c_interface_sanitized": sanitized,
    }
    return found | ({"c_interface_guided": lambda: by_coverage(clang)} if clang else {})


def all_turns() -> dict[str, Callable[[], Turn]]:
    """What makes the turns of each fuzzer, by its name."""

    def of_target(name: str) -> Turn:
        return lambda tried: drawn(name, TARGETS[name](), tried)

    def of_parser(name: str) -> Turn:
        return lambda tried: of_bytes(name, PARSERS[name](), tried)

    made: dict[str, Callable[[], Turn]] = {name: lambda name=name: of_target(name) for name in TARGETS}  # type: ignore[misc]
    made |= {name: lambda name=name: of_parser(name) for name in PARSERS}  # type: ignore[misc]
    return made | turns_of_programs()


def add_to(path: Path, inputs: Counter[str]) -> None:
    """Adds the inputs of a run to those that a file of JSON counts."""
    before = Counter(json.loads(path.read_text())) if path.exists() else Counter()
    path.write_text(json.dumps(dict(sorted((before + inputs).items())), indent=1) + "\n")


def main() -> int:
    turns = all_turns()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--add-to", type=Path, help="a file of JSON that counts the inputs of all runs")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(turns)} (default: all)")
    args = parser.parse_args()
    chosen = args.targets or list(turns)
    if unknown := set(chosen) - set(turns):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    FOUND.mkdir(parents=True, exist_ok=True)
    tried, ready = {name: Tried() for name in chosen}, dict[str, Turn]()
    end = time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        # What has had least time has the next turn; a target that fails is not tried again.
        name = min((name for name in chosen if not tried[name].failures), key=lambda name: tried[name].seconds, default=None)
        if name is None:
            break
        if name not in ready:
            ready[name] = turns[name]()
        start = time.perf_counter()
        ready[name](tried[name])
        tried[name].seconds += time.perf_counter() - start
    print("| target | inputs |\n|---|---:|")
    inputs = Counter[str]()
    for found in tried.values():
        inputs += found.inputs
    for name, count in inputs.items():
        print(f"| {name.replace('_', ' ')} | {count} |")
    failed = [name for name, found in tried.items() if found.failures]
    print(f"\n{inputs.total()} inputs, {len(failed) or 'no'} targets failed{': ' * bool(failed)}{', '.join(failed)}")
    if args.add_to:
        add_to(args.add_to, inputs)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
