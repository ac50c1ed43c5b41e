"""Allocations that fail anywhere in a pass: the error says so, and the same model is right afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENVIRONMENT

# The address space may grow by a little more each time, until it is enough.
PROGRAM = """
import resource, sys
import numpy as np, torch
import adabm_kernels
from adabm_kernels.commands.common import lacks_memory

torch.set_num_threads(1)
STEP = 512 << 10
path = adabm_kernels.builtin_models()["edsr_x4_w4a4"]
x = torch.randint(0, 256, (1, 3, 64, 80), generator=torch.Generator().manual_seed(0)).float()
picture = x[0].permute(1, 2, 0).byte().numpy()

def passes(work):
    want, failed = work(adabm_kernels.load(path)), 0
    for step in range(200):
        model = adabm_kernels.load(path)  # whose buffers are not made yet
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + step * STEP, resource.RLIM_INFINITY))
        try:
            got, error = work(model), None
        except Exception as caught:
            got, error = None, caught
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if error is not None:
            assert lacks_memory(error), repr(error)
            failed += 1
        assert torch.equal(work(model) if got is None else got, want), f"another result with {step} steps"
        if error is None:
            return failed
    raise AssertionError("it never was enough")

print(passes(lambda model: model(x)), passes(lambda model: torch.from_numpy(np.asarray(adabm_kernels.upscale(picture, model)))))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists() or os.name != "posix", reason="no limits of address space")
def test_want_of_memory_in_a_pass_is_said_and_leaves_the_model_right() -> None:
    # Whatever is large is asked of the system anew each time, not taken from what was freed before.
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=ENVIRONMENT | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(int(count) > 0 for count in done.stdout.split()), "nothing failed, so that nothing was tried"
