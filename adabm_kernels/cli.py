"""The command line: the parser of `adabm`, and what becomes of errors. The commands are in `commands/`.

Exit status: 0 done; 1 failed while running; 2 wrong usage or bad input, nothing was computed; 130 interrupted.
Errors are one sentence on stderr. torch is imported inside the commands only, so that `adabm --help` answers at once.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .backends import CHOICES as BACKENDS
from .commands import bench, calibrate, completion, evaluate, info, models, report, tune, upscale
from .commands.common import STDOUT, CommandError, one_line
from .commands.outputs import DEFAULT_SUFFIX, FORMATS
from .commands.video import MATRICES, PIXEL_FORMATS
from .config import MOST_DEPTH_LOSS
from .machine import version
from .sizes import MOST_SCALE, MOST_SIDE
from .upscale import DEFAULT_MODEL, did_you_mean

BITS = ("auto", *map(str, range(2, 9)))
DEPTHS = ("auto", "full")  # or a number of blocks
ISAS = ("scalar", "neon", "avx2", "avxvnni", "avx512vnni", "amx")
PROTOCOLS = ("whole", "patch96")
MAX_PIXELS = 178_956_970  # images.MAX_PIXELS, which would load numpy
_STDIN = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")  # other names of "-"
_STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    if argv is None:
        argv = sys.argv[1:]
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up like Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold what the encoding does not
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    args = parser.parse_args(argv, argparse.Namespace(argv=argv))
    try:
        with _plain_warnings(getattr(args, "quiet", False)):
            args.execute(args)
        if sys.stdout is not None:  # closed by a shell's >&-
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt as stop:
        print(f"adabm: interrupted{f': {one_line(str(stop))}' if str(stop) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; without this the interpreter complains once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.traceback:
            traceback.print_exc()
        known = isinstance(error, CommandError)
        message = str(error) if known else f"unexpected {type(error).__name__}: {error} (--traceback shows where)"
        print(f"adabm: error: {one_line(message)}", file=sys.stderr)
        return error.status if known else 1


@contextmanager
def _plain_warnings(quiet: bool) -> Iterator[None]:
    """Warnings as one sentence too, without the line of source that Python shows; none where `quiet`."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"adabm: warning: {one_line(str(message))}\n"
    try:
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            yield
    finally:
        warnings.formatwarning = before


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        hint = did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""
        self.exit(2, f"adabm: error: {one_line(message)}{hint} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="adabm", description="Super-resolution in integers, with bit-widths decided per image and layer.")
    parser.add_argument("--version", action="version", version=f"adabm {version('adabm-kernels')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, module: Any, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=module.execute.__doc__)
        added.set_defaults(execute=module.execute)
        added.add_argument("--traceback", action="store_true", help="show where in the program an error arose")
        return added

    _add_upscale(command("upscale", upscale, "upscale pictures, folders or frames of a video"))
    _add_report(command("report", report, "a page that shows a picture's bits, times and quality"))
    _add_eval(command("eval", evaluate, "measure a model on test pictures"))
    _add_calibrate(command("calibrate", calibrate, "make a converted model of float weights"))
    _add_bench(command("bench", bench, "time a model here, or measure what layers are planned by"))
    _add_tune(command("tune", tune, "measure a GPU for a model's layers, or compile kernels for one"))
    _add_info(command("info", info, "show the machine and the backends, or a model"))
    _add_json_flag(command("models", models, "list the built-in models with their figures"))
    completion_parser = command("completion", completion, "print what makes a shell complete adabm's options")
    _add_completion(completion_parser)
    completion_parser.set_defaults(parser=parser)
    return parser


def _add_upscale(up: argparse.ArgumentParser) -> None:
    add = up.add_argument
    add("inputs", metavar="IN", type=_input, nargs="+", help="pictures or folders of them; a pipe or '-' for standard input")
    add(
        "-o",
        "--output",
        metavar="OUT",
        action=_Output,
        type=_named,
        help="file, folder (what ends in '/' or has no suffix) or '-' for standard output "
        "(default: IN_x4.png beside a file, IN_x4 beside a folder, '-' for a pipe)",
    )
    up.set_defaults(output_is_folder=False)
    add("--format", choices=("keep", *FORMATS), help="of the output where OUT does not say it (default: png)")
    add("--quality", metavar="1..100", type=_integer(1, 100), help="of JPEG and WebP (default: 95)")
    add("--suffix", default=DEFAULT_SUFFIX, help="what output names add to the input's (default: %(default)s)")
    add(
        "--existing",
        choices=("replace", "skip", "refuse"),
        default="replace",
        help="what to do about outputs that exist; skip goes on with an interrupted folder (default: %(default)s)",
    )
    _add_model(up, " or a converted model's file")
    _add_windows(up)
    add("--tta", action="store_true", help="mean over the eight flips and turns of every window: eight times the work")
    add("--strict", action="store_true", help="refuse damaged pictures of which no row is missing (default: read and warn)")
    add(
        "--metadata",
        choices=("keep", "strip"),
        default="keep",
        help="EXIF, XMP, IPTC and texts of the input; its colours always stay (default: %(default)s)",
    )
    add(
        "--max-pixels",
        metavar="N",
        type=_integer(1),
        default=MAX_PIXELS,
        help="refuse larger pictures, and outputs of more than the model's scale squared times as many (default: %(default)s)",
    )
    add("--compare", action="store_true", help="time the float PyTorch model on the same input and compare")
    size = up.add_argument_group("size of the output (default: the model's scale times the picture)").add_argument
    size("--scale", metavar="N", type=_number(1, MOST_SCALE), help="so many times as wide and high, such as 2 or 1.5")
    size("--width", metavar="W", type=_integer(1, MOST_SIDE), help="pixels across; the height follows unless it is given")
    size("--height", metavar="H", type=_integer(1, MOST_SIDE), help="pixels down; the width follows unless it is given")
    size("--fit", metavar="WxH", type=_size, help="the largest of the picture's shape that this rectangle holds")
    frames = up.add_argument_group("frames of a video")
    frames.add_argument("--y4m", action="store_true", help="IN and OUT are YUV4MPEG2 streams, as from ffmpeg -f yuv4mpegpipe")
    frames.add_argument("--raw", metavar="WxH", type=_size, help="IN and OUT are raw frames of this size, ffmpeg -f rawvideo")
    frames.add_argument("--pix-fmt", choices=PIXEL_FORMATS, help="of raw frames (default: rgb24)")
    frames.add_argument("--matrix", choices=MATRICES, help="of y4m colours (default: bt709 from 720 rows, else bt601)")
    _add_json_flag(up)
    loudness = up.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    loudness.add_argument("-v", "--verbose", action="store_true", help="say on stderr what becomes of each picture")


def _add_windows(parser: argparse.ArgumentParser, tile: str = "48 halos, less where memory asks for it") -> None:
    add = parser.add_argument
    add("--tile", metavar="N", type=_integer(0), help=f"pixels a side of the windows; 0 for the whole picture (default: {tile})")
    add(
        "--halo",
        metavar="N",
        type=_integer(0),
        help="pixels around them that are computed too (default: as many as leave no seam)",
    )
    add(
        "--protocol",
        choices=("halo", "paper"),
        default="halo",
        help="windows with a halo, or AdaBM's 96x96 patches without one (default: %(default)s)",
    )
    add(
        "--smooth",
        choices=("auto", "interpolate", "network"),
        default="auto",
        help="smooth areas by cubic interpolation, where few bits draw stripes, or by the network; auto interpolates if the "
        "network leaves colours as they are (default: %(default)s)",
    )
    add(
        "--max-memory",
        metavar="SIZE",
        type=_bytes,
        default="2G",
        help="what the process may hold, such as 1.5G or 800M (default: %(default)s)",
    )


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument("input", metavar="IMAGE", type=_input, help="picture to upscale; a pipe or '-' for standard input")
    report.add_argument(
        "-o", "--output", metavar="OUT", type=_path, default=Path("report.html"), help="page to write (default: %(default)s)"
    )
    report.add_argument("--overwrite", action="store_true", help="replace an existing page")
    _add_model(report, " or a converted model's file")
    _add_windows(report, "96")
    report.add_argument(
        "--max-pixels", metavar="N", type=_integer(1), default=4_000_000, help="refuse larger pictures (default: %(default)s)"
    )


def _add_completion(completion: argparse.ArgumentParser) -> None:
    completion.add_argument("shell", choices=("bash", "zsh"), help="shell to write the completion for")


def _add_eval(evaluation: argparse.ArgumentParser) -> None:
    _add_model(evaluation, ", a converted model's file, or float weights to measure them alone", device=False)
    evaluation.add_argument("--data", metavar="HR_DIR", type=_path, required=True, help="folder of original pictures, PNG or JPEG")
    evaluation.add_argument(
        "--lr", metavar="LR_DIR", type=_path, help="folder of their low-resolution forms (default: made by MATLAB's bicubic)"
    )
    evaluation.add_argument("--scale", metavar="N", type=_integer(1), help="the scale you expect (default: the model's)")
    evaluation.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="whole",
        help="pictures as a whole, or the 96-pixel patches of AdaBM's code (default: %(default)s)",
    )
    _add_reading(evaluation)
    _add_json_file(evaluation)


def _add_calibrate(calibration: argparse.ArgumentParser) -> None:
    add = calibration.add_argument
    add("--weights", metavar="W", type=_path, required=True, help="checkpoint of float weights: .pt, .pth, .ckpt, .safetensors")
    add(
        "--images",
        metavar="DIR",
        type=_path,
        required=True,
        help="folder of about 100 low-resolution pictures, PNG or JPEG; photographs with --downscale",
    )
    add("-o", "--output", metavar="M", type=_path, required=True, help="model to write, .safetensors; M.resume keeps progress")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--downscale", metavar="F", type=_number(1), default=1, help="first shrink the pictures F times by MATLAB's bicubic")
    add("--weight-bits", metavar="2..8", type=_integer(2, 8), default=4, help="bits of the weights (default: %(default)s)")
    add(
        "--act-bits",
        metavar="4..6",
        type=_act_bits,
        default=4,
        help="base bits of the activations, up to two less or more by image and layer (default: %(default)s)",
    )
    add(
        "--quantize",
        choices=("full", "body"),
        default="full",
        help="all convolutions, or those of the residual blocks (default: %(default)s)",
    )
    add(
        "--recipe",
        choices=("best", "paper"),
        default="best",
        help="everything the kernels allow, or AdaBM as published (default: %(default)s)",
    )
    add("--steps", metavar="N", type=_integer(0), help="steps of fine-tuning, 0 for none (default: as the recipe suits)")
    add(
        "--tolerance",
        metavar="SHARE",
        type=_share,
        help="end fine-tuning, before --steps, once 50 steps lower its loss by less than this share, such as 0.02 (default: never)",
    )
    add("--candidates", metavar="K", type=_integer(1), help="fine-tune on the most detailed of K random crops (default: 1)")
    add("--target-bits", metavar="B", type=_number(1), help="mean bits to choose layers for (default: somewhat below --act-bits)")
    add("--objective", choices=("bits", "latency"), help="what layers save: bits, or measured time (default: bits)")
    add(
        "--depths",
        choices=("auto", "none"),
        default="auto",
        help="make tiles of pictures that hardly bend without the network's blocks, or none (default: auto, with recipe best)",
    )
    add(
        "--depth-loss",
        metavar="DB",
        type=_number(0, MOST_DEPTH_LOSS),
        help="by which the result may lie further from the float network for more of these tiles (default: 0)",
    )
    add(
        "--residual",
        choices=("auto", "float32", "int16"),
        default="auto",
        help="what features beside the codes are held in; int16 halves their bytes (default: auto, int16 with recipe best)",
    )
    add("--start", metavar="MODEL", type=_path, help="a converted model of the same network, whose bit maps are taken over")
    add("--select", metavar="N", type=_integer(1), help="use only the N most informative pictures")
    add("--device", default="auto", help="where torch computes: auto, cpu or cuda (default: auto, a GPU where torch finds one)")
    add("--seed", metavar="S", type=_integer(0), help="of every random choice (default: 1)")
    add("--threads", metavar="N", type=_integer(1), help="CPU threads (default: as many as torch would use)")
    _add_reading(calibration)
    _add_json_file(calibration)


def _add_bench(benchmark: argparse.ArgumentParser) -> None:
    _add_model(benchmark, " or a converted model's file")
    benchmark.add_argument(
        "--size", metavar="PIXELS", type=_integer(8, 4096), default=192, help="side of the picture (default: %(default)s)"
    )
    benchmark.add_argument("--tune", action="store_true", help="measure the times of all tiles and keep them for this machine")
    benchmark.add_argument(
        "--isa", action="append", choices=ISAS, help="with --tune: the instruction set, may be repeated (default: the one in use)"
    )
    benchmark.add_argument(
        "-o", "--output", metavar="F", type=_path, help="with --tune: the file to write (default: one in your cache folder)"
    )
    _add_json_file(benchmark)


def _add_tune(tuning: argparse.ArgumentParser) -> None:
    add = tuning.add_argument
    add("--model", metavar="NAME|PATH", help="whose layers to measure (default: all built-in models)")
    add("--minutes", metavar="N", type=_number(0), help="stop after so long; the same command goes on (default: at the end)")
    add("--prefill", metavar="sm_XY", help="compile Triton's kernels for this architecture instead, such as sm_90; needs no GPU")
    add("--into", metavar="DIR", type=_path, help="with --prefill: the folder of the cache (default: Triton's own)")
    _add_json_file(tuning)


def _add_info(information: argparse.ArgumentParser) -> None:
    information.add_argument("model", metavar="NAME|PATH", nargs="?", help="built-in model or a converted model's file")
    _add_json_flag(information)


def _add_model(parser: argparse.ArgumentParser, others: str, device: bool = True) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        default=DEFAULT_MODEL,
        help=f"built-in model (`adabm info` lists them){others} (default: %(default)s)",
    )
    parser.add_argument(
        "--bits",
        metavar="auto|2..8",
        default="auto",
        type=_bits,
        help="bit-width of the adaptive layers: decided per image and layer, or one for all (default: auto)",
    )
    parser.add_argument(
        "--depth",
        metavar="auto|full|N",
        default="auto",
        type=_depth,
        help="residual blocks that are computed: all but in easy tiles of the picture, if the model has an exit for them; all "
        "everywhere; or this many everywhere, 0 or all (default: auto)",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="where to compute (default: %(default)s)")
    if device:
        parser.add_argument("--device", metavar="NAME", help="torch's name of the device, such as cpu or cuda:1 (default: cpu)")
    parser.add_argument("--threads", metavar="N", type=_integer(1), help="CPU threads (default: as many as torch would use)")
    parser.add_argument(
        "--graph",
        action=argparse.BooleanOptionalAction,
        help="on a CUDA device, record forward passes and replay them (default: a shape that comes twice, where it can be)",
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """What float weights do not tell of their network: see commands/weights.py."""
    group = parser.add_argument_group("float weights, where they do not tell it themselves")
    add = group.add_argument
    add("--res-scale", metavar="R", type=_number(0), help="residual scale: 0.1 for the largest EDSR (default: 1)")
    add("--rgb-range", type=int, choices=(1, 255), help="of their pixels (default: as weights and layout say, else 255)")
    add(
        "--mean-shift",
        metavar="none|div2k|R,G,B",
        type=_mean_shift,
        help="colour that an EDSR subtracts and adds again, in parts of the range (default: as weights and layout say)",
    )
    add("--channel-order", choices=("rgb", "bgr"), help="bgr for a network trained on pictures as OpenCV reads them (default: rgb)")
    add("--weights-key", metavar="KEY", help="which of several networks in the file, such as params_ema")
    add("--no-check", action="store_true", help="go on where the float network is no good at upscaling the pictures, shrunk")


def _add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _add_json_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", metavar="F", type=_path, help=f"also write the figures as JSON; '{STDOUT}' prints them instead of a table"
    )


class _Output(argparse.Action):
    """A path, and whether it is written as a folder, with a slash at its end, which paths do not keep."""

    def __call__(self, parser: argparse.ArgumentParser, args: argparse.Namespace, value: Any, option: str | None = None) -> None:
        args.output = STDOUT if value in _STDOUT else Path(value)
        args.output_is_folder = value.endswith(("/", os.sep)) and args.output != STDOUT


def _input(text: str) -> Path:
    return STDOUT if text in _STDIN else _path(text)


def _path(text: str) -> Path:
    return Path(_named(text))


def _named(text: str) -> str:
    if not text:  # as of a variable of the shell that is not set; a path would take it for the current folder
        raise argparse.ArgumentTypeError("must name a file or a folder, got ''")
    return text


def _bits(text: str) -> str | int:
    if text not in BITS:
        raise argparse.ArgumentTypeError(f"must be 'auto' or an integer from 2 to 8, got '{text}'")
    return text if text == "auto" else int(text)


def _depth(text: str) -> str | int:
    if text not in DEPTHS and not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be 'auto', 'full' or a number of blocks, got '{text}'")
    return text if text in DEPTHS else int(text)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"must be a size such as 1.5G or 800M, got '{text}'")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT such as 1920x1080, got '{text}'")
    return int(found[1]), int(found[2])


def _act_bits(text: str) -> int:
    if text not in ("4", "5", "6"):
        raise argparse.ArgumentTypeError(f"must be 4, 5 or 6 (images and layers add up to 2 or take them off), got '{text}'")
    return int(text)


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    rule = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"must be an integer {rule}, got '{text}'")
        return int(text)

    return parse


def _number(least: float, most: float = math.inf) -> Callable[[str], float]:
    rule = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"must be a number {rule}, got '{text}'")
        return value

    return parse


def _mean_shift(text: str) -> str | tuple[float, ...]:
    if text in ("none", "div2k"):
        return text
    try:
        colour = tuple(float(part) for part in text.split(","))
    except ValueError:
        colour = ()
    if len(colour) != 3 or not all(0 <= value <= 1 for value in colour):
        raise argparse.ArgumentTypeError(f"must be 'none', 'div2k' or three numbers in 0..1 such as 0.45,0.44,0.4, got '{text}'")
    return colour


def _share(text: str) -> float:
    value = _number(0)(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0 and below 1, got '{text}'")
    return value


if __name__ == "__main__":
    sys.exit(main())
