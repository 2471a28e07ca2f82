"""The unconstrained monotonic network transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .fused import bounded
from .numerical import NumericalTransformer

__all__ = ["MonotonicNetwork"]

# Units times the bound over the number of nodes. Over networks drawn at the limits of every raw
# parameter, the quadrature's slope is within 1 % of the integrand's; at 0.3 it can be negative.
_SHARPNESS = 0.2
_STEEPEST = 1e3


@dataclass(frozen=True)
class MonotonicNetwork(NumericalTransformer):
    r"""The integral of a positive network, as in unconstrained monotonic neural networks.

    .. math::

        y = y_0 + \int_0^x g(t) \, \mathrm{d} t, \qquad
        \log g(t) = v_0 + \sum_j v_j \tanh \bigl( a_j (t - c_j) \bigr)

    The raw parameters are all the weights of the network :math:`g`, which has one hidden layer:
    the conditioner is a hyper-network, and coordinates share nothing. Zeros are the identity.

    The integral is a Gauss-Legendre sum at nodes between 0 and :math:`x`, and the log-slope is the
    derivative of that sum, not :math:`g`: value and slope belong together to rounding, however many
    nodes. No unit is sharper than the nodes resolve (:math:`a_j \le 0.2 N / B`), so that the sum
    grows with :math:`x` and is right to a per cent at the very worst. Outside :math:`[-B, B]` the
    map goes on as a line, at the slope of the end.

    The inverse is numerical.

    References:
        | Unconstrained Monotonic Neural Networks (Wehenkel and Louppe, 2019)
        | https://arxiv.org/abs/1908.05164

    Args:
        num_units: Number of hidden units of :math:`g`.
        num_nodes: Number :math:`N` of nodes: the cost, and how sharp the map can bend.
        bound: End :math:`B` of the interval.
        max_slope: Largest slope, and inverse of the smallest; at most 1000.

    Raises:
        ValueError: If a number is not a positive int, ``bound`` not positive and finite, or
            ``max_slope`` not more than 1 and at most 1000.

    Example:
        >>> transformer = MonotonicNetwork(num_units=4)
        >>> y, log_slope = transformer.forward_and_log_det(torch.ones(2), torch.zeros(2, 14))
        >>> print(y)
        tensor([1., 1.])
    """

    num_units: int = 8
    num_nodes: int = 32
    bound: float = 5.0
    max_slope: float = 1e3

    def __post_init__(self) -> None:
        for name in ("num_units", "num_nodes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} expected a positive int, got {value!r}.")
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound expected a positive, finite number, got {self.bound}.")
        if not 1 < self.max_slope <= _STEEPEST:
            raise ValueError(
                f"max_slope expected a number above 1 and at most {_STEEPEST:g} (the quadrature "
                f"resolves no more), got {self.max_slope}."
            )
        # Computed here, where no compiler looks: it could not follow numpy's search for roots.
        nodes, weights = np.polynomial.legendre.leggauss(self.num_nodes)
        rule = ((1 + nodes) / 2).tolist(), (weights / 2).tolist()
        object.__setattr__(self, "_unit_interval", rule)

    @property
    def num_params(self) -> int:
        return 3 * self.num_units + 2

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.bound, self.bound)
        nodes, weights = (x.new_tensor(values) for values in self._unit_interval)
        at = inside[..., None] * nodes
        log_g, log_g_slope = self._network(at, params[..., 1:])
        g = weights * log_g.exp()
        slope = (g * (1 + at * log_g_slope)).sum(-1)
        y = params[..., 0] + inside * g.sum(-1) + slope * (x - inside)
        return y, slope.log()

    def _network(self, at: Tensor, raws: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of the integrand and its slope, at values of shape ``(*, N)``."""
        number, bound = self.num_units, self.bound
        height, sharpness, centre = raws.split([number + 1, number, number], -1)
        sharpest = _SHARPNESS * self.num_nodes / bound
        steps = torch.arange(number, dtype=raws.dtype, device=raws.device)
        spread = bound * ((2 * steps + 1) / number - 1)
        height = height / (1 + height.abs().sum(-1, keepdim=True) / math.log(self.max_slope))
        sharpness = (sharpest * (1 + bounded(sharpness, 1.0)) / 2)[..., None, :]
        centre = (spread + bounded(centre, bound))[..., None, :]
        unit = torch.tanh(sharpness * (at[..., None] - centre))
        log_g = height[..., :1] + (unit @ height[..., 1:, None])[..., 0]
        rise = (1 - unit.square()) * sharpness
        return log_g, (rise @ height[..., 1:, None])[..., 0]
