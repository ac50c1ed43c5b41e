"""What a card has to tell in minutes: one script for a machine with a card of compute capability 8.0 or newer, and no network.

    python benchmarks/gpu/on_card.py --prepare             # here, with nvcc and torch: makes what is carried along, build/on_card
    python benchmarks/gpu/on_card.py --out FILE            # there, with torch, Triton, adabm_kernels/_lib and build/on_card
    python benchmarks/gpu/on_card.py --list                # the steps, their limits and what each asks
    python benchmarks/gpu/on_card.py --only golden,layers  # some of them
    python benchmarks/gpu/on_card.py --out FILE --resume   # those that FILE has no good end of
    python benchmarks/gpu/on_card.py --dry-run             # without a card: the steps that can, at tiny sizes on a pretended one

Nothing is compiled there but by Triton and torch.compile. Each step runs in a process of its own, with a limit: one that fails,
crashes or hangs costs its own answers alone. Answers are appended to FILE as lines of JSON as they come, each with the name of its
"step"; the last line is a summary. measure_gpu.py is the long study, for whoever has the card for hours.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / "build" / "on_card"
NETWORK = CARRIED / "edsr_baseline_x4.safetensors"
LIBRARIES = ROOT / "adabm_kernels" / "_lib"
RESULTS = ROOT / "benchmarks" / "results"
BUDGET = 480  # the sum of the limits of all steps, in seconds
LEAST = 3  # the least seconds that must be left for a step to begin
NOT_RUN = 77  # the exit status of a step that cannot run here; its last answer says why
TAIL = 1500  # the most characters that are kept of the output of a step that failed


@dataclass(frozen=True)
class Step:
    """One process, `card_steps.py NAME`. limit: the seconds after which it is killed, together with all processes that it has
    started."""

    name: str
    limit: float
    asks: str


STEPS = (  # the most telling steps come first
    Step("card", 10, "name, compute capability, clocks, versions, and what was carried"),
    Step("probe", 20, "matrix descriptors and the proxy fence of 9.0; rates of the matrix products"),
    Step("golden", 50, "a call of every family of kernels, each in a process of its own, against answers made beforehand"),
    Step("tests", 105, "tests/gpu/test_gpu.py, the CUDA library before Triton"),
    Step("sanitizer", 50, "compute-sanitizer's four tools on golden problems, without torch"),
    Step("layers", 60, "copy and cuBLAS ceilings; the layers of EDSR beside what is counted for them, and cuDNN float16"),
    Step("ncu", 40, "three kernels under Nsight Compute, without torch"),
    Step("networks", 40, "EDSR-baseline x4 at 512x512 and 128x128 as CUDA graphs beside eager float16, the same weights"),
    Step("compiled", 105, "the same by torch.compile, max-autotune, float16"),
)
NAMES = [step.name for step in STEPS]
Command = Callable[[Step], list[str]]


def step_command(dry: bool) -> Command:
    script = str(Path(__file__).with_name("card_steps.py"))
    return lambda step: [sys.executable, script, step.name, *(["--dry-run"] if dry else [])]


@dataclass
class Journal:
    """A file of answers. Each is a line of JSON that is on the disk before the next one is made."""

    path: Path
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size
        self._file = self.path.open("a")
        if torn:  # the machine went away while it wrote
            self._file.write("\n")

    def add(self, answer: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(answer | {"at": round(time.monotonic() - self.begun, 2)}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def answers(path: Path) -> list[dict[str, Any]]:
    """The answers in a journal. A line that is no whole JSON is left out."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        found += [answer] if isinstance(answer, dict) else []
    return found


def ended_well(path: Path) -> dict[str, dict[str, Any]]:
    """The steps whose last end in a journal is "ok": {step: its end}."""
    ends = {answer["step"]: answer for answer in answers(path) if "status" in answer}
    return {name: end for name, end in ends.items() if end["status"] == "ok"}


def run_step(step: Step, command: list[str], limit: float, journal: Journal) -> dict[str, Any]:
    """Runs one step and journals its answers as they come. Returns its end: "status", "seconds", and "reason" where it is not ok.

    status: "ok"; "not run", where the step says that it cannot; "failed", by its exit status; "crashed", by a signal; "timeout".
    """
    start, last = time.monotonic(), {}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace", start_new_session=True
        )
        said: list[str] = []

        def read() -> None:
            for line in process.stdout:
                try:
                    answer = json.loads(line)
                except ValueError:
                    said.append(line)
                    continue
                if isinstance(answer, dict):
                    last.update(answer)
                    journal.add({"step": step.name} | answer)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            status = process.wait(timeout=limit)
            timed_out = False
        except subprocess.TimeoutExpired:
            status, timed_out = None, True
        _kill(process)  # this ends what the process has left running, too
        reader.join(timeout=5)
        errors.seek(0)
        tail = ("".join(said)[-TAIL:] + errors.read()[-TAIL:]).strip()
    end: dict[str, Any] = {"seconds": round(time.monotonic() - start, 2), "limit": round(limit, 1)}
    if timed_out:
        return end | {"status": "timeout", "reason": f"killed after {limit:.0f} s", "output": tail}
    if status == NOT_RUN:
        return end | {"status": "not run", "reason": last.get("not_run", "no reason given")}
    if status:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return end | {"status": "crashed" if status < 0 else "failed", "reason": how, "output": tail}
    return end | {"status": "ok"} | ({"tally": last["tally"]} if "tally" in last else {})


def _kill(process: subprocess.Popen) -> None:
    """Kills the process and all that it has started. A process that the driver holds on to is left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        pass


def run_all(steps: tuple[Step, ...], command: Command, journal: Journal, budget: float, done: dict[str, dict]) -> dict[str, dict]:
    """Runs the steps in their order and journals the end of each. done: the ends of steps that are not to be run again.

    No step begins with less than LEAST seconds of the budget left, and none gets more than is left. Where the step "card" finds no
    card, the other steps do not run, for the same reason.
    """
    ends, no_card = {}, ""
    for step in steps:
        if step.name in done:
            ends[step.name] = done[step.name]
            continue
        left = budget - (time.monotonic() - journal.begun)
        print(f"{step.name}: {step.asks} (at most {min(step.limit, max(left, 0)):.0f} s)", flush=True)
        if no_card or left < LEAST:
            end = {"status": "not run", "seconds": 0.0, "reason": no_card or f"the budget of {budget:.0f} s is spent"}
        else:
            end = run_step(step, command(step), min(step.limit, left), journal)
        if step.name == "card" and end["status"] == "not run":
            no_card = end["reason"]
        ends[step.name] = end
        journal.add({"step": step.name} | end)
        print(f"  {described(end)}", flush=True)
    return ends


def described(end: dict[str, Any]) -> str:
    """The end of a step in one line."""
    tally = ", ".join(f"{count} {name}" for name, count in end.get("tally", {}).items())
    return f"{end['status']}, {end['seconds']:.1f} s" + "".join(f": {part}" for part in (tally, end.get("reason")) if part)


def prepare() -> None:
    """Makes build/on_card: the library of the probes, golden problems, EDSR-baseline x4 with random weights, and a note of the
    sources that all this was made of. It takes minutes, most of them for the network, which is kept where it is there already."""
    sys.path.insert(0, str(ROOT))
    import golden_problems
    import probes
    from bench_gpu_networks import converted
    from gpu_place import commit

    from adabm_kernels import save

    library = LIBRARIES / "libadabm_cuda.so"
    if not library.exists():
        raise SystemExit("on_card: adabm_kernels/_lib/libadabm_cuda.so is not there: build it first (ADABM_CUDA=on, setup.py)")
    probes.build()
    made = golden_problems.make(CARRIED / "golden")
    if not NETWORK.exists():
        save(converted("edsr_x4"), NETWORK)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(LIBRARIES.glob("*.so"))}
    facts = {"commit": commit(), "date": datetime.date.today().isoformat(), "libraries": digests, "golden": len(made)}
    (CARRIED / "prepared.json").write_text(json.dumps(facts, indent=1) + "\n")
    size = sum(path.stat().st_size for folder in (CARRIED, LIBRARIES) for path in folder.rglob("*") if path.is_file())
    print(f"prepared: {len(made)} golden problems and the probes; carry adabm_kernels/_lib and build/on_card, {size / 1e6:.1f} MB")


def chosen(text: str) -> list[str]:
    """The names of STEPS in a text, separated by commas."""
    names = text.split(",")
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"steps must be of {', '.join(NAMES)}, got {', '.join(map(repr, unknown))}")
    return names


def seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text}")
    return value


def table() -> str:
    lines = [f"{step.name:10} {step.limit:4.0f} s  {step.asks}" for step in STEPS]
    return "\n".join([*lines, f"{'in all':10} {sum(step.limit for step in STEPS):4.0f} s"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="make what is carried along, and run nothing")
    parser.add_argument("--list", action="store_true", help="print the steps and their limits, and run nothing")
    parser.add_argument("--only", type=chosen, action="extend", metavar="NAMES", help="only these, separated by commas")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where answers go; benchmarks/results/on-card-DATE.jsonl if not given"
    )
    parser.add_argument("--budget", type=seconds, default=BUDGET, metavar="SECONDS", help=f"for all steps; {BUDGET} if not given")
    parser.add_argument("--resume", action="store_true", help="run what FILE has no good end of")
    parser.add_argument("--dry-run", action="store_true", help="without a card, at tiny sizes; no figure means anything")
    args = parser.parse_args()
    if args.list:
        print(table())
        return 0
    if args.prepare:
        prepare()
        return 0
    name = f"on-card-{datetime.date.today().isoformat()}.jsonl"
    # A dry run leaves no file among the results.
    path = args.out or (Path(tempfile.mkdtemp()) if args.dry_run else RESULTS) / name
    steps = tuple(step for step in STEPS if not args.only or step.name in args.only)
    if args.dry_run:  # the CPU takes longer
        steps = tuple(replace(step, limit=10 * step.limit) for step in steps)
    done = ended_well(path) if args.resume else {}
    journal = Journal(path)
    ends = run_all(steps, step_command(args.dry_run), journal, args.budget, done)
    journal.add({"summary": {name: {k: v for k, v in end.items() if k != "output"} for name, end in ends.items()}})
    width = max(map(len, ends), default=0)
    print("\n".join(f"{name:{width}}  {described(end)}" for name, end in ends.items()))
    print(f"answers: {path}" + ("; a dry run, no figure means anything" if args.dry_run else ""))
    return int(any(end["status"] in ("failed", "crashed", "timeout") for end in ends.values()))


if __name__ == "__main__":
    sys.exit(main())
