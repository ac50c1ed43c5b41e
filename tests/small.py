"""Small networks for tests, and the setting to run them in."""

from __future__ import annotations

import pytest
import torch

from adabm_kernels.networks.edsr import EDSR, EDSRSpec


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads gain little on networks this small, and lose a lot beside other work on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_edsr(seed=0, **spec):
    """A random EDSR x2 with 2 blocks of 8 channels, or as `spec` says."""
    torch.manual_seed(seed)
    return EDSR(EDSRSpec(**{"scale": 2, "blocks": 2, "channels": 8} | spec)).eval()
