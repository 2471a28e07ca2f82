r"""Transformers: strictly increasing scalar maps, applied elementwise.

A transformer has no state. Its raw parameters, with shape :math:`(*, P)`, come from a
conditioner; zeros mean the identity, so every flow starts near it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Partials", "Transformer", "forward_with_partials"]


class Partials(NamedTuple):
    r"""First derivatives of :math:`y = \tau(x; p)` and of its log-slope :math:`\ell`.

    That of :math:`y` in :math:`x` is :math:`e^\ell`.
    """

    y_params: Tensor
    log_slope_x: Tensor
    log_slope_params: Tensor


class Transformer(ABC):
    """A scalar bijection given its raw parameters."""

    @property
    @abstractmethod
    def num_params(self) -> int:
        """Number :math:`P` of raw parameters per scalar."""

    @property
    def differs(self) -> bool:
        """Whether the map differs by coordinate: then the last axis of scalars is coordinates."""
        return False

    def at(self, indices: Sequence[int]) -> Transformer:
        """Return the map of some of the coordinates, in this order, alone."""
        return self

    def period(self, index: int) -> float | None:
        """Return the period of a coordinate that is an angle, which networks see as such."""
        return None

    @abstractmethod
    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`y = \tau(x; p)` and :math:`\log \partial y / \partial x`, elementwise."""

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`x = \tau^{-1}(y; p)` and :math:`\log \partial x / \partial y`."""

    def partials(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Partials]:
        """Return the value, the log-slope and their first derivatives, all without a graph.

        By automatic differentiation, unless there is a closed form.

        Args:
            x: Scalars, with shape :math:`(*)`.
            params: Raw parameters, with shape :math:`(*, P)`, the same batch.
        """
        with torch.enable_grad():
            x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
            y, log_slope = self.forward_and_log_det(x, params)
            y_params = _gradients(y, [params])[0]
            log_slope_x, log_slope_params = _gradients(log_slope, [x, params])
        partials = Partials(y_params, log_slope_x, log_slope_params)
        return y.detach(), log_slope.detach(), partials


def forward_with_partials(
    transformer: Transformer, x: Tensor, params: Tensor
) -> tuple[Tensor, Tensor, Partials]:
    """Return the value and the log-slope, differentiable once, and their first derivatives.

    The derivatives that a score needs are those that the backward pass needs: this computes them
    once for both.
    """
    params = params.expand(*x.shape, params.shape[-1])
    y, log_slope, *partials = _WithPartials.apply(transformer, x, params)
    return y, log_slope, Partials(*partials)


class _WithPartials(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, transformer: Transformer, x: Tensor, params: Tensor) -> tuple:
        y, log_slope, partials = transformer.partials(x, params)
        ctx.save_for_backward(log_slope, *partials)
        ctx.mark_non_differentiable(*partials)
        ctx.set_materialize_grads(False)
        return y, log_slope, *partials

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_log: Tensor | None, *_: None) -> tuple:
        log_slope, y_params, log_slope_x, log_slope_params = ctx.saved_tensors
        grad_x = grad_params = None
        if grad_y is not None:
            grad_x, grad_params = grad_y * log_slope.exp(), grad_y[..., None] * y_params
        if grad_log is not None:
            by_x, by_params = grad_log * log_slope_x, grad_log[..., None] * log_slope_params
            grad_x, grad_params = _add(grad_x, by_x), _add(grad_params, by_params)
        return None, grad_x, grad_params


def _gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    if not output.requires_grad:
        return tuple(torch.zeros_like(value) for value in inputs)
    return torch.autograd.grad(output.sum(), inputs, retain_graph=True, materialize_grads=True)


def _add(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b
