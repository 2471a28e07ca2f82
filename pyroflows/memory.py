"""A transform that remembers its last pass, and never answers with a stale one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform

from .compiling import is_for_a_compiler

__all__ = ["OnePassTransform", "checked_log_det"]


class _State:
    """What a pass depended on beside its input: the very tensors, and a copy of their values.

    Values, because tensor versions are not enough: fused optimizers, ``ClippedAdam`` and
    ``.data`` edits change parameters and leave ``_version`` as it was. The copy is one kernel,
    and it is compared only when a remembered answer is asked for.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = tuple(tensors)
        self.values = None if _traced(*self.tensors) else _flat(self.tensors)

    def same(self, tensors: Iterable[Tensor]) -> bool:
        tensors = tuple(tensors)
        if len(tensors) != len(self.tensors):
            return False
        if any(a is not b for a, b in zip(tensors, self.tensors, strict=True)):
            return False
        if self.values is None:
            return True
        now = _flat(tensors)
        alike = (now.dtype, now.device) == (self.values.dtype, self.values.device)
        return alike and torch.equal(now, self.values)


class _Pass(NamedTuple):
    """The last pair :math:`y = f(x)`, and which of the two the transform produced."""

    x: Tensor
    y: Tensor
    log_det: Tensor
    output: Tensor
    versions: tuple[int, int]
    with_grad: bool
    state: _State


class OnePassTransform(Transform):
    """A torch transform whose value and log-determinant come from the same pass.

    It remembers the last pair and answers from it *only for the way back*: a tensor it produced
    itself is inverted and scored without computing, as long as neither the pair nor any
    parameter was edited since. An input is never answered from memory, so data are always
    scored with today's parameters (pyro-ppl/pyro#2564).
    """

    bijective = True
    _last: _Pass | None = None

    def __init__(self) -> None:
        super().__init__(cache_size=1)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _dependencies(self) -> Iterable[Tensor]:
        """The tensors, beside its input, that a pass depends on."""
        return ()

    def __call__(self, x: Tensor) -> Tensor:
        if (last := self._recall(x)) is not None:
            return last.y
        y, log_det = self.forward_and_log_det(x)
        self._remember(x, y, log_det, output=y)
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        if (last := self._recall(y)) is not None:
            return last.x
        x, log_det = self.inverse_and_log_det(y)
        self._remember(x, y, -log_det, output=x)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last = self._last
        if last is not None and last.x is x and last.y is y and self._recall(last.output):
            return last.log_det
        return checked_log_det(self, *self.forward_and_log_det(x))

    def _remember(self, x: Tensor, y: Tensor, log_det: Tensor, output: Tensor) -> None:
        checked_log_det(self, output, log_det)
        if torch.compiler.is_compiling():
            return  # a graph break; the compiler shares the work of both passes itself
        versions = _version(x), _version(y)
        state = _State(self._dependencies())
        self._last = _Pass(x, y, log_det, output, versions, torch.is_grad_enabled(), state)

    def _recall(self, output: Tensor) -> _Pass | None:
        """The last pass if it produced ``output``, unedited since, with a graph if one is due."""
        last = self._last
        if last is None or last.output is not output:
            return None
        if last.versions != (_version(last.x), _version(last.y)):
            return None
        if torch.is_grad_enabled() and not last.with_grad:
            return None
        return last if last.state.same(self._dependencies()) else None

    def clear_cache(self) -> None:
        self._last = None

    def with_cache(self, cache_size: int = 1) -> OnePassTransform:
        return self  # the memory never changes a result, so there is nothing to switch off

    def __getstate__(self) -> dict:
        # A graph cannot be copied, and an inverse that refers back is made anew when asked for.
        return {**super().__getstate__(), "_last": None, "_inv": None}


def checked_log_det(owner: object, points: Tensor, log_det: Tensor) -> Tensor:
    """Return it, or raise if it is one for each coordinate, which would broadcast to nonsense.

    Raises:
        ValueError: If it has as many dimensions as the points.
    """
    if log_det.dim() >= points.dim() and log_det.dim():
        shape = tuple(points.shape)
        raise ValueError(
            f"{type(owner).__name__} returned a log-determinant of shape {tuple(log_det.shape)} "
            f"for points of shape {shape}: expected {shape[:-1]}, one for each point. Sum over the "
            "coordinates, .sum(-1)."
        )
    return log_det


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version


def _traced(*tensors: Tensor) -> bool:
    """Whether values cannot be read: inside a transform of functions, a trace, or on meta."""
    is_recorded = torch.jit.is_tracing() or is_for_a_compiler()
    return is_recorded or any(
        t.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors
    )


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    """A copy of all values in one tensor."""
    pieces = [t.detach().reshape(-1) for t in tensors]
    return torch.cat(pieces) if pieces else torch.empty(0)
