"""Small networks for tests, and the setting in which they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from adabm_kernels.networks.dncnn import DnCNNSpec
from adabm_kernels.networks.edsr import EDSR, EDSRSpec
from adabm_kernels.networks.float_network import float_network
from adabm_kernels.networks.rdn import RDN, RDNSpec
from adabm_kernels.networks.srresnet import SRResNet, SRResNetSpec
from adabm_kernels.networks.srvgg import SRVGGSpec
from adabm_kernels.networks.vdsr import VDSRSpec


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sets torch to one thread: more gain little on networks this small, and lose much beside other work on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_edsr(seed=0, **spec):
    """A random EDSR x2 with 2 blocks of 8 channels. spec: hyper-parameters that differ from these."""
    torch.manual_seed(seed)
    return EDSR(EDSRSpec(**{"scale": 2, "blocks": 2, "channels": 8} | spec)).eval()


def repeating_edsr(seed=0, **spec):
    """A `small_edsr` that repeats every pixel and adds a thousandth of random features, so that it can pass for a trained
    network."""
    edsr = small_edsr(seed, **spec)
    with torch.no_grad():
        for parameter in edsr.parameters():
            parameter.mul_(1e-3)
        convs = [edsr.head[0], *(m for m in edsr.tail.modules() if isinstance(m, torch.nn.Conv2d))]
        for conv in convs:
            repeats = conv.out_channels // conv.in_channels if conv.out_channels > 3 and conv.in_channels > 3 else 1
            for colour in range(3):
                conv.weight[colour * repeats : (colour + 1) * repeats, colour, 1, 1] = 1
    return edsr


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "edsr": lambda: small_edsr(blocks=1),
    "rdn": lambda: RDN(RDNSpec(scale=2, blocks=2, layers=2, channels=8, growth=4)).eval(),
    "srresnet": lambda: SRResNet(SRResNetSpec(scale=2, blocks=1, channels=8)).eval(),
    "srvgg": lambda: float_network(SRVGGSpec(scale=2, layers=1, channels=8)),
    "vdsr": lambda: float_network(VDSRSpec(scale=2, layers=1, channels=8)),
    "dncnn": lambda: float_network(DnCNNSpec(scale=1, layers=1, channels=8)),
}


def images(*size: int) -> torch.Tensor:
    """Noise in 0..255 that is the same for the same size."""
    return torch.rand(*size, generator=torch.Generator().manual_seed(0)) * 255


def noise(count, height=16, width=16, seed=0):
    """`count` images [1, 3, height, width] in 0..255, each with more contrast than the one before."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 3, height, width, generator=generator) - 0.5
    return [127 + 250 * (i + 1) / count * image for i, image in enumerate(images)]


def same(a, b):
    """Tells whether two state dicts are equal."""
    return all(torch.equal(value, b[key]) for key, value in a.items()) and a.keys() == b.keys()


class OnOtherDevice(torch.Tensor):
    """A tensor that claims to be on a device which this machine does not have."""

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> OnOtherDevice:
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device="xpu")

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        raise NotImplementedError(func)


def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torch.empty give garbage from now on, so that elements which a kernel does not write show."""
    plain_empty = torch.empty

    def empty(*size: Any, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
        made = plain_empty(*size, dtype=dtype, **options)
        poison = {torch.uint8: 171, torch.int16: -23456, torch.int32: -987654, torch.float32: -987654.0}.get(dtype)
        return made if poison is None else made.fill_(poison)

    monkeypatch.setattr(torch, "empty", empty)
