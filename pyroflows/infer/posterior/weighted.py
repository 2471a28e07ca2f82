"""Draws of a guide with importance weights: moments, quantiles, resampling, errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...arguments import check_arguments
from ...guides.prototype import device_of
from ...psis import psis
from .._seeding import seeded
from ..draws import GuideDraws, draw_from_guide
from ..importance import ImportanceDiagnostics, diagnose, rounding_tolerance
from ._sites import with_deterministic
from ._statistics import (
    as_like,
    flat,
    weighted_error,
    weighted_mean,
    weighted_quantile,
    weighted_sd,
)
from ._table import as_table, labels

__all__ = ["PosteriorDraws", "ResampledDraws", "posterior_draws"]

_LEVELS = (0.05, 0.5, 0.95)


@dataclass(frozen=True, eq=False)
class ResampledDraws(Mapping):
    """Draws of equal weight, a mapping of site name to values ``(N, *shape)``.

    Attributes:
        values_by_site: Values by site name.
        indices: Which of the weighted draws each one is, shape ``(N)``.
        num_distinct: How many different draws there are among them.
    """

    values_by_site: dict[str, Tensor] = field(repr=False)
    indices: Tensor = field(repr=False)
    num_distinct: int

    def __getitem__(self, name: str) -> Tensor:
        return self.values_by_site[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_site)

    def __len__(self) -> int:
        return len(self.values_by_site)

    def __str__(self) -> str:
        return (
            f"{len(self.indices)} draws of {', '.join(self)}; {self.num_distinct} of them distinct"
        )


@dataclass(frozen=True, eq=False)
class PosteriorDraws:
    r"""Draws of a guide with Pareto smoothed importance weights. Printed, they are a table.

    With weights :math:`w_s` that sum to one, the mean is :math:`m = \sum w_s x_s` and its Monte
    Carlo standard error, by the delta method, :math:`\sqrt{\sum w_s^2 (x_s - m)^2}`.

    Attributes:
        values: Draws by site name, shape ``(S, *shape)`` each, deterministic sites included.
        log_weights: Smoothed log weights, float64, shape ``(S)``; their exponentials sum to one.
        diagnostics: The verdict on these very draws.
    """

    values: dict[str, Tensor] = field(repr=False)
    log_weights: Tensor = field(repr=False)
    diagnostics: ImportanceDiagnostics

    def mean(self) -> dict[str, Tensor]:
        """Return the weighted means, by site name, in the shape of the site."""
        return self._each(weighted_mean)

    def sd(self) -> dict[str, Tensor]:
        r"""Return standard deviations, :math:`\sqrt{\sum w (x - m)^2 / (1 - \sum w^2)}`."""
        return self._each(weighted_sd)

    def mcse(self) -> dict[str, Tensor]:
        """Return the Monte Carlo standard errors of the means, by the delta method."""
        return self._each(weighted_error)

    def quantile(self, q: float | Sequence[float] | Tensor) -> dict[str, Tensor]:
        r"""Return weighted quantiles, by site name, of shape ``(*q.shape, *shape)``.

        A draw stands at the middle of its step of the distribution function,
        :math:`\sum_{j<k} w_j + w_k / 2`; between draws the quantile is linear, beyond the first
        and the last it is theirs. With equal weights this is Hazen's rule, ``method="hazen"`` of
        NumPy.

        Args:
            q: Probabilities in [0, 1].

        Raises:
            ValueError: If one lies outside.
        """
        levels = torch.as_tensor(q, dtype=torch.float64, device="cpu")
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ValueError(f"PosteriorDraws.quantile expected q in [0, 1], got {q}.")
        weights = self._weights()
        return {
            name: as_like(
                weighted_quantile(flat(value, weights), weights, levels.reshape(-1)), value
            ).reshape((*levels.shape, *value.shape[1:]))
            for name, value in self.values.items()
        }

    def resample(
        self, num_samples: int | None = None, *, seed: int | None = None
    ) -> ResampledDraws:
        r"""Draw by the weights, with equal weights as the outcome.

        Systematic resampling: a draw of weight w comes up :math:`\lfloor N w \rfloor` or
        :math:`\lceil N w \rceil` times, :math:`N w` times on average. The order is random.

        Args:
            num_samples: Number N of draws; as many as there are unless given.
            seed: Seed; the caller's generators are left as they were. None: draw on.

        Returns:
            The draws, a mapping of site name to values, which tells how many are distinct.

        Warns:
            UserWarning: Where the verdict is "do not trust".

        References:
            Kitagawa (1996). Monte Carlo filter and smoother for non-Gaussian nonlinear state
            space models. Journal of Computational and Graphical Statistics 5.
        """
        size = len(self.log_weights) if num_samples is None else num_samples
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"PosteriorDraws.resample expected num_samples to be a positive integer, got "
                f"{num_samples!r}."
            )
        warn_if_untrusted(self.diagnostics, "PosteriorDraws.resample")
        with seeded(seed):
            indices = systematic(self._weights(), size)
        values = {name: value[indices.to(value.device)] for name, value in self.values.items()}
        return ResampledDraws(values, indices, len(indices.unique()))

    def __str__(self) -> str:
        weights = self._weights()
        columns = torch.cat([flat(value, weights) for value in self.values.values()], 1)
        quantiles = weighted_quantile(columns, weights, torch.tensor(_LEVELS, device="cpu"))
        table = as_table(
            labels({name: value.shape[1:] for name, value in self.values.items()}),
            {
                "mean": weighted_mean(columns, weights),
                "mcse": weighted_error(columns, weights),
                "sd": weighted_sd(columns, weights),
                "5 %": quantiles[0],
                "50 %": quantiles[1],
                "95 %": quantiles[2],
            },
        )
        return f"{len(weights)} draws of the guide, weighted\n{table}\n{self.diagnostics}"

    def _weights(self) -> Tensor:
        return self.log_weights.exp()

    def _each(self, statistic: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        weights = self._weights()
        return {
            name: as_like(statistic(flat(value, weights), weights), value).reshape(value.shape[1:])
            for name, value in self.values.items()
        }


def posterior_draws(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    num_samples: int = 10_000,
    seed: int | None = None,
    batch_size: int | None = None,
) -> PosteriorDraws:
    """Draw from a guide and weigh the draws by the model: the posterior, corrected.

    Weighted draws are right wherever their verdict is "usable" or "reweight", see
    :func:`~pyroflows.importance_diagnostics`, and say how right: the Monte Carlo standard error of
    a mean includes what the weights cost.

    Args:
        model: A Pyro model, conditioned on its data.
        guide: An :class:`~pyroflows.AutoFlow`, or any guide whose sites have densities.
        model_args: Positional arguments of both.
        model_kwargs: Keyword arguments of both.
        num_samples: Number of draws S.
        seed: Seed of the draws; the caller's generators are left as they were. None: draw on.
        batch_size: Draws that go through the model together; chosen by size unless given.

    Returns:
        Draws and weights; ``print`` them to read them.

    Raises:
        ValueError: If a plate is subsampled, the guide leaves out a latent, or no draw has a
            finite density.

    Warns:
        UserWarning: Where the verdict on the draws is "do not trust", with the reason.

    References:
        Vehtari et al. (2024). Pareto smoothed importance sampling. JMLR 25.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyroflows as pf
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor(2.0)
        >>> guide = pf.AutoFlow(model, "affine", model_args=(y,))
        >>> draws = pf.posterior_draws(model, guide, model_args=(y,), seed=0)
        >>> abs(draws.mean()["mu"] - 1.0) < 4 * draws.mcse()["mu"]
        tensor(True)
    """
    check_arguments("posterior_draws", model, model_args, model_kwargs, guide)
    draws = draw_from_guide(
        model,
        guide,
        model_args=model_args,
        model_kwargs=model_kwargs,
        num_samples=num_samples,
        seed=seed,
        batch_size=batch_size,
    )
    diagnostics = diagnose(draws)
    log_weights = smoothed_weights(draws, diagnostics, "posterior_draws")
    warn_if_untrusted(diagnostics, "posterior_draws")
    args, kwargs = tuple(model_args), dict(model_kwargs or {})
    device = device_of(guide, args, kwargs)
    values = {name: value.to(device) for name, value in draws.values.items()}
    with seeded(seed):
        values = with_deterministic(model, args, kwargs, draws, values)
    return PosteriorDraws(values, log_weights, diagnostics)


def smoothed_weights(draws: GuideDraws, diagnostics: ImportanceDiagnostics, owner: str) -> Tensor:
    """Return the smoothed log weights of draws, normalised; raise where all are zero."""
    log_weights, _ = psis(diagnostics.log_weights, tolerance=rounding_tolerance(draws))
    if not bool((log_weights > -torch.inf).any()):
        raise ValueError(
            f"{owner}: none of {len(log_weights)} draws of the guide has a finite density under "
            "the model, so there is nothing to weigh: fit the guide to this model and these data "
            "first, or find where the log density overflows."
        )
    return log_weights


def warn_if_untrusted(diagnostics: ImportanceDiagnostics, owner: str) -> None:
    """Warn where the verdict is "do not trust", with its first reason."""
    if diagnostics.verdict == "do not trust":
        warnings.warn(
            f"{owner}: do not trust these draws, nor their weights: {diagnostics.reasons[0]}.",
            stacklevel=3,
        )


def systematic(weights: Tensor, num: int) -> Tensor:
    """Return indices ``(num)`` by systematic resampling of weights that sum to one, shuffled."""
    places = (torch.arange(num, dtype=torch.float64, device="cpu") + _uniform()) / num
    indices = torch.searchsorted(weights.cumsum(0) / weights.sum(), places)
    # The last sum may round to less than one: the draw that is last of those with a weight.
    last = int(weights.nonzero().max())
    return indices.clamp(max=last)[torch.randperm(num, device="cpu")]


def _uniform() -> Tensor:
    return torch.rand((), dtype=torch.float64, device="cpu")
