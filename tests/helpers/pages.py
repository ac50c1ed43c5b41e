"""The examples and the documents, where they lie beside the tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"
beside = pytest.mark.skipif(not (EXAMPLES.is_dir() and DOCS.is_dir()), reason="examples and documents are not beside the tests")


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code of a page of docs/, those in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
