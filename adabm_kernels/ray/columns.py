"""The column of a table that holds pictures: in which form it holds them, and how upscaled ones take their place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

_PICTURES = ("image", "picture", "img", "bytes", "jpg", "png")  # names of columns, the likeliest first
_PATHS = ("path", "uri", "url", "image_path", "file_name", "filename", "file")
_KEYS = (*_PATHS, "key", "name", "id", "__key__")  # names of columns that tell rows apart
ERROR = "error"  # the column that says why a picture could not be upscaled
MADE = "image"  # the column of pictures that were read from paths


@dataclass(frozen=True)
class PictureColumn:
    """name: the column. kind: "bytes" of encoded pictures, "struct" as Hugging Face's datasets have them, with the fields bytes and
    path, "array" [H, W] or [H, W, C] of uint8 or uint16, or "path", a path or URI that the worker reads."""

    name: str
    kind: str

    @property
    def made(self) -> str:
        """The column of the results."""
        return MADE if self.kind == "path" else self.name


def picture_column(schema: Any, column: str | None) -> PictureColumn:
    """The column of pictures of a table with this schema of Arrow. column: its name; None for the likeliest.

    Raises ValueError where there is none, where the named one does not hold pictures, and where a name that results need is taken.
    """
    held = ", ".join(f"'{entry.name}' ({entry.type})" for entry in schema) or "none"
    kinds = {entry.name: kind for entry in schema if (kind := _kind(entry.type)) is not None}
    if column is not None:
        if column not in schema.names:
            raise ValueError(f"column must be one of the dataset, got {column!r}, and it has the columns {held}")
        if column not in kinds:
            raise ValueError(
                f"column must hold pictures (encoded bytes, arrays or paths), got {column!r} of type {schema.field(column).type}"
            )
        found = column
    else:
        likely = [name for name in _PICTURES if kinds.get(name, "path") != "path"]
        likely += [name for name, kind in kinds.items() if kind != "path"]
        likely += [name for name in (*_PATHS, *_PICTURES) if kinds.get(name) == "path"]
        if not likely:
            raise ValueError(
                "dataset must have a column of pictures (encoded bytes, arrays or paths), and it has the columns "
                f"{held}; column= names one whose texts are paths"
            )
        found = likely[0]
    pictures = PictureColumn(found, kinds[found])
    taken = [ERROR] + ([MADE] if pictures.kind == "path" else [])
    if clash := [name for name in taken if name in schema.names]:
        raise ValueError(f"dataset must not have a column '{clash[0]}', which results get; rename it first")
    return pictures


def key_column(schema: Any, pictures: PictureColumn, name: str | None) -> str:
    """The column whose values tell rows apart and give outputs their names. Raises ValueError where there is none."""
    if name is not None:
        if name not in schema.names:
            raise ValueError(f"name must be a column of the dataset, got {name!r}, and it has {', '.join(schema.names)}")
        return name
    found = [key for key in _KEYS if key in schema.names]
    if pictures.kind == "path":
        return pictures.name
    if not found:
        raise ValueError(
            f"name must be the column that gives each output its name, as no column is called {', '.join(_KEYS[:-1])} or "
            f"{_KEYS[-1]}; with ray.data.read_images and read_binary_files, include_paths=True adds one"
        )
    return found[0]


def row_names(table: Any) -> list[str]:
    """What messages call the rows of a table."""
    key = next((key for key in _KEYS if key in table.schema.names), None)
    return ["the picture"] * table.num_rows if key is None else [str(value) for value in table.column(key).to_pylist()]


def key_path(value: Any) -> PurePosixPath:
    """The value of a key column as a relative path: of a path or URI what follows its root."""
    text = str(value).partition("://")[2] if "://" in str(value) else str(value)
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", ".", "..")]
    if not parts:
        raise ValueError(f"the name of an output must not be empty, got {value!r}")
    return PurePosixPath(*parts)


def _kind(kind: Any) -> str | None:
    import pyarrow.types as types

    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    if types.is_string(kind) or types.is_large_string(kind):
        return "path"
    if types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "struct" if "bytes" in fields and _kind(fields["bytes"]) == "bytes" else None
    return "array" if "tensor" in str(kind).lower() else None


def with_results(table: Any, pictures: PictureColumn, results: list[Any], errors: list[str | None], extension: str) -> Any:
    """The table with results in place of its pictures, None where there is none, and a column of errors. All else stays, the
    metadata of the schema too. extension: that of encoded results, without its dot."""
    import pyarrow

    if pictures.kind == "array":
        column = _tensors(results)
    elif pictures.kind == "struct":
        place = table.schema.get_field_index(pictures.name)
        rows = [
            None if row is None else row | {"bytes": data} | _renamed(row, extension)
            for row, data in zip(table.column(place).to_pylist(), results, strict=True)
        ]
        column = pyarrow.array(rows, table.schema.field(place).type)
    else:
        small = pictures.kind == "bytes" and pyarrow.types.is_binary(table.schema.field(pictures.name).type)
        column = pyarrow.array(results, pyarrow.binary() if small else pyarrow.large_binary())
    if pictures.kind == "path":
        table = table.append_column(MADE, column)
    else:
        place = table.schema.get_field_index(pictures.name)
        table = table.set_column(place, table.schema.field(place).with_type(column.type), column)
    return table.append_column(ERROR, pyarrow.array(errors, pyarrow.string()))


def _renamed(row: dict[str, Any], extension: str) -> dict[str, str]:
    return {"path": str(PurePosixPath(row["path"]).with_suffix(f".{extension}"))} if row.get("path") else {}


def _tensors(results: list[Any]) -> Any:
    """Arrays as a column of tensors. Where there is no result the array is empty, as tensors cannot be missing."""
    import numpy as np
    from ray.data.extensions import ArrowVariableShapedTensorArray

    there = next((result for result in results if result is not None), np.empty((0, 0, 3), np.uint8))
    empty = np.empty((0,) * min(there.ndim, 2) + there.shape[2:], there.dtype)
    held = np.empty(len(results), object)
    for i, result in enumerate(results):
        held[i] = empty if result is None else np.ascontiguousarray(result)
    return ArrowVariableShapedTensorArray.from_numpy(held)
