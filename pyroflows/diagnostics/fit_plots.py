"""The course of a fit: the bound by step, the learning rate, and what happened on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arviz
from .plots import _COLORS, _MUTED, _plain, new_figure

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_fit"]

_STOPS = {
    "converged": "stopped: converged",
    "num_steps": "stopped: all steps taken",
    "time_budget": "stopped: time is up",
    "interrupted": "stopped: interrupted",
    "diverged": "stopped: diverged",
    "early_stopping": "stopped: validation rows say so",
}


@dataclass(frozen=True)
class _Course:
    """What is drawn of a fit."""

    elbo: np.ndarray
    learning_rates: np.ndarray | None
    events: tuple[tuple[int, str], ...]
    log_z: float
    log_z_se: float


def plot_fit(fit: Any) -> Figure:
    """Draw the course of a fit: the ELBO by step with log Z beside it, and the learning rate.

    Numbered lines mark what happened on the way, named below: parts of the flow that woke, the race
    of step sizes, the step from which the learning rate fell, and where and why the fit stopped.

    Args:
        fit: what ``fit_guide`` returned, or what ``to_inference_data(..., fit=fit)`` did.

    Returns:
        A figure that belongs to no window: save it by ``figure.savefig`` or show it in a notebook.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if ``fit`` has no losses.
        ValueError: if no loss is finite.
    """
    course = _of_data(fit) if _arviz.has_groups(fit) else _of_fit(fit)
    if not np.isfinite(course.elbo).any():
        raise ValueError(f"plot_fit: expected a finite loss, got none in {len(course.elbo)} steps.")
    has_rates = course.learning_rates is not None and len(course.learning_rates) > 0
    height = 3.6 + 1.3 * has_rates + 0.2 * len(course.events)
    figure = new_figure(6.8, height)
    ratios = [2.6, 1.0][: 1 + has_rates]
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    _draw_bound(panels[0], course)
    if has_rates:
        _draw_rates(panels[1], course.learning_rates)
    _draw_events(panels, course)
    panels[-1].set_xlabel(_legend_of(course), loc="left", fontsize=8)
    panels[-1].set_xlim(1, max(len(course.elbo), 2))
    figure.align_ylabels()
    return figure


def _of_fit(fit: Any) -> _Course:
    if not hasattr(fit, "losses"):
        raise TypeError(
            f"plot_fit: expected what fit_guide returned, got {type(fit).__name__}, without losses."
        )
    report = getattr(fit, "diagnostics", None)
    rates = getattr(fit, "learning_rates", None)
    return _Course(
        elbo=-np.asarray(fit.losses, dtype=float),
        learning_rates=_rates(rates, len(fit.losses)),
        events=_with_stop(getattr(fit, "events", ()), len(fit.losses), _stop_of(fit)),
        log_z=math.nan if report is None else report.log_z,
        log_z_se=math.nan if report is None else report.log_z_se,
    )


def _stop_of(fit: Any) -> str:
    return getattr(fit, "stop_reason", "") or ""


def _of_data(data: Any) -> _Course:
    stats = _arviz.get_group(data, "fit_stats")
    if stats is None:
        raise TypeError(
            "plot_fit: expected data with a group fit_stats, got none; convert with "
            "to_inference_data(..., fit=fit)."
        )
    elbo = stats["elbo"].values.astype(float)
    weights = _arviz.get_group(data, "sample_stats")
    known = weights is not None and "log_z" in weights
    rates = stats["learning_rate"].values if "learning_rate" in stats else None
    return _Course(
        elbo=elbo,
        learning_rates=_rates(rates, len(elbo)),
        events=_with_stop(_events_of(stats), len(elbo), str(stats.attrs.get("stop_reason", ""))),
        log_z=float(weights["log_z"]) if known else math.nan,
        log_z_se=float(weights["log_z_se"]) if known else math.nan,
    )


def _events_of(stats: xr.Dataset) -> list[tuple[int, str]]:
    steps = np.atleast_1d(stats.attrs.get("event_steps", []))
    names = str(stats.attrs.get("event_names", "")).split("; ")
    return [(int(step), name) for step, name in zip(steps, names, strict=False)]


def _rates(rates: Sequence[float] | None, number: int) -> np.ndarray | None:
    if rates is None or len(rates) != number:
        return None
    return np.asarray(rates, dtype=float)


def _with_stop(
    events: Sequence[tuple[int, str]], last: int, reason: str
) -> tuple[tuple[int, str], ...]:
    stop = ((last, _STOPS[reason]),) if reason in _STOPS else ()
    return (*(tuple(event) for event in events), *stop)


def _draw_bound(axes: Axes, course: _Course) -> None:
    steps = np.flatnonzero(np.isfinite(course.elbo))
    elbo = course.elbo[steps]
    smooth = _smoothed(elbo)
    axes.plot(steps + 1, elbo, color=_COLORS[0], alpha=0.25, lw=0.7, label="ELBO, each step")
    axes.plot(steps + 1, smooth, color=_COLORS[0], lw=1.8, label="smoothed")
    top = smooth.max()
    if math.isfinite(course.log_z):
        label = f"log Z = {course.log_z:.3f} ± {course.log_z_se:.1g}"
        axes.axhline(course.log_z, color=_COLORS[1], ls="--", lw=1.2, label=label)
        top = max(top, course.log_z)
    # The first steps may lie thousands below; what matters is the last stretch.
    settled = smooth[len(smooth) // 4 :]
    noise = np.quantile(np.abs(elbo - smooth)[len(elbo) // 4 :], 0.98)
    height = max(top - settled.min(), 3 * noise, 1e-3 * max(1, abs(top)))
    axes.set_ylim(top - 1.6 * height, top + max(0.15 * height, 1.2 * noise))
    axes.set_ylabel("ELBO [nat]")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    _plain(axes)


def _draw_rates(axes: Axes, rates: np.ndarray) -> None:
    # Warm-up and the end of the decay come as near to zero as they like.
    floor = rates.max() * 1e-3
    axes.plot(np.arange(len(rates)) + 1, np.maximum(rates, floor), color=_COLORS[2], lw=1.2)
    if floor > 0:
        axes.set_yscale("log")
    axes.set_ylabel("learning rate")
    _plain(axes)


def _draw_events(panels: Sequence[Axes], course: _Course) -> None:
    for number, (step, _) in enumerate(course.events, 1):
        for axes in panels:
            axes.axvline(max(step, 1), color=_MUTED, lw=0.8, ls=":")
        # Beside its line, and alternating in height where lines are near.
        panels[0].annotate(
            str(number),
            (max(step, 1), 1.0 - 0.07 * (number % 2)),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 0),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color="0.3",
        )


def _legend_of(course: _Course) -> str:
    lines = [f"{i}  step {step}: {name}" for i, (step, name) in enumerate(course.events, 1)]
    return "\n".join(["step", *lines])


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Running median, robust against the odd wild step, over a fiftieth of the course."""
    width = max(len(values) // 50, 1)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), -1)
