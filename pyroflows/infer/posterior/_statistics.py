"""Moments, quantiles and errors of weighted draws and of chains; in float64, draws lead."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "as_like",
    "autocorrelated_size",
    "flat",
    "weighted_error",
    "weighted_mean",
    "weighted_quantile",
    "weighted_sd",
]


def flat(values: Tensor, weights: Tensor) -> Tensor:
    """One column a coordinate, ``(S, C)``, float64 on the CPU; zero where the weight is zero.

    A draw where the density is no number may itself be none, and counts for nothing.
    """
    columns = values.detach().to("cpu", torch.float64).reshape(len(values), -1)
    return torch.where(weights[:, None] > 0, columns, 0.0)


def as_like(result: Tensor, values: Tensor) -> Tensor:
    """A result on the device of the values and, where these are floating, in their dtype."""
    dtype = values.dtype if values.is_floating_point() else torch.get_default_dtype()
    return result.to(values.device, dtype)


def weighted_mean(columns: Tensor, weights: Tensor) -> Tensor:
    """Means of columns ``(S, C)`` by weights that sum to one, shape ``(C)``."""
    return weights @ columns


def weighted_sd(columns: Tensor, weights: Tensor) -> Tensor:
    r"""Standard deviations, :math:`\sqrt{\sum w (x - m)^2 / (1 - \sum w^2)}`, shape ``(C)``.

    With equal weights the denominator makes it the usual one, of S - 1 degrees of freedom.
    """
    offsets = columns - weighted_mean(columns, weights)
    rest = 1 - weights.square().sum()
    return (weights @ offsets.square() / rest).sqrt()


def weighted_error(columns: Tensor, weights: Tensor) -> Tensor:
    r"""Standard errors of the means by the delta method, :math:`\sqrt{\sum w^2 (x - m)^2}`."""
    offsets = columns - weighted_mean(columns, weights)
    return (weights.square() @ offsets.square()).sqrt()


def weighted_quantile(columns: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    r"""Quantiles of columns ``(S, C)`` at levels ``(Q)``, shape ``(Q, C)``.

    A draw stands at the middle of its step of the distribution function, :math:`\sum_{j<k} w_j
    + w_k / 2`; between draws the quantile is linear, beyond the first and last it is theirs. With
    equal weights this is Hazen's rule. Draws of no weight are left out.
    """
    kept = weights > 0
    ordered, order = columns[kept].sort(dim=0)
    steps = weights[kept][order]
    middles = (steps.cumsum(0) - steps / 2).mT.contiguous()
    wanted = levels.to(middles).expand(len(middles), -1).contiguous()
    above = torch.searchsorted(middles, wanted).clamp(max=len(ordered) - 1)
    below = (above - 1).clamp(min=0)
    low, high = middles.gather(1, below), middles.gather(1, above)
    share = torch.where(high > low, (wanted - low) / (high - low), 1.0).clamp(0.0, 1.0)
    values = ordered.mT
    start, end = values.gather(1, below), values.gather(1, above)
    return (start + share * (end - start)).mT


def autocorrelated_size(chains: Tensor) -> Tensor:
    r"""Effective number of draws for the mean of each column of chains ``(M, N, C)``, ``(C)``.

    .. math:: M N \big/ \big(1 + 2 \sum_t \rho_t\big), \qquad
        \rho_t = 1 - (W - \bar\gamma_t) / \widehat{\mathrm{var}}^+

    with the autocovariances :math:`\gamma_t` averaged over chains, and the variance between
    chains in :math:`\widehat{\mathrm{var}}^+`, so that chains that disagree count for few. The sum
    ends where that of two neighbours is no longer positive, and is made decreasing before.

    References:
        Geyer (1992). Practical Markov chain Monte Carlo. Statistical Science 7.
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021). Rank-normalization, folding, and
        localization: an improved R-hat. Bayesian Analysis 16.
    """
    chains = chains.to(torch.float64)
    num_chains, length = chains.shape[:2]
    total = num_chains * length
    if length < 4:
        return torch.full(chains.shape[2:], math.nan, dtype=torch.float64)
    covariance = _autocovariance(chains)
    within = covariance[:, 0].mean(0) * length / (length - 1)
    spread = within * (length - 1) / length
    if num_chains > 1:
        spread = spread + chains.mean(1).var(0)
    rho = 1 - (within - covariance.mean(0)) / spread
    rho[0] = 1.0
    pairs = rho[: length - length % 2].unflatten(0, (-1, 2)).sum(1)
    # The first pair is kept also where draws repel each other so much that it is not positive.
    is_kept = (pairs > 0).to(torch.int64).cumprod(0).to(torch.bool)
    pairs = torch.where(is_kept, pairs, 0.0).cummin(0).values
    time = (2 * pairs.sum(0) - 1).clamp(min=1 / math.log10(total))
    size = total / time
    return torch.where(spread > 0, size, torch.full_like(size, float(total)))


def _autocovariance(chains: Tensor) -> Tensor:
    """Biased autocovariances over axis 1, by the fast Fourier transform; the shape stays."""
    length = chains.shape[1]
    centered = chains - chains.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centered, n=2 * length, dim=1)
    return torch.fft.irfft(spectrum.abs().square(), n=2 * length, dim=1)[:, :length] / length
