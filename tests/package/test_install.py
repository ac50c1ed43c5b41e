"""The package as others get it: a source distribution, a wheel built of it in isolation, an empty environment, and a picture."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from command_line import ENVIRONMENT
from needs import WHEELS, needs
from PIL import Image
from test_build import BESIDES, Tree

import adabm_kernels

SAMPLE = Path(adabm_kernels.__file__).parent / "assets" / "sample.png"


def run(command: list[str], folder: Path, **variables: str) -> str:
    own = ("ADABM_", "PIP_", "PYTHON", "CXX")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(own)} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@needs("g++")
@needs("wheels")
def test_a_wheel_of_the_source_distribution_runs_in_an_environment_of_its_own(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.add(BESIDES)
    for weights in SAMPLE.parent.glob("*.safetensors"):
        (tree.root / "adabm_kernels" / "assets" / weights.name).symlink_to(weights)
    assert tree.build("sdist").returncode == 0
    (source,) = (tree.root / "dist").iterdir()

    # Nothing but what pyproject.toml asks for is there when pip builds. Without optimisation the libraries are made in seconds.
    pip = [sys.executable, "-m", "pip", "-q", "--isolated", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-index", "--find-links", str(WHEELS), "-w", str(tmp_path), str(source)]
    run(wheel, tmp_path, ADABM_CUDA="off", CXXFLAGS="-O0 -U_FORTIFY_SOURCE")
    (built,) = tmp_path.glob("*.whl")

    # The requirements are those of this environment, without the package that may be installed there.
    venv.create(tmp_path / "empty", symlinks=True)
    python = tmp_path / "empty" / "bin" / "python"
    run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(built)], tmp_path)
    (packages,) = (tmp_path / "empty" / "lib").glob("python3*/site-packages")
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run([str(python), "-c", "import adabm_kernels; print(adabm_kernels.__file__)"], tmp_path)
    assert where.startswith(str(packages))

    with Image.open(SAMPLE) as sample:
        sample.crop((60, 60, 76, 72)).save(tmp_path / "p.png")
    said = run([str(tmp_path / "empty" / "bin" / "adabm"), "upscale", "p.png", "-o", "a.png"], tmp_path)
    assert "backend          cpu (" in said
    here = [sys.executable, "-m", "adabm_kernels", "upscale", "p.png", "-o", "b.png", "--quiet"]
    subprocess.run(here, cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=300)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
