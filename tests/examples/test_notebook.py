"""The notebook runs in a Jupyter kernel of its own, every cell of it, and shows pictures where it is to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import PIL.Image
import pytest
from needs import needs
from pages import EXAMPLES, beside

import adabm_kernels
from adabm_kernels.models import _ASSETS

pytestmark = beside
FILE = EXAMPLES / "bits.ipynb"


def sources(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(FILE.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@needs("jupyter")
def test_every_cell_runs_and_shows_what_it_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(Path(adabm_kernels.__file__).parents[1]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    with PIL.Image.open(_ASSETS / "sample.png") as sample:
        sample.crop((40, 100, 120, 164)).save(tmp_path / "photo.png")
    notebook = nbformat.read(FILE, 4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source, count = re.subn(r"(?m)^PICTURE = .*$", f"PICTURE = {str(tmp_path / 'photo.png')!r}", first.source)
    assert count == 1
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code[1:]:
        shown = [output.data for output in cell.outputs if "data" in output]
        assert any("image/png" in data for data in shown), cell.source
    assert "(80, 64) cpu" in code[0].outputs[0].text or "(80, 64) reference" in code[0].outputs[0].text


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert sources("markdown") and FILE.stat().st_size < 20_000
