"""The documents: links lead somewhere, lines are as wide as everywhere, and each page is in the index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
PAGES += [ROOT / folder / "README.md" for folder in ("adabm_kernels/assets", "tests", "tests/helpers/cuda_host")]
INDEX = ROOT / "docs" / "README.md"
pytestmark = pytest.mark.skipif(not INDEX.exists(), reason="the documents are not beside the tests")


def prose(page: Path) -> Iterator[str]:
    """The lines of a page outside of blocks of code."""
    code = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            yield line


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked by, as GitHub makes it of them."""
    headings = [line.lstrip("#").strip() for line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """The targets of a page's links within the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page)))
    return [target for target in found if not re.match(r"https?:", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_lines_are_not_too_long(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), f"no file: {target}"
        assert not anchor or anchor in anchors(other), f"no heading: {target}"
    assert not [line for line in prose(page) if len(line) > 132 and not line.startswith("|")]


def test_every_page_is_in_the_index() -> None:
    listed = {(INDEX.parent / target).resolve() for target in links(INDEX)}
    assert set(PAGES) - listed - {INDEX, ROOT / "CHANGELOG.md"} == set()
