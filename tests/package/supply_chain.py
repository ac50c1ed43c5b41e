"""What the package and its tests are installed from: `make lock` and `make licences`.

lock: resolves requirements.txt, requirements-test.txt and requirements-bench.txt for every Python and platform, and writes one file
with versions and SHA-256 digests for each. torch is left out, with the CUDA libraries that its largest build needs: which build of
torch a machine takes is its own choice, and each has other digests. Needs uv and the network.

licences: writes docs/licences.md from the metadata of what is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "licences.md"
# The requirements and the lock of what `make demo`, `make test` and `make bench` install.
LOCKS = {
    "requirements.txt": "requirements-lock.txt",
    "requirements-test.txt": "requirements-test-lock.txt",
    "requirements-bench.txt": "requirements-bench-lock.txt",
}
OLDEST_PYTHON = "3.11"
OF_TORCH = re.compile(r"torch$|(nvidia|cuda)-")  # torch, and what its builds for cards bring

# Licences that a package needed at run time may have. None asks anything of programs that merely use it.
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD",  # as old metadata have it, without the number of clauses
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "LGPL-3.0-or-later",  # libvips, a shared library that anybody may replace
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "Zlib",
}
# Names of old metadata, and what they are called today.
_SPDX = {
    "apache 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": "BSD",
    "3-clause bsd license": "BSD-3-Clause",
    "gnu lesser general public license v3 or later (lgplv3+)": "LGPL-3.0-or-later",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}


def requirements(name: str) -> list[Requirement]:
    """The requirements of a file, with those of the files that it takes in."""
    found: list[Requirement] = []
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            found += requirements(text[3:].strip())
        elif text:
            found.append(Requirement(text))
    return found


def locked(name: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """The packages of a lock by their canonical names: each requirement, of which there may be several with different markers, and
    its digests."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            words, *digests = re.split(r"\s+--hash=", line.strip())
            requirement = Requirement(words)
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, digests))
    return found


def lock() -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        raise SystemExit("supply_chain.py: uv must be installed: pip install uv")
    for name, out in LOCKS.items():
        command = [uv, "pip", "compile", "-q", "--no-config", "--upgrade", "--universal", "--python-version", OLDEST_PYTHON]
        command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", name]
        asked = {canonicalize_name(one.name) for one in requirements(name)}
        printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        listed = {line.partition("==")[0] for line in printed.splitlines() if "==" in line}
        # Triton is asked for by the tests, and else comes with torch's build for cards.
        left_out = {one for one in listed if OF_TORCH.match(one) or (one == "triton" and one not in asked)}
        command += ["--generate-hashes", *(word for one in sorted(left_out) for word in ("--no-emit-package", one))]
        printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        head = f"# Made of {name} by `make lock`: every version with its digests. torch is not in it; docs/versions.md says why.\n"
        (ROOT / out).write_text(head + printed, encoding="utf-8")
        print(f"{out}: {len(locked(out))} packages")


def needed_at_run_time(name: str = "adabm-kernels") -> set[str]:
    """The canonical names of all packages that one needs here, itself included, without its extras. Libraries that only torch's
    builds for cards bring are left out."""
    found: set[str] = set()
    waiting = [Requirement(name)]
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name)
        if OF_TORCH.match(key) and key != "torch":
            continue
        found.add(key)
        extras = {"", *requirement.extras}
        for text in importlib.metadata.requires(requirement.name) or ():
            inner = Requirement(text)
            if canonicalize_name(inner.name) in found and not inner.extras:
                continue
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    return found


def licence(name: str) -> str:
    """The licence that an installed package states, as an SPDX expression where it can be told."""
    about = importlib.metadata.metadata(name)
    stated = [
        about["License-Expression"],
        *(c.rpartition(":: ")[2] for c in about.get_all("Classifier") or () if c[:7] == "License"),
    ]
    stated.append(about["License"])
    first = next((one for one in stated if one and one != "UNKNOWN" and "\n" not in one), "not stated")
    return _SPDX.get(first.lower(), first)


def refused(expression: str) -> list[str]:
    """The licences of an SPDX expression that ALLOWED does not have. Of an "OR" one is enough."""
    ways = [re.split(r" AND ", way) for way in re.sub(r"[()]", "", expression).split(" OR ")]
    missing = [[one.strip() for one in way if one.strip() not in ALLOWED] for way in ways]
    return min(missing, key=len)


def table(names: Iterable[str]) -> list[str]:
    return ["| package | licence |", "|---|---|", *(f"| {name} | {licence(name)} |" for name in sorted(names))]


def installed() -> set[str]:
    return {canonicalize_name(one.metadata["Name"]) for one in importlib.metadata.distributions()}


def for_tests() -> set[str]:
    """The packages that the tests need beside those of run time, as far as they are installed: what is for other systems is not."""
    return (set(locked(LOCKS["requirements-test.txt"])) & installed()) - needed_at_run_time()


def write_licences() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in (("run time", table(needed_at_run_time() - {"adabm-kernels"})), ("tests", table(for_tests()))):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        text = "\n".join([before + begin, *lines, end + rest.partition(end)[2]])
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("lock", "licences"))
    {"lock": lock, "licences": write_licences}[parser.parse_args().task]()


if __name__ == "__main__":
    main()
