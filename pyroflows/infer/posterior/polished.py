"""What came of polishing: chains, and whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._sites import Site
from ..importance import ImportanceDiagnostics
from ._convergence import MISSING, convergence
from ._statistics import as_like, autocorrelated_size, weighted_mean, weighted_quantile, weighted_sd
from ._table import as_table, labels

__all__ = ["Polished"]

_LEVELS = (0.05, 0.5, 0.95)
# Of many short chains that agree: R-hat is above one by about one over the effective draws of
# half a chain, and the worst of all coordinates counts.
_GOOD_R_HAT = 1.05
_GOOD_ESS = 400


@dataclass(frozen=True, eq=False)
class Polished:
    r"""Chains that started from the draws of a guide. Printed, they are a table.

    Attributes:
        method: ``"hmc"`` or ``"independence"``.
        values: Draws by site name, shape ``(M, N, *shape)`` each for M chains of N draws,
            deterministic sites included.
        unconstrained: The draws on unconstrained coordinates, shape ``(M, N, D)``.
        noise: The draws in the base space of the guide, shape ``(M, N, D)``.
        log_p: Log density of model and data at each draw, on unconstrained coordinates, float64,
            shape ``(M, N)``.
        log_q: That of the guide, likewise.
        acceptance: Probability with which each proposal was accepted, shape ``(M, N)``.
        diverging: Whose energy was off by more than 1000, bool, shape ``(M, N)``.
        nonfinite: Whose proposal had no finite density or gradient, bool, shape ``(M, N)``.
        num_warmup: Draws of each chain that were left out at its start.
        seconds: What the chains took.
        interrupted: Whether there are fewer draws than were asked for.
        guide_diagnostics: What 1,000 draws of the guide said of it.
        sites: What the model showed of its sites.
        step_size: Step size of ``"hmc"``, else None.
        num_leapfrog: Largest number of leapfrog steps of a move, else None.
    """

    method: str
    values: dict[str, Tensor] = field(repr=False)
    unconstrained: Tensor = field(repr=False)
    noise: Tensor = field(repr=False)
    log_p: Tensor = field(repr=False)
    log_q: Tensor = field(repr=False)
    acceptance: Tensor = field(repr=False)
    diverging: Tensor = field(repr=False)
    nonfinite: Tensor = field(repr=False)
    num_warmup: int
    seconds: float
    interrupted: bool
    guide_diagnostics: ImportanceDiagnostics = field(repr=False)
    sites: dict[str, Site] = field(repr=False)
    step_size: float | None = None
    num_leapfrog: int | None = None

    @property
    def num_chains(self) -> int:
        """Number M of chains."""
        return self.log_p.shape[0]

    @property
    def num_samples(self) -> int:
        """Number N of draws of each chain."""
        return self.log_p.shape[1]

    @property
    def num_divergences(self) -> int:
        """How many moves diverged."""
        return int(self.diverging.sum())

    @property
    def num_nonfinite(self) -> int:
        """How many proposals had no finite density or gradient."""
        return int(self.nonfinite.sum())

    def get_samples(self, *, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Return draws by site name, as Pyro's ``MCMC`` does.

        Args:
            group_by_chain: Whether shapes are ``(M, N, *shape)``, not ``(M N, *shape)``.
        """
        if group_by_chain:
            return dict(self.values)
        return {name: value.flatten(0, 1) for name, value in self.values.items()}

    def mean(self) -> dict[str, Tensor]:
        """Return means, by site name."""
        return self._each(lambda x: weighted_mean(x.flatten(0, 1), _equal(x)))

    def sd(self) -> dict[str, Tensor]:
        """Return standard deviations, by site name."""
        return self._each(lambda x: weighted_sd(x.flatten(0, 1), _equal(x)))

    def mcse(self) -> dict[str, Tensor]:
        """Return Monte Carlo standard errors of the means, autocorrelation taken into account."""
        return self._each(_error)

    def quantile(self, q: float | Sequence[float] | Tensor) -> dict[str, Tensor]:
        """Return quantiles, by site name, of shape ``(*q.shape, *shape)``; by Hazen's rule.

        Args:
            q: Probabilities in [0, 1].

        Raises:
            ValueError: If one lies outside.
        """
        levels = torch.as_tensor(q, dtype=torch.float64, device="cpu")
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ValueError(f"Polished.quantile expected q in [0, 1], got {q}.")
        flat = levels.reshape(-1)
        found = self._each(lambda x: weighted_quantile(x.flatten(0, 1), _equal(x), flat), len(flat))
        return {
            name: value.reshape((*levels.shape, *value.shape[1:])) for name, value in found.items()
        }

    def __str__(self) -> str:
        x = torch.cat([_columns(value) for value in self.values.values()], -1)
        flat, weights = x.flatten(0, 1), _equal(x)
        quantiles = weighted_quantile(flat, weights, torch.tensor(_LEVELS, device="cpu"))
        table = {
            "mean": weighted_mean(flat, weights),
            "mcse": _error(x),
            "sd": weighted_sd(flat, weights),
            "5 %": quantiles[0],
            "50 %": quantiles[1],
            "95 %": quantiles[2],
        }
        found = convergence(x)
        if found is not None:
            table |= {"r_hat": found[0], "ess": found[1]}
        names = labels({name: value.shape[2:] for name, value in self.values.items()})
        last = MISSING if found is None else _judged(*found, names)
        return "\n".join([*self._course(), as_table(names, table), last])

    def _course(self) -> list[str]:
        cut = ", interrupted" if self.interrupted else ""
        lines = [
            f"{self.method}: {self.num_chains} chains x {self.num_samples} draws{cut}, after "
            f"{self.num_warmup} of warm-up, in {self.seconds:.1f} s; acceptance "
            f"{float(self.acceptance.mean()):.2f}"
        ]
        if self.step_size is not None:
            lines[0] += f", step size {self.step_size:.2g}, up to {self.num_leapfrog} steps"
        counts = {
            "moves diverged: raise target_accept, or fit the guide better": self.num_divergences,
            "proposals without a finite density were rejected": self.num_nonfinite,
        }
        lines += [f"{count} {what}." for what, count in counts.items() if count]
        if self.method == "independence" and self.guide_diagnostics.verdict == "do not trust":
            reason = self.guide_diagnostics.reasons[0]
            lines.append(f"Proposals miss what the guide misses, and it is not right: {reason}.")
        return lines

    def _each(self, statistic: Callable[[Tensor], Tensor], *lead: int) -> dict[str, Tensor]:
        return {
            name: as_like(statistic(_columns(value)), value).reshape((*lead, *value.shape[2:]))
            for name, value in self.values.items()
        }


def _columns(value: Tensor) -> Tensor:
    """One column a coordinate: ``(M, N, C)``, float64 on the CPU."""
    return value.detach().to("cpu", torch.float64).reshape(*value.shape[:2], -1)


def _equal(x: Tensor) -> Tensor:
    num = x.shape[0] * x.shape[1]
    return torch.full((num,), 1 / num, dtype=torch.float64, device="cpu")


def _error(x: Tensor) -> Tensor:
    return weighted_sd(x.flatten(0, 1), _equal(x)) / autocorrelated_size(x).sqrt()


def _judged(r_hat: Tensor, size: Tensor, names: Sequence[str]) -> str:
    known = r_hat.isfinite()
    if not bool(known.any()):
        return "R-hat is not known: too few draws."
    worst, least = r_hat.nan_to_num(nan=0.0).argmax(), size.nan_to_num(nan=torch.inf).argmin()
    told = (
        f"largest R-hat {float(r_hat[worst]):.3f} ({names[int(worst)]}), smallest effective size "
        f"{float(size[least]):.0f} ({names[int(least)]})"
    )
    if float(r_hat[worst]) < _GOOD_R_HAT and float(size[least]) >= _GOOD_ESS:
        return f"The chains agree: {told}."
    return (
        f"The chains do not agree yet: {told}; bars {_GOOD_R_HAT} and {_GOOD_ESS}. Take more draws "
        "or a longer warm-up, or fit the guide better."
    )
