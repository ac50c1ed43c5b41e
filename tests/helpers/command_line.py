"""Running `adabm` in a process of its own, and reading what it says. The fixture `adabm` (conftest.py) runs it in this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from adabm_kernels import cli

# The package that is tested, whatever the working directory and whether it is installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
# For programs that import what lies beside this file.
HELPERS = str(Path(__file__).parent)


def run_process(*argv, code=None, **options):
    command = [sys.executable, *(("-c", code) if code else ("-m", "adabm_kernels.cli")), *map(str, argv)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, timeout=120, env=ENVIRONMENT, **options)


def rows(table):
    """Names and values of a table of two columns, up to the first empty line."""
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in table.split("\n\n")[0].splitlines())


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())
