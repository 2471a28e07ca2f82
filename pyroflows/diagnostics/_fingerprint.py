"""Tell whether two conversions are of one model: its log density at two places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites

from ..infer.draws import seeded
from ..latents import bijection_onto

__all__ = ["fingerprint"]

_PLACES = (0.0, 0.37)  # on every unconstrained coordinate


class _At(Messenger):
    """Put every continuous latent at one place."""

    def __init__(self, place: float) -> None:
        super().__init__()
        self.place = place

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or msg["done"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        fn = msg["fn"]
        try:
            transform = bijection_onto(fn.support)
        except NotImplementedError:  # a discrete one is drawn, by the same seed each time
            return
        like = _value_of(fn)
        shape = transform.inverse_shape(fn.shape())
        place = torch.full(shape, self.place, dtype=like.dtype, device=like.device)
        msg["value"], msg["done"] = transform(place), True


def _value_of(fn: Any) -> torch.Tensor:
    """A value, for its dtype and device; an improper law has none, and takes the defaults."""
    try:
        return fn.sample()
    except NotImplementedError:
        return torch.zeros(())


def fingerprint(
    model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
) -> list[float] | None:
    """Return the log joint density at two places; None where it cannot be told."""
    try:
        return [_log_density(model, args, kwargs, place) for place in _PLACES]
    except Exception:  # whatever a model raises at a place where it never was
        return None


def _log_density(
    model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any], place: float
) -> float:
    with seeded(0), torch.no_grad(), pyro.validation_enabled(False), _At(place):
        trace = prune_subsample_sites(poutine.trace(model).get_trace(*args, **kwargs))
    trace.compute_log_prob()
    terms = [n["log_prob"] for n in trace.nodes.values() if n["type"] == "sample"]
    return sum(float(term.detach().double().sum()) for term in terms)
