"""Fixtures that several test files of the command line use."""

from __future__ import annotations

import pytest
import torch

from adabm_kernels import cli


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """An empty working directory; torch's threads are as before afterwards."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def adabm(capsys):
    """Run one command in this process: (status, stdout, stderr)."""

    def run(*argv):
        try:
            status = cli.main([str(arg) for arg in argv])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run
