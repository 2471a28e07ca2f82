"""Transformers whose inverse is found by a search."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inference_mode import outside_inference_mode
from ..monotone import monotone_inverse
from .base import Transformer

__all__ = ["NumericalTransformer"]


class NumericalTransformer(Transformer):
    r"""A transformer that writes its forward map alone, increasing and onto the real line.

    The inverse is searched for, by :func:`~pyroflows.numerics.monotone_inverse`: Newton's steps
    inside a bracket, to the precision of the dtype, with right first and second derivatives.

    Raises:
        RuntimeError: From the inverse, if some numbers do not converge.
    """

    @outside_inference_mode
    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        y = y.expand(torch.broadcast_shapes(y.shape, params.shape[:-1]))
        x = monotone_inverse(lambda value: self.forward_and_log_det(value, params)[0], y)
        return x, -self.forward_and_log_det(x, params)[1]
