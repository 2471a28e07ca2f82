"""Raw parameters of each coordinate as a function of those before it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Size, Tensor, nn

from .angles import Angles
from .chain import Activation, Chain, MaskedLinear, check_given, check_hidden, concatenate
from .graph import Adjacency, Structure, by_adjacency, by_order

__all__ = ["MaskedConditioner"]


class MaskedConditioner(nn.Module):
    """Raw parameters of each coordinate as a function of those before it and the context.

    References:
        | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
        | https://arxiv.org/abs/1502.03509

    Args:
        dim: Number of coordinates.
        num_params: Number of raw parameters per coordinate.
        order: The coordinates, first to last; as they come if not given.
        num_passes: Number of groups, of one size to one, in which each coordinate sees those of
            the groups before its own; a group for each coordinate if not given.
        adjacency: In place of both, which coordinates each one sees: booleans with shape
            :math:`(D, D)`, or :math:`(D, D + C)` with what it sees of the context, or a mapping of
            coordinates to those that they see.
        context_dim: Size of the context, or 0 for none.
        hidden_dims: Sizes of the hidden layers.
        activation: As in :class:`Conditioner`.
        residual: As in :class:`Conditioner`.
        periods: Of each coordinate its period if it is an angle, as in :class:`Conditioner`.

    Raises:
        TypeError: When called, if a context is missing or unexpected.
        ValueError: If an option is wrong or, when called, a width.

    Example:
        >>> network = MaskedConditioner(3, 2)
        >>> print(network(torch.ones(7, 3)).shape)
        torch.Size([7, 3, 2])
    """

    def __init__(
        self,
        dim: int,
        num_params: int,
        *,
        order: Sequence[int] | None = None,
        num_passes: int | None = None,
        adjacency: Adjacency | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        residual: bool = False,
        periods: Sequence[float | None] = (),
    ) -> None:
        super().__init__()
        self.shape = Size((dim, num_params))
        self.context_dim = context_dim
        hidden = check_hidden(hidden_dims, residual)
        if adjacency is None:
            order = list(range(dim) if order is None else order)
            structure = by_order(order, num_passes, context_dim, hidden)
        elif order is not None or num_passes is not None:
            raise ValueError("An adjacency says all: leave out order and num_passes.")
        else:
            structure = by_adjacency(adjacency, dim, context_dim, hidden)
        self.angles = Angles(periods)
        self.order, self.levels, self.degrees, masks = _with_sines(structure, self.angles.index)
        self.is_sorted = self.order == list(range(dim))
        self.place = sorted(range(dim), key=lambda i: self.order[i])
        self.num_passes = 1 + max(self.levels)
        *inner, last = masks
        last = last.repeat(num_params, 1)  # see _outputs_first
        linears = [MaskedLinear(mask) for mask in (*inner, last)]
        self.net = Chain(linears, activation, residual)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the raw parameters, with shape ``(*batch, dim, num_params)``."""
        check_given("x", x, self.shape[0])
        check_given("context", context, self.context_dim)
        return self.net(concatenate(self.angles.embed(x), context), self.shape)

    def forward_with_pullback(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]:
        r"""Return the raw parameters :math:`p` and a map of cotangents to derivatives in ``x``.

        The map takes :math:`g` and :math:`m`, both of shape :math:`(*, D, P)`, to the rows
        :math:`\sum_p g_{ip} \, \partial p_{ip} / \partial x_j`, with shape :math:`(D, *, D)`, and
        to :math:`\sum_{ip} m_{ip} \, \partial p_{ip} / \partial x_j`, with shape
        :math:`(*, D)`, both detached. As each row touches the parameters of one coordinate, all of
        them together cost :math:`D` passes through the small layers and one through the last one.
        """
        check_given("x", x, self.shape[0])
        check_given("context", context, self.context_dim)
        seen = concatenate(self.angles.embed(x), context)
        out, weights, slopes = self.net.trace(seen, self.shape)
        return out, partial(self._pull, x.detach(), weights, slopes)

    @property
    def is_linear(self) -> bool:
        """Whether the raw parameters are linear in the coordinates."""
        return len(self.net.linears) == 1 and not len(self.angles)

    def slopes(self) -> Tensor:
        """Of a linear one, the derivatives of raw parameters in coordinates: ``(P, D, D)``."""
        dim, num_params = self.shape
        linear = self.net.linears[0]
        return (linear.weight * linear.mask)[:, :dim].detach().view(num_params, dim, dim)

    @torch.no_grad()
    def _pull(
        self,
        x: Tensor,
        weights: list[Tensor],
        slopes: list[Tensor],
        each: Tensor,
        total: Tensor,
    ) -> tuple[Tensor, Tensor]:
        dim, num_params = self.shape
        width = dim + len(self.angles)
        batch = each.shape[:-2]
        number = batch.numel()
        slopes = [slope.reshape(number, slope.shape[-1]) for slope in slopes]
        each = each.movedim(-2, 0).reshape(dim, number, num_params)
        last = weights[-1].view(num_params, dim, -1).transpose(0, 1)
        # Coordinates that come early see few units: later ones are left out, group by group.
        starts = range(0, dim, max(4, -(-dim // 4)))
        pulled = []
        for start, end in pairwise((*starts, dim)):
            highest = self.levels[self.order[end - 1]] - 1
            counts = [bisect_right(degrees, highest) for degrees in self.degrees[1:]]
            members = self._members(start, end)
            rows = each[members] @ last[members][..., : counts[-1] if counts else None]
            if end == dim:  # the total sees all units, and so does the last coordinate
                whole = total.mT.reshape(number, dim * num_params) @ weights[-1]
                rows = torch.cat([rows, whole[None]])
            pulled.append(self.net.pull(rows, weights, slopes, counts)[..., :width])
        rows = self.angles.pull(torch.cat(pulled).view(dim + 1, *batch, width), x)
        return (rows[:-1] if self.is_sorted else rows[self.place]), rows[-1]

    def _members(self, start: int, end: int) -> slice | list[int]:
        return slice(start, end) if self.is_sorted else self.order[start:end]


def _with_sines(structure: Structure, angles: list[int]) -> Structure:
    """The structure with a second input for each angle, seen by all that see the first."""
    if not angles:
        return structure
    dim, (inputs, *degrees), (first, *masks) = len(structure.levels), *structure[2:]
    columns = [*range(dim), *angles, *range(dim, len(inputs))]
    degrees = [tuple(inputs[i] for i in columns), *degrees]
    return structure._replace(degrees=degrees, masks=[first[:, columns], *masks])
