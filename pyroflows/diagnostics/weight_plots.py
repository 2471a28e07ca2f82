"""A figure of importance weights and of the tail whose shape is k-hat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..psis import Tail, fit_tail, good_pareto_k, pareto_k_error
from . import _arviz
from .plots import _COLORS, _MUTED, _plain, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_weights"]

_MOST_DOTS = 2000
_LOWEST = -60.0  # log of a weight, relative to the mean, that is shown


@dataclass(frozen=True)
class _Weights:
    """Log weights, and what was said of them when they were made."""

    log_weights: np.ndarray
    tail: Tail
    pareto_k: float
    good_k: float
    ess: float


def plot_weights(source: Any) -> Figure:
    r"""Draw the importance weights of a guide's draws, and the tail whose shape is k-hat.

    On the left, the share of draws whose weight exceeds w, against w in units of the mean weight;
    over its largest weights, beyond the dotted line, the generalised Pareto distribution

    .. math:: P(W > w) = P(W > u) \, [1 + \hat k (w - u) / \sigma]^{-1 / \hat k}

    that is fitted to them: steep is good, and dots above the line at its end hold more than the fit
    expects. On the right, the estimate of log Z by the first s draws: jumps are single draws that
    outweigh all before them.

    Args:
        source: what ``fit_guide`` or ``importance_diagnostics`` returned, or
            ``to_inference_data`` of a guide.

    Returns:
        A figure that belongs to no window: save it by ``figure.savefig`` or show it in a notebook.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if there are no weights, as of chains.
        ValueError: if every weight is zero.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto smoothed importance sampling. JMLR 25.

    Example:
        >>> import pyro, pyro.distributions as dist, pyroflows as pf
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.0, 1.2))
        >>> figure = pf.plot_weights(pf.importance_diagnostics(model, guide, seed=0))
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['weight / mean weight', 'draws']
    """
    found = _weights(source)
    if not np.isfinite(found.log_weights).any():
        raise ValueError(
            f"plot_weights: expected a weight that is not zero, got none in "
            f"{len(found.log_weights)}: the guide is nowhere the posterior is."
        )
    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1.0])
    _draw_tail(left, found)
    _draw_running(right, found.log_weights)
    return figure


def _weights(source: Any) -> _Weights:
    if _arviz.has_groups(source):
        stats = _arviz.get_group(source, "sample_stats")
        if stats is None or "log_weight" not in stats:
            raise TypeError(
                "plot_weights: expected data with weights (sample_stats.log_weight), got none: "
                "chains have none, nor have guides of subsampled models."
            )
        log_weights = stats["log_weight"].values.reshape(-1).astype(float)
        numbers = (float(stats[name]) for name in ("pareto_k", "good_k", "ess_is"))
    else:
        report = getattr(source, "diagnostics", source)
        if not hasattr(report, "log_weights") or not hasattr(report, "pareto_k"):
            raise TypeError(
                "plot_weights: expected what fit_guide, importance_diagnostics or "
                f"to_inference_data returned, got {type(source).__name__} without weights."
            )
        log_weights = report.log_weights.detach().cpu().double().numpy()
        numbers = (report.pareto_k, report.good_k, report.ess)
    pareto_k, good_k, ess = numbers
    # What rounding makes of an exact guide was judged when the weights were made.
    flat = pareto_k == -math.inf
    tail = fit_tail(torch.from_numpy(log_weights), tolerance=math.inf if flat else 1e-8)
    return _Weights(log_weights, tail, pareto_k, good_k or good_pareto_k(len(log_weights)), ess)


def _draw_tail(axes: Axes, found: _Weights) -> None:
    number = len(found.log_weights)
    scaled = np.sort(found.log_weights[np.isfinite(found.log_weights)])
    scaled = scaled - (np.logaddexp.reduce(scaled) - math.log(number))
    share = np.arange(len(scaled), 0, -1) / number
    shown = _thinned(len(scaled)) if len(scaled) > _MOST_DOTS else np.arange(len(scaled))
    shown = shown[scaled[shown] > _LOWEST]
    axes.plot(
        np.exp(scaled[shown]), share[shown], ".", ms=3.5, mew=0, color=_COLORS[0], label="draws"
    )
    if found.tail.is_fitted:
        shift = found.tail.largest - _log_mean(found.log_weights)
        weights, survival = _pareto_line(found.tail, number)
        axes.plot(
            np.exp(weights + shift), survival, color=_COLORS[1], lw=1.6, label="Pareto tail fitted"
        )
        axes.axvline(math.exp(found.tail.cutoff + shift), color=_MUTED, ls=":", lw=1.0)
    axes.set(xscale="log", yscale="log", xlabel="weight / mean weight", ylabel="share above")
    axes.set_title(_said(found), fontsize=10)
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    _plain(axes)


def _thinned(number: int) -> np.ndarray:
    """All of the largest, and evenly few of the others, which lie on each other."""
    top = number - _MOST_DOTS // 2
    return np.concatenate([np.linspace(0, top, _MOST_DOTS // 2, dtype=int), np.arange(top, number)])


def _log_mean(log_weights: np.ndarray) -> float:
    finite = log_weights[np.isfinite(log_weights)]
    return float(np.logaddexp.reduce(finite)) - math.log(len(log_weights))


def _pareto_line(tail: Tail, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Log weights relative to the largest, and the share above them, from the cutoff on."""
    share = len(tail.members) / number
    survival = np.geomspace(1.0, 0.5 / len(tail.members), 200)
    if abs(tail.shape) < 1e-8:
        excess = -tail.scale * np.log(survival)
    else:
        excess = tail.scale * np.expm1(-tail.shape * np.log(survival)) / tail.shape
    return np.log(math.exp(tail.cutoff) + excess), share * survival


def _said(found: _Weights) -> str:
    ess = f"ESS {100 * found.ess:.3g} % of {len(found.log_weights)} draws"
    if found.pareto_k == -math.inf:
        return f"weights are equal at the top; {ess}"
    if found.pareto_k == math.inf:
        return f"too few weights to tell a tail; {ess}"
    error = pareto_k_error(found.pareto_k, len(found.log_weights))
    told = f" ± {error:.2f}" if math.isfinite(error) else ""
    return f"k-hat {found.pareto_k:.2f}{told} (good up to {found.good_k:.2f}); {ess}"


def _draw_running(axes: Axes, log_weights: np.ndarray) -> None:
    count = np.arange(1, len(log_weights) + 1)
    floor = np.where(np.isfinite(log_weights), log_weights, -np.inf)
    running = np.logaddexp.accumulate(floor) - np.log(count)
    kept = np.isfinite(running)
    axes.plot(count[kept], running[kept], color=_COLORS[0], lw=1.2)
    axes.axhline(running[-1], color=_MUTED, lw=0.8, ls=":")
    late = running[kept][max(int(kept.sum()) // 50, 0) :]
    spread = max(np.ptp(late), 1e-6 * max(1.0, abs(running[-1])))
    axes.set_ylim(late.min() - 0.1 * spread, late.max() + 0.1 * spread)
    axes.set(xlabel="draws", ylabel="log Z by the first draws [nat]", xscale="log")
    axes.ticklabel_format(axis="y", useOffset=False)
    _plain(axes)
