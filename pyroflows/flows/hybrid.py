"""A flow of several kinds of layers, for posteriors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..bijector import Bijector, Compose
from ..bijectors import Autoregressive, Dormant, Elementwise
from ..networks import Activation, Chain
from ..transformers import Affine, RationalQuadraticSpline
from .layers import checked_layers, couplings
from .registry import register_flow

__all__ = ["hybrid"]

_SPLINES_UP_TO = 16
_STEPS_UP_TO = 128
_REACH = 3.0  # standard deviations of the base: beyond, networks have seen too few draws
# The log-scales of a funnel span several powers of e, in a straight line.
_SHAPE = RationalQuadraticSpline(8, 8.0)
_FUNNEL = Affine(max_log_scale=10.0, sharpness=8)
_BACK = Affine(max_log_scale=3.0, sharpness=8)  # one such range is enough


@register_flow("hybrid")
def hybrid(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    num_bins: int = 8,
    bound: float = 8.0,
    activation: Activation = "silu",
    order: Sequence[int] | None = None,
) -> Bijector:
    """Couplings, splines, then a layer of linear shifts and log-scales: for posteriors, `auto`.

    The last layer is a funnel's, and with an affine map after it what skews a posterior at first
    order; a spline for each coordinate makes that the posterior of a regression whose scale comes
    first in the order. The couplings add the rest: half of them splines in up to 16 dimensions,
    none above.
    """
    options = {"hidden_dims": hidden_dims, "activation": activation, "reach": _REACH}
    number, num_splines = checked_layers(num_layers), 0
    if dim <= _SPLINES_UP_TO:
        num_splines = number if dim == 1 else number // 2
    layers = []
    if num_splines:
        spline = RationalQuadraticSpline(num_bins, bound)
        layers += couplings(dim, context_dim, num_splines, spline, options)
    if number > num_splines:
        layers += couplings(dim, context_dim, number - num_splines, Affine(3.0), options)
    rest = Dormant(_at_identity(Compose(*layers)))
    network = {"hidden_dims": hidden_dims, "activation": activation}  # of the context, if any
    shapes = Elementwise(dim, context_dim=context_dim, transformer=_SHAPE, **network)
    shapes = _at_identity(shapes)
    if dim > _STEPS_UP_TO:
        return Compose(rest, Dormant(shapes))
    order = list(range(dim) if order is None else order)
    options = {"context_dim": context_dim, "hidden_dims": ()}
    if dim > 1:
        back = Autoregressive(dim, order=order[::-1], transformer=_BACK, **options)
        shapes = Compose(shapes, back)
    last = Autoregressive(dim, order=order, transformer=_FUNNEL, **options)
    return Compose(rest, Dormant(shapes), last)


def _at_identity(bijector: Bijector) -> Bijector:
    """Start as the identity to the last digit, so that it is all one whether it sleeps."""
    for module in bijector.modules():
        if isinstance(module, Chain):
            for parameter in module.linears[-1].parameters():
                nn.init.zeros_(parameter)
    return bijector
