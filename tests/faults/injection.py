"""`python tests/faults/injection.py [--kinds KIND ...] [WORK ...]`: each call to the system that work makes fails in turn.

The calls are allocations, and those that open, read, write, flush and name files (`shim.c`, preloaded). For each number n a fork
of this process does the work while the n-th call of a kind fails, once or from then on. The work must end with the right result or
with an error in words; nothing half-written may lie in the folder; and the same work, done again by the same process with the same
model, must give what it gives undisturbed. Exit status 1 where anything else was seen.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import importlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "helpers")]

FOREVER = 1 << 40
SECONDS = 300  # after so many a fork that has not ended is taken to hang
SHOWN = 10  # the most faults of each kind that are printed
TOGETHER = 20  # failures that one fork goes through, one after the other


@dataclass(frozen=True)
class Kind:
    """Calls that fail. number: the shim's number of them. error: what they fail with. times: how many in a row."""

    number: int
    error: int
    times: int = 1


# Libraries below end the process where they lack a few bytes: GLib and Rust always do, C++ where an exception may not leave. So
# everybody's allocations count from LEAST bytes on, as tensors and rows of pixels have, and all of the package's own library.
LEAST = 4096
KINDS = {
    "allocation": Kind(1, errno.ENOMEM),
    "allocations": Kind(1, errno.ENOMEM, FOREVER),
    "own allocation": Kind(2, errno.ENOMEM),
    "own allocations": Kind(2, errno.ENOMEM, FOREVER),
    "open": Kind(3, errno.EMFILE),
    "opens": Kind(3, errno.EMFILE, FOREVER),
    "read": Kind(4, errno.EIO),
    "reads": Kind(4, errno.EIO, FOREVER),
    "write": Kind(5, errno.ENOSPC),
    "writes": Kind(5, errno.ENOSPC, FOREVER),
    "flush": Kind(6, errno.EIO),
    "name": Kind(7, errno.ENOSPC),
    "names": Kind(7, errno.EPERM, FOREVER),
}
MEMORY = tuple(kind for kind in KINDS if "allocation" in kind)
FILES = tuple(kind for kind in KINDS if kind not in MEMORY)


# ---- the preloaded library


def build_shim(folder: Path) -> Path:
    """The preloaded library, compiled. Raises OSError or subprocess.CalledProcessError where that is not possible."""
    made = folder / "faults.so"
    options = ["-O1", "-shared", "-fPIC", "-fexceptions", "-Wall", "-Wextra", "-Werror"]
    command = [os.environ.get("CC", "cc"), *options, "-o", made, HERE / "shim.c", "-Wl,--no-as-needed", "-lstdc++"]
    subprocess.run(command, check=True, capture_output=True)
    return made


def _shim() -> ctypes.CDLL:
    shim = ctypes.CDLL(None)
    shim.faults_arm.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_size_t]
    shim.faults_disarm.restype = ctypes.c_long
    shim.faults_asked.restype = ctypes.c_char_p
    shim.faults_own.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    return shim


def _own_code() -> tuple[int, int]:
    """Where the package's own library lies in memory."""
    with open("/proc/self/maps") as lines:
        places = [line.split()[0].split("-") for line in lines if "libadabm_cpu" in line]
    return (int(places[0][0], 16), int(places[-1][1], 16)) if places else (0, 0)


# ---- work


@dataclass(frozen=True)
class Work:
    """A piece of work.

    prepare: makes what the folder holds before. do: does the work and returns what is compared; it raises what the work raises, and
    SystemExit for the exit status of a command. kinds: the kinds of calls that fail.
    """

    prepare: Callable[[Path], None]
    do: Callable[[Path], Any]
    kinds: tuple[str, ...]


def held(folder: Path) -> dict[str, bytes]:
    """What a folder holds: the bytes of its files, and of model files those of the tensors, whose header says how long it took."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _tensors(value) if name.endswith(".safetensors") else value for name, value in files.items()}


def _tensors(file: bytes) -> bytes:
    return file[8 + int.from_bytes(file[:8], "little") :]


def _nothing(folder: Path) -> None:
    pass


def _works() -> dict[str, Work]:
    import numpy as np
    import PIL.Image
    import torch
    from small import noise, repeating_edsr, small_edsr

    import adabm_kernels
    from adabm_kernels import cli

    torch.set_num_threads(1)
    config = adabm_kernels.ConvertConfig(steps=0)
    float_model = small_edsr(blocks=1)
    network = adabm_kernels.convert_model(float_model, calibration=noise(2), config=config)
    x = noise(1, 40, 48)[0]
    rows = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)

    def convert(folder: Path) -> Any:
        model = adabm_kernels.convert_model(float_model, calibration=noise(1), config=config)
        return {key: value.tolist() for key, value in model.state_dict().items()}

    def save(folder: Path) -> Any:
        adabm_kernels.save(network, folder / "m.safetensors")
        return (folder / "m.safetensors").read_bytes()

    def load(folder: Path) -> Any:
        return adabm_kernels.load(folder / "m.safetensors")(x).tolist()

    def pictures(folder: Path) -> None:
        (folder / "in").mkdir()
        save(folder)
        for i, name in enumerate(("a.png", "b.jpg", "c.tif", "d.webp", "e.bmp")):
            PIL.Image.fromarray(rows[: 32 + i]).save(folder / "in" / name)
        PIL.Image.fromarray(rows).quantize(9).save(folder / "in" / "f.png")

    def command(*names: str) -> Callable[[Path], Any]:
        def run(folder: Path) -> Any:
            os.chdir(folder)
            status = cli.main([*names, "--threads", "1"])
            if status:
                raise SystemExit(status)
            return {name: value for name, value in held(Path()).items() if name.startswith("out")}

        return run

    def weights(folder: Path) -> None:
        (folder / "in").mkdir()
        for i in range(2):
            PIL.Image.fromarray(rows[: 16 + i]).resize((48, 48), PIL.Image.Resampling.BICUBIC).save(folder / "in" / f"{i}.png")
        torch.save(repeating_edsr(blocks=1).state_dict(), folder / "w.pt")

    upscale = ("upscale", "--model", "m.safetensors", "-q")
    calibrate = ("calibrate", "--weights", "w.pt", "--images", "in", "--no-check", "--existing", "replace", "--steps", "0")
    return {
        "forward": Work(_nothing, lambda folder: network(x).tolist(), MEMORY),
        "upscale": Work(_nothing, lambda folder: adabm_kernels.upscale(rows, network).tolist(), MEMORY),
        "convert": Work(_nothing, convert, MEMORY),
        "save": Work(_nothing, save, tuple(KINDS)),
        "load": Work(lambda folder: void(save(folder)), load, (*MEMORY, "open", "opens", "read", "reads")),
        "picture": Work(pictures, command(*upscale, "in/a.png", "-o", "out.png"), tuple(KINDS)),
        "tiff": Work(pictures, command(*upscale, "in/c.tif", "-o", "out.tif"), tuple(KINDS)),
        "jpeg": Work(pictures, command(*upscale, "in/b.jpg", "-o", "out.jpg"), FILES),
        "webp": Work(pictures, command(*upscale, "in/d.webp", "-o", "out.webp"), FILES),
        "bmp": Work(pictures, command(*upscale, "in/e.bmp", "-o", "out.bmp"), FILES),
        "palette": Work(pictures, command(*upscale, "in/f.png", "-o", "out.png", "--scale", "1.5"), FILES),
        "folder": Work(pictures, command(*upscale, "in", "-o", "out", "--existing", "skip"), tuple(KINDS)),
        "calibrate": Work(weights, command(*calibrate, "-o", "out.safetensors"), tuple(KINDS)),
    }


def void(_: object) -> None:
    """Throws a value away."""


# ---- forks


def in_fork(call: Callable[[], Any]) -> Any:
    """What the call returns in a fork of this process. Raises RuntimeError where the fork is ended by a signal or otherwise."""
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(SECONDS)
                pickle.dump(call(), answer)
                answer.flush()
                os._exit(0)
            except BaseException:  # noqa: BLE001 - it is told by the parent
                pickle.dump(traceback.format_exc(), answer)
                answer.flush()
            finally:
                os._exit(70)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answer.seek(0)
        if status:
            raise RuntimeError(f"ended by signal {-status}" if status < 0 else pickle.load(answer))
        return pickle.load(answer)


@dataclass(frozen=True)
class Seen:
    """What came of a piece of work. result: what it returned, None after an error. refused: whether it said what was wrong.
    faults: what stands against it. calls: how many calls of the kind there were."""

    result: Any
    refused: bool
    faults: list[str]
    calls: int


def attempt(work: Work, folder: Path, kind: Kind, n: int, want: Any = None) -> Seen:
    """Does the work in this process while the n-th call fails, and judges what comes of it by the result `want`. It changes the
    process: the call is one for a fork."""
    from adabm_kernels.commands.common import lacks_memory

    said = folder.parent / "stderr"
    os.dup2(os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    shim, result, error, faults = _shim(), None, None, []
    shim.faults_own(*_own_code())
    shim.faults_arm(kind.number, n, kind.times, kind.error, LEAST)
    try:
        result = work.do(folder)
    except BaseException as caught:  # noqa: BLE001 - it is judged below
        error = caught
    calls = shim.faults_disarm()
    words = said.read_text(errors="replace")
    if want is None:
        if error is not None:
            raise error
    elif error is None:
        if result != want:
            faults.append("another result, and no error")
    else:
        faults += _judged(error, words, lacks_memory if kind.error == errno.ENOMEM else None)
        found = held(folder)
        faults += [f"{name} is left" for name in found if ".adabm" in name]
        if isinstance(want, dict):
            faults += [f"{name} is not whole" for name in found if name.startswith("out") and found[name] != want.get(name)]
        try:
            if work.do(folder) != want:
                faults.append("another result afterwards")
        except BaseException as caught:  # noqa: BLE001 - it is told
            faults.append(f"afterwards {caught!r}: {said.read_text(errors='replace')[-300:]!r}")
    return Seen(None if error else result, error is not None, faults, calls)


def _judged(error: BaseException, words: str, lacks_memory: Callable[[BaseException], bool] | None) -> list[str]:
    """What stands against an error, and against what a command has said of it."""
    if isinstance(error, SystemExit):
        fine = words.startswith("adabm: ") and "unexpected" not in words and "Traceback" not in words and error.code in (1, 2)
        fine = fine and (lacks_memory is None or "not enough memory" in words)
        return [] if fine else [f"exit status {error.code} after {words[-600:]!r}"]
    if type(error).__name__ == "PanicException":  # Rust's, where it does not end the process
        return []
    if lacks_memory is not None:
        return [] if lacks_memory(error) else [f"the error {error!r}, which says nothing of memory"]
    return [] if isinstance(error, OSError | ValueError | RuntimeError) and "Traceback" not in words else [f"the error {error!r}"]


@dataclass
class Tally:
    """calls: how many there were. tried: how many failed in turn. right, refused: how often the work was done nevertheless, and how
    often it said what was wrong. ended: how often a library below ended the process for want of its own memory, and nothing was
    left. faults: by number of the call, what else was seen."""

    calls: int = 0
    tried: int = 0
    right: int = 0
    refused: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)


_warm: set[str] = set()  # work whose modules are imported


def sweep(name: str, work: Work, kind: str, numbers: Callable[[int], Iterable[int]] = lambda calls: range(1, calls + 1)) -> Tally:
    """Fails the calls of one kind in turn. numbers: which of them, by how many there are."""
    tally = Tally()
    _shim().faults_asked()  # from here on forks share it
    with tempfile.TemporaryDirectory(prefix="adabm-faults-") as place:
        folder, said = Path(place, "folder"), Path(place, "stderr")

        def each(failing: Iterable[int], want: Any = None) -> dict[int, Seen]:
            found = {}
            for n in failing:
                os.chdir(place)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                work.prepare(folder)
                found[n] = attempt(work, folder, KINDS[kind], n, want)
            return found

        def modules() -> list[str]:
            each([FOREVER])
            return list(sys.modules)

        warnings.simplefilter("ignore")
        if name not in _warm:
            for module in in_fork(modules):
                with suppress(Exception):
                    importlib.import_module(module)  # what the work imports is not what fails
            _warm.add(name)
        undisturbed = in_fork(lambda: each([FOREVER]))[FOREVER]
        tally.calls, want = undisturbed.calls, undisturbed.result
        waiting = [list(numbers(tally.calls))]
        waiting = [waiting[0][first : first + TOGETHER] for first in range(0, len(waiting[0]), TOGETHER)]
        while waiting:
            batch = waiting.pop()
            try:
                found = in_fork(lambda batch=batch: each(batch, want))
            except RuntimeError as error:
                if len(batch) > 1:  # to see which of them it was
                    waiting += [[n] for n in batch]
                    continue
                asked = Path(_shim().faults_asked().decode()).name
                left = [path.name for path in folder.rglob(".adabm*")]
                tally.tried += 1
                if kind in MEMORY and asked and "adabm" not in asked and not left:
                    tally.ended[asked] += 1
                else:
                    tally.faults[batch[0]] = f"{error}, {left} left: {said.read_text(errors='replace')[-300:]!r}"
                continue
            for n, seen in found.items():
                tally.tried += 1
                tally.right += not seen.refused
                tally.refused += seen.refused
                if seen.faults:
                    tally.faults[n] = "; ".join(seen.faults)
    return tally


def preloaded() -> bool:
    return "faults.so" in os.environ.get("LD_PRELOAD", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--most", type=int, default=FOREVER, help="of each kind at most so many calls, evenly spread")
    parser.add_argument("--count", action="store_true", help="only say how many calls there are")
    args = parser.parse_args()
    if not preloaded():
        with tempfile.TemporaryDirectory(prefix="adabm-faults-") as folder:
            environment = os.environ | {"LD_PRELOAD": str(build_shim(Path(folder))), "OMP_NUM_THREADS": "1"}
            return subprocess.run([sys.executable, *sys.argv], env=environment).returncode

    def numbers(calls: int) -> Iterable[int]:
        return range(1, 1 if args.count else calls + 1, max(1, -(-calls // args.most)))

    found, works = 0, _works()
    for name in args.works or works:
        for kind in args.kinds:
            if kind not in works[name].kinds:
                continue
            tally = sweep(name, works[name], kind, numbers)
            found += len(tally.faults)
            print(
                f"{name}, {kind}: {tally.calls} calls, {tally.tried} failed in turn: {tally.right} done nevertheless, "
                f"{tally.refused} refused in words, {len(tally.faults)} faults"
                + "".join(f", {count} ended by {library}" for library, count in tally.ended.items()),
                flush=True,
            )
            for n, fault in list(tally.faults.items())[:SHOWN]:
                print(f"    call {n}: {fault}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
