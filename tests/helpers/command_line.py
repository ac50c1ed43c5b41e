"""Runs `adabm` in a process of its own, and reads what it prints. The fixture `adabm` (conftest.py) runs it in this process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from adabm_kernels import cli

# The environment in which Python finds the tested package, whatever the working directory, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
# The folder of this file, for programs that import its other files.
HELPERS = str(Path(__file__).parent)


def run_process(*argv, code=None, **options):
    command = [sys.executable, *(("-c", code) if code else ("-m", "adabm_kernels.cli")), *map(str, argv)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, timeout=120, env=ENVIRONMENT, **options)


def rows(table):
    """The names and values of a table of two columns, up to the first empty line."""
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in table.split("\n\n")[0].splitlines())


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def writes_into(process, folder):
    """Whether a process has a file open in a folder that has no name yet, or a temporary one."""
    if any(name.endswith(".tmp") for name in os.listdir(folder)):
        return True
    held, place = Path(f"/proc/{process.pid}/fd"), f"{Path(folder).resolve()}/#"
    try:
        return any(os.readlink(one).startswith(place) for one in held.iterdir())
    except FileNotFoundError:  # the process closed a file, or ended, meanwhile
        return False
