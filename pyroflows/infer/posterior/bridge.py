"""Log evidence by bridge sampling between a guide and draws of the posterior."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from ...arguments import check_arguments
from .._flow_draws import finite_or_zero
from .._seeding import seeded
from ..importance import ImportanceDiagnostics
from ._base_space import BaseSpace, require_flow
from ._statistics import autocorrelated_size
from .polish import look_at, polish
from .polished import Polished

__all__ = ["BridgeEstimate", "bridge_log_z", "iterate_bridge"]

_TOLERANCE = 1e-10
_MAX_ITERATIONS = 1000
_POINTS_COMPARED = 16


@dataclass(frozen=True, eq=False)
class BridgeEstimate:
    """Log evidence by bridge sampling, beside that by importance sampling.

    Attributes:
        log_z: Log evidence, in nats.
        log_z_se: Its standard error, with that of rounding.
        num_iterations: Iterations until the bridge no longer changed.
        psis_log_z: Log evidence by Pareto smoothed importance sampling, of 1,000 draws.
        psis_log_z_se: The standard error of that.
        num_guide_draws: Draws of the guide on one side of the bridge.
        num_effective: Draws of the posterior on its other side, autocorrelation discounted.
        chains: These draws.
    """

    log_z: float
    log_z_se: float
    num_iterations: int
    psis_log_z: float
    psis_log_z_se: float
    num_guide_draws: int
    num_effective: float
    chains: Polished = field(repr=False)

    def __str__(self) -> str:
        return (
            f"log Z by bridge sampling     {self.log_z:.4f} ± {self.log_z_se:.2g} "
            f"({self.num_iterations} iterations)\n"
            f"log Z by importance sampling {self.psis_log_z:.4f} ± {self.psis_log_z_se:.2g}\n"
            f"from {self.num_guide_draws} draws of the guide and {self.chains.log_p.numel()} of "
            f"the posterior, worth {self.num_effective:.0f}"
        )


def bridge_log_z(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    chains: Polished | None = None,
    num_guide_draws: int | None = None,
    seed: int | None = None,
    progress_bar: bool = True,
) -> BridgeEstimate:
    r"""Estimate log Z from draws of the guide and of the posterior together.

    The optimal bridge is the fixed point of

    .. math:: \hat Z = \frac{\frac{1}{N_2} \sum_j \tilde w_j / (s_1 \tilde w_j + s_2 \hat Z)}
        {\frac{1}{N_1} \sum_i 1 / (s_1 w_i + s_2 \hat Z)}, \qquad
        s_k = N_k / (N_1 + N_2)

    with weights :math:`w = p(x, z) / q(z)` of :math:`N_1` effective draws of the posterior and
    :math:`\tilde w` of :math:`N_2` of the guide. Its error stays finite where that of importance
    sampling is not: a tail that the guide lacks is seen by the draws of the posterior. The
    standard error takes their autocorrelation into account, and chains that disagree.

    Args:
        model: The model that the guide was fitted to.
        guide: An :class:`~pyroflows.AutoFlow`.
        model_args: Positional arguments of both.
        model_kwargs: Keyword arguments of both.
        chains: Draws of the posterior, by :func:`~pyroflows.polish` with the same model, guide and
            data; made here by its defaults unless given.
        num_guide_draws: Draws of the guide; as many as of the posterior unless given.
        seed: Seed; the caller's generators are left as they were. None: draw on.
        progress_bar: Whether to show one while chains are made.

    Returns:
        The estimate; ``print`` it.

    Raises:
        TypeError: If the guide is not an ``AutoFlow``, or ``chains`` are not of ``polish``.
        ValueError: If the chains are of another model, guide or data, or a plate is subsampled.

    Warns:
        UserWarning: Where the iteration did not converge, or the estimates disagree.

    References:
        Meng, Wong (1996). Simulating ratios of normalizing constants via a simple identity.
        Statistica Sinica 6.
        Frühwirth-Schnatter (2004). Estimating marginal likelihoods for mixture and Markov
        switching models using bridge sampling techniques. Econometrics Journal 7.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyroflows as pf
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor(2.0)
        >>> guide = pf.AutoFlow(model, "affine", model_args=(y,))
        >>> chains = pf.polish(model, guide, model_args=(y,), num_samples=50, seed=0,
        ...                    progress_bar=False)
        >>> found = pf.bridge_log_z(model, guide, model_args=(y,), chains=chains, seed=0)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(y)
        >>> abs(found.log_z - float(exact)) < 0.001
        True
    """
    check_arguments("bridge_log_z", model, model_args, model_kwargs, guide)
    require_flow(guide, "bridge_log_z")
    _check(chains, num_guide_draws)
    args, kwargs = tuple(model_args), dict(model_kwargs or {})
    with _seeded_apart(seed), pyro.validation_enabled(False):
        _, diagnostics, space = look_at(model, guide, args, kwargs, "bridge_log_z")
        if chains is None:
            data = {"model_args": args, "model_kwargs": kwargs}
            chains = polish(model, guide, **data, progress_bar=progress_bar)
        _check_same(space, chains)
        num = num_guide_draws or chains.log_p.numel()
        _, log_p, log_q = space.weigh(space.draw(num))
    estimate = _estimate(chains, finite_or_zero(log_p - log_q), diagnostics)
    _warn(estimate)
    return estimate


@contextmanager
def _seeded_apart(seed: int | None) -> Iterator[None]:
    """Seed other than chains of the same seed, whose proposals would be the bridge's own draws."""
    if seed is None:
        yield
        return
    with seeded(seed):
        other = int(torch.randint(2**31 - 1, (), device="cpu"))
    with seeded(other):
        yield


def _check(chains: Polished | None, num_guide_draws: int | None) -> None:
    if chains is not None and not isinstance(chains, Polished):
        raise TypeError(
            f"bridge_log_z expected chains of polish, got {type(chains).__name__}: leave them out "
            "to have them made."
        )
    num = 1 if num_guide_draws is None else num_guide_draws
    if isinstance(num, bool) or not isinstance(num, int) or num < 1:
        raise ValueError(
            f"bridge_log_z expected num_guide_draws to be an int >= 1, got {num_guide_draws!r}."
        )


def _check_same(space: BaseSpace, chains: Polished) -> None:
    """Raise unless the weights of some draws come out as they did when chains were made."""
    noise = chains.noise[:, -1][:_POINTS_COMPARED]
    known = (chains.log_p - chains.log_q)[:, -1][:_POINTS_COMPARED]
    if noise.shape[-1] == space.latents.dim:
        _, log_p, log_q = space.weigh(noise)
        eps = max(torch.finfo(noise.dtype).eps, torch.finfo(torch.float32).eps)
        tolerance = 1e3 * eps * (1 + float(log_p.abs().max()))
        # A density as narrow as its place is rounded may jump at single points.
        if bool((log_p - log_q - known).abs().median() < tolerance):
            return
    raise ValueError(
        "bridge_log_z: the chains are of another model, guide or data, as their draws have other "
        "weights now: polish this guide as it is and pass these chains, or leave them out."
    )


def _estimate(
    chains: Polished, guide_side: Tensor, diagnostics: ImportanceDiagnostics
) -> BridgeEstimate:
    posterior_side = chains.log_p - chains.log_q
    start = diagnostics.log_z
    size = float(posterior_side.numel())
    # First as if draws were independent, then for as many as they are worth.
    for _ in range(2):
        log_z, count = iterate_bridge(posterior_side.flatten(), guide_side, size, start)
        size, error = _error(posterior_side, guide_side, size, log_z)
        start = log_z
    return BridgeEstimate(
        log_z=log_z,
        log_z_se=math.hypot(error, diagnostics.rounding) if count < _MAX_ITERATIONS else math.inf,
        num_iterations=count,
        psis_log_z=diagnostics.log_z,
        psis_log_z_se=diagnostics.log_z_se,
        num_guide_draws=len(guide_side),
        num_effective=size,
        chains=chains,
    )


def iterate_bridge(
    posterior_side: Tensor, guide_side: Tensor, size: float, start: float
) -> tuple[float, int]:
    """Return the fixed point of the optimal bridge, log Z, and the iterations it took.

    Args:
        posterior_side: Log weights of draws of the posterior, float64, shape ``(N1)``.
        guide_side: Log weights of draws of the guide, float64, shape ``(N2)``.
        size: Number of independent draws that those of the posterior are worth.
        start: Where to start.
    """
    log_s1, log_s2 = _log_shares(size, len(guide_side))
    log_z = start if math.isfinite(start) else float(posterior_side.median())
    for count in range(1, _MAX_ITERATIONS + 1):
        below = torch.tensor(log_s2 + log_z, dtype=torch.float64, device="cpu")
        upper = guide_side - torch.logaddexp(log_s1 + guide_side, below)
        lower = -torch.logaddexp(log_s1 + posterior_side, below)
        new = float(_log_mean(upper) - _log_mean(lower))
        if abs(new - log_z) <= _TOLERANCE * (1 + abs(new)):
            return new, count
        log_z = new
    return log_z, _MAX_ITERATIONS


def _error(
    posterior_side: Tensor, guide_side: Tensor, size: float, log_z: float
) -> tuple[float, float]:
    r"""Return what the posterior's draws are worth, and the standard error of log Z.

    .. math:: \frac{1}{N_2} \frac{V_q[f_1]}{E_q[f_1]^2} +
        \frac{\rho}{N_1} \frac{V_p[f_2]}{E_p[f_2]^2}, \qquad
        f_1 = \frac{p}{s_1 p + s_2 q}, \quad f_2 = \frac{q}{s_1 p + s_2 q}

    with the normalised posterior p and the time of autocorrelation :math:`\rho` of the second.
    """
    log_s1, log_s2 = _log_shares(size, len(guide_side))
    own, other = guide_side - log_z, posterior_side - log_z
    level = torch.tensor(log_s2, dtype=torch.float64, device="cpu")
    of_guide = (own - torch.logaddexp(log_s1 + own, level)).exp()
    of_posterior = (-torch.logaddexp(log_s1 + other, level)).exp()
    first = float(of_guide.var() / of_guide.mean().square()) / len(of_guide)
    worth = float(autocorrelated_size(of_posterior[..., None])[0])
    spread = of_posterior.flatten().var() / of_posterior.mean().square()
    return worth, math.sqrt(first + float(spread) / worth)


def _log_shares(size: float, num_guide_draws: int) -> tuple[float, float]:
    total = size + num_guide_draws
    return math.log(size / total), math.log(num_guide_draws / total)


def _log_mean(logs: Tensor) -> Tensor:
    return logs.logsumexp(0) - math.log(len(logs))


def _warn(estimate: BridgeEstimate) -> None:
    if not math.isfinite(estimate.log_z_se):
        warnings.warn(
            f"bridge_log_z: no convergence in {_MAX_ITERATIONS} iterations, so guide and posterior "
            "hardly overlap: fit the guide better.",
            stacklevel=3,
        )
        return
    apart = abs(estimate.log_z - estimate.psis_log_z)
    error = math.hypot(estimate.log_z_se, estimate.psis_log_z_se)
    if not apart < 5 * error + 0.01:
        warnings.warn(
            f"bridge_log_z: log Z is {estimate.log_z:.4f} ± {estimate.log_z_se:.2g} by bridge "
            f"sampling and {estimate.psis_log_z:.4f} ± {estimate.psis_log_z_se:.2g} by importance "
            "sampling: one of them misses a part of the posterior. Look at the verdict on the "
            "guide and at R-hat of the chains, and fit the guide better.",
            stacklevel=3,
        )
