"""Bends along several directions at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._raws import RawLinear, solve, times
from ._ridge import find_ridge, log_slope_at_zero
from .orthogonal import reflect

__all__ = ["Sylvester"]

_MOST = 8  # directions, if not told


class Sylvester(RawLinear):
    r"""Bends along :math:`M` orthonormal directions, which interact.

    .. math:: y = x + Q R\, h(\tilde R Q^\top x + b)

    :math:`Q` has :math:`M` orthonormal columns, :math:`R` and :math:`\tilde R` are upper
    triangular. With :math:`s = \tilde R Q^\top x + b` the log-determinant is
    :math:`\sum_i \log(1 + (\lambda_i - 1) h'(s_i))`, where the slopes
    :math:`\lambda_i = 1 + R_{ii} \tilde R_{ii}` are trained as such, between 1e-3 and 1e3, with
    :math:`\tilde R_{ii} > 0`, which is no restriction for an odd :math:`h`. At the start
    :math:`R = 0`, which is the identity, and :math:`\tilde R = I`; directions and biases are
    random, so that layers differ from one another.

    The inverse takes :math:`M` scalar roots, one after the other: in
    :math:`\tilde R Q^\top y + b = s + \tilde R R\, h(s)` the matrix is triangular.

    References:
        | Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018)
        | https://arxiv.org/abs/1803.05649

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for a free map.
        rank: Number :math:`M` of directions, at most :math:`D`; :math:`D` or 8 if not given,
            whatever is less.
        frame: How :math:`Q` is made: ``"qr"``, from any matrix, or ``"householder"``, from
            :math:`M` reflections.
        activation: The function :math:`h`, ``"tanh"`` or ``"leaky_relu"``.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Raises:
        ValueError: If ``rank`` is not in 1 to ``dim``, or ``frame`` or ``activation`` are others.

    Example:
        >>> y = Sylvester(5, rank=2)(torch.ones(7, 5))
    """

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int = 0,
        rank: int | None = None,
        frame: str = "qr",
        activation: str = "tanh",
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        if rank is None:
            rank = min(dim, _MOST) if isinstance(dim, int) and dim > 0 else 1  # refused below
        elif isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= dim:
            raise ValueError(f"Sylvester expected rank to be an int in 1..{dim}, got {rank!r}.")
        if frame not in ("qr", "householder"):
            raise ValueError(f"Sylvester expected frame to be qr or householder, got {frame!r}.")
        shapes = {"log_slope": (rank,), "log_inner": (rank,), "bias": (rank,)}
        if rank > 1:  # one direction has nothing beside its diagonals to train
            shapes["factors"] = (rank, rank)
        if dim > 1:  # there is but one direction on a line
            shapes["vectors"] = (rank, dim)
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)
        self.rank, self.frame, self.activation = rank, frame, activation
        self.ridge = find_ridge(type(self), activation)
        nn.init.normal_(self.bias)
        if dim > 1:
            nn.init.orthogonal_(self.vectors)

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        frame, inner, outer, bias, log_slope = self._maps(context)
        s = times(inner, times(frame, x)) + bias
        y = x + times(frame.mT, times(outer, self.ridge.value(s)))
        return y, self.ridge.log_slope(s, log_slope).sum(-1)

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        frame, inner, outer, bias, log_slope = self._maps(context)
        s = self._roots(times(inner, times(frame, y)) + bias, inner @ outer, log_slope)
        x = y - times(frame.mT, times(outer, self.ridge.value(s)))
        return x, -self.ridge.log_slope(s, log_slope).sum(-1)

    def _roots(self, t: Tensor, matrix: Tensor, log_slope: Tensor) -> Tensor:
        r"""Solve :math:`s + \tilde R R\, h(s) = t`, the last coordinate first."""
        roots = [self.ridge.root(t[..., -1], log_slope[..., -1])]
        for i in range(self.rank - 2, -1, -1):
            later = self.ridge.value(torch.stack(roots, dim=-1))
            rest = (matrix[..., i, i + 1 :] * later).sum(-1)
            roots.insert(0, self.ridge.root(t[..., i] - rest, log_slope[..., i]))
        return torch.stack(roots, dim=-1)

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        # J = I + Q R h' R~ Q': by Woodbury its inverse takes a triangular system of M equations.
        y, log_det = self.forward_and_log_det(x, context)
        with torch.no_grad():
            frame, inner, outer, bias, log_slope = self._maps(context)
            s = times(inner, times(frame, x)) + bias
            by_s, log_by_s = self.ridge.derivatives(s, log_slope)
            within = times(frame, score) - times(inner.mT, log_by_s)
            system = by_s[..., None] * (inner @ outer).mT
            system = system + torch.eye(self.rank, dtype=x.dtype, device=x.device)
            solved = solve(system, by_s * times(outer.mT, within))
            return y, log_det, score - times(frame.mT, times(inner.mT, log_by_s + solved))

    def _maps(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        r"""The frame :math:`Q^\top`, both factors, the bias and the log-slopes."""
        log_slope, log_inner, bias, *others = self.raws(context)
        log_slope, diagonal = log_slope_at_zero(log_slope), log_slope_at_zero(log_inner).exp()
        inner = diagonal.diag_embed()
        outer = (log_slope.expm1() / diagonal).diag_embed()
        if self.rank > 1:
            inner = inner + others[0].tril(-1).mT
            outer = outer + others[0].triu(1)
        frame = self._frame(others[-1]) if self.dim > 1 else torch.ones_like(inner)
        return frame, inner, outer, bias, log_slope

    def _frame(self, vectors: Tensor) -> Tensor:
        """Orthonormal rows."""
        if self.frame == "householder":
            start = torch.eye(self.rank, self.dim, dtype=vectors.dtype, device=vectors.device)
            return reflect(start, vectors.unsqueeze(-3))
        basis, triangle = torch.linalg.qr(vectors.mT)
        signs = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(basis.dtype)
        return (basis * signs[..., None, :]).mT  # a column turns with its vector, and does not jump
