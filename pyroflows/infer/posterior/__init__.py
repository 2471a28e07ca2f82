"""After the fit: weighted draws, log Z by bridge sampling, chains that start from the guide."""

from .weighted import PosteriorDraws, ResampledDraws, posterior_draws

__all__ = ["PosteriorDraws", "ResampledDraws", "posterior_draws"]
