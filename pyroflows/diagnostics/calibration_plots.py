"""A figure of ranks, beside what uniform ranks do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .calibration import Calibration
from .plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_calibration"]

_PROB = 0.95
_BARS = 20
_COLUMNS = 3
_BAND, _LINE = "0.85", "#0072B2"


def plot_calibration(calibration: Calibration, *, kind: str = "ecdf") -> Figure:
    """Draw how far ranks are from uniform, a panel for each quantity.

    A line that leaves the grey band departs: rising first, draws are too high; falling first, too
    low; above on the left and below on the right, too narrow; the other way round, too wide.

    Args:
        calibration: The ranks.
        kind: ``"ecdf"``, their distribution function less the uniform one with its simultaneous
            band of 95 %, or ``"histogram"``, with pointwise bands.

    Returns:
        A figure that belongs to no window: save it by ``figure.savefig`` or show it in a notebook.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If there is no such kind.

    Example:
        >>> import numpy as np
        >>> ranks = {"mu": np.random.default_rng(0).integers(0, 100, 500)}
        >>> len(plot_calibration(Calibration(ranks, 99)).axes)
        1
    """
    draw = {"ecdf": _draw_ecdf, "histogram": _draw_histogram}.get(kind)
    if draw is None:
        raise ValueError(f"plot_calibration expected kind 'ecdf' or 'histogram', got {kind!r}.")
    number = len(calibration.ranks)
    columns = min(number, _COLUMNS)
    rows = math.ceil(number / columns)
    figure = new_figure(4.0 * columns, 2.8 * rows)
    for index, (name, p) in enumerate(calibration.p_values.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        draw(axes, calibration, name)
        axes.set_title(f"{name} (p = {p:.2g})", fontsize=10)
        axes.set_xlim(0, 1)
        if index >= number - columns:
            axes.set_xlabel("scaled rank")
    return figure


def _draw_ecdf(axes: Axes, calibration: Calibration, name: str) -> None:
    found = calibration.ecdf_difference(name, _PROB)
    at, *lines = (np.concatenate([[0.0], values, [0.0]]) for values in found)
    at[-1] = 1.0
    difference, low, high = lines
    axes.fill_between(at, low, high, color=_BAND, linewidth=0)
    axes.axhline(0, color="0.5", linewidth=0.6)
    axes.plot(at, difference, color=_LINE)
    axes.set_ylabel("ECDF - uniform")


def _draw_histogram(axes: Axes, calibration: Calibration, name: str) -> None:
    ranks, places = calibration.ranks[name], calibration.num_draws + 1
    bars = min(_BARS, places)
    edges = np.arange(bars + 1) * places // bars
    counts, _ = np.histogram(ranks, np.append(edges[:-1], edges[-1]) - 0.5)
    share = np.diff(edges) / places
    expected = len(ranks) * share
    error = 1.96 * np.sqrt(expected * (1 - share))
    unit = edges / places
    axes.fill_between(
        unit, np.append(expected - error, 0), np.append(expected + error, 0),
        step="post", color=_BAND, linewidth=0,
    )  # fmt: skip
    axes.bar(unit[:-1], counts, np.diff(unit), align="edge", color=_LINE, alpha=0.6)
    axes.set_ylabel("simulations")
