"""What the package is installed from: locked versions, licences, and no network once it is there."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import supply_chain
import torch
from command_line import ENVIRONMENT
from packaging.utils import canonicalize_name
from PIL import Image
from small import small_edsr

import adabm_kernels

PACKAGE = Path(adabm_kernels.__file__).parent
in_checkout = pytest.mark.skipif(
    not (supply_chain.ROOT / "requirements-lock.txt").exists(), reason="the locks are not beside the tests"
)

# ---- locks


@in_checkout
@pytest.mark.parametrize("name", supply_chain.LOCKS)
def test_a_lock_has_every_requirement_in_a_version_that_fits_with_digests(name: str) -> None:
    """`make lock` writes it again after a change of requirements."""
    locked = supply_chain.locked(supply_chain.LOCKS[name])
    for requirement in supply_chain.requirements(name):
        key = canonicalize_name(requirement.name)
        if key == "torch":
            continue
        assert key in locked, f"{requirement} of {name} is not in {supply_chain.LOCKS[name]}: make lock"
        for one, _ in locked[key]:
            (specifier,) = one.specifier
            assert specifier.operator == "==" and specifier.version in requirement.specifier, (
                f"{one} is not {requirement}: make lock"
            )
    for one, digests in (entry for entries in locked.values() for entry in entries):
        assert digests and all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in digests), one


@in_checkout
def test_locks_name_no_host_and_agree_with_one_another() -> None:
    locks = [supply_chain.locked(name) for name in supply_chain.LOCKS.values()]
    for name in supply_chain.LOCKS.values():
        assert "://" not in (supply_chain.ROOT / name).read_text() and "index-url" not in (supply_chain.ROOT / name).read_text()
    for smaller, larger in zip(locks, locks[1:], strict=False):
        for key, entries in smaller.items():
            assert {str(one.specifier) for one, _ in entries} == {str(one.specifier) for one, _ in larger[key]}, key


@in_checkout
def test_requirements_of_the_package_and_of_its_development_are_the_same() -> None:
    """What pip takes from pyproject.toml is what `make` installs, but for the one torch that is known to work."""
    project = tomllib.loads((supply_chain.ROOT / "pyproject.toml").read_text())["project"]
    ours, tests = project["dependencies"], project["optional-dependencies"]["test"]
    for name, stated in (("requirements.txt", ours), ("requirements-test.txt", tests)):
        asked = {canonicalize_name(one.name): one.specifier for one in supply_chain.requirements(name)}
        for text in stated:
            requirement = supply_chain.Requirement(text)
            key = canonicalize_name(requirement.name)
            assert key == "torch" or asked[key] == requirement.specifier, f"{text}: {name} has {asked.get(key)}"


# ---- licences


def test_what_is_needed_at_run_time_has_licences_of_the_list() -> None:
    needed = supply_chain.needed_at_run_time()
    assert {"adabm-kernels", "torch", "numpy", "pillow", "pyvips-binary", "sympy"} <= needed
    refused = {name: supply_chain.refused(supply_chain.licence(name)) for name in needed}
    assert not {name: missing for name, missing in refused.items() if missing}


def test_licences_that_ask_for_more_are_refused() -> None:
    assert supply_chain.refused("MIT AND BSD-3-Clause") == []
    assert supply_chain.refused("GPL-3.0-or-later OR (MIT AND Zlib)") == []
    assert supply_chain.refused("MIT AND GPL-3.0-or-later") == ["GPL-3.0-or-later"]
    assert supply_chain.refused("not stated") == ["not stated"]


@in_checkout
def test_the_page_has_every_package_that_is_needed_at_run_time() -> None:
    listed = set(re.findall(r"^\| ([\w-]+) \|", supply_chain.PAGE.read_text(), re.MULTILINE))
    assert supply_chain.needed_at_run_time() - {"adabm-kernels"} <= listed, "make licences"


# ---- no network

# Modules of the standard library and of others through which a program reaches a network. A room that serves others over one is
# named here.
NETWORK = {
    "aiohttp",
    "asyncio",
    "ftplib",
    "http",
    "httpx",
    "requests",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "urllib",
    "urllib3",
}
SERVES: tuple[str, ...] = ("ray", "serve", "serving")


def imports(path: Path) -> set[str]:
    """The top-level names of all that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_no_module_imports_what_reaches_a_network() -> None:
    modules = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    assert len(modules) > 100
    modules = {path: parts for path, parts in modules.items() if not set(parts) & set(SERVES)}
    found = {path.name: sorted(imports(path) & NETWORK) for path in modules}
    assert not {name: reached for name, reached in found.items() if reached}


def test_a_model_is_calibrated_without_a_network(tmp_path: Path) -> None:
    """In a network name space of its own, without even a loopback device, where this user may make one."""
    apart = ["unshare", "-r", "-n"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this user may make no name space")
    torch.save(small_edsr(blocks=1).state_dict(), tmp_path / "w.pt")
    (tmp_path / "photos").mkdir()
    with Image.open(PACKAGE / "assets" / "sample.png") as sample:
        sample.crop((40, 60, 72, 92)).save(tmp_path / "photos" / "p.png")
    command = [
        *apart,
        sys.executable,
        "-m",
        "adabm_kernels",
        "calibrate",
        "--weights",
        "w.pt",
        "--images",
        "photos",
        "-o",
        "m.safetensors",
    ]
    command += ["--no-check", "--recipe", "paper", "--steps", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and (tmp_path / "m.safetensors").exists(), done.stderr
