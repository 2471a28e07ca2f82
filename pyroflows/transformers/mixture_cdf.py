"""The transformer of Gaussianization flows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .mixture import Components, MixtureTransformer, log_sum_exp
from .normal_tails import tail_quantile, tails

__all__ = ["MixtureCDF"]


@dataclass(frozen=True)
class MixtureCDF(MixtureTransformer):
    r"""The distribution function of a mixture of normals, sent back by the normal quantiles.

    .. math::

        y = T(x; p) + \lambda \, (x - T(x; 0)), \qquad
        T(x; p) = \Phi^{-1} \Bigl( \sum_k w_k \, \Phi \bigl( (x - m_k) / s_k \bigr) \Bigr)

    The map :math:`T` makes a mixture normal. The second term makes zero raws the identity while
    the components are spread, so that they learn different things; :math:`\lambda` is a raw
    parameter too, and where it is near zero the map is :math:`T`. No probability is clipped: the
    smaller tail is kept in logarithms, and far out the map is nearly a line, whose slope is that
    of the widest component.

    The inverse is numerical.

    References:
        | Gaussianization (Chen and Gopinath, 2000)
        | https://papers.nips.cc/paper/1856-gaussianization

        | Gaussianization Flows (Meng et al., 2020)
        | https://arxiv.org/abs/2003.01941

    Args:
        num_components: Number :math:`K` of normals.
        bound: How far a location :math:`m_k` can move.
        max_slope: Largest scale :math:`s_k` and largest ratio of weights, and inverse of the
            smallest.

    Raises:
        ValueError: If ``num_components`` is not an int of at least 2, ``bound`` not positive and
            finite, or ``max_slope`` not more than 1.

    Example:
        >>> transformer = MixtureCDF(num_components=4)
        >>> y, log_slope = transformer.forward_and_log_det(torch.ones(2), torch.zeros(2, 13))
        >>> print(y)
        tensor([1., 1.])
    """

    def mix(self, x: Tensor, components: Components) -> tuple[Tensor, Tensor]:
        per_scale = (-components.log_scale).exp()
        each = tails((x[..., None] - components.loc) * per_scale)
        below = components.log_weight + each.log_below
        above = components.log_weight + each.log_above
        log_cdf, log_rest = log_sum_exp(below), log_sum_exp(above)
        is_left = log_cdf < log_rest  # the smaller tail is kept
        distance, hazard = tail_quantile(torch.where(is_left, log_cdf, log_rest))
        # The densities are tails times hazards: the tails cancel before they are added up.
        is_left_of = is_left[..., None]
        shares = torch.where(is_left_of, below, above).softmax(-1)
        hazards = torch.where(is_left_of, each.hazard_below, each.hazard_above)
        slope = (shares * hazards * per_scale).sum(-1) / hazard
        return torch.where(is_left, -distance, distance), slope
