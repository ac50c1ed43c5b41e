"""Building the native libraries as a user would, in a copy of the tree: with, without and with the wrong compilers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import adabm_kernels

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "csrc", "adabm_kernels"]
# What a source distribution holds besides, as far as it is here.
BESIDES = [
    "CHANGELOG.md",
    "Makefile",
    "benchmarks",
    "docs",
    "examples",
    "tests",
    "training",
    *(path.name for path in ROOT.glob("requirements*.txt")),
]
for _name in ("setuptools", "ninja"):
    pytest.importorskip(_name)
pytestmark = pytest.mark.skipif(not all((ROOT / name).exists() for name in SOURCES), reason="the sources are not beside the tests")

# Writes an empty file for every -o, so that a build takes no time. Says no to sources that end as $FAIL does.
FAKE_COMPILER = """#!/bin/sh
log="$(dirname "$0")/log"
echo "$0 $*" >> "$log"
for word in "$@"; do
  case "$word" in --version) echo "fake 1.0"; exit 0 ;; esac
  if [ -n "$FAIL" ]; then case "$word" in *"$FAIL") echo "error: no" >&2; exit 1 ;; esac; fi
  if [ "$previous" = "-o" ]; then : > "$word"; fi
  if [ -n "$SAY" ]; then case "$word" in *.cu) echo "$SAY" >&2 ;; esac; fi
  previous="$word"
done
"""


class Tree:
    """A copy of the sources with a folder of tools that is all its builds see."""

    def __init__(self, folder: Path):
        self.root, self.tools = folder / "tree", folder / "tools"
        self.root.mkdir()
        self.add(SOURCES)
        self.tools.mkdir()
        for name in ("sh", "dirname", "env"):
            (self.tools / name).symlink_to(shutil.which(name))
        self.lib = self.root / "adabm_kernels" / "_lib"
        self.lib.mkdir()

    def add(self, names: list[str]) -> None:
        ignore = shutil.ignore_patterns("_lib", "*.safetensors", "__pycache__")
        for name in names:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, ignore=ignore)
            elif source.exists():
                shutil.copy(source, self.root / name)

    def tool(self, name: str) -> Path:
        path = self.tools / name
        path.write_text(FAKE_COMPILER)
        path.chmod(0o755)
        return path

    def build(self, *arguments: str, path: str | None = None, **variables: str) -> subprocess.CompletedProcess:
        own = ("ADABM_", "CXX", "CXXFLAGS", "NVCC", "PATH", "PYTHON")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
        environment |= {"PATH": path or str(self.tools), "ADABM_CUDA": "off", **variables}
        command = [sys.executable, "setup.py", "-q", *(arguments or ("build_ext", "--inplace"))]
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=300)

    def libraries(self) -> list[str]:
        return sorted(path.name for path in self.lib.iterdir())

    def log(self) -> str:
        path = self.tools / "log"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return text


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_a_compiler_the_build_succeeds_and_says_so(tree: Tree) -> None:
    (tree.lib / "libadabm_cpu.so").touch()
    (tree.lib / "libadabm_old.so").touch()
    for wanted in ("auto", "off"):
        done = tree.build(ADABM_CUDA=wanted)
        assert done.returncode == 0, done.stderr
        assert "no C++ compiler found: installing without native libraries (reference backend only)" in done.stderr
        assert tree.libraries() == []  # nor what an earlier build left


def test_elsewhere_than_on_linux_the_build_succeeds_and_says_so(tree: Tree) -> None:
    tree.tool("c++")
    # Only what setup.py sees: setuptools itself goes on as on Linux.
    text = (tree.root / "setup.py").read_text()
    (tree.root / "setup.py").write_text(
        text.replace("class BuildNative", 'sys = type("", (), {**vars(sys), "platform": "darwin"})\n\n\nclass BuildNative')
    )
    done = tree.build()
    assert done.returncode == 0, done.stderr
    assert "made for Linux, and this is darwin: installing without them (reference backend only)" in done.stderr
    assert tree.libraries() == [] and tree.log() == ""
    done = tree.build(ADABM_CUDA="on")
    assert done.returncode != 0 and "ADABM_CUDA=on needs Linux, and this is darwin" in done.stderr


def test_a_compiler_is_found_and_stale_libraries_do_not_survive(tree: Tree) -> None:
    tree.tool("g++")
    for name in ("libadabm_cpu.so", "libadabm_cuda.so", "libadabm_old.so"):
        (tree.lib / name).write_text("stale")
    done = tree.build()
    assert done.returncode == 0, done.stderr
    assert tree.libraries() == ["libadabm_cpu.so"]
    assert (tree.lib / "libadabm_cpu.so").read_text() == ""
    commands = tree.log()
    for source in (tree.root / "csrc" / "cpu").rglob("*.cpp"):
        assert str(source) in commands
    for line in commands.splitlines():
        assert "-march=native" not in line
        # One instruction set per file: only those in cpu/isa see its flags. On nothing at all they are tried first.
        assert "-mavx2" not in line or "isa/avx" in line or os.devnull in line
        assert "-mavxvnni" not in line or "isa/avxvnni" in line or os.devnull in line
        assert "-mavx512f" not in line or "isa/avx512" in line or os.devnull in line


def test_only_what_changed_is_compiled_again(tree: Tree) -> None:
    tree.tool("g++")
    assert tree.build().returncode == 0
    tree.log()
    changed = tree.root / "csrc" / "cpu" / "isa" / "choose.cpp"
    changed.write_text(changed.read_text() + "\n")
    assert tree.build().returncode == 0
    compiled = [line for line in tree.log().splitlines() if " -c " in line]
    assert len(compiled) == 1 and "choose.cpp" in compiled[0]
    assert tree.build(CXXFLAGS="-DOTHER").returncode == 0
    compiled = [line for line in tree.log().splitlines() if " -c " in line]
    assert len(compiled) > 1 and all("-DOTHER" in line for line in compiled)
    assert tree.libraries() == ["libadabm_cpu.so"]


def test_nvcc_builds_the_cuda_library_where_wanted(tree: Tree) -> None:
    tree.tool("g++")
    tree.tool("nvcc")
    assert tree.build(ADABM_CUDA="auto").returncode == 0
    assert tree.libraries() == ["libadabm_cpu.so", "libadabm_cuda.so"]
    assert tree.build(ADABM_CUDA="off").returncode == 0
    assert tree.libraries() == ["libadabm_cpu.so"]


def test_kernels_are_built_for_every_architecture_and_must_not_spill(tree: Tree) -> None:
    tree.tool("g++")
    tree.tool("nvcc")
    assert tree.build(ADABM_CUDA="on").returncode == 0
    compiled = [line for line in tree.log().splitlines() if "nvcc" in line and " -c " in line]
    assert {Path(line.split(" -c ")[1].split()[0]).name for line in compiled} >= {
        path.name for path in (tree.root / "csrc/cuda").glob("*.cu")
    }
    for line in compiled:
        if "_sm90.cu" in line:  # instructions of compute capability 9.0 alone
            assert "arch=compute_90a,code=sm_90a" in line and "sm_80" not in line
        else:
            assert all(f"arch=compute_{arch},code=sm_{arch}" in line for arch in (80, 86, 89, 90)) and "code=compute_90" in line
        assert "-Xptxas=--warn-on-spills,--warning-as-error" in line and "--fmad=false" in line


def test_a_failing_nvcc_is_an_error_only_when_asked_for(tree: Tree) -> None:
    tree.tool("g++")
    tree.tool("nvcc")
    done = tree.build(ADABM_CUDA="auto", FAIL=".cu")
    assert done.returncode == 0, done.stderr
    assert "nvcc failed: installing without the CUDA library (ADABM_CUDA=on makes this an error)" in done.stderr
    assert tree.libraries() == ["libadabm_cpu.so"]
    assert tree.build(ADABM_CUDA="on", FAIL=".cu").returncode != 0


def test_products_that_ptxas_serialises_fail_the_build(tree: Tree) -> None:
    tree.tool("g++")
    tree.tool("nvcc")
    said = "ptxas info : (C7520) Potential Performance Loss: wgmma.mma_async instructions are serialized due to something"
    done = tree.build(ADABM_CUDA="on", SAY=said)
    assert done.returncode != 0 and said in done.stdout + done.stderr
    assert tree.build(ADABM_CUDA="on", SAY="ptxas info : 0 bytes spill stores").returncode == 0


def test_a_failing_compiler_is_an_error(tree: Tree) -> None:
    tree.tool("g++")
    assert tree.build(FAIL="pack.cpp").returncode != 0
    assert tree.libraries() == []


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"ADABM_CUDA": "maybe"}, "setup.py: ADABM_CUDA must be auto, on or off, got 'maybe'"),
        ({"ADABM_CUDA": "on"}, "setup.py: ADABM_CUDA=on needs nvcc, and none was found (PATH or NVCC)"),
        ({"CXX": "no-such-compiler -O3"}, "setup.py: CXX must name a C++ compiler, got 'no-such-compiler -O3'"),
    ],
    ids=["maybe", "no_nvcc", "no_such_compiler"],
)
def test_wrong_settings_are_named(tree: Tree, variables: dict[str, str], message: str) -> None:
    tree.tool("g++")
    done = tree.build(**variables)
    assert done.returncode != 0
    assert message in done.stderr


def test_cuda_without_any_compiler_is_an_error(tree: Tree) -> None:
    done = tree.build(ADABM_CUDA="on")
    assert done.returncode != 0
    assert "ADABM_CUDA=on needs a C++ compiler" in done.stderr


def test_a_source_distribution_is_the_whole_checkout(tree: Tree) -> None:
    tree.add(BESIDES)
    held = {str(path.relative_to(tree.root)) for path in tree.root.rglob("*") if path.is_file()}
    held.discard("benchmarks/results/latest.json")  # of whoever measured last
    done = tree.build("sdist")
    assert done.returncode == 0, done.stderr
    with tarfile.open(next((tree.root / "dist").glob("*.tar.gz"))) as archive:
        packed = {path.partition("/")[2] for path in archive.getnames()}
    assert held - packed == set()
    assert {name.partition("/")[0] for name in packed - held - {""}} <= {
        "PKG-INFO",
        "adabm_kernels.egg-info",
        "setup.cfg",
        *SOURCES,
        *BESIDES,
    }


def test_a_wheel_serves_every_python_and_holds_all_that_it_needs(tree: Tree) -> None:
    tree.tool("g++")
    done = tree.build("bdist_wheel")
    assert done.returncode == 0, done.stderr
    assert "Package would be ignored" not in done.stdout + done.stderr
    path = next((tree.root / "dist").glob("*.whl"))
    version = adabm_kernels.__version__
    assert path.name.startswith(f"adabm_kernels-{version}-py3-none-linux_")  # loaded with ctypes: no interpreter's ABI
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        about = message_from_bytes(wheel.read(f"adabm_kernels-{version}.dist-info/METADATA"))
    modules = {str(file.relative_to(tree.root)) for file in (tree.root / "adabm_kernels").rglob("*.py")}
    assets = {str(file.relative_to(tree.root)) for file in (tree.root / "adabm_kernels" / "assets").iterdir()}
    wanted = modules | assets | {"adabm_kernels/py.typed", "adabm_kernels/_lib/libadabm_cpu.so"}
    wanted |= {f"adabm_kernels-{version}.dist-info/licenses/LICENSE"}
    assert wanted - names == set()
    assert about["License-Expression"] == "MIT" and about["Version"] == version
    assert "Typing :: Typed" in about.get_all("Classifier")


@pytest.mark.parametrize("compiler", ["c++", "clang++-14"])
def test_real_compilers_do_not_warn_and_their_kernels_are_right(tree: Tree, compiler: str) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    done = tree.build(path=os.environ["PATH"], CXX=compiler, CXXFLAGS="-Werror")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    code = """
import platform
from adabm_kernels import native
assert native.describe()["cpu_library"] == "loaded", native.describe()
if platform.machine() == "x86_64":
    assert set(native.ISAS) - set(native.describe()["isas_built"]) == {"auto", "neon"}
import torch
from problems import PROBLEMS, instantiate, runnable_isas
torch.set_num_threads(1)
for problem in PROBLEMS:
    instance = instantiate(problem)
    want = instance.run("reference", "both")
    for isa in runnable_isas():
        got = instance.run("cpu", "both", isa)
        assert all(map(torch.equal, got, want)), (str(problem), isa)
print(*runnable_isas())
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tree.root), str(ROOT / "tests" / "helpers")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tree.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "scalar" in done.stdout.split()
