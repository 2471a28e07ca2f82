"""Look for modes for a guide whose own start looked for none, such as one of Pyro's.

An :class:`~pyroflows.AutoFlow` keeps the modes that its start climbed to. Any other guide starts at
one point and tells of no other, so the model's density is climbed here, from several points.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..guides import AutoFlow
from ..guides.gaussians import Start
from ..guides.outer import in_double
from ..guides.prototype import init_to_center, read_latents
from ..guides.start import find_start
from ..latents import Latents
from ..log_density import LogDensity
from ._edge import share_beyond_edge
from ._flat import flat_direction
from ._modes import ModeDraws, draw_modes, draws_around, place_in_words
from ._passes import InPasses
from ._sites import GuideDraws

__all__ = ["look_around", "search_modes"]

_UP_TO = 64  # dimensions: above, a search takes longer than all the rest
_NUM_RANDOM = 6
_REACH = 0.99  # of a mode's mass


def look_around(run: Any, draws: GuideDraws) -> GuideDraws:
    """Add what is to be seen far from draws: other modes, and directions without end.

    Args:
        run: The model and the guide, run once.
        draws: What was drawn.
    """
    modes = flat = None
    if run.flow is not None:
        known = (run.model, run.guide, run.args, run.kwargs, run.flow.vectorized)
        modes, flat = draw_modes(*known), flat_direction(*known)
    if draws.vectorized and not _looked_itself(run.guide):
        modes = search_modes(run.model, run.model_trace, run.args, run.kwargs, draws.values)
    beyond = share_beyond_edge(run) if draws.vectorized else 0.0
    return replace(draws, modes=modes, flat=flat, beyond=beyond)


def _looked_itself(guide: Callable) -> bool:
    """Whether the start of a guide looked for modes, or its user chose where it starts."""
    if not isinstance(guide, AutoFlow):
        return False
    return guide._init["init"] == "auto" or guide._init["given"]


def search_modes(
    model: Callable,
    trace: poutine.Trace,
    args: tuple,
    kwargs: dict[str, Any],
    values: dict[str, Tensor],
) -> ModeDraws | None:
    """Climb to modes and see which of them a guide's draws never come near.

    A draw comes near a mode that it lies closer to, in its curvature, than the outermost hundredth
    of the mode's own mass.

    Args:
        model: the model.
        trace: a run of it, with values at all latents.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        values: draws of the guide by site.

    Returns:
        Draws around each mode; None where the model does not take many draws together, or has
        angles, discrete latents without sums, or too many dimensions.
    """
    try:
        latents = read_latents(trace, "importance_diagnostics")
        if latents.dim > _UP_TO or any(site.is_angle for site in latents.sites.values()):
            return None
        like = {name: trace.nodes[name]["value"] for name in latents.sites}
        u = latents.unconstrain({name: values[name].to(value) for name, value in like.items()})
        if not torch.isfinite(u).all():
            return None
        with warnings.catch_warnings():  # what the search meets on its way is no fault of the guide
            warnings.simplefilter("ignore")
            return _search(LogDensity(model, latents, args, kwargs), trace, u)
    except (ValueError, RuntimeError, KeyError):  # no search, and all the other checks
        return None


def _search(log_density: LogDensity, trace: poutine.Trace, u: Tensor) -> ModeDraws | None:
    latents = log_density.latents
    points = _starting_points(latents, trace).to(u)
    density = InPasses(in_double(log_density, points.double(), u.dtype))
    if log_density.vectorized is False:
        return None
    found = find_start(density, points.double())
    modes = [_on_cpu(mode) for mode in found.modes or (found,)]
    away, log_mixture, index = draws_around(modes)
    log_masses = density(away.to(u.device)).double().cpu() - log_mixture
    own = u.double().cpu()
    parts = zip(modes, away.chunk(len(modes)), log_masses.chunk(len(modes)), strict=True)
    beyond = torch.tensor([_is_missed(*part, own) for part in parts])[index]
    center = own.median(0).values
    return ModeDraws(
        log_masses=log_masses,
        log_weights=torch.where(beyond, torch.inf, -torch.inf).double(),
        index=index,
        places=tuple(place_in_words(latents, mode, center, u) for mode in modes),
    )


def _starting_points(latents: Latents, trace: poutine.Trace) -> Tensor:
    """The centers of the priors, the origin, and others around it at random."""
    center = {name: init_to_center(trace.nodes[name]) for name in latents.sites}
    loc = latents.unconstrain(center).detach()
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(_NUM_RANDOM, latents.dim, generator=generator, dtype=torch.float64)
    return torch.cat([loc[None], torch.zeros_like(loc)[None], (4 * random - 2).to(loc)])


def _on_cpu(mode: Start) -> Start:
    tril = None if mode.scale_tril is None else mode.scale_tril.cpu()
    return replace(mode, loc=mode.loc.cpu(), scale=mode.scale.cpu(), scale_tril=tril)


def _is_missed(mode: Start, around: Tensor, log_masses: Tensor, own: Tensor) -> bool:
    """Whether no draw of the guide lies within the reach of a mode."""
    weights = torch.nan_to_num(log_masses, nan=-torch.inf).softmax(0)
    far, order = _distance(mode, around).sort()
    inside = weights[order].cumsum(0) <= _REACH
    reach = far[min(int(inside.sum()), len(far) - 1)]
    return not bool((_distance(mode, own) <= reach).any())


def _distance(mode: Start, u: Tensor) -> Tensor:
    """In standard deviations of a mode."""
    offset = u - mode.loc
    if mode.scale_tril is None:
        return (offset / mode.scale).norm(dim=-1)
    return torch.linalg.solve_triangular(mode.scale_tril, offset.mT, upper=False).norm(dim=0)
