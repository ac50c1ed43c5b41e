"""Dependencies point down only: the imports of the package, and the includes of csrc, against the order of the floors."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "adabm_kernels"

# From the top. A module may import only from floors below its own; a folder counts as one module.
FLOORS = [
    {"__init__", "__main__"},
    {"cli", "registration"},
    {"commands"},
    {"evaluate", "report", "ray", "serving"},
    {"upscale"},
    {"models", "upscaling"},
    {"checkpoint", "convert"},
    {"calibrate"},
    {"calibration", "tuning", "exporters"},
    {"nn"},
    {"ops", "simulate"},
    {"registry"},
    {"backends"},
    {"native", "image_bits", "planning", "evaluation", "parameters", "importers"},
    # The ground: knows nothing of the rest.
    {"graph", "networks", "quantize", "config", "images", "files", "machine", "regions", "exits"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
GROUND = FLOORS[-1]
# Modules of the ground that others of the ground may use.
SHARED_GROUND = {"files", "graph", "regions"}
# What these may import at module level of all that is installed: importing the package stays inert.
LIGHT = {"__init__", "__main__", "cli", "commands", "models", "upscale", "native", "registry", "config", "files", "machine"}
LIGHT |= {"registration", "upscaling.__init__", "upscaling.names", "upscaling.sizes"}
MOST_FLAT = 18  # modules that lie in no room, beside __init__ and __main__
HEAVY = {"torch", "numpy", "PIL", "safetensors", "triton", "tqdm", "onnx", "ray", "pyarrow", "pandas"}


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name below the package -> file: "nn.conv", "__init__", "backends.__init__"."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str, tree: ast.AST) -> Iterator[str]:
    """Dotted names, from the package, of what a module imports anywhere in it: "registry", "nn.conv", ..."""
    here = name.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "adabm_kernels":
                    yield alias.name.partition(".")[2] or "__init__"
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                if (node.module or "").split(".")[0] != "adabm_kernels":
                    continue
                base = node.module.split(".")[1:]
            else:
                base = here[: len(here) - node.level] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                # `from . import native` names a module, `from .native import isa` a thing inside one.
                inside = ".".join([*base, alias.name])
                yield (inside if inside in modules() or f"{inside}.__init__" in modules() else ".".join(base) or "__init__")


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Every module with all modules that it imports anywhere in it, also for types alone."""
    found = {}
    for name, path in modules().items():
        targets = set(imports(name, ast.parse(path.read_text())))
        found[name] = {target if target in modules() else f"{target}.__init__" for target in targets} - {name}
    return found


def room(name: str) -> str:
    """The folder of the package that a module lies in; the module itself where it lies flat."""
    return name.split(".")[0]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some names that need each other, in their order, the first once more at the end; none where there are no such."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) in (["b", "c", "b"], ["c", "b", "c"])
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_modules_need_each_other() -> None:
    assert circle(arrows()) == []


def test_no_rooms_need_each_other() -> None:
    rooms: dict[str, set[str]] = {}
    for name, targets in arrows().items():
        rooms.setdefault(room(name), set()).update({room(target) for target in targets} - {room(name)})
    assert circle(rooms) == []


def test_few_modules_lie_flat() -> None:
    flat = {name for name in modules() if "." not in name} - {"__init__", "__main__"}
    assert len(flat) <= MOST_FLAT, sorted(flat)


def test_the_walk_sees_every_form_of_import() -> None:
    source = """
import torch, adabm_kernels.native
from . import conv
from .. import ops
from ..registry import choose
def late():
    from adabm_kernels.backends.cpu import pack
    import adabm_kernels
"""
    found = sorted(imports("nn.edsr", ast.parse(source)))
    assert found == ["__init__", "backends.cpu", "native", "nn.conv", "ops", "registry"]


def test_every_module_has_a_floor() -> None:
    assert {name.split(".")[0] for name in modules()} == set(FLOOR)


@pytest.mark.parametrize("name", modules())
def test_imports_run_down(name: str) -> None:
    tree = ast.parse(modules()[name].read_text())
    own = name.split(".")[0]
    for target in imports(name, tree):
        other = target.split(".")[0]
        if other == own and "." in name:
            continue  # within a folder
        if own in GROUND and other in SHARED_GROUND:
            continue
        assert FLOOR[other] > FLOOR[own], f"{name} imports {target}, which is not below it"


def is_light(name: str) -> bool:
    return bool({name, name.split(".")[0]} & LIGHT)


@pytest.mark.parametrize("name", sorted(filter(is_light, modules())))
def test_light_modules_import_nothing_heavy_when_they_load(name: str) -> None:
    for node in ast.parse(modules()[name].read_text()).body:
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & HEAVY
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] not in HEAVY
        elif isinstance(node, ast.ImportFrom):
            for target in imports(name, ast.Module([node], [])):
                assert is_light(target) or target.split(".")[0] == "backends"


def test_one_file_registers_operators_and_one_loads_libraries() -> None:
    users = {"torch.library.Library": set(), "ctypes.CDLL": set(), "ADABM_BACKEND": set(), "ADABM_ISA": set()}
    for name, path in modules().items():
        text = path.read_text()
        for word, found in users.items():
            if re.search(rf"{re.escape(word)}\b", text):
                found.add(name)
    assert users["torch.library.Library"] == {"ops.library"}
    assert users["ctypes.CDLL"] == {"native"}
    assert users["ADABM_BACKEND"] == {"registry"}
    assert users["ADABM_ISA"] == {"native"}


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="csrc is not beside the tests")
def test_the_native_code_includes_no_torch_and_no_python() -> None:
    files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert files
    for path in files:
        for include in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.MULTILINE):
            assert not re.match(r"(torch|ATen|c10|caffe2|Python\.h|pybind11|numpy)", include), f"{path}: {include}"


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="csrc is not beside the tests")
def test_the_public_header_includes_only_fixed_size_integers() -> None:
    text = (ROOT / "csrc" / "include" / "adabm" / "adabm.h").read_text()
    assert re.findall(r"^\s*#\s*include\s*(\S+)", text, re.MULTILINE) == ["<stdint.h>"]
