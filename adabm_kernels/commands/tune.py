"""`adabm tune`: measures a card for its kernels, or compiles the kernels for a card that is not there."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from . import arguments
from .common import BAD_INPUT, FAILED, STDOUT, CommandError, check_json, keeping_imports, stage, to_json, write_json

if TYPE_CHECKING:
    from ..nn import ConvertedNetwork

SUMMARY = "measure a GPU for a model's layers, or compile kernels for one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="NAME|PATH", help="whose layers to measure (default: all built-in models)")
    add(
        "--minutes",
        metavar="N",
        type=arguments.number(0),
        help="stop after so long; the same command goes on (default: at the end)",
    )
    add("--prefill", metavar="sm_XY", help="compile Triton's kernels for this architecture instead, such as sm_90; needs no GPU")
    add("--into", metavar="DIR", type=arguments.path, help="with --prefill: the folder of the cache (default: Triton's own)")
    arguments.add_json_file(parser)


def execute(args: argparse.Namespace) -> None:
    """Measure how the layers of a model are best launched on this GPU, and which backend takes each less time; models use it from
    then on. Stops after --minutes and goes on from there the next time. With --prefill, compile Triton's kernels for a card that
    need not be there."""
    with stage(BAD_INPUT):
        if args.into is not None and args.prefill is None:
            raise ValueError("--into goes with --prefill")
        if args.minutes is not None and args.prefill is not None:
            raise ValueError("--minutes must be left out with --prefill, which measures nothing")
        check_json(args.json, args.model)
    report = _prefill(args) if args.prefill is not None else _tune(args)
    if args.json == STDOUT:
        print(to_json(report))
    elif args.json is not None:
        with stage(FAILED):
            write_json(args.json, report)


@keeping_imports()
def _models(args: argparse.Namespace) -> dict[str, ConvertedNetwork]:
    """The model that was asked for, or all built-in ones, by name."""
    from ..models import builtin_models, load_model

    return {name: load_model(name) for name in ([args.model] if args.model is not None else builtin_models())}


def _say(args: argparse.Namespace) -> Callable[[str], None]:
    return (lambda line: None) if args.json == STDOUT else lambda line: print(line, flush=True)


# ---- a card that is here


def _tune(args: argparse.Namespace) -> dict[str, Any]:
    from ..backends.devices import why_no_gpu

    with stage(BAD_INPUT):
        if reason := why_no_gpu():
            raise CommandError(f"tune measures a GPU, and there is none here: {reason} (--prefill needs none)", BAD_INPUT)
        from ..tuning import gpu as tune_gpu

        if reason := tune_gpu.why_not("triton"):
            raise CommandError(f"tune measures how Triton's kernels are launched: {reason}", BAD_INPUT)
        from ..backends import gpu_times, tables
        from ..backends.triton import tuning

        for table in (tuning.user_table(), gpu_times.user_table()):
            tables.check(table)
        models = _models(args)
    with stage(FAILED):
        return measure(models, args.minutes, _say(args), tune_gpu.why_not("cuda"))


def measure(
    models: dict[str, ConvertedNetwork], minutes: float | None, say: Callable[[str], None], why_no_cuda: str = ""
) -> dict[str, Any]:
    """Measures whatever is not yet measured of the models' layers, for at most so many minutes, and returns the report.
    why_no_cuda: the reason why there is no choice between backends to measure, "" where there is one."""
    from ..backends import gpu_times
    from ..backends.triton import tuning
    from ..tuning import gpu as tune_gpu

    clock, source = tune_gpu.Clock(minutes), tune_gpu.place()
    launches, choices = tune_gpu.Launches(), tune_gpu.Choices()
    say(f"measuring {source['card']}" + ("" if minutes is None else f" for {minutes:g} minutes"))
    convs = _alike(models.values())
    kinds = tune_gpu.kinds_of(convs, counted=len(models) == 1)
    tune_gpu.tune_launches(kinds, tuning.user_table(), clock, say, source, most=tune_gpu.FIRST, found=launches)
    if not why_no_cuda:
        choices = tune_gpu.tune_choices(convs, gpu_times.user_table(), clock, say, source)
    before = {key: entry["config"] for key, (_, entry) in launches.entries.items()}
    tune_gpu.tune_launches(kinds, tuning.user_table(), clock, say, source, found=launches)
    changed = any(entry["config"] != before.get(key) for key, (_, entry) in launches.entries.items())
    if not why_no_cuda and changed:  # times by earlier configs would be wrong; measuring them again takes a minute more
        choices = tune_gpu.tune_choices(convs, gpu_times.user_table(), tune_gpu.Clock(None), say, source)
    report = _report(launches, choices, why_no_cuda, source)
    for line in _lines(report, tuning.user_table(), gpu_times.user_table()):
        say(line)
    return report


def _alike(models: Iterable[ConvertedNetwork]) -> list[Any]:
    """The integer convolutions of all models."""
    return [conv for model in models for conv in model.convs()]


def _report(launches: Any, choices: Any, why_no_cuda: str, source: dict[str, str]) -> dict[str, Any]:
    from ..tuning.gpu import SIZES

    gains = {side: launches.gained(side) for side in SIZES}
    return {
        "place": source,
        "launches": {key: entry for key, (_, entry) in launches.entries.items()},
        "choices": choices.times,
        "unfinished": {"launches": launches.unfinished, "choices": choices.unfinished},
        "gained": {str(side): {"heuristic_us": gain[0], "us": gain[1]} for side, gain in gains.items() if gain is not None},
        "why_no_choices": why_no_cuda,
    }


def _lines(report: dict[str, Any], launches_path: Any, times_path: Any) -> list[str]:
    """Lines of text that tell the time gained, the work left, and the files that hold the results."""
    lines = []
    if report["launches"]:
        entries = report["launches"].values()
        faster = sum(entry["us"] < entry["heuristic_us"] for entry in entries)
        lines.append(f"launches: {faster} of {len(entries)} kinds of layer are launched better than before")
    for side, gain in report["gained"].items():
        share = gain["us"] / gain["heuristic_us"]
        lines.append(f"  {side}x{side}: the model's convolutions {gain['us']:.0f} us, {share:.2f} of {gain['heuristic_us']:.0f} us")
    if report["choices"]:
        wins = sum(times["triton"] < times["cuda"] for times in report["choices"].values())
        lines.append(f"backends: triton is faster in {wins} of {len(report['choices'])} layers and widths, cuda in the others")
    if report["why_no_choices"]:
        lines.append(f"backends: triton alone can run, so that there is no choice: {report['why_no_choices']}")
    left = report["unfinished"]
    if any(left.values()):
        lines.append(f"left: candidates of {left['launches']} kinds of layer, {left['choices']} choices; the same command goes on")
    files = [path for path, found in ((launches_path, report["launches"]), (times_path, report["choices"])) if found]
    return lines + [f"written to {path}: models loaded from now on go by it" for path in files]


# ---- a card that is elsewhere


def _prefill(args: argparse.Namespace) -> dict[str, Any]:
    with stage(BAD_INPUT):
        from ..tuning.prefill import capability_of, prefill

        try:
            capability = capability_of(args.prefill)
        except ValueError as error:
            raise ValueError(f"--{error}") from error
        if args.into is not None:
            args.into.mkdir(parents=True, exist_ok=True)
        models = _models(args)
    say, compiled, found = _say(args), 0, 0
    with stage(FAILED):
        for name, model in models.items():
            forms = prefill(model, capability, args.into, say)
            compiled, found = compiled + len(forms.compiled), found + len(forms.found)
            say(f"{name}: {len(forms.compiled)} forms compiled for sm_{capability}, {len(forms.found)} were there")
    if args.into is not None:
        say(f"set TRITON_CACHE_DIR to a copy of {args.into} where the card is")
    return {"capability": capability, "compiled": compiled, "found": found, "into": None if args.into is None else str(args.into)}
