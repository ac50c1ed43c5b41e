"""Small known networks with random weights, which readers of other formats are to recognise."""

from __future__ import annotations

import torch
from torch import nn

from adabm_kernels.graph.module import GraphModule
from adabm_kernels.importers.making import Imported
from adabm_kernels.networks.detect import adabm_name
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.float_network import float_network
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.networks.spec import NetworkSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.networks.srvgg import SRVGGSpec

SPECS: dict[str, NetworkSpec] = {
    "edsr": EDSRSpec(2, 2, 8),
    "edsr_scaled": EDSRSpec(4, 1, 8, res_scale=0.1),
    "edsr_single": EDSRSpec(3, 1, 8, mean_shift=False, tail="single"),
    "rdn": RDNSpec(4, 2, 3, 4, 8),
    "rrdb": RRDBSpec(4, 1, 8, 4),
    "srvgg": SRVGGSpec(4, 2, 8),
    "srvgg_x1": SRVGGSpec(1, 1, 8),
    "srresnet": SRResNetSpec(2, 1, 8),
    "srresnet_unit": SRResNetSpec(4, 1, 8, bias=True, slopes=8, unit_range=True),
}


def network_of(spec: NetworkSpec, seed: int = 0) -> nn.Module:
    """The float network with random weights, slopes on both sides of zero, and BatchNorms that are not the identity."""
    torch.manual_seed(seed)
    network = float_network(spec)
    for layer in network.modules():
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, -0.3, 0.5)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.running_mean, -1, 1)
    return network


def graph_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the keys of the graph of its specification."""
    return {adabm_name(key): value for key, value in network.state_dict().items()}


class Wrapped(nn.Module):
    """A network as a part of another module, because scripts of torch have attributes whose names are also names of its parts."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def computed(imported: Imported, x: torch.Tensor) -> torch.Tensor:
    """The output of a network that was imported."""
    module = GraphModule(imported.graph)
    module.load_state_dict(imported.state)
    with torch.no_grad():
        return module.eval()(x)
