"""Work that is killed at any moment is done again to an equal end. `python tests/faults/kills.py` kills a hundred times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENVIRONMENT

from adabm_kernels.backends import devices

SCRIPT = Path(__file__).with_name("kills.py")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def kill(kills: int, *works: str) -> str:
    command = [sys.executable, SCRIPT, "--kills", str(kills), *works]
    done = subprocess.run(command, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@forks
def test_a_folder_and_a_model_survive_kills() -> None:
    said = kill(4, "upscale", "save")
    assert said.count("4 kills") == 2 and "0 while it ran" not in said


@forks
@pytest.mark.slow
def test_a_calibration_and_tuning_survive_kills() -> None:
    works = ["calibrate"] if devices.why_no_triton() else ["calibrate", "tune"]
    assert kill(10, *works).count("10 kills") == len(works)
