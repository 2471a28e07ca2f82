"""The path gradient of a flow as one pure function of tensors.

Nothing here has state, looks at the numbers in a tensor or draws at random, so that a step can be
traced once and replayed, cut into chunks, or shared out over processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..bases import Base
from ..bijector import Bijector

__all__ = [
    "DrawWeights",
    "FlowTerms",
    "Surrogate",
    "draw_weights",
    "flow_surrogate",
    "flow_terms",
    "weighted_surrogate",
]

_MAX_RATIO = 10.0  # of a draw's weight to the mean weight


class FlowTerms(NamedTuple):
    """What each draw brings to the objective.

    Args:
        log_weights: The log of p / q, shape ``(K)``, detached.
        parts: Numbers whose gradients are each draw's part of that of the ELBO, shape ``(K)``.
    """

    log_weights: Tensor
    parts: Tensor


class DrawWeights(NamedTuple):
    """What each draw counts for, among all that there are.

    Args:
        values: In the gradient, shape ``(K)``; zero for draws that are not finite.
        elbo: The mean log weight of all finite draws; NaN if there is none.
        num_nonfinite: The number of the others.
    """

    values: Tensor
    elbo: Tensor
    num_nonfinite: Tensor


class Surrogate(NamedTuple):
    """The objective of one step.

    Args:
        loss: Minus the ELBO, with the gradient to follow; NaN without finite draws.
        log_weights: The log of p / q of each draw, shape ``(K)``, detached.
        num_nonfinite: How many of them are not finite; they count for nothing.
    """

    loss: Tensor
    log_weights: Tensor
    num_nonfinite: Tensor


def flow_surrogate(
    bijector: Bijector,
    log_density: Callable[[Tensor], Tensor],
    noise: Tensor,
    *,
    base: Base | None = None,
    score_weight: float = 0.0,
    tail_weight: float = 0.0,
    weights: DrawWeights | None = None,
    tally: Tensor | None = None,
) -> Surrogate:
    """Return minus the ELBO of some draws, with its path gradient.

    Args:
        bijector: The map from noise to draws.
        log_density: Maps draws ``(K, D)`` to log densities ``(K)``.
        noise: Draws of the base, with gradients to its parameters, shape ``(K, D)``.
        base: What they are drawn from; the standard normal unless given.
        score_weight: As in :class:`~pyroflows.PathELBO`; a number, not a tensor.
        tail_weight: As in :class:`~pyroflows.PathELBO`; a number, not a tensor.
        weights: What these draws count for where they are a part of more; the loss is then that
            of all, its gradient their part. By default :func:`draw_weights` of their own.
        tally: A scalar that requires a gradient: its gradient counts the draws at which that of
            the model is not finite. They are left out, counted or not.
    """
    terms = flow_terms(
        bijector, log_density, noise, base=base, score_weight=score_weight, tally=tally
    )
    if weights is None:
        weights = draw_weights(terms.log_weights, tail_weight)
    return weighted_surrogate(terms, weights)


def flow_terms(
    bijector: Bijector,
    log_density: Callable[[Tensor], Tensor],
    noise: Tensor,
    *,
    base: Base | None = None,
    score_weight: float = 0.0,
    tally: Tensor | None = None,
) -> FlowTerms:
    """Draw and score; the arguments are those of :func:`flow_surrogate`."""
    if score_weight == 1:
        draws, log_det = bijector.forward_and_log_det(noise)
    else:
        noise_score = -noise if base is None else base.score(noise)
        draws, log_det, score = bijector.forward_with_score(noise, noise_score)
    if draws.requires_grad:
        draws = _DropNonfinite.apply(draws, noise.new_zeros(()) if tally is None else tally)
    log_q = (_standard_normal(noise) if base is None else base.log_prob(noise)) - log_det
    parts = log_p = log_density(draws)
    if score_weight:
        parts = parts - score_weight * log_q
    if score_weight != 1:  # log q enters only through its gradient at the draw
        parts = parts - (1 - score_weight) * (draws * score).sum(-1)
    return FlowTerms(log_p.detach() - log_q.detach(), parts)


def draw_weights(log_weights: Tensor, tail_weight: float = 0.0) -> DrawWeights:
    """Return between one and its importance weight for each draw, over their number.

    It is nearer to the importance weight, the more these are to be relied on: in proportion to
    ``tail_weight`` and to the effective sample size.

    Args:
        log_weights: The log of p / q of all draws, shape ``(K)``, detached.
        tail_weight: From 0, equal weights, to 1.
    """
    finite = torch.isfinite(log_weights)
    number = finite.sum()
    elbo = torch.where(finite, log_weights, 0).sum() / number
    share = number.clamp_min(1).to(log_weights.dtype).reciprocal()
    if not tail_weight:
        return DrawWeights(finite * share, elbo, (~finite).sum())
    ratio = torch.where(finite, log_weights, -torch.inf).softmax(-1) * number
    ess = number / ratio.square().sum()
    ratio = ratio.clamp_max(_MAX_RATIO)
    factor = torch.lerp(torch.ones_like(ratio), ratio, tail_weight * ess)
    return DrawWeights(torch.where(finite, factor * share, 0), elbo, (~finite).sum())


def weighted_surrogate(terms: FlowTerms, weights: DrawWeights) -> Surrogate:
    """Bring terms and weights together."""
    finite = torch.isfinite(terms.log_weights)
    surrogate = (torch.where(finite, terms.parts, 0) * weights.values).sum()
    loss = -(weights.elbo + (surrogate - surrogate.detach()))
    return Surrogate(loss, terms.log_weights, weights.num_nonfinite)


class _DropNonfinite(torch.autograd.Function):
    """The identity; rows of its gradient that are not finite become zero, and are counted.

    The count comes out as the gradient of a second argument, so that nothing is written on the
    way back and a trace holds all there is.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(draws: Tensor, tally: Tensor) -> Tensor:
        return draws.view_as(draws)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.tally_dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        # Zero times what is not finite is NaN, and so is any sum with it. As a product with ones,
        # because compilers fuse a row's reduction with what follows, and err for some layouts.
        finite = (grad * 0) @ grad.new_ones(grad.shape[-1], 1) == 0
        return torch.where(finite, grad, 0), (~finite).sum().to(ctx.tally_dtype)


def _standard_normal(noise: Tensor) -> Tensor:
    return -0.5 * noise.square().sum(-1) - 0.5 * noise.shape[-1] * math.log(2 * math.pi)
