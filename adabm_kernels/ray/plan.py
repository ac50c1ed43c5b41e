"""What there is to do: the pictures and the row groups of Parquet files at a place, and the name of each one's output."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .stores import Store

PARQUET = "parquet"
_PARQUET_SUFFIXES = (".parquet", ".pq")
_OPENED = 16  # how many Parquet files are opened at once to count their row groups


@dataclass(frozen=True)
class FileTask:
    """One output. source, target: names in the two stores. format: a value of images.EXTENSIONS, or `PARQUET` for a row group.
    group: the number of the row group, -1 for a picture."""

    source: str
    target: str
    format: str
    group: int = -1


@dataclass
class Found:
    """The contents of a place. passed_over: files that look like pictures and are not read, each with the reason. others: the
    number of all other files."""

    pictures: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    passed_over: list[tuple[str, str]] = field(default_factory=list)
    others: int = 0


def find(source: Store, target: Store) -> Found:
    """The files of a place by their names: no file of an object store is opened to find out what it is. Outputs that lie within
    the place, in a folder of their own, are no inputs."""
    from ..images.formats import EXTENSIONS, READ_ONLY, UNREAD, missing_package

    found = Found()
    outputs = target.root[len(source.root) :].strip("/") + "/" if target.root.startswith(f"{source.root}/") else None
    for name in source.names():
        if outputs is not None and name.startswith(outputs):
            continue
        path = PurePosixPath(name or source.root)
        if any(part.startswith((".", "_")) for part in PurePosixPath(name).parts):  # Parquet's own name their helpers so
            continue
        suffix = path.suffix.lower()
        format = EXTENSIONS.get(suffix) or READ_ONLY.get(suffix)
        if suffix in _PARQUET_SUFFIXES:
            found.tables.append(name)
        elif format is not None and (missing := missing_package(format)):
            found.passed_over.append((name, f"{format} is {missing}"))
        elif format is not None:
            found.pictures.append(name)
        elif suffix in UNREAD:
            found.passed_over.append((name, f"it is {UNREAD[suffix]}, which is not read"))
        else:
            found.others += 1
    return found


def tasks(
    found: Found, source: Store, target: Store, format: str | None, added: str
) -> tuple[list[FileTask], list[tuple[str, str]]]:
    """Returns two lists: a task for each picture and for each row group, in the folders of their sources, and the Parquet files
    that cannot be read, each with the reason.

    format, added: as for `output_name`. The name of an output follows from that of its source alone, so every run finds what
    another has made. Raises ValueError where two sources would have one output.
    """
    from ..upscaling.names import output_name

    made: list[FileTask] = []
    sources: dict[str, str] = {}
    for name in found.pictures:
        path = PurePosixPath(name or source.root)
        file, kind = output_name(path, format, added)
        task = FileTask(name, str(PurePosixPath(name).parent / file), kind)
        if task.target in sources:
            raise ValueError(
                f"output must be another file for every picture, got '{task.target}' for '{sources[task.target]}' and '{name}' "
                "(format='keep' tells them apart by their formats)"
            )
        sources[task.target] = name
        made.append(task)
    if source.root == target.root:  # what an earlier run has made of one of them
        made = [task for task in made if task.source not in sources]
    with ThreadPoolExecutor(_OPENED, "adabm footers") as pool:
        counted = list(pool.map(lambda name: _row_groups(source, name), found.tables))
    unread = []
    for name, groups in zip(found.tables, counted, strict=True):
        if isinstance(groups, str):
            unread.append((name, groups))
            continue
        path = PurePosixPath(name or PurePosixPath(source.root).name)
        made += [FileTask(name, str(path.with_name(f"{path.stem}{added}-{i:05}.parquet")), PARQUET, i) for i in range(groups)]
    return made, unread


def _row_groups(source: Store, name: str) -> int | str:
    """The number of row groups of a Parquet file, or the reason why it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        with source.open(name) as file:
            return pyarrow.parquet.ParquetFile(file).num_row_groups
    except pyarrow.ArrowInvalid as error:
        return f"cannot read '{source.uri(name)}': it is no Parquet file, or damaged ({error})"
    except OSError as error:
        return str(error)


def missing(all_tasks: list[FileTask], target: Store) -> list[FileTask]:
    """The tasks whose outputs are not there. A local folder is asked for each of them, a store for the list of all it has."""
    if target.local:
        return [task for task in all_tasks if not Path(target.path(task.target)).is_file()]
    there = set(target.names())
    return [task for task in all_tasks if task.target not in there]
