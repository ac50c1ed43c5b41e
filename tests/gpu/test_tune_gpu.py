"""`adabm tune` as far as a machine without a card can tell: what is measured, kept and gone on with, by stand-ins; and kernels that
are compiled for a card elsewhere."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended_card import PLACE, Card
from small import small_edsr

from adabm_kernels import ConvertConfig, convert_model, files, machine, save
from adabm_kernels.backends import cards, devices, gpu_times
from adabm_kernels.backends.launches import changed
from adabm_kernels.commands import tune
from adabm_kernels.ops import library
from adabm_kernels.quantize import padded_channels
from adabm_kernels.tuning import gpu as tune_gpu
from adabm_kernels.tuning import prefill

pytestmark = pytest.mark.skipif(bool(devices.why_no_triton()), reason=devices.why_no_triton())


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 18, generator=torch.Generator().manual_seed(0)) * 255
    config = ConvertConfig(recipe="paper", steps=0, batch=2, bit_aware_clipping=False)
    return convert_model(small_edsr(blocks=1), [images], config)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Card:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = Card()
    made.stand_in(monkeypatch.setattr)
    made.tuning.measured.cache_clear()
    gpu_times.measured.cache_clear()
    yield made
    made.tuning.measured.cache_clear()
    gpu_times.measured.cache_clear()


def launches(card: Card, kinds: list, path: Path, **options: Any) -> tuple[tune_gpu.Launches, list[str]]:
    said: list[str] = []
    options = {"clock": tune_gpu.Clock(None), "source": PLACE} | options
    clock, source = options.pop("clock"), options.pop("source")
    found = tune_gpu.tune_launches(kinds, path, clock, said.append, source, milliseconds=card.milliseconds, **options)
    return found, said


def test_the_best_config_is_kept_and_measuring_goes_on(card: Card, model: torch.nn.Module, tmp_path: Path) -> None:
    kind = tune_gpu.kinds_of(model.convs(), (8,))[0]
    path, candidates = tmp_path / "tuning.json", tune_gpu.candidates_for(kind)
    assert candidates[0] == card.tuning.heuristic(kind.outputs, 64) and len(set(candidates)) == len(candidates)
    assert card.tuning.PERSISTENT in {config.form for config in card.tuning.candidates(64, 512**2)[: tune_gpu.FIRST]}
    card.times = {candidates[2]: 5.0, candidates[-1]: 4.0}
    card.refuses = lambda config: config == candidates[1]

    found, said = launches(card, [kind], path, most=4)
    assert card.timed == [candidates[0], *candidates[2:4]] and found.unfinished == 1
    entry = card.tuning.read_table(path)[kind.key]
    assert entry == {"config": vars(candidates[2]), "us": 5.0, "heuristic_us": 9.0, "pixels": 64, "tried": 4, **PLACE} | {
        "of": len(candidates)
    }
    assert said[0].startswith(f"{kind.key}: 5.0 us with ") and "9.0 us as it was; 4 of" in said[0]
    assert said[1:] == ["  1 cannot run: out of resource: shared memory"]

    card.timed.clear()
    found, _ = launches(card, [kind], path, clock=tune_gpu.Clock(0))  # no time: what is known counts, nothing is measured
    assert not card.timed and found.unfinished == 1 and found.entries[kind.key][1] == entry
    found, _ = launches(card, [kind], path)
    assert card.timed == [candidates[0], candidates[2], *candidates[4:]] and found.unfinished == 0  # both again, beside the others
    entry = card.tuning.read_table(path)[kind.key]
    assert (entry["config"], entry["tried"]) == (vars(candidates[-1]), len(candidates))
    card.timed.clear()
    launches(card, [kind], path)
    assert not card.timed
    assert found.gained(8) == (kind.count * 9.0, kind.count * 4.0) and found.gained(16) is None
    for other in ({"card": "another"}, {"triton": "4"}, {"adabm": "2"}):
        launches(card, [kind], path, source=PLACE | other, most=2)
        assert card.timed[0] == candidates[0]
        card.timed.clear()


def test_an_entry_decides_how_a_layer_is_launched(card: Card, model: torch.nn.Module) -> None:
    kinds = tune_gpu.kinds_of(model.convs(), (8, 16))
    for kind in kinds:
        card.times = {config: 1.0 for config in card.tuning.candidates(kind.outputs, kind.pixels)[1:2]}
        launches(card, [kind], card.tuning.user_table(), most=2)
    from adabm_kernels.backends.triton import conv2d

    asked: list[tuple] = []
    changed()
    for conv in model.convs():
        _, r, _, c = conv.weight.shape[-4:]
        codes, channels = tune_gpu.leaves_codes(conv), conv.out_channels
        asked.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(card.tuning, "conv2d_config", lambda *shape: asked.append(shape) or card.tuning.heuristic(*shape[3:]))
            conv2d.conv2d_launch(
                90, (1, 16, 16, -(-c // 4) * 4), tuple(conv.weight.shape), conv2d.Layout.of(tuple(conv.weight.shape)).offsets()[-1],
                activation="none", shuffle=conv.shuffle, packed_codes=True, y=0 if codes else 1, y_pitch=0 if codes else channels,
                codes=codes, residual=False,
            )  # fmt: skip
        changed()
        assert card.tuning.shape_class(*asked[0]) in card.tuning.read_table(card.tuning.user_table())


def test_calls_made_ready_go_by_what_is_known_now(
    card: Card, model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without anybody's clearing the cache of checked calls."""
    tuning, used = card.tuning, []

    def ready_conv2d_out(conv: Any, to: Any) -> Callable[..., None]:
        config = tuning.conv2d_config(90, conv.x_q.shape[3], 3, 16, 64)
        return lambda *tensors: used.append(config)

    monkeypatch.setattr(library, "backend_module", lambda name: SimpleNamespace(ready_conv2d_out=ready_conv2d_out))
    monkeypatch.setattr(cards, "interpreting", lambda: True)
    conv = copy.deepcopy(model.convs()[0])
    channels = padded_channels(conv.weight.shape[-1])
    conv.backend, key = "triton", tuning.shape_class(90, channels, 3, 16, 64)
    x_q, bits = torch.zeros(1, 8, 8, channels, dtype=torch.uint8), torch.tensor([8], dtype=torch.int32)
    forced, better = tuning.Config(32, 16, 4, 1), tuning.Config(32, 16, 4, 2)
    conv(x_q, bits)
    with tuning.always(forced):
        conv(x_q, bits)
        conv(x_q, bits)
    conv(x_q, bits)
    tuning.write_entries(tuning.user_table(), {key: (better, PLACE)})
    conv(x_q, bits)
    guess = tuning.heuristic(16, 64, 90)
    assert used == [guess, forced, forced, guess, better]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError], ids=["interrupted", "broken card"])
def test_what_was_tried_is_kept_when_measuring_stops(
    stop: type, card: Card, model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = tune_gpu.kinds_of(model.convs(), (8,))[0]
    candidates = tune_gpu.candidates_for(kind)
    card.times = {candidates[1]: 2.0}

    def refuses(config: Any) -> bool:
        if stop is KeyboardInterrupt and config == candidates[3]:
            raise KeyboardInterrupt
        return config == candidates[3]

    def synchronize() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    card.refuses = refuses
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    said = None if stop is KeyboardInterrupt else "launches nothing any more: CUDA error: an illegal memory"
    with pytest.raises(stop, match=said):
        launches(card, [kind], tmp_path / "t.json")
    entry = card.tuning.read_table(tmp_path / "t.json")[kind.key]
    # One that was interrupted is tried again, one that broke the card is not.
    assert entry["config"] == vars(candidates[1]) and entry["tried"] == (3 if stop is KeyboardInterrupt else 4)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, tune_gpu.CardError])
def test_a_disk_that_is_full_hides_no_other_error(
    stop: type, card: Card, model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, said = tune_gpu.kinds_of(model.convs(), (8,))[0], []

    def refuse(*given: Any) -> None:
        raise OSError("cannot write 't': no space left")

    def checked(config: Any) -> None:
        raise stop

    card.refuses = lambda config: config == tune_gpu.candidates_for(kind)[1]
    monkeypatch.setattr(tune_gpu, "_check_card", checked)
    monkeypatch.setattr(card.tuning, "write_entries", refuse)
    given = [kind], tmp_path / "t", tune_gpu.Clock(None), said.append, PLACE
    with pytest.raises(stop):
        tune_gpu.tune_launches(*given, milliseconds=card.milliseconds)
    assert said == [f"{kind.key}: what was measured is lost: cannot write 't': no space left"]


@pytest.mark.parametrize("function", ["tune_launches", "tune_choices"])
def test_a_table_that_cannot_be_written_is_refused_before_measuring(
    function: str, card: Card, model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = tune_gpu.kinds_of(model.convs(), (8,)) if function == "tune_launches" else model.convs()

    def measure(folder: str) -> None:
        given = what, tmp_path / folder / "t.json", tune_gpu.Clock(None), print, PLACE
        getattr(tune_gpu, function)(*given, milliseconds=card.milliseconds)

    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"cannot write '{tmp_path}/file/t.json': "):
        measure("file")
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    with pytest.raises(OSError, match=f"cannot write '{tmp_path}/folder/t.json': the folder '{tmp_path}/folder' is not writable"):
        measure("folder")
    assert not card.timed


def test_forms_that_cannot_compute_a_layer_are_not_tried(card: Card, model: torch.nn.Module) -> None:
    kinds = tune_gpu.kinds_of(model.convs(), (8,))
    found = {(kind.conv.weight.dim(), config.form) for kind in kinds for config in tune_gpu.candidates_for(kind)}
    assert found == {(4, "tiles"), (4, "persistent"), (6, "tiles")}  # 6: the collapsed upsampler, with kernels by border class


@pytest.mark.parametrize("wrong", ["any", "second"])
def test_nothing_is_measured_of_what_is_wrong(wrong: str, card: Card, model: torch.nn.Module, tmp_path: Path) -> None:
    kind = tune_gpu.kinds_of(model.convs(), (8,))[0]
    card.wrong = "any" if wrong == "any" else tune_gpu.candidates_for(kind)[1]
    with pytest.raises(RuntimeError, match="differs from the integer reference" if wrong == "any" else "gives another result than"):
        launches(card, [kind], tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


def test_tables_from_before_there_were_two_forms_are_read(card: Card, tmp_path: Path) -> None:
    old = {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2}
    kept = old | {"form": "persistent", "programs": 2}
    wrong = [old | {"form": "other"}, old | {"form": "persistent"}, old | {"programs": 2}, kept | {"programs": True}]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({str(i): {"config": config} for i, config in enumerate([old, kept, *wrong])}))
    read = {key: card.tuning.Config(**entry["config"]) for key, entry in card.tuning.read_table(path).items()}
    assert read == {"0": card.tuning.Config(64, 32, 4, 2), "1": card.tuning.Config(64, 32, 4, 2, "persistent", 2)}


def test_a_model_is_measured_within_its_minutes(card: Card, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches and backends, and what is said of it."""
    monkeypatch.setattr(tune_gpu, "SIZES", (16, 8))
    monkeypatch.setattr(tune_gpu.kinds_of, "__defaults__", ((16, 8), True))
    for name in ("tune_launches", "tune_choices"):
        function = getattr(tune_gpu, name)
        options = {"milliseconds": card.milliseconds} | ({"side": 8} if name == "tune_choices" else {})
        monkeypatch.setattr(function, "__kwdefaults__", function.__kwdefaults__ | options)
    monkeypatch.setattr(card.tuning, "candidates", lambda *shape, all=card.tuning.candidates: all(*shape)[:14])
    # The last that each kind has: behind those of the first round, or not.
    kinds = tune_gpu.kinds_of(model.convs(), (16, 8))
    card.times = {tune_gpu.candidates_for(kind)[-1]: 3.0 for kind in kinds}
    assert any(len(tune_gpu.candidates_for(kind)) > tune_gpu.FIRST for kind in kinds)
    said: list[str] = []
    report = tune.measure({"m": model}, 0, said.append)
    assert not card.timed and report["unfinished"]["launches"] > 0 and any("the same command goes on" in line for line in said)
    report = tune.measure({"m": model}, None, said.append)
    assert report["unfinished"] == {"launches": 0, "choices": 0} and set(report["gained"]) == {"16", "8"}
    assert report["gained"]["16"]["us"] < report["gained"]["16"]["heuristic_us"]
    assert f"written to {card.tuning.user_table()}: models loaded from now on go by it" in said
    assert f"written to {gpu_times.user_table()}: models loaded from now on go by it" in said
    assert json.loads(gpu_times.user_table().read_text()).keys() == report["choices"].keys()
    conv = model.convs()[0]
    assert gpu_times.times(90, conv.shape)[1] == "a card, 2026-01-02"
    card.timed.clear()
    tune.measure({"m": model}, None, said.append)  # all is there
    report = tune.measure({"m": model}, None, said.append, "no library")
    assert not card.timed and "there is no choice: no library" in said[-2]


def test_times_by_a_config_of_before_are_measured_again(card: Card, model: torch.nn.Module) -> None:
    path, convs = gpu_times.user_table(), model.convs()

    def timed() -> int:
        card.timed.clear()
        found = tune_gpu.tune_choices(convs, path, tune_gpu.Clock(None), print, PLACE, side=8, milliseconds=card.milliseconds)
        assert found.times == {key: entry["us"] for key, entry in json.loads(path.read_text()).items()}
        return len(card.timed)

    all_of_them = 2 * len(tune_gpu.layers_of(convs))
    assert (timed(), timed()) == (all_of_them, 0)
    kind = tune_gpu.kinds_of(convs, (8,))[0]
    better = tune_gpu.candidates_for(kind)[1]
    card.tuning.write_entries(card.tuning.user_table(), {kind.key: (better, PLACE)})
    alike = [conv for conv in convs if tune_gpu.kinds_of([conv], (8,))[0].key == kind.key]
    assert 0 < timed() == 2 * len(tune_gpu.layers_of(alike)) < all_of_them
    assert timed() == 0


def test_the_place_names_the_version_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Triton, whose distribution has another name on other platforms (machine.triton_version)."""
    monkeypatch.setattr(tune_gpu, "version", lambda distribution: f"version of {distribution}")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    place = tune_gpu.place()
    assert (place["triton"], place["adabm"]) == (machine.triton_version(), "version of adabm-kernels")


def test_backends_that_differ_are_not_timed(card: Card, model: torch.nn.Module, tmp_path: Path) -> None:
    card.wrong = "any"
    with pytest.raises(RuntimeError, match="cuda and triton differ at"):
        tune_gpu.tune_choices(model.convs(), tmp_path / "t", tune_gpu.Clock(None), print, PLACE, side=8)


# ---- the command


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_card_it_says_so(adabm: Callable) -> None:
    status, out, err = adabm("tune", "--minutes", 5)
    assert (status, out) == (2, "") and err.startswith("adabm: error: tune measures a GPU, and there is none here: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--into", "d"], "--into goes with --prefill"),
        (["--prefill", "sm_90", "--minutes", "3"], "--minutes must be left out with --prefill, which measures nothing"),
        (["--prefill", "sm_75"], "--prefill must be one of sm_80, sm_86, "),
        (["--prefill", "hopper"], "got 'hopper'"),
        (["--prefill", "sm_90", "--model", "nowhere"], "model must be a built-in model"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_asked_for(argv: list[str], message: str, adabm: Callable) -> None:
    status, _, err = adabm("tune", *argv)
    assert status == 2 and message in err


def test_the_command_hands_on_what_it_is_asked_for(adabm: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys.modules["adabm_kernels.models"], "load_model", lambda name: f"model {name}")
    monkeypatch.setattr(devices, "why_no_gpu", lambda: "")
    monkeypatch.setattr(tune_gpu, "why_not", lambda backend: {"triton": "", "cuda": "no library"}[backend])
    monkeypatch.setattr(tune, "measure", lambda *given: asked.append(given[:2] + given[3:]) or {"launches": {}})
    status, out, _ = adabm("tune", "--model", "m", "--minutes", 2.5, "--json", "-")
    assert (status, json.loads(out)) == (0, {"launches": {}}) and asked == [({"m": "model m"}, 2.5, "no library")]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    status, _, err = adabm("tune", "--model", "m")
    assert status == 2 and f"cannot write '{tmp_path}/file/adabm_kernels/tuning.json': " in err and len(asked) == 1
    monkeypatch.setattr(tune_gpu, "why_not", lambda backend: f"backend {backend!r} cannot run: too old")
    status, _, err = adabm("tune")
    assert status == 2 and "how Triton's kernels are launched: backend 'triton' cannot run: too old" in err
    asked.clear()
    monkeypatch.setattr(prefill, "prefill", lambda *given: asked.append(given[:3]) or prefill.Forms(["a", "b"], ["c"]))
    status, out, _ = adabm("tune", "--prefill", "9.0", "--into", tmp_path / "deep" / "cache", "--model", "m")
    assert status == 0 and asked == [("model m", 90, tmp_path / "deep" / "cache")] and asked[0][2].is_dir()
    assert out.splitlines()[0] == "m: 2 forms compiled for sm_90, 1 were there" and "TRITON_CACHE_DIR" in out.splitlines()[1]


# ---- for a card elsewhere


def run_in_a_process(code: str, **environment: str) -> str:
    variables = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"} | environment
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_config_that_a_table_can_bring_is_compiled() -> None:
    """Of the shape classes that are tuned, and of those that the heuristic decides then."""
    from adabm_kernels.backends.triton import tuning

    def class_of(height: int, width: int) -> str:
        return tuning.shape_class(90, 64, 3, 64, height * width)

    tuned = {class_of(side, side) for side in tune_gpu.SIZES}
    assert tuned <= {class_of(*size) for size in prefill.SIZES}
    left = {tuning.heuristic(64, h * w) for h, w in prefill.SIZES if class_of(h, w) not in tuned}
    assert left == {tuning.heuristic(64, pixels) for pixels in range(1, 2**17, 64)}


def test_the_model_is_left_as_it_is(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[torch.nn.Module] = []
    monkeypatch.setattr(cards, "interpreting", lambda: False)
    monkeypatch.setattr(prefill, "pretended", lambda *given: nullcontext())
    monkeypatch.setattr(type(model), "set_backend", lambda self, *given, **named: passed.append(self))
    monkeypatch.setattr(prefill, "_pass", lambda model, size: passed.append(model))
    before = {name: value for name, value in vars(model).items() if type(value) in (str, int, bool, type(None))}
    prefill.prefill(model, 90)
    assert len(passed) > len(prefill.SIZES) and all(one is passed[0] and one is not model for one in passed)
    assert before == {name: vars(model)[name] for name in before}


# A later process that launches a layer as it would on a card: by a driver of its own, which knows nothing of the first.
LATER = """
import sys
import torch, triton
from triton import knobs
import adabm_kernels
from adabm_kernels.tuning import prefill
seen = []
knobs.compilation.listener = lambda *, src, cache_hit, **rest: seen.append((src.name, cache_hit))
model = adabm_kernels.load(sys.argv[1])
with prefill.pretended(int(sys.argv[2]), prefill.Forms(), lambda line: None):
    listener, knobs.compilation.listener = knobs.compilation.listener, lambda *, src, cache_hit, **rest: seen.append(cache_hit)
    model.set_backend("triton", graph=False)
    model(torch.zeros(1, 3, 64, 64))
print(seen.count(True), seen.count(False))
"""


def test_a_filled_cache_is_found_by_a_later_process(model: torch.nn.Module, tmp_path: Path) -> None:
    path, cache = tmp_path / "m.safetensors", tmp_path / "cache"
    save(model, path)
    # The second time as if another process did it, though this one has them compiled.
    fill = (
        "from pathlib import Path; from adabm_kernels import load, prefill\n"
        f"given = load({str(path)!r}), 90, Path({str(cache)!r}), print, [(64, 64)]\n"
        "first, second = prefill.prefill(*given), prefill.prefill(*given)\n"
        "print(len(first.compiled), len(first.found), len(second.compiled), len(second.found))"
    )
    lines = run_in_a_process(fill).splitlines()
    compiled, found, *second = map(int, lines[-1].split())
    assert second == [0, compiled]
    assert compiled >= 6 and found == 0 and sum("compiled conv2d_kernel" in line for line in lines) >= 4
    later = LATER.replace("sys.argv[1]", repr(str(path)))
    hits, misses = map(int, run_in_a_process(later.replace("sys.argv[2]", "90"), TRITON_CACHE_DIR=str(cache)).split())
    assert hits >= 5 and misses == 0
    # The detector detects: another architecture is not there.
    short = later.replace("sys.argv[2]", "80").replace("model(torch", "knobs.compilation.listener = stop; model(torch")
    short = short.replace("seen = []", "seen = []\ndef stop(*, cache_hit, **rest): print(cache_hit); raise SystemExit")
    assert run_in_a_process(short, TRITON_CACHE_DIR=str(cache)).split() == ["False"]
