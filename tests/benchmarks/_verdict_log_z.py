"""Errors of log Z, by importance and by bridge sampling, in standard errors of their own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator

import pyro

import pyroflows as pf
from tests.benchmarks.targets import TARGETS

__all__ = ["ROUTES", "log_z_rows"]

ROUTES = ("importance", "bridge")
# By target, the flows to fit: one that holds it, and one that does not quite.
FITS = {
    "gaussian_far": ("affine", "nsf"),
    "gaussian_very_far": ("affine",),
    "gaussian_two_scales": ("affine",),
    "gaussian_correlated": ("affine", "nsf"),
    "sine_ring": ("nsf", "auto"),
    "eight_schools_noncentered": ("affine", "auto"),
    "two_arc": ("nsf", "auto"),
}
NUM_STEPS = 400
DRAWS_PER_FIT = {"importance": 5, "bridge": 2}  # independent estimates


def log_z_rows(seeds: Iterable[int], *, smoke: bool = False) -> Iterator[dict[str, object]]:
    """Fit each target, and compare independent estimates of its log Z with the truth."""
    fits = [(name, flow) for name, flows in FITS.items() for flow in flows]
    for seed in list(seeds)[:1] if smoke else seeds:
        for name, flow in fits[:1] if smoke else fits:
            yield from _rows(name, flow, seed, num_steps=5 if smoke else NUM_STEPS, smoke=smoke)


def _rows(
    name: str, flow: str, seed: int, *, num_steps: int, smoke: bool
) -> Iterator[dict[str, object]]:
    model = TARGETS[name].model()
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guide = pf.AutoFlow(model, flow, model_args=())
        options = {"num_steps": num_steps, "seed": seed, "progress_bar": False}
        fit = pf.fit_guide(model, guide, num_diagnostic_samples=0, **options)
        for route in ROUTES:
            for draw in range(1 if smoke else DRAWS_PER_FIT[route]):
                found = _estimate(route, model, fit.guide, 1000 * seed + draw, smoke)
                yield {"target": name, "flow": flow, "seed": seed, "route": route} | _compared(
                    *found, TARGETS[name].log_z
                )


def _estimate(route, model, guide, seed: int, smoke: bool) -> tuple[float, float, str]:
    if route == "importance":
        number = 1000 if smoke else 10_000
        found = pf.importance_diagnostics(model, guide, seed=seed, num_samples=number)
        return found.log_z, found.log_z_se, found.verdict
    chains = pf.polish(
        model, guide, seed=seed, progress_bar=False, **({"num_samples": 50} if smoke else {})
    )
    found = pf.bridge_log_z(model, guide, chains=chains, seed=seed, progress_bar=False)
    return found.log_z, found.log_z_se, ""


def _compared(log_z: float, error: float, verdict: str, truth: float) -> dict[str, object]:
    off = log_z - truth
    errors = off / error if error > 0 else math.copysign(math.inf, off)
    return {
        "verdict": verdict or None,
        "log_z_error": off,
        "log_z_se": error,
        "errors": errors,
        "within": abs(errors) <= 3,
    }
