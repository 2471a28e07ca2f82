"""Bijectors that keep volumes: reflections and permutations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..bijector import Bijector
from ..networks import Conditioner

__all__ = ["Householder", "Permutation"]


class Householder(Bijector):
    r"""A product of reflections, which is any rotation when there are enough of them.

    .. math:: y = H(v_1) \cdots H(v_k)\, x, \qquad H(v) = I - 2 v v^\top / \lVert v \rVert^2

    The vectors are trained as offsets from fixed ones that are equal in pairs, so that zero
    offsets are the identity.

    References:
        | Improving Variational Auto-Encoders using Householder Flow (Tomczak and Welling, 2016)
        | https://arxiv.org/abs/1611.09630

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for a free map.
        num_reflections: Number :math:`k` of reflections, even; :math:`D` rounded up if not given.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Raises:
        ValueError: If ``num_reflections`` is not a positive even number.

    Example:
        >>> y = Householder(3, num_reflections=2)(torch.ones(5, 3))
    """

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int = 0,
        num_reflections: int | None = None,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(dim, context_dim=context_dim)
        number = dim + dim % 2 if num_reflections is None else num_reflections
        if not isinstance(number, int) or number < 2 or number % 2:
            raise ValueError(
                "Householder expected num_reflections to be a positive even number (reflections "
                f"in pairs start at the identity), got {number}."
            )
        self.register_buffer("basis", _cosines(number // 2, dim).repeat_interleave(2, dim=0))
        self.vectors = nn.Parameter(torch.zeros(number, dim))
        self.conditioner = None
        if context_dim:
            self.conditioner = Conditioner(
                0, (number, dim), context_dim=context_dim, hidden_dims=hidden_dims
            )

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        y = reflect(x, self._directions(context).flip(-2))
        return y, y.new_zeros(y.shape[:-1])

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x = reflect(y, self._directions(context))
        return x, x.new_zeros(x.shape[:-1])

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x, context)
        with torch.no_grad():  # the inverse of an orthogonal matrix, transposed, is itself
            return y, log_det, self.forward_and_log_det(score, context)[0]

    def _directions(self, context: Tensor | None) -> Tensor:
        vectors = self.basis + self.vectors
        if self.conditioner is not None:
            vectors = vectors + self.conditioner(None, context)
        return vectors


class Permutation(Bijector):
    r"""A fixed permutation of the coordinates, :math:`y_i = x_{\pi(i)}`.

    :meth:`reverse` and :meth:`random` make common ones. The order is a buffer: loading a
    ``state_dict`` brings the permutation that was saved.

    Args:
        order: The indices :math:`\pi`, each of :math:`0, \dots, D - 1` once, with shape
            :math:`(D)`.

    Raises:
        ValueError: If ``order`` is not a permutation.

    Example:
        >>> print(Permutation(torch.tensor([2, 0, 1]))(torch.tensor([0.0, 1.0, 2.0])))
        tensor([2., 0., 1.])
    """

    def __init__(self, order: Tensor | Sequence[int]) -> None:
        values = check_order(type(self).__name__, order)
        super().__init__(len(values))
        self.register_buffer("order", on_default_device(values))
        self.register_buffer("rank", on_default_device(values.argsort()))

    @classmethod
    def reverse(cls, dim: int) -> Permutation:
        """Return the permutation that reverses the coordinates.

        Args:
            dim: Size of the vectors.

        Example:
            >>> print(Permutation.reverse(3)(torch.tensor([0.0, 1.0, 2.0])))
            tensor([2., 1., 0.])
        """
        return cls(range(_checked_dim("reverse", dim) - 1, -1, -1))

    @classmethod
    def random(cls, dim: int, *, seed: int = 0) -> Permutation:
        """Return a permutation drawn with a seed of its own: each seed is the same everywhere.

        Args:
            dim: Size of the vectors.
            seed: The seed. Neither reads nor moves torch's global random state.

        Example:
            >>> y = Permutation.random(3, seed=1)(torch.ones(5, 3))
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        dim = _checked_dim("random", dim)
        return cls(torch.randperm(dim, generator=generator, device="cpu"))

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return y.index_select(-1, self.rank), y.new_zeros(y.shape[:-1])

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x, context)
        return y, log_det, score.index_select(-1, self.order)


def _checked_dim(method: str, dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ValueError(f"Permutation.{method} expected dim to be a positive int, got {dim!r}.")
    return dim


def check_order(owner: str, order: Tensor | Sequence[int], dim: int | None = None) -> Tensor:
    """Return the order as indices on the CPU, if it is a permutation (of ``dim`` elements)."""
    values = order.tolist() if isinstance(order, Tensor) else list(order)
    size = len(values) if dim is None else dim
    if not values or sorted(values) != list(range(size)):
        raise ValueError(
            f"{owner} expected order to be a permutation of 0..{max(size, 1) - 1}, got {values}."
        )
    return torch.tensor(values, device="cpu")


def on_default_device(indices: Tensor) -> Tensor:
    """Move indices that were found on the CPU: a device such as ``meta`` cannot search."""
    return indices.to(torch.get_default_device())


def reflect(x: Tensor, vectors: Tensor) -> Tensor:
    """Apply the reflections in turn, the first vector first."""
    tiny = torch.finfo(x.dtype).tiny
    for v in vectors.unbind(-2):
        along = (x * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True).clamp_min(tiny)
        x = x - 2 * along * v
    return x


def _cosines(number: int, dim: int) -> Tensor:
    """Unit vectors that spread over the space: rows of a discrete cosine transform."""
    angles = math.pi * torch.outer(1.0 + torch.arange(number), 0.5 + torch.arange(dim)) / dim
    rows = angles.cos() + 1e-3  # no row is zero
    return rows / rows.norm(dim=-1, keepdim=True)
