"""A step of training as one compiled graph: loss and gradients of flow and model together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import is_
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ..bijector import Bijector
from ..log_density import LogDensity, Program
from ..log_density.checks import same_randomness
from ..log_density.programs import is_due
from ..transformers.fused import for_a_compiler
from .surrogate import Surrogate, flow_surrogate

__all__ = ["CompiledSteps"]

_TOLERANCE = 1e4  # of loss and gradients against eager ones, in units of rounding and their size
_MAX_COMPILATIONS = 8
_MAX_FUSION_SIZE = 1024  # operations of a kernel: all of a spline, way back included


class Listener(Protocol):
    """Someone who shows what takes long."""

    def begin(self, work: str) -> None: ...

    def end(self, seconds: float) -> None: ...


class CompiledSteps:
    """Compiled steps, one for each kind of gradient, of one flow and one model.

    The flow, the log density (as a flat graph), the objective and all derivatives are recorded
    once as tensor operations and compiled by torch's inductor. The first result is compared with
    an eager one. Where anything is in the way, steps are eager again, with a warning.

    Attributes:
        seconds: What recording and compiling took.
        reason: Why steps are not compiled (any more), or nothing.
        paused: Whether steps of now are too few to compile them.
        listener: Is told when compiling begins and ends, if there is one.
    """

    def __init__(self) -> None:
        self.paused = False
        self.listener: Listener | None = None
        self.seconds = 0.0
        self.reason = ""
        self._num_compiled = 0
        self._steps: dict[tuple, _Step] = {}

    def __str__(self) -> str:
        if self.reason:
            return f"Steps were not compiled, or not to the end: {self.reason}."
        if not self.seconds:
            return "Steps were not compiled: there were too few of them."
        return f"Steps were compiled, which took {self.seconds:.1f} s of that."

    def __reduce__(self) -> tuple:
        """Copies compile their own."""
        return CompiledSteps, ()

    def __call__(
        self,
        bijector: Bijector,
        log_density: LogDensity,
        noise: Tensor,
        score_weight: float,
        tail_weight: float,
        tally: Tensor,
        *,
        add_gradients: bool = False,
    ) -> Surrogate | None:
        """Return what :func:`flow_surrogate` would, or ``None`` where the step has to be eager.

        With ``add_gradients`` they are added to the parameters at once, without a backward pass.
        """
        if self.reason or self.paused:
            return None
        try:
            step = self._find(bijector, log_density, noise, score_weight, tail_weight)
            if step is None:
                return None
            found = step.run(noise, tally)
            if step.is_outdated(found):
                self._give_up("the model changed while its arguments did not")
                return None
            return step.book(found, tally, add_gradients)
        except Exception as error:  # of the recorder, the compiler or its tool chain
            first_line = str(error).strip().partition("\n")[0][:300]
            self._give_up(f"{type(error).__name__}: {first_line or 'without a word'}")
            return None

    def _find(
        self,
        bijector: Bijector,
        log_density: LogDensity,
        noise: Tensor,
        score_weight: float,
        tail_weight: float,
    ) -> _Step | None:
        program = log_density.program(len(noise), noise)
        if program is None:
            self._give_up("the model cannot be recorded: " + "; ".join(log_density.notes))
            return None
        key = (noise.shape, noise.dtype, noise.device, score_weight, tail_weight)
        step = self._steps.get(key)
        if step is None or not step.serves(bijector, program):
            self._num_compiled += 1
            if self._num_compiled > _MAX_COMPILATIONS:
                self._give_up(
                    f"flow, model or settings changed {_MAX_COMPILATIONS} times, each of which "
                    "takes a new compilation (use one PathELBO for each guide)"
                )
                return None
            step = _Step(bijector, program, score_weight, tail_weight)
            with self._timed():
                step.compile(noise)
            self._steps[key] = step
        return step

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = perf_counter()
        if self.listener is not None:
            self.listener.begin("compiling, which may take minutes")
        try:
            yield
        finally:
            seconds = perf_counter() - start
            self.seconds += seconds
            if self.listener is not None:
                self.listener.end(seconds)

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._steps.clear()
        warnings.warn(f"Steps are not compiled, but run eagerly: {reason}.", stacklevel=6)


class _Found(NamedTuple):
    loss: Tensor
    log_weights: Tensor
    num_nonfinite: Tensor
    draws: Tensor
    grads: list[Tensor | None]


class _Step:
    """One kind of step: recorded, compiled, and run on the live tensors of flow and model."""

    def __init__(
        self, bijector: Bijector, program: Program, score_weight: float, tail_weight: float
    ) -> None:
        self._num_calls = 0
        self._whole = _Whole(bijector, program, score_weight, tail_weight)
        self._program = program
        self._slots = _slots(self._whole)
        self._state = {
            **dict(self._whole.named_parameters()),
            **dict(self._whole.named_buffers()),
        }
        self._run: Callable | None = None

    def serves(self, bijector: Bijector, program: Program) -> bool:
        """Whether flow and model are still those that were recorded, and trained as they were."""
        return (
            self._whole.bijector is bijector
            and self._program is program
            and all(map(is_, map(dict.get, *self._slots[:2]), self._slots[2]))
            and self._flags == self._trained_flags()
        )

    def compile(self, noise: Tensor) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # here: it is slow to import

        self._flags = self._trained_flags()
        values, tally, noise = self._values(), _tally_like(noise), _batch_last(noise)
        with same_randomness(0, noise):  # what the model draws itself, mini-batches for one
            eager = self._evaluate(values, tally, noise)
        inputs = [*values, tally, noise]
        with same_randomness(0, noise), torch.no_grad():  # the recorder differentiates by itself
            with for_a_compiler():
                graph = make_fx(self._flat(len(values)))(*inputs)
            self._run = _compile(graph, inputs)
        with same_randomness(0, noise), torch.no_grad():
            compiled = self._call(values, tally, noise)
        _compare(eager, compiled)

    def run(self, noise: Tensor, tally: Tensor) -> _Found:
        self._num_calls += 1
        with torch.no_grad():
            return self._call(self._values(), tally, noise)

    def is_outdated(self, found: _Found) -> bool:
        """Whether the model was seen, now and then, to be another than the one recorded."""
        return is_due(self._num_calls) and not self._program.agrees(found.draws)

    def book(self, found: _Found, tally: Tensor, add_gradients: bool) -> Surrogate:
        """Give the gradients to the parameters, now or on the way back."""
        loss = found.loss
        leaves = [*(v for v in self._values() if v.requires_grad), tally]
        # Data may come from something trained outside: only a backward pass gets there.
        if add_gradients and all(leaf.is_leaf for leaf in leaves):
            _add(leaves, found.grads)
        else:
            loss = _Differentiated.apply(loss, found.grads, *leaves)
        return Surrogate(loss, found.log_weights, found.num_nonfinite)

    def _call(self, values: list[Tensor], tally: Tensor, noise: Tensor) -> _Found:
        loss, log_weights, num_nonfinite, draws, *grads = self._run(
            *values, tally, _batch_last(noise)
        )
        return _Found(loss, log_weights, num_nonfinite, draws, grads)

    def _flat(self, number: int) -> Callable:
        """The step as a function of tensors to tensors: nested ones cost time at every call."""

        def step(*inputs: Tensor) -> tuple[Tensor | None, ...]:
            *found, grads = self._evaluate(list(inputs[:number]), *inputs[number:])
            return (*found, *grads)

        return step

    def _evaluate(self, values: list[Tensor], tally: Tensor, noise: Tensor) -> _Found:
        with torch.enable_grad():
            pairs = zip(values, self._flags, strict=True)
            values = [value.detach().requires_grad_(flag) for value, flag in pairs]
            tally = tally.detach().requires_grad_()
            state = dict(zip(self._state, values, strict=False))
            inputs = values[len(state) :]
            found, draws = functional_call(self._whole, state, (noise, inputs, tally))
            leaves = [*(v for v in values if v.requires_grad), tally]
            grads = torch.autograd.grad(found.loss, leaves, allow_unused=True)
        grads = [None if g is None else g.contiguous() for g in grads]
        loss = found.loss.detach()
        return _Found(loss, found.log_weights, found.num_nonfinite, draws, grads)

    def _values(self) -> list[Tensor]:
        return [*self._state.values(), *self._program.inputs()]

    def _trained_flags(self) -> list[bool]:
        return [value.requires_grad for value in self._values()]


class _Whole(nn.Module):
    """Flow, model and objective as one module, which returns what it drew too."""

    def __init__(
        self, bijector: Bijector, program: Program, score_weight: float, tail_weight: float
    ) -> None:
        super().__init__()
        self.bijector = bijector
        self.__dict__["_program"] = program
        self._weights = {"score_weight": score_weight, "tail_weight": tail_weight}

    def forward(
        self, noise: Tensor, inputs: list[Tensor], tally: Tensor
    ) -> tuple[Surrogate, Tensor]:
        draws = []

        def log_density(u: Tensor) -> Tensor:
            draws.append(u.detach())
            return self._program.fn(u, inputs)

        found = flow_surrogate(self.bijector, log_density, noise, tally=tally, **self._weights)
        return found, draws[0]


def _slots(module: nn.Module) -> tuple[tuple[dict, ...], tuple[str, ...], tuple[Any, ...]]:
    """Where a module keeps its parts, by which names, and what they are."""
    slots = [
        (place, name, value)
        for part in module.modules()
        for place in (part._parameters, part._buffers, part._modules)
        for name, value in place.items()
    ]
    return tuple(zip(*slots, strict=True))


@torch.no_grad()
def _add(leaves: list[Tensor], grads: list[Tensor | None]) -> None:
    """As autograd does: each gradient is its parameter's alone, and laid out in memory as it is.

    Fused optimisers read memory from end to end, whatever the strides.
    """
    taken = set()
    for leaf, grad in zip(leaves, grads, strict=True):
        if grad is None:
            continue
        if leaf.grad is not None:
            leaf.grad.add_(grad)
            continue
        place = grad.data_ptr()
        is_own = grad.stride() == leaf.stride() and place not in taken and not grad.is_cuda
        leaf.grad = grad if is_own else torch.empty_like(leaf).copy_(grad)
        taken.add(place)


class _Differentiated(torch.autograd.Function):
    """A loss whose gradients are there already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, grads: list[Tensor | None], *leaves: Tensor) -> Tensor:
        ctx.grads = grads
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("A compiled step can be differentiated once; evaluate it again.")
        if not grad.is_cpu or grad.item() != 1:
            grads = [None if g is None else grad * g for g in grads]
        return None, None, *grads


def _compile(graph: fx.GraphModule, inputs: list[Any]) -> Callable:
    options = {
        "fallback_random": True,  # the numbers that eager steps would draw
        "max_fusion_size": _MAX_FUSION_SIZE,
    }
    if inputs[-1].is_cuda:
        options["triton.cudagraphs"] = True
    with warnings.catch_warnings():  # the compiler warns of its own parts
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        import torch._inductor  # here: it is slow to import

        return torch._inductor.compile(graph, inputs, options=options)


def _batch_last(noise: Tensor) -> Tensor:
    """The same numbers, in memory as the flow keeps them: loops over them are not interrupted."""
    return noise.mT.contiguous().mT


def _tally_like(noise: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=noise.device, requires_grad=True)


def _compare(eager: _Found, compiled: _Found) -> None:
    """Raise unless the compiled step gives the loss and the gradients of the eager one."""
    pairs = [(eager.loss, compiled.loss), *zip(eager.grads, compiled.grads, strict=True)]
    size = max(float(g.abs().max()) for g in eager.grads if g is not None and g.numel())
    for i, (expected, got) in enumerate(pairs):
        if expected is None or got is None:
            if expected is not got:
                raise RuntimeError("other parameters have gradients once compiled")
            continue
        scale = 1 + (float(expected.abs()) if i == 0 else size)
        tolerance = _TOLERANCE * torch.finfo(got.dtype).eps * scale
        if not torch.allclose(got, expected, rtol=1e-2, atol=tolerance, equal_nan=True):
            what = "loss" if i == 0 else "gradients"
            raise RuntimeError(
                f"the {what} of the compiled step differ from those of the eager one"
            )
