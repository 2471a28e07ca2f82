"""What importance weights say of a fit, added to it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from pyro import poutine

from ..guides import AutoFlow
from ._flow_draws import flow_draws
from ._passes import numbers_per_point
from .distributed import Ranks
from .draws import seeded
from .importance import ImportanceDiagnostics, importance_diagnostics
from .objectives import broadcasts
from .report import GuideFit

__all__ = ["diagnose"]

_SECONDS_FOR_SEQUENTIAL_DIAGNOSTICS = 10.0
_MIN_DIAGNOSTIC_SAMPLES = 500
_NUM_SAMPLES = 10_000
_MANY_SAMPLES = 100_000
_AFFORDABLE = 3 * 10**9  # numbers that the model makes for all draws
_EVEN = 0.99  # effective share of draws whose weights differ too little for a shape of their tail
_GOOD_K = 0.5


def diagnose(
    fit: GuideFit,
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    num_samples: int | None,
    ranks: Ranks,
) -> None:
    """Add the diagnostics, which rank 0 makes and tells the others."""
    if ranks.is_first:
        _diagnose_alone(fit, model, args, kwargs, num_samples)
    fit.diagnostics, fit.note = ranks.tell((fit.diagnostics, fit.note))


def _diagnose_alone(
    fit: GuideFit, model: Callable, args: tuple, kwargs: dict[str, Any], given: int | None
) -> None:
    """Add the diagnostics; a fit is worth keeping even where there can be none."""

    def judge(number: int) -> ImportanceDiagnostics:
        parts = {"model_args": args, "model_kwargs": kwargs, "seed": fit.seed}
        return importance_diagnostics(model, fit.guide, num_samples=number, **parts)

    num_samples = given or _NUM_SAMPLES
    try:
        if (per_draw := _seconds_of_one(fit, model, args, kwargs)) is not None:
            affordable = int(_SECONDS_FOR_SEQUENTIAL_DIAGNOSTICS / per_draw)
            if num_samples > (fewer := max(affordable, _MIN_DIAGNOSTIC_SAMPLES)):
                fit.note = (
                    f"diagnostics from {fewer} draws, not {num_samples}: the model is run for one "
                    "at a time."
                )
                num_samples = fewer
        fit.diagnostics = judge(num_samples)
        unclear = given is None and _is_unclear(fit.diagnostics)
        if unclear and _is_cheap(fit.guide, model, args, kwargs):
            fit.diagnostics = judge(_MANY_SAMPLES)
    except KeyboardInterrupt:
        if fit.diagnostics is None:
            fit.note = "no diagnostics, because they were interrupted."
    except Exception as error:  # any failure, told in full: it must not take the fit with it
        first_line = str(error).partition("\n")[0]  # Pyro adds the shapes of every site
        fit.note = f"no diagnostics: {type(error).__name__}: {first_line}"
        warnings.warn(f"fit_guide: {fit.note}", stacklevel=3)


def _is_unclear(found: ImportanceDiagnostics) -> bool:
    """Whether k-hat contradicts weights that are nearly equal: of few draws it is mostly noise."""
    return found.vectorized and found.ess >= _EVEN and found.pareto_k > _GOOD_K


def _is_cheap(guide: Callable, model: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether many more draws take seconds."""
    flow = flow_draws(model, guide, args, kwargs, warn=False)
    if flow is None or not flow.vectorized:
        return False
    with seeded(0), torch.no_grad():
        points = guide.unregistered_posterior().rsample((3,))
    return _MANY_SAMPLES * numbers_per_point(flow.density, points) <= _AFFORDABLE


def _seconds_of_one(
    fit: GuideFit, model: Callable, args: tuple, kwargs: dict[str, Any]
) -> float | None:
    """What a draw of the diagnostics takes where the model is run for one at a time, else None."""
    if fit.vectorized is False and not isinstance(fit.guide, AutoFlow):
        return fit.seconds_per_step / fit.num_particles
    with seeded(0), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the diagnostics warn
        if _runs_together(fit.guide, model, args, kwargs):
            return None
        started = perf_counter()
        with poutine.block():
            drawn = poutine.trace(fit.guide).get_trace(*args, **kwargs)
            again = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
            for trace in (drawn, again):
                trace.log_prob_sum()
        return perf_counter() - started


def _runs_together(guide: Callable, model: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether many draws take one run of the model, as far as can be told beforehand."""
    try:
        if isinstance(guide, AutoFlow):
            flow = flow_draws(model, guide, args, kwargs)
            return flow is None or flow.vectorized
        return broadcasts(model, args, kwargs, "fit_guide")
    except (ValueError, RuntimeError):  # a model that cannot be read may run all the same
        return True
