"""A loss that a user writes, with its gradients, as one compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, fx, nn

from .compilations import Compilations, GivenUp
from .recorded import Recorded, batch_last

__all__ = ["CompiledLoss"]


class CompiledLoss(Compilations):
    r"""A loss whose value and gradients come from one compiled graph.

    .. math:: (\phi, x) \mapsto \left( L(\phi, x), \nabla_\phi L(\phi, x) \right)

    ``torch.compile`` compiles the way there and the way back apart, and stores all that lies
    between them. Here the compiler sees both at once and stores little; splines are written for it
    bin by bin. The first use with arguments of some shape takes seconds to minutes, and is compared
    with an eager run; where anything is in the way, the loss is eager from then on, with a warning.

    What the loss reads beside its arguments and the modules is taken as it was when it was
    recorded: pass data as arguments, and every module that is trained.

    References:
        | Training Deep Nets with Sublinear Memory Cost (Chen et al., 2016), on computing again
        | https://arxiv.org/abs/1604.06174

    Args:
        loss: Maps tensors to one number, a tensor of shape ``()``.
        modules: What it uses that has parameters or buffers.

    Attributes:
        seconds: What recording and compiling took.
        reason: Why the loss is not compiled (any more), or nothing.

    Raises:
        TypeError: If ``loss`` is not callable, or a module not a ``torch.nn.Module``.
        ValueError: If there is no module.

    Example:
        >>> import torch
        >>> from pyroflows import build_flow
        >>> flow = build_flow("affine", 2)
        >>> def loss(x):
        ...     z, log_det = flow.inverse_and_log_det(x)
        ...     return (0.5 * z.square().sum(-1) - log_det).mean()
        >>> compiled = CompiledLoss(loss, flow)
        >>> compiled(torch.randn(64, 2)).backward()  # doctest: +SKIP
    """

    subject = "CompiledLoss: the loss is"
    advice = "use arguments of few shapes, and leave the last, smaller batch away"

    def __init__(self, loss: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(
                "CompiledLoss expected a function of tensors that returns one number, got "
                f"{type(loss).__name__}."
            )
        if not modules:
            raise ValueError(
                "CompiledLoss expected the modules that the loss uses after it, got none: "
                "CompiledLoss(loss, flow)."
            )
        for module in modules:
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"CompiledLoss expected modules after the loss, got {type(module).__name__}."
                )
        self._loss = _Loss(loss, modules)

    def __call__(self, *args: Tensor) -> Tensor:
        """Return the loss; its backward pass hands over gradients that are there already.

        Args:
            args: What the loss takes. Those that require a gradient get theirs.

        Raises:
            TypeError: If an argument is no tensor.
            ValueError: If what the loss returns is not one number.
        """
        for arg in args:
            if not isinstance(arg, Tensor):
                raise TypeError(
                    f"CompiledLoss expected tensors as arguments, got {type(arg).__name__}: use "
                    "torch.as_tensor, or let the loss read what never changes."
                )
        if not self.reason and torch.is_grad_enabled():
            with self._or_give_up(unless=_NotOneNumber):
                laid_out = tuple(batch_last(a) if a.dim() == 2 else a for a in args)
                graph = self._find(laid_out)
                return graph.book(graph(*laid_out), laid_out, add_gradients=False)
        return self._loss([], *args)[0]

    def _find(self, args: tuple[Tensor, ...]) -> Recorded:
        modes = tuple(part.training for part in self._loss.modules())
        key = tuple((a.shape, a.dtype, a.device, a.requires_grad) for a in args)
        return self._get((key, modes), Recorded.is_current, lambda: (_Step(self._loss), args))

    def __reduce__(self) -> tuple:
        """Copies compile their own."""
        return CompiledLoss, (self._loss.fn, *self._loss.parts)

    def __repr__(self) -> str:
        names = ", ".join(type(part).__name__ for part in self._loss.parts)
        state = f"eager: {self.reason}" if self.reason else f"{len(self._graphs)} compiled"
        return f"CompiledLoss({names}; {state})"


class _Step(Recorded):
    def check(self, graph: fx.GraphModule) -> None:
        baked = [getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"]
        shapes = [tuple(b.shape) for b in baked if isinstance(b, Tensor) and b.requires_grad]
        if shapes:
            raise GivenUp(
                f"it uses trained tensors of shapes {shapes} that are no parameters of the modules "
                "(pass the modules they belong to)"
            )


class _Loss(nn.Module):
    """The loss as a module, so that the parameters it reads can be exchanged."""

    def __init__(self, fn: Callable[..., Tensor], modules: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.__dict__["fn"] = fn
        self.parts = nn.ModuleList(modules)

    def forward(self, _: list[Tensor], *args: Tensor) -> tuple[Tensor]:
        # Checks of values cannot be recorded, and would stop a device at each step.
        with pyro.validation_enabled(False):
            found: Any = self.fn(*args)
        if isinstance(found, Tensor) and not found.shape:
            return (found,)
        shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
        raise _NotOneNumber(
            f"CompiledLoss: the loss returned a {type(found).__name__}{shape}, expected a tensor "
            "of one number: take .mean() or .sum()."
        )


class _NotOneNumber(ValueError):
    """An error of the loss, whether it is compiled or not."""
