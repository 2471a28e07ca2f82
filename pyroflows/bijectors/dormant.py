"""A part of a flow that can be left out for a while."""

from __future__ import annotations

from torch import Tensor

from ..bijector import Bijector

__all__ = ["Dormant"]


class Dormant(Bijector):
    r"""A bijector that is the identity while it sleeps.

    .. math:: y = f(x; c) \text{ while } \mathtt{awake}, \quad y = x \text{ otherwise}

    A flow whose larger part starts as the identity is that without it, at a fraction of the cost:
    a fit begins with the smaller part, and wakes the rest if it is worth its price. Awake at
    first; asleep it takes no time, and its parameters receive no gradient. Sleep is no part of
    ``state_dict``: what is loaded is awake.

    Args:
        bijector: The bijector :math:`f`.

    Raises:
        TypeError: If it is none.

    Example:
        >>> import torch
        >>> from pyroflows.bijectors import LocScale
        >>> flow = Dormant(LocScale(2))
        >>> flow.awake = False
        >>> print(flow(torch.ones(2)))
        tensor([1., 1.])
    """

    def __init__(self, bijector: Bijector) -> None:
        if not isinstance(bijector, Bijector):
            raise TypeError(f"Dormant expected a Bijector, got {type(bijector).__name__}.")
        super().__init__(bijector.dim, context_dim=bijector.context_dim)
        self.bijector = bijector
        self.awake = True

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.awake:
            return self.bijector.forward_and_log_det(x, context)
        return _unmoved(x, context)

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.awake:
            return self.bijector.inverse_and_log_det(y, context)
        return _unmoved(y, context)

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.awake:
            return self.bijector._forward_with_score(x, score, context)
        return (*_unmoved(x, context), score)


def _unmoved(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    if context is not None:  # each context has an image of its own
        x = x.expand(*(x[..., :1] + context[..., :1]).shape[:-1], x.shape[-1])
    return x, x.new_zeros(x.shape[:-1])
