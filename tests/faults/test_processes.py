"""Whole networks give the same pixels however they are computed, and processes with a pool of threads end and fork."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from command_line import ENVIRONMENT, HELPERS
from problems import runnable_isas
from small import noise, one_thread, small_edsr  # noqa: F401

from adabm_kernels import ConvertConfig, convert_model, native, upscale

needs_cpu = pytest.mark.skipif(bool(native.why_missing("cpu")), reason="the CPU library is not built")


@needs_cpu
def test_instruction_sets_threads_and_windows_give_the_same_pixels() -> None:
    """With the bits given, which each window would else choose for itself."""
    rows = np.random.default_rng(1).integers(0, 256, (37, 50, 3), np.uint8)
    network, made = small_edsr(), {}
    for isa in runnable_isas():
        with native.force_isa(isa):
            model = convert_model(network, calibration=noise(2), config=ConvertConfig(steps=0))  # its tiles are those of the set
            for threads, tile in itertools.product((1, 3), (0, 16)):
                made[isa, threads, tile] = upscale(rows, model, bits=4, threads=threads, tile=tile)
    want = upscale(rows, model, bits=4, backend="reference", tile=0)
    assert len(made) >= 4 and {way for way, got in made.items() if not np.array_equal(got, want)} == set()


_POOL = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
import torch
from small import noise, small_edsr
from adabm_kernels import ConvertConfig, convert_model

torch.set_num_threads(1)
model = convert_model(small_edsr(blocks=1), calibration=noise(2), config=ConvertConfig(steps=0))
model.set_threads(4)
x = noise(1, 64, 64)[0]
want = model(x)
tasks = lambda: len(os.listdir("/proc/self/task"))
assert tasks() >= 4, "the pool runs"
for generation in range(3):  # a child, its child and the child of that: each computes with a pool of its own
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0 and torch.equal(model(x), want), (generation, status)
        sys.exit(0)  # with its pool running
    assert tasks() == 1, "a fork has no threads"
    assert torch.equal(model(x), want)
"""


@needs_cpu
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_pool_survives_forks_of_forks_and_ends_with_its_process() -> None:
    done = subprocess.run([sys.executable, "-c", _POOL, HELPERS], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
