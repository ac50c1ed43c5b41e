"""The probes of a card (benchmarks/gpu/probes.py), their kernels executed on the CPU: what they call right is right."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cuda_library import CSRC, FLAGS, HOST, ROOT, driver, host_library
from host_card import HostCard

probes = pytest.importorskip("probes", reason="benchmarks are not beside the tests")
HOPPER = {"major": 9, "shared_limit": 227 << 10}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> probes.Library:
    """The probes beside what they need of the host runtime. Built anew: it takes seconds."""
    objects = host_library().path.parent
    target = tmp_path_factory.mktemp("probes") / "libadabm_probe_host.so"
    includes = [f"-I{path}" for path in (HOST / "include", HOST, CSRC, CSRC / "include", ROOT / "benchmarks" / "gpu")]
    sources = ["-x", "c++", *map(str, sorted((ROOT / "benchmarks" / "gpu").glob("probe_*.cu")))]
    linked = ["-x", "none", *(str(path) for path in sorted(objects.glob("*.o")) if not path.stem.startswith("broken"))]
    cxx = shutil.which("g++") or shutil.which("clang++")
    done = subprocess.run([cxx, *FLAGS, *includes, "-shared", "-o", str(target), *sources, *linked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return probes.Library(target)


@pytest.mark.parametrize("shared_left, zero_strides", [(0, 0), (1, 0), (1, 1)])
def test_products_are_what_descriptors_mean(library: probes.Library, shared_left: int, zero_strides: int) -> None:
    with driver(**HOPPER):
        answers = list(probes.ask_descriptors(library, HostCard(checked=False), 1, shared_left, zero_strides, rounds=1))
    assert [answer["unit"] for answer in answers] == list(range(probes.UNITS))
    assert all(answer["wrong"] == 0 and answer["of"] == 64 * 128 for answer in answers)


def test_a_wrong_product_is_told(library: probes.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a card that begins only at multiples of 128 bytes."""
    right = probes.wanted
    monkeypatch.setattr(probes, "wanted", lambda b, a, unit, zero_strides: right(b, a, unit // 8 * 8, zero_strides))
    with driver(**HOPPER):
        wrong = [answer["wrong"] for answer in probes.ask_descriptors(library, HostCard(checked=False), 1, 0, 0, rounds=1)]
    assert [count > 0 for count in wrong] == [unit % 8 != 0 for unit in range(probes.UNITS)]


def test_what_is_wanted_of_a_product() -> None:
    """Of matrices with one 1 each."""
    right, left = np.zeros(probes.RIGHT_BYTES, np.uint8), np.zeros((2, 64, 16), np.int8)
    left[1, 40, 5] = -3  # row 40, depth 21
    right[2 * 16 + probes.HALF_BYTES + 3 * probes.GROUP_BYTES + 6 * 16 + 5] = 2  # column 30, depth 21, from unit 2 on
    sums = probes.wanted(right, left, 2, False)
    assert sums[40, 30] == -6 * probes.PRODUCTS_OF_ROUND and np.count_nonzero(sums) == 1
    assert not probes.wanted(right, left, 2, True).any()  # of which the left one's first eight rows are nothing


def test_the_fence_and_the_rates_are_asked(library: probes.Library) -> None:
    with driver(**HOPPER):
        fence = list(probes.ask_fence(library, HostCard(checked=False), 1, rounds=2))
        rates = list(probes.ask_rates(library, HostCard(checked=False), 1, 9, rounds=10))
    assert [answer["copies"] for answer in fence] == [0, 1, 5, 20]
    assert [rate["products"] for rate in rates] == ["mma 8 bits", "mma 4 bits", "wgmma 8 bits"]
    assert all(rate["macs_per_second"] > 0 for rate in rates)
    with driver(major=8):
        assert len(list(probes.ask_rates(library, HostCard(checked=False), 1, 8, rounds=1))) == 2


def test_what_a_launch_fails_with_is_said(library: probes.Library) -> None:
    args = probes.WarpProducts(bits=3, rounds=1, blocks=1)
    with pytest.raises(RuntimeError, match="adabm_probe_warp_products_cuda: bits must be 4 or 8, got 3"):
        library.call("adabm_probe_warp_products_cuda", args)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_library_for_a_card_is_built(tmp_path: Path) -> None:
    target = tmp_path / "carried" / "libadabm_probe.so"
    probes.build(target)
    assert {name for name in probes.ENTRIES if hasattr(probes.Library(target)._dll, name)} == set(probes.ENTRIES)


def test_without_nvcc_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="probes: needs nvcc on PATH"):
        probes.build(tmp_path / "libadabm_probe.so")
