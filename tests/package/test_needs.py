"""A run for continuous integration has what the tests need: nothing is skipped there that could be tested."""

from __future__ import annotations

import os

import pytest
from needs import NEEDS, Need, needs, why_missing

in_ci = pytest.mark.skipif(os.environ.get("CI") != "true", reason="CI=true asks for everything that tests need")


@in_ci
@pytest.mark.parametrize("name", [name for name, need in NEEDS.items() if not need.never])
def test_what_tests_need_is_there(name: str) -> None:
    assert not (reason := why_missing(name)), reason


def test_what_is_missing_is_named_with_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NEEDS, "abacus", Need("an abacus", lambda: False, "sums", "a shop"))
    reason = "missing: an abacus (a shop); not tested without: sums"
    assert why_missing("abacus") == reason
    assert needs("abacus").mark.args == (True,) and needs("abacus").mark.kwargs == {"reason": reason}
