"""Which coordinates of a flow are angles."""

from __future__ import annotations

import math

from torch import nn
from torch.distributions import constraints

from ..latents import Latents, Site

__all__ = ["check_angles", "periods_of"]


def check_angles(flow: nn.Module, latents: Latents) -> None:
    """Refuse to treat an angle as a real number.

    Raises:
        ValueError: If a site is an angle and the flow does not turn it as one.
    """
    periods = periods_of(flow, latents.dim)
    whole = [p is not None and math.isclose(p, 2 * math.pi) for p in periods]
    first, missed, angles = 0, [], []
    for site in latents.sites.values():
        own = range(first, first + site.size)
        first += site.size
        if site.is_angle:
            angles += own
            missed += [] if all(whole[i] for i in own) else [site.name]
        elif any(periods[i] for i in own):
            _check_unbounded(site)
    if missed:
        option = "" if len(angles) == latents.dim else f" with circular={angles}"
        raise ValueError(
            f"AutoFlow would treat the angle {missed[0]!r} as a real number and break it at +-pi: "
            f"take flow='ncsf'{option}, or model its sine and cosine, or another unbounded "
            "coordinate."
        )


def _check_unbounded(site: Site) -> None:
    support = getattr(site.support, "base_constraint", site.support)
    if support is not constraints.real:
        raise ValueError(
            f"AutoFlow was given a flow that turns site {site.name!r} as an angle, but its support "
            f"is {site.support}: name the coordinates that are angles, circular=[...]."
        )


def periods_of(flow: nn.Module, dim: int) -> list[float | None]:
    """Return the period of each coordinate that some layer of a flow turns as an angle.

    Raises:
        ValueError: If two layers disagree on a coordinate.
    """
    periods: list[float | None] = [None] * dim
    for layer in flow.modules():
        transformer = getattr(layer, "transformer", None)
        if transformer is None or layer.dim != dim:
            continue
        for i in range(dim):
            period = transformer.period(i)
            if period is None:
                continue
            if periods[i] not in (None, period):
                raise ValueError(
                    f"AutoFlow expected layers that agree on each angle's period, got {periods[i]} "
                    f"and {period} for coordinate {i}."
                )
            periods[i] = period
    return periods
