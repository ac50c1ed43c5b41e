"""Finds the pictures that `adabm upscale` reads, and chooses a place for the output of each."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import naming
from ..upscaling.names import DEFAULT_SUFFIX, kept_extension, labelled, output_name
from ..upscaling.sizes import Size, is_label
from .common import STDOUT
from .pipes import piped, shown

if TYPE_CHECKING:
    from ..images import PassedOver

FORMATS = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "tif", "tiff", "bmp")
_EXPANDS_PATTERNS = os.name == "nt"


@dataclass(frozen=True)
class Input:
    """A picture to read. root: the folder on the command line in which it was found; None where the picture itself was named."""

    path: Path
    root: Path | None = None


@dataclass(frozen=True)
class Planned:
    """A picture and its output. source, target: a file, a pipe or "-". format: the format of the target, a value of
    images.EXTENSIONS."""

    source: Path
    target: Path
    format: str


@dataclass(frozen=True)
class Plan:
    """The pictures to upscale, and those that are not upscaled.

    failed: pictures whose output has no place, each with the error of the file system. skipped: how many pictures have an output
    already. earlier: inputs that are left out because they are outputs, each with the input that it was made of.
    """

    pictures: list[Planned]
    failed: list[tuple[Planned, OSError]]
    skipped: int
    earlier: list[tuple[Path, Path]]


@dataclass
class Rest:
    """Files in the named folders that are not read. passed_over: those that look like pictures. others: the number of all other
    files."""

    passed_over: list[PassedOver] = field(default_factory=list)
    others: int = 0


def find_inputs(args: argparse.Namespace) -> tuple[list[Input], Rest]:
    """The pictures that the arguments name. Folders are searched with all their subfolders. Raises ValueError for arguments that
    cannot be meant."""
    rest = Rest()
    if STDOUT in args.inputs and len(args.inputs) > 1:
        raise ValueError(f"IN must be '-' alone for standard input, got {len(args.inputs)} inputs")
    pipes = [path for path in args.inputs if piped(path)]
    if pipes and len(args.inputs) > 1:
        raise ValueError(f"IN must be one pipe alone, as pipes name no output, got '{pipes[0]}' of {len(args.inputs)} inputs")
    found = [item for named in args.inputs for path in _expanded(named) for item in _pictures(path, args.output, rest)]
    many = len(found) > 1 or found[0].root is not None
    if many and piped(args.output):
        raise ValueError(f"OUT must be a folder for more than one picture, got '{args.output}'")
    if args.output_is_folder and args.output.exists() and not args.output.is_dir():
        raise ValueError(f"OUT must be a folder where it ends with '/', and '{args.output}' is a file")
    if many and args.output is not None and args.output.exists() and not args.output.is_dir():
        raise ValueError(f"OUT must be a folder for more than one picture, and '{args.output}' is a file")
    if many and args.output is not None and args.output.suffix[1:].lower() in FORMATS and not is_folder(args):
        raise ValueError(f"OUT must be a folder for more than one picture, got '{args.output}', which is named as a picture")
    if not many and args.output is not None and args.output.suffix and args.format is not None and not is_folder(args):
        raise ValueError(f"--format must be left out where OUT has a suffix, got '{args.format}' for '{args.output}'")
    return found, rest


def _expanded(path: Path) -> list[Path]:
    """The paths that match a pattern on systems such as Windows, whose shells leave this to the program. Any other path stands for
    itself."""
    if not _EXPANDS_PATTERNS or not glob.has_magic(str(path)) or path.exists():
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path)))] or [path]


def _pictures(path: Path, output: Path | None, rest: Rest) -> Iterator[Input]:
    from ..images import find_pictures

    if path == STDOUT or not path.is_dir():
        yield Input(path)
        return
    # Where the folder of outputs lies in the folder of inputs, it holds no inputs.
    outputs = output if output not in (None, STDOUT) and _inside(output, path) and not _inside(path, output) else None
    found = find_pictures(path, outputs)
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


def is_folder(args: argparse.Namespace) -> bool:
    """Tells whether OUT, which must be given, is a folder or will be one, because it ends with a slash or has no suffix."""
    return args.output_is_folder or args.output.is_dir() or not (args.output.suffix or args.output.exists())


def _inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def plan_outputs(args: argparse.Namespace, inputs: list[Input], size: Size, scale: int) -> Plan:
    """The plan for the outputs of all pictures. size: the size of the outputs. scale: the scale of the model."""
    pictures = [_planned(args, item, len(inputs) > 1, size, scale) for item in inputs]
    pictures, earlier = _without_outputs(pictures, args.suffix == DEFAULT_SUFFIX)
    sources = {os.path.realpath(planned.source): planned.source for planned in pictures}
    targets: dict[str, Path] = {}
    failed, existing = [], []
    for planned in pictures:
        if piped(planned.target):
            continue
        place = os.path.realpath(planned.target)
        if place in sources:
            if sources[place] == planned.source or len(pictures) == 1:
                raise ValueError(f"OUT must not be the input file itself, got '{planned.target}'")
            raise ValueError(f"OUT must not be another input, got '{planned.target}' for '{planned.source}'")
        if place in targets:
            first, second = targets[place], planned.source
            keeps = args.format != "keep" and kept_extension(first) != kept_extension(second)
            hint = " (--format keep tells them apart by their formats)" if keeps else ""
            raise ValueError(
                f"OUT must be another file for every picture, got '{planned.target}' for '{first}' and '{second}'{hint}"
            )
        targets[place] = planned.source
        try:
            if _exists(planned.target):
                existing.append(planned)
        except OSError as error:
            failed.append((planned, error))
    if existing and args.existing == "refuse":
        raise ValueError(f"OUT must not exist with --existing refuse, and '{existing[0].target}' does")
    skipped = existing if args.existing == "skip" else []
    left_out = {id(planned) for planned in [*skipped, *(planned for planned, _ in failed)]}
    return Plan([planned for planned in pictures if id(planned) not in left_out], failed, len(skipped), earlier)


def _exists(target: Path) -> bool:
    """Tells whether a file exists. Raises OSError where it cannot exist, for example because its name is too long."""
    with naming(target):
        try:
            os.stat(target)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if target.is_dir():
            raise IsADirectoryError("it is a folder")
        return True


def _without_outputs(pictures: list[Planned], labelled: bool) -> tuple[list[Planned], list[tuple[Path, Path]]]:
    """Returns two lists: the inputs that are no outputs of other inputs from an earlier run, and those that are, each with the
    input that it was made of.

    An output is larger than the input that it was made of. It lies at the target of that input, or beside that input under the name
    of the target or, where names are `labelled` by sizes, under its name for another size. Where outputs have no suffix, pictures
    of one name in one folder may be anything, and are kept.
    """
    beside, named, targets = defaultdict(list), defaultdict(list), defaultdict(list)
    for planned in pictures:
        if planned.target.stem != planned.source.stem:
            beside[_folder(planned.source), planned.target.stem].append(planned.source)
        if labelled:
            named[_folder(planned.source), planned.source.stem].append(planned.source)
        targets[os.path.realpath(planned.target)].append(planned.source)
    kept, outputs = [], []
    for planned in pictures:
        source, folder = planned.source, _folder(planned.source)
        elsewhere = [origin for origin in targets.get(os.path.realpath(source), []) if _folder(origin) != folder]
        name, _, label = source.stem.rpartition("_")
        otherwise = named.get((folder, name), []) if is_label(label) else []
        origins = [*beside.get((folder, source.stem), []), *otherwise, *elsewhere]
        origin = next((origin for origin in origins if _larger(source, origin)), None)
        if origin is None:
            kept.append(planned)
        else:
            outputs.append((source, origin))
    return kept, outputs


def _folder(path: Path) -> str:
    return os.path.realpath(path.parent)


def _larger(output: Path, source: Path) -> bool:
    """Tells whether a picture can be the output of the other, because it has more pixels both ways or the other cannot be read."""
    from ..images import open_picture

    def size(path: Path, unknown: int) -> tuple[int, int]:
        try:
            layout = open_picture(path, max_pixels=sys.maxsize).layout
        except (OSError, ValueError):
            return unknown, unknown
        return layout.width, layout.height

    return all(large > small for large, small in zip(size(output, 1), size(source, 0), strict=True))


def check_suffix(suffix: str, size: Size) -> None:
    """Raises ValueError for a suffix that file names cannot have, or that asks for a scale which this size does not give."""
    if "/" in suffix:
        raise ValueError(f"--suffix must not hold '/', got '{suffix}'")
    if suffix != DEFAULT_SUFFIX and "{scale}" in suffix and size.times(1) is None:
        raise ValueError(f"--suffix must not hold '{{scale}}' with --width, --height or --fit, which give none, got '{suffix}'")


def _planned(args: argparse.Namespace, item: Input, many: bool, size: Size, scale: int) -> Planned:
    from ..images import EXTENSIONS

    path, output = item.path, args.output
    if piped(output) or (output is None and piped(path)):
        target = output or STDOUT
        named = target.suffix if target.suffix.lower() in EXTENSIONS else ".png"
        return Planned(path, target, EXTENSIONS[named.lower() if args.format is None else f".{args.format}"])
    if output is not None and not many and item.root is None and not is_folder(args):
        return Planned(path, output, EXTENSIONS[output.suffix.lower()])
    if piped(path):
        raise ValueError(f"OUT must be a file or '-' for {shown(path)}, got the folder '{output}'")
    if item.root is None:
        folder = path.parent if output is None else output
    else:
        root = item.root if item.root.name not in ("", "..") else item.root.resolve()
        base = root.with_name(f"{root.name}_{size.label(scale)}") if output is None else output
        folder = base / path.relative_to(item.root).parent
    name, format = output_name(path, args.format, labelled(args.suffix, size, scale))
    return Planned(path, folder / name, format)
