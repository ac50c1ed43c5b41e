"""Where the machine code comes from: compiled by nvcc one file at a time, or taken out of the built library; and what its ELF
says."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import sass_statistics

from . import parse

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
LIBRARY = ROOT / "adabm_kernels" / "_lib" / "libadabm_cuda.so"
CACHE = ROOT / "build" / "sass"
_PARAM_BANK, _PARAM_INFO = 0x0A, 0x17  # EIATTR_PARAM_CBANK, EIATTR_KPARAM_INFO


class Unavailable(RuntimeError):
    """There is no machine code here, and why."""


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    offset: int
    size: int
    link: int
    address: int


def sections(data: bytes) -> list[Section]:
    """The sections of a 64-bit little-endian ELF file."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("sections: data must be a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<3H", data, 58)
    rows = [struct.unpack_from("<2I4Q2I", data, table + i * size) for i in range(count)]
    base = rows[names][4]
    return [
        Section(data[base + row[0] : data.index(b"\0", base + row[0])].decode(), row[1], row[4], row[5], row[6], row[3])
        for row in rows
    ]


def symbols(path: Path) -> dict[int, str]:
    """Address in the file -> name, of every function of a shared library that was not stripped."""
    data = path.read_bytes()
    found = sections(data)
    table = next((s for s in found if s.name == ".symtab"), None)
    if table is None:
        raise ValueError(f"symbols: {path} must have a symbol table")
    names = found[table.link]
    result = {}
    for at in range(table.offset, table.offset + table.size, 24):
        name, info, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
        if info & 15 == 2:
            begin = names.offset + name
            result[value] = data[begin : data.index(b"\0", begin)].decode()
    return result


@dataclass(frozen=True)
class Kernel:
    """One kernel of a cubin. banks: its constant banks by number, bank 0 without its parameters. parameters: where in bank 0
    they go."""

    name: str
    code: tuple[parse.Instruction, ...]
    banks: dict[int, bytes]
    parameters: int
    parameter_bytes: int


class Cubin:
    """The kernels of one file."""

    def __init__(self, path: Path):
        self.path = path
        self._data = path.read_bytes()
        self._sections = sections(self._data)
        folder = sass_statistics.find_tools()
        if folder is None:
            raise Unavailable("no cuobjdump and nvdisasm, which come with CUDA's toolkit and Triton")
        environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        command = [str(folder / "cuobjdump"), "-sass", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        self._lines = parse.kernels(text)

    def names(self) -> list[str]:
        return list(self._lines)

    @functools.cache  # noqa: B019 - as long-lived as the cubins themselves
    def kernel(self, name: str) -> Kernel:
        """By its mangled name. Raises KeyError with the names there are."""
        if name not in self._lines:
            raise KeyError(f"kernel: no {name!r} in {self.path.name}, which has {self.names()}")
        banks, at, size = {}, 0, 0
        for section in self._sections:
            content = self._data[section.offset : section.offset + section.size]
            if found := re.fullmatch(rf"\.nv\.constant(\d+)\.{re.escape(name)}", section.name):
                banks[int(found[1])] = content
            if section.name == f".nv.info.{name}":
                at, size = _parameters(content)
        return Kernel(name, tuple(parse.instructions(self._lines[name])), banks, at, size)


def _parameters(info: bytes) -> tuple[int, int]:
    """(offset in constant bank 0, bytes) of a kernel's only parameter."""
    at, base, first, size = 0, 0, 0, 0
    while at < len(info):
        kind, attribute, value = struct.unpack_from("<BBH", info, at)
        at += 4
        if kind != 4:
            continue
        if attribute == _PARAM_BANK:
            base = struct.unpack_from("<IHH", info, at)[1]
        elif attribute == _PARAM_INFO:
            _, ordinal, offset, more = struct.unpack_from("<IHHI", info, at)
            if ordinal == 0:
                first, size = offset, more >> 18
        at += value
    return base + first, size


# ---- compiled here, or taken out of the library


def _flags() -> list[str]:
    """NVCC_FLAGS of setup.py, which cannot be imported without running it."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (found,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "NVCC_FLAGS" for t in node.targets)
    )
    return ast.literal_eval(found)


def _key(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _compiled(nvcc: str, source: str, architecture: str) -> Path:
    headers = sorted([*CSRC.glob("cuda/*.*h"), *CSRC.glob("common/*.h"), *CSRC.glob("include/adabm/*.h")])
    texts = [path.read_bytes() for path in headers]
    flags = [*_flags(), f"-gencode=arch=compute_{architecture},code=sm_{architecture}", f"-I{CSRC}", f"-I{CSRC}/include"]
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    key = _key(version, source, architecture, *_flags(), (CSRC / source).read_bytes(), *texts)
    path = CACHE / f"{Path(source).stem}.{architecture}.{key}.cubin"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        command = [nvcc, *flags, "-x", "cu", "-cubin", str(CSRC / source), "-o", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc failed on {source} for {architecture}:\n{done.stdout}{done.stderr}")
        temporary.replace(path)  # whole, or not there
    return path


def _extracted(library: Path, kernel: str, architecture: str) -> Path:
    """The cubin of the library with this architecture and a kernel of this name."""
    folder = sass_statistics.find_tools()
    if folder is None:
        raise Unavailable("no cuobjdump and nvdisasm, which come with CUDA's toolkit and Triton")
    target = CACHE / f"library.{_key(library.read_bytes())}"
    if not target.exists():
        temporary = target.with_suffix(f".{os.getpid()}")
        temporary.mkdir(parents=True, exist_ok=True)
        command = [str(folder / "cuobjdump"), "-xelf", "all", str(library)]
        subprocess.run(command, check=True, capture_output=True, cwd=temporary)
        temporary.replace(target)
    plain = architecture.rstrip("a")  # files of 9.0a are named as those of 9.0 or as their own, by the release of cuobjdump
    for path in sorted({*target.glob(f"*sm_{plain}.cubin"), *target.glob(f"*sm_{plain}a.cubin")}):
        if any(section.name == f".text.{kernel}" for section in sections(path.read_bytes())):
            return path
    raise Unavailable(f"{library.name} has no {kernel} for sm_{architecture}")


@functools.cache
def _open(path: Path) -> Cubin:
    return Cubin(path)


def why_unavailable() -> str:
    """Why no machine code can be had here, "" where it can."""
    if sass_statistics.find_tools() is None:
        return "no cuobjdump and nvdisasm, which come with CUDA's toolkit and Triton"
    if shutil.which(os.environ.get("NVCC", "nvcc")) is None and not LIBRARY.exists():
        return "no nvcc, and the CUDA library was not built"
    return ""


def find(kernel: str, source: str, architecture: str) -> Kernel:
    """A kernel by its mangled name: from `source`, a file of csrc, compiled for one architecture ("90a") by nvcc and kept in
    build/sass under a hash of what it was made from; where there is no nvcc, from the built library. Raises Unavailable."""
    nvcc = shutil.which(os.environ.get("NVCC", "nvcc"))
    if nvcc:
        path = _compiled(nvcc, source, architecture)
    elif LIBRARY.exists():
        path = _extracted(LIBRARY, kernel, architecture)
    else:
        raise Unavailable(why_unavailable())
    return _open(path).kernel(kernel)
