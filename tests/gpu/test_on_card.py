"""benchmarks/gpu/on_card.py without a card: order, limits, the journal, and what goes on after steps that fail, crash or hang."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adabm_kernels import native

on_card = pytest.importorskip("on_card", reason="benchmarks are not beside the tests")
card_steps = pytest.importorskip("card_steps")
TOOLS = pytest.importorskip("sanitize_gpu").TOOLS
SCRIPT = Path(on_card.__file__)
Step = on_card.Step

# What a step that stands for another does: each is a program of one line.
PROGRAMS = {
    "good": "say(a=1); say(a=2, tally={'right': 2})",
    "failing": "say(a=1); print('noise'); sys.exit('it went wrong')",
    "crashing": "say(a=1); os.kill(os.getpid(), 11)",
    "hanging": "say(a=1); subprocess.Popen(['sleep', '600']); time.sleep(600)",
    "left": f"say(not_run='no such card'); sys.exit({on_card.NOT_RUN})",
    "torn": "print('{\"a\": 1'); print('[1]'); say(a=1)",
}
PRELUDE = "import json, os, subprocess, sys, time; say = lambda **a: print(json.dumps(a), flush=True); "


def command(step: Step) -> list[str]:
    return [sys.executable, "-c", PRELUDE + PROGRAMS[step.name]]


def run(path: Path, *steps: Step, budget: float = 60, done: dict | None = None) -> tuple[dict, list[dict]]:
    """(ends, the journal)."""
    journal = on_card.Journal(path)
    ends = on_card.run_all(steps, command, journal, budget, done or {})
    return ends, on_card.answers(path)


def status(ends: dict) -> dict[str, str]:
    return {name: end["status"] for name, end in ends.items()}


def test_each_step_ends_for_itself(tmp_path: Path) -> None:
    steps = [Step(name, 1.5 if name == "hanging" else 20, "") for name in PROGRAMS]
    start = time.monotonic()
    ends, journal = run(tmp_path / "out.jsonl", *steps)
    assert time.monotonic() - start < 30
    assert status(ends) == {
        "good": "ok", "failing": "failed", "crashing": "crashed", "hanging": "timeout", "left": "not run", "torn": "ok",
    }  # fmt: skip
    assert ends["good"]["tally"] == {"right": 2}
    assert ends["failing"]["reason"] == "exit status 1" and ends["failing"]["output"] == "noise\nit went wrong"
    assert ends["crashing"]["reason"] == "signal SIGSEGV"
    assert ends["hanging"]["reason"] == "killed after 2 s" and ends["hanging"]["seconds"] < 10
    assert ends["left"]["reason"] == "no such card"
    # In order, each step's answers before its end, and what it said before it was stopped is there.
    assert [(line["step"], line.get("a", line.get("status"))) for line in journal if "not_run" not in line] == [
        ("good", 1), ("good", 2), ("good", "ok"), ("failing", 1), ("failing", "failed"), ("crashing", 1), ("crashing", "crashed"),
        ("hanging", 1), ("hanging", "timeout"), ("left", "not run"), ("torn", 1), ("torn", "ok"),
    ]  # fmt: skip
    assert all(line["at"] >= 0 for line in journal)


def test_what_a_step_has_started_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    PROGRAMS["parent"] = (
        f"p = subprocess.Popen(['sleep', '600']); open({str(mark)!r}, 'w').write(str(p.pid)); say(a=1); time.sleep(600)"
    )
    ends, _ = run(tmp_path / "out.jsonl", Step("parent", 2, ""))
    assert ends["parent"]["status"] == "timeout"
    child = Path(f"/proc/{mark.read_text()}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


def test_answers_are_on_the_disk_while_a_step_runs(tmp_path: Path) -> None:
    path, seen = tmp_path / "out.jsonl", tmp_path / "seen"
    PROGRAMS["looking"] = f"say(a=1); time.sleep(1); open({str(seen)!r}, 'w').write(open({str(path)!r}).read()); say(a=2)"
    run(path, Step("looking", 20, ""))
    assert [json.loads(line)["a"] for line in seen.read_text().splitlines()] == [1]


def test_the_budget_ends_steps_and_keeps_others_from_beginning(tmp_path: Path) -> None:
    ends, journal = run(tmp_path / "out.jsonl", Step("hanging", 500, ""), Step("good", 20, ""), budget=on_card.LEAST + 1)
    assert status(ends) == {"hanging": "timeout", "good": "not run"}
    assert ends["hanging"]["limit"] <= on_card.LEAST + 1
    assert ends["good"]["reason"] == "the budget of 4 s is spent" and journal[-1]["step"] == "good"


def test_without_a_card_nothing_is_tried(tmp_path: Path) -> None:
    PROGRAMS["card"] = PROGRAMS["left"]
    ends, journal = run(tmp_path / "out.jsonl", Step("card", 20, ""), Step("good", 20, ""))
    assert status(ends) == {"card": "not run", "good": "not run"} and ends["good"]["reason"] == "no such card"
    assert not any("a" in line for line in journal)


def test_steps_that_ended_well_are_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    steps = [Step("good", 20, ""), Step("failing", 20, "")]
    run(path, *steps)
    with path.open("a") as file:
        file.write('{"step": "failing", "status": "o')  # the machine went away here
    done = on_card.ended_well(path)
    assert list(done) == ["good"]
    PROGRAMS["failing"], before = "say(a=3)", PROGRAMS["failing"]
    try:
        ends, journal = run(path, *steps, done=done)
    finally:
        PROGRAMS["failing"] = before
    assert status(ends) == {"good": "ok", "failing": "ok"}
    assert [line["a"] for line in journal if "a" in line] == [1, 2, 1, 3]  # the torn line is none, and nothing was lost behind it
    assert sorted(on_card.ended_well(path)) == ["failing", "good"]


def test_a_later_failure_counts(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"step": "probe", "status": "ok"}\n{"step": "probe", "status": "crashed"}\n')
    assert on_card.ended_well(path) == {}
    assert on_card.ended_well(tmp_path / "other.jsonl") == {}


# ---- the script itself


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, text=True)


def test_the_steps_and_their_limits() -> None:
    assert list(card_steps.RUN) == on_card.NAMES
    assert on_card.NAMES[:5] == ["card", "probe", "golden", "tests", "sanitizer"] and on_card.NAMES[-1] == "compiled"
    assert sum(step.limit for step in on_card.STEPS) <= on_card.BUDGET <= 480
    done = script("--list")
    assert done.returncode == 0
    for step in on_card.STEPS:
        assert any(line.split()[:3] == [step.name, f"{step.limit:.0f}", "s"] for line in done.stdout.splitlines())
    assert f"in all      {sum(step.limit for step in on_card.STEPS)} s" in done.stdout


def test_the_docs_have_the_same_table() -> None:
    text = (on_card.ROOT / "docs" / "gpu_cuda.md").read_text()
    for step in on_card.STEPS:
        assert f"| `{step.name}` | {step.limit} s |" in text
    assert f"That is {sum(step.limit for step in on_card.STEPS)} seconds" in text


def test_what_is_carried_along_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    golden_problems, probes = pytest.importorskip("golden_problems"), pytest.importorskip("probes")
    libraries, carried = tmp_path / "_lib", tmp_path / "on_card"
    libraries.mkdir(), carried.mkdir()
    monkeypatch.setattr(on_card, "LIBRARIES", libraries)
    monkeypatch.setattr(on_card, "CARRIED", carried)
    monkeypatch.setattr(on_card, "NETWORK", carried / "network.safetensors")
    with pytest.raises(SystemExit, match="libadabm_cuda.so is not there: build it first"):
        on_card.prepare()
    (libraries / "libadabm_cuda.so").write_bytes(b"abc")
    on_card.NETWORK.write_bytes(b"kept")  # minutes to convert
    monkeypatch.setattr(golden_problems, "PROBLEMS", {"depths": golden_problems.PROBLEMS["depths"]})
    monkeypatch.setattr(probes, "build", lambda: (carried / "libadabm_probe.so").write_bytes(b""))
    on_card.prepare()
    assert sorted(path.name for path in carried.rglob("*") if path.is_file()) == [
        "00_depths.npz", "libadabm_probe.so", "network.safetensors", "prepared.json",
    ]  # fmt: skip
    facts = json.loads((carried / "prepared.json").read_text())
    # echo -n abc | sha256sum
    assert facts["libraries"] == {"libadabm_cuda.so": "ba7816bf8f01cfea"} and facts["golden"] == 1 and facts["commit"]
    assert "1 golden problems and the probes; carry adabm_kernels/_lib and build/on_card" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "golden,other"], "steps must be of card, probe, golden, .*, got 'other'"),
        (["--budget", "0"], "must be a number of seconds above 0, got 0"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["on_card.py", *arguments])
    with pytest.raises(SystemExit):
        on_card.main()
    assert re.search(message, capsys.readouterr().err)


def no_driver() -> bool:
    import card_memory

    try:
        card_memory.Card()
    except RuntimeError:
        return True
    return False


@pytest.mark.skipif(not no_driver(), reason="there is a card")
def test_where_there_is_no_card_every_step_says_why(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    done = script("--out", str(path))
    assert done.returncode == 0, done.stderr
    lines = on_card.answers(path)
    ends = lines[-1]["summary"]
    assert list(ends) == on_card.NAMES and {end["status"] for end in ends.values()} == {"not run"}
    assert len({end["reason"] for end in ends.values()}) == 1
    assert [line["step"] for line in lines if "status" in line] == on_card.NAMES


@pytest.mark.skipif(not no_driver(), reason="there is a card")
def test_a_process_that_fails_is_one_answer_of_the_step(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here each fails, as there is no card; the step goes on, counts them and fails in the end."""
    for name in ("00_one", "01_other"):
        (tmp_path / f"{name}.npz").write_bytes(b"")
    monkeypatch.setattr(card_steps, "GOLDEN", tmp_path)
    assert card_steps.golden(False) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("golden") for line in lines] == ["00_one", "01_other", None] and lines[-1] == {"tally": {"failed": 2}}
    assert all("RuntimeError" in line["output"] for line in lines[:-1])


def test_what_a_process_says_is_the_answer(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the runner, which says what the file's name has it say, or hangs."""
    runner = tmp_path / "python"
    runner.write_text(
        '#!/bin/sh\ncase "$2" in *slow*) exec sleep 60;; esac\nname=$(basename "$2" .npz); echo noise\n'
        'echo "{\\"golden\\": \\"$name\\", \\"result\\": \\"$(echo "$name" | cut -d_ -f2)\\", '
        '\\"reason\\": \\"$(echo "$name" | cut -d_ -f3)\\"}"\n'
    )
    runner.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(runner))
    monkeypatch.setattr(card_steps, "GOLDEN", tmp_path)
    monkeypatch.setattr(card_steps, "GOLDEN_LIMIT", 2)

    def ends(*names: str) -> int:
        for name in names:
            (tmp_path / f"{name}.npz").write_bytes(b"")
        capsys.readouterr()
        return card_steps.golden(False)

    assert ends("00_unsupported_needs compute capability 9.x") == 1  # nothing was compared
    assert ends("01_equal") == 0
    assert ends("02_unsupported_no such kernel") == 1
    (tmp_path / "02_unsupported_no such kernel.npz").unlink()
    assert ends("03_slow", "04_different") == 1
    *_, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last == {"tally": {"unsupported": 1, "equal": 1, "timeout": 1, "different": 1}}


def test_a_layer_that_is_wrong_is_told_and_not_timed(capsys) -> None:
    layers = object.__new__(card_steps.Layers)
    layers.results, layers.milliseconds = [], lambda work: work() or 2.0

    def wrong() -> None:
        raise AssertionError("two layers and one kernel")

    def unknown() -> None:
        raise native.Unsupported("the device has another compute capability")

    assert layers.proven("right", lambda: None) and not layers.proven("wrong", wrong, bits=8)
    layers.time("timed", lambda: None, bits=4)
    layers.time("unknown", unknown)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"layer": "wrong", "result": "different", "reason": "two layers and one kernel", "bits": 8},
        {"layer": "timed", "us": 2000.0, "bits": 4},
        {"layer": "unknown", "result": "unsupported", "reason": "the device has another compute capability"},
    ]
    assert layers.results == ["different", "timed", "unsupported"]


def test_what_was_not_carried_along_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_steps, "GOLDEN", tmp_path)
    monkeypatch.setattr(card_steps, "NETWORK", on_card.ROOT / "build" / "none.safetensors")
    with pytest.raises(card_steps.NotRun, match="no golden problems in build/on_card/golden: on_card.py --prepare makes them"):
        card_steps.golden(False)
    with pytest.raises(card_steps.NotRun, match="no build/none.safetensors: on_card.py --prepare makes it"):
        card_steps.network(False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(card_steps.NotRun, match="no some-tool on PATH"):
        card_steps.tool("some-tool")


def test_the_named_problems_are_there() -> None:
    golden_problems = pytest.importorskip("golden_problems")
    named = {*card_steps.SANITIZED, *(name for names in card_steps.PROFILED.values() for name in names)}
    assert named <= set(golden_problems.PROBLEMS)


# ---- steps that run tools of CUDA's toolkit, here stand-ins


def stand_in(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool first on PATH, and two golden problems."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for problem in ("00_resident_a8", "01_head"):
        (folder / f"{problem}.npz").write_bytes(b"")
    monkeypatch.setattr(card_steps, "GOLDEN", folder)


def test_every_tool_of_the_sanitizer_is_an_answer(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    found = '[ "$2" = racecheck ] && echo "a race" && exit 9; [ "$2" = initcheck ] && exit 3'
    body = f'echo "$@" >> {tmp_path}/calls; {found}; echo \'{{"golden"\''
    stand_in(tmp_path / "bin", "compute-sanitizer", body, monkeypatch)
    assert card_steps.sanitizer(False) == 1
    *lines, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["tool"]: line["result"] for line in lines} == {
        "memcheck": "clean", "racecheck": "errors", "initcheck": "failed", "synccheck": "clean",
    }  # fmt: skip
    assert last == {"tally": {"clean": 2, "errors": 1, "failed": 1}}
    assert next(line["output"] for line in lines if line["tool"] == "racecheck") == "a race"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 4 and all(
        "golden_run.py --bare" in call and "01_head.npz" in call and "resident_a8" not in call for call in calls
    )


NCU = """==PROF== Connected to process 1
{"golden": "00_resident_a8", "result": "not compared"}
"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","conv2d_sm90","GPU Speed Of Light Throughput","Duration","us","61.44"
"0","conv2d_sm90","GPU Speed Of Light Throughput","SM Frequency","Ghz","1.98"
"0","conv2d_sm90","Launch Statistics","Grid Size","","132"
"0","conv2d_sm90","Launch Statistics","","",""
"""


def test_what_the_profiler_prints() -> None:
    assert card_steps.metrics_of(NCU) == {
        "GPU Speed Of Light Throughput": {"Duration (us)": "61.44", "SM Frequency (Ghz)": "1.98"},
        "Launch Statistics": {"Grid Size": "132"},
    }
    assert card_steps.metrics_of("==ERROR== ERR_NVGPUCTRPERM") == {}


@pytest.mark.parametrize("ends", [{}, {"racecheck": "sleep 60"}, dict.fromkeys(TOOLS, "sleep 60")], ids=["all", "one_late", "none"])
def test_the_sanitizer_needs_one_tool_that_is_clean(ends: dict, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = "".join(f"{name}) exec {command};; " for name, command in ends.items())
    stand_in(tmp_path / "bin", "compute-sanitizer", f'case "$2" in {cases}*) exit 0;; esac', monkeypatch)
    monkeypatch.setattr(card_steps, "SANITIZER_LIMIT", 1)
    assert card_steps.sanitizer(False) == int(len(ends) == len(TOOLS))
    *_, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last["tally"].get("timeout", 0) == len(ends) and last["tally"].get("clean", 0) == len(TOOLS) - len(ends)


def test_every_kernel_must_be_profiled(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    import card_memory

    (tmp_path / "printed").write_text(NCU)
    stand_in(tmp_path / "bin", "ncu", f'case "$*" in *head*) exit 1;; esac; cat {tmp_path}/printed', monkeypatch)
    monkeypatch.setattr(card_memory, "Card", lambda: type("Card", (), {"attribute": lambda self, name: 9})())
    monkeypatch.setattr(card_steps, "PROFILED", {9: ("resident_a8", "head"), 8: ()})
    assert card_steps.ncu(False) == 1
    *lines, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["profiled"], line["result"]) for line in lines] == [("00_resident_a8", "read"), ("01_head", "failed")]
    assert last == {"tally": {"read": 1, "failed": 1}, "not_read": ["head"]}
    (tmp_path / "bin" / "01_head.npz").unlink()  # not carried along
    assert card_steps.ncu(False) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["not_read"] == ["head"]


@pytest.mark.parametrize("works", [True, False])
def test_kernels_are_profiled(works: bool, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    import card_memory

    (tmp_path / "printed").write_text(NCU)
    body = f'echo "$@" >> {tmp_path}/calls; ' + (f"cat {tmp_path}/printed" if works else "echo '==ERROR== no permission'; exit 1")
    stand_in(tmp_path / "bin", "ncu", body, monkeypatch)
    monkeypatch.setattr(card_memory, "Card", lambda: type("Card", (), {"attribute": lambda self, name: 9})())
    monkeypatch.setattr(card_steps, "PROFILED", {9: ("resident_a8",), 8: ()})
    assert card_steps.ncu(False) == (0 if works else 1)
    line, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert line["profiled"] == "00_resident_a8"
    assert last == ({"tally": {"read": 1}} if works else {"tally": {"failed": 1}, "not_read": ["resident_a8"]})
    if works:
        assert line["metrics"]["Launch Statistics"] == {"Grid Size": "132"}
    else:
        assert line["output"] == "==ERROR== no permission"
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert "--clock-control none --launch-skip 1 --launch-count 1 --section SpeedOfLight" in call
    assert "--size 512x512 --repeat 2" in call


def test_outcomes_of_tests_are_told_as_they_come(tmp_path: Path) -> None:
    """Triton's last, failures in words."""
    path = tmp_path / "test_some.py"
    path.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('backend', ['triton', 'cuda'])\n"
        "def test_one(backend): assert backend == 'cuda', 'not here'\n"
        "def test_two(): pytest.skip('no second card')\n"
    )
    program = (
        "import sys, pytest, card_steps; card_steps.answers_alone(); recorder = card_steps.Recorder(); "
        "status = pytest.main(['-q', '-p', 'no:cacheprovider', '--rootdir', *sys.argv[1:]], plugins=[recorder]); "
        "card_steps.say(tally=card_steps.tally(recorder.outcomes)); sys.exit(status)"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(path)]
    paths = os.pathsep.join([str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 1 and "1 failed" in done.stderr
    *lines, last = [json.loads(line) for line in done.stdout.splitlines()]  # answers alone
    assert [line["test"].partition("::")[2] for line in lines] == ["test_one[cuda]", "test_two", "test_one[triton]"]
    assert [line["outcome"] for line in lines] == ["passed", "skipped", "failed"]
    assert "not here" in lines[2]["why"] and "no second card" in lines[1]["why"]
    assert last == {"tally": {"passed": 1, "skipped": 1, "failed": 1}}
