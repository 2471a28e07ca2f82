r"""Transformers with derivatives by hand: one node of the graph in place of dozens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.autograd import forward_ad

from .base import Partials, Transformer

__all__ = [
    "FusedTransformer",
    "State",
    "bounded",
    "bounded_slope",
]

State = tuple[Tensor, ...]

_FAR = 1e4  # times the limit


class FusedTransformer(Transformer):
    r"""A transformer whose derivatives are written by hand.

    A family writes its formula twice. In plain operations (:meth:`plain_forward`,
    :meth:`plain_inverse`) it serves ``torch.func``, higher derivatives and parameters that
    broadcast. As a kernel it serves everyday training: :meth:`evaluate` and
    :meth:`evaluate_inverse` map :math:`N` scalars and raw parameters of shape :math:`(P, N)`,
    contiguous, without a graph, and return a state from which :meth:`pull` takes cotangents back.
    The inverse :math:`x = \tau^{-1}(y; p)` needs no derivatives of its own:

    .. math:: \mathrm{d} x = e^{-\ell} (\mathrm{d} y - \partial_p \tau \, \mathrm{d} p).

    Both are held against each other, and against finite differences, by the tests.
    """

    @abstractmethod
    def plain_forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, ``(*)``, of scalars ``(*)`` and raw parameters ``(*, P)``."""

    @abstractmethod
    def plain_inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse and its log-slope."""

    @abstractmethod
    def evaluate(self, x: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, State]:
        """Value, log-slope and state of scalars ``(N)`` and raw parameters ``(P, N)``."""

    @abstractmethod
    def evaluate_inverse(self, y: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, State]:
        """The inverse, the log-slope of the *forward* map there, and the state."""

    @abstractmethod
    def pull(
        self, state: State, grad_y: Tensor | None, grad_log: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        r"""Take cotangents of the forward map, at least one of them, back.

        Returns:
            That of :math:`x`, shape :math:`(N)`, and of the raw parameters, shape :math:`(P, N)`.
        """

    @abstractmethod
    def log_slope_x(self, state: State) -> Tensor:
        r"""The derivative :math:`\partial \ell / \partial x`."""

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        if not _fusible(x, params):
            return self.plain_forward(x, params)
        return _Fused.apply(self, False, x, params)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        if not _fusible(y, params):
            return self.plain_inverse(y, params)
        return _Fused.apply(self, True, y, params)

    def partials(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Partials]:
        with torch.no_grad():
            flat = _Flat.of(params)
            y, log_slope, state = self.evaluate(flat.scalars(x), flat.rows(params))
            one = torch.ones_like(y)
            _, of_y = self.pull(state, one, None)
            log_slope_x, of_log = self.pull(state, None, one)
            partials = flat.params(of_y), flat.back(log_slope_x), flat.params(of_log)
            return flat.back(y), flat.back(log_slope), Partials(*partials)


class _Flat(NamedTuple):
    """How scalars of any batch, and their parameters, become rows without moving memory."""

    shape: Size  # of the batch, in the order of memory
    order: tuple[int, ...]  # of the batch dimensions in memory
    place: tuple[int, ...]  # its inverse

    @classmethod
    def of(cls, params: Tensor) -> _Flat:
        number = params.dim() - 1
        strides = params.stride()
        order = tuple(sorted(range(number), key=lambda i: -strides[i]))
        place = tuple(sorted(range(number), key=order.__getitem__))
        return cls(Size(params.shape[i] for i in order), order, place)

    def scalars(self, value: Tensor) -> Tensor:
        return value.permute(self.order).reshape(-1)

    def rows(self, params: Tensor) -> Tensor:
        return params.permute(-1, *self.order).reshape(params.shape[-1], -1)

    def back(self, scalars: Tensor) -> Tensor:
        return scalars.view(self.shape).permute(self.place)

    def params(self, rows: Tensor) -> Tensor:
        return rows.view(rows.shape[0], *self.shape).permute(*(i + 1 for i in self.place), 0)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, transformer: FusedTransformer, inverse: bool, x: Tensor, params: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.transformer, ctx.inverse, ctx.flat = transformer, inverse, (flat := _Flat.of(params))
        evaluate = transformer.evaluate_inverse if inverse else transformer.evaluate
        out, log_slope, state = evaluate(flat.scalars(x), flat.rows(params))
        ctx.save_for_backward(x, params, log_slope, *state)
        ctx.set_materialize_grads(False)
        return flat.back(out), flat.back(-log_slope if inverse else log_slope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_log: Tensor | None) -> tuple:
        if grad is None and grad_log is None:
            return None, None, None, None
        x, params, log_slope, *state = ctx.saved_tensors
        own: FusedTransformer = ctx.transformer
        if asks_for_more(grad, grad_log):
            plain = own.plain_inverse if ctx.inverse else own.plain_forward
            return None, None, *differentiate_plain(plain, (x, params), (grad, grad_log))
        grad, grad_log = (None if g is None else ctx.flat.scalars(g) for g in (grad, grad_log))
        if ctx.inverse:
            grad_log = None if grad_log is None else -grad_log
            by_log = None if grad_log is None else grad_log * own.log_slope_x(state)
            grad_x = _add(grad, by_log) * torch.exp(-log_slope)
            _, pulled = own.pull(state, -grad_x, grad_log)
        else:
            grad_x, pulled = own.pull(state, grad, grad_log)
        return None, None, ctx.flat.back(grad_x), ctx.flat.params(pulled)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor:
    return b if a is None else a if b is None else a + b


def asks_for_more(*grads: Tensor | None) -> bool:
    """Whether a backward pass is to be differentiated itself, or carries many cotangents at once.

    Derivatives by hand, in place, serve neither: :func:`differentiate_plain` serves both.
    """
    is_mapped = torch._C._functorch.is_legacy_batchedtensor
    return torch.is_grad_enabled() or any(g is not None and is_mapped(g) for g in grads)


def differentiate_plain(
    plain: Callable, inputs: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Cotangents of the inputs, by running a function in plain operations again."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, as one input may depend on another and only the direct part is asked for.
        inputs = tuple(value.view_as(value) for value in inputs)
        wanted = [value for value in inputs if value.requires_grad]
        pairs = zip(plain(*inputs), grads, strict=True)
        pairs = [(out, g) for out, g in pairs if g is not None and out.requires_grad]
        outputs, given = ([pair[k] for pair in pairs] for k in (0, 1))
        found = torch.autograd.grad(
            outputs, wanted, given, create_graph=graph, materialize_grads=True
        )
    found = iter(found)
    return tuple(next(found) if value.requires_grad else None for value in inputs)


def _fusible(x: Tensor, params: Tensor) -> bool:
    """Whether the kernel serves: parameters of each scalar, and nobody else's transform."""
    return (
        params.shape[:-1] == x.shape
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
    )


def bounded(raw: Tensor, limit: float, sharpness: int = 1) -> Tensor:
    """A smooth map onto (-limit, limit) with slope 1 at zero; the sharper, the longer it stays."""
    if sharpness == 1:
        return raw / (1 + (raw / limit).abs())
    ratio = _ratio(raw, limit)
    return limit * ratio * (1 + ratio.pow(sharpness)).pow(-1 / sharpness)


def bounded_slope(raw: Tensor, limit: float, sharpness: int = 1) -> Tensor:
    """The slope of :func:`bounded`."""
    if sharpness == 1:
        return (1 + (raw / limit).abs()).pow(-2)
    return (1 + _ratio(raw, limit).pow(sharpness)).pow(-1 - 1 / sharpness)


def _ratio(raw: Tensor, limit: float) -> Tensor:
    """So far that the bound is reached to the last digit, and its power does not overflow."""
    return (raw / limit).clamp(-_FAR, _FAR)
