"""Pareto smoothed importance sampling of one vector of log weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["good_pareto_k", "psis"]

_MIN_TAIL = 5
_LOG_TINY = math.log(torch.finfo(torch.float64).tiny)


def psis(log_weights: Tensor, *, tolerance: float = 1e-8) -> tuple[Tensor, float]:
    r"""Smooth the largest importance weights and estimate the shape of their tail.

    The largest :math:`\lceil\min(S/5,\,3\sqrt S)\rceil` of S weights are replaced by the
    expected order statistics of a generalised Pareto distribution fitted to them, whose shape
    :math:`\hat k` tells whether the weights have a usable mean and variance: see
    :func:`good_pareto_k` for the bar.

    The shape is never NaN. It is ``-inf`` where the tail is flat (all weights equal, or ties at the
    top: an exact guide), and ``inf`` where there are too few weights to tell (fewer than five in
    the tail, so always for ``S <= 20``, or when all but a few are zero). In both cases nothing is
    smoothed.

    Args:
        log_weights: log weights up to a constant, shape ``(S,)``. ``-inf`` is a zero weight.
        tolerance: spread of the tail's log weights that counts as rounding error, hence flat.

    Returns:
        The smoothed log weights, float64, shape ``(S,)``, normalised so that their exponentials
        sum to one (all ``-inf`` if every weight was zero), and the shape :math:`\hat k`.

    Raises:
        TypeError: if ``log_weights`` is not a floating point tensor.
        ValueError: if it is not a vector, is empty, or holds NaN or ``+inf``.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto smoothed importance sampling. JMLR 25.
        Zhang, Stephens (2009). A new and efficient estimation method for the generalized Pareto
        distribution. Technometrics 51.

    Example:
        >>> import torch
        >>> from pyroflows.psis import psis
        >>> log_weights, pareto_k = psis(torch.zeros(1000))
        >>> pareto_k
        -inf
        >>> round(log_weights.exp().sum().item(), 6)
        1.0
    """
    smoothed, shape = smooth_log_weights(log_weights, tolerance=tolerance)
    total = smoothed.logsumexp(-1)
    return (smoothed - total if total > -math.inf else smoothed), shape


def good_pareto_k(num_samples: int) -> float:
    r"""Return the largest trustworthy shape for S draws, :math:`\min(1 - 1/\log_{10} S,\, 0.7)`.

    Args:
        num_samples: number of draws S, at least 1. Ten draws or fewer give a bar of zero or less.

    References:
        Vehtari et al. (2024), section 3.2.4.

    Example:
        >>> from pyroflows.psis import good_pareto_k
        >>> good_pareto_k(10_000)
        0.7
    """
    if num_samples <= 1:
        return -math.inf
    return min(1 - 1 / math.log10(num_samples), 0.7)


def pareto_k_error(shape: float, num_samples: int) -> float:
    r"""Return the standard error of a shape fitted to the tail of S log weights.

    .. math:: (1 + k) / \sqrt{M} \cdot M / (M + 10), \qquad M = \min(S / 5,\, 3 \sqrt S)

    The first factor is that of maximum likelihood, the second what the prior of the fit, worth
    ten observations, leaves of it.

    Args:
        shape: The shape; without an error where it is not finite, or below -1/2.
        num_samples: Number of draws S.

    Returns:
        The standard error, or NaN.

    References:
        Smith (1984). Threshold methods for sample extremes. In Statistical Extremes and
        Applications.

    Example:
        >>> from pyroflows.psis import pareto_k_error
        >>> round(pareto_k_error(0.5, 10_000), 3)
        0.084
    """
    num_tail = _tail_length(num_samples)
    if not -0.5 < shape < math.inf:
        return math.nan
    return (1 + shape) / math.sqrt(num_tail) * num_tail / (num_tail + 10)


def smooth_log_weights(log_weights: Tensor, *, tolerance: float = 1e-8) -> tuple[Tensor, float]:
    """Smooth without normalising: :func:`psis` on the scale of the weights given."""
    tail = fit_tail(log_weights, tolerance=tolerance)
    log_weights = log_weights.detach().to(torch.float64)
    if not tail.is_fitted:
        return log_weights, tail.shape
    relative = log_weights - tail.largest
    excess = relative[tail.members].exp() - math.exp(tail.cutoff)
    smoothed = _pareto_order_statistics(len(tail.members), tail.shape, tail.scale, excess)
    # No smoothed weight may exceed the largest raw one.
    smoothed = (smoothed + math.exp(tail.cutoff)).log().clamp(max=0.0)
    return relative.index_copy(0, tail.members, smoothed) + tail.largest, tail.shape


class Tail(NamedTuple):
    """The largest weights, and the generalised Pareto distribution fitted to them.

    Attributes:
        shape: Its shape; ``-inf`` where the tail is flat, ``inf`` where it is too short.
        scale: Its scale, in units of the largest weight; NaN where nothing is fitted.
        cutoff: Log of the largest weight that is not in the tail, less ``largest``.
        largest: The largest log weight.
        members: Where the tail's weights stand, ascending.
    """

    shape: float
    scale: float
    cutoff: float
    largest: float
    members: Tensor

    @property
    def is_fitted(self) -> bool:
        """Whether there is a distribution."""
        return math.isfinite(self.scale)


def fit_tail(log_weights: Tensor, *, tolerance: float = 1e-8) -> Tail:
    """Fit the tail of weights; see :func:`psis` for arguments and errors."""
    _check(log_weights)
    log_weights = log_weights.detach().to(torch.float64)
    largest = float(log_weights.max())
    num_tail = _tail_length(len(log_weights))
    none = torch.empty(0, dtype=torch.long, device=log_weights.device)

    def unfitted(shape: float) -> Tail:
        return Tail(shape, math.nan, math.nan, largest, none)

    if largest == -math.inf or num_tail < _MIN_TAIL:
        return unfitted(math.inf)
    relative = log_weights - largest
    order = relative.argsort(stable=True)
    cutoff = relative[order[-num_tail - 1]].clamp(min=_LOG_TINY)
    # Ties with the cutoff stay in the body, so the tail may be shorter than asked for.
    members = order[-num_tail:]
    members = members[relative[members] > cutoff]
    if -cutoff <= tolerance or len(members) == 0:
        return unfitted(-math.inf)
    if len(members) < _MIN_TAIL:
        return unfitted(math.inf)
    if relative[members[-1]] - relative[members[0]] <= tolerance:
        return unfitted(-math.inf)
    shape, scale = _fit_generalised_pareto(relative[members].exp() - cutoff.exp())
    if not math.isfinite(shape) or not 0 < scale < math.inf:
        return unfitted(math.inf)
    return Tail(shape, scale, float(cutoff), largest, members)


def _check(log_weights: Tensor) -> None:
    if not isinstance(log_weights, Tensor) or not log_weights.is_floating_point():
        found = getattr(log_weights, "dtype", type(log_weights).__name__)
        raise TypeError(f"psis: expected a floating point tensor of log weights, got {found}.")
    if log_weights.dim() != 1 or len(log_weights) == 0:
        raise ValueError(
            "psis: expected log weights of shape (S,) with S >= 1, got "
            f"{tuple(log_weights.shape)}; smooth one vector at a time."
        )
    num_bad = int((log_weights.isnan() | (log_weights == math.inf)).sum())
    if num_bad:
        raise ValueError(
            f"psis: expected log weights that are finite or -inf, got {num_bad} of "
            f"{len(log_weights)} that are NaN or +inf; find where the log density or the guide "
            "overflows, or drop those draws and say so."
        )


def _tail_length(num_samples: int) -> int:
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def _fit_generalised_pareto(excess: Tensor) -> tuple[float, float]:
    """Fit shape and scale to sorted positive excesses ``(n,)``, by Zhang and Stephens.

    The profile posterior mean over a grid; the shape is then drawn towards 0.5 by a prior worth
    ten observations, as in the R package loo.
    """
    n = len(excess)
    num_grid = 30 + math.isqrt(n)
    steps = torch.arange(1, num_grid + 1, dtype=excess.dtype, device=excess.device) - 0.5
    quartile = excess[int(n / 4 + 0.5) - 1]
    grid = (1 - (num_grid / steps).sqrt()) / (3 * quartile) + 1 / excess[-1]
    shapes = torch.log1p(-grid[:, None] * excess).mean(-1)
    profile = n * ((-grid / shapes).log() - shapes - 1)
    grid, profile = grid[profile.isfinite()], profile[profile.isfinite()]
    if len(grid) == 0:
        return math.inf, math.inf
    weights = (profile - profile.logsumexp(-1)).exp()
    keep = weights >= 10 * torch.finfo(weights.dtype).eps
    grid, weights = grid[keep], weights[keep] / weights[keep].sum()
    rate = (grid * weights).sum()
    shape = torch.log1p(-rate * excess).mean()
    scale = -shape / rate
    return float((n * shape + 10 * 0.5) / (n + 10)), float(scale)


def _pareto_order_statistics(n: int, shape: float, scale: float, like: Tensor) -> Tensor:
    """Return the quantiles at (i - 1/2) / n, ascending, shape ``(n,)``."""
    survival = (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n
    log_survival = torch.log1p(-survival)
    if abs(shape) < torch.finfo(like.dtype).eps:
        return -scale * log_survival
    return scale * torch.expm1(-shape * log_survival) / shape
