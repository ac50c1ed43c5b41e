"""Releases of Triton beside the one of the environment. Tests of kernels run with each of them in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adabm_kernels import machine

ROOT = Path(__file__).resolve().parents[2]
# The releases of Triton: the one of this environment, and those that the Makefile installs beside it for `make test` and for `make
# test-all`.
OWN = machine.triton_version()


def _listed(variable: str) -> list[str]:
    (values,) = re.findall(rf"^{variable} := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [version for version in values.split() if version not in ("$(TRITONS)", OWN)]


BESIDE = _listed("TRITONS")
NEWEST = max(BESIDE, key=lambda version: [int(part) for part in version.split(".")])
OTHERS = BESIDE + _listed("TRITONS_ALL")


def _folder(version: str) -> Path:
    return ROOT / ".venv" / f"triton-{version}"


def is_installed(version: str) -> bool:
    """Tells whether a release lies beside the one of the environment."""
    return (_folder(version) / "triton").exists()


def folder_of(version: str) -> Path | None:
    """The folder of a release, None for the one of the environment. Skips the test where the release is not installed."""
    if version == OWN:
        return None
    folder = _folder(version)
    if not is_installed(version):
        pytest.skip(f"no {folder.relative_to(ROOT)}, which `make {'test' if version in BESIDE else 'test-all'}` installs")
    return folder


def run_kernel_tests(file: Path, keywords: str, interpret: bool, version: str = OWN) -> subprocess.Popen:
    """Runs a file of kernel tests, or those that `keywords` select from it, with a release of Triton in a process of its own."""
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    if folder := folder_of(version):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    main = "import sys, pytest, triton; assert triton.__version__ == sys.argv[1]; sys.exit(pytest.main(sys.argv[2:]))"
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", str(file), "-k", keywords]
    command = [sys.executable, "-c", main, version, *options]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def all_passed(*processes: subprocess.Popen) -> None:
    outputs = [process.communicate()[0] for process in processes]
    failed = [output[-6000:] for process, output in zip(processes, outputs, strict=True) if process.returncode]
    assert not failed, "\n".join(failed)
