"""Figures of several posteriors over each other.

Drawn with Matplotlib alone, so that a figure is the same under either major of ArviZ, whose own
overlays differ in intervals, in arguments and in what they return, and lose fits of unequal length.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .distances import c2st, marginal_distances
from .sources import common_draws, flat_draws, posterior_of

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["new_figure", "plot_posteriors"]

# Okabe and Ito: told apart by colour-blind readers too, and in grey by their line styles.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MAX_PANELS = 40
_MAX_ROWS = 120
_MAX_PAIRS = 8
_MUTED = "0.55"

# By fit, by label of a scalar coordinate: draws (S,).
_Draws = dict[str, dict[str, np.ndarray]]


def plot_posteriors(
    fits: Mapping[str, Any],
    var_names: Sequence[str] | None = None,
    kind: str = "density",
    *,
    reference: str | None = None,
    max_draws: int = 2000,
) -> Figure:
    """Draw several posteriors of one model over each other.

    Args:
        fits: by the name in the legend: what ``to_inference_data``, ``polish`` or
            ``posterior_draws`` (resampled) returned, a Pyro ``MCMC`` that has run, or a mapping of
            site name to draws ``(S, *shape)``. Their numbers may differ.
        var_names: variables to draw; all that the fits share unless given.
        kind: "density" (one panel a coordinate), "forest" (median, 50 % and 90 % intervals, one row
            a coordinate) or "pair" (scatter of every two coordinates).
        reference: one of the fits, beside whose name the others are given their distance from it:
            the largest 1-Wasserstein distance of a coordinate shown, in its standard deviations, or
            in "pair" the accuracy of a classifier, :func:`~pyroflows.c2st`, 0.5 being the best.
        max_draws: dots of each fit in a "pair" panel, evenly taken.

    Returns:
        A figure that belongs to no window: save it by ``figure.savefig`` or show it in a notebook.

    Raises:
        ImportError: if ArviZ (with Matplotlib) is not installed.
        TypeError: if a fit holds no draws.
        ValueError: if ``kind`` is unknown, there are no fits, or variables or dims differ.

    Example:
        >>> import torch
        >>> import pyroflows as pf
        >>> draws = {"a": {"z": torch.randn(500, 2)}, "b": {"z": torch.randn(900, 2)}}
        >>> figure = pf.plot_posteriors(draws)
        >>> [axes.get_title() for axes in figure.axes]
        ['z[0]', 'z[1]']
    """
    draw = {"density": _density, "forest": _forest, "pair": _pair}
    if kind not in draw:
        raise ValueError(f"plot_posteriors: expected kind among {sorted(draw)}, got {kind!r}.")
    if not isinstance(fits, Mapping) or not fits:
        raise ValueError(
            "plot_posteriors: expected a mapping of name to draws, such as {'nsf': idata}, got "
            f"{type(fits).__name__}{'' if fits else ', empty'}."
        )
    if max_draws < 1:
        raise ValueError(f"plot_posteriors: expected max_draws of 1 or more, got {max_draws}.")
    posteriors = {name: posterior_of(fit, name) for name, fit in fits.items()}
    chosen = common_draws(posteriors, var_names)
    if reference is not None and reference not in fits:
        raise ValueError(
            f"plot_posteriors: expected a reference among {sorted(fits)}, got {reference!r}."
        )
    limit = {"density": _MAX_PANELS, "forest": _MAX_ROWS, "pair": _MAX_PAIRS}[kind]
    draws = _coordinates(chosen, limit)
    if reference is not None:
        draws = {_told(draws, name, reference, kind): one for name, one in draws.items()}
    return draw[kind](draws, max_draws)


def _told(draws: _Draws, name: str, reference: str, kind: str) -> str:
    """A name, with the distance from the reference."""
    if name == reference:
        return f"{name} (reference)"
    found, truth = (list(draws[key].values()) for key in (name, reference))
    if kind == "pair":
        return f"{name} (C2ST {c2st(np.stack(found, 1), np.stack(truth, 1)):.2f})"
    pair = ({key: one[:, None] for key, one in draws[who].items()} for who in (name, reference))
    table = marginal_distances({name: next(pair)}, next(pair))
    return f"{name} (distance {table['wasserstein'].max():.2f} sd)"


def _coordinates(chosen: dict[str, dict[str, xr.DataArray]], limit: int) -> _Draws:
    labelled = {
        name: dict(_scalars(variables, next(iter(chosen.values()))))
        for name, variables in chosen.items()
    }
    labels = list(next(iter(labelled.values())))
    if not labels:
        raise ValueError("plot_posteriors: expected at least one variable, got none.")
    if len(labels) > limit:
        warnings.warn(
            f"plot_posteriors: drawing the first {limit} of {len(labels)} coordinates; choose "
            "others by var_names.",
            stacklevel=3,
        )
    return {name: {k: draws[k] for k in labels[:limit]} for name, draws in labelled.items()}


def _scalars(
    variables: dict[str, xr.DataArray], named: dict[str, xr.DataArray]
) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in variables.items():
        flat, labels = flat_draws(array), _labels(named[name])
        for column, label in enumerate(labels):
            yield f"{name}{label}", flat[:, column]


def _labels(array: xr.DataArray) -> list[str]:
    dims = array.dims[2:]
    if not dims:
        return [""]
    axes = [array.coords[d].values if d in array.coords else range(array.sizes[d]) for d in dims]
    return [f"[{', '.join(map(str, index))}]" for index in itertools.product(*axes)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that belongs to no window."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pyroflows: plots need Matplotlib; install it with pip install pyroflows[arviz]"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _legend(figure: Figure, names: Sequence[str], styles: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_color(i), ls=styles[i % len(styles)], lw=2, marker=None, label=name)
        for i, name in enumerate(names)
    ]
    columns = max(1, min(len(names), int(figure.get_figwidth() * 10 / (max(map(len, names)) + 6))))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _density(draws: _Draws, _: int) -> Figure:
    labels = list(next(iter(draws.values())))
    columns = min(4, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = new_figure(max(2.6 * columns, 4.2), 2.0 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, label in zip(panels, labels, strict=False):
        low, high = _range([fit[label] for fit in draws.values()])
        for index, fit in enumerate(draws.values()):
            x, y = _kde(fit[label], low, high)
            style = _STYLES[index % len(_STYLES)]
            axes.plot(x, y, color=_color(index), ls=style, lw=1.6)
        axes.set_title(label, fontsize=9)
        axes.set_yticks([])
        axes.set_xlim(low, high)
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", nbins=4)
        _plain(axes)
        axes.spines["left"].set_visible(False)
    for axes in panels[len(labels) :]:
        axes.remove()
    _legend(figure, list(draws), _STYLES)
    return figure


def _range(samples: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return where nearly all mass of any of the samples lies; heavy tails are cut."""
    finite = [s[np.isfinite(s)] for s in samples]
    finite = [s for s in finite if s.size]
    if not finite:
        return 0.0, 1.0
    low = min(np.quantile(s, 0.003) for s in finite)
    high = max(np.quantile(s, 0.997) for s in finite)
    pad = 0.04 * (high - low) or max(abs(low), 1.0) * 1e-3
    lowest, highest = min(s.min() for s in finite), max(s.max() for s in finite)
    # No padding beyond an edge that the draws pile up against.
    return (
        float(max(low - pad, lowest - pad / 4)),
        float(min(high + pad, highest + pad / 4)),
    )


def _kde(
    sample: np.ndarray, low: float, high: float, *, seeks_walls: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian kernel density on a grid, reflected at an edge that the draws pile up against."""
    sample = sample[np.isfinite(sample)]
    grid = np.linspace(low, high, 400)
    if sample.size < 2 or np.ptp(sample) == 0:
        return grid, np.zeros_like(grid)
    quartiles = np.quantile(sample, (0.25, 0.75))
    spread = min(sample.std(), np.ptp(quartiles) / 1.349) or sample.std()
    width = 0.9 * spread * sample.size**-0.2
    walls = [seeks_walls and _is_wall(side * sample, width, spread) for side in (1, -1)]
    # Beyond a wall there is nothing; elsewhere kernels reach past the last draw.
    start = sample.min() if walls[0] else sample.min() - 5 * width
    stop = sample.max() if walls[1] else sample.max() + 5 * width
    edges = np.linspace(max(start, low - 5 * width), min(stop, high + 5 * width), 2049)
    if edges[-1] <= edges[0]:
        return grid, np.zeros_like(grid)
    step = edges[1] - edges[0]
    counts = np.histogram(sample, edges)[0] / (sample.size * step)
    reach = min(int(4 * width / step) + 1, len(counts))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    density = np.convolve(np.pad(counts, reach, "symmetric"), kernel / kernel.sum(), "valid")
    middles = (edges[:-1] + edges[1:]) / 2
    return grid, np.interp(grid, middles, density, left=0.0, right=0.0)


def _is_wall(sample: np.ndarray, width: float, spread: float) -> bool:
    """Tell whether draws pile up against their minimum: a fifth of the peak density."""
    nearby = np.mean(sample < sample.min() + width) / width
    return bool(nearby > 0.2 * 0.4 / spread)


def _forest(draws: _Draws, _: int) -> Figure:
    labels = list(next(iter(draws.values())))
    figure = new_figure(6.4, 0.9 + len(labels) * (0.16 + 0.13 * len(draws)))
    axes = figure.subplots()
    offsets = np.linspace(0.3, -0.3, len(draws)) if len(draws) > 1 else [0.0]
    rows = np.arange(len(labels))[::-1]
    for index, fit in enumerate(draws.values()):
        quantiles = [np.quantile(fit[k], (0.05, 0.25, 0.5, 0.75, 0.95)) for k in labels]
        far_low, low, middle, high, far_high = np.transpose(quantiles)
        at = rows + offsets[index]
        axes.hlines(at, far_low, far_high, color=_color(index), lw=1.1)
        axes.hlines(at, low, high, color=_color(index), lw=3.2)
        axes.plot(middle, at, "o", ms=4, mfc="white", mec=_color(index), mew=1.2)
    axes.set_yticks(rows, labels)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlabel("median, 50 % and 90 % intervals", fontsize=9)
    axes.grid(axis="x", color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    for line in rows[:-1] - 0.5:
        axes.axhline(line, color="0.93", lw=0.6, zorder=0)
    _plain(axes)
    _legend(figure, list(draws), ("-",))
    return figure


def _pair(draws: _Draws, max_draws: int) -> Figure:
    labels = list(next(iter(draws.values())))
    size = len(labels)
    if size < 2:
        raise ValueError(
            f"plot_posteriors: kind 'pair' expects two coordinates or more, got {labels}; use "
            "kind='density'."
        )
    side = max(1.7 * size, 4.4)
    figure = new_figure(side, side + 0.4)
    panels = figure.subplots(size, size, squeeze=False)
    ranges = {k: _range([fit[k] for fit in draws.values()]) for k in labels}
    for row, column in itertools.product(range(size), repeat=2):
        axes, x, y = panels[row, column], labels[column], labels[row]
        if column > row:
            axes.remove()
            continue
        for index, fit in enumerate(draws.values()):
            if row == column:
                axes.plot(*_kde(fit[x], *ranges[x]), color=_color(index), lw=1.4)
            else:
                _scatter(axes, fit[x], fit[y], index, max_draws)
        axes.set_xlim(*ranges[x])
        axes.set_ylim(*((0, None) if row == column else ranges[y]))
        _pair_ticks(axes, (row, column, size), x, y)
    figure.align_ylabels()
    _legend(figure, list(draws), ("-",))
    return figure


def _scatter(axes: Axes, x: np.ndarray, y: np.ndarray, index: int, max_draws: int) -> None:
    keep = np.linspace(0, len(x) - 1, min(max_draws, len(x))).astype(int)
    alpha = float(np.clip(400 / len(keep), 0.15, 0.8))
    axes.plot(x[keep], y[keep], ".", ms=4, mew=0, alpha=alpha, color=_color(index), rasterized=True)


def _pair_ticks(axes: Axes, place: tuple[int, int, int], x: str, y: str) -> None:
    row, column, size = place
    _plain(axes)
    axes.locator_params(axis="x", nbins=3)
    if row == column:
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    else:
        axes.locator_params(axis="y", nbins=3)
    if row == size - 1:
        axes.set_xlabel(x, fontsize=9)
        axes.tick_params(axis="x", labelrotation=30)
    else:
        axes.tick_params(labelbottom=False)
    if column == 0 and row > 0:
        axes.set_ylabel(y, fontsize=9)
    elif row != column:
        axes.tick_params(labelleft=False)
