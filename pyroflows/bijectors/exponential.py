"""Linear bijectors by the exponential of a matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._raws import RawLinear, times

__all__ = ["MatrixExponential", "Orthogonal"]


class Orthogonal(RawLinear):
    r"""A rotation: the exponential of a skew-symmetric matrix.

    .. math:: y = e^{S(c)} x, \qquad S = A - A^\top

    with :math:`A` strictly lower triangular, so :math:`D (D - 1) / 2` raw parameters reach every
    rotation, and zeros are the identity. The exponential is
    :func:`torch.linalg.matrix_exp`, to the precision of the dtype. The inverse is the transpose;
    the log-determinant is zero.

    References:
        | Cheap Orthogonal Constraints in Neural Networks: A Simple Parametrization of the
        | Orthogonal and Unitary Group (Lezcano-Casado and Martinez-Rubio, 2019)
        | https://arxiv.org/abs/1901.08428

    Args:
        dim: Size :math:`D` of the vectors. In one dimension the only rotation is the identity.
        context_dim: Size of the context, or 0 for a free map.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Example:
        >>> y = Orthogonal(3)(torch.ones(5, 3))
    """

    def __init__(
        self, dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        shapes = {"skew": (dim, dim)}
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        y = times(self._rotation(context), x)
        return y, y.new_zeros(y.shape[:-1])

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x = times(self._rotation(context).mT, y)
        return x, x.new_zeros(x.shape[:-1])

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        rotation = self._rotation(context)
        y = times(rotation, x)
        return y, y.new_zeros(y.shape[:-1]), times(rotation.detach(), score)

    def _rotation(self, context: Tensor | None) -> Tensor:
        lower = self.raws(context)[0].tril(-1)
        return torch.linalg.matrix_exp(lower - lower.mT)


class MatrixExponential(RawLinear):
    r"""Any linear map of the form :math:`y = e^{A(c)} x`.

    Its log-determinant is the trace of :math:`A`, its inverse is :math:`e^{-A}`, and zeros are the
    identity: no factors, no order of the coordinates. The exponential is
    :func:`torch.linalg.matrix_exp`, to the precision of the dtype.

    References:
        | The Convolution Exponential and Generalized Sylvester Flows (Hoogeboom et al., 2020)
        | https://arxiv.org/abs/2006.01910

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for a free map.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Example:
        >>> y = MatrixExponential(3)(torch.ones(5, 3))
    """

    def __init__(
        self, dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        shapes = {"exponent": (dim, dim)}
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        (exponent,) = self.raws(context)
        y = times(torch.linalg.matrix_exp(exponent), x)
        return y, _trace(exponent).expand(y.shape[:-1])

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        (exponent,) = self.raws(context)
        x = times(torch.linalg.matrix_exp(-exponent), y)
        return x, -_trace(exponent).expand(x.shape[:-1])

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x, context)
        with torch.no_grad():
            (exponent,) = self.raws(context)
            return y, log_det, times(torch.linalg.matrix_exp(-exponent).mT, score)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
