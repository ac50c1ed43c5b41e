"""The pipeline of torch.utils.data: workers that are forked or spawned give the pixels of one process."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest
import torch
from pages import EXAMPLES, beside
from small import one_thread  # noqa: F401

import adabm_kernels
from adabm_kernels.models import _ASSETS

pytestmark = beside


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # spawned workers import it, too
        yield importlib.import_module("torch_data")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, one of them too small, and a file that is none."""
    tmp_path = tmp_path_factory.mktemp("photos")
    with PIL.Image.open(_ASSETS / "sample.png") as sample:
        for i, side in enumerate((48, 40, 64, 20, 32)):
            sample.crop((20 * i, 20 * i, 20 * i + side, 20 * i + side + 2 * i)).save(tmp_path / f"{i}.png")
    PIL.Image.new("L", (32, 32), 90).save(tmp_path / "grey.JPG")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def collected(batches) -> tuple[list[str], torch.Tensor, list[float]]:
    names, large, bits = zip(*batches, strict=True)
    return [name for some in names for name in some], torch.cat(large), [value for some in bits for value in some.tolist()]


@pytest.fixture(scope="module")
def wanted(example: ModuleType, photos: Path) -> tuple[list[str], torch.Tensor, list[float]]:
    """What one model in this process gives."""
    return collected(example.batches(photos, "main", side=32, batch=3))


def test_large_pictures_are_those_of_upscale(wanted: tuple, photos: Path) -> None:
    names, large, bits = wanted
    assert names == ["0.png", "1.png", "2.png", "4.png", "grey.JPG"] and large.shape == (5, 3, 128, 128)
    with PIL.Image.open(photos / "1.png") as picture:
        middle = np.array(picture.crop((4, 5, 36, 37)))
    windows: list[adabm_kernels.Patch] = []
    want = adabm_kernels.upscale(middle, "edsr_x4_w4a4", smooth="network", record=windows)
    assert np.array_equal(large[1].permute(1, 2, 0), want) and bits[1] == pytest.approx(windows[0].mean_bits)


@pytest.mark.parametrize(("where", "workers", "start"), [("workers", 2, "fork"), ("workers", 1, "spawn")])
def test_all_ways_give_the_same(
    example: ModuleType, photos: Path, wanted: tuple, where: str, workers: int, start: str | None
) -> None:
    loading = {"num_workers": workers, "multiprocessing_context": start}
    names, large, bits = collected(example.batches(photos, where, side=32, batch=2, **loading))
    assert names == wanted[0] and torch.equal(large, wanted[1]) and bits == pytest.approx(wanted[2])


def test_a_dataset_takes_no_model_to_other_processes(example: ModuleType, photos: Path) -> None:
    dataset = example.Upscaled(photos, 32)
    first = dataset[0]
    assert len(pickle.dumps(dataset)) < 2000
    again = pickle.loads(pickle.dumps(dataset))[0]
    assert again[0] == first[0] and torch.equal(again[1], first[1]) and again[2] == first[2]


def test_the_program(example: ModuleType, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example.main([str(photos), "--side", "32", "--workers", "0", "--where", "main"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[-1].startswith("5 pictures in ") and lines[0].startswith("0.png: ")
