"""A loss and its gradients as one compiled graph of tensor operations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ..compiling import for_a_compiler
from ..log_density.checks import same_randomness

__all__ = ["Found", "Recorded", "batch_last"]

_TOLERANCE = 1e4  # of loss and gradients against eager ones, in units of rounding and their size
_MAX_FUSION_SIZE = 1024  # operations of a kernel: all of a spline, way back included


class Found(NamedTuple):
    """What one run of the graph gives."""

    loss: Tensor
    others: tuple[Tensor, ...]
    grads: list[Tensor | None]  # of the leaves


class Recorded:
    """A module that returns a loss, recorded, compiled, and run on its live tensors.

    The way back is recorded with the way there, so that the compiler sees both at once: it keeps
    little, computes again what costs less than memory does, and no graph is built at a call. The
    first result is compared with an eager one.

    Args:
        module: Is called with its inputs, as one list, and the arguments; returns a tuple of
            tensors, the loss first.
        inputs: Returns tensors beside the module's own that are read anew at each call.
    """

    def __init__(self, module: nn.Module, inputs: Callable[[], list[Tensor]] = list) -> None:
        self._module, self._inputs = module, inputs
        self._slots = _slots(module)
        self._state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._run: Callable | None = None

    def is_current(self) -> bool:
        """Whether the module has the parts that were recorded, trained as they were."""
        return (
            all(map(is_, map(dict.get, *self._slots[:2]), self._slots[2]))
            and self._flags == self._trained_flags()
        )

    def compile(self, *args: Tensor) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # here: it is slow to import

        self._flags, values = self._trained_flags(), self._values()
        self._arg_flags = [arg.requires_grad for arg in args]
        self._num_leaves = len(self.leaves(args))
        flat = [*values, *args]
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        with same_randomness(0, flat[0]):  # what the loss draws itself, mini-batches for one
            eager = self._evaluate(values, args)
        _refuse_changes(buffers)
        with same_randomness(0, flat[0]), torch.no_grad():  # the recorder differentiates itself
            with for_a_compiler():
                graph = make_fx(self._flat(len(values)))(*flat)
            self.check(graph)
            self._run = _compile(graph, flat)
        with same_randomness(0, flat[0]):
            compiled = self(*args)
        _compare(eager, compiled)

    def check(self, graph: fx.GraphModule) -> None:
        """Raise where what was recorded is not to be used."""

    @torch.no_grad()
    def __call__(self, *args: Tensor) -> Found:
        found = self._run(*self._values(), *args)
        first = len(found) - self._num_leaves
        return Found(found[0], tuple(found[1:first]), list(found[first:]))

    def leaves(self, args: tuple[Tensor, ...]) -> list[Tensor]:
        """What is differentiated by: all that requires a gradient, arguments last."""
        return [value for value in (*self._values(), *args) if value.requires_grad]

    def book(self, found: Found, args: tuple[Tensor, ...], add_gradients: bool) -> Tensor:
        """Give the gradients to the leaves, now or on the way back, and return the loss."""
        leaves = self.leaves(args)
        # Data may come from something trained outside: only a backward pass gets there.
        if add_gradients and all(leaf.is_leaf for leaf in leaves):
            _add(leaves, found.grads)
            return found.loss
        return _Differentiated.apply(found.loss, found.grads, *leaves)

    def _flat(self, number: int) -> Callable:
        """The graph as a function of tensors to tensors: nested ones cost time at every call."""

        def step(*inputs: Tensor) -> tuple[Tensor | None, ...]:
            loss, others, grads = self._evaluate(list(inputs[:number]), inputs[number:])
            return (loss, *others, *grads)

        return step

    def _evaluate(self, values: list[Tensor], args: tuple[Tensor, ...]) -> Found:
        with torch.enable_grad():
            pairs = zip((*values, *args), [*self._flags, *self._arg_flags], strict=True)
            flat = [value.detach().requires_grad_(flag) for value, flag in pairs]
            values, args = flat[: len(values)], flat[len(values) :]
            state = dict(zip(self._state, values, strict=False))
            loss, *others = functional_call(self._module, state, (values[len(state) :], *args))
            leaves = [value for value in flat if value.requires_grad]
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        grads = [None if g is None else g.contiguous() for g in grads]
        return Found(loss.detach(), tuple(other.detach() for other in others), grads)

    def _values(self) -> list[Tensor]:
        return [*self._state.values(), *self._inputs()]

    def _trained_flags(self) -> list[bool]:
        return [value.requires_grad for value in self._values()]


@torch.no_grad()
def _refuse_changes(buffers: list[tuple[Tensor, Tensor]]) -> None:
    """Raise, with the buffers as they were, if an evaluation changed some."""
    changed = [(b, copy) for b, copy in buffers if not torch.equal(b, copy)]
    for buffer, copy in changed:
        buffer.copy_(copy)
    if changed:
        raise RuntimeError(
            f"it changes {len(changed)} buffers as it runs, such as running means (compile in "
            "evaluation mode)"
        )


def batch_last(noise: Tensor) -> Tensor:
    """The same numbers, in memory as the flow keeps them: loops over them are not interrupted."""
    return noise.mT.contiguous().mT


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
    if any(i.is_cuda for i in inputs):
        options["triton.cudagraphs"] = True
    with warnings.catch_warnings():  # the compiler warns of its own parts
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        import torch._inductor  # here: it is slow to import

        return torch._inductor.compile(graph, inputs, options=options)


def _compare(eager: Found, compiled: Found) -> None:
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
