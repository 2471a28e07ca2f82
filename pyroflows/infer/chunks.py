"""The gradient of many draws: at once, in chunks, and shared out over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..bases import Base
from ..bijector import Bijector
from .checkpoint import random_state, set_random_state
from .distributed import Ranks
from .surrogate import (
    DrawWeights,
    FlowTerms,
    Surrogate,
    draw_weights,
    flow_surrogate,
    flow_terms,
    weighted_surrogate,
)

__all__ = ["FlowBatch", "add_gradients", "shared_surrogate", "value_in_chunks"]


class FlowBatch(NamedTuple):
    """The draws of one step; the parts are those of :func:`.surrogate.flow_surrogate`."""

    bijector: Bijector
    log_density: Callable[[Tensor], Tensor]
    noise: Tensor
    score_weight: float = 0.0
    tail_weight: float = 0.0
    tally: Tensor | None = None
    base: Base | None = None

    def terms(self) -> FlowTerms:
        """What each draw brings."""
        return flow_terms(
            self.bijector,
            self.log_density,
            self.noise,
            base=self.base,
            score_weight=self.score_weight,
            tally=self.tally,
        )


def shared_surrogate(batch: FlowBatch, ranks: Ranks) -> Surrogate:
    """The loss of the draws of all ranks; averaged over ranks, the gradients are that of it."""
    if ranks.size == 1:
        return flow_surrogate(**batch._asdict())
    terms, failed = _attempt(batch.terms, batch)
    log_weights = terms if failed else terms.log_weights
    weights = _over_ranks(log_weights, batch.tail_weight, ranks, failed)
    found = weighted_surrogate(terms, weights.own)
    return found._replace(log_weights=weights.log_weights)


def add_gradients(batch: FlowBatch, chunk_size: int, ranks: Ranks) -> Surrogate:
    """As :func:`shared_surrogate`, in chunks that go backward one by one; the loss has no graph.

    Weights of draws depend on all of them. So log weights come first, in a pass without a graph,
    where draws do not count alike. Where they do, one pass is enough, and another one corrects
    the number of draws that the mean is over in the rare step in which some are not finite.
    """
    if batch.noise.requires_grad:  # of a trained base: chunks meet in the noise, which goes last
        leaf = batch.noise.detach().requires_grad_()
        found = _add_in_chunks(batch._replace(noise=leaf), chunk_size, ranks)
        batch.noise.backward(leaf.grad)
        return found
    return _add_in_chunks(batch, chunk_size, ranks)


def _add_in_chunks(batch: FlowBatch, chunk_size: int, ranks: Ranks) -> Surrogate:
    chunks = _Chunks(batch, chunk_size)
    if batch.tail_weight:
        log_weights, failed = _attempt(lambda: _log_weights(chunks), batch)
        weights = _over_ranks(log_weights, batch.tail_weight, ranks, failed)
        _backward(chunks, weights.own)
    else:
        alike = 1.0 / len(batch.noise)
        values = batch.noise.new_full((len(batch.noise),), alike)
        first = DrawWeights(values, values.sum(), values.sum())
        log_weights, failed = _attempt(lambda: _backward(chunks, first), batch)
        weights = _over_ranks(log_weights, 0.0, ranks, failed)
        if weights.own.num_nonfinite:
            rest = torch.where(torch.isfinite(log_weights), weights.own.values - alike, 0)
            _backward(chunks, weights.own._replace(values=rest), counts=False)
    return Surrogate(-weights.own.elbo, weights.log_weights, weights.own.num_nonfinite)


def value_in_chunks(batch: FlowBatch, chunk_size: int, ranks: Ranks) -> Surrogate:
    """The loss of the draws of all ranks, without gradients."""
    log_weights, failed = _attempt(lambda: _log_weights(_Chunks(batch, chunk_size)), batch)
    weights = _over_ranks(log_weights, 0.0, ranks, failed)
    return Surrogate(-weights.own.elbo, weights.log_weights, weights.own.num_nonfinite)


class _Shared(NamedTuple):
    own: DrawWeights
    log_weights: Tensor  # of all ranks


def _over_ranks(log_weights: Tensor, tail_weight: float, ranks: Ranks, failed: bool) -> _Shared:
    everyone = ranks.gather(log_weights, failed)
    weights = draw_weights(everyone.flatten(), tail_weight)
    values = weights.values.view_as(everyone)[ranks.rank] * ranks.size
    return _Shared(weights._replace(values=values), everyone.flatten())


def _attempt(fn: Callable, batch: FlowBatch) -> tuple[Any, bool]:
    """What ``fn`` returns, or zeros where a matrix could not be factorised: others must hear."""
    try:
        return fn(), False
    except torch.linalg.LinAlgError:
        return batch.noise.new_zeros(len(batch.noise)), True


class _Chunks:
    """Parts of a batch, gone through once or more, from one random state.

    So all of them, and all passes, see the same mini-batch of data.
    """

    def __init__(self, batch: FlowBatch, chunk_size: int) -> None:
        self._batch = batch
        self._parts = batch.noise.split(chunk_size)
        self._state = random_state(batch.noise.device)
        # One by one, each draw has a mini-batch of its own, in one batch too.
        self._rewinds = getattr(batch.log_density, "vectorized", True)

    def __iter__(self) -> Iterator[FlowBatch]:
        for i, noise in enumerate(self._parts):
            if i == 0 or self._rewinds:
                set_random_state(self._state, noise.device)
            yield self._batch._replace(noise=noise)


def _log_weights(chunks: _Chunks) -> Tensor:
    with torch.no_grad():
        # With the score in it, nothing is differentiated; the numbers are the same.
        return torch.cat([c._replace(score_weight=1.0).terms().log_weights for c in chunks])


def _backward(chunks: _Chunks, weights: DrawWeights, counts: bool = True) -> Tensor:
    found, start = [], 0
    for chunk in chunks:
        terms = (chunk if counts else chunk._replace(tally=None)).terms()
        values = weights.values[start : start + len(chunk.noise)]
        start += len(chunk.noise)
        found.append(terms.log_weights)
        weighted_surrogate(terms, weights._replace(values=values)).loss.backward()
    return torch.cat(found)
