"""Simplexes and Cholesky factors of correlations by breaking sticks, in logarithms.

The maps are those of torch, whose coordinates they share. Torch computes what is left of a stick as
one minus what was taken, which loses parts below the rounding of one: here they are sums of
logarithms on the way there, and sums from the small end on the way back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.transforms import CorrCholeskyTransform, StickBreakingTransform
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix
from torch.nn.functional import logsigmoid, pad, softplus

__all__ = ["CorrCholesky", "StickBreaking"]


class StickBreaking(StickBreakingTransform):
    r"""From real vectors onto the simplex with one more part.

    .. math:: \log y_k = \log \sigma(s_k) + \sum_{j < k} \log \sigma(-s_j),
        \qquad s_k = x_k - \log(K - k)
    """

    def _call(self, x: Tensor) -> Tensor:
        taken, left = self._logs(x)
        log_y = pad(taken, [0, 1]) + pad(left.cumsum(-1), [1, 0])
        return log_y.exp().clamp_min(torch.finfo(x.dtype).tiny)

    def _inverse(self, y: Tensor) -> Tensor:
        parts = y.double().clamp_min(torch.finfo(y.dtype).tiny)
        rest = parts.flip(-1).cumsum(-1).flip(-1)
        x = parts[..., :-1].log() - rest[..., 1:].log()
        return (x + self._offset(x)).to(y.dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant with respect to all parts but the last."""
        taken, left = self._logs(x)
        return (taken + left.cumsum(-1)).sum(-1)

    def _logs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logs of the share of the stick that each coordinate takes, and leaves."""
        x = x - self._offset(x)
        return logsigmoid(x), logsigmoid(-x)

    def _offset(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        return torch.arange(size, 0, -1, dtype=x.dtype, device=x.device).log()


class CorrCholesky(CorrCholeskyTransform):
    r"""From real vectors onto Cholesky factors of correlation matrices, row by row.

    .. math:: y_{ik} = \tanh(x_{ik}) \prod_{j < k} \mathrm{sech}(x_{ij})
    """

    def _call(self, x: Tensor) -> Tensor:
        matrix, before, _ = self._logs(x)
        eye = torch.eye(matrix.shape[-1], dtype=x.dtype, device=x.device)
        return (matrix.tanh() + eye) * before.exp()

    def _inverse(self, y: Tensor) -> Tensor:
        tiny = max(torch.finfo(y.dtype).tiny ** 2, torch.finfo(torch.float64).tiny)
        squares = y.double().square()
        rest = squares.flip(-1).cumsum(-1).flip(-1).clamp_min(tiny)
        after = pad(rest[..., 1:], [0, 1], value=1.0)
        share = y.double() / rest.sqrt()
        # artanh(r) = log(1 + |r|) - log(1 - r^2) / 2, and 1 - r^2 is what is left over
        size = share.abs().log1p() - (after / rest).log() / 2
        return tril_matrix_to_vec(size * y.sign(), diag=-1).to(y.dtype)

    def log_abs_det_jacobian(
        self, x: Tensor, y: Tensor, intermediates: Tensor | None = None
    ) -> Tensor:
        """Return the log-determinant with respect to the entries below the diagonal."""
        _, before, log_sech = self._logs(x)
        return 2 * log_sech.sum(-1) + tril_matrix_to_vec(before, diag=-1).sum(-1)

    def _logs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The matrix of coordinates, what each row has left before each, and their log sechs."""
        log_sech = math.log(2.0) - x.abs() - softplus(-2 * x.abs())
        left = vec_to_tril_matrix(log_sech, diag=-1)
        return vec_to_tril_matrix(x, diag=-1), left.cumsum(-1) - left, log_sech
