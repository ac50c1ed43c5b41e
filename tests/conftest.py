"""Fixtures that several test files of the command line use, and what all tests share."""

from __future__ import annotations

import importlib
import signal

import pytest
import torch
from fake_model import FakeModel
from hypothesis import settings

from adabm_kernels import cli, machine

# What hypothesis draws is the same in every run, whatever the machine's speed: a test that passed passes again. `make fuzz` draws
# other inputs each time.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would the processes that tests of it start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """A cache folder of the test's own: what the user's machine has measured plans nothing here."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def own_memory(monkeypatch):
    """What tests before this one have left in the process is not counted where memory is bounded: a command that runs in this
    process may hold as much as in one of its own."""
    resident_bytes = machine.resident_bytes
    before = resident_bytes()
    monkeypatch.setattr(machine, "resident_bytes", lambda: max(resident_bytes() - before, 0))


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


@pytest.fixture
def model(monkeypatch):
    """The stand-in for a converted model, in place of every model that commands load by name or path."""
    fake = FakeModel()
    monkeypatch.setattr(importlib.import_module("adabm_kernels.models"), "load_model", lambda name: fake)
    return fake
