"""Golden problems of benchmarks/gpu: the answers that a card is held against are right, and wrong ones are told."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_library import buffers, driver, host_library
from host_card import HostCard
from small import one_thread  # noqa: F401

from adabm_kernels import native

golden_problems = pytest.importorskip("golden_problems", reason="benchmarks are not beside the tests")
golden_run = pytest.importorskip("golden_run")
PROBLEMS = golden_problems.PROBLEMS
CARDS = {9: {"major": 9, "shared_limit": 227 << 10, "multiprocessors": 3}, 8: {"major": 8, "minor": 6, "shared_limit": 99 << 10}}


def made(name: str, folder: Path) -> Path:
    (path,) = golden_problems.make(folder, [name])
    return path


def run(golden: golden_run.Golden, major: int = 9) -> dict:
    with driver(**CARDS[major]), buffers([], []):
        return golden_run.run(golden, host_library(), HostCard())


@pytest.mark.parametrize("name", PROBLEMS)
def test_answers_are_those_of_the_kernels(name: str, tmp_path: Path) -> None:
    golden = golden_run.Golden.load(made(name, tmp_path))
    for major in CARDS:
        if golden.major in (0, major):
            assert run(golden, major) == {"result": "equal"}


def test_a_wrong_answer_is_told_with_its_place(tmp_path: Path) -> None:
    golden = golden_run.Golden.load(made("resident_small", tmp_path))
    y, y_q = golden.wanted["y"], golden.wanted["y_q"]
    y[0, 2, 4, 7] += 1
    y_q[0, 1, 0, 3] ^= 1
    y_q[0, 2, 0, 0] ^= 1
    found = run(golden)
    assert found["result"] == "different"
    assert found["outputs"]["y"]["elements"] == 1 and found["outputs"]["y"]["of"] == y.size
    assert found["outputs"]["y"]["want"] == found["outputs"]["y"]["got"] + 1
    assert {"elements": 2, "first": (0, 1, 0, 3)}.items() <= found["outputs"]["y_q"].items()


def test_a_kernel_that_computes_something_else_is_told(tmp_path: Path) -> None:
    golden = golden_run.Golden.load(made("resblock_few_channels", tmp_path))
    golden.inputs["beta2"][0, 0, 5] += 10
    golden.configs = ""
    outputs = run(golden)["outputs"]
    assert list(outputs) == ["y_q"] and outputs["y_q"]["first"][-1] == 5  # the channel


def test_every_configuration_is_run_and_named(tmp_path: Path) -> None:
    golden = golden_run.Golden.load(made("staged_configurations", tmp_path))
    golden.wanted["y_q"][0, 0, 0, 0] ^= 1
    with driver(**CARDS[9]):
        count = len(golden_run.configurations(golden, host_library()))
    assert count > 1 and list(run(golden)["outputs"]) == [f"y_q, configuration {i + 1}" for i in range(count)]


def test_bytes_around_an_output_are_watched(tmp_path: Path) -> None:
    with driver(**CARDS[9]):
        card, want = HostCard(checked=False), np.zeros((3, 5), np.int32)
        pointer = card.reserve(want.nbytes)
        assert (card.download(pointer, want).view(np.uint8) == 0xA5).all()
        outside = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_ubyte * 1).from_address(pointer + want.nbytes))
        outside[0] = 1
        with pytest.raises(RuntimeError, match="1 of the 1024 bytes around an output were written"):
            card.download(pointer, want)
        card.free()


def test_what_cannot_run_says_why(tmp_path: Path) -> None:
    path = made("resblock_batch", tmp_path)
    golden = golden_run.Golden.load(path)
    with driver(**CARDS[8]):
        answer = golden_run.answer(path, host_library(), HostCard(checked=False), None, 1)
    assert (answer["result"], answer["reason"]) == ("unsupported", "needs compute capability 9.x")
    found = run(dataclasses.replace(golden, configs=""), 8)
    assert found["result"] == "unsupported" and "the device has another compute capability" in found["reason"]
    golden.structs[0][1]["shuffle"] = 99
    with pytest.raises(ValueError, match="shuffle must be"):
        run(golden)


def test_a_file_holds_all_of_a_problem(tmp_path: Path) -> None:
    for name in ("resident_in_place", "image_bits"):
        before = PROBLEMS[name]()
        before.save(tmp_path / "one.npz")
        after = golden_run.Golden.load(tmp_path / "one.npz")
        for field in dataclasses.fields(before):
            one, other = getattr(before, field.name), getattr(after, field.name)
            if field.name in ("inputs", "wanted", "started"):
                assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one), field.name
            else:
                assert json.loads(json.dumps(one)) == other, field.name


def test_images_are_enlarged_for_a_profiler(tmp_path: Path) -> None:
    golden = golden_run.Golden.load(made("resident_residual_a8", tmp_path)).enlarged(40, 90)
    assert golden.inputs["x_q"].shape == (1, 40, 90, 64) and golden.wanted["y"].shape == (1, 40, 90, 64)
    assert golden.inputs["weight"].shape == (64, 3, 3, 64)
    assert run(golden)["result"] == "different"  # it runs; what it gives was never asked of the reference
    with pytest.raises(ValueError, match="enlarged: the call must have no region"):
        PROBLEMS["region_sm80"]().enlarged(40, 90)


@pytest.mark.parametrize("options", [[], ["--bare", "--repeat", "2"], ["--size", "20x44"]], ids=" ".join)
def test_the_command_prints_a_line_for_each(options: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = golden_problems.make(tmp_path, ["resident_small", "resblock_few_channels"])
    monkeypatch.setattr(sys, "argv", ["golden_run.py", *map(str, paths), *options])
    monkeypatch.setattr(native, "library", lambda name: host_library())
    monkeypatch.setattr(golden_run, "Card", lambda bare: HostCard(bare, checked=False))
    with driver(**CARDS[9]):
        assert golden_run.main() == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["golden"] for line in lines] == [path.stem for path in paths]
    assert [line["family"] for line in lines] == ["resident", "resblock"]
    assert {line["result"] for line in lines} == {"not compared" if options else "equal"}


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"golden_problems: only must be names of \[.*\], got \['other'\]"):
        golden_problems.make(tmp_path, ["depths", "other"])
    golden_problems.make(tmp_path, ["depths"])
    golden_problems.make(tmp_path, ["image_bits"])
    assert [path.stem.partition("_")[2] for path in tmp_path.iterdir()] == ["image_bits"]  # nothing stale is carried along
