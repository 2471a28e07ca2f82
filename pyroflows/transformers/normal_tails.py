r"""Tails of the standard normal in logarithms, right to the ends of the dtype.

What torch has loses its derivatives far out (they are differences of large numbers), and its
quantile function takes a probability, which far out is zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Tails", "tail_quantile", "tails"]

_FAR = 20.0
_DEEP = -50.0
# Of t (h(t) - t) in powers of 1 / t^2, where h is the hazard: 1 - 2 / t^2 + 10 / t^4 ...
_SERIES = (1.0, -2.0, 10.0, -74.0, 706.0, -8162.0, 110410.0, -1708394.0, 29752066.0)
_LOG_2PI = math.log(2 * math.pi)


class Tails(NamedTuple):
    r"""Both tails beyond :math:`z`, and the density over each."""

    log_below: Tensor
    log_above: Tensor
    hazard_below: Tensor
    hazard_above: Tensor


def tails(z: Tensor) -> Tails:
    r"""Return :math:`\log \Phi(\pm z)` and the hazards :math:`\varphi(z) / \Phi(\pm z)`."""
    is_left = z < 0
    log_small, hazard = _beyond(torch.where(is_left, -z, z))
    small = log_small.exp()
    log_large, other = torch.log1p(-small), hazard * small / (1 - small)
    return Tails(
        torch.where(is_left, log_small, log_large),
        torch.where(is_left, log_large, log_small),
        torch.where(is_left, hazard, other),
        torch.where(is_left, other, hazard),
    )


def tail_quantile(log_p: Tensor) -> tuple[Tensor, Tensor]:
    r"""Solve :math:`\log (1 - \Phi(t)) = \log p` for :math:`t`, where :math:`p \le 1/2`.

    The last two steps, of Newton's method, are in the graph, so that what is differentiated is a
    solution to the precision of the dtype.

    Returns:
        The solution and the hazard there.
    """
    given = log_p.detach()
    is_deep = given < _DEEP
    near = -torch.special.ndtri(torch.where(is_deep, _DEEP, given).exp())
    square = -2 * torch.where(is_deep, given, _DEEP)
    far = square.sqrt()
    for _ in range(3):
        far = (square - _LOG_2PI - 2 * (far + 1 / far).log()).sqrt()
    t = torch.where(is_deep, far, near)
    for _ in range(2):
        log_tail, hazard = _beyond(t)
        t = t + (log_tail - log_p) / hazard
    return t, _beyond(t)[1]


def _beyond(t: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\log (1 - \Phi(t))` and the hazard, where :math:`t` is not negative."""
    near, far = t.clamp(max=_FAR), t.clamp(min=_FAR)
    u, series = far.square().reciprocal(), torch.full_like(t, _SERIES[-1])
    for number in reversed(_SERIES[:-1]):
        series = number + u * series
    hazard = math.sqrt(2 / math.pi) / torch.special.erfcx(near / math.sqrt(2))
    hazard = torch.where(t > _FAR, far + series / far, hazard)
    return -t.square() / 2 - _LOG_2PI / 2 - hazard.log(), hazard
