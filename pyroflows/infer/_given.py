"""Draws of a guide, of chains or of the prior, seen through a model and not judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ._log_prob import is_deterministic
from ._sites import GuideDraws, Keep, NewData, samples
from .draws import ModelRun, seeded

__all__ = ["given_draws", "plain_draws", "prior_draws"]


def plain_draws(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    num_samples: int,
    seed: int | None = None,
) -> GuideDraws:
    """Draw from a guide, everything of the model too, and leave the search for what it misses."""
    with seeded(seed):
        run = ModelRun(model, guide, tuple(model_args), dict(model_kwargs or {}))
    return _all(run, num_samples, seed, None)


def given_draws(
    model: Callable[..., Any],
    values: Mapping[str, Tensor],
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
) -> GuideDraws:
    """Run a model on draws of its latents: everything of it, new data too; log q is zero.

    Args:
        model: A Pyro model, conditioned on its data.
        values: Draws by site, ``(S, *shape)``, equally many of each.
        model_args: Positional arguments of the model.
        model_kwargs: Arguments by name.
        seed: Of new data; None draws on.
        batch_size: Draws that go through together; chosen by size unless given.

    Raises:
        ValueError: If a site is none of the model's, or has another shape.
    """
    run = _GivenRun(model, values, tuple(model_args), dict(model_kwargs or {}))
    return _all(run, run.num_given, seed, batch_size)


def prior_draws(
    model: Callable[..., Any],
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    num_samples: int,
    seed: int | None = None,
    batch_size: int | None = None,
) -> GuideDraws:
    """Draw latents from the prior, and data from the model.

    Raises:
        NotImplementedError: If a prior has no draws.
    """
    args, kwargs = tuple(model_args), dict(model_kwargs or {})
    simulator = NewData()(model)
    with seeded(0), torch.no_grad():
        trace = poutine.trace(simulator).get_trace(*args, **kwargs)
    hidden = {
        name
        for name, node in samples(trace)
        if node["infer"].get("was_observed") or is_deterministic(node)
    }
    prior = poutine.block(simulator, hide_fn=lambda msg: msg["name"] in hidden)
    with seeded(0):
        run = ModelRun(model, prior, args, kwargs)
    return _all(run, num_samples, seed, batch_size)


def _all(run: ModelRun, num: int, seed: int | None, batch_size: int | None) -> GuideDraws:
    keep = Keep(run.complete and not run.marginalized, predictive=True)
    with seeded(seed), torch.no_grad(), pyro.validation_enabled(False):
        parts, vectorized = run.all(num, batch_size, keep)
        return run.collect(parts, vectorized, None)


class _GivenRun(ModelRun):
    """A model whose latents are taken from draws, one part after the other."""

    def __init__(
        self, model: Callable, values: Mapping[str, Tensor], args: tuple, kwargs: dict
    ) -> None:
        self.given = {name: torch.as_tensor(value).detach() for name, value in values.items()}
        self.num_given = len(next(iter(self.given.values())))
        self._next: int | None = None
        self._together = False
        self._shown = slice(0, 1)  # the part of the draws that the last trace was made of
        try:
            super().__init__(model, self._first, args, kwargs)
        except (RuntimeError, IndexError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"from_mcmc: the model does not run on the draws of the chains ({reason}); pass "
                "the arguments that the chains ran with."
            ) from error

    def _first(self, *args: Any, **kwargs: Any) -> None:
        """Stand in for a guide in the one run that shows the sites."""
        for name, value in self.given.items():
            pyro.sample(name, dist.Delta(value[0], event_dim=value.dim() - 1))

    def all(self, num_samples: int, batch_size: int | None, keep: Keep) -> tuple[list[Any], bool]:
        self._check_shapes()
        self._next = 0
        return super().all(num_samples, batch_size, keep)

    def _part(self, num: int | None, keep: Keep, check: bool = False) -> Any:
        if num is None and self._together:
            self._next = 0  # they did not go together: one by one, from the first
        self._together = num is not None
        return super()._part(num, keep, check)

    def _check_shapes(self) -> None:
        for name, value in self.given.items():
            shape = self.sites[name].shape
            if value[0].numel() != shape.numel():
                raise ValueError(
                    f"from_mcmc: draws of '{name}' have shape {tuple(value.shape[1:])}, but the "
                    f"model gives it {tuple(shape)}; pass the arguments that the chains ran with."
                )

    def traces(
        self, num: int | None, fixed: poutine.Trace | None = None
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Trace the model with the next draws; those of ``fixed`` instead, if given."""
        if fixed is None:
            start = self._next or 0
            self._shown = slice(start, start + (num or 1))
            if self._next is not None:
                self._next += num or 1
            fixed = self._trace_of(self._shown, num)
        return fixed, self.replayed(self.model, fixed, num)

    def _trace_of(self, rows: slice, num: int | None) -> poutine.Trace:
        trace = poutine.Trace()
        for name, given in self.given.items():
            site, value = self.sites[name], given[rows]
            value = value.reshape(len(value), *site.shape)
            if num is None:
                value = value[0]
            else:
                num_batch = len(site.shape) - site.event_dim
                padding = (1,) * (self.max_plate_nesting - num_batch)
                value = value.reshape(num, *padding, *site.shape)
            fn = dist.Delta(value, event_dim=site.event_dim)
            node = self.guide_trace.nodes[name]
            trace.add_node(name, **{**node, "fn": fn, "value": value, "infer": {}, "scale": 1.0})
            trace.nodes[name]["cond_indep_stack"] = ()
        return trace

    def _pick(self, guide_trace: poutine.Trace, num: int, index: int) -> poutine.Trace:
        row = self._shown.start + index
        return self._trace_of(slice(row, row + 1), None)
