"""Calls of the system that fail, one by one: what is refused in words, what is left, and what is right afterwards.

`python tests/faults/injection.py` goes through every call; here a fixed sample of them fails.
"""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from command_line import ENVIRONMENT, names

from adabm_kernels import files
from adabm_kernels.backends import tables
from adabm_kernels.images import PictureWriter
from adabm_kernels.images.formats import EXTENSIONS, Layout

HERE = Path(__file__).parent
sys.path.append(str(HERE))

from injection import build_shim  # noqa: E402


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("the calls are those of glibc")
    try:
        return build_shim(tmp_path_factory.mktemp("shim"))
    except FileNotFoundError:
        pytest.skip("no C compiler")


def inject(shim: Path, *arguments: str) -> list[tuple[int, int]]:
    """How many calls failed, and how often the work was done nevertheless or refused in words, for each kind of call."""
    command = [sys.executable, HERE / "injection.py", *arguments]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "LD_PRELOAD": str(shim)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"(\d+) failed in turn: (\d+) done nevertheless, (\d+) refused in words, 0 faults", done.stdout)
    return [(int(tried), int(right) + int(refused)) for tried, right, refused in found]


def test_allocations_of_kernels_that_fail_are_refused_in_words(shim: Path) -> None:
    tried = inject(shim, "forward", "convert", "--kinds", "own allocation", "--most", "5")
    assert len(tried) == 2 and all(3 <= failed == judged for failed, judged in tried), tried


def test_files_that_cannot_be_opened_read_written_or_named(shim: Path) -> None:
    kinds = ["opens", "read", "write", "flush", "name", "names"]
    tried = inject(shim, "tiff", "folder", "--kinds", *kinds, "--most", "3")
    assert len(tried) == 2 * len(kinds) and all(0 < failed == judged for failed, judged in tried), tried


@pytest.mark.slow
def test_every_call_that_fails_is_refused_in_words(shim: Path) -> None:
    assert inject(shim, "forward", "upscale", "save", "load", "picture", "tiff", "jpeg", "webp", "bmp", "palette", "folder")


# ---- a write that fails


class _Failing(io.FileIO):
    """A file whose n-th write fails, and none after it."""

    def __init__(self, path: Path, n: int):
        super().__init__(path, "x+")
        self.n = n

    def write(self, data: object) -> int:
        self.n -= 1
        if self.n == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
@pytest.mark.parametrize("bands", [1, 3])
def test_no_write_that_fails_goes_unnoticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, bands: int) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    whole, n = b"", 0
    while True:
        made: list[_Failing] = []

        def nameless(folder: Path, n: int = n, made: list[_Failing] = made) -> io.BufferedRandom:
            raw = _Failing(tmp_path / "raw", n)
            made.append(raw)
            os.unlink(tmp_path / "raw")
            return io.BufferedRandom(raw, 512)

        monkeypatch.setattr(files, "_nameless", nameless)
        try:
            with PictureWriter(tmp_path / f"a{suffix}", EXTENSIONS[suffix], Layout(80, 90, 3)) as out:
                for band in np.split(rows, bands):
                    out.write(band)
        except OSError as error:
            assert n and str(error) == f"cannot write '{tmp_path / f'a{suffix}'}': No space left on device"
            assert names(tmp_path) == [f"a{suffix}"] and (tmp_path / f"a{suffix}").read_bytes() == whole
        else:
            assert n == 0 or made[0].n > 0, f"write {n} failed unnoticed"
            if n:
                return
            whole = (tmp_path / f"a{suffix}").read_bytes()
        n += 1


# ---- two that write one table


def _add(path: Path, key: str) -> None:
    for i in range(20):
        tables.add(path, {f"{key}{i}": {}}, lambda entry: True)


@pytest.mark.skipif(os.name != "posix", reason="no locks of folders")
def test_processes_that_tune_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    writers = [get_context("fork").Process(target=_add, args=(path, key)) for key in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(tables.read(path, lambda entry: True)) == 60 and names(tmp_path) == ["tuning.json"]
