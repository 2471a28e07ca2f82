"""A model run at unconstrained points: one at a time, under a plate, or under ``vmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from torch.overrides import TorchFunctionMode

from ..latents import Latents
from .enumeration import ShapeEnumMessenger, sum_out
from .structure import check_bounds, check_structure

__all__ = ["METHODS", "JointRuns", "Terms"]

_PARTICLES = "_particles"
_JACOBIAN = "the change of variables"
_DISCRETE = "the sum over discrete sites"

Terms = dict[str, Tensor]


class JointRuns:
    """The terms of a model's log density, by site, at unconstrained points.

    Args:
        model: A Pyro model.
        latents: Its latents.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Attributes:
        subsampled: Whether the latest run showed only a part of some plate.
        params: Names of the parameters that the latest run read from Pyro's store.
        bounds: The tensors in the supports of the latest run.
        compare_bounds: Whether to compare these with what they were.
    """

    def __init__(
        self, model: Callable, latents: Latents, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> None:
        self.model = model
        self.latents = latents
        self.model_args = model_args
        self.model_kwargs = model_kwargs
        self.subsampled = False
        self.params: list[str] = []
        self.bounds: list[Tensor] = []
        self.compare_bounds = True

    def single(self, u: Tensor) -> Terms:
        """Return the terms at one point, shape ``()`` each."""
        values, log_det = self.latents.constrain(u)
        trace = self._trace(values, first_available_dim=-self.latents.max_plate_nesting - 1)
        terms, done = {_JACOBIAN: log_det}, set()
        if self.latents.enumerated:
            done, terms[_DISCRETE] = sum_out(trace)
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and name not in done:
                terms[name] = site["log_prob"].sum()
        return terms

    def loop(self, u: Tensor) -> Terms:
        """Return the terms of each point ``(K, D)``, shape ``(K)`` each, one run a point."""
        rows = [self.single(row) for row in u]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def vmap(self, u: Tensor) -> Terms:
        """Return the terms of each point in one run under ``torch.vmap``."""
        with InFewOperations():
            return torch.vmap(self.single, randomness="same")(u)

    def plate(self, u: Tensor) -> Terms:
        """Return the terms of each point in one run under one more, outermost plate."""
        nesting = self.latents.max_plate_nesting
        values, log_det = self.latents.constrain(u, pad_plates=True)
        with pyro.plate(_PARTICLES, len(u), dim=-nesting - 1):
            trace = self._trace(values, first_available_dim=-nesting - 2)
        terms, done = {_JACOBIAN: log_det}, set()
        if self.latents.enumerated:
            done, terms[_DISCRETE] = sum_out(trace, _PARTICLES, len(u))
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and name not in done:
                terms[name] = _per_particle(site, len(u), nesting)
        return terms

    def _trace(self, values: dict[str, Tensor], first_available_dim: int) -> poutine.Trace:
        model = poutine.condition(self.model, data=values)
        if self.latents.enumerated:
            model = ShapeEnumMessenger(first_available_dim)(model)
        trace = poutine.trace(model).get_trace(*self.model_args, **self.model_kwargs)
        self.subsampled = any(map(_is_part, trace.nodes.values()))
        self.params = [name for name, site in trace.nodes.items() if site["type"] == "param"]
        trace = prune_subsample_sites(trace)
        self.bounds = check_structure(trace, self.latents)
        if self.compare_bounds:
            check_bounds(trace, self.latents)
        trace.compute_log_prob()
        return trace


class InFewOperations(TorchFunctionMode):
    """Bernoulli log densities in four operations, where ``vmap`` would take twenty in place."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is binary_cross_entropy_with_logits and _is_plain(args, kwargs):
            logits, target = args
            return -torch.addcmul(logsigmoid(logits), target - 1, logits)
        return func(*args, **kwargs)


def _is_plain(args: tuple, kwargs: dict[str, Any]) -> bool:
    weighted = kwargs.get("weight") is not None or kwargs.get("pos_weight") is not None
    return len(args) == 2 and kwargs.get("reduction") == "none" and not weighted


METHODS: dict[str, Callable[[JointRuns, Tensor], Terms]] = {
    "vmap": JointRuns.vmap,
    "plate": JointRuns.plate,
    "loop": JointRuns.loop,
}


def total(terms: Terms) -> Tensor:
    """The sum of some terms, which all have one shape."""
    values = iter(terms.values())
    result = next(values)
    for value in values:
        result = result + value
    return result


def _is_part(site: dict[str, Any]) -> bool:
    """Whether a site draws which part of a plate is shown."""
    return site_is_subsample(site) and len(site["value"]) < site["fn"].size


def _per_particle(site: dict, num_particles: int, nesting: int) -> Tensor:
    log_prob = site["log_prob"]
    if log_prob.dim() != nesting + 1 or log_prob.shape[0] != num_particles:
        raise RuntimeError(f"site {site['name']!r} has log_prob of shape {tuple(log_prob.shape)}")
    return log_prob.reshape(num_particles, -1).sum(-1)
