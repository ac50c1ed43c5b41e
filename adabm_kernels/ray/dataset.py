"""Upscales datasets of any size with the workers of a Ray cluster."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

from ..models import DEFAULT_MODEL
from ..upscaling.names import DEFAULT_SUFFIX, labelled
from ..upscaling.sizes import Size
from .cluster import require_ray, try_model, workers_that_fit
from .columns import key_column, picture_column
from .plan import FileTask, find, missing, tasks
from .recipe import Recipe
from .stores import Store

if TYPE_CHECKING:
    from ray.data import Dataset

    from ..upscaling.enlarge import Enlarger
    from .worker import Places

_FEWEST_BATCHES = 4  # for each worker, so that all end at about the same time
_MOST_IN_BATCH = 16
_ROUNDS_ALONE = 3  # how often a picture whose worker ended is tried again in a batch of its own
_MOST_REASONS = 1000
_EXISTING = ("skip", "replace")
_FORMATS = ("keep", "png", "jpg", "jpeg", "jpe", "jfif", "webp", "tif", "tiff", "bmp")


@dataclass(frozen=True)
class Pool:
    """The workers of a run. recipe: a reference to the recipe that they all load. cpus, cards: what each of them takes. workers:
    how many there are. batch: how many pictures one is given at a time; None for a number by the size of the run. progress: whether
    Ray shows its progress."""

    recipe: Any
    cpus: int
    cards: int
    workers: int
    batch: int | None
    progress: bool
    backend: str = ""


@dataclass
class Summary:
    """What became of a dataset. done: pictures, or row groups of Parquet files, that this run has written. found: those whose
    output was there. rows: the rows of the row groups. failed: the name of what failed with the reason, at most a thousand of them.
    failures: how many failed. seconds: the time of the run."""

    done: int = 0
    found: int = 0
    rows: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    failures: int = 0
    seconds: float = 0.0

    def add(self, report: dict[str, Any]) -> None:
        """Counts one report of a worker."""
        self.found += "found" in report
        self.done += "found" not in report and "error" not in report
        self.rows += report.get("rows", 0)
        errors = [report["error"]] if "error" in report else report.get("failed_rows", [])
        self.fail(report["input"], errors)

    def fail(self, name: str, errors: list[str]) -> None:
        self.failures += len(errors)
        self.failed += [(name, error) for error in errors[: _MOST_REASONS - len(self.failed)]]


@overload
def upscale_dataset(
    dataset: Dataset, model: Any = ..., *, output: None = ..., column: str | None = ..., format: str | None = ..., **options: Any
) -> Dataset: ...


@overload
def upscale_dataset(
    dataset: Dataset | str | os.PathLike,
    model: Any = ...,
    *,
    output: str | os.PathLike,
    column: str | None = ...,
    format: str | None = ...,
    **options: Any,
) -> Summary: ...


def upscale_dataset(
    dataset: Dataset | str | os.PathLike,
    model: Any = DEFAULT_MODEL,
    *,
    output: str | os.PathLike | None = None,
    column: str | None = None,
    name: str | None = None,
    format: str | None = None,
    suffix: str = DEFAULT_SUFFIX,
    existing: str = "skip",
    workers: int | None = None,
    batch: int | None = None,
    filesystem: Any = None,
    progress: bool = True,
    quality: int = 95,
    max_pixels: int | None = None,
    strict: bool = False,
    metadata: str = "keep",
    **settings: Any,
) -> Dataset | Summary:
    """Upscales a dataset with workers that each hold the model, on the Ray cluster that this process is connected to.

    dataset: a `ray.data.Dataset` with a column of pictures, or the path or URI of a folder with pictures, Parquet files or both.
    model: the name of a built-in model, the path of a converted model, or a converted module. Workers are sent the model.
    output: the path or URI of a folder. Without it the result is a lazy Dataset: the same rows, with the upscaled picture in place
        of each picture (in a column "image" where the dataset has paths), and a column "error", which is null where all went well.
        With it the function writes everything, and returns a Summary:
        - for each picture of a folder a file in the same folder under `output`, under the name that `adabm upscale` gives it;
        - for each row group of a Parquet file a Parquet file NAME_x4-00000.parquet, with the rows as above;
        - for each row of a Dataset a picture file, named by the column `name`.
        A file appears when it is complete, under a name that follows from its source alone. On a file system without that, it is
        written under another name first; object stores have it.
    column: the column of pictures: encoded bytes, structs with the field bytes, arrays [H, W] or [H, W, C] of uint8 or uint16, or
        paths. By default the likeliest.
    name: the column whose values, such as paths, name the outputs of a Dataset. By default the likeliest.
    format: the format of encoded outputs: "png" (the default), "jpg", "webp", "tif", "bmp", or "keep" for that of the source.
    suffix: what names of outputs add to those of their sources.
    existing: "skip" leaves outputs that are there and computes only what is missing; "replace" makes all anew.
    workers: how many workers; by default as many as the nodes have CPUs, or cards, for.
    batch: how many pictures a worker is given at a time; by default 4 batches and more for each worker, of at most 16 pictures.
    filesystem: the file system of dataset and output, of pyarrow or fsspec, where their URIs do not say all about it.
    progress: whether Ray shows its progress bars.
    quality, max_pixels, strict, metadata: as for `upscale_file`.
    settings: those of `upscale`. threads is the number of CPUs that each worker takes, by default 1. With device="cuda" each takes
        a card, too.

    A picture that cannot be read or computed is reported and stops no other. Where a worker or a node ends, its pictures are
    computed by others; one at which workers end again and again is reported in the end. Raises TypeError and ValueError for
    arguments that cannot be, OSError for a place that cannot be reached, and RuntimeError without Ray, where no node has room for a
    worker, and where no worker can load the model.
    """
    _check(format, existing, workers, batch)
    from ..images.writer import check_quality
    from ..upscaling.batch import check_metadata

    check_quality(quality)
    check_metadata(metadata)
    size = Size(**{argument: settings.pop(argument, None) for argument in ("scale", "width", "height", "fit")})
    recipe = Recipe.of(model, settings, size, max_pixels=max_pixels, quality=quality, strict=strict, metadata=metadata)
    added = labelled(suffix, size, check_model(recipe.plain_network()))
    place = dataset if isinstance(dataset, str | os.PathLike) else None
    rows = _checked_dataset(dataset) if place is None else None
    if output is None:
        if rows is None:
            raise ValueError(f"output must be given for the pictures of a folder, got None for '{place}'")
        return _rows(rows, make_pool(recipe, workers, batch, progress), column, format)
    from .worker import Places

    source = Store.of("." if place is None else place, filesystem if rows is None else None)
    places = Places(source, Store.of(output, filesystem), existing == "skip", added, format, column)
    start, summary = time.perf_counter(), Summary()
    reports: Iterable[dict[str, Any]]
    if rows is not None:
        reports = _row_files(rows, make_pool(recipe, workers, batch, progress), places, name)
    else:
        planned = plan_files(places)
        summary.found = planned.found
        for unread, reason in planned.unread:
            summary.fail(unread, [reason])
        reports = run_files(planned.tasks, make_pool(recipe, workers, batch, progress), places) if planned.tasks else []
    for report in reports:
        summary.add(report)
    summary.seconds = time.perf_counter() - start
    return summary


def _check(format: str | None, existing: str, workers: int | None, batch: int | None) -> None:
    if format is not None and format not in _FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, _FORMATS))}, got {format!r}")
    if existing not in _EXISTING:
        raise ValueError(f"existing must be 'skip' or 'replace', got {existing!r}")
    for name, value in (("workers", workers), ("batch", batch)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def check_model(network: Enlarger) -> int:
    """The scale of a model. Raises ValueError for one that many workers cannot share."""
    if network.network.model.running_thresholds is not None:
        raise ValueError(
            "model must not have running thresholds, which follow the pictures that it sees, and each worker sees others: "
            "model.set_running_thresholds(0) turns them off"
        )
    return network.network.scale


def _checked_dataset(dataset: Any) -> Dataset:
    """The dataset. Raises TypeError for what is none."""
    ray = require_ray()
    if not isinstance(dataset, ray.data.Dataset):
        raise TypeError(f"dataset must be a ray.data.Dataset, or the path or URI of a folder, got {type(dataset).__name__}")
    return dataset


def make_pool(recipe: Recipe, workers: int | None, batch: int | None, progress: bool) -> Pool:
    """Workers for a recipe, after one of them has loaded the model. Raises RuntimeError where none can."""
    ray = require_ray()
    if not ray.is_initialized():
        ray.init()
    fitting = workers_that_fit(recipe.threads, recipe.cards)
    held = ray.put(recipe)
    backend = try_model(held, recipe.threads, recipe.cards)["backend"]
    return Pool(held, recipe.threads, recipe.cards, workers or fitting, batch, progress, backend)


# ---- folders


@dataclass(frozen=True)
class Planned:
    """tasks: what is to do. found: how many outputs are there. unread: files that are not read, each with the reason. others: the
    number of files that are no pictures."""

    tasks: list[FileTask]
    found: int
    unread: list[tuple[str, str]]
    passed_over: list[tuple[str, str]]
    others: int


def plan_files(places: Places) -> Planned:
    """All that a folder holds. Raises ValueError where it has no pictures, and OSError where it cannot be listed."""
    source = places.source
    found = find(source, places.target)
    if not found.pictures and not found.tables:
        instead = f", but {len(found.passed_over)} that cannot, such as '{found.passed_over[0][0]}'" if found.passed_over else ""
        raise ValueError(f"dataset must hold pictures or Parquet files that can be read, and '{source.shown}' has none{instead}")
    made, unread = tasks(found, source, places.target, places.format, places.added)
    wanted = missing(made, places.target) if places.skips else made
    passed_over = [(source.uri(name), reason) for name, reason in found.passed_over]
    return Planned(wanted, len(made) - len(wanted), [(source.uri(name), why) for name, why in unread], passed_over, found.others)


def run_files(wanted: list[FileTask], pool: Pool, places: Places) -> Iterator[dict[str, Any]]:
    """Yields one report for each task, as the workers end them.

    A batch whose worker ends is lost as a whole, and computed again when all others are done. What such a worker has written is
    found there, and is not computed again. The first time the batches are as before; after that each task has one of its own, so
    that the one which ends workers is found.
    """
    many = 1 if any(task.group >= 0 for task in wanted) else _MOST_IN_BATCH  # a row group is many pictures itself
    size = pool.batch or max(min(len(wanted) // (pool.workers * _FEWEST_BATCHES), many), 1)
    left = {task.target: task for task in wanted}
    for turn in range(1 + _ROUNDS_ALONE):
        # To look for one output takes a store two requests, and at first its list has just said what is there.
        looking = replace(places, skips=places.skips and (turn > 0 or places.target.local))
        for report in _round(list(left.values()), pool, looking, 1 if turn else size, 1 if turn else 2):
            if left.pop(report.pop("task"), None) is not None:
                yield report
        if not left:
            return
    for task in left.values():
        words = f"'{places.source.uri(task.source)}': each worker that began it ended, {1 + _ROUNDS_ALONE} times"
        yield {"input": places.source.uri(task.source), "error": f"{words} (out of memory, or a fault of a library)"}


def _round(wanted: list[FileTask], pool: Pool, places: Places, size: int, ahead: int) -> Iterator[dict[str, Any]]:
    """Yields the reports of all tasks whose workers do not end before. size: the tasks of a batch. ahead: how many batches a worker
    is given at once."""
    import ray.data

    from .actors import FileWorker

    batches = math.ceil(len(wanted) / size)
    strategy = ray.data.ActorPoolStrategy(size=min(pool.workers, batches), max_tasks_in_flight_per_actor=ahead)
    with _settings(pool.progress):
        with warnings.catch_warnings():
            # Releases until 2.63 take the two last arguments, and say that later ones do not (pyproject.toml).
            warnings.filterwarnings("ignore", ".*ray_remote_args.*")
            dataset = ray.data.from_items([asdict(task) for task in wanted], override_num_blocks=batches).map_batches(
                FileWorker,
                batch_size=len(wanted) // batches if pool.cards else None,  # Ray asks for it with cards
                batch_format="pyarrow",
                fn_constructor_args=(pool.recipe, places),
                num_cpus=pool.cpus,
                num_gpus=pool.cards or None,
                compute=strategy,
                max_restarts=-1,
                # A task that Ray itself repeats would wait for its own actor, which may wait for a node that never comes again.
                max_task_retries=0,
            )
        for row in dataset.iter_rows():
            yield json.loads(row["report"])


@contextmanager
def _settings(progress: bool) -> Iterator[None]:
    """A block in which Ray Data goes on where a worker ends, and says about it only what users need."""
    from ray.data import DataContext

    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    before = {name: getattr(context, name) for name in ("max_errored_blocks", "enable_progress_bars", "print_on_execution_start")}
    level = log.level
    context.max_errored_blocks, context.enable_progress_bars, context.print_on_execution_start = -1, progress, False
    log.setLevel(logging.CRITICAL)  # a worker that ends is no error here: its pictures are computed again
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


# ---- datasets of Ray


def _schema(dataset: Dataset) -> Any:
    """The schema of the dataset, as Arrow sees it."""
    try:
        table: Any = dataset.limit(1).take_batch(1, batch_format="pyarrow")
        return table.schema
    except ValueError as error:
        raise ValueError(f"dataset must hold at least one row ({error})") from error


def _mapped(dataset: Dataset, worker: type, arguments: tuple, pool: Pool) -> Dataset:
    import ray.data

    # Reading needs CPUs besides, so the workers become as many as there is room for.
    strategy = ray.data.ActorPoolStrategy(min_size=1, max_size=pool.workers)
    return dataset.map_batches(
        worker,  # type: ignore[arg-type]  # its type is that of a class with __call__
        batch_size=pool.batch or _MOST_IN_BATCH // 2,
        batch_format="pyarrow",
        fn_constructor_args=arguments,
        num_cpus=pool.cpus,
        num_gpus=pool.cards or None,
        compute=strategy,
    )


def _rows(dataset: Dataset, pool: Pool, column: str | None, format: str | None) -> Dataset:
    from .actors import RowWorker

    pictures = picture_column(_schema(dataset), column)
    return _mapped(dataset, RowWorker, (pool.recipe, pictures, format), pool)


def _row_files(dataset: Dataset, pool: Pool, places: Places, name: str | None) -> Iterator[dict[str, Any]]:
    """Writes a file for each row. Yields the reports of the workers. Ray itself repeats what a worker has not ended."""
    from .actors import RowFileWorker

    schema = _schema(dataset)
    pictures = picture_column(schema, places.column)
    key = key_column(schema, pictures, name)
    for row in _mapped(dataset, RowFileWorker, (pool.recipe, places, pictures, key), pool).iter_rows():
        yield json.loads(row["report"])
