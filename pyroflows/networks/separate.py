"""Raw parameters of each coordinate by a network of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn

from .chain import check_given
from .conditioner import Conditioner
from .own import Network

__all__ = ["SeparateConditioner"]


class SeparateConditioner(nn.Module):
    """Raw parameters of each coordinate, by a network of those before it and the context.

    As many networks as coordinates, none of which needs masks: so any module will do.

    Args:
        dim: Number of coordinates.
        num_params: Number of raw parameters per coordinate.
        network: As in :class:`Conditioner`.
        order: The coordinates, first to last; as they come if not given.
        context_dim: Size of the context, or 0 for none.
        periods: Of each coordinate its period if it is an angle, as in :class:`Conditioner`.

    Raises:
        TypeError: When called, if a context is missing or unexpected.
        ValueError: When called, if a width is wrong.

    Example:
        >>> network = SeparateConditioner(3, 2, nn.Linear)
        >>> print(network(torch.ones(7, 3)).shape)
        torch.Size([7, 3, 2])
    """

    def __init__(
        self,
        dim: int,
        num_params: int,
        network: Network,
        *,
        order: Sequence[int] | None = None,
        context_dim: int = 0,
        periods: Sequence[float | None] = (),
    ) -> None:
        super().__init__()
        self.shape = Size((dim, num_params))
        self.context_dim = context_dim
        self.order = list(range(dim) if order is None else order)
        self.rank = [self.order.index(i) for i in range(dim)]
        self.conditioners = nn.ModuleList(
            Conditioner(
                place,
                (num_params,),
                context_dim=context_dim,
                network=network,
                periods=[periods[i] for i in self.order[:place]] if periods else (),
            )
            for place in range(dim)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the raw parameters, with shape ``(*batch, dim, num_params)``."""
        check_given("x", x, self.shape[0])
        check_given("context", context, self.context_dim)
        batch = x.shape[:-1]
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
        raws = [
            self.at(place, x[..., self.order[:place]], context).expand(*batch, -1)
            for place in range(len(self.order))
        ]
        return torch.stack([raws[place] for place in self.rank], dim=-2)

    def at(self, place: int, before: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the raw parameters of the coordinate at a place of the order.

        Args:
            place: The place.
            before: The coordinates before it, in their order, with shape ``(*batch, place)``.
            context: Contexts, with shape ``(*batch, context_dim)``.
        """
        return self.conditioners[place](before if place else None, context)
