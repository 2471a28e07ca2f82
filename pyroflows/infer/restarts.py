"""Independent refits of a guide, and whether they agree with the first fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor

from ..guides import AutoFlow
from ..guides.again import made_again
from .importance import ImportanceDiagnostics
from .opening import dormant_parts
from .report import GuideFit, Restart

__all__ = ["refit"]

_FIRST_SEED = 7919  # the fits of neighbouring seeds share no refit
_NUM_DRAWS = 4096
# Two fits may differ by noise, or by as much as nobody minds.
_SURE = 4.0  # standard errors
_LOG_Z_BAR = 0.05  # nat
_SHIFT_BAR = 0.2  # standard deviations of the better fit
_SPREAD_BAR = 0.2


def refit(
    first: GuideFit,
    fit_again: Callable[[AutoFlow, int | None], GuideFit],
    args: tuple,
    kwargs: dict[str, Any],
    number: int,
) -> GuideFit:
    """Fit guides made anew, keep the best of all, and judge it by the others too.

    Args:
        first: The fit to compare with, of an ``AutoFlow``, with diagnostics.
        fit_again: Fits a guide from a seed.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        number: How many times.
    """
    fits = [first]
    for i in range(1, number + 1):
        seed = None if first.seed is None else first.seed + _FIRST_SEED * i
        name = f"{first.guide._pyro_name}_restart_{i}"
        twin = made_again(first.guide, args, kwargs, i, name)
        fits.append(fit_again(twin, seed))
        _forget(name)
        if fits[-1].stop_reason == "interrupted":
            break
    judged = [fit for fit in fits if fit.diagnostics is not None]
    if len(judged) < 2:
        warnings.warn("fit_guide: no refit could be judged, so none was compared.", stacklevel=3)
        return first
    best = max(judged, key=lambda fit: fit.diagnostics.elbo)
    moments = {id(fit): _moments(fit.guide) for fit in judged}
    others = [fit for fit in judged if fit is not best]
    restarts = tuple(_compare(fit, moments[id(fit)], moments[id(best)]) for fit in others)
    if best is not first:
        _take_over(first.guide, best.guide)
    diagnostics = _judge(best.diagnostics, restarts)
    return replace(best, guide=first.guide, restarts=restarts, diagnostics=diagnostics)


def _forget(name: str) -> None:
    """Leave nothing of a refit in Pyro's store."""
    store = pyro.get_param_store()
    for key in [key for key in store if key.startswith(name)]:
        del store[key]


@torch.no_grad()
def _moments(guide: AutoFlow) -> tuple[Tensor, Tensor]:
    u = guide.unregistered_posterior().rsample((_NUM_DRAWS,)).double()
    return u.mean(0), u.std(0)


def _compare(fit: GuideFit, own: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor]) -> Restart:
    found = fit.diagnostics
    shift = float(((own[0] - kept[0]) / kept[1]).abs().max())
    log_ratio = (own[1] / kept[1]).log()
    spread = math.exp(float(log_ratio[log_ratio.abs().argmax()]))
    return Restart(fit.seed, found.elbo, found.log_z, found.log_z_se, found.verdict, shift, spread)


def _take_over(guide: AutoFlow, best: AutoFlow) -> None:
    """Give the user's guide the parameters, and the modes seen, of another."""
    guide.load_state_dict(best.state_dict())
    for own, other in zip(dormant_parts(guide), dormant_parts(best), strict=True):
        own.awake = other.awake
    guide.report, guide.modes = best.report, best.modes


def _judge(
    diagnostics: ImportanceDiagnostics, restarts: tuple[Restart, ...]
) -> ImportanceDiagnostics:
    """Hold what the refits say against the fit that was kept."""
    against, to_reweight = [], []
    for restart in restarts:
        more = restart.log_z - diagnostics.log_z
        bar = _LOG_Z_BAR + _SURE * math.hypot(restart.log_z_se, diagnostics.log_z_se)
        if more > bar and restart.verdict != "do not trust":
            against.append(
                f"an independent refit finds a log Z that is {more:.2g} nat higher, so a part of "
                "the posterior is missing here"
            )
        elif restart.shift > _SHIFT_BAR or not abs(math.log(restart.spread)) <= _SPREAD_BAR:
            to_reweight.append(
                f"an independent refit has a mean {restart.shift:.2f} standard deviations away, "
                f"or a standard deviation {restart.spread:.2f} times this one's"
            )
    if against:
        kept = diagnostics.reasons if diagnostics.verdict == "do not trust" else ()
        return replace(diagnostics, verdict="do not trust", reasons=(*kept, *against))
    if to_reweight and diagnostics.verdict == "usable":
        return replace(diagnostics, verdict="reweight", reasons=tuple(to_reweight))
    return diagnostics
