"""Calibration by simulation: the ranks of what is known among draws of what is claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..density import FlowDensity
from ..density._points import as_points
from ..supports import check_size

__all__ = ["Calibration", "binomial_tails", "calibrate_density"]

_LEVEL = 0.05  # at which a quantity is flagged, shared among the quantities
_NUM_SIMULATED = 10_000  # sets of uniform ranks
_MOST_BINS = 50  # places where distribution functions are compared
_AT_ONCE = 2_000_000  # numbers drawn together
_OWN = 0x5BC
_SAME = 1 + 1e-9  # what rounding does to equal probabilities


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""Ranks of true values among draws of posteriors, and whether these are uniform.

    Parameters come from the prior, data from the parameters, and draws from the posterior that is
    claimed for the data. Where that posterior is right, the number of its draws below the truth is
    uniform on :math:`0, \dots, L`. The distribution function of the ranks is compared with the
    uniform one at up to 50 places at once: a p-value is the share of sets of uniform ranks whose
    least pointwise tail probability is as small, and the band is that of the same test.

    References:
        | Validating Bayesian Inference Algorithms with Simulation-Based Calibration
          (Talts et al., 2018)
        | https://arxiv.org/abs/1804.06788
        | Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation
          and multiple sample comparison (Säilynoja, Bürkner and Vehtari, 2022)
        | https://doi.org/10.1007/s11222-022-10090-6

    Args:
        ranks: For each quantity, how many draws lie below its true value, shape ``(N,)``.
        num_draws: The number of draws L of each posterior.
        verdicts: What the fit's own diagnostics said of each posterior, where they did.
        failures: Messages of the fits that raised, and are not among the ranks.

    Raises:
        ValueError: If there are no ranks, or ranks that cannot be.

    Example:
        >>> import numpy as np
        >>> ranks = np.random.default_rng(0).integers(0, 100, 500)
        >>> Calibration({"mu": ranks}, 99).is_calibrated
        True
    """

    ranks: Mapping[str, np.ndarray]
    num_draws: int
    verdicts: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ranks = {name: np.asarray(values).reshape(-1) for name, values in self.ranks.items()}
        if self.num_draws < 1 or len({len(values) for values in ranks.values()} - {0}) != 1:
            raise ValueError(
                "Calibration expected ranks of one or more quantities, equally many of each, among "
                f"one draw or more, got { ({n: len(v) for n, v in ranks.items()}) } among "
                f"{self.num_draws}."
            )
        every = np.concatenate(list(ranks.values()))
        if (every != np.round(every)).any() or every.min() < 0 or every.max() > self.num_draws:
            raise ValueError(
                f"Calibration expected ranks from 0 to {self.num_draws}, whole numbers, got "
                f"{every.min()} to {every.max()}."
            )
        object.__setattr__(self, "ranks", {name: r.astype(int) for name, r in ranks.items()})

    @classmethod
    def of_draws(
        cls, draws: Any, truths: Any, *, names: Sequence[str] | None = None, seed: int = 0
    ) -> Calibration:
        """Rank true values among draws.

        Args:
            draws: L draws for each of N data sets, shape ``(L, N, D)``.
            truths: What the data were made from, shape ``(N, D)``.
            names: Of the D quantities.
            seed: Of what breaks ties.

        Raises:
            ValueError: If shapes do not fit, or numbers are not finite.
        """
        draws, truths = (torch.as_tensor(v).detach().cpu().double() for v in (draws, truths))
        if truths.dim() != 2 or draws.dim() != 3 or draws.shape[1:] != truths.shape:
            raise ValueError(
                "Calibration.of_draws expected draws of shape "
                f"(L, {', '.join(map(str, truths.shape))}), got {tuple(draws.shape)}, for truths "
                "of shape (N, D)."
            )
        if not (draws.isfinite().all() and truths.isfinite().all()):
            raise ValueError(
                "Calibration.of_draws: draws or truths are NaN or infinite. Mend what made them: "
                "leaving them out would hide what it did."
            )
        names = _names(names, truths.shape[1])
        below, equal = (draws < truths).sum(0).numpy(), (draws == truths).sum(0).numpy()
        ranks = below + np.random.default_rng(seed).integers(0, equal + 1)
        return cls(dict(zip(names, ranks.T, strict=True)), len(draws))

    @property
    def num_simulations(self) -> int:
        """The number of data sets N."""
        return len(next(iter(self.ranks.values())))

    @cached_property
    def p_values(self) -> dict[str, float]:
        """For each quantity, the share of sets of uniform ranks that are as far from uniform."""
        uniform = self._uniform
        found = {name: uniform.least_tail(self._counts(name)) for name in self.ranks}
        number = 1 + len(uniform.simulated)
        return {
            name: (1 + int((uniform.simulated <= least * _SAME).sum())) / number
            for name, least in found.items()
        }

    @property
    def flagged(self) -> list[str]:
        """The quantities that depart from uniform, at a level of 5 % for all together."""
        return [name for name, p in self.p_values.items() if p * len(self.ranks) < _LEVEL]

    @property
    def is_calibrated(self) -> bool:
        """Whether no quantity is flagged."""
        return not self.flagged

    def coverage(self, prob: float = 0.9) -> dict[str, tuple[float, float]]:
        """How often central intervals hold the truth, each with its standard error.

        Args:
            prob: What they should hold.

        Raises:
            ValueError: If ``prob`` is no probability.
        """
        _check_prob("coverage", prob)
        shares = {name: float((abs(u - 0.5) <= prob / 2).mean()) for name, u in self._units()}
        num = self.num_simulations
        return {  # with one more success and failure, so that none has an error of zero
            name: (share, _binomial_error((share * num + 1) / (num + 2), num))
            for name, share in shares.items()
        }

    def overall_coverage(self, prob: float = 0.9) -> tuple[float, float]:
        """How often central intervals hold the truth, over all quantities, and the standard error.

        Quantities of one simulation go together, so that the error is that of N shares.

        Args:
            prob: What they should hold.

        Raises:
            ValueError: If ``prob`` is no probability.
        """
        _check_prob("overall_coverage", prob)
        held = np.mean([abs(u - 0.5) <= prob / 2 for _, u in self._units()], axis=0)
        num = self.num_simulations
        error = held.std(ddof=1) / np.sqrt(num) if num > 1 else np.inf
        return float(held.mean()), float(error)

    def bias(self) -> dict[str, tuple[float, float]]:
        r"""For each quantity, on which side of the truth draws lie, and a p-value.

        The first number is the mean of :math:`1 - 2u`, from -1 to 1, where u is the share of draws
        below the truth: positive where draws are too high. The p-value is that of ranks as
        asymmetric about their middle, by the largest difference between the distribution functions
        of u and :math:`1 - u`, among uniform ones; a posterior that is merely too narrow keeps them
        symmetric. It is the variational check of single latents that does not ask for the width.

        References:
            Yao, Vehtari, Simpson, Gelman (2018). Yes, but did it work?: evaluating variational
            inference. ICML, section 3.2.
        """
        uniform, found = self._uniform, {}
        drawn = uniform.counts_simulated / self.num_simulations
        against = _asymmetry(drawn)
        for name, unit in self._units():
            own = _asymmetry(self._counts(name)[None] / self.num_simulations)[0]
            p = (1 + int((against >= own / _SAME).sum())) / (1 + len(against))
            found[name] = (float(1 - 2 * unit.mean()), p)
        return found

    def ecdf_difference(
        self, name: str, prob: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The distribution function of scaled ranks less the uniform one, and its band.

        Args:
            name: Of the quantity.
            prob: How often the band holds all of it, if the posterior is right.

        Returns:
            Where (numbers in (0, 1)), the difference, and the lower and upper edge of the band.

        Raises:
            KeyError: If there is no such quantity.
        """
        if name not in self.ranks:
            raise KeyError(f"Calibration: no quantity {name!r}: one of {', '.join(self.ranks)}.")
        uniform, num = self._uniform, self.num_simulations
        least = np.quantile(uniform.simulated, 1 - prob, method="higher")
        inside = 2 * np.minimum(uniform.lower, uniform.upper) >= least / _SAME
        low, high = inside.argmax(1) / num, 1 - inside[:, ::-1].argmax(1) / num
        at = uniform.places
        return at, self._counts(name) / num - at, low - at, high - at

    def __str__(self) -> str:
        lines = [
            f"Calibration over {self.num_simulations} simulations, ranks among "
            f"{self.num_draws} draws",
            f"  {'':<16} {'p':>8}  {'90 % intervals hold':>20}",
        ]
        covered = self.coverage(0.9)
        for name, p in self.p_values.items():
            share, error = (100 * number for number in covered[name])
            word = f"  {self._direction(name)}" if name in self.flagged else ""
            lines.append(f"  {name:<16} {p:8.4f}  {share:10.1f} +- {error:3.1f} %{word}")
        if len(self.ranks) > 1:
            share, error = (100 * number for number in self.overall_coverage(0.9))
            lines.append(f"  {'all of them':<16} {'':8}  {share:10.1f} +- {error:3.1f} %")
        told = "no departure found"
        if self.flagged:
            told = f"not calibrated: {', '.join(self.flagged)}"
        return "\n".join([*lines, f"  {told}", *self._fits_in_words()])

    def _fits_in_words(self) -> list[str]:
        counts = {v: self.verdicts.count(v) for v in dict.fromkeys(self.verdicts) if v}
        lines = [f"  {number} of the fits: {verdict}" for verdict, number in counts.items()]
        if self.failures:
            lines.append(f"  {len(self.failures)} fits raised; the first: {self.failures[0]}")
        return lines

    def _direction(self, name: str) -> str:
        """What is wrong first, in words."""
        num, unit = self.num_simulations, dict(self._units())[name] - 0.5
        shift = unit.mean() * np.sqrt(12 * num)
        spread = (np.square(unit).mean() - 1 / 12) * np.sqrt(180 * num)
        if abs(shift) > abs(spread):
            return "draws too low" if shift > 0 else "draws too high"
        return "draws too narrow" if spread > 0 else "draws too wide"

    def _units(self) -> list[tuple[str, np.ndarray]]:
        """Ranks as numbers in (0, 1), spread so that intervals hold what they should."""
        spread = np.random.default_rng(0).random(self.num_simulations)
        return [(name, (r + spread) / (self.num_draws + 1)) for name, r in self.ranks.items()]

    @property
    def _uniform(self) -> _Uniform:
        return _uniform_ranks(self.num_simulations, self.num_draws)

    def _counts(self, name: str) -> np.ndarray:
        """How many ranks lie before each place."""
        return np.searchsorted(np.sort(self.ranks[name]), self._uniform.edges, side="left")


@dataclass(frozen=True)
class _Uniform:
    """What uniform ranks do at the places where distribution functions are compared."""

    edges: np.ndarray  # ranks at which places end
    places: np.ndarray  # the same as shares
    lower: np.ndarray  # tails of the number of ranks before each place, shape (K, N + 1)
    upper: np.ndarray

    def least_tail(self, counts: np.ndarray) -> np.ndarray:
        """The least two-sided tail probability over the places, for counts ``(..., K)``."""
        place = np.arange(len(self.edges))
        return 2 * np.minimum(self.lower[place, counts], self.upper[place, counts]).min(-1)

    @cached_property
    def counts_simulated(self) -> np.ndarray:
        """How many ranks lie before each place, for many sets of uniform ranks."""
        widths = np.diff(np.concatenate([[0], self.places, [1]]))
        num = self.lower.shape[1] - 1
        drawn = np.random.default_rng(0).multinomial(num, widths, _NUM_SIMULATED)
        return drawn.cumsum(1)[:, :-1]

    @cached_property
    def simulated(self) -> np.ndarray:
        """The least tail probability of each of them."""
        return self.least_tail(self.counts_simulated)


def _asymmetry(shares: np.ndarray) -> np.ndarray:
    """Largest distance between F(u) and 1 - F(1 - u), for shares before places ``(M, K)``."""
    return np.abs(shares + shares[:, ::-1] - 1).max(-1)


def _check_prob(owner: str, prob: float) -> None:
    if not 0 < prob < 1:
        raise ValueError(f"Calibration.{owner} expected prob in (0, 1), got {prob}.")


@lru_cache(maxsize=8)
def _uniform_ranks(num: int, num_draws: int) -> _Uniform:
    bins = min(num_draws + 1, _MOST_BINS)
    edges = np.arange(1, bins) * (num_draws + 1) // bins
    places = edges / (num_draws + 1)
    return _Uniform(edges, places, *binomial_tails(num, places))


def binomial_tails(num: int, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(X <= k) and P(X >= k) of binomials, shape ``(len(probs), num + 1)`` each."""
    count = torch.arange(num + 1, dtype=torch.float64)
    prob = torch.as_tensor(probs, dtype=torch.float64)[:, None]
    ways = -torch.lgamma(count + 1) - torch.lgamma(num - count + 1)
    ways = ways + torch.lgamma(torch.tensor(num + 1.0, dtype=torch.float64))
    mass = (ways + count * prob.log() + (num - count) * torch.log1p(-prob)).exp()
    lower, upper = mass.cumsum(1), mass.flip(1).cumsum(1).flip(1)
    return lower.clamp(max=1).numpy(), upper.clamp(max=1).numpy()


def _binomial_error(share: float, num: int) -> float:
    return float(np.sqrt(share * (1 - share) / num))


def _names(names: Sequence[str] | None, number: int) -> list[str]:
    if names is None:
        return [f"theta[{i}]" for i in range(number)]
    if len(names) != number:
        raise ValueError(f"Calibration expected {number} names, got {len(names)}: {list(names)}.")
    return list(names)


def _own_seed(seed: int) -> int:
    """A seed for draws that are not those of a caller who set the same one before simulating."""
    return int(np.random.SeedSequence([seed, _OWN]).generate_state(1)[0])


@torch.no_grad()
def calibrate_density(
    density: FlowDensity,
    theta: Any,
    context: Any = None,
    *,
    num_draws: int = 199,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Calibration:
    """Rank held-out points among a density's draws given the same covariates.

    With parameters as points and simulated data as covariates this is simulation-based calibration
    of an amortised posterior. Points must not be those that it was fitted to.

    Args:
        density: The density.
        theta: Points, shape ``(N, *event_shape)``: from the prior, if it is a posterior.
        context: Covariates of each, shape ``(N, context_dim)``: the data that it made.
        num_draws: Draws L for each.
        names: Of the coordinates.
        seed: Of the draws.

    Raises:
        TypeError: If data are no floating numbers, or covariates are missing or not wanted.
        ValueError: If data are of the wrong shape, not finite or outside the support.

    Example:
        >>> import torch
        >>> density = FlowDensity(1, "affine")
        >>> calibrate_density(density, 3 * torch.randn(100, 1)).is_calibrated
        False
    """
    check_size("calibrate_density", "num_draws", num_draws, 1)
    theta, context = as_points(density, theta, context, owner="calibrate_density", least=1)
    ranked: list[Tensor] = []
    per_part = max(1, _AT_ONCE // (num_draws * density.event_shape.numel()))
    with torch.random.fork_rng(devices=[theta.device] if theta.is_cuda else []):
        torch.manual_seed(_own_seed(seed))
        for start in range(0, len(theta), per_part):
            rows = slice(start, start + per_part)
            number = len(theta[rows])
            given = density() if context is None else density(context[rows])
            shape = (num_draws, number) if context is None else (num_draws,)
            ranked.append(given.sample(torch.Size(shape)).reshape(num_draws, number, -1).cpu())
    return Calibration.of_draws(torch.cat(ranked, 1), theta.flatten(1), names=names, seed=seed)
