"""`python tests/faults/kills.py --kills 100 upscale save calibrate tune`: work that is killed at random moments, then done again.

Each attempt runs in a fork of this process, which has imported all it needs and started no thread, and is killed by SIGKILL after a
random part of the time that the work takes. Afterwards the work is done once more to its end: what it made must equal what it makes
undisturbed, and nothing else may be left in the folder. Between two kills every output is whole: an old one, a new one, or none.
"""

from __future__ import annotations

import argparse
import functools
import json
import operator
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "helpers")]

import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from small import repeating_edsr  # noqa: E402

import adabm_kernels  # noqa: E402
from adabm_kernels import cli, convert, evaluate, images, upscaling  # noqa: E402,F401
from adabm_kernels.backends import devices  # noqa: E402
from adabm_kernels.checkpoint import load, save  # noqa: E402
from adabm_kernels.commands.common import Progress  # noqa: E402,F401


@dataclass(frozen=True)
class Work:
    """prepare: what the folder holds before. do: the work, which ends with exit status 0. outputs: names of what it makes.
    whole: what is read of an output, and raises where it is not whole. agrees: whether what was read of an output, between two
    kills, may be there where the whole work makes the second."""

    prepare: Callable[[Path], None]
    do: Callable[[Path], int]
    outputs: tuple[str, ...]
    whole: Callable[[Path], object]
    agrees: Callable[[Any, Any], bool] = operator.eq


def _pictures(folder: Path, count: int, side: int) -> None:
    generator = np.random.default_rng(0)
    (folder / "in").mkdir()
    for i in range(count):
        coarse = PIL.Image.fromarray(generator.integers(0, 256, (side // 4, side // 4, 3)).astype(np.uint8))
        coarse.resize((side, side), PIL.Image.Resampling.BICUBIC).save(folder / "in" / f"{i}.png")


def _upscale(folder: Path) -> int:
    return cli.main(["upscale", str(folder / "in"), "-o", str(folder / "out"), "--existing", "skip", "-q", "--threads", "1"])


def _decoded(path: Path) -> object:
    with PIL.Image.open(path) as image:
        return image.size, image.tobytes()


def _save(folder: Path) -> int:
    model = load(adabm_kernels.builtin_models()["edsr_x4_w4a4"])
    for _ in range(20):
        save(model, folder / "m.safetensors")
    return 0


def _tensors(path: Path) -> object:
    load(path)
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).numpy().tobytes() for key in list(file.keys())}


def _weights(folder: Path) -> None:
    _pictures(folder, 4, 48)
    torch.save(repeating_edsr(blocks=1).state_dict(), folder / "w.pt")


def _calibrate(folder: Path) -> int:
    names = ["--weights", str(folder / "w.pt"), "--images", str(folder / "in"), "-o", str(folder / "m.safetensors")]
    return cli.main(["calibrate", *names, "--steps", "12", "--threads", "1", "--existing", "replace", "--no-check"])


def _tune(folder: Path) -> int:
    """`adabm tune`, on a card that is not there and takes a time of its own for each config."""
    from pretended_card import Card

    from adabm_kernels.commands import tune
    from adabm_kernels.tuning import gpu

    card = Card()
    card.milliseconds = lambda work: zlib.crc32(repr(card.tuning._forced).encode()) % 1000 / 1e3
    card.stand_in(setattr)
    gpu.SIZES = (8,)
    candidates = card.tuning.candidates
    card.tuning.candidates = lambda *shape: candidates(*shape)[: gpu.FIRST + 2]
    gpu.kinds_of = functools.partial(gpu.kinds_of, sizes=gpu.SIZES)
    gpu.tune_launches = functools.partial(gpu.tune_launches, milliseconds=card.milliseconds)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    model = load(adabm_kernels.builtin_models()["edsr_x4_w4a4"])
    tune.measure({"edsr": model}, None, lambda line: None, "no library")
    return 0


def _entries(path: Path) -> object:
    return json.loads(path.read_text())


def _measured_before(entries: dict, whole: dict) -> bool:
    """Whether a table holds what was measured until some moment."""
    return all(key in whole and entry["tried"] <= whole[key]["tried"] for key, entry in entries.items())


WORKS = {
    "upscale": Work(lambda folder: _pictures(folder, 3, 32), _upscale, ("out/0_x4.png", "out/1_x4.png", "out/2_x4.png"), _decoded),
    "save": Work(lambda folder: None, _save, ("m.safetensors",), _tensors),
    "calibrate": Work(_weights, _calibrate, ("m.safetensors",), _tensors),
}
if not devices.why_no_triton():
    WORKS["tune"] = Work(lambda folder: None, _tune, ("adabm_kernels/tuning.json",), _entries, _measured_before)


def forked(work: Work, folder: Path) -> int:
    """The process that does the work."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            torch.set_num_threads(1)
            status = work.do(folder)
        finally:
            os._exit(status)
    return child


def finished(work: Work, folder: Path) -> float:
    """The work done to its end; the seconds it took."""
    start = time.perf_counter()
    status = os.waitstatus_to_exitcode(os.waitpid(forked(work, folder), 0)[1])
    assert status == 0, f"exit status {status}"
    return time.perf_counter() - start


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def kill_often(name: str, kills: int, seed: int) -> int:
    """How many kills met the work while it ran."""
    work, draw, met = WORKS[name], random.Random(seed), 0
    with tempfile.TemporaryDirectory(prefix="adabm-kills-") as place:
        undisturbed, folder = Path(place, "undisturbed"), Path(place, "killed")
        undisturbed.mkdir()
        work.prepare(undisturbed)
        before = left(undisturbed)
        seconds = finished(work, undisturbed)
        want = {output: work.whole(undisturbed / output) for output in work.outputs}
        assert left(undisturbed) == before | set(work.outputs)
        folder.mkdir()
        work.prepare(folder)
        for _ in range(kills):
            child = forked(work, folder)
            time.sleep(draw.random() * seconds)
            os.kill(child, signal.SIGKILL)
            met += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            for output in work.outputs:
                if (folder / output).exists():
                    assert work.agrees(work.whole(folder / output), want[output]), f"{output} is whole, and another"
            if all((folder / output).exists() for output in work.outputs):
                shutil.rmtree(folder)
                folder.mkdir()
                work.prepare(folder)
        if all((folder / output).exists() for output in work.outputs):
            (folder / work.outputs[-1]).unlink()  # so that there is something to write, and what was left is seen
        finished(work, folder)
        assert left(folder) == before | set(work.outputs), left(folder)
        assert {output: work.whole(folder / output) for output in work.outputs} == want
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("works", nargs="*", choices=[*WORKS, []], metavar="WORK", help=f"of {', '.join(WORKS)} (default: all)")
    args = parser.parse_args()
    for name in args.works or WORKS:
        met = kill_often(name, args.kills, args.seed)
        print(f"{name}: {args.kills} kills, {met} while it ran; what it makes afterwards is equal and alone", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
