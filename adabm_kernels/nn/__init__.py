"""Networks on integer convolutions."""

from .edsr import ConvertedEDSR
from .from_simulated import from_simulated
from .network import ConvertedNetwork
from .rdn import ConvertedRDN
from .srresnet import ConvertedSRResNet

__all__ = ["ConvertedEDSR", "ConvertedNetwork", "ConvertedRDN", "ConvertedSRResNet", "from_simulated"]
