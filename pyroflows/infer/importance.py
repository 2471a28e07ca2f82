"""How far to trust a guide: importance weights of its draws, judged and put in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..arguments import check_arguments
from ..psis import good_pareto_k, pareto_k_error, smooth_log_weights
from ._marginal import marginal_shape
from ._verdict import Moved, judge, reasons_of_modes
from .draws import GuideDraws, draw_from_guide

__all__ = ["ImportanceDiagnostics", "diagnose", "importance_diagnostics", "rounding_tolerance"]

_MAX_ROUNDING = 1e-3
_NEARLY_ALL = 0.99  # of the posterior in modes missed: the guide is at none of them yet

_ADVICE = {
    "usable": "Use the draws as they are. No draw can tell of a mode that neither the guide nor "
    "its start ever visited: where several are possible, fit again from other starts.",
    "reweight": "Use the draws with their importance weights (log_weights), or fit longer or "
    "with a richer flow until they are usable as they are.",
    "do not trust": "Use neither draws nor weights. Fit longer or with a richer flow, "
    "reparameterise the model, or check that its posterior is proper.",
}
_ADVICE_ON_MODES = (
    "Use neither draws nor weights: they leave out a part of the posterior, and fitting longer "
    "does not bring it back. Fit one guide for each mode, its start the mode's value of each site, "
    "init_loc_fn=init_to_value(values={...}), here {%s}, and weigh the guides by exp(log Z). "
    "The verdict on each then covers its own mode only."
)
_ADVICE_BESIDES = " For the other reasons, fit longer, with a richer flow, or reparameterise."


@dataclass(frozen=True)
class ImportanceDiagnostics:
    r"""What importance weights :math:`w = p(x, z) / q(z)` of a guide's draws say about it.

    Attributes:
        elbo: mean log weight, a lower bound of log Z, in nat.
        elbo_se: its Monte Carlo standard error.
        log_z: log evidence by Pareto smoothed importance sampling.
        log_z_se: its standard error, by the delta method, with that of rounding.
        ess: effective sample size of the smoothed weights as a fraction of the draws.
        pareto_k: shape of the tail of the weights; ``-inf`` where they are equal (an exact guide),
            ``inf`` where there are too few to tell. Never NaN.
        pareto_k_se: its standard error, that of the fit to the tail.
        marginal_k: the largest shape of the tail of the terms of a latent coordinate's weighted
            mean, and ``marginal_k_at`` the site; see ``pareto_k``.
        good_k: the largest shape to trust, min(1 - 1/log10 S, 0.7).
        num_samples: number of draws S.
        verdict: "usable", "reweight" or "do not trust".
        reasons: why, one short sentence each.
        log_weights: raw log weights, float64, shape ``(S,)``; ``-inf`` where not a number.
        num_nonfinite: draws whose log density was NaN or ``+inf``.
        mean_shift: largest distance, over latent coordinates, between the means of raw and of
            weighted draws, in standard deviations of their normal scores.
        sd_ratio: smallest and largest ratio of weighted to raw standard deviation of these scores.
        missed: share of Z found by draws with widened noise where the guide's own do not go;
            NaN where the guide is not made of normal noise.
        lacking: share of Z where the guide has less than half of the density that it should have,
            by the same draws, two standard errors added; NaN likewise.
        missed_modes: modes that the guide's start climbed to, or that were looked for on behalf of
            another guide, and that its draws never reach: where each is, and its share of Z.
        vectorized: whether the draws went through the model together.
        rounding: error of the log densities by rounding, in nats; it may be that of all draws.
    """

    elbo: float
    elbo_se: float
    log_z: float
    log_z_se: float
    ess: float
    pareto_k: float
    good_k: float
    num_samples: int
    verdict: str
    reasons: tuple[str, ...]
    log_weights: Tensor = field(repr=False, compare=False)
    num_nonfinite: int = 0
    mean_shift: float = 0.0
    sd_ratio: tuple[float, float] = (1.0, 1.0)
    missed: float = math.nan
    lacking: float = math.nan
    missed_modes: tuple[tuple[str, float], ...] = ()
    vectorized: bool = True
    pareto_k_se: float = math.nan
    marginal_k: float = -math.inf
    marginal_k_at: str = ""
    rounding: float = 0.0

    def __str__(self) -> str:
        rows = (
            ("ELBO", f"{_number(self.elbo)} ± {self.elbo_se:.2g}"),
            ("log Z", f"{_number(self.log_z)} ± {self.log_z_se:.2g}"),
            ("gap", f"{self.log_z - self.elbo:.3g} nat" if self._has_gap() else "unknown"),
            ("k-hat", self._k_in_words()),
            ("ESS", f"{100 * self.ess:.3g} % of {self.num_samples} draws"),
            ("verdict", self.verdict),
        )
        lines = [f"{name:8s} {value}" for name, value in rows]
        lines += [_wrapped(reason, "- ") for reason in self.reasons]
        return "\n".join([*lines, _wrapped(self._advice())])

    def _k_in_words(self) -> str:
        error = f" ± {self.pareto_k_se:.2f}" if math.isfinite(self.pareto_k_se) else ""
        good = f" (good up to {self.good_k:.2f})"
        return f"{self.pareto_k:.2f}{error}{good}{self._marginal_in_words()}"

    def _marginal_in_words(self) -> str:
        if not math.isfinite(self.marginal_k):
            return ""
        return f"; of weighted means at most {self.marginal_k:.2f} ('{self.marginal_k_at}')"

    def _advice(self) -> str:
        lost = reasons_of_modes(self.missed_modes)
        if not lost or sum(share for _, share in self.missed_modes) > _NEARLY_ALL:
            return _ADVICE[self.verdict]
        values = self.missed_modes[0][0].replace("' = ", "': ")
        return _ADVICE_ON_MODES % values + _ADVICE_BESIDES * (len(self.reasons) > len(lost))

    def _has_gap(self) -> bool:
        return math.isfinite(self.elbo) and math.isfinite(self.log_z)


def importance_diagnostics(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    num_samples: int = 10_000,
    seed: int | None = None,
    batch_size: int | None = None,
) -> ImportanceDiagnostics:
    r"""Judge a guide by the importance weights of its draws.

    With :math:`w_s = p(x, z_s) / q(z_s)`, :math:`z_s \sim q`: the ELBO is the mean of
    :math:`\log w_s`, log Z the log of the mean of the smoothed weights (:func:`~pyroflows.psis`),
    and the shape of the weights' tail tells whether either is to be believed. The verdict is

    - "do not trust" where the shape exceeds ``good_k``, that of the weights or that of the terms of
      some latent coordinate's weighted mean, fewer than 100 draws are effective,
      weighting widens a latent coordinate more than 1.75-fold, draws with widened noise find more
      than 5 % of the posterior beyond the guide's own, a mode that the guide's start climbed to
      holds more than 1 % where its draws never go, as much lies outside its support, the log
      density does not fall off even 16 standard deviations away, a log density is not a number,
      draws ran off beyond 1e15, or a latent is a point in the guide;
    - "usable" where the shape is at most 0.5, or whatever it is where widened draws find that the
      guide has less than half of its density on no more than half a per cent of the posterior, and
      nothing else speaks against it; half of the draws are effective, the ELBO is within
      half a nat of log Z, and weighting moves no latent coordinate's mean by more than a tenth
      of a standard deviation nor its standard deviation by more than a tenth;
    - "reweight" otherwise: the weighted draws are right, the raw ones are not.

    Any guide whose sites have densities will do. Discrete latents that the guide leaves to
    parallel enumeration are summed out. Draws go through the model together where that is found
    sound, without gradients. As many draws again, of a guide made of normal noise (``AutoFlow``,
    Pyro's normal guides), have their noise widened, up to fourfold: they tell
    of a tail that falls off too early, as the guide's own cannot. Of a far mode no such draw tells:
    where the start of an ``AutoFlow`` climbed to several, draws around each do; for other guides
    the density is climbed here, in up to 64 dimensions.

    Args:
        model: a Pyro model, conditioned on its data.
        guide: a guide for it; one of Pyro's, an ``AutoFlow`` or a hand-written one.
        model_args: positional arguments of both.
        model_kwargs: keyword arguments of both.
        num_samples: number of draws S.
        seed: seed of the draws; the caller's generators are left as they were. None: draw on.
        batch_size: draws that go through the model together; chosen by size unless given.

    Returns:
        The numbers, the verdict and its reasons; ``print`` it to read it.

    Raises:
        ValueError: if a plate is subsampled, if a latent of the model is neither drawn by the guide
            nor enumerated, or if the guide draws a site that the model lacks.
        TypeError: if the guide is a messenger.

    References:
        Yao, Vehtari, Simpson, Gelman (2018). Yes, but did it work?: evaluating variational
        inference. ICML.
        Vehtari et al. (2024). Pareto smoothed importance sampling. JMLR 25.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyroflows as pf
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.0, 1.1))
        >>> report = pf.importance_diagnostics(model, guide, seed=0)
        >>> report.verdict, abs(report.log_z) < 0.01
        ('usable', True)
    """
    check_arguments("importance_diagnostics", model, model_args, model_kwargs, guide)
    draws = draw_from_guide(
        model,
        guide,
        model_args=model_args,
        model_kwargs=model_kwargs,
        num_samples=num_samples,
        seed=seed,
        batch_size=batch_size,
    )
    return diagnose(draws)


def diagnose(draws: GuideDraws) -> ImportanceDiagnostics:
    """Judge draws already made; see :func:`importance_diagnostics`."""
    _refuse_incomplete(draws)
    log_weights, num_nonfinite = _log_weights(draws)
    size = len(log_weights)
    tolerance = rounding_tolerance(draws)
    smoothed, pareto_k = smooth_log_weights(log_weights, tolerance=tolerance)
    marginal_k, marginal_k_at = marginal_shape(draws, log_weights, tolerance=tolerance)
    elbo, elbo_se = _mean_and_error(log_weights, num_nonfinite)
    log_z = float(smoothed.logsumexp(0)) - math.log(size)
    weights = (smoothed - smoothed.logsumexp(0)).exp() if log_z > -math.inf else smoothed.exp()
    squares, rounding = float(weights.square().sum()), _rounding(draws)
    moved = Moved.by_weights(draws, weights)
    numbers = {
        "elbo": elbo,
        "elbo_se": elbo_se,
        "log_z": log_z,
        "log_z_se": _log_z_error(weights, rounding) if squares else math.inf,
        "ess": min(1 / (squares * size), 1.0) if squares else 0.0,
        "pareto_k": pareto_k,
        "pareto_k_se": pareto_k_error(pareto_k, size),
        "marginal_k": marginal_k,
        "good_k": good_pareto_k(size),
        "num_samples": size,
        "num_nonfinite": num_nonfinite,
        "missed": _missed(draws, log_z),
        "lacking": _lacking(draws, log_z),
        "rounding": rounding,
    }
    modes = [] if draws.modes is None else draws.modes.missed(log_z, size)
    verdict, reasons = judge(draws, numbers | {"marginal_k_at": marginal_k_at}, moved, modes)
    return ImportanceDiagnostics(
        **numbers,
        verdict=verdict,
        reasons=reasons,
        log_weights=log_weights,
        mean_shift=moved.shift,
        sd_ratio=(moved.smallest, moved.largest),
        missed_modes=tuple(modes),
        marginal_k_at=marginal_k_at,
        vectorized=draws.vectorized,
    )


def _refuse_incomplete(draws: GuideDraws) -> None:
    if draws.subsampled:
        name, (part, full) = next(iter(draws.subsampled.items()))
        raise ValueError(
            f"importance diagnostics: plate '{name}' shows {part} of {full} elements, so log p is "
            "only an estimate and its weights mean nothing; pass the full data and a model whose "
            "plates are not subsampled (subsample_size=None)."
        )
    if draws.missing:
        raise ValueError(
            f"importance diagnostics: expected a guide that draws every latent site, but "
            f"{list(draws.missing)} of the model are missing from it; add them to the guide, or "
            "mark discrete ones infer={'enumerate': 'parallel'} to have them summed out."
        )


def _log_weights(draws: GuideDraws) -> tuple[Tensor, int]:
    """Return log p - log q with ``-inf`` in place of what is no number, and how many were not."""
    log_weights = draws.log_p - draws.log_q
    bad = log_weights.isnan() | (log_weights == math.inf) | ~draws.log_q.isfinite()
    return log_weights.masked_fill(bad, -math.inf), int(bad.sum())


def _missed(draws: GuideDraws, log_z: float) -> float:
    if draws.probe is None or log_z == -math.inf:
        return math.nan
    wider = float(draws.probe.logsumexp(0)) - math.log(len(draws.probe))
    return abs(math.expm1(min(log_z - wider, 0.0))) if wider > -math.inf else 0.0


def _lacking(draws: GuideDraws, log_z: float) -> float:
    """Share of Z where the guide has less than half the density, two standard errors added."""
    if draws.probe is None or log_z == -math.inf:
        return math.nan
    found = (draws.probe - log_z).exp() * (draws.probe_alone > log_z + math.log(2))
    return float(found.sum() + 2 * found.square().sum().sqrt()) / len(found)


def rounding_tolerance(draws: GuideDraws) -> float:
    """Spread of log weights that rounding explains: an exact float32 guide is still exact."""
    magnitude = draws.log_p.abs().masked_fill(~draws.log_p.isfinite(), 0.0).max()
    return min(max(1e-8, 16 * draws.rounding * float(magnitude)), _MAX_ROUNDING)


def _rounding(draws: GuideDraws) -> float:
    """What a sum as large as the log density may be off by, the same for each draw."""
    magnitude = draws.log_p[draws.log_p.isfinite()].abs()
    return draws.rounding * float(magnitude.mean()) if len(magnitude) else 0.0


def _log_z_error(weights: Tensor, rounding: float) -> float:
    """The delta method's error of the log of a mean, and that of rounding."""
    return math.hypot(float((weights - 1 / len(weights)).norm()), rounding)


def _mean_and_error(log_weights: Tensor, num_nonfinite: int) -> tuple[float, float]:
    num_zero = int((log_weights == -math.inf).sum()) - num_nonfinite
    finite = log_weights[log_weights.isfinite()]
    if num_zero > 0 or len(finite) == 0:
        return -math.inf, math.inf
    if len(finite) == 1:
        return float(finite[0]), math.inf
    return float(finite.mean()), float(finite.std()) / math.sqrt(len(finite))


def _wrapped(text: str, bullet: str = "") -> str:
    indent = " " * 9
    return textwrap.fill(
        text, 96, initial_indent=indent + bullet, subsequent_indent=indent + " " * len(bullet)
    )


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.6g}"
