"""Gaussians fitted to a log density: by the ELBO, by moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from pyro.distributions import MultivariateStudentT
from torch import Tensor

from .slim import Slim

__all__ = [
    "FULL",
    "SPARING",
    "Effort",
    "Start",
    "matched_noise",
    "moments",
    "refine",
    "student_draws",
]

_LONGEST = 7.0  # log of the largest change of a scale that is believed


@dataclass(frozen=True)
class Start:
    """A Gaussian to start from, on unconstrained coordinates, in float64.

    Args:
        loc: Mean, shape ``(D)``.
        scale: Standard deviations, shape ``(D)``.
        scale_tril: Cholesky factor of the covariance, shape ``(D, D)``, where the dimension allows.
        elbo: Estimated evidence lower bound of this Gaussian.
        report: What was done, for a person.
        mode: The mode that its climb led to, shape ``(D)``; ``None`` if that did not end in one.
        modes: The best Gaussian of each mode found, where there are two or more.
        slim: The covariance as scales and directions, where the dimension is too high for a factor.
    """

    loc: Tensor
    scale: Tensor
    scale_tril: Tensor | None
    elbo: float
    report: str
    mode: Tensor | None = None
    modes: tuple[Start, ...] = ()
    slim: Slim | None = None


@dataclass(frozen=True)
class Effort:
    """How many points the density is evaluated at to find a start.

    Args:
        share: One over this many of the usual draws.
        refine_up_to: Largest dimension in which the best Gaussian is looked for.
        max_lost: Climbs that lead to no mode that Gaussians are built along.
        told: What to add to the report.
    """

    share: int = 1
    refine_up_to: int = 64
    max_lost: float = math.inf
    told: str = ""

    def num_noise(self, dim: int) -> int:
        """Draws for the ELBO of a Gaussian: enough for exact second moments where 128 are."""
        return min(max(128 // self.share, 4 * dim), 128)

    @property
    def num_on_path(self) -> int:
        return max(8 // self.share, 4)

    @property
    def num_cover(self) -> int:
        return 2048 // self.share

    def num_refine(self, dim: int) -> int:
        return max(256, 16 * dim) // self.share

    @property
    def num_rounds(self) -> int:
        return 12 // self.share

    @property
    def num_fresh(self) -> int:
        return 1024 // self.share


FULL = Effort()
SPARING = Effort(4, 16, 2, ", from fewer draws, as the model is run for one at a time")


def refine(log_density: Callable[[Tensor], Tensor], start: Start, effort: Effort = FULL) -> Start:
    """Maximise the ELBO of a Gaussian over mean and covariance, with fixed draws, by L-BFGS.

    The joint mode of a hierarchical model can lie far from its mass; the best Gaussian does not.
    The result is kept only if it is better on other draws.

    References:
        | Black Box Variational Inference with a Deterministic Objective (Giordano et al., 2024)
        | https://arxiv.org/abs/2304.05527

    Args:
        log_density: Maps points ``(K, D)`` to log densities ``(K)``.
        start: The Gaussian to start from.
        effort: How many draws, and rounds of ten iterations at most.
    """
    dim = len(start.loc)
    if start.scale_tril is None or dim > effort.refine_up_to:
        return start
    noise = matched_noise(dim, start.loc, effort.num_refine(dim))
    best = _maximise(log_density, start, noise, effort.num_rounds)
    if best is None:
        return start
    loc, tril = best
    generator = torch.Generator().manual_seed(2)
    fresh = torch.randn(effort.num_fresh, dim, generator=generator, dtype=noise.dtype).to(noise)
    old, new = (
        _elbo(log_density, m, t, fresh) for m, t in ((start.loc, start.scale_tril), (loc, tril))
    )
    if not new > old:
        return start
    report = "started at the best Gaussian found from there on"
    scale = tril.square().sum(-1).sqrt()
    return replace(start, loc=loc, scale=scale, scale_tril=tril, elbo=new, report=report)


def _maximise(
    log_density: Callable, start: Start, noise: Tensor, num_rounds: int
) -> tuple[Tensor, Tensor] | None:
    """L-BFGS on shift and factor relative to the start; the best finite point."""
    dim = len(start.loc)
    shift = torch.zeros_like(start.loc, requires_grad=True)
    factor = torch.zeros_like(start.scale_tril, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [shift, factor], max_iter=10, history_size=20, line_search_fn="strong_wolfe"
    )

    def gaussian() -> tuple[Tensor, Tensor]:
        inner = factor.tril(-1) + factor.diagonal().exp().diag()
        return start.loc + start.scale_tril @ shift, start.scale_tril @ inner

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            loc, tril = gaussian()
            value = -log_density(loc + noise @ tril.mT).mean() - factor.diagonal().sum()
        if not torch.isfinite(value):
            return torch.full_like(value, math.inf)
        value.backward()
        return value

    best, kept = math.inf, None
    for _ in range(num_rounds):
        try:
            optimizer.step(loss)
            value = loss().item()
        except (RuntimeError, ValueError):  # the model refused a point of the line search
            break
        if not value < best - 1e-3 * dim**0.5 * (kept is not None):
            break
        if not factor.diagonal().abs().max() < _LONGEST:  # flat that way: there is no best
            break
        best, kept = value, tuple(t.detach().clone() for t in gaussian())
    return kept


def _elbo(log_density: Callable, loc: Tensor, tril: Tensor, noise: Tensor) -> float:
    with torch.no_grad():
        mean = log_density(loc + noise @ tril.mT).mean()
    entropy = tril.diagonal().log().sum() + 0.5 * len(loc) * (1 + math.log(2 * math.pi))
    return (mean + entropy).item()


def matched_noise(dim: int, like: Tensor, number: int) -> Tensor:
    """Standard normal draws, the same at every call, with exact first and second moments.

    So the ELBO of a Gaussian at a quadratic density is exact.
    """
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(number // 2, dim, generator=generator, dtype=torch.float64)
    if 2 * dim <= len(half):
        factor = torch.linalg.cholesky(half.mT @ half / len(half))
        half = torch.linalg.solve_triangular(factor.mT, half, upper=True, left=False)
    else:
        half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half]).to(like)


def student_draws(
    parts: list[tuple[Tensor, Tensor]], generator: torch.Generator, num_draws: int
) -> tuple[Tensor, Tensor]:
    """Draws from each of some Student-t's, and the log density of each draw under each."""
    df, like = 5.0, parts[0][0]
    shape = (num_draws, len(like))
    draws = []
    for loc, tril in parts:
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        chi2 = torch.randn(num_draws, int(df), generator=generator, dtype=torch.float64)
        noise = normal * (df / chi2.square().sum(-1, keepdim=True)).sqrt()
        draws.append(loc + noise.to(like) @ tril.mT)
    joined = torch.cat(draws)
    logs = [MultivariateStudentT(df, loc, tril).log_prob(joined) for loc, tril in parts]
    return joined, torch.stack(logs, dim=-1)


def moments(draws: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and Cholesky factor of the covariance of weighted draws."""
    loc = weights @ draws
    upper = torch.linalg.qr((draws - loc) * weights.sqrt()[:, None]).R
    return loc, upper.mT * torch.sign(upper.diagonal())
