"""The versions that the package works with, tried one by one: `make matrix`, or `python tests/package/matrix.py --help`.

A cell of Python, torch and the other requirements is an empty environment outside the checkout, with the wheel in it that was built
in isolation from the source distribution. It upscales the sample picture, whose pixels must be those that this checkout makes, and
runs the tests of TESTS. A cell of a compiler builds the CPU library with every warning an error and runs the tests of KERNEL_TESTS
with it. What cannot be had on the machine is a result too, with the reason.

Results are kept in benchmarks/results/versions.json, one for each cell, and docs/versions.md shows all that are there. Needs uv,
which also finds the interpreters, and the network for the registry of packages.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "versions.json"
PAGE = ROOT / "docs" / "versions.md"
SAMPLE = Path("adabm_kernels/assets/sample.png")

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCHES = ("2.6.0", "2.7.1", "2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
OLDEST_TORCH = {"3.14": "2.9.1"}  # the oldest that has a wheel for this Python, where that is not the oldest of all
COMPILERS = tuple(f"g++-{n}" for n in range(11, 15)) + tuple(f"clang++-{n}" for n in range(14, 20))

# Compiled packages are never built here. A version without a wheel for the Python of a cell is passed over.
WHEELS = ("torch", "triton", "numpy", "pillow", "safetensors", "pyvips-binary", "isal", "simplejpeg")
# Few, since they run in every cell: those that use what changes between releases of torch, NumPy and Pillow.
TESTS = (
    "tests/images/test_images.py",
    "tests/ops/test_ops.py::test_every_operator_is_checked_and_tagged",
    "tests/ops/test_ops.py::test_opcheck_of_what_reads_images",
    "tests/nn/test_module.py::test_what_is_done_to_a_module_leaves_its_results",
    "tests/nn/test_module.py::test_compiled_and_exported_it_computes_the_same[cpu-auto-many_tiles]",
    "tests/nn/test_module.py::test_an_exported_program_needs_only_the_package_in_a_fresh_process[adabm_kernels, torch]",
    "tests/graph/test_graph_trace.py::test_the_graph_computes_what_the_module_does[resnext]",
    "tests/graph/test_graph_trace.py::test_the_graph_computes_what_the_module_does[unet]",
    "tests/graph/test_graph_trace.py::test_the_graph_computes_what_the_module_does[attention]",
)
KERNEL_TESTS = ("tests/cpu/test_conv2d.py::test_kernel_equals_reference",)
SHOWN = ("numpy", "pillow", "safetensors", "tqdm")  # beside torch, the versions that the table has


@dataclass(frozen=True)
class PythonCell:
    """An interpreter, a release of torch, and the other requirements at one end of what pyproject.toml allows."""

    python: str
    torch: str
    others: str  # "oldest" or "newest"

    @property
    def key(self) -> str:
        return f"python{self.python}-torch{self.torch}-{self.others}"


@dataclass(frozen=True)
class CompilerCell:
    """A compiler by the name of its program."""

    compiler: str

    @property
    def key(self) -> str:
        return self.compiler


Cell = PythonCell | CompilerCell


@dataclass
class Result:
    """What became of one cell.

    status: "passed", "failed" or "not run". said: why it did not pass, in a sentence or the last lines of output. versions: what
    was installed, or the compiler's own line. tests: pytest's closing line. place: the system that it ran on. when: the day.
    """

    status: str
    said: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    tests: str = ""
    place: str = ""
    when: str = ""


UNTRIED = Result("not tried")


class NotHere(Exception):
    """Something that a cell needs cannot be had on this machine."""


class Failed(Exception):
    """A cell ran and did not pass."""


def all_cells(every_pair: bool) -> list[Cell]:
    """Each torch on the oldest Python, each Python with the newest torch, and with the oldest of everything; or every pair."""
    oldest, newest = TORCHES[0], TORCHES[-1]
    if every_pair:
        pairs = [PythonCell(python, torch, "newest") for torch in TORCHES for python in PYTHONS]
    else:
        pairs = [PythonCell(python, newest, "newest") for python in PYTHONS]
        pairs += [PythonCell(PYTHONS[0], torch, "newest") for torch in TORCHES[:-1]]
    pairs += [PythonCell(python, oldest, "oldest") for python in PYTHONS]
    pairs += [PythonCell(python, torch, "oldest") for python, torch in OLDEST_TORCH.items()]
    # Cells of one torch follow one another, so that its files are fetched once.
    return [*sorted(pairs, key=lambda cell: TORCHES.index(cell.torch)), *map(CompilerCell, COMPILERS)]


@dataclass(frozen=True)
class Machine:
    """Where cells run: a folder of their own, and root folders of other systems that have what this system lacks."""

    work: Path
    roots: tuple[Path, ...]
    uv: str

    def run(self, command: list[str], root: Path | None = None, cwd: Path | None = None, **variables: str) -> str:
        """What a command printed, in this system or in another root. Raises Failed with the end of it where the command fails."""
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment |= {
            "UV_CACHE_DIR": str(self.work / "cache"),
            "UV_PYTHON_DOWNLOADS": "never",
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        cwd = cwd or self.work
        if root is not None:
            command = ["chroot", str(root), "env", "-C", str(cwd), *command]
        if root is not None or "chroot" in variables.get("CXX", ""):
            command = ["unshare", "-m", "sh", "-c", self._mounts() + 'exec "$@"', "sh", *command]
        done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Failed(done.stdout.strip()[-3000:] or f"exit status {done.returncode}")
        return done.stdout

    def _mounts(self) -> str:
        """Shell commands that let another root see the folder of the cells, the devices, and how names are resolved."""
        lines = ["set -e"]
        seen = [self.work, *map(Path, ("/proc", "/dev", "/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs"))]
        for root in self.roots:
            for path in seen:
                inside = shlex.quote(f"{root}{path}")
                make = f"mkdir -p {inside}" if path.is_dir() else f"touch {inside}"
                lines.append(f"{make}; mount --rbind {shlex.quote(str(path))} {inside}")
        return "\n".join(lines) + "\n"

    def interpreter(self, version: str) -> tuple[str, Path | None]:
        """The program of this version of Python, and the root it lies in. Raises NotHere."""
        versions = Path.home() / ".pyenv" / "versions"
        built = sorted(versions.glob(f"{version}.*/bin/python{version}")) if versions.is_dir() else []
        candidates = [str(path) for path in built] + ([found] if (found := shutil.which(f"python{version}")) else [])
        for program in candidates:
            if subprocess.run([program, "-c", ""], capture_output=True).returncode == 0:
                return program, None
        for root in self.roots:
            if (root / "usr" / "bin" / f"python{version}").exists():
                return f"/usr/bin/python{version}", root
        raise NotHere(f"no Python {version} on this machine")

    def compiler(self, name: str) -> str:
        """The command of a compiler, with the root it lies in. Raises NotHere."""
        if shutil.which(name):
            return name
        for root in self.roots:
            if (root / "usr" / "bin" / name).exists():
                return f"chroot {shlex.quote(str(root))} {name}"
        raise NotHere(f"no {name} on this machine")


def place_of(root: Path | None) -> str:
    lines = ((root or Path("/")) / "etc" / "os-release").read_text().splitlines()
    return next(line.split("=", 1)[1].strip('"') for line in lines if line.startswith("PRETTY_NAME="))


def requirements() -> list[str]:
    """The package's requirements but torch, which each cell has its own release of."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return [one for one in tomllib.load(file)["project"]["dependencies"] if not one.startswith("torch")]


def checkout(folder: Path, names: tuple[str, ...]) -> Path:
    """A copy of these parts of the checkout, without what was built there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ignore = shutil.ignore_patterns("_lib", "__pycache__", "*.egg-info", "latest.json")
    for name in names:
        source = ROOT / name
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder / name)
    return folder


def build_wheel(machine: Machine) -> Path:
    """The wheel, built in isolation from the source distribution, which was built in isolation from a copy of the checkout."""
    names = (*("adabm_kernels", "benchmarks", "csrc", "docs", "examples", "tests", "training"), *(p.name for p in ROOT.glob("*.*")))
    names += ("LICENSE", "Makefile")
    source = checkout(machine.work / "source", tuple(name for name in names if not (ROOT / name).name.startswith(".")))
    out = machine.work / "dist"
    shutil.rmtree(out, ignore_errors=True)
    machine.run([machine.uv, "build", "--python", sys.executable, "-o", str(out), str(source)], ADABM_CUDA="off")
    return next(out.glob("*.whl"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def reference(machine: Machine) -> np.ndarray:
    """The sample as the package of this checkout upscales it."""
    path = machine.work / "reference.png"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "adabm_kernels", "upscale", str(ROOT / SAMPLE), "-o", str(path), "--threads", "1"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return pixels(path)


def closing_line(output: str) -> str:
    found = re.findall(r"^=*\s*(\d+ (?:passed|failed|skipped|error).*?)(?: in [\d.]+s.*)?$", output, re.MULTILINE)
    return re.sub(r", \d+ warnings?|, \d+ deselected", "", found[-1]) if found else ""


def run_python(cell: PythonCell, machine: Machine, wheel: Path, wanted: np.ndarray) -> Result:
    program, root = machine.interpreter(cell.python)
    uv = machine.uv
    if root is not None:
        uv = str(shutil.copy(machine.uv, machine.work / "uv"))
    home = machine.work / "cell"
    shutil.rmtree(home, ignore_errors=True)
    files = checkout(home / "files", ("tests", "benchmarks", "pyproject.toml"))
    shutil.copy(ROOT / SAMPLE, home / "sample.png")
    machine.run([uv, "venv", "-q", "--python", program, str(home / "venv")], root)
    python = str(home / "venv" / "bin" / "python")
    install = [uv, "pip", "install", "-q", "--python", python]
    wheels = [word for name in WHEELS for word in ("--only-binary", name)]
    resolution = ["--resolution", "lowest-direct"] if cell.others == "oldest" else []
    try:
        machine.run([*install, *wheels, *resolution, str(wheel), f"torch=={cell.torch}", *requirements()], root)
        machine.run([*install, *wheels, f"torch=={cell.torch}", "pytest", "hypothesis"], root)
    except Failed as failure:
        raise NotHere(reason_of(str(failure), cell)) from None
    listed = json.loads(machine.run([uv, "pip", "list", "-q", "--python", python, "--format", "json"], root))
    versions = {one["name"]: one["version"] for one in listed}
    result = Result("passed", versions=versions, place=place_of(root))
    try:
        done = machine.run([python, "-c", "import adabm_kernels; print(adabm_kernels.__file__)"], root, files)
        if not done.strip().startswith(str(home / "venv")):
            raise Failed(f"the package was taken from {done.strip()}")
        adabm = [str(home / "venv" / "bin" / "adabm"), "upscale", "sample.png", "-o", "large.png", "--threads", "1"]
        said = machine.run(adabm, root, home)
        if "backend          cpu" not in said:
            raise Failed(f"not the CPU library: {said}")
        if not np.array_equal(pixels(home / "large.png"), wanted):
            raise Failed("the upscaled sample has other pixels than that of the checkout")
        result.tests = closing_line(
            machine.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *TESTS], root, files)
        )
    except Failed as failure:
        result.status, result.said, result.tests = "failed", str(failure)[-3000:], closing_line(str(failure))
    return result


def reason_of(said: str, cell: PythonCell) -> str:
    """Why an environment cannot be made, in a sentence."""
    if re.search(r"no wheels? with a matching|no usable wheels|has no wheels", said):
        return f"no wheel of torch {cell.torch} for Python {cell.python}"
    return f"cannot be installed: {' '.join(said.split())[-300:]}"


def run_compiler(cell: CompilerCell, machine: Machine) -> Result:
    command = machine.compiler(cell.compiler)
    root = Path(shlex.split(command)[1]) if command.startswith("chroot") else None
    line = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    names = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "csrc", "adabm_kernels", "tests", "benchmarks")
    tree = checkout(machine.work / "tree", names)
    result = Result("passed", versions={"compiler": line}, place=place_of(root))
    try:
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        machine.run(build, cwd=tree, CXX=command, CXXFLAGS="-Werror", ADABM_CUDA="off")
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *KERNEL_TESTS]
        result.tests = closing_line(machine.run(tests, cwd=tree, PYTHONPATH=str(tree)))
    except Failed as failure:
        result.status, result.said, result.tests = "failed", str(failure)[-3000:], closing_line(str(failure))
    return result


# ---- the page


def kept() -> dict[str, Result]:
    return {key: Result(**value) for key, value in json.loads(RESULTS.read_text()).items()} if RESULTS.exists() else {}


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in rows)]


def outcome(result: Result) -> str:
    said = "" if not result.said else f": {' '.join(result.said.split())[:120]}".replace("|", "/")
    return result.status + said


def pythons_table(results: dict[str, Result]) -> Iterator[str]:
    """A row for each cell of a plain run, tried or not, and for those of --every-pair that were tried."""
    plain = [cell for cell in all_cells(False) if isinstance(cell, PythonCell)]
    more = [cell for cell in all_cells(True) if isinstance(cell, PythonCell) and cell.key in results]
    rows = []
    for cell in sorted(
        dict.fromkeys(plain + more), key=lambda cell: (TORCHES.index(cell.torch), PYTHONS.index(cell.python), cell.others)
    ):
        result = results.get(cell.key, UNTRIED)
        versions = [result.versions.get(name, "") for name in SHOWN]
        rows.append((cell.python, cell.torch, cell.others, *versions, result.tests, outcome(result)))
    yield from table(("Python", "torch", "others", *SHOWN, "tests", "result"), rows)


def compilers_table(results: dict[str, Result]) -> Iterator[str]:
    rows = []
    for name in COMPILERS:
        result = results.get(name, UNTRIED)
        rows.append((name, result.versions.get("compiler", ""), result.place, result.tests, outcome(result)))
    yield from table(("compiler", "version", "system", "tests", "result"), rows)


def write_page(results: dict[str, Result]) -> None:
    """Puts the tables between their markers in docs/versions.md."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in (("pythons", pythons_table(results)), ("compilers", compilers_table(results))):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = "\n".join([before + begin, *lines, end + after])
    PAGE.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="REGEX",
        help="cells whose key matches, in this order, such as 'torch2.6' or 'clang'",
    )
    parser.add_argument("--every-pair", action="store_true", help="every Python with every torch, in place of the edges")
    parser.add_argument("--root", type=Path, action="append", default=[], help="another system's root folder, as debootstrap makes")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "matrix", help="the folder of the cells; 12 GB")
    parser.add_argument("--list", action="store_true", help="print the keys and run nothing")
    parser.add_argument("--page", action="store_true", help="write the page again and run nothing")
    options = parser.parse_args()
    every = all_cells(options.every_pair)
    cells = list(dict.fromkeys(cell for pattern in options.only for cell in every if re.search(pattern, cell.key)))
    if options.list:
        print(*(cell.key for cell in cells), sep="\n")
        return 0
    results = kept()
    if options.page:
        write_page(results)
        return 0
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        parser.error("uv must be installed: pip install uv")
    machine = Machine(options.work.resolve(), tuple(root.resolve() for root in options.root), uv)
    machine.work.mkdir(parents=True, exist_ok=True)
    if any(isinstance(cell, PythonCell) for cell in cells):
        wheel, wanted = build_wheel(machine), reference(machine)
    before = None
    for cell in cells:
        if before and (not isinstance(cell, PythonCell) or cell.torch != before.torch):
            shutil.rmtree(machine.work / "cache", ignore_errors=True)  # gigabytes that no later cell shares
        start = time.monotonic()
        try:
            result = run_python(cell, machine, wheel, wanted) if isinstance(cell, PythonCell) else run_compiler(cell, machine)
        except NotHere as reason:
            result = Result("not run", str(reason))
        before = cell if isinstance(cell, PythonCell) else None
        result.when = datetime.date.today().isoformat()
        results = kept() | {cell.key: result}
        RESULTS.write_text(json.dumps({key: asdict(one) for key, one in sorted(results.items())}, indent=1) + "\n")
        write_page(results)
        print(f"{cell.key}: {outcome(result)} ({result.tests or 'no test'}, {time.monotonic() - start:.0f} s)", flush=True)
    shutil.rmtree(machine.work, ignore_errors=True)
    return int(any(results[cell.key].status == "failed" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
