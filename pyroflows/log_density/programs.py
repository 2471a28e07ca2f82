"""Which flat graph stands for a model now, and whether any does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Size, Tensor

from .recording import NotTraceable
from .runs import JointRuns
from .tracing import Program, arguments_of, trace

__all__ = ["Programs", "is_due"]

_WORTH_IT = 20  # calls with handlers before a graph is taken, which costs some tens of them
_MAX_CHANGES = 5
_MAX_PROGRAMS = 32


class Programs:
    """The flat graphs of a model, by number of points, dtype, and kind of arguments.

    Args:
        runs: The model.

    Attributes:
        reason: Why there are no graphs (any more), or nothing.
    """

    def __init__(self, runs: JointRuns) -> None:
        self.reason = ""
        self._runs = runs
        self._programs: dict[tuple, Program] = {}
        self._num_asked: dict[tuple, int] = {}
        self._num_changes = 0

    def __reduce__(self) -> tuple:
        """Copies take their own."""
        return Programs, (self._runs,)

    @property
    def any(self) -> bool:
        """Whether some graph is in use."""
        return bool(self._programs)

    def find(
        self,
        shape: Size,
        like: Tensor,
        method: str | None,
        points: Callable[[], Tensor],
        *,
        now: bool = False,
    ) -> Program | None:
        """The graph for such points, or ``None`` where the model itself is to be run.

        Args:
            shape: Shape of the points, ``(K, D)``.
            like: A tensor of their dtype and device.
            method: How the model is run for many points.
            points: Makes such points, to take a graph at.
            now: Whether to take a graph at once, not only when points come again and again.
        """
        if self.reason or method not in ("vmap", "plate"):
            return None
        data, arguments = arguments_of(self._runs)
        key = (method, shape, like.dtype, like.device, torch.get_default_dtype(), arguments)
        program = self._programs.get(key)
        if program is not None and program.is_current(data):
            return program
        if program is not None:
            self._count_change()
        elif len(self._programs) + len(self._num_asked) > 8 * _MAX_PROGRAMS:
            self._programs.clear()
            self._num_asked.clear()
        self._num_asked[key] = self._num_asked.get(key, 0) + 1
        if self.reason or (self._num_asked[key] < _WORTH_IT and not now) or _is_transformed():
            return None
        return self._take(key, points(), method)

    def run(self, program: Program, u: Tensor) -> Tensor | None:
        """Evaluate a graph, and compare it with the model at calls 2, 10, 50, 100, 150, ...

        Returns:
            Log densities, or ``None`` where the model has become another.
        """
        program.num_calls += 1
        if is_due(program.num_calls) and not _is_transformed() and not program.agrees(u):
            self._give_up("its value changed while its arguments did not")
            warnings.warn(
                "The log density of the model changed between calls with the same arguments, by "
                "something that could not be seen, so it is run by Pyro's handlers from now on. "
                f"The last {program.num_calls - 1} calls may have used an older one: pass what "
                "changes as an argument of the model.",
                stacklevel=4,
            )
            return None
        if _PYRO_STACK:
            _tell(program.params)
        return program(u)

    def _take(self, key: tuple, u: Tensor, method: str) -> Program | None:
        try:
            program = trace(self._runs, method, u)
        except NotTraceable as error:
            self._give_up(str(error))
            return None
        if len(self._programs) >= _MAX_PROGRAMS:
            self._programs.pop(next(iter(self._programs)))
        self._programs[key] = program
        return program

    def _count_change(self) -> None:
        self._programs.clear()
        self._num_changes += 1
        if self._num_changes > _MAX_CHANGES:
            self._give_up("what it reads beside its tensors keeps changing")

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._programs.clear()


def is_heard() -> bool:
    """Whether a handler around would see the model's samples, or change them."""
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, BlockMessenger) and _hides_samples(handler):
            return False
        if not getattr(handler, "param_only", False):
            return True
    return False


def _hides_samples(handler: BlockMessenger) -> bool:
    message: Any = {"type": "sample", "name": "", "is_observed": False, "infer": {}}
    try:
        return bool(handler.hide_fn(message))
    except Exception:  # a function of the user's, which may look at anything
        return False


def _tell(names: tuple[str, ...]) -> None:
    """Let the handlers around know of the parameters in use, as running the model would."""
    store = pyro.get_param_store()
    for name in names:
        if name in store:
            pyro.param(name)


def is_due(num_calls: int) -> bool:
    """Whether to look again: at call 2, at call 10, and at every fiftieth."""
    return num_calls in (2, 10) or num_calls % 50 == 0


def _is_transformed() -> bool:
    """Whether some ``torch.func`` transform is under way, in which nothing can be compared."""
    return torch._C._functorch.peek_interpreter_stack() is not None
