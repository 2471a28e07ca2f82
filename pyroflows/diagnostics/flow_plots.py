"""Figures of a flow itself: what each layer does to a grid, and a guide beside its target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_arguments
from ..bijector import Bijector, Compose, Inverse
from ..density import FlowDensity
from ..guides import AutoFlow
from ..infer.draws import seeded
from ..psis import smooth_log_weights
from ..supports import check_size
from .plots import _COLORS, _plain, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_flow", "plot_target"]

_LINES = 21
_POINTS = 200  # of a line
_MOST_PANELS = 9
_COLUMNS = 3
_DRAWS = 4000
_LEVELS = (0.1, 0.5, 0.9)  # of the mass, within the contours
_RATIO = 2.0  # log q - log p at which colours end


@torch.no_grad()
def plot_flow(
    flow: Bijector | FlowDensity | AutoFlow,
    *,
    coordinates: tuple[int, int] = (0, 1),
    extent: float = 3.0,
    context: Tensor | None = None,
) -> Figure:
    """Draw what each layer of a flow does to a grid in the space that it starts from.

    The first panel is the grid, the next ones its image after each layer, in order, the last one
    where draws lie. Of more than two dimensions the grid lies in two coordinates, all others
    being zero at the start, and its image is seen along these two.

    Args:
        flow: a bijector, a ``FlowDensity`` or an ``AutoFlow``, whose outer affine map comes last.
        coordinates: the two shown.
        extent: half the width of the grid, in standard deviations of a normal base.
        context: covariates, shape ``(context_dim,)``, of a flow that takes them.

    Returns:
        A figure that belongs to no window: save it by ``figure.savefig`` or show it in a notebook.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if it is no flow.
        ValueError: if it has one dimension, the coordinates are none of its, ``extent`` is not
            positive, or a context is missing.

    Example:
        >>> import pyroflows as pf
        >>> figure = pf.plot_flow(pf.build_flow("nsf", 2, num_layers=3))
        >>> [axes.get_title() for axes in figure.axes][:2]
        ['base', '1 of 3: Autoregressive']
    """
    bijector = _bijector(flow)
    _check(bijector, coordinates, extent, context)
    layers = list(_layers(bijector))
    like = next(iter(bijector.parameters()), torch.zeros(()))
    points = _grid(bijector.dim, coordinates, extent).to(like)
    context = None if context is None else torch.as_tensor(context).to(like)
    shown = sorted({round(i) for i in np.linspace(1, len(layers), _MOST_PANELS - 1)})
    images = [("base", points)]
    for number, layer in enumerate(layers, 1):
        points = layer.forward_and_log_det(points, context if layer.context_dim else None)[0]
        if number in shown:
            images.append((f"{number} of {len(layers)}: {type(layer).__name__}", points))
    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    figure = new_figure(3.2 * columns, 3.1 * rows)
    for index, (title, image) in enumerate(images):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_grid(axes, image[..., list(coordinates)].cpu().double().numpy())
        axes.set_title(title, fontsize=9)
        if index % columns == 0:
            axes.set_ylabel(f"coordinate {coordinates[1]}", fontsize=9)
        if index >= len(images) - columns:
            axes.set_xlabel(f"coordinate {coordinates[0]}", fontsize=9)
    return figure


def _bijector(flow: Any) -> Bijector:
    if isinstance(flow, Bijector):
        return flow
    if isinstance(flow, FlowDensity):
        return flow.bijector
    if isinstance(flow, AutoFlow):
        return flow.unregistered_bijector()
    raise TypeError(
        f"plot_flow: expected a Bijector, a FlowDensity or an AutoFlow, got {type(flow).__name__}."
    )


def _check(
    flow: Bijector, coordinates: Sequence[int], extent: float, context: Tensor | None
) -> None:
    if flow.dim < 2:
        raise ValueError("plot_flow: expected a flow of two dimensions or more, got one.")
    if len(set(coordinates)) != 2 or not all(0 <= c < flow.dim for c in coordinates):
        raise ValueError(
            f"plot_flow: expected two different coordinates from 0 to {flow.dim - 1}, got "
            f"{tuple(coordinates)}."
        )
    if not 0 < extent < math.inf:
        raise ValueError(f"plot_flow: expected a positive extent, got {extent}.")
    if (context is None) != (flow.context_dim == 0):
        raise ValueError(
            f"plot_flow: the flow has context_dim={flow.context_dim}: "
            + ("pass context=." if context is None else "it takes no context.")
        )


def _layers(flow: Bijector) -> Iterator[Bijector]:
    """The layers in the order in which they are applied."""
    if isinstance(flow, Compose):
        for part in flow.bijectors:
            yield from _layers(part)
    elif isinstance(flow, Inverse) and isinstance(flow.base, Compose):
        for part in reversed(flow.base.bijectors):
            yield from _layers(part.inv)
    else:
        yield flow


def _grid(dim: int, coordinates: Sequence[int], extent: float) -> Tensor:
    """Lines along either coordinate, shape ``(2, lines, points, dim)``."""
    across = torch.linspace(-extent, extent, _LINES, dtype=torch.float64)
    along = torch.linspace(-extent, extent, _POINTS, dtype=torch.float64)
    points = torch.zeros(2, _LINES, _POINTS, dim, dtype=torch.float64)
    for way in (0, 1):
        points[way, ..., coordinates[way]] = along
        points[way, ..., coordinates[1 - way]] = across[:, None]
    return points


def _draw_grid(axes: Axes, image: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    for way in (0, 1):
        # The middle lines stand out, so that a turn or a fold can be followed.
        widths = np.where(np.arange(_LINES) == _LINES // 2, 1.8, 0.6)
        lines = LineCollection(image[way], colors=_COLORS[way], linewidths=widths)
        axes.add_collection(lines)
    flat = image.reshape(-1, 2)
    low, high = flat.min(0), flat.max(0)
    pad = 0.04 * np.maximum(high - low, 1e-9)
    axes.set_xlim(low[0] - pad[0], high[0] + pad[0])
    axes.set_ylim(low[1] - pad[1], high[1] + pad[1])
    axes.locator_params(nbins=4)
    _plain(axes)


@torch.no_grad()
def plot_target(
    model: Callable[..., Any],
    guide: AutoFlow,
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    extent: tuple[float, float, float, float] | None = None,
    num: int = 150,
    seed: int = 0,
) -> Figure:
    """Draw a guide of two latent coordinates beside the posterior that it is to be.

    Three panels on the same axes, those of the sites: the exact posterior density, normalised by
    the importance weights of the guide's draws; the guide's density in the same colours, with the
    contours of the posterior over it, which hold 10, 50 and 90 % of its mass; and log q - log p
    within the last of them, in nats: blue where the guide has too little.

    Args:
        model: a Pyro model or an energy model, its latents two scalar coordinates in all.
        guide: an ``AutoFlow`` of it, fitted or not.
        model_args: positional arguments of both.
        model_kwargs: keyword arguments of both.
        extent: (left, right, bottom, top) of the panels; that of the guide's draws unless given.
        num: points of the grid each way.
        seed: of the draws that normalise.

    Returns:
        A figure that belongs to no window: save it by ``figure.savefig`` or show it in a notebook.

    Raises:
        ImportError: if Matplotlib is not installed.
        TypeError: if the guide is no ``AutoFlow``.
        ValueError: if the latents have more or fewer than two coordinates, or ``extent`` is no
            rectangle.

    Example:
        >>> import torch, pyroflows as pf
        >>> target = pf.energy_model(lambda x: -x.square().sum(-1), dim=2)
        >>> figure = pf.plot_target(target, pf.AutoFlow(target, "affine", model_args=()), num=40)
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['posterior', 'guide', 'log q - log p [nat]']
    """
    if not isinstance(guide, AutoFlow):
        raise TypeError(f"plot_target: expected an AutoFlow, got {type(guide).__name__}.")
    args, kwargs = tuple(model_args), dict(model_kwargs or {})
    check_arguments("plot_target", model, args, kwargs, guide)
    check_size("plot_target", "num", num, 2)
    with seeded(seed):
        guide._prepare(args, kwargs)
        names = _two_names(guide)
        u = guide.unregistered_posterior().sample((_DRAWS,))
    target = guide.log_density(*args, **kwargs)
    log_z = _log_z(guide, target, u)
    extent = _extent(guide, u) if extent is None else _checked(extent)
    x, y = (np.linspace(*ends, num) for ends in (extent[:2], extent[2:]))
    log_p, log_q = _on_grid(guide, target, x, y)
    return _draw_target(x, y, log_p - log_z, log_q, names)


def _two_names(guide: AutoFlow) -> list[str]:
    shapes = {name: site.shape for name, site in guide.latents.sites.items()}
    names = [
        name if not shape else f"{name}[{i}]"
        for name, shape in shapes.items()
        for i in range(shape.numel())
    ]
    free = guide.latents.dim
    if len(names) != 2 or free != 2:
        raise ValueError(
            f"plot_target: expected latents of two coordinates in all, got {len(names)} ({free} of "
            "them free): draw marginals by plot_posteriors."
        )
    return names


def _values(guide: AutoFlow, points: Tensor) -> dict[str, Tensor]:
    """Site values of points ``(K, 2)`` in the sites' own coordinates."""
    values, start = {}, 0
    for name, site in guide.latents.sites.items():
        stop = start + site.shape.numel()
        values[name] = points[:, start:stop].reshape(len(points), *site.shape)
        start = stop
    return values


def _log_z(guide: AutoFlow, target: Callable[[Tensor], Tensor], u: Tensor) -> float:
    log_w = (target(u) - guide.unregistered_posterior().log_prob(u)).double().cpu()
    log_w = log_w.masked_fill(~log_w.isfinite(), -math.inf)
    return float(smooth_log_weights(log_w)[0].logsumexp(0)) - math.log(len(log_w))


def _extent(guide: AutoFlow, u: Tensor) -> tuple[float, float, float, float]:
    values = guide.unpack(u)
    flat = torch.cat([v.reshape(len(u), -1) for v in values.values()], -1).double().cpu()
    low, high = flat.quantile(0.002, 0), flat.quantile(0.998, 0)
    pad = 0.1 * (high - low)
    low, high = (low - pad).tolist(), (high + pad).tolist()
    return low[0], high[0], low[1], high[1]


def _checked(extent: Sequence[float]) -> Sequence[float]:
    if len(extent) != 4 or not (extent[0] < extent[1] and extent[2] < extent[3]):
        raise ValueError(
            f"plot_target: expected extent (left, right, bottom, top), got {tuple(extent)}."
        )
    return extent


def _on_grid(
    guide: AutoFlow, target: Callable[[Tensor], Tensor], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log densities of target and guide in the sites' coordinates; -inf outside of a support."""
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    values = _values(guide, torch.from_numpy(grid).to(guide._origin))
    inside, safe = guide._inside(values)
    inside = inside.expand(len(grid))
    u = guide.latents.unconstrain(safe)
    log_p = target(u) - guide.latents.constrain(u)[1]
    log_p = torch.where(inside & log_p.isfinite(), log_p, -torch.inf)
    log_q = guide.log_prob(values)
    shape = (len(y), len(x))
    return tuple(v.double().cpu().numpy().reshape(shape) for v in (log_p, log_q))


def _draw_target(
    x: np.ndarray, y: np.ndarray, log_p: np.ndarray, log_q: np.ndarray, names: Sequence[str]
) -> Figure:
    figure = new_figure(12.0, 4.0)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    p, q = np.exp(log_p), np.exp(log_q)
    top = max(p.max(), np.finfo(float).tiny)
    levels = _mass_levels(p)
    for axes, title, density in ((panels[0], "posterior", p), (panels[1], "guide", q)):
        mesh = axes.pcolormesh(x, y, density, cmap="Blues", vmin=0, vmax=top, rasterized=True)
        axes.set_title(title, fontsize=10)
    figure.colorbar(mesh, ax=panels[:2], label="density", shrink=0.9)
    ratio = np.where(p >= levels[0] if levels else p > 0, log_q - np.maximum(log_p, -1e300), np.nan)
    ratio = panels[2].pcolormesh(
        x, y, ratio, cmap="RdBu_r", vmin=-_RATIO, vmax=_RATIO, rasterized=True
    )
    figure.colorbar(ratio, ax=panels[2], label="nat", extend="both", shrink=0.9)
    panels[2].set_title("log q - log p [nat]", fontsize=10)
    for axes in panels[1:]:
        if levels:
            axes.contour(x, y, p, levels=levels, colors="0.25", linewidths=0.7)
    for axes in panels:
        axes.set_xlabel(names[0])
        _plain(axes)
    panels[0].set_ylabel(names[1])
    return figure


def _mass_levels(density: np.ndarray) -> list[float]:
    """Heights above which 90, 50 and 10 % of the mass on the grid lie, ascending."""
    flat = np.sort(density[np.isfinite(density)])[::-1]
    total = flat.cumsum()
    if not flat.size or total[-1] <= 0:
        return []
    heights = [float(flat[np.searchsorted(total, share * total[-1])]) for share in _LEVELS]
    return sorted({height for height in heights if 0 < height < flat[0]})
