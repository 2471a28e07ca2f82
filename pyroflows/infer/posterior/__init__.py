"""After the fit: weighted draws, log Z by bridge sampling, chains that start from the guide."""

from .bridge import BridgeEstimate, bridge_log_z
from .polish import polish
from .polished import Polished
from .weighted import PosteriorDraws, ResampledDraws, posterior_draws

__all__ = [
    "BridgeEstimate",
    "Polished",
    "PosteriorDraws",
    "ResampledDraws",
    "bridge_log_z",
    "polish",
    "posterior_draws",
]
