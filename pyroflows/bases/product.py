"""A base put together from others, each with coordinates of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from pyro.distributions import Distribution, TorchDistribution, constraints
from torch import Size, Tensor, nn

from .base import Base
from .registry import Recipe, build_base, register_base

__all__ = ["Product", "circular"]


class Product(Base):
    r"""Independent bases, each on some of the coordinates.

    .. math:: q(z) = \prod_b q_b(z_{I_b})

    Args:
        parts: Pairs of a base and the indices :math:`I_b` of its coordinates; together, each index
            from 0 to :math:`D - 1` once. Those that take a context share it.

    Raises:
        TypeError: If a part is not a base.
        ValueError: If indices are missing, repeated, or not as many as a base has coordinates.

    Example:
        >>> from pyroflows.bases import StudentT, VonMises
        >>> base = Product([(VonMises(2), [0, 3]), (StudentT(2), [1, 2])])
        >>> base.distribution().rsample((5,)).shape
        torch.Size([5, 4])
    """

    def __init__(self, parts: Sequence[tuple[Base, Sequence[int]]]) -> None:
        for base, index in parts:
            if not isinstance(base, Base):
                raise TypeError(f"Product expected bases, got {type(base).__name__}.")
            if len(index) != base.dim:
                raise ValueError(
                    f"Product expected {base.dim} indices for a {type(base).__name__} of that "
                    f"dim, got {list(index)}."
                )
        found = [int(i) for _, index in parts for i in index]
        if not found or sorted(found) != list(range(len(found))):
            raise ValueError(
                f"Product expected each index of 0..{len(found) - 1} once, got {found}."
            )
        widths = sorted({base.context_dim for base, _ in parts} - {0})
        if len(widths) > 1:
            raise ValueError(
                f"Product expected bases that share one context, got context_dim {widths}."
            )
        super().__init__(len(found), context_dim=max(widths, default=0))
        self.parts = nn.ModuleList(base for base, _ in parts)
        self.register_buffer("order", torch.tensor(found).argsort())

    @property
    def support(self) -> constraints.Constraint:
        return _joint_support(self.parts, self._sizes(), self.order)

    def distribution(self, context: Tensor | None = None) -> Distribution:
        self.check_context(context)
        parts = [part.distribution(self._own(part, context)) for part in self.parts]
        return _Product(parts, self._sizes(), self.order)

    def center(self, context: Tensor | None = None) -> Tensor:
        centers = [part.center(self._own(part, context)) for part in self.parts]
        batch = torch.broadcast_shapes(*(c.shape[:-1] for c in centers))
        whole = torch.cat([c.expand(*batch, c.shape[-1]) for c in centers], -1)
        return whole[..., self.order]

    def _own(self, part: Base, context: Tensor | None) -> Tensor | None:
        return context if part.context_dim else None

    def _sizes(self) -> list[int]:
        return [part.dim for part in self.parts]


@register_base("circular")
def circular(
    dim: int,
    *,
    indices: Sequence[int],
    circle: str | Recipe = "uniform",
    line: str | Recipe = "normal",
    context_dim: int = 0,
) -> Base:
    """Angles in some coordinates and real numbers in the others.

    Args:
        dim: Size of the vectors.
        indices: Which coordinates are angles.
        circle: Base of the angles: a name or a recipe.
        line: Base of the others.
        context_dim: Size of the context, or 0.

    Raises:
        ValueError: If an index is repeated or out of range.

    Example:
        >>> base = circular(3, indices=[1], circle="von_mises", line="student_t")
        >>> base.dim
        3
    """
    chosen = list(indices)
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(dim)):
        raise ValueError(
            f"circular expected indices out of 0..{dim - 1}, each at most once, got {chosen}."
        )
    others = [i for i in range(dim) if i not in chosen]
    return Product(
        [
            (build_base(name, len(index), context_dim=context_dim), index)
            for name, index in ((circle, chosen), (line, others))
            if index
        ]
    )


class _Product(TorchDistribution):
    has_rsample = True
    arg_constraints: dict = {}  # noqa: RUF012  torch looks for a plain dict

    def __init__(self, parts: list[Distribution], sizes: list[int], order: Tensor) -> None:
        batch = torch.broadcast_shapes(*(part.batch_shape for part in parts))
        self._parts = [part.expand(batch) for part in parts]
        self._sizes, self._order = sizes, order
        super().__init__(batch, Size((sum(sizes),)), validate_args=False)

    def expand(self, batch_shape: Size, _instance: None = None) -> _Product:
        return _Product(
            [p.expand(Size(batch_shape)) for p in self._parts], self._sizes, self._order
        )

    @property
    def support(self) -> constraints.Constraint:
        return _joint_support(self._parts, self._sizes, self._order)

    @property
    def mean(self) -> Tensor:
        return torch.cat([part.mean for part in self._parts], -1)[..., self._order]

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        drawn = torch.cat([part.rsample(Size(sample_shape)) for part in self._parts], -1)
        return drawn[..., self._order]

    def log_prob(self, value: Tensor) -> Tensor:
        pieces = _pieces(value, self._sizes, self._order)
        return sum(part.log_prob(piece) for part, piece in zip(self._parts, pieces, strict=True))


class _ByIndex(constraints.Constraint):
    """Each part of the coordinates has its own support."""

    event_dim = 1

    def __init__(
        self, supports: list[constraints.Constraint], sizes: list[int], order: Tensor
    ) -> None:
        self.supports, self._sizes, self._order = supports, sizes, order
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        pieces = _pieces(value, self._sizes, self._order)
        found = [s.check(piece) for s, piece in zip(self.supports, pieces, strict=True)]
        return torch.stack(found).all(0)


def _joint_support(
    parts: Iterable[Base | Distribution], sizes: list[int], order: Tensor
) -> constraints.Constraint:
    supports = [part.support for part in parts]
    if all(_is_real(support) for support in supports):
        return constraints.real_vector
    return _ByIndex(supports, sizes, order)


def _is_real(support: constraints.Constraint) -> bool:
    return getattr(support, "base_constraint", None) is constraints.real


def _pieces(value: Tensor, sizes: list[int], order: Tensor) -> tuple[Tensor, ...]:
    return value[..., order.argsort()].split(sizes, -1)
