"""Networks that compute with integer convolutions."""

from .from_simulated import from_simulated
from .model import ConvertedModel
from .network import ConvertedEDSR, ConvertedNetwork, ConvertedRDN, ConvertedSRResNet

__all__ = ["ConvertedModel", "ConvertedEDSR", "ConvertedNetwork", "ConvertedRDN", "ConvertedSRResNet", "from_simulated"]
