"""Which pictures `adabm upscale` reads, and where each goes."""

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
from ..upscaling.sizes import Size, is_label
from .common import STDOUT
from .pipes import piped, shown

if TYPE_CHECKING:
    from ..images import PassedOver

FORMATS = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "tif", "tiff", "bmp")
DEFAULT_SUFFIX = "_x{scale}"
_EXPANDS_PATTERNS = os.name == "nt"


@dataclass(frozen=True)
class Input:
    """A picture to read. root: the folder on the command line that it was found in, None where it was named itself."""

    path: Path
    root: Path | None = None


@dataclass(frozen=True)
class Planned:
    """source, target: files, pipes or "-". format: the target's, a value of images.EXTENSIONS."""

    source: Path
    target: Path
    format: str


@dataclass(frozen=True)
class Plan:
    """What is to be done. failed: pictures that have no place to go, each with the error of the file system. skipped: how many have
    an output already. earlier: inputs that are passed over, because they are outputs, each with the input that it was made of."""

    pictures: list[Planned]
    failed: list[tuple[Planned, OSError]]
    skipped: int
    earlier: list[tuple[Path, Path]]


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
    """The paths that a pattern stands for where shells leave that to the program, as those of Windows do; any other path itself."""
    if not _EXPANDS_PATTERNS or not glob.has_magic(str(path)) or path.exists():
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path)))] or [path]


def _pictures(path: Path, output: Path | None, rest: Rest) -> Iterator[Input]:
    from ..images import find_pictures

    if path == STDOUT or not path.is_dir():
        yield Input(path)
        return
    # A folder of outputs in the folder of inputs holds no inputs.
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
    """Whether OUT, which is given, is a folder or will be one: it ends with a slash or has no suffix."""
    return args.output_is_folder or args.output.is_dir() or not (args.output.suffix or args.output.exists())


def _inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def plan_outputs(args: argparse.Namespace, inputs: list[Input], size: Size, scale: int) -> Plan:
    """The plan of where every picture goes. size, scale: that of the outputs, and that of the model."""
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
            keeps = args.format != "keep" and _kept(first) != _kept(second)
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
    """Whether there is such a file. OSError where there can be none, because its name is too long for example."""
    with naming(target):
        try:
            os.stat(target)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if target.is_dir():
            raise IsADirectoryError("it is a folder")
        return True


def _without_outputs(pictures: list[Planned], labelled: bool) -> tuple[list[Planned], list[tuple[Path, Path]]]:
    """(the inputs but for those that are outputs of others, from an earlier run; these, each with what it was made of).

    An output is larger than another input and lies where that one goes, or beside it under the name that its output has, or, where
    names are `labelled` by sizes, has at another size. With no suffix, pictures of one name in one folder may be anything.
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
    """Whether a picture can be the output of the other: it has more pixels both ways, or the other cannot be read."""
    from ..images import open_picture

    def size(path: Path, unknown: int) -> tuple[int, int]:
        try:
            layout = open_picture(path, max_pixels=sys.maxsize).layout
        except (OSError, ValueError):
            return unknown, unknown
        return layout.width, layout.height

    return all(large > small for large, small in zip(size(output, 1), size(source, 0), strict=True))


def check_suffix(suffix: str, size: Size) -> None:
    """ValueError for what names cannot have, or cannot say of this size."""
    if "/" in suffix:
        raise ValueError(f"--suffix must not hold '/', got '{suffix}'")
    if suffix != DEFAULT_SUFFIX and "{scale}" in suffix and size.times(1) is None:
        raise ValueError(f"--suffix must not hold '{{scale}}' with --width, --height or --fit, which give none, got '{suffix}'")


def _kept(path: Path) -> str:
    """The suffix that an output has with --format keep, without its dot."""
    from ..images import EXTENSIONS

    suffix = path.suffix.lower()
    return suffix[1:] if suffix in EXTENSIONS else "png"


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
    extension = {None: "png", "keep": _kept(path)}.get(args.format, args.format)
    usual = args.suffix == DEFAULT_SUFFIX
    suffix = f"_{size.label(scale)}" if usual else args.suffix.replace("{scale}", size.times(scale) or "")
    name = f"{path.stem}{suffix}.{extension}"
    return Planned(path, folder / name, EXTENSIONS[f".{extension}"])
