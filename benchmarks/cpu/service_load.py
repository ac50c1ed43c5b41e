"""The service under load, on the loopback device: its rate beside a plain loop over the same pictures, its latency, and its memory.

    python benchmarks/cpu/service_load.py --minutes 10 --out benchmarks/results/service-MACHINE-DATE.json

`adabm serve` runs in a process of its own, and eight clients here each post a picture of a mix of sizes, compare the result with
the bytes that the plain loop wrote, and post the next one. In turns with them another process upscales the same pictures in a loop
(`upscaling.batch.upscale_files`, which reads and writes beside the network too). At the end the service is stopped under load, and
every request is accounted for. `--minutes` is the time under load; the whole takes a little more than twice as long.

    python benchmarks/cpu/service_load.py --batches

measures instead how much a forward pass of several pictures of one size saves: the processor time for each of them, on one thread,
over that of a pass of one.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import http.client
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL.Image

from adabm_kernels.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from turns import in_turns  # noqa: E402

SAMPLE = ROOT / "adabm_kernels" / "assets" / "sample.png"
CLIENTS = 8
TURN_SECONDS = 20.0  # of the plain loop, about
# Width and height of the pictures, how they are encoded, and the format of their results. Small ones come more often.
MIX = [
    *[(24, 24, "PNG", "png"), (48, 48, "PNG", "png"), (48, 48, "JPEG", "jpg"), (64, 40, "PNG", "png")] * 2,
    *[(96, 96, "PNG", "png"), (96, 96, "JPEG", "jpg"), (128, 128, "PNG", "png"), (150, 100, "WEBP", "png")],
    *[(192, 192, "PNG", "png"), (256, 192, "JPEG", "jpg"), (384, 256, "PNG", "png")],
]
FORMATS = {"png": "PNG", "jpg": "JPEG"}


@dataclass(frozen=True)
class Post:
    """One picture of the mix. name: its size and formats. data: its file. target: the format of the result."""

    name: str
    data: bytes
    target: str


@dataclass
class Figures:
    """What the clients saw. seconds: latencies by picture. statuses: the number of answers of each status. wrong: results that
    differ from the plain loop's. lost: requests without an answer, as the errors say it."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    lost: list[str] = field(default_factory=list)


def mix() -> list[Post]:
    """The pictures: parts of the sample photograph, mirrored where they are larger than it, each from another place."""
    rgb = np.array(PIL.Image.open(SAMPLE).convert("RGB"))
    large = np.concatenate([rgb, rgb[:, ::-1]], 1)
    large = np.concatenate([large, large[::-1]], 0)
    posts = []
    for number, (width, height, kind, target) in enumerate(MIX):
        top, left = (37 * number) % (len(large) - height + 1), (53 * number) % (large.shape[1] - width + 1)
        out = io.BytesIO()
        PIL.Image.fromarray(large[top : top + height, left : left + width]).save(out, kind)
        posts.append(Post(f"{width}x{height} {kind} to {target}", out.getvalue(), target))
    return posts


def batches(model: str, rounds: int = 25) -> None:
    """Prints the median processor time of a picture in passes of 2, 4 and 8, over that in a pass of one. Passes take turns."""
    import torch

    from adabm_kernels.models import load_model

    torch.set_num_threads(1)
    network = load_model(model)
    network.set_threads(1)
    for side in (16, 24, 32, 48, 64, 96):
        passes = {count: (torch.rand(count, 3, side, side) * 255).round() for count in (1, 2, 4, 8)}
        cases = {
            str(count): functools.partial(network.pixels, x, torch.zeros(count, dtype=torch.int32)) for count, x in passes.items()
        }
        seconds = in_turns(cases, rounds, time.process_time)
        each = {count: median(seconds[str(count)]) / count for count in passes}
        shares = ", ".join(f"{count}: {each[count] / each[1]:.2f}" for count in passes if count > 1)
        print(f"{side}x{side}: {1000 * each[1]:.2f} ms alone; {shares}")


# ---- the plain loop


def plain_loop(pipe: Connection, model: str, threads: int) -> None:
    """Upscales the whole mix as often as the pipe says. Sends the seconds that it took, those of the processor, and the digests of
    the results."""
    import torch

    torch.set_num_threads(threads)
    from adabm_kernels.upscale import prepare
    from adabm_kernels.upscaling.batch import Task, upscale_files

    network = prepare(model, threads=threads, max_memory=2 << 30)
    posts = mix()
    while cycles := pipe.recv():
        tasks = [Task(post.data, io.BytesIO(), FORMATS[post.target], post.name) for post in posts * cycles]
        start, before = time.perf_counter(), time.process_time()
        for outcome in upscale_files(tasks, network, max_pixels=1 << 22):
            assert outcome.error is None, outcome.error
        seconds, processor = time.perf_counter() - start, time.process_time() - before
        results = [task.target.getvalue() for task in tasks[: len(posts)] if isinstance(task.target, io.BytesIO)]
        pipe.send((seconds, processor, [hashlib.sha256(result).hexdigest() for result in results]))


# ---- the service


def start_service(model: str, threads: int) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-m", "adabm_kernels.cli", "serve", "--port", "0", "--model", model, "--threads", str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
    assert found, "it says where it listens"
    return process, int(found[1])


def ask(port: int, posts: Iterator[tuple[Post, str]], figures: Figures, lock: threading.Lock) -> None:
    """One client: posts pictures until there are no more, or until the service stops."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while True:
        with lock:
            post, digest = next(posts, (None, ""))
        if post is None:
            return
        try:
            if connection.sock is None:
                connection.connect()
        except ConnectionRefusedError:  # nothing was sent
            return
        start = time.perf_counter()
        try:
            connection.request("POST", f"/upscale?format={post.target}", post.data, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            body = answer.read()
        except Exception as error:
            with lock:
                figures.lost.append(repr(error))
            connection.close()
            continue
        seconds = time.perf_counter() - start
        with lock:
            figures.statuses[answer.status] += 1
            if answer.status == 200:
                figures.seconds[post.name].append(seconds)
                figures.wrong += hashlib.sha256(body).hexdigest() != digest
        if answer.status == 503:
            return


def load(port: int, posts: Iterator[tuple[Post, str]], figures: Figures) -> float:
    """Eight clients post all pictures. Returns the seconds that it took."""
    lock, start = threading.Lock(), time.perf_counter()
    clients = [threading.Thread(target=ask, args=(port, posts, figures, lock)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return time.perf_counter() - start


def processor_seconds(process: subprocess.Popen) -> float:
    """The processor time that a process has taken (proc(5), utime and stime)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process: subprocess.Popen) -> int:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watch(process: subprocess.Popen, curve: list[tuple[float, int]], done: threading.Event) -> None:
    """Notes the service's memory once a second."""
    start = time.perf_counter()
    while not done.wait(1.0) and process.poll() is None:
        curve.append((round(time.perf_counter() - start, 1), resident_bytes(process)))


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {
        "count": len(seconds),
        "p50_ms": 1000 * float(np.percentile(seconds, 50)),
        "p99_ms": 1000 * float(np.percentile(seconds, 99)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="edsr_x4_w4a4")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batches", action="store_true")
    args = parser.parse_args()
    if args.batches:
        batches(args.model)
        return
    posts, figures, stopped = mix(), Figures(), Figures()
    ours, theirs = multiprocessing.Pipe()
    plain = multiprocessing.get_context("spawn").Process(target=plain_loop, args=(theirs, args.model, args.threads), daemon=True)
    plain.start()
    process, port = start_service(args.model, args.threads)
    order = random.Random(0)  # else each picture would always have the same ones before it in the queue
    curve: list[tuple[float, int]] = []
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(process, curve, done))
    try:
        ours.send(1)
        _, _, digests = ours.recv()
        ours.send(1)  # once more, warm
        cycles = max(round(TURN_SECONDS / ours.recv()[0]), 2)
        wanted = list(zip(posts, digests, strict=True))
        load(port, iter(wanted), Figures())
        watcher.start()
        turns, under_load, before = [], 0.0, os.getloadavg()
        while under_load < 60 * args.minutes:
            ours.send(cycles)
            looped, loop_processor, _ = ours.recv()
            processor = processor_seconds(process)
            served = load(port, iter(order.sample(wanted * cycles, len(wanted) * cycles)), figures)
            under_load += served
            turns.append((looped, served, loop_processor, processor_seconds(process) - processor))
            print(f"{cycles * len(posts)} pictures: loop {looped:.1f} s, service {served:.1f} s, {looped / served:.3f}", flush=True)
        after = os.getloadavg()
        done.set()
        watcher.join()
        stopper = threading.Timer(3.0, process.send_signal, [signal.SIGTERM])
        stopper.start()
        load(port, itertools.cycle(wanted), stopped)  # ends when the service does
        status = process.wait(timeout=120)
    finally:
        done.set()
        process.kill()
        plain.kill()
    ratios = [looped / served for looped, served, _, _ in turns]
    processor_ratios = [own / loop for _, _, loop, own in turns]
    memory = [count for _, count in curve]
    tenth = max(len(memory) // 10, 1)
    everything = list(itertools.chain.from_iterable(figures.seconds.values()))
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "model": args.model,
        "threads": args.threads,
        "clients": CLIENTS,
        "seconds_under_load": under_load,
        "turns": [
            dict(zip(("loop_seconds", "service_seconds", "loop_processor", "service_processor"), turn, strict=True))
            for turn in turns
        ],
        "pictures_a_turn": cycles * len(posts),
        "rate": {
            "service_pictures_per_second": len(turns) * cycles * len(posts) / under_load,
            "of_the_loop": {"median": median(ratios), "least": min(ratios), "most": max(ratios)},
            "processor_time_of_the_loop": median(processor_ratios),
        },
        "statuses": dict(figures.statuses),
        "results_that_differ": figures.wrong,
        "without_an_answer": figures.lost,
        "latency": {"all": percentiles(everything)} | {name: percentiles(each) for name, each in figures.seconds.items()},
        "memory_bytes": {
            "first_tenth": median(memory[:tenth]),
            "last_tenth": median(memory[-tenth:]),
            "most": max(memory),
            "curve": curve[:: max(len(curve) // 200, 1)],
        },
        "stopped_under_load": {
            "exit_status": status,
            "statuses": dict(stopped.statuses),
            "results_that_differ": stopped.wrong,
            "without_an_answer": stopped.lost,
        },
        "load_average": {"before": before, "after": after, "of": "everything on the machine, this included"},
    }
    print(json.dumps({name: value for name, value in facts.items() if name not in ("turns", "memory_bytes", "latency")}, indent=1))
    print(
        "latency",
        json.dumps(facts["latency"]["all"]),
        {name: value for name, value in facts["memory_bytes"].items() if name != "curve"},
    )
    if args.out:
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
