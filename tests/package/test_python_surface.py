"""What programs rely on is what docs/python.md says: names, parameters, defaults."""

from __future__ import annotations

import ast
import dataclasses
import inspect

import pytest
from pages import beside, blocks

import adabm_kernels
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.upscaling.patchwise import Patchwise

pytestmark = beside
CLASSES = {"Model": ConvertedNetwork, "BitMap": adabm_kernels.BitMap, "Patch": adabm_kernels.Patch}
CLASSES |= {"ConvertConfig": adabm_kernels.ConvertConfig}
PAGE = [node for block in blocks("python.md", "python") for node in ast.parse(block).body]
FUNCTIONS = {node.name: node for node in PAGE if isinstance(node, ast.FunctionDef)}
INSIDE = [(of.name, node) for of in PAGE if isinstance(of, ast.ClassDef) for node in of.body]
METHODS = {f"{owner}.{node.name}": node for owner, node in INSIDE if isinstance(node, ast.FunctionDef)}
FIELDS = {f"{owner}.{ast.unparse(node.target)}": node for owner, node in INSIDE if isinstance(node, ast.AnnAssign)}


def shown(node: ast.FunctionDef) -> list[tuple]:
    """The parameters on the page, each with its name, kind and default."""
    scope: dict = {}
    exec(compile(ast.Module([node], []), "python.md", "exec"), scope)
    return parameters(scope[node.name])


def parameters(function: object) -> list[tuple]:
    found = list(inspect.signature(function).parameters.values())
    if function is adabm_kernels.upscale:  # its last parameter stands for those of Patchwise
        own = list(inspect.signature(Patchwise).parameters.values())[1:]
        found = found[:-1] + own
    return [(one.name, one.kind, one.default) for one in found]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_as_the_page_shows_them(name: str) -> None:
    assert parameters(getattr(adabm_kernels, name)) == shown(FUNCTIONS[name])


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_as_the_page_shows_them(name: str) -> None:
    owner, method = name.split(".")
    assert parameters(getattr(CLASSES[owner], method)) == shown(METHODS[name])


@pytest.mark.parametrize("name", FIELDS)
def test_fields_are_as_the_page_shows_them(name: str) -> None:
    owner, field = name.split(".")
    declared = {one.name: one for one in dataclasses.fields(CLASSES[owner])}
    if field not in declared:
        assert isinstance(vars(CLASSES[owner])[field], property)
    elif (value := FIELDS[name].value) is not None:
        assert declared[field].default == ast.literal_eval(value)


def test_the_page_shows_all_that_is_public() -> None:
    classes = {node.name for node in PAGE if isinstance(node, ast.ClassDef)}
    assert FUNCTIONS.keys() | (classes - {"Model"}) == set(adabm_kernels.__all__)
    assert classes == CLASSES.keys()
