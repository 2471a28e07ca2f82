"""A guide made anew: other starting points, other weights, the same model and recipe."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro import poutine

from .autoflow import AutoFlow
from .outer import build_bijector, initialise

__all__ = ["made_again"]


def made_again(
    guide: AutoFlow, args: tuple, kwargs: dict[str, Any], seed: int, name: str
) -> AutoFlow:
    """Return a guide that shares nothing with another but its model, recipe and base.

    Args:
        guide: The guide, called before; it may be trained.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        seed: Of the points that the search for modes starts from; 0 are those of every guide.
        name: The prefix of its parameters in Pyro's store.
    """
    twin = copy.deepcopy(guide)
    twin._pyro_name = name
    bijector = build_bijector(twin.latents, **twin._recipe).to(twin._origin)
    loc = twin._init_loc().to(twin._origin)
    with poutine.block(), torch.no_grad():
        density = twin.log_density(*args, **kwargs)
        twin.report, twin.modes = initialise(bijector, density, loc, seed=seed, **twin._init)
    twin.bijector = bijector
    return twin
