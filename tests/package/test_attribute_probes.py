"""Nothing of the package is asked whether it has an attribute: what objects can do stands in their types or in a table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "adabm_kernels"

# Questions to what others made, whose abilities differ: by file and by what is asked for, with the reason.
ALLOWED = {
    ("registration.py", "find_spec"): "finders of modules that other packages install, which may be of the old kind",
    ("registration.py", "__spec__"): "a module that another package may have put in its place by hand",
    ("registration.py", "_initializing"): "Python's own mark of a module whose code runs, which it documents nowhere",
    ("machine.py", "sched_getaffinity"): "a function that some systems lack",
    ("networks/detect.py", "res_scale"): "a user's module, whose class is not known",
    ("images/openers.py", "n_frames"): "a picture of Pillow, which has it for some formats only",
    ("graph/lowering.py", "tags"): "what a traced call calls: an operator of torch or any function",
    ("graph/lowering.py", "_schema"): "the same",
    ("graph/calls.py", "_schema"): "the same",
    ("graph/calls.py", "__name__"): "the same",
}


def probes(tree: ast.AST) -> Iterator[str]:
    """What is asked for by `hasattr`, and by `getattr` with a default."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            if node.func.id == "hasattr" or len(node.args) + len(node.keywords) > 2:
                yield node.args[1].value if isinstance(node.args[1], ast.Constant) else ast.unparse(node.args[1])


def test_probes_are_found() -> None:
    source = "hasattr(a, 'b'); getattr(a, 'c'); getattr(a, 'd', None); getattr(a, name, 0)"
    assert list(probes(ast.parse(source))) == ["b", "d", "name"]


def test_only_what_others_made_is_probed() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), asked)
        for path in PACKAGE.rglob("*.py")
        for asked in probes(ast.parse(path.read_text()))
    }
    assert found == set(ALLOWED)
