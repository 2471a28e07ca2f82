"""Figures of new data beside those seen."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arviz
from .plots import _COLORS, _kde, _plain, _range, new_figure

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_predictive"]

_MOST_VALUES = 50  # different whole numbers that are drawn one by one
_MOST_ROWS = 120
_COLUMNS = 3
_MANY = 200


def plot_predictive(
    data: Any,
    var_names: Sequence[str] | None = None,
    kind: str = "density",
    *,
    num_draws: int = 50,
    seed: int = 0,
) -> Figure:
    """Draw data that the fitted model makes anew over the data that it was fitted to.

    Args:
        data: what ``to_inference_data`` or ``from_mcmc`` returned.
        var_names: observed sites to draw; all unless given.
        kind: "density" (one panel a site: the distribution of the data seen, thick, over those of
            ``num_draws`` data sets made anew; whole numbers as frequencies) or "intervals" (one row
            an observation: what was seen on the 50 % and 90 % intervals of what is predicted).
        num_draws: data sets shown, drawn at random; in "density".
        seed: of that choice.

    Returns:
        A figure that belongs to no window: save it by ``figure.savefig`` or show it in a notebook.

    Raises:
        ImportError: if ArviZ (with Matplotlib) is not installed.
        TypeError: if ``data`` are no ArviZ data.
        ValueError: if there are no new data, a site or the kind is unknown, or ``num_draws`` is
            below one.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyroflows as pf
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("i", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> guide = pf.AutoFlow(model, "affine")
        >>> data = pf.to_inference_data(guide, model, model_args=(torch.randn(9),), seed=0)
        >>> pf.plot_predictive(data).axes[0].get_title()
        'y'
    """
    draw = {"density": _densities, "intervals": _intervals}.get(kind)
    if draw is None:
        raise ValueError(f"plot_predictive: expected kind 'density' or 'intervals', got {kind!r}.")
    if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < 1:
        raise ValueError(f"plot_predictive: expected num_draws of 1 or more, got {num_draws!r}.")
    pairs = _pairs(data, var_names)
    return draw(pairs, num_draws, np.random.default_rng(seed))


_Pairs = dict[str, tuple["xr.DataArray", "xr.DataArray"]]


def _pairs(data: Any, var_names: Sequence[str] | None) -> _Pairs:
    """Data seen, and data made anew, by site."""
    _arviz.require()
    if not _arviz.has_groups(data):
        raise TypeError(
            f"plot_predictive: expected what to_inference_data returned, got {type(data).__name__}."
        )
    new, seen = (_arviz.get_group(data, g) for g in ("posterior_predictive", "observed_data"))
    if new is None or seen is None:
        raise ValueError(
            "plot_predictive: expected groups posterior_predictive and observed_data, got none: a "
            "model without data, or one that is subsampled or has latents summed out, has none."
        )
    both = [str(name) for name in seen.data_vars if name in new.data_vars]
    unknown = sorted(set(var_names or ()) - set(both))
    if unknown:
        raise ValueError(f"plot_predictive: no observed sites {unknown}; there are {both}.")
    return {name: (seen[name], new[name]) for name in (var_names or both)}


def _flat(seen: xr.DataArray, new: xr.DataArray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Observations ``(N,)`` and draws of them ``(S, N)``, finite where seen."""
    data = seen.values.reshape(-1).astype(float)
    draws = new.values.reshape(new.shape[0] * new.shape[1], -1).astype(float)
    bad = int((~np.isfinite(data)).sum() + (~np.isfinite(draws)).sum())
    if bad:
        warnings.warn(
            f"plot_predictive: {bad} values of '{name}' are NaN or infinite and are not drawn.",
            stacklevel=5,
        )
    return data, draws


def _densities(pairs: _Pairs, num_draws: int, rng: np.random.Generator) -> Figure:
    columns = min(_COLUMNS, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure = new_figure(max(4.2 * columns, 5.2), 3.0 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, (seen, new)) in zip(panels, pairs.items(), strict=False):
        data, draws = _flat(seen, new, name)
        _density(axes, data, draws, rng.permutation(len(draws))[:num_draws])
        axes.set_title(name, fontsize=10)
    for axes in panels[len(pairs) :]:
        axes.remove()
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _density(axes: Axes, data: np.ndarray, draws: np.ndarray, chosen: np.ndarray) -> None:
    line = _frequencies if _is_counted(data, draws[chosen]) else _kernel
    if len(data) == 1:  # one datum has no distribution: it lies in that of its predictions
        draw = line(np.append(draws.ravel(), data))
        draw(axes, draws.ravel(), color=_COLORS[0], lw=1.6, label="predicted")
        axes.axvline(data[0], color=_COLORS[1], lw=2.0, label="seen")
    else:
        draw = line(np.append(draws[chosen].ravel(), data))
        for number, row in enumerate(draws[chosen]):
            label = "made anew" if number == 0 else None
            draw(axes, row, color=_COLORS[0], lw=0.6, alpha=0.3, label=label)
        draw(axes, draws[chosen].ravel(), color=_COLORS[0], lw=1.6, ls="--", label="their mean")
        draw(axes, data, color=_COLORS[1], lw=2.0, label="seen")
    axes.set_yticks([])
    thick = [line for line in axes.get_lines() if line.get_lw() > 1 and line.get_label() != "seen"]
    tops = [np.max(line.get_ydata()) for line in [*thick, *axes.get_lines()[-1:]]]
    axes.set_ylim(0, 2.0 * max(tops) if len(data) > 1 else None)  # single ones may be spikes
    _plain(axes)
    axes.spines["left"].set_visible(False)


def _is_counted(data: np.ndarray, draws: np.ndarray) -> bool:
    values = np.unique(np.append(data, draws.ravel()))
    values = values[np.isfinite(values)]
    return len(values) <= _MOST_VALUES and bool((values == np.round(values)).all())


def _kernel(everything: np.ndarray) -> Callable[..., None]:
    low, high = _range([everything])

    def draw(axes: Axes, values: np.ndarray, **style) -> None:
        # A few values always seem to begin at a wall.
        axes.plot(*_kde(values, low, high, seeks_walls=len(values) >= _MANY), **style)
        axes.set_xlim(low, high)

    return draw


def _frequencies(everything: np.ndarray) -> Callable[..., None]:
    finite = everything[np.isfinite(everything)]
    places = np.arange(finite.min(), finite.max() + 1)

    def draw(axes: Axes, values: np.ndarray, **style) -> None:
        values = values[np.isfinite(values)]
        shares = (values[:, None] == places).mean(0) if values.size else np.zeros(len(places))
        axes.step(places, shares, where="mid", **style)

    return draw


def _intervals(pairs: _Pairs, *_: Any) -> Figure:
    sizes = [min(seen.size, _MOST_ROWS) for seen, _ in pairs.values()]
    figure = new_figure(6.6, 0.9 * len(pairs) + sum(0.19 * size for size in sizes) + 0.5)
    panels = figure.subplots(len(pairs), 1, squeeze=False, height_ratios=[s + 3 for s in sizes])
    for axes, (name, (seen, new)) in zip(panels[:, 0], pairs.items(), strict=True):
        data, draws = _flat(seen, new, name)
        if len(data) > _MOST_ROWS:
            warnings.warn(
                f"plot_predictive: drawing the first {_MOST_ROWS} of {len(data)} observations of "
                f"'{name}'.",
                stacklevel=3,
            )
        _rows(axes, data[:_MOST_ROWS], draws[:, :_MOST_ROWS], _labels(seen)[:_MOST_ROWS])
        axes.set_title(name, fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def _rows(axes: Axes, data: np.ndarray, draws: np.ndarray, labels: list[str]) -> None:
    rows = np.arange(len(data))[::-1]
    finite = np.where(np.isfinite(draws), draws, np.nan)
    held = np.isfinite(finite).any(0)
    levels = np.full((4, len(data)), np.nan)
    levels[:, held] = np.nanquantile(finite[:, held], (0.05, 0.25, 0.75, 0.95), axis=0)
    axes.hlines(rows, levels[0], levels[3], color=_COLORS[0], lw=1.1, label="90 % predicted")
    axes.hlines(rows, levels[1], levels[2], color=_COLORS[0], lw=3.2, label="50 % predicted")
    outside = (data < levels[0]) | (data > levels[3])
    axes.plot(data, rows, "o", ms=4.5, color=_COLORS[1], label="seen")
    axes.plot(data[outside], rows[outside], "o", ms=8, mfc="none", color=_COLORS[1])
    axes.set_yticks(rows, labels, fontsize=8)
    axes.set_ylim(-0.6, len(data) - 0.4)
    axes.grid(axis="x", color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    _plain(axes)


def _labels(array: xr.DataArray) -> list[str]:
    if not array.dims:
        return [str(array.name)]
    axes = [
        array.coords[d].values if d in array.coords else range(array.sizes[d]) for d in array.dims
    ]
    return [", ".join(map(str, index)) for index in itertools.product(*axes)]
