"""What a worker does with what it is given: it upscales one batch after the other, each picture as `adabm upscale` does.

Nothing here needs Ray, except columns of arrays, whose type is Ray's. The actors are in `actors.py`.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..images import EXTENSIONS
from ..upscaling.batch import Outcome, Task, upscale_files
from ..upscaling.names import output_name
from .columns import PictureColumn, key_path, picture_column, row_names, with_results
from .plan import PARQUET, FileTask
from .recipe import Recipe
from .stores import Store

_TRANSFERS = 8  # how many files are read from a store, or written into one, at once
_WAITING = 4  # the most outputs that are held in memory until a store has taken them
_ROWS = 8  # the rows of a Parquet file that are held at a time


class Upscaler:
    """The model of a worker, which upscales pictures by the function with which the plain command upscales many."""

    def __init__(self, recipe: Recipe):
        from ..images import MAX_PIXELS

        self._options: dict[str, Any] = {"max_pixels": recipe.max_pixels or MAX_PIXELS, "quality": recipe.quality}
        self._options |= {"strict": recipe.strict, "metadata": recipe.metadata}
        self._for_each = recipe.for_each
        self.network = recipe.network()

    def files(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """The outcomes of the tasks. Those whose pictures are alike come one after the other: what is made ready for a size of
        picture, its buffers, calls and recorded passes, is used again for the next."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # outcomes hold them
            yield from upscale_files(sorted(tasks, key=_likeness), self.network, **self._options)

    def array(self, rows: np.ndarray) -> np.ndarray:
        """The result of `upscale` for an array."""
        from ..upscale import upscale

        return upscale(rows, self.network.network.model, **self._for_each)


def _likeness(task: Task) -> tuple[int, int, str]:
    """What tells pictures apart for a network, by the header of the file alone: height, width, and colours with their depth."""
    import PIL.Image

    source = task.source if isinstance(task.source, Path) else io.BytesIO(task.source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(source) as picture:
                return picture.height, picture.width, picture.mode
    except Exception:  # what cannot be read has its error when it is read for good
        return 0, 0, ""


def sentence(outcome: Outcome) -> str:
    """The error of a picture as one sentence that names it."""
    error = outcome.error
    assert error is not None, "it failed"
    words = in_words(error)
    return words if outcome.task.name in words else f"'{outcome.task.name}': {words}"


def in_words(error: BaseException) -> str:
    """An error as a user can read it."""
    if isinstance(error, MemoryError) and not str(error):
        return "not enough memory"
    known = isinstance(error, ValueError | OSError | RuntimeError | MemoryError)
    return str(error) if known else f"unexpected {type(error).__name__}: {error}"


# ---- files to files


@dataclass(frozen=True)
class Places:
    """Where a worker reads and writes. skips: whether outputs that are there are left as they are, for which workers look.
    added, format: as for `output_name`. column: the column of pictures in Parquet files; None for the likeliest."""

    source: Store
    target: Store
    skips: bool
    added: str
    format: str | None
    column: str | None = None


class Files:
    """Upscales picture files and row groups of Parquet files into files."""

    def __init__(self, upscaler: Upscaler, places: Places):
        self._upscaler, self._places = upscaler, places

    def reports(self, tasks: list[FileTask]) -> Iterator[dict[str, Any]]:
        """One report for each task: its output, and the figures of a picture, "found" where the output was there, or an "error"."""
        places, wanted = self._places, []
        for task in tasks:
            report = {"task": task.target, "input": self._shown(task), "output": places.target.uri(task.target)}
            try:
                # A worker that ended may have written it before, in this run or in another.
                if places.skips and places.target.exists(task.target):
                    yield report | {"found": True}
                elif task.format == PARQUET:
                    yield report | self._row_group(task)
                else:
                    wanted.append((task, report))
            except Exception as error:  # a task that raised would be lost as if its worker had ended
                yield report | {"error": in_words(error)}
        with ThreadPoolExecutor(_TRANSFERS, "adabm transfer") as pool:
            yield from self._pictures(wanted, pool)

    def _shown(self, task: FileTask) -> str:
        name = self._places.source.uri(task.source)
        return name if task.group < 0 else f"{name} (row group {task.group})"

    def _pictures(self, wanted: list[tuple[FileTask, dict]], pool: ThreadPoolExecutor) -> Iterator[dict[str, Any]]:
        source, target = self._places.source, self._places.target
        jobs, reports = [], {}
        read = [None if source.local else pool.submit(source.read, task.source) for task, _ in wanted]
        for (task, report), data in zip(wanted, read, strict=True):
            try:
                picture = Path(source.path(task.source)) if data is None else data.result()
            except OSError as error:
                yield report | {"error": str(error)}
                continue
            place: Path | BinaryIO = Path(target.path(task.target)) if target.local else io.BytesIO()
            jobs.append(Task(picture, place, task.format, report["input"]))
            reports[id(jobs[-1])] = task, report
        uploads: deque[tuple[Outcome, dict[str, Any], Future]] = deque()
        for outcome in self._upscaler.files(jobs):
            task, report = reports[id(outcome.task)]
            if outcome.error is not None:
                yield report | {"error": sentence(outcome)}
            elif target.local:
                yield report | outcome.figures()
            else:
                assert not isinstance(outcome.task.target, Path), "what a store gets is made in memory"
                uploads.append((outcome, report, pool.submit(target.write, task.target, outcome.task.target)))
            while len(uploads) > _WAITING:
                yield self._uploaded(*uploads.popleft())
        while uploads:
            yield self._uploaded(*uploads.popleft())

    @staticmethod
    def _uploaded(outcome: Outcome, report: dict[str, Any], upload: Future) -> dict[str, Any]:
        failure = upload.exception()
        assert isinstance(outcome.task.target, io.BytesIO), "what a store gets is made in memory"
        outcome.task.target.close()  # which frees it
        return report | (outcome.figures() if failure is None else {"error": in_words(failure)})

    def _row_group(self, task: FileTask) -> dict[str, Any]:
        """Upscales a row group of a Parquet file into a file of its own, which appears whole. A row that fails stops no other."""
        import pyarrow.parquet

        places = self._places
        rows, failed = 0, []
        with places.source.open(task.source) as source, tempfile.TemporaryFile() as made:
            file = pyarrow.parquet.ParquetFile(source)
            pictures = picture_column(file.schema_arrow, places.column)
            workers = RowTables(self._upscaler, pictures, places.format, places.added)
            writer = None
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[task.group]):
                table, errors = workers.upscaled(pyarrow.Table.from_batches([batch], file.schema_arrow))
                failed += [f"row {rows + i}: {error}" for i, error in errors]
                rows += table.num_rows
                if writer is None:
                    writer = pyarrow.parquet.ParquetWriter(made, table.schema)
                writer.write_table(table)
            if writer is not None:
                writer.close()
            places.target.write(task.target, made)
        return {"rows": rows, "failed_rows": failed}


# ---- rows to rows


class RowTables:
    """Upscales the pictures of tables. format, added: as for `output_name`."""

    def __init__(self, upscaler: Upscaler, pictures: PictureColumn, format: str | None, added: str):
        self._upscaler, self._pictures, self._format, self._added = upscaler, pictures, format, added

    def upscaled(self, table: Any) -> tuple[Any, list[tuple[int, str]]]:
        """Returns two values: the table with results in place of pictures, and the errors with the numbers of their rows."""
        results: list[Any] = [None] * table.num_rows
        errors: list[str | None] = [None] * table.num_rows
        for i, result, error in self.results(table, range(table.num_rows)):
            results[i], errors[i] = result, error
        extension = self._format or "png"
        made = with_results(table, self._pictures, results, errors, "png" if extension == "keep" else extension)
        return made, [(i, error) for i, error in enumerate(errors) if error is not None]

    def results(self, table: Any, wanted: Sequence[int]) -> Iterator[tuple[int, bytes | np.ndarray | None, str | None]]:
        """For each of the wanted rows its number, and its result or the error."""
        column = table.column(self._pictures.name)
        if self._pictures.kind == "array":
            yield from (self._array(i, column[i].as_py()) for i in wanted)
            return
        jobs, numbers = [], {}
        with ThreadPoolExecutor(_TRANSFERS, "adabm transfer") as pool:
            keys = row_names(table)
            read = [(i, pool.submit(self._encoded, column[i].as_py(), keys[i])) for i in wanted]
            for i, coming in read:
                try:
                    data, name = coming.result()
                except (OSError, ValueError) as error:
                    yield i, None, str(error)
                    continue
                _, format = output_name(Path(name), self._format, "")
                jobs.append(Task(data, io.BytesIO(), format, name))
                numbers[id(jobs[-1])] = i
        for outcome in self._upscaler.files(jobs):
            target, failed = outcome.task.target, outcome.error is not None
            assert isinstance(target, io.BytesIO), "rows are made in memory"
            made = None if failed else target.getvalue()
            target.close()
            yield numbers[id(outcome.task)], made, sentence(outcome) if failed else None

    def _encoded(self, value: Any, name: str) -> tuple[bytes, str]:
        """The bytes of the picture that a row holds or names, and what messages call it, which is `name` where it does not say."""
        if isinstance(value, dict):
            value, name = value["bytes"], value.get("path") or name
        if isinstance(value, str):
            return Store.of(value).read(""), value
        if value is None:
            raise ValueError(f"cannot read '{name}': the row has no picture")
        return value, name

    def _array(self, i: int, rows: Any) -> tuple[int, np.ndarray | None, str | None]:
        try:
            if rows is None:
                raise ValueError("the row has no picture")
            return i, self._upscaler.array(np.asarray(rows)), None
        except Exception as error:
            return i, None, in_words(error)


class RowFiles:
    """Writes a picture file for each row, under the name that its key gives it."""

    def __init__(self, tables: RowTables, places: Places, key: str):
        self._tables, self._places, self._key = tables, places, key

    def reports(self, table: Any) -> Iterator[dict[str, Any]]:
        """One report for each row, as `Files.reports` gives them."""
        places, wanted = self._places, {}
        for i, key in enumerate(table.column(self._key).to_pylist()):
            report = {"task": str(key), "input": str(key)}
            try:
                path = key_path(key["path"] if isinstance(key, dict) else key)
                name = str(path.parent / output_name(path, places.format, places.added)[0])
                if places.skips and places.target.exists(name):
                    yield report | {"output": places.target.uri(name), "found": True}
                    continue
            except (OSError, ValueError) as error:
                yield report | {"error": str(error)}
                continue
            wanted[i] = report, name
        for i, result, failure in self._tables.results(table, list(wanted)):
            report, name = wanted[i]
            if failure is None:
                failure = self._written(name, result)
            yield report | ({"output": places.target.uri(name)} if failure is None else {"error": failure})

    def _written(self, name: str, result: Any) -> str | None:
        """Writes a result. Returns the error, None where there is none."""
        try:
            self._places.target.write(name, result if isinstance(result, bytes) else _encoded(result, name))
        except Exception as error:
            return in_words(error)
        return None


def _encoded(rows: np.ndarray, name: str) -> bytes:
    """An array as a picture file of the format that the name says."""
    from ..images import Layout, PictureWriter

    rows = rows[..., None] if rows.ndim == 2 else rows
    made = io.BytesIO()
    layout = Layout(rows.shape[1], rows.shape[0], rows.shape[2], 8 * rows.dtype.itemsize)
    with PictureWriter(made, EXTENSIONS[Path(name).suffix.lower()], layout) as writer:
        writer.write(rows)
    return made.getvalue()
