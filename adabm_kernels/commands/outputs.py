"""Which pictures `adabm upscale` reads, and where each goes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .common import STDOUT

if TYPE_CHECKING:
    from ..images import PassedOver

FORMATS = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "tif", "tiff", "bmp")
DEFAULT_SUFFIX = "_x{scale}"


@dataclass(frozen=True)
class Input:
    """A picture to read. root: the folder on the command line that it was found in, None where it was named itself."""

    path: Path
    root: Path | None = None


@dataclass(frozen=True)
class Planned:
    """source, target: files, or "-". format: the target's, a value of images.EXTENSIONS."""

    source: Path
    target: Path
    format: str


@dataclass
class Rest:
    """What else the folders hold that the arguments name. passed_over: what looks like a picture. others: how many other files."""

    passed_over: list[PassedOver] = field(default_factory=list)
    others: int = 0


def find_inputs(args: argparse.Namespace) -> tuple[list[Input], Rest]:
    """The pictures that the arguments name, folders searched to the bottom. Raises ValueError for what cannot be meant."""
    rest = Rest()
    if STDOUT in args.inputs and len(args.inputs) > 1:
        raise ValueError(f"IN must be '-' alone for standard input, got {len(args.inputs)} inputs")
    found = [item for path in args.inputs for item in _pictures(path, args.output, rest)]
    many = len(found) > 1 or found[0].root is not None
    if many and args.output == STDOUT:
        raise ValueError("OUT must be a folder for more than one picture, got '-'")
    if many and args.output is not None and args.output.exists() and not args.output.is_dir():
        raise ValueError(f"OUT must be a folder for more than one picture, and '{args.output}' is a file")
    if many and args.output is not None and args.output.suffix[1:].lower() in FORMATS and not args.output.exists():
        raise ValueError(f"OUT must be a folder for more than one picture, got '{args.output}', which is named as a picture")
    if not many and args.output is not None and args.output.suffix and args.format is not None and not args.output.is_dir():
        raise ValueError(f"--format must be left out where OUT has a suffix, got '{args.format}' for '{args.output}'")
    return found, rest


def _pictures(path: Path, output: Path | None, rest: Rest) -> Iterator[Input]:
    from ..images import find_pictures

    if path == STDOUT or not path.is_dir():
        yield Input(path)
        return
    if output not in (None, STDOUT) and _inside(output, path):
        raise ValueError(f"OUT must not lie in the folder IN, whose pictures it would join, got '{output}' in '{path}'")
    found = find_pictures(path)
    if not found.pictures:
        raise ValueError(f"IN must hold pictures that can be read, and the folder '{path}' has none{_instead(found.passed_over)}")
    rest.passed_over += found.passed_over
    rest.others += found.others
    yield from (Input(file, path) for file in found.pictures)


def _instead(passed_over: list[PassedOver]) -> str:
    if not passed_over:
        return ""
    first = passed_over[0]
    return f", but {len(passed_over)} that cannot, such as '{first.path}': {first.reason}"


def is_folder(output: Path) -> bool:
    """Whether OUT is a folder or, for want of a suffix, will be one."""
    return output.is_dir() or not (output.suffix or output.exists())


def _inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def plan_outputs(args: argparse.Namespace, inputs: list[Input], scale: int) -> tuple[list[Planned], int]:
    """Where every picture goes, and how many are skipped because it exists already.

    Raises ValueError where two would go to one place, one would replace an input, or --existing refuse meets an existing file.
    """
    plan = [_planned(args, item, len(inputs) > 1, scale) for item in inputs]
    sources = {planned.source.resolve(): planned.source for planned in plan}
    targets: dict[Path, Path] = {}
    for planned in plan:
        if planned.target == STDOUT:
            continue
        place = planned.target.resolve()
        if place in sources:
            if sources[place] == planned.source or len(plan) == 1:
                raise ValueError(f"OUT must not be the input file itself, got '{planned.target}'")
            raise ValueError(f"OUT must not be another input, got '{planned.target}' for '{planned.source}'")
        if place in targets:
            first, second = targets[place], planned.source
            hint = " (--format keep tells them apart by their formats)" if first.suffix.lower() != second.suffix.lower() else ""
            raise ValueError(
                f"OUT must be another file for every picture, got '{planned.target}' for '{first}' and '{second}'{hint}"
            )
        targets[place] = planned.source
    existing = [planned for planned in plan if planned.target != STDOUT and planned.target.exists()]
    if existing and args.existing == "refuse":
        raise ValueError(f"OUT must not exist with --existing refuse, and '{existing[0].target}' does")
    if args.existing != "skip":
        return plan, 0
    return [planned for planned in plan if planned not in existing], len(existing)


def _planned(args: argparse.Namespace, item: Input, many: bool, scale: int) -> Planned:
    from ..images import EXTENSIONS

    path, output = item.path, args.output
    if output == STDOUT or (output is None and path == STDOUT):
        return Planned(path, STDOUT, EXTENSIONS[f".{args.format or 'png'}"])
    if output is not None and not many and item.root is None and not is_folder(output):
        return Planned(path, output, EXTENSIONS[output.suffix.lower()])
    if path == STDOUT:
        raise ValueError(f"OUT must be a file or '-' for standard input, got the folder '{output}'")
    if item.root is None:
        folder = path.parent if output is None else output
    else:
        root = item.root if item.root.name not in ("", "..") else item.root.resolve()
        base = root.with_name(f"{root.name}{DEFAULT_SUFFIX.format(scale=scale)}") if output is None else output
        folder = base / path.relative_to(item.root).parent
    kept = path.suffix[1:].lower() if path.suffix.lower() in EXTENSIONS else "png"
    extension = {None: "png", "keep": kept}.get(args.format, args.format)
    name = f"{path.stem}{args.suffix.replace('{scale}', str(scale))}.{extension}"
    return Planned(path, folder / name, EXTENSIONS[f".{extension}"])
