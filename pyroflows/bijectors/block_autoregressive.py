"""A monotone network for each coordinate, all of them blocks of one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..bijector import Bijector
from ..inference_mode import outside_inference_mode
from ..networks import Conditioner
from ..networks.chain import check_hidden
from ..numerics import monotone_inverse
from ._ridge import log_slope_at_zero

__all__ = ["BlockAutoregressive"]

_START = 0.01  # scale of the last layer: so little of the network is beside the identity


class BlockAutoregressive(Bijector):
    r"""A network whose weights are block lower triangular, with positive blocks on the diagonal.

    .. math:: y_i = e^{a_i} x_i + f_i(x_1, \dots, x_i)

    :math:`f` is one network with tanh, which has its own hidden units for each coordinate, as many
    as ``hidden_dims`` says. They see this coordinate with positive weights, so that
    :math:`\partial f_i / \partial x_i > 0`, and those before it with any. That derivative is a
    product of positive matrices, next to :math:`e^{a_i}`, which is between 1e-3 and 1e3: nothing
    cancels and nothing underflows in :math:`\log(e^{a_i} + \partial f_i / \partial x_i)`.

    A network with tanh alone is bounded, and has no inverse far out; the term
    :math:`e^{a_i} x_i` makes every :math:`y` an image. With :math:`a_i = 0` it is the residual
    network of the paper, and a gate is a choice of :math:`a_i` and of the last layer. Each row of
    weights is divided by its length and multiplied by a trained scale. At the start :math:`a = 0`
    and the last scales are 0.01, which is near the identity.

    A context moves the biases and the raw scales of all layers, and :math:`a`.

    The inverse takes :math:`D` scalar roots, one after the other, each in the blocks of its own
    coordinate.

    References:
        | Block Neural Autoregressive Flow (De Cao et al., 2019)
        | https://arxiv.org/abs/1904.04676

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for a free map.
        hidden_dims: Numbers of hidden units of each layer, for each coordinate.
        context_hidden_dims: Sizes of the hidden layers of the network of the context.

    Raises:
        ValueError: If a size is not positive, or there is no hidden layer.

    Example:
        >>> y = BlockAutoregressive(3)(torch.ones(5, 3))
    """

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (8, 8),
        context_hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(dim, context_dim=context_dim)
        sizes = [1, *check_hidden(hidden_dims, residual=False), 1]
        if len(sizes) == 2:
            raise ValueError(
                "BlockAutoregressive expected one or more hidden_dims, got none: without hidden "
                "layers the map is linear, as FullAffine is."
            )
        pairs = list(pairwise(sizes))
        self.layers = nn.ModuleList(
            [*(_BlockLinear(dim, *pair) for pair in pairs[:-1]), _LastBlockLinear(dim, *pairs[-1])]
        )
        self.log_slope = nn.Parameter(torch.zeros(dim))
        self.conditioner = None
        if context_dim:
            shape = (dim, 1 + 2 * sum(sizes[1:]))
            self.conditioner = Conditioner(
                0, shape, context_dim=context_dim, hidden_dims=context_hidden_dims
            )

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        skip, blocks = self._maps(context)
        h, slope = x[..., None], x.new_ones(self.dim, 1)
        for i, block in enumerate(blocks):
            if i:
                h = h.tanh()
                slope = (1 - h.square()) * slope
            h, slope = block.forward(h), block.slope(slope)
        return skip * x + h[..., 0], (skip + slope[..., 0]).log().sum(-1)

    @outside_inference_mode
    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        skip, blocks = self._maps(context)
        batch = torch.broadcast_shapes(y.shape, skip.shape)[:-1]
        y = y.expand(*batch, self.dim)
        known: list[list[Tensor]] = [[] for _ in blocks]  # what each layer sees, by coordinate
        slopes = []
        for i in range(self.dim):
            own = _Coordinate(
                [block.given(i, seen) for block, seen in zip(blocks, known, strict=True)],
                [block.scale[..., i, :] for block in blocks],
                [block.diagonal[i] for block in blocks],
                skip[..., i],
            )
            image = y[..., i]
            start = (image - own.given[-1][..., 0]) / own.skip
            x = monotone_inverse(lambda v, own=own: own(v)[0], image, start=start)
            _, slope, seen = own(x)
            slopes.append(slope)
            for values, new in zip(known, seen, strict=True):
                values.append(new)
        x = torch.cat(known[0], dim=-1)
        return x, -torch.stack(slopes, dim=-1).log().sum(-1)

    def _maps(self, context: Tensor | None) -> tuple[Tensor, list[_Block]]:
        """The slopes of the linear term, and the blocks at this context."""
        log_slope = self.log_slope
        if self.conditioner is None:
            return log_slope_at_zero(log_slope).exp(), [layer() for layer in self.layers]
        sizes = [layer.bias.shape[-1] for layer in self.layers]
        parts = self.conditioner(None, context).split([1, *sizes, *sizes], dim=-1)
        shifts = zip(self.layers, parts[1 : 1 + len(sizes)], parts[1 + len(sizes) :], strict=True)
        blocks = [layer(bias, scale) for layer, bias, scale in shifts]
        return log_slope_at_zero(log_slope + parts[0][..., 0]).exp(), blocks


class _Block(NamedTuple):
    """The linear map of one layer, for all coordinates."""

    weight: Tensor  # (D, out, D, in), rows of length one
    diagonal: Tensor  # (D, out, in), its positive blocks
    scale: Tensor  # (*, D, out)
    bias: Tensor  # (*, D, out)

    def forward(self, h: Tensor) -> Tensor:
        value = h.flatten(-2) @ self.weight.flatten(2).flatten(0, 1).mT
        return self.scale * value.unflatten(-1, self.diagonal.shape[:2]) + self.bias

    def slope(self, slope: Tensor) -> Tensor:
        """The derivative of each unit by its own coordinate, given that of what it sees."""
        return self.scale * (self.diagonal @ slope[..., None])[..., 0]

    def given(self, i: int, seen: list[Tensor]) -> Tensor:
        """What the units of one coordinate get from those before it."""
        if not seen:
            return self.bias[..., i, :]
        before = self.weight[i, :, :i].flatten(1)
        return self.scale[..., i, :] * (torch.cat(seen, dim=-1) @ before.mT) + self.bias[..., i, :]


class _Coordinate(NamedTuple):
    """The increasing function of one coordinate, the ones before it known."""

    given: list[Tensor]
    scale: list[Tensor]
    diagonal: list[Tensor]
    skip: Tensor

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Its value, its slope, and what each layer sees of this coordinate."""
        h, slope, seen = x[..., None], torch.ones_like(x)[..., None], []
        for i, (given, scale, diagonal) in enumerate(
            zip(self.given, self.scale, self.diagonal, strict=True)
        ):
            if i:
                h = h.tanh()
                slope = (1 - h.square()) * slope
            seen.append(h)
            h = scale * (h @ diagonal.mT) + given
            slope = scale * (slope @ diagonal.mT)
        return self.skip * x + h[..., 0], self.skip + slope[..., 0], seen


class _BlockLinear(nn.Module):
    """Block lower triangular weights, whose rows have a length of their own."""

    def __init__(self, dim: int, in_size: int, out_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, out_size, dim, in_size) / dim**0.5)
        self.raw_scale = nn.Parameter(torch.zeros(dim, out_size))
        self.bias = nn.Parameter(torch.randn(dim, out_size))
        self.register_buffer("mask", torch.ones(dim, dim).tril(-1)[:, None, :, None])

    def forward(self, bias: Tensor | float = 0.0, raw_scale: Tensor | float = 0.0) -> _Block:
        """The blocks, with biases and raw scales moved by those of a context."""
        positive = self.weight.diagonal(dim1=0, dim2=2).exp()  # (out, in, D)
        weight = self.mask * self.weight + positive.diag_embed().permute(2, 0, 3, 1)
        length = weight.square().sum((2, 3)).sqrt()
        return _Block(
            weight / length[..., None, None],
            positive.movedim(-1, 0) / length[..., None],
            self.scale(self.raw_scale + raw_scale),
            self.bias + bias,
        )

    def scale(self, raw: Tensor) -> Tensor:
        return log_slope_at_zero(raw).exp()


class _LastBlockLinear(_BlockLinear):
    """The same with outputs that start near zero, and grow in proportion to the raw scale."""

    def __init__(self, dim: int, in_size: int, out_size: int) -> None:
        super().__init__(dim, in_size, out_size)
        nn.init.zeros_(self.bias)

    def scale(self, raw: Tensor) -> Tensor:
        return (raw + (raw.square() + 4 * _START**2).sqrt()) / 2
