"""Fits that are broken on purpose, and ordinary ones: what the verdict is asked about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value

import pyroflows as pf
from tests.benchmarks import _verdict_posteriors as known
from tests.benchmarks._verdict_posteriors import Posterior

__all__ = ["BROKEN", "GOOD", "Case"]

Guide = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A fit to be judged.

    Args:
        name: What it is.
        kind: In which way it is broken, or ``"good"``.
        posterior: Makes the model and its truth.
        guide: Makes a guide for a model; a name is that of an ``AutoFlow``.
        options: Of ``fit_guide``; ``None`` for a guide that is judged as it is.
        dtype: Precision of model and guide.
    """

    name: str
    kind: str
    posterior: Callable[[], Posterior]
    guide: str | Callable[[Callable], Guide] = "auto"
    options: dict[str, Any] | None = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def make_guide(self, model: Callable) -> Guide:
        if isinstance(self.guide, str):
            return pf.AutoFlow(model, self.guide, model_args=())
        return self.guide(model)


def _flow(name: str, **options: Any) -> Callable[[Callable], Guide]:
    return lambda model: pf.AutoFlow(model, name, model_args=(), **options)


def _at(guide: Callable, **places: Any) -> Callable[[Callable], Guide]:
    """A guide that starts from a point of the user's."""

    def make(model: Callable) -> Guide:
        values = {name: torch.as_tensor(place) for name, place in places.items()}
        return guide(model, init_loc_fn=init_to_value(values=values))

    return make


def _point(name: str, **places: Any) -> Callable[[Callable], Guide]:
    """A flow that starts narrow at a point of the user's."""
    return _at(lambda model, **start: _flow(name, init="point", **start)(model), **places)


def _half(model: Callable) -> Guide:
    """One half of a normal, where the posterior has both."""
    del model
    return lambda: pyro.sample("x", dist.HalfNormal(torch.ones(2)).to_event(1))


FEW = {"num_steps": 20}
SOME = {"num_steps": 300}
BROKEN = [
    # One of several modes
    Case("two heaps, full normal", "mode", lambda: known.heaps(2, 8.0, 0.4), "affine", SOME),
    Case("two heaps, splines", "mode", lambda: known.heaps(5, 8.0, 0.3), "nsf", SOME),
    Case(
        "two heaps, Pyro's mean field",
        "mode",
        lambda: known.heaps(3, 6.0, 0.5),
        _at(AutoNormal, x=torch.full((3,), 6.0)),
    ),
    Case(
        "two heaps, Pyro's full normal, in the lesser one",
        "mode",
        lambda: known.heaps(2, 10.0, 0.2),
        _at(AutoMultivariateNormal, x=torch.full((2,), 10.0)),
    ),
    Case("labels swapped", "mode", lambda: known.labels(1), "auto", SOME),
    Case("signs of a product, Pyro's", "mode", lambda: known.product(2), AutoMultivariateNormal),
    # Mean field at correlation 0.99
    Case("two", "mean field", lambda: known.gaussian(2, 0.99), "diagonal"),
    Case(
        "ten, Pyro's",
        "mean field",
        lambda: known.gaussian(10, 0.99),
        _at(AutoNormal, x=torch.zeros(10)),
    ),
    Case(
        "twenty in a chain, float64",
        "mean field",
        lambda: known.gaussian(20, 0.99, chain=True),
        "diagonal",
        dtype=torch.float64,
    ),
    Case(
        "regression on like covariates",
        "mean field",
        lambda: known.linear(50, 3, 3, 0.95),
        "diagonal",
    ),
    # Stopped at 20 steps
    Case(
        "normal, from far off",
        "20 steps",
        lambda: known.gaussian(5, 0.5),
        _point("affine", x=torch.full((5,), 6.0)),
        FEW,
    ),
    Case(
        "regression, from zero",
        "20 steps",
        lambda: known.linear(60, 4, 4),
        _point("nsf", w=torch.zeros(4)),
        FEW,
    ),
    Case(
        "eight schools, Pyro's", "20 steps", lambda: known.schools(centered=False), AutoNormal, FEW
    ),
    Case(
        "place and scale, float64",
        "20 steps",
        lambda: known.place_and_scale(30, 5),
        _point("realnvp", loc=-4.0, scale=6.0),
        FEW,
        torch.float64,
    ),
    # A tail that is dropped
    Case("Student-t, normal guide", "tail", lambda: known.student(4, 3.0, 1.0), "affine", SOME),
    Case("eight schools, centred", "tail", lambda: known.schools(centered=True), "affine", SOME),
    Case("half of a normal", "tail", lambda: known.gaussian(2, 0.0), _half, None),
    # No posterior
    Case("two intercepts", "improper", lambda: known.two_intercepts(6), "affine", SOME),
    Case("separated data", "improper", lambda: known.separated(7), "auto", SOME),
    Case(
        "more covariates than data",
        "improper",
        lambda: known.ridge(8),
        _at(AutoNormal, w=torch.zeros(5)),
        SOME,
    ),
]

GOOD = [
    Case("regression, 5", "good", lambda: known.linear(80, 5, 11)),
    Case("regression, 20, float64", "good", lambda: known.linear(100, 20, 12), dtype=torch.float64),
    Case("regression of unknown noise", "good", lambda: known.noisy_linear(40, 3, 13)),
    Case(
        "regression of unknown noise, splines, float64",
        "good",
        lambda: known.noisy_linear(60, 2, 14),
        "nsf",
        SOME,
        torch.float64,
    ),
    Case("logistic regression", "good", lambda: known.logistic(60, 15)),
    Case(
        "logistic regression, full normal, float64",
        "good",
        lambda: known.logistic(200, 16),
        "affine",
        dtype=torch.float64,
    ),
    Case("Poisson regression", "good", lambda: known.poisson(50, 17)),
    Case("Gamma", "good", known.counts),
    Case("Beta", "good", known.shares),
    Case("Dirichlet, float64", "good", known.simplex, dtype=torch.float64),
    Case("eight schools", "good", lambda: known.schools(centered=False)),
    Case(
        "eight schools, float64",
        "good",
        lambda: known.schools(centered=False),
        dtype=torch.float64,
    ),
    Case("sine ring", "good", known.ring),
    Case("two arcs", "good", known.arcs),
    Case("correlation 0.9999", "good", lambda: known.gaussian(2, 0.9999), "affine"),
    Case(
        "regression, Pyro's full normal",
        "good",
        lambda: known.linear(50, 4, 20),
        _at(AutoMultivariateNormal, w=torch.ones(4)),
    ),
    Case("random walk", "good", lambda: known.walk(12, 18)),
    Case("place and scale", "good", lambda: known.place_and_scale(30, 19)),
    Case("two heaps near each other", "good", lambda: known.heaps(2, 1.5, 0.4), "nsf"),
    Case(
        "normal, Pyro's mean field",
        "good",
        lambda: known.gaussian(8, 0.0),
        _at(AutoNormal, x=torch.zeros(8)),
    ),
]
