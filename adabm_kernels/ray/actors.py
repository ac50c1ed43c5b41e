"""The actors of Ray Data: each holds the model, and is given one batch of rows after the other."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from .columns import PictureColumn
from .plan import FileTask
from .worker import Files, Places, RowFiles, RowTables, Upscaler


def _upscaler(recipe: Any) -> Upscaler:
    """The model that a reference leads to."""
    import ray

    return Upscaler(ray.get(recipe))


def _table(reports: Iterable[dict[str, Any]]) -> Any:
    """Reports as a table with one column of JSON, whose type is the same whatever they hold."""
    import pyarrow

    return pyarrow.table({"report": pyarrow.array([json.dumps(report) for report in reports], pyarrow.string())})


class FileWorker:
    """Takes tables of `FileTask`, and gives tables of reports."""

    def __init__(self, recipe: Any, places: Places):
        self._files = Files(_upscaler(recipe), places)

    def __call__(self, table: Any) -> Any:
        return _table(self._files.reports([FileTask(**row) for row in table.to_pylist()]))


class RowWorker:
    """Takes tables with pictures, and gives them with results in place of these."""

    def __init__(self, recipe: Any, pictures: PictureColumn, format: str | None):
        self._tables = RowTables(_upscaler(recipe), pictures, format, "")

    def __call__(self, table: Any) -> Any:
        return self._tables.upscaled(table)[0]


class RowFileWorker:
    """Takes tables with pictures, writes a file for each, and gives tables of reports."""

    def __init__(self, recipe: Any, places: Places, pictures: PictureColumn, key: str):
        self._files = RowFiles(RowTables(_upscaler(recipe), pictures, places.format, places.added), places, key)

    def __call__(self, table: Any) -> Any:
        return _table(self._files.reports(table))
