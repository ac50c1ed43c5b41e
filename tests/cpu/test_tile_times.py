"""The times that tiles are planned by: the shipped file, the machine's own, and their measurement."""

from __future__ import annotations

import importlib
import json
import os
import time
import warnings

import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from problems import bell_codes, runnable_isas

from adabm_kernels import load, ops
from adabm_kernels.models import builtin_models
from adabm_kernels.native import ISAS
from adabm_kernels.nn import timing
from adabm_kernels.nn.layer_times import layer_times
from adabm_kernels.planning import times as tile_times
from adabm_kernels.planning.layer import plan_layer
from adabm_kernels.planning.tiles import TILES
from adabm_kernels.planning.times import KINDS, Cost, TileTimes
from adabm_kernels.tuning import tiles as tune_tiles

NAMES = [tile.name for tile in TILES]


def made_up(isa: str = "avx512vnni", **measured: str) -> TileTimes:
    """Times by which the direct form is always the fastest."""
    costs = {name: {KINDS[0]: Cost(1.0 if name == "direct" else 100.0, 0.0, 0.0)} for name in NAMES}
    return TileTimes(isa, costs, 0.0, tile_times.provenance() | measured)


def test_the_shipped_times_know_every_tile_and_where_they_come_from() -> None:
    tables = tile_times.read(tile_times.SHIPPED)
    assert set(tables) <= set(ISAS) and "avx512vnni" in tables
    assert list(tables["avx2"].costs) == list(tables["scalar"].costs) == NAMES
    for table in tables.values():
        assert list(table.costs) == [name for name in NAMES if name in table.costs] and "direct" in table.costs
        assert {"cpu", "date", "version"} <= set(table.measured)


def test_a_tile_without_a_measured_time_is_never_chosen() -> None:
    weights = bell_codes(4, 64, 64).numpy()
    costs = {name: {KINDS[0]: Cost(1.0, 0.0, 0.0)} for name in NAMES}
    everything = TileTimes("avx512vnni", costs, 0.0, {})
    assert plan_layer("conv", weights, 8, times=everything).tile[8 - 2] == "F(4x4)"  # 4.5 products instead of 9
    del costs["F(4x4)"], costs["F(2x1)"]
    plan = plan_layer("conv", weights, 8, times=everything)
    assert not {"F(4x4)", "F(2x1)"} & set(plan.tile)
    assert plan.why_direct[8 - 2].endswith("F(2x1) was not measured on avx512vnni; F(4x4) was not measured on avx512vnni")


@pytest.mark.parametrize("isa", list(ISAS)[1:])
def test_every_instruction_set_can_be_planned_for(isa: str) -> None:
    plan = plan_layer("conv", bell_codes(4, 16, 16).numpy(), 8, times=tile_times.tile_times(isa))
    assert list(plan.picoseconds) == sorted(plan.picoseconds)


def test_the_machines_own_times_come_first(own_cache) -> None:
    tile_times.save(tile_times.own_path(), {"avx512vnni": made_up()})
    assert tile_times.own_path().is_relative_to(own_cache)
    plan = plan_layer("conv", bell_codes(4, 16, 16).numpy(), 8, times=tile_times.tile_times("avx512vnni"))
    assert set(plan.tile) == {"direct"} and plan.why_direct[0] == "no tile is faster"


@pytest.mark.parametrize("key, value", [("cpu", "another processor"), ("version", "0.0.1")])
def test_times_of_another_machine_or_version_are_ignored_with_one_warning(key: str, value: str) -> None:
    tile_times.save(tile_times.own_path(), {"avx512vnni": made_up(**{key: value})})
    with pytest.warns(UserWarning, match=rf"plans with the times it ships: .* was measured on .*{value}.*adabm bench --tune"):
        assert tile_times.tile_times("avx512vnni") == tile_times.read(tile_times.SHIPPED)["avx512vnni"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tile_times.tile_times("avx512vnni")


def test_times_measured_anew_are_used_beside_older_ones(recwarn) -> None:
    path = tile_times.own_path()
    tile_times.save(path, {isa: made_up(isa, version="0.0.1") for isa in ("avx2", "avx512vnni")})
    tile_times.save(path, {"avx2": made_up("avx2")})
    assert tile_times.tile_times("avx2") == made_up("avx2")
    assert not recwarn.list
    with pytest.warns(UserWarning, match="version 0.0.1"):
        assert tile_times.tile_times("avx512vnni") == tile_times.read(tile_times.SHIPPED)["avx512vnni"]


def test_saving_replaces_a_damaged_file(tmp_path) -> None:
    path = tmp_path / "times.json"
    path.write_text("{")
    tile_times.save(path, {"avx2": made_up("avx2")})
    assert tile_times.read(path) == {"avx2": made_up("avx2")}


@pytest.mark.parametrize(
    "text, what",
    [
        ("{", "Expecting property name"),
        ('{"format": 9}', "format 9, not 1"),
        ('{"format": 1}', "isas"),
        ('{"format": 1, "isas": {"avx2": {"tiles": {"direct": {"odd": [1, 2, 3]}}, "box": 0, "measured": {}}}}', "kinds of sums"),
        ('{"format": 1, "isas": {"avx2": {"tiles": {"direct": {"few": [1, 2]}}, "box": 0, "measured": {}}}}', "leave"),
    ],
)
def test_a_broken_file_is_named_and_replaced_by_what_is_shipped(text: str, what: str) -> None:
    path = tile_times.own_path()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"'{path}' holds no tile times: .*{what}"):
        tile_times.read(path)
    with pytest.warns(UserWarning, match="plans with the times it ships"):
        assert tile_times.tile_times("avx2") == tile_times.read(tile_times.SHIPPED)["avx2"]


def test_saving_keeps_the_other_instruction_sets(tmp_path) -> None:
    path = tmp_path / "deeper" / "times.json"
    tile_times.save(path, {"avx2": made_up("avx2")})
    tile_times.save(path, {"scalar": made_up("scalar")})
    assert tile_times.read(path) == {"avx2": made_up("avx2"), "scalar": made_up("scalar")}
    assert json.loads(path.read_text())["unit"] == "ps"


@pytest.mark.skipif(not runnable_isas(), reason="the CPU library was not built")
def test_measuring_gives_times_for_every_tile(monkeypatch) -> None:
    monkeypatch.setattr(tune_tiles, "SHAPES", ((16, 16), (4, 16), (16, 4)))
    monkeypatch.setattr(tune_tiles, "WIDTH", 12)
    monkeypatch.setattr(tune_tiles, "ROUNDS", 1)
    seen = []
    table = tune_tiles.measure_tiles(runnable_isas()[-1], lambda *step: seen.append(step))
    assert list(table.costs) == NAMES
    for kinds in table.costs.values():
        for cost in kinds.values():
            assert min(cost.product, cost.entry, cost.leave) >= 0 < cost.product + cost.entry + cost.leave
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] - 1


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="measure_tiles: isa must be one of scalar, .*, got 'avx'"):
        tune_tiles.measure_tiles("avx")


@pytest.mark.skipif(not runnable_isas(), reason="the CPU library was not built")
def test_a_plan_shows_predicted_and_measured_times() -> None:
    model = load(builtin_models()["edsr_x4_w4a4"])
    rows = model.plan_rows(measure=8)
    for row in rows:
        assert float(row["measured ns"]) > 0
        assert float(next(value for key, value in row.items() if key.startswith("predicted ns"))) > 0
    assert {row["layer"] for row in rows} == {conv.name for conv in model.convs()}
    head, *lines = model.plan().splitlines()
    assert head.split()[:4] == ["layer", "bits", "tile", "parts"] and len(lines) == len(rows) and "measured" not in head
    for side in (-1, 1, 4, 8.0, True):
        with pytest.raises(ValueError, match=f"plan: measure must be 0 or a side of at least 5 pixels, got {side}"):
            model.plan(side)


def test_layer_times_know_every_way_to_run_a_layer(monkeypatch) -> None:
    model = load(builtin_models()["edsr_x4_w4a4"])
    with layer_times(model) as seconds:
        model.pixels(torch.rand(1, 3, 9, 8) * 255)
    assert min(seconds.values()) > 0 and "exit" in seconds
    monkeypatch.setattr(ops, "resblock_out", lambda *args, **kwargs: time.sleep(0.001))
    first, second = model.conv("body.0.conv1"), model.conv("body.0.conv2")
    with layer_times(model) as seconds:
        first.into_with(second, None, None, None)
    assert seconds[first.name] == seconds[second.name] >= 0.0005 and sum(seconds.values()) == 2 * seconds[first.name]
    assert not {"into_with", "pixels"} & set(first.__dict__)


def test_adabm_bench_times_the_model_and_its_layers(adabm, empty_folder) -> None:
    status, out, err = adabm("bench", "--size", 8, "--threads", 1, "--json", "-")
    assert status == 0, err
    report = json.loads(out)
    assert report["seconds"] > 0 and report["float_seconds"] > 0 and len(report["layers"]) > 20
    status, out, err = adabm("bench", "--size", 8, "--threads", 1, "--json", "bench.json")
    assert status == 0 and "float32" in out and "predicted ns" in out and "planned by  times of " in out
    assert json.loads((empty_folder / "bench.json").read_text())["size"] == 8


def test_adabm_bench_says_which_tiles_are_never_planned(monkeypatch) -> None:
    planned_by = importlib.import_module("adabm_kernels.commands.bench")._planned_by
    some = TileTimes("avx2", {name: {KINDS[0]: Cost(1.0, 0.0, 0.0)} for name in NAMES[:-2]}, 0.0, {"cpu": "C", "date": "D"})
    monkeypatch.setattr(tile_times, "tile_times", lambda isa: some)
    assert planned_by() == f"times of avx2 on C, D, without {NAMES[-2]}, {NAMES[-1]}: adabm bench --tune measures them"


def test_adabm_bench_times_a_model_where_it_is(adabm, empty_folder, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        importlib.import_module("adabm_kernels.models"), "_device", lambda name: asked.append(name) or torch.device(name)
    )
    monkeypatch.setattr(timing, "REPEATS", 1)
    with Elsewhere():
        status, out, err = adabm("bench", "--size", 8, "--threads", 1, "--device", DEVICE, "--backend", "reference", "--json", "-")
    assert status == 0 and asked == [str(DEVICE)], err
    report = json.loads(out)
    assert report["seconds"] > 0 and report["float_seconds"] > 0 and all(float(row["measured ns"]) > 0 for row in report["layers"])


def test_times_on_a_card_are_taken_when_it_is_done(monkeypatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for name in ("cuda:1", "cpu", "meta"):
        timing.wait_for(torch.device(name))
    assert waited == [torch.device("cuda:1")]


@pytest.mark.skipif(not runnable_isas(), reason="the CPU library was not built")
def test_adabm_bench_tune_writes_the_machines_own_times(adabm, empty_folder, monkeypatch) -> None:
    monkeypatch.setattr(tune_tiles, "measure_tiles", lambda isa, progress: made_up(isa))
    isa = runnable_isas()[-1]
    status, out, err = adabm("bench", "--tune")
    assert status == 0 and str(tile_times.own_path()) in out, err
    assert tile_times.read(tile_times.own_path()) == {isa: made_up(isa)}
    assert adabm("bench", "--tune", "--isa", "scalar", "-o", "own.json")[0] == 0
    assert set(tile_times.read(empty_folder / "own.json")) == {"scalar"}
    (empty_folder / "notes.txt").write_text("notes")
    status, out, err = adabm("bench", "--tune", "-o", "notes.txt")
    assert status == 2 and "'notes.txt' holds no tile times" in err and (empty_folder / "notes.txt").read_text() == "notes"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--size", "4"], "must be an integer from 8 to 4096, got '4'"),
        (["--threads", "0"], "must be an integer of at least 1, got '0'"),
        (["--isa", "avx9"], "invalid choice: 'avx9'"),
        (["--isa", "avx2"], "--isa goes with --tune"),
        (["--output", "x.json"], "--output goes with --tune"),
    ],
)
def test_adabm_bench_names_what_is_wrong(adabm, empty_folder, options, message) -> None:
    status, out, err = adabm("bench", *options)
    assert (status, out) == (2, "") and message in err


def test_tune_looks_at_its_file_before_it_measures(adabm, empty_folder, monkeypatch) -> None:
    monkeypatch.setattr(tune_tiles, "measure_tiles", lambda isa, progress: pytest.fail("it measures"))
    (empty_folder / "folder").mkdir()
    os.mkfifo(empty_folder / "pipe")
    for name, message in {"folder": "it is a folder", "pipe": "it is a device or a pipe"}.items():
        status, out, err = adabm("bench", "--tune", "-o", name)
        assert (status, out) == (2, "") and f"cannot write '{name}': {message}" in err
