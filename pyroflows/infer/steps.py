"""One step of a fit: gradients, what becomes of them, and the optimizer that takes them."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, Protocol

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from .distributed import Ranks
from .muon import MuonAdam, can_be_fused

__all__ = ["Guard", "PyroStepper", "Stepper", "TorchStepper", "loss_and_grads"]

DEFAULT_LEARNING_RATE = 1e-2
_OUTLIER = 30.0  # times the running median of gradient norms
_MEMORY = 100
_MIN_MEMORY = 20
_STEPS_BETWEEN_SNAPSHOTS = 25

_COUNTS = ("num_skipped", "num_skipped_in_a_row", "num_clipped", "num_applied")

Backward = Callable[..., float]


def loss_and_grads(loss: Any) -> Backward:
    """A function (model, guide, *args, **kwargs) that goes backward and returns the loss.

    A matrix that cannot be factorised at some draw makes the loss NaN, as other overflow does.
    """
    backward = _backward(loss)

    def evaluate(*args: Any, **kwargs: Any) -> float:
        try:
            return backward(*args, **kwargs)
        except torch.linalg.LinAlgError:
            return math.nan

    return evaluate


def _backward(loss: Any) -> Backward:
    differentiable = getattr(loss, "differentiable_loss", None)
    by_itself = any(getattr(loss, name, None) is not None for name in ("chunk_size", "compiled"))
    if differentiable is None or by_itself:
        if hasattr(loss, "loss_and_grads"):
            return lambda *args, **kwargs: _as_float(loss.loss_and_grads(*args, **kwargs))
        differentiable = loss

    def backward(*args: Any, **kwargs: Any) -> float:
        value = differentiable(*args, **kwargs)
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise ValueError(
                "fit_guide: the loss has no gradient, so nothing can be trained. Expected a tensor "
                f"that depends on the guide's parameters, got {value!r}."
            )
        value.backward()
        return value.item()

    return backward


def _as_float(value: Any) -> float:
    return float(sum(value) if isinstance(value, tuple) else value)


class Guard:
    """Looks at gradients before they are used.

    A step with a non-finite loss or gradient is skipped. The norm is cut only where it is far out
    of line, thirty times the running median. Both are counted. Good parameters are kept now and
    then.
    """

    def __init__(self) -> None:
        self.loss = math.nan
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0
        self.num_clipped = 0
        self.num_applied = 0
        self.left_out: set[int] = set()  # parameters that the caller's optimizer does not hold
        self.with_gradient: set[int] = set()
        self._norms: deque[float] = deque(maxlen=_MEMORY)
        self._good: list[tuple[Tensor, Tensor]] = []

    @property
    def num_seen(self) -> int:
        """Steps looked at, taken or not."""
        return self.num_applied + self.num_skipped

    def __call__(self, params: Iterable[Tensor]) -> bool:
        """Whether the step may be taken, given :attr:`loss`."""
        params = [p for p in params if p.grad is not None]
        if self.num_applied < _STEPS_BETWEEN_SNAPSHOTS:
            self.with_gradient.update(id(p) for p in params)
        limit = _OUTLIER * median(self._norms) if len(self._norms) >= _MIN_MEMORY else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(params, limit or math.inf))
        if not (math.isfinite(norm) and math.isfinite(self.loss)):
            self.num_skipped += 1
            self.num_skipped_in_a_row += 1
            return False
        if self.num_applied % _STEPS_BETWEEN_SNAPSHOTS == 0:
            self._good = [(p, p.detach().clone()) for p in params]
        self._norms.append(norm)
        self.num_clipped += norm > limit > 0
        self.num_applied += 1
        self.num_skipped_in_a_row = 0
        return True

    def restore(self) -> None:
        """Put the last good parameters back."""
        with torch.no_grad():
            for param, good in self._good:
                param.copy_(good)

    def state_dict(self, params: dict[str, Tensor]) -> dict[str, Any]:
        """What a file holds of it; ``params`` gives tensors their names."""
        good = {id(param): value for param, value in self._good}
        state = {name: getattr(self, name) for name in _COUNTS}
        state["norms"] = list(self._norms)
        state["good"] = {n: good[id(p)] for n, p in params.items() if id(p) in good}
        return state

    def load_state_dict(self, state: dict[str, Any], params: dict[str, Tensor]) -> None:
        """Go on from what a file holds."""
        for name in _COUNTS:
            setattr(self, name, state[name])
        self._norms = deque(state["norms"], maxlen=_MEMORY)
        self._good = [(params[n], value.to(params[n])) for n, value in state["good"].items()]


class Stepper(Protocol):
    """Takes the steps of a fit."""

    guard: Guard
    name: str

    def step(self, factor: float, num_passes: int = 1) -> float:
        """Take a step with ``factor`` times the learning rate; return the loss.

        ``num_passes`` gradients of as many sets of draws are averaged for it.
        """

    @property
    def learning_rate(self) -> float:
        """The learning rate of the latest step."""

    def trains_only(self, guide: Callable) -> bool:
        """Whether all that is trained are parameters of the guide, none of the model."""

    def close(self) -> None:
        """Leave the optimizer as it was found."""

    def state_dict(self) -> dict[str, Any]:
        """What a file holds of it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a file holds."""


class TorchStepper:
    """Steps of a torch optimizer under our schedule.

    Args:
        optimizer: An optimizer, a factory of one, or ``None`` for Adam.
        learning_rate: For a factory or Adam; ``None`` for the default.
        params: The tensors to train, by name.
        evaluate: Clears nothing, goes backward, returns the loss.
        ranks: The processes that share the step.
        matrices: Those of the tensors that are weights of a flow's networks.
    """

    def __init__(
        self,
        optimizer: Any,
        learning_rate: float | None,
        params: dict[str, Tensor],
        evaluate: Callable[[], float],
        ranks: Ranks,
        matrices: Sequence[Tensor] = (),
    ) -> None:
        self.guard = Guard()
        self._params, self._ranks = params, ranks
        self._is_given = isinstance(optimizer, Optimizer)
        self._optimizer = _make_optimizer(optimizer, learning_rate, params, matrices)
        self.name = type(self._optimizer).__name__
        self.guard.left_out = {id(p) for p in params.values()} - self._held()
        self._evaluate = evaluate
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._stored = set(pyro.get_param_store().keys())

    @property
    def learning_rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, factor: float, num_passes: int = 1) -> float:
        self._set_rates(factor)
        self._optimizer.zero_grad(set_to_none=True)
        loss = sum(self._evaluate() for _ in range(num_passes)) / num_passes
        self._add_late_params()
        held = [p for group in self._optimizer.param_groups for p in group["params"]]
        if num_passes > 1:
            torch._foreach_div_([p.grad for p in held if p.grad is not None], num_passes)
        self.guard.loss = self._ranks.average_(held, loss)
        if self.guard(held):
            self._optimizer.step()
        return self.guard.loss

    def close(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._set_rates(1.0)

    def state_dict(self) -> dict[str, Any]:
        optimizer = self._optimizer.state_dict()
        return {"optimizer": optimizer, "guard": self.guard.state_dict(self._params)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"], self._params)

    def trains_only(self, guide: Callable) -> bool:
        """Whether all that is trained are parameters of the guide, none of the model."""
        own = guide.parameters() if isinstance(guide, torch.nn.Module) else ()
        return self._held() <= {id(p) for p in own}

    def _held(self) -> set[int]:
        return {id(p) for group in self._optimizer.param_groups for p in group["params"]}

    def _set_rates(self, factor: float) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _add_late_params(self) -> None:
        """Parameters may appear in Pyro's store after the first step."""
        store = pyro.get_param_store()
        if len(store) == len(self._stored):
            return
        known = self._held()
        new = {n: p for n, p in store.named_parameters() if n not in self._stored}
        late = {n: p for n, p in new.items() if p.grad is not None and id(p) not in known}
        if late and not self._is_given:
            warnings.warn(
                f"fit_guide: parameters that appeared on the way are trained too: {sorted(late)}.",
                stacklevel=5,
            )
            self._optimizer.add_param_group({"params": list(late.values())})
            self._rates.append(self._rates[0])
            self._params = self._params | late
        self._stored = set(store.keys())


class PyroStepper:
    """Steps of :class:`pyro.infer.SVI` with one of Pyro's optimizers; no schedule but its own."""

    def __init__(
        self,
        optimizer: PyroOptim,
        model: Callable,
        guide: Callable,
        backward: Backward,
        args: tuple,
        kwargs: dict[str, Any],
        params: dict[str, Tensor],
        ranks: Ranks,
    ) -> None:
        self.guard = Guard()
        self._optimizer = optimizer
        self._params = params
        self.name = f"pyro.optim.{type(optimizer).__name__}"

        def loss_and_grads(*args: Any, **kwargs: Any) -> float:
            self.guard.loss = backward(*args, **kwargs)
            return self.guard.loss

        guarded = _GuardedOptim(optimizer, self.guard, ranks)
        self._svi = SVI(model, guide, guarded, loss=loss_and_grads, loss_and_grads=loss_and_grads)
        self._args, self._kwargs = args, kwargs

    def trains_only(self, guide: Callable) -> bool:
        """Unknown before the first step."""
        return False

    @property
    def learning_rate(self) -> float:
        for optimizer in self._optimizer.optim_objs.values():
            return float(getattr(optimizer, "optimizer", optimizer).param_groups[0]["lr"])
        return math.nan

    def step(self, factor: float, num_passes: int = 1) -> float:
        self._svi.step(*self._args, **self._kwargs)
        loss = self.guard.loss
        if isinstance(self._optimizer, PyroLRScheduler) and not self.guard.num_skipped_in_a_row:
            constructor = self._optimizer.pt_scheduler_constructor
            wants_loss = "metrics" in inspect.signature(constructor.step).parameters
            self._optimizer.step(loss) if wants_loss else self._optimizer.step()
        return loss

    def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        optimizer = self._optimizer.get_state()
        return {"optimizer": optimizer, "guard": self.guard.state_dict(self._params)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.set_state(state["optimizer"])
        self.guard.load_state_dict(state["guard"], self._params)


class _GuardedOptim(PyroOptim):
    """A Pyro optimizer that asks the guard first."""

    def __init__(self, inner: PyroOptim, guard: Guard, ranks: Ranks) -> None:
        self._inner = inner
        self._guard = guard
        self._ranks = ranks

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        store = pyro.get_param_store()
        params = sorted(params, key=lambda p: store.param_name(p) or "")
        self._guard.loss = self._ranks.average_(params, self._guard.loss)
        if self._guard(params):
            self._inner(params, *args, **kwargs)


def _make_optimizer(
    optimizer: Any,
    learning_rate: float | None,
    params: dict[str, Tensor],
    matrices: Sequence[Tensor],
) -> Optimizer | MuonAdam:
    tensors = list(params.values())
    if optimizer is None:
        rate = learning_rate or DEFAULT_LEARNING_RATE
        if matrices:
            return MuonAdam(tensors, matrices, rate)
        return torch.optim.Adam(tensors, lr=rate, fused=can_be_fused(tensors))
    made = optimizer
    if not isinstance(made, Optimizer):
        made = optimizer(tensors) if learning_rate is None else optimizer(tensors, lr=learning_rate)
    if not isinstance(made, Optimizer):
        raise TypeError(
            "fit_guide: expected optimizer to return a torch.optim.Optimizer when called with the "
            f"parameters, got {type(made).__name__}."
        )
    if isinstance(made, torch.optim.LBFGS):
        raise TypeError(
            "fit_guide: LBFGS evaluates the loss several times a step and cannot be used on a "
            "stochastic one; use Adam, which is the default."
        )
    _check_coverage(made, params)
    return made


def _check_coverage(optimizer: Optimizer, params: dict[str, Tensor]) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, param in params.items() if id(param) not in held]
    if len(missing) == len(params):
        raise ValueError(
            "fit_guide: the optimizer holds none of the parameters of this guide; make it from "
            "guide.parameters(), or pass a factory such as torch.optim.Adam."
        )
    if missing:
        warnings.warn(
            f"fit_guide: the optimizer was made without {len(missing)} of {len(params)} "
            f"parameters, which stay as they are: {missing[:5]}.",
            stacklevel=5,
        )
