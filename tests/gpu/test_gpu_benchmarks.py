"""The scripts that measure a card, run without one: a dry run from end to end, the table of a recorded run, and the sanitizer."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adabm_kernels.backends import devices

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = BENCHMARKS / "gpu"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks are not beside the tests")


def run_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    # A run of pytest that finds itself in a worker of another one does not measure.
    outside = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(command, env=outside | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, text=True)


def files() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()}


@pytest.mark.skipif(bool(devices.why_no_triton()), reason=devices.why_no_triton())
def test_everything_a_card_would_be_asked_runs_dry(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    before = files()
    done = run_script("measure_gpu.py", "--dry-run", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "dry run: nothing is written to benchmarks/results, and no figure above means anything" in done.stdout
    assert done.stdout.count("dry run: nothing is kept") == 2  # both tables
    assert files() == before and list(tmp_path.iterdir()) == []
    table = done.stdout[done.stdout.index("# pretended card") :]
    for bench in ("integer_layer_gpu", "cudnn_layer", "copy", "matrix", "storage", "converted", "decision", "float16", "simulated"):
        assert f"| {bench}" in table, bench
    for group in ("edsr_x4, ", "rdn_b_x4, ", "conv2d 64->64 3x3", "residual block", "ceilings"):
        assert f"## {group}" in table, group


def test_minutes_on_a_card_run_dry(tmp_path: Path) -> None:
    """Every step of on_card.py: those that need hardware say so, the others answer, on the CPU at tiny sizes."""
    before, path = files(), tmp_path / "out.jsonl"
    done = run_script("on_card.py", "--dry-run", "--budget", "3000", "--out", str(path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert done.returncode == 0, done.stdout[-4000:] + path.read_text()[-4000:]
    ends = lines[-1]["summary"]
    assert list(ends) == ["card", "probe", "golden", "tests", "sanitizer", "layers", "ncu", "networks", "compiled"]
    for name in ("probe", "golden", "sanitizer", "ncu"):
        assert ends[name]["status"] == "not run" and ends[name]["reason"].startswith("needs a card")
    assert {name for name, end in ends.items() if end["status"] == "ok"} == {"card", "tests", "layers", "networks", "compiled"}
    assert {line["ceiling"] for line in lines if "ceiling" in line} == {"copy", "cuBLAS int8", "cuBLAS float16"}
    timed = [line["layer"] for line in lines if "us" in line]
    for layer in ("codes to codes", "residual, floats and codes", "two layers", "one kernel", "tail", "colours", "cuDNN"):
        assert any(layer in name for name in timed), layer
    networks = {line["network"] for line in lines if "ms" in line}
    assert {"integers, pixels out", "float16, eager", "float16, recorded", "float16, max-autotune"} <= networks
    assert "a dry run, no figure means anything" in done.stdout and files() == before


def test_the_tests_for_a_card_run_on_a_pretended_one(tmp_path: Path) -> None:
    """With the reference in place of the kernels: it is the tests that are tested."""
    run = "import sys, pretend, pytest; pretend.install(); sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", run, "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name("test_gpu.py"))]
    path = os.pathsep.join([str(SCRIPTS), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed, skipped = (int(re.search(rf"(\d+) {word}", done.stdout)[1]) for word in ("passed", "skipped"))
    assert passed >= 45 and skipped == 5  # four of a second device, one of another backend's measure


def test_a_network_is_measured_on_the_backend_that_it_is_proven_on() -> None:
    """Whichever was measured before."""
    run = (
        "import pretend; pretend.install(); from bench_gpu_networks import proven; "
        "print([proven('edsr_x4', name).choice.backend for name in ('cuda', 'triton', 'cuda')])"
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(SCRIPTS), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", run], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "['cuda', 'triton', 'cuda']"


def test_without_a_card_a_real_run_says_so() -> None:
    for script in ("measure_gpu.py", "tune_choice.py", "tune_triton.py"):
        done = run_script(script, CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="")
        reason = "no GPU that torch can use" if script != "tune_choice.py" else "backend 'cuda' cannot run"
        assert done.returncode and f"{script.removesuffix('.py')}: {reason}" in done.stderr


RECORDED = {
    "datetime": "2026-01-02T03:04:05",
    "machine_info": {"adabm": {"torch": "2.9", "commit": "abc", "isa": "avx2", "threads": 2}},
    "benchmarks": [
        {
            "name": "bench_ten_times[a]",
            "group": "g",
            "stats": {"median": 4e-3, "iqr": 1e-4},
            "extra_info": {"gpu": "Card", "replays": 10},
        },
        {
            "name": "bench_once[a]",
            "group": "g",
            "stats": {"median": 1e-3, "iqr": 2e-5},
            "extra_info": {"gpu": "Card", "peak_bytes": 5e6},
        },
        {"name": "bench_alone", "group": None, "stats": {"median": 2e-6, "iqr": 0.0}, "extra_info": {}},
    ],
}


def test_the_table_of_a_recorded_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("measure_gpu", SCRIPTS / "measure_gpu.py")
    measure_gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measure_gpu)
    lines = measure_gpu.table(json.loads(json.dumps(RECORDED))).splitlines()
    assert lines[:3] == ["# Card", "", "2026-01-02, torch 2.9, commit abc. Medians."]
    assert [line for line in lines if line.startswith("## ")] == ["## g", "## other"]
    rows = [line for line in lines if line.startswith("| ") and "spread" not in line]
    assert rows == [
        "| ten_times[a] | 400.0 | 10.0 | 1.00 |  |",
        "| once[a] | 1000.0 | 20.0 | 2.50 | 5 |",
        "| alone | 2.0 | 0.0 | 1.00 |  |",
    ]


@pytest.mark.parametrize("status", [0, 9])
def test_the_sanitizer_is_asked_for_each_tool(tmp_path: Path, status: int) -> None:
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit {status}\n')
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run_script("sanitize_gpu.py", "--backend", "triton", PATH=path)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert all("test_gpu.py" in call and "triton and not graph" in call for call in calls)
    assert done.returncode == (status != 0) and ("all clean" in done.stdout) == (status == 0)
    run_script("sanitize_gpu.py", "--tool", "racecheck", PATH=path)
    call = (tmp_path / "calls").read_text().splitlines()[-1]
    selected = call[call.index(" -k ") + 4 :]
    collect = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "-p",
        "no:cacheprovider",
        "tests/gpu/test_gpu.py",
        "-k",
        selected,
    ]
    found = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True).stdout
    assert "[cuda" in found and "triton" not in found and "graph" not in found
    assert "test_residual_blocks_equal_two_convolutions" in found and "test_every_configuration_equals_the_reference" in found


def test_the_sanitizer_watches_golden_problems_without_torch(tmp_path: Path) -> None:
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    fake.chmod(0o755)
    (tmp_path / "00_one.npz").write_bytes(b"")
    done = run_script("sanitize_gpu.py", "--golden", str(tmp_path), "--tool", "initcheck", PATH=f"{tmp_path}:{os.environ['PATH']}")
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert done.returncode == 0 and "all clean" in done.stdout
    assert call.startswith("--tool initcheck --error-exitcode 9") and call.endswith(f"golden_run.py --bare {tmp_path}/00_one.npz")


def test_without_the_sanitizer_it_says_so(tmp_path: Path) -> None:
    done = run_script("sanitize_gpu.py", PATH=str(tmp_path))
    assert done.returncode == 2 and "needs compute-sanitizer on PATH" in done.stderr
