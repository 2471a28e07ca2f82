"""After the fit: weighted draws, log Z by bridge sampling, chains that start from the guide."""

from .polish import polish
from .polished import Polished
from .weighted import PosteriorDraws, ResampledDraws, posterior_draws

__all__ = ["Polished", "PosteriorDraws", "ResampledDraws", "polish", "posterior_draws"]
