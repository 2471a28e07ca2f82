"""The tail of importance weights as each latent coordinate sees it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..psis import smooth_log_weights
from .draws import GuideDraws

__all__ = ["marginal_shape", "normal_scores"]

_MAX_COORDINATES = 512


def normal_scores(size: int) -> Tensor:
    """What a standard normal has at the ranks of so many draws, ascending, float64."""
    return torch.special.ndtri((torch.arange(size, dtype=torch.float64) + 0.5) / size)


def marginal_shape(
    draws: GuideDraws, log_weights: Tensor, *, tolerance: float
) -> tuple[float, str]:
    r"""Return the largest shape of the tail of :math:`|h(z_i)| \, w` over latent coordinates.

    The weighted mean of a coordinate is as good as the tail of its terms allows, which may be
    heavier than that of the weights: large weights may come with large values. The terms are
    those of :math:`h`, the normal scores of the draws' ranks, as for all that is said of
    coordinates: the same for any monotone change of variable, and finite for heavy tails.

    Args:
        draws: Draws of the guide.
        log_weights: Their raw log weights, shape ``(S,)``.
        tolerance: Spread that rounding explains.

    Returns:
        The shape, ``-inf`` where there is nothing to see, and the site.

    References:
        Vehtari et al. (2024). Pareto smoothed importance sampling. JMLR 25, section 3.
    """
    size = len(log_weights)
    log_scores = normal_scores(size).abs().log()
    latents = {n: v for n, v in draws.values.items() if draws.sites[n].kind == "latent"}
    total = sum(value[0].numel() for value in latents.values())
    stride = math.ceil(max(total, 1) / _MAX_COORDINATES)
    worst = (-math.inf, "")
    for name, value in latents.items():
        for column in value.reshape(size, -1)[:, ::stride].unbind(1):
            ranked = log_weights[column.argsort(stable=True)]
            terms = ranked + log_scores
            shape = smooth_log_weights(terms, tolerance=tolerance)[1]
            if shape > worst[0]:
                worst = (shape, name)
    return worst
