"""`python tests/faults/load.py` for three minutes: work of all kinds in one process, equal in every way, in memory that stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENVIRONMENT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what glibc has allocated")
def test_mixed_work_in_one_process_stays_right_and_does_not_grow() -> None:
    command = [sys.executable, Path(__file__).with_name("load.py"), "--minutes", "3"]
    done = subprocess.run(command, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'growth'" in done.stdout, done.stdout
