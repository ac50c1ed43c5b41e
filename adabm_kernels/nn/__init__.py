"""Networks on integer convolutions."""

from .from_simulated import from_simulated
from .network import ConvertedEDSR, ConvertedNetwork, ConvertedRDN, ConvertedSRResNet

__all__ = ["ConvertedEDSR", "ConvertedNetwork", "ConvertedRDN", "ConvertedSRResNet", "from_simulated"]
