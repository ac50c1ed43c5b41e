"""`adabm upscale --ray`: the pictures of a folder or an object store, by the workers of a Ray cluster."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from ..upscaling.names import labelled
from ..upscaling.sizes import Size
from .arguments import is_uri
from .common import BAD_INPUT, FAILED, one_line, stage
from .outputs import check_suffix, find_inputs, plan_outputs
from .pipes import piped
from .sizes import asked_size
from .summary import Many, print_many, warn_unread

if TYPE_CHECKING:
    from ..ray.plan import FileTask
    from ..ray.recipe import Recipe
    from ..ray.worker import Places
    from ..upscaling.enlarge import Enlarger

_SETTINGS = ("bits", "depth", "backend", "device", "threads", "graph", "tile", "halo", "protocol", "tta", "max_memory", "smooth")


def execute(args: argparse.Namespace) -> None:
    """Upscales the pictures that the arguments name on a cluster, and prints what was done."""
    from ..ray.cluster import check_address, connected, require_ray
    from ..ray.dataset import check_model, make_pool, run_files

    with stage(BAD_INPUT):
        _check_options(args)
        require_ray()
        address = check_address(args.ray)
        size = asked_size(args)
        check_suffix(args.suffix, size)
        recipe = _recipe(args, size)
        network = _network(recipe)
        scale = check_model(network)
        many = Many()
        wanted, places = _by_uri(args, size, scale, many) if _any_uri(args) else _by_path(args, size, scale, many)
        warn_unread(args, many)
    backend, workers = "none, nothing was missing", 0
    if wanted:
        with stage(FAILED), connected(address):
            start = time.perf_counter()
            pool = make_pool(recipe, args.workers, None, not args.quiet and sys.stderr.isatty())
            backend, workers = pool.backend, pool.workers
            for report in run_files(wanted, pool, places):
                _take(args, report, many)
            many.seconds = time.perf_counter() - start
    many.images.sort(key=lambda image: image["input"])
    many.errors.sort(key=lambda error: error["input"])
    print_many(args, many, _settings(args, recipe, network, backend, workers), len(wanted) + many.failed_before)


def _check_options(args: argparse.Namespace) -> None:
    if args.compare:
        raise ValueError("--compare must be left out with --ray")
    for path in args.inputs:
        if not is_uri(path) and piped(path):
            raise ValueError(f"IN must be files, folders or a URI with --ray, got the pipe '{path}'")
    if args.output is not None and not is_uri(args.output) and piped(args.output):
        raise ValueError(f"OUT must be a folder or a URI with --ray, got '{args.output}'")


def _any_uri(args: argparse.Namespace) -> bool:
    return any(map(is_uri, (*args.inputs, args.output)))


def _recipe(args: argparse.Namespace, size: Size) -> Recipe:
    from ..images.writer import DEFAULT_QUALITY
    from ..ray.recipe import Recipe

    settings = {name: getattr(args, name) for name in _SETTINGS}
    writing = {"quality": args.quality or DEFAULT_QUALITY, "metadata": args.metadata}
    return Recipe.of(args.model, settings, size, max_pixels=args.max_pixels, strict=args.strict, **writing)


def _network(recipe: Recipe) -> Enlarger:
    try:
        return recipe.plain_network()
    except ValueError as error:
        if str(error).startswith(("tile ", "halo ", "smooth ")):
            raise ValueError(f"--{error}".replace("--tile", "--window", 1)) from error
        raise


def _by_path(args: argparse.Namespace, size: Size, scale: int, many: Many) -> tuple[list[FileTask], Places]:
    """The tasks for files and folders of this machine, which all nodes must share: the same as those of the plain command."""
    from ..ray.plan import FileTask
    from ..ray.stores import Store
    from ..ray.worker import Places

    inputs, rest = find_inputs(args)
    plan = plan_outputs(args, inputs, size, scale)
    many.passed_over = [{"input": str(path), "reason": f"it is an output of '{origin}'"} for path, origin in plan.earlier]
    many.unread = [{"input": str(passed.path), "reason": passed.reason} for passed in rest.passed_over]
    many.errors = [{"input": str(planned.source), "error": one_line(str(error))} for planned, error in plan.failed]
    many.skipped, many.others, many.failed_before = plan.skipped, rest.others, len(plan.failed)
    here = Store.of(os.getcwd()).called("")
    tasks = [FileTask(str(planned.source), str(planned.target), planned.format) for planned in plan.pictures]
    return tasks, Places(here, here, args.existing == "skip", "", args.format)


def _by_uri(args: argparse.Namespace, size: Size, scale: int, many: Many) -> tuple[list[FileTask], Places]:
    """The tasks for a folder of an object store, or into one."""
    from ..ray.dataset import plan_files
    from ..ray.stores import Store
    from ..ray.worker import Places

    if len(args.inputs) > 1:
        raise ValueError(f"IN must be one folder or URI where a URI is given, got {len(args.inputs)} inputs")
    if args.output is None:
        raise ValueError(f"OUT must be given (-o) for the URI '{args.inputs[0]}'")
    source, target = Store.of(args.inputs[0]), Store.of(args.output)
    places = Places(source, target, args.existing != "replace", labelled(args.suffix, size, scale), args.format)
    planned = plan_files(places)
    if planned.found and args.existing == "refuse":
        raise ValueError(f"OUT must not exist with --existing refuse, and '{target.shown}' has {planned.found} of the outputs")
    many.skipped, many.others = planned.found, planned.others
    many.unread = [{"input": name, "reason": reason} for name, reason in planned.passed_over]
    many.errors = [{"input": name, "error": one_line(reason)} for name, reason in planned.unread]
    many.failed_before = len(planned.unread)
    return planned.tasks, places


def _take(args: argparse.Namespace, report: dict[str, Any], many: Many) -> None:
    """Counts one report of a worker, and says with --verbose what became of the picture."""
    errors = [report["error"]] if "error" in report else report.get("failed_rows", [])
    many.errors += [{"input": report["input"], "error": one_line(error)} for error in errors]
    if "found" in report:
        many.skipped += 1
    elif "error" not in report:
        many.images.append(report)
    for warning in report.get("warnings", []) if not args.quiet else []:
        print(f"adabm: warning: {one_line(warning)}", file=sys.stderr)
    if args.verbose and "error" not in report:
        what = (
            "was there" if "found" in report else f"{report['seconds']:.3f} s" if "seconds" in report else f"{report['rows']} rows"
        )
        print(f"{report['input']} -> {report['output']}: {what}", file=sys.stderr)


def _settings(args: argparse.Namespace, recipe: Recipe, network: Enlarger, backend: str, workers: int) -> dict[str, Any]:
    patchwise = network.network
    settings = {"model": args.model, "backend": backend, "threads": recipe.threads, "bits": args.bits, "depth": args.depth}
    settings |= {"halo": patchwise.halo, "protocol": args.protocol, "tta": args.tta, "workers": workers}
    return settings | {"smooth": "interpolate" if patchwise.interpolates else "network"}
