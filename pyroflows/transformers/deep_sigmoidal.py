"""The deep sigmoidal transformer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from .mixture import Components, MixtureTransformer, log_sum_exp

__all__ = ["DeepSigmoidal"]


@dataclass(frozen=True)
class DeepSigmoidal(MixtureTransformer):
    r"""A mixture of sigmoids, sent back by the logit, as in neural autoregressive flows.

    .. math::

        y = T(x; p) + \lambda \, (x - T(x; 0)), \qquad
        T(x; p) = \operatorname{logit} \sum_k w_k \, \sigma \bigl( (x - m_k) / s_k \bigr)

    The second term makes zero raws the identity while the components are spread, so that they
    learn different things; :math:`\lambda` is a raw parameter too, and where it is near zero the
    map is the :math:`T` of the paper. All is computed from the logarithms of both tails, so that
    nothing saturates: far out the map is a line, whose slope is that of the widest component.

    The inverse is numerical.

    References:
        | Neural Autoregressive Flows (Huang et al., 2018)
        | https://arxiv.org/abs/1804.00779

    Args:
        num_components: Number :math:`K` of sigmoids.
        bound: How far a location :math:`m_k` can move.
        max_slope: Largest scale :math:`s_k` and largest ratio of weights, and inverse of the
            smallest.

    Raises:
        ValueError: If ``num_components`` is not an int of at least 2, ``bound`` not positive and
            finite, or ``max_slope`` not more than 1.

    Example:
        >>> transformer = DeepSigmoidal(num_components=4)
        >>> y, log_slope = transformer.forward_and_log_det(torch.ones(2), torch.zeros(2, 13))
        >>> print(y)
        tensor([1., 1.])
    """

    def mix(self, x: Tensor, components: Components) -> tuple[Tensor, Tensor]:
        scaled = (x[..., None] - components.loc) * (-components.log_scale).exp()
        below = components.log_weight + logsigmoid(scaled)
        above = components.log_weight + logsigmoid(-scaled)
        log_cdf, log_rest = log_sum_exp(below), log_sum_exp(above)
        # Shares of both tails, ratios of like sizes: the tails cancel before they are added up.
        shares = below.softmax(-1) * above.softmax(-1)
        slope = (shares * (-components.log_weight - components.log_scale).exp()).sum(-1)
        return log_cdf - log_rest, slope
