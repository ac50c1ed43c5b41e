"""The steps of on_card.py, which runs each in a process of its own: `python benchmarks/gpu/card_steps.py NAME [--dry-run]`.

Answers are lines of JSON on the standard output, printed as they come. A step that cannot run here prints {"not_run": why} and
exits with on_card.NOT_RUN. A step that finds something wrong, or finds nothing out, exits with 1. Its last line may be a "tally" of
its answers.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from on_card import CARRIED, NETWORK, NOT_RUN, ROOT, TAIL

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

GOLDEN = CARRIED / "golden"
GOLDEN_LIMIT = 12  # seconds for one problem
AT_ONCE = min(4, os.cpu_count() or 1)  # processes that share the card where nothing is timed
SANITIZED = (  # every family once, by a small problem
    "resident_batch", "resident_small", "resblock_batch", "staged_one_by_one", "tail_floats", "few_outputs", "head", "region_sm80",
    "quantize_packed", "quantize_many", "int16_in_place", "int16_quantize", "depths", "image_bits",
)  # fmt: skip
SANITIZER_LIMIT = 42  # seconds for one tool
PROFILED = {
    9: ("resident_a8", "resident_residual_a4", "resblock_a4_packed"),
    8: ("resident_a8", "resident_a4_packed", "few_outputs"),
}
PROFILER_LIMIT = 15  # seconds for one kernel
SECTIONS = (
    "SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats", "InstructionStats",
    "LaunchStats", "Occupancy",
)  # fmt: skip
SIZES = (512, 128)
FRACTION = 8  # the fraction of 16-bit features where they are timed


class NotRun(Exception):
    """The reason why a step cannot run here."""


_answers: TextIO | None = None  # the stream of the answers, once everything else that is printed goes elsewhere


def answers_alone() -> None:
    """Keeps the standard output for answers from now on. Text that libraries print, such as pytest's dots, would come into the
    middle of a line, and pytest would keep back what is printed while it runs."""
    global _answers
    sys.stdout.flush()
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


def say(**answer: Any) -> None:
    print(json.dumps(answer), file=_answers or sys.stdout, flush=True)


def tool(name: str) -> str:
    """The path of a tool of CUDA's toolkit."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    if found is None:
        raise NotRun(f"no {name} on PATH or in /usr/local/cuda/bin")
    return found


def golden_files(names: Iterable[str] | None = None) -> list[Path]:
    """The files of golden problems that were carried along, in order: all of them, or those with these names (without their
    number)."""
    files = sorted(GOLDEN.glob("*.npz"))
    if not files:
        raise NotRun("no golden problems in build/on_card/golden: on_card.py --prepare makes them")
    return [path for path in files if names is None or path.stem.partition("_")[2] in names]


def tally(results: Iterable[str]) -> dict[str, int]:
    return dict(Counter(results))


def end(text: str | bytes | None) -> str:
    """The end of what a process has printed."""
    return (text.decode(errors="replace") if isinstance(text, bytes) else text or "").strip()[-TAIL:]


# ---- steps without torch


def card(dry: bool) -> None:
    from importlib import metadata

    from card_memory import Card

    versions = {}
    for package in ("torch", "triton", "numpy", "pytest"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    prepared = CARRIED / "prepared.json"
    say(python=sys.version.split()[0], **versions, prepared=json.loads(prepared.read_text()) if prepared.exists() else None)
    if dry:
        say(card="pretended card")
        return
    from adabm_kernels import native

    if reason := native.why_missing("cuda"):
        raise NotRun(f"cuda: {reason}")
    try:
        facts = Card().facts()
    except RuntimeError as error:
        raise NotRun(str(error)) from error
    say(**facts)
    if smi := shutil.which("nvidia-smi"):
        asked = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu")
        done = subprocess.run([smi, f"--query-gpu={','.join(asked)}", "--format=csv,noheader"], capture_output=True, text=True)
        say(nvidia_smi=dict(zip(asked, done.stdout.strip().split(", "), strict=False)))
    say(tally={str(facts["card"]): 1})


def probe(dry: bool) -> int:
    import probes
    from card_memory import Card

    if dry:
        raise NotRun("needs a card; the tests run the probes' kernels on the CPU")
    if not probes.LIBRARY.exists():
        raise NotRun("no build/on_card/libadabm_probe.so: on_card.py --prepare makes it")
    wrong = 0
    for answer in probes.ask(probes.Library(), Card()):
        say(**answer)
        wrong += 0 if answer.get("zero_strides") else answer.get("wrong", 0)
    return 1 if wrong else 0


def golden_one(path: Path) -> dict[str, Any]:
    """The answer of a problem that runs in a process of its own, so that a kernel that faults or hangs stops nothing else."""
    command = [sys.executable, str(Path(__file__).with_name("golden_run.py")), str(path)]
    facts = {"golden": path.stem}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GOLDEN_LIMIT)
    except subprocess.TimeoutExpired as error:
        return facts | {"result": "timeout", "reason": f"killed after {GOLDEN_LIMIT} s", "output": end(error.stderr)}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return facts | {"result": "failed", "reason": f"exit status {done.returncode}", "output": end(done.stderr)}


def of_another_card(answer: dict[str, Any]) -> bool:
    """Tells whether a problem is for another compute capability, which is the one reason for which it need not run here."""
    reasons = ("needs compute capability ", "the device has another compute capability")  # of golden_run.py and of the library
    return answer["result"] == "unsupported" and any(reason in answer.get("reason", "") for reason in reasons)


def golden(dry: bool) -> int:
    if dry:
        raise NotRun("needs a card; the tests hold the answers against the kernels on the CPU")
    results, wrong = [], 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for answer in pool.map(golden_one, golden_files()):
            say(**answer)
            results.append(answer["result"])
            wrong += answer["result"] != "equal" and not of_another_card(answer)
    say(tally=tally(results))
    return int(wrong > 0 or "equal" not in results)


def sanitizer(dry: bool) -> int:
    import sanitize_gpu

    if dry:
        raise NotRun("needs a card")
    path, files = tool("compute-sanitizer"), golden_files(SANITIZED)

    def run(name: str) -> dict[str, Any]:
        command = sanitize_gpu.command(path, name, *sanitize_gpu.golden(files))
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SANITIZER_LIMIT)
        except subprocess.TimeoutExpired as error:
            return {"tool": name, "result": "timeout", "problems": (error.stdout or b"").count(b'"golden"')}
        facts = {"tool": name, "problems": done.stdout.count('"golden"')}
        if done.returncode == 0:
            return facts | {"result": "clean"}
        return facts | {
            "result": "errors" if done.returncode == sanitize_gpu.FOUND else "failed",
            "output": end(done.stdout + done.stderr),
        }

    results = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for answer in pool.map(run, sanitize_gpu.TOOLS):
            say(**answer)
            results.append(answer["result"])
    say(tally=tally(results))
    return int("errors" in results or "failed" in results or "clean" not in results)


def metrics_of(text: str) -> dict[str, dict[str, str]]:
    """The metrics that ncu prints as CSV behind its messages: {section: {metric with its unit: value}}."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines[begin:]):
        if row.get("Metric Name"):
            unit = f" ({row['Metric Unit']})" if row["Metric Unit"] else ""
            found.setdefault(row["Section Name"], {})[row["Metric Name"] + unit] = row["Metric Value"]
    return found


def ncu(dry: bool) -> int:
    from card_memory import Card

    if dry:
        raise NotRun("needs a card")
    profiler, major = tool("ncu"), Card().attribute("major")
    sections = [part for section in SECTIONS for part in ("--section", section)]
    wanted = PROFILED.get(major, PROFILED[8])
    results, read = [], set()
    for path in golden_files(wanted):
        target = [sys.executable, str(Path(__file__).with_name("golden_run.py")), str(path), "--size", "512x512", "--repeat", "2"]
        # ncu leaves the clocks as they are, and reads the second of two launches.
        command = [profiler, "--clock-control", "none", "--launch-skip", "1", "--launch-count", "1", *sections]
        command += ["--csv", "--page", "details", *target]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PROFILER_LIMIT)
        except subprocess.TimeoutExpired:
            say(profiled=path.stem, result="timeout")
            results.append("timeout")
            continue
        metrics = metrics_of(done.stdout)
        result = "read" if metrics else "failed"
        say(profiled=path.stem, result=result, **({"metrics": metrics} if metrics else {"output": end(done.stdout + done.stderr)}))
        results.append(result)
        if metrics:
            read.add(path.stem.partition("_")[2])
    missing = [name for name in wanted if name not in read]
    say(tally=tally(results), **({"not_read": missing} if missing else {}))
    return int(bool(missing))


# ---- steps with torch


def needs_torch(dry: bool) -> None:
    """Makes sure that there is a card that torch can use, or a pretended one. It must run before anything is imported that asks for
    a card."""
    import pretend

    if dry:
        pretend.install()
    import torch

    if not torch.cuda.is_available():
        raise NotRun("no GPU that torch can use")


class Recorder:
    """Prints what pytest finds, as it comes: failures in words, and the rest as a tally. Tests of the CUDA library run before those
    of Triton, which compile for minutes."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def pytest_collection_modifyitems(self, items: list) -> None:
        items.sort(key=lambda item: "triton" in item.name)  # this keeps the order within each of the two groups

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            text = {} if report.outcome == "passed" else {"why": end(str(report.longrepr))}
            say(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), **text)
            self.outcomes.append(report.outcome)


def tests(dry: bool) -> int:
    needs_torch(dry)
    import pytest

    recorder = Recorder()
    arguments = ["-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "gpu" / "test_gpu.py"), *(["--collect-only"] if dry else [])]
    status = int(pytest.main(arguments, plugins=[recorder]))
    say(tally=tally(recorder.outcomes))
    return status


class Layers:
    """Times layers and prints each time as it comes, beside the least time that the layer can take."""

    def __init__(self, dry: bool) -> None:
        import torch
        from bench_gpu_layers import MATRICES, copying, milliseconds, multiplying

        self.milliseconds, self.results = milliseconds, []
        work, count = copying()
        self.copy_rate = count / milliseconds(work) * 1e3
        say(ceiling="copy", bytes_per_second=self.copy_rate)
        for kind in MATRICES:
            work, macs = multiplying(kind)
            say(ceiling=f"cuBLAS {kind}", macs_per_second=macs / milliseconds(work) * 1e3)
        self.card = torch.cuda.get_device_properties(0)
        self.clock = 0 if dry else card_clock()

    def time(self, name: str, work: Callable[[], object], **facts: Any) -> None:
        """Prints the microseconds of a recorded run, or the reason where it cannot run."""
        from adabm_kernels.native import Unsupported

        try:
            say(layer=name, us=round(self.milliseconds(work) * 1e3, 2), **facts)
            self.results.append("timed")
        except Unsupported as error:
            say(layer=name, result="unsupported", reason=str(error), **facts)
            self.results.append("unsupported")

    def proven(self, name: str, check: Callable[[], object], **facts: Any) -> bool:
        """Tells whether a check holds. Where it does not, this is printed as the answer of the layer, which must then not be
        timed."""
        try:
            check()
        except AssertionError as error:
            say(layer=name, result="different", reason=str(error), **facts)
            self.results.append("different")
            return False
        return True

    def convolution(self, name: str, work: Callable[[], object], conv: Any, bits: int, pixels: int, moved: int) -> None:
        """Prints the microseconds of a convolution of codes of `bits` bits, beside the least that it can take: by the counts for
        its kernel (backends/counted.py) at the card's highest clock, and by the bytes that it moves at the rate of a copy."""
        from adabm_kernels.backends import counted

        bounds = {"memory": moved / self.copy_rate}
        if self.clock:
            work_of = counted.cuda_work(10 * self.card.major + self.card.minor, conv.shape, bits)
            bounds["counted"] = work_of.clocks * pixels / self.card.multi_processor_count / self.clock
        self.time(name, work, bits=bits, bound_us={each: round(value * 1e6, 2) for each, value in bounds.items()})


def card_clock() -> float:
    """The highest clock of the card's multiprocessors, in hertz."""
    from card_memory import Card

    return Card().attribute("clock_khz") * 1e3


def network(dry: bool) -> Any:
    """EDSR-baseline x4 on the card with its float weights, as on_card.py --prepare has converted it."""
    if dry:
        return small_network()
    if not NETWORK.exists():
        raise NotRun(f"no {NETWORK.relative_to(ROOT)}: on_card.py --prepare makes it")
    from adabm_kernels import load

    return load(NETWORK).cuda()


def small_network() -> Any:
    """The network that stands for it in a dry run."""
    import torch
    from bench_gpu_networks import photos

    from adabm_kernels import ConvertConfig, convert_model
    from adabm_kernels.networks.edsr import EDSR, EDSRSpec

    torch.manual_seed(0)
    settings = ConvertConfig(recipe="paper", steps=0, bit_aware_clipping=False, batch=1)
    return convert_model(EDSR(EDSRSpec(scale=2, blocks=1, channels=16)), [photos(1, 48)], settings)


def layers(dry: bool) -> int:
    needs_torch(dry)
    import bench_gpu_layers as single
    import torch
    from bench_gpu_hopper import block, block_forms

    from adabm_kernels import ops
    from adabm_kernels.quantize import act_grid, packed_pitch, to_fixed

    times, side = Layers(dry), 8 if dry else SIZES[0]
    pixels = side * side
    for bits in (8, 4, 2):
        first, second = block(1, side, side, bits)
        a, b, codes = first.layer, second.layer, pixels * packed_pitch(64, bits)
        inner, y, y_q = torch.empty_like(first.x_q), torch.empty_like(second.residual), torch.empty_like(first.x_q)
        check = functools.partial(single.prove, "64->64 3x3, 1 of 512x512", "cuda", bits)
        if not times.proven("64->64 3x3", check, bits=bits):
            continue
        to_codes = functools.partial(a.into, first.x_q, first.bits, y_q=inner, out_grid=b.grid, out_bits=first.out_bits)
        times.convolution("64->64 3x3, codes to codes", to_codes, a, bits, pixels, 2 * codes)
        if bits == 2:
            continue
        outputs = {"residual": second.residual, "y": y, "y_q": y_q, "out_grid": second.out_grid, "out_bits": second.out_bits}
        floats = functools.partial(b.into, inner, first.out_bits, **outputs)
        times.convolution("64->64 3x3, residual, floats and codes", floats, b, bits, pixels, 2 * codes + pixels * 512)
        outputs |= {"residual": to_fixed(second.residual, FRACTION), "y": torch.empty_like(y, dtype=torch.int16)}
        outputs |= {"features": "int16", "fraction": FRACTION, "backend": b.backend, "packed_codes": b.packed_codes}
        tables = (b.weight, b.packed, b.alpha, b.beta)
        int16 = functools.partial(ops.conv2d_out, inner, first.out_bits, *tables, **outputs, box_filter=b.box_filter)
        times.convolution("64->64 3x3, residual, int16 and codes", int16, b, bits, pixels, 2 * codes + pixels * 256)
        forms: dict[str, Callable[[], None]] = {}
        times.proven("residual block", lambda both=(first, second), forms=forms: forms.update(block_forms(*both)), bits=bits)
        if "one kernel" in forms:
            whole = (first.x_q, first.bits, (a.weight, a.packed, a.alpha, a.beta), tables, b.grid, first.out_bits)
            boxes = {"activation": a.activation, "box_filters": (a.box_filter, b.box_filter)}
            forms["one kernel, residual in int16"] = functools.partial(ops.resblock_out, *whole, **outputs, **boxes)
        for form, work in forms.items():
            times.time(f"residual block, {form}", work, bits=bits)
    model = network(dry)
    model.set_backend("cuda")
    tail, head, bits = model.collapsed, model.convs()[0], torch.full((1,), 8, dtype=torch.int32, device="cuda")
    channels, outputs = tail.weight.shape[-1], head.weight.shape[0]  # 64 each
    codes = torch.randint(0, 256, (1, side, side, channels), dtype=torch.uint8, device="cuda")
    times.convolution("tail x4, pixels", functools.partial(tail.pixels, codes, bits), tail, 8, pixels, pixels * (64 + 48))
    image, grid = torch.rand(1, 3, side, side, device="cuda") * 255, act_grid(-2.0, 2.0).cuda()
    colours = torch.randint(0, 256, (1, side, side, 4), dtype=torch.uint8, device="cuda")
    y, y_q = (torch.empty(1, side, side, outputs, dtype=kind, device="cuda") for kind in (torch.float32, torch.uint8))
    from_image = functools.partial(head.into, colours, bits, y=y, y_q=y_q, out_grid=grid, out_bits=bits)
    times.convolution("3->64 3x3, floats and codes", from_image, head, 8, pixels, pixels * (4 + 64 + 256))
    times.time("quantisation of 3 colours", functools.partial(ops.quantize_out, image, grid, bits, colours, backend="cuda"))
    times.time("measure and bits of the image", functools.partial(model._bit_table, image, learn=False))
    for shape in ("64->64 3x3, 16 of 256x256", "256->256 3x3, 1 of 256x256"):
        n, h, w, c, k, _ = single.shape_of(shape)
        for width in (8, 4):
            if not times.proven(shape, functools.partial(single.prove, shape, "cuda", width), bits=width):
                continue
            placed = single.to_card(single.layer(shape, width), "cuda")
            y_q = torch.empty(n, h, w, k, dtype=torch.uint8, device="cuda")
            outputs = {"y_q": y_q, "out_grid": placed.out_grid, "out_bits": placed.out_bits}
            moved = n * h * w * (packed_pitch(c, width) + packed_pitch(k, width))
            work = functools.partial(placed.layer.into, placed.x_q, placed.bits, **outputs)
            times.convolution(shape, work, placed.layer, width, n * h * w, moved)
        times.time(f"{shape}, cuDNN float16", single.cudnn_layer(shape))
    times.time("64->64 3x3, 1 of 512x512, cuDNN float16", single.cudnn_layer("64->64 3x3, 1 of 512x512"))
    say(tally=tally(times.results))
    return int("different" in times.results)


def networks(dry: bool) -> None:
    needs_torch(dry)
    import torch
    from bench_gpu_layers import milliseconds
    from bench_gpu_networks import forward_milliseconds, in_float16, photos, prove

    model = prove(network(dry), "cuda")
    say(proven="EDSR-baseline x4", backend=model.backend_summary(), residual_blocks=model.why_not_fused or "in one piece")
    plain = in_float16(model.float_model().eval(), "eager")
    count = 0

    def timed(name: str, x: torch.Tensor, took: float, **facts: Any) -> None:
        nonlocal count
        say(network=name, size=x.shape[-1], ms=round(took, 4), **facts)
        count += 1

    with torch.no_grad():
        for size in SIZES:
            x = photos(1, size).cuda()
            half = x.to(torch.float16, memory_format=torch.channels_last)
            for bits in ("auto", 8, 4):
                model.set_backend("cuda", graph=True)
                model.set_bits(bits)
                facts = {"bits": bits, "mean_bits": model.mean_bits(x).mean().item()}
                timed("integers, floats out", x, forward_milliseconds(functools.partial(model, x)), **facts)
                timed("integers, pixels out", x, forward_milliseconds(functools.partial(model.pixels, x)), **facts)
            model.set_backend("cuda", graph=False)
            timed("float16, eager", half, forward_milliseconds(functools.partial(plain, half)))
            timed("float16, recorded", half, milliseconds(functools.partial(plain, half)))
    say(tally={"timed": count})


def compiled(dry: bool) -> None:
    needs_torch(dry)
    import torch
    from bench_gpu_networks import forward_milliseconds, in_float16, photos

    forward = in_float16(network(dry).float_model().eval(), "max-autotune")
    with torch.no_grad():
        for size in SIZES:
            x = photos(1, size).cuda().to(torch.float16, memory_format=torch.channels_last)
            took = forward_milliseconds(functools.partial(forward, x))
            say(network="float16, max-autotune", size=x.shape[-1], ms=round(took, 4))
    say(tally={"timed": len(SIZES)})


RUN: dict[str, Callable[[bool], int | None]] = {
    "card": card,
    "probe": probe,
    "golden": golden,
    "tests": tests,
    "sanitizer": sanitizer,
    "layers": layers,
    "ncu": ncu,
    "networks": networks,
    "compiled": compiled,
}


def main() -> int:
    name, *options = sys.argv[1:]
    answers_alone()
    try:
        return RUN[name]("--dry-run" in options) or 0
    except NotRun as reason:
        say(not_run=str(reason))
        return NOT_RUN


if __name__ == "__main__":
    sys.exit(main())
