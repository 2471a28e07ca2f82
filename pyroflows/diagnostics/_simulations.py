"""Parameters and data made by a model, and how draws of a posterior rank beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..infer._sites import NewData, describe, samples, subsampled_plates
from ..infer.draws import seeded

__all__ = ["Simulated", "check_can_simulate", "labels_of", "ranks_among", "simulate"]


@dataclass(frozen=True)
class Simulated:
    """One set of parameters and the data that they made.

    Attributes:
        truths: Latent and deterministic values.
        model: The model, conditioned on the data, which are its attribute ``data``.
    """

    truths: dict[str, Tensor]
    model: Callable[..., Any]


def simulate(
    model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any], seed: int
) -> Simulated:
    """Draw parameters from the prior, and data from the model, in place of what it observed."""
    simulator = NewData()(model)
    with seeded(seed), torch.no_grad():
        trace = prune_subsample_sites(poutine.trace(simulator).get_trace(*args, **kwargs))
    truths, data = {}, {}
    for name, node in samples(trace):
        if node["infer"].get("was_observed"):
            data[name] = node["value"].detach()
        elif not node["infer"].get("is_auxiliary"):
            truths[name] = torch.as_tensor(node["value"]).detach().cpu()
    conditioned = poutine.condition(simulator, data=data)
    conditioned.data = data
    return Simulated(truths, conditioned)


def check_can_simulate(
    owner: str, model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
) -> None:
    """Raise unless the model makes data of its own, all that it is scored by.

    Raises:
        ValueError: If it observes nothing, subsamples, adds factors or has an improper prior.
    """
    with seeded(0), torch.no_grad():
        try:
            trace = poutine.trace(NewData()(model)).get_trace(*args, **kwargs)
        except NotImplementedError as error:
            raise ValueError(
                f"{owner}: the model cannot make data: {error or 'a prior has no draws'}. Give "
                "every latent a proper prior."
            ) from error
        observed = prune_subsample_sites(poutine.trace(model).get_trace(*args, **kwargs))
    kinds = {name: describe(node, {}).kind for name, node in samples(observed)}
    factors = [name for name, kind in kinds.items() if kind == "factor"]
    if factors:
        raise ValueError(
            f"{owner}: the model adds factors {factors}, which say nothing of how data come "
            "about; write them as pyro.sample(..., obs=...)."
        )
    if "observed" not in kinds.values():
        raise ValueError(
            f"{owner}: the model observes nothing, so that its posterior is its prior; pass data "
            "of the shape to simulate as model_args."
        )
    if parts := subsampled_plates(trace):
        raise ValueError(
            f"{owner}: plates {sorted(parts)} are subsampled, so that a fit sees a part of the "
            "data only; simulate with subsample_size=None."
        )


def ranks_among(
    truths: Mapping[str, Tensor], draws: Mapping[str, Tensor], rng: np.random.Generator
) -> dict[str, list[int]]:
    """How many draws ``(L, *shape)`` lie below each coordinate of the truth; ties by chance."""
    ranks = {}
    for name, value in draws.items():
        truth = truths[name].reshape(-1).double()
        drawn = value.detach().cpu().reshape(len(value), -1).double()
        if not (drawn.isfinite().all() and truth.isfinite().all()):
            raise ValueError(f"draws or truth of '{name}' are NaN or infinite")
        below, equal = (drawn < truth).sum(0).numpy(), (drawn == truth).sum(0).numpy()
        ranks[name] = (below + rng.integers(0, equal + 1)).tolist()
    return ranks


def labels_of(name: str, shape: Sequence[int]) -> Iterator[str]:
    """Name the coordinates of a site: ``theta[0]``; a scalar keeps the name."""
    for index in itertools.product(*map(range, shape)):
        yield f"{name}[{', '.join(map(str, index))}]" if index else name
