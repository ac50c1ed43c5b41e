"""Modules that were moved can be imported by their old names for one version, with a warning."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest

from adabm_kernels.evaluation import resize
from adabm_kernels.planning import layer, tiles
from adabm_kernels.registration import MOVED


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has imported no old name yet, and that finds no other checkout, where the modules may still be."""
    for old in MOVED:
        sys.modules.pop(f"adabm_kernels.{old}", None)
    finders = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
    monkeypatch.setattr(sys, "meta_path", finders)


@pytest.mark.parametrize("old", MOVED)
def test_old_names_lead_to_modules_that_are_there(old: str) -> None:
    for home in MOVED[old]:
        assert importlib.util.find_spec(f"adabm_kernels.{home}").origin.endswith(f"{home.replace('.', '/')}.py")


def test_an_import_by_an_old_name_warns_where_it_stands() -> None:
    with pytest.warns(DeprecationWarning, match="adabm_kernels.resize is now adabm_kernels.evaluation.resize, and its old") as told:
        from adabm_kernels.resize import imresize
    assert imresize is resize.imresize and [warning.filename for warning in told] == [__file__]


def test_a_module_that_became_several_has_the_names_of_all() -> None:
    with pytest.warns(DeprecationWarning, match="is now adabm_kernels.planning.tiles and adabm_kernels.planning.exact and"):
        old = importlib.import_module("adabm_kernels.tiles")
    assert old.TILES is tiles.TILES and old.plan_layer is layer.plan_layer and {"TILES", "plan_layer"} <= set(dir(old))
    with pytest.raises(AttributeError, match="module 'adabm_kernels.tiles' has no attribute 'nothing'"):
        _ = old.nothing


def test_other_modules_are_missing_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match="adabm_kernels.nothing"):
        importlib.import_module("adabm_kernels.nothing")
