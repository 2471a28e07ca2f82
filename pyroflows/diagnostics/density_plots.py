"""A figure of a density, over the data that it was fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..density import FlowDensity, density_grid
from .plots import new_figure, plot_posteriors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_density"]

_NUM_DRAWS = 2_000
_SHARES = (0.5, 0.9, 0.99)  # of the mass within each contour
_DATA, _CURVE = "#D55E00", "#0072B2"


def plot_density(
    density: FlowDensity,
    x: Any = None,
    *,
    context: Tensor | None = None,
    limits: Any = None,
    num: int = 200,
    max_draws: int = _NUM_DRAWS,
) -> Figure:
    """Draw a density, over data if there are some.

    In one dimension its curve over a histogram; in two its density in colour, with the regions
    that hold 50, 90 and 99 % of it, under the data; in more, draws beside data for each pair.

    Args:
        density: The density.
        x: Data, shape ``(N, *event_shape)``.
        context: Covariates at which to draw it, shape ``(context_dim)``.
        limits: The least and the largest number of each axis, shape ``(dim, 2)``, for one or two
            dimensions; by default where the density's draws lie.
        num: Points along each axis of the grid.
        max_draws: Points of data, and draws, in a scatter.

    Returns:
        A figure that belongs to no window: save it by ``figure.savefig`` or show it in a notebook.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If the data are of another shape.

    Example:
        >>> import torch
        >>> import pyroflows as pf
        >>> figure = pf.plot_density(pf.FlowDensity(2, "affine"), torch.randn(100, 2))
        >>> len(figure.axes)
        2
    """
    data = _as_array(density, x)
    size = density.event_shape.numel()
    if density.dim != size or size > 2:
        return _pairs(density, data, context, max_draws)
    axes_values, log_prob = density_grid(density, num, limits=limits, context=context)
    grid = [values.cpu().numpy() for values in axes_values]
    values = log_prob.double().exp().cpu().numpy()
    figure = new_figure(6.0, 4.5 if size == 1 else 5.0)
    axes = figure.add_subplot()
    if size == 1:
        _curve(axes, grid[0], values, data)
    else:
        _image(figure, axes, grid, values, data, max_draws)
    return figure


def _as_array(density: FlowDensity, x: Any) -> np.ndarray | None:
    if x is None:
        return None
    data = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=float)
    if data.shape[1:] != tuple(density.event_shape):
        raise ValueError(
            f"plot_density expected x of shape (N, {', '.join(map(str, density.event_shape))}), "
            f"got {data.shape}."
        )
    return data.reshape(len(data), -1)


def _curve(axes: Any, grid: np.ndarray, values: np.ndarray, data: np.ndarray | None) -> None:
    if data is not None:
        axes.hist(data[:, 0], bins="auto", density=True, color=_DATA, alpha=0.4, label="data")
    axes.plot(grid, values, color=_CURVE, label="density")
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("x")
    axes.legend()


def _image(
    figure: Figure,
    axes: Any,
    grid: list[np.ndarray],
    values: np.ndarray,
    data: np.ndarray | None,
    max_draws: int,
) -> None:
    mesh = axes.pcolormesh(*grid, values.T, cmap="Blues", shading="nearest", rasterized=True)
    figure.colorbar(mesh, ax=axes, label="density")
    levels = _levels(values)
    if len(levels):
        axes.contour(*grid, values.T, levels=levels, colors="0.3", linewidths=0.8)
    if data is not None:
        shown = data[:: max(len(data) // max_draws, 1)]
        axes.scatter(shown[:, 0], shown[:, 1], s=3, color=_DATA, alpha=0.4, label="data")
        axes.legend(loc="upper right")
    axes.set_xlim(grid[0][0], grid[0][-1])
    axes.set_ylim(grid[1][0], grid[1][-1])
    axes.set_xlabel("x[0]")
    axes.set_ylabel("x[1]")


def _levels(values: np.ndarray) -> list[float]:
    """The densities above which these shares of the mass on the grid lie, rising."""
    ordered = np.sort(values[np.isfinite(values)].ravel())[::-1]
    mass = np.cumsum(ordered)
    if not mass.size or not mass[-1] > 0:
        return []
    places = np.searchsorted(mass / mass[-1], _SHARES)
    return sorted({float(ordered[min(i, len(ordered) - 1)]) for i in places})


def _pairs(
    density: FlowDensity, data: np.ndarray | None, context: Tensor | None, max_draws: int
) -> Figure:
    with torch.no_grad():
        draws = density(context).sample((max_draws,)).reshape(max_draws, -1)
    shown = {"density": {"x": draws.cpu()}}
    if data is not None:
        shown = {"data": {"x": torch.as_tensor(data)}} | shown
    return plot_posteriors(shown, kind="pair", max_draws=max_draws)
