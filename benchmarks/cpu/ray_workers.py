"""Upscaling on a Ray cluster of this machine: what a worker costs beside the plain command, what a second one brings, and what is
left of ten that are killed.

    python benchmarks/cpu/ray_workers.py speed
    python benchmarks/cpu/ray_workers.py kills
    python benchmarks/cpu/ray_workers.py order
    python benchmarks/cpu/ray_workers.py picture --folder PHOTOS

`speed`: the same folder by `adabm upscale --threads 1`, by one worker with one thread, and by two, in turns, `--rounds` times. Each
run is timed as a whole, and from the moment when a tenth of the outputs is there until the last one appears, which leaves out the
start of processes that a longer run has once, too. For that part it is also said what all processes, Ray's own among them, had of
processors, which other work on the machine changes least. The times need a machine with nothing else to do. `kills`: a run of two
workers, of which one is killed (SIGKILL) at random moments, `--kills` times. `order`: CPU time of one batch of pictures of many
sizes, as they come, by size, and by size and bits, which is what grouping brings. `picture`: CPU time and bytes of a picture of
512x512 pixels, by photographs of any size, as PNG and as JPEG, which docs/scale.md reckons with. Outputs are compared with those of
the plain command, byte by byte, before any figure is printed. Prints medians; keeps all as JSON with `--out`. Needs
`pip install -e ".[ray]"`.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from adabm_kernels.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "adabm_kernels" / "assets" / "sample.png"
MEMORY = 200 << 20  # bytes of Ray's object store


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Pictures of side x side pixels: parts of the sample photograph, enlarged and turned, no two alike."""
    generator = random.Random(0)
    sample = Image.open(SAMPLE).convert("RGB")
    folder.mkdir()
    for i in range(count):
        part = generator.randint(96, sample.width)
        left, top = (generator.randint(0, sample.width - part) for _ in range(2))
        rows = np.asarray(sample.crop((left, top, left + part, top + part)).resize((side, side), Image.Resampling.BICUBIC))
        Image.fromarray(np.rot90(rows, i % 4)).save(folder / f"{i:05}.png")


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def processes_of_ray() -> list[int]:
    """The processes of all Ray on this machine: workers, and what serves them."""
    return [each for each, title in titles().items() if title.startswith(b"ray::") or b"/ray/" in title.split(b"\0")[0]]


def titles() -> dict[int, bytes]:
    """The command line of each process, or the title that it has given itself."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found[int(place.name)] = (place / "cmdline").read_bytes()
    return found


def processor_seconds(ids: Iterable[int]) -> float:
    """The time that these processes have had on processors."""
    ticks = 0
    for each in ids:
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def timed_run(args: argparse.Namespace, folder: Path, out: Path, *options: str) -> dict[str, float]:
    """Runs the command. Returns the seconds of all of it, and for each picture from the moment when a tenth of them is there until
    the last one is: the seconds, and those on processors."""
    command = [sys.executable, "-m", "adabm_kernels", "upscale", str(folder), "-o", str(out), "-q", "--threads", "1"]
    start, samples = time.time(), []
    process = subprocess.Popen([*command, "--format", args.format, "--model", args.model, *options])
    while process.poll() is None:
        there = len(list(out.glob("[0-9]*"))) if out.exists() else 0
        samples.append((there, processor_seconds([process.pid, *(processes_of_ray() if options else [])])))
        time.sleep(0.25)
    assert process.returncode == 0, "the command did all"
    whole = time.time() - start
    times = sorted(path.stat().st_mtime for path in out.iterdir())
    first = len(times) // 10
    begun = next(sample for sample in samples if sample[0] > first)
    ended = next((sample for sample in samples if sample[0] == len(times)), samples[-1])
    spent = (ended[1] - begun[1]) / (ended[0] - begun[0])
    return {"whole": whole, "each": (times[-1] - times[first]) / (len(times) - 1 - first), "processor": spent}


def connect(cpus: int) -> str:
    """Starts a cluster of this machine, and returns its address."""
    import ray

    options: dict[str, Any] = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
    return ray.init("local", num_cpus=cpus, object_store_memory=MEMORY, **options).address_info["gcs_address"]


def speed(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    address = connect(2)
    cases: dict[str, tuple[str, ...]] = {"plain": ()}
    cases |= {f"{n} worker{'s' * (n > 1)}": ("--ray", address, "--workers", str(n)) for n in (1, 2)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for turn in range(args.rounds):
        made = {}
        for name, options in cases.items():
            out = place / f"{turn}-{name}"
            found[name].append(timed_run(args, place / "in", out, *options))
            made[name] = contents(out)
        assert all(each == made["plain"] for each in made.values()), "outputs equal those of the plain command"
    middle = {name: {key: median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}
    for name, figures in middle.items():
        rates = f"{1000 * figures['each']:7.1f} ms a picture once it runs, {1000 * figures['processor']:7.1f} ms of processors"
        print(f"{name:10} {figures['whole']:8.1f} s in all, {rates}")
    ratios = {
        "overhead of one worker": middle["1 worker"]["each"] / middle["plain"]["each"] - 1,
        "overhead of one worker, on processors": middle["1 worker"]["processor"] / middle["plain"]["processor"] - 1,
        "two workers against one": middle["1 worker"]["each"] / middle["2 workers"]["each"],
        "overhead of one worker, in all": middle["1 worker"]["whole"] / middle["plain"]["whole"] - 1,
        "two workers against one, in all": middle["1 worker"]["whole"] / middle["2 workers"]["whole"],
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")
    return {"runs": found, "ratios": ratios}


def workers_alive() -> list[int]:
    """The processes that hold a model, by the title that Ray gives them."""
    return [each for each, title in titles().items() if title.startswith(b"ray::") and b"FileWorker" in title]


def kills(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    from adabm_kernels.ray import upscale_dataset

    timed_run(args, place / "in", place / "plain")
    connect(2)
    generator, out, killed, ended = random.Random(args.seed), place / "out", [], threading.Event()
    # The moments are spread over the run by the number of outputs, since a worker that begins makes none for seconds.
    moments = sorted(generator.sample(range(1, args.pictures * 9 // 10), args.kills))

    def kill() -> None:
        while len(killed) < args.kills and not ended.wait(0.01):
            there = len(list(out.glob("[0-9]*")))
            if there >= moments[len(killed)] and (ids := workers_alive()):
                os.kill(generator.choice(ids), signal.SIGKILL)
                killed.append(there)

    thread = threading.Thread(target=kill)
    thread.start()
    summary = upscale_dataset(place / "in", args.model, output=out, format=args.format, progress=False)
    ended.set()
    thread.join()
    plain, made = contents(place / "plain"), contents(out)
    assert len(killed) == args.kills, f"only {len(killed)} workers were killed before all was done: take more --pictures"
    assert summary.failures == 0 and summary.done + summary.found == args.pictures, summary
    assert made == plain, "outputs equal those of the plain command, and there are no others"
    print(f"{len(killed)} workers killed, with {killed} of {args.pictures} outputs there: all there, each equal, none besides")
    print(f"{summary.done} reported by the worker that wrote them, {summary.found} found after it had ended")
    return {"killed with so many outputs": killed, "reported": summary.done, "found": summary.found, "outputs": len(made)}


def order(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """CPU seconds of the same pictures in three orders, in turns."""
    from adabm_kernels.images import MAX_PIXELS
    from adabm_kernels.ray.recipe import Recipe
    from adabm_kernels.upscaling.batch import Task, upscale_files
    from adabm_kernels.upscaling.sizes import Size

    network = Recipe.of(args.model, {}, Size()).network()
    pictures = sorted((place / "in").iterdir())
    sides = [args.side * part // 4 for part in (1, 2, 3, 4)]
    for i, path in enumerate(pictures):
        Image.open(path).resize((sides[i % 4], sides[i // 4 % 4])).save(path)
    random.Random(args.seed).shuffle(pictures)

    def run(paths: list[Path]) -> tuple[float, dict[Path, Any], dict[Path, bytes]]:
        tasks = [Task(path, io.BytesIO(), "PNG", str(path)) for path in paths]
        start = time.process_time()
        outcomes = list(upscale_files(tasks, network, max_pixels=MAX_PIXELS))
        seconds = time.process_time() - start
        return seconds, dict(zip(paths, outcomes, strict=True)), {task.source: task.target.getvalue() for task in tasks}

    _, outcomes, made = run(pictures)
    size = {path: outcome.figures()["input_size"] for path, outcome in outcomes.items()}
    orders = {
        "as they come": pictures,
        "by size": sorted(pictures, key=size.__getitem__),
        "by size and bits": sorted(pictures, key=lambda path: (*size[path], outcomes[path].mean_bits)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in orders}
    for _ in range(args.rounds):
        for name, paths in orders.items():
            spent, _, again = run(paths)
            assert again == made, "the order changes no output"
            seconds[name].append(spent)
    for name, values in seconds.items():
        print(f"{name:17} {median(values):.3f} s of CPU, {median(values) / median(seconds['as they come']):.3f}")
    return {"CPU seconds": seconds}


def picture(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """CPU seconds and bytes for each 512x512 pixels that are read, decoding and encoding included."""
    from adabm_kernels.ray.recipe import Recipe
    from adabm_kernels.ray.worker import Upscaler
    from adabm_kernels.upscaling.batch import Task
    from adabm_kernels.upscaling.sizes import Size

    upscaler = Upscaler(Recipe.of(args.model, {}, Size()))
    paths = sorted(args.folder.glob("*.png"))[: args.pictures]
    found: dict[str, Any] = {}
    for format in ("PNG", "JPEG"):
        for turn in (1, len(paths)):  # the first run makes everything ready
            tasks = [Task(path, io.BytesIO(), format, str(path)) for path in paths[:turn]]
            start = time.process_time()
            outcomes = list(upscaler.files(tasks))
            spent = time.process_time() - start
        pixels = sum(outcome.layout.width * outcome.layout.height for outcome in outcomes)
        share = 512 * 512 / pixels
        sizes = share * sum(path.stat().st_size for path in paths), share * sum(len(task.target.getvalue()) for task in tasks)
        blocks = sum(outcome.computed_share or 0 for outcome in outcomes) / len(outcomes)
        figures = {"CPU seconds": spent * share, "bytes in": sizes[0], "bytes out": sizes[1], "with blocks": blocks}
        print(format, figures)
        found[format] = figures
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "kills", "order", "picture"))
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--side", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--format", default="png", choices=("png", "jpg"))
    parser.add_argument("--model", default="edsr_x4_w4a4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT.parent / "shared" / "data" / "images" / "calib")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if args.what != "picture":
            make_pictures(place / "in", args.pictures, args.side)
        result = {"speed": speed, "kills": kills, "order": order, "picture": picture}[args.what](args, place)
    if args.out:
        from importlib.metadata import version

        facts = {name: getattr(args, name) for name in ("what", "pictures", "side", "format", "model", "rounds", "seed")}
        facts |= {"date": datetime.date.today().isoformat(), "machine": describe_machine(), "ray": version("ray")}
        args.out.write_text(json.dumps(facts | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
