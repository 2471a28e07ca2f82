"""The arguments of a fit: checked, and filled in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ..guides import AutoFlow
from .distributed import Ranks
from .objectives import PathELBO
from .particles import LEAST_PARTICLES
from .survey import guide_name, module_params

__all__ = [
    "check_data",
    "check_numbers",
    "check_optimizer",
    "check_restarts",
    "check_sample_average",
    "make_loss",
    "refuse_to_compile",
    "warn_of_old_start",
]

_COUNTS = ("num_steps", "num_particles", "chunk_size", "sample_average")
_FAR_TO_GO = 1000.0  # nats; from a tenth of it a fit of ordinary length arrives well


def check_numbers(given: dict[str, Any]) -> None:
    """Raise ValueError for a number out of range among arguments by name."""
    for name in _COUNTS:
        value = given[name]
        if value is not None and (isinstance(value, bool) or value != int(value) or value < 1):
            raise ValueError(f"fit_guide: expected {name} to be an integer >= 1, got {value}.")
    for name in ("time_budget", "learning_rate"):
        value = given[name]
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"fit_guide: expected {name} > 0 and finite, got {value}.")
    if not given["tolerance"] >= 0:
        raise ValueError(f"fit_guide: expected tolerance >= 0, got {given['tolerance']}.")


def check_optimizer(optimizer: Any, learning_rate: float | None) -> None:
    """Raise TypeError for what is no optimizer, ValueError for one with two learning rates."""
    is_made = isinstance(optimizer, PyroOptim | torch.optim.Optimizer)
    if is_made and learning_rate is not None:
        raise ValueError(
            f"fit_guide: got learning_rate={learning_rate} and an optimizer that has its own "
            f"already ({type(optimizer).__name__}); set it there, or pass a factory such as "
            "torch.optim.Adam."
        )
    if not (optimizer is None or is_made or callable(optimizer)):
        raise TypeError(
            "fit_guide: expected optimizer to be None, a torch optimizer, a factory of one, or a "
            f"pyro.optim.PyroOptim, got {type(optimizer).__name__}."
        )


def check_restarts(
    number: int, guide: Any, optimizer: Any, num_diagnostic_samples: int | None, ranks: Ranks
) -> None:
    """Raise for refits that could not be made, or not be compared."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"fit_guide: expected num_restarts to be an integer >= 0, got {number!r}.")
    if not number:
        return
    if not isinstance(guide, AutoFlow):
        raise TypeError(
            "fit_guide: num_restarts makes the guide anew, which it knows how to do for an "
            f"AutoFlow, got {type(guide).__name__}: fit several of them, and compare_fits."
        )
    if isinstance(optimizer, PyroOptim | torch.optim.Optimizer):
        raise ValueError(
            "fit_guide: num_restarts needs an optimizer for each fit, got one that is made "
            f"({type(optimizer).__name__}): pass a factory such as torch.optim.Adam."
        )
    if num_diagnostic_samples == 0:
        raise ValueError(
            "fit_guide: num_restarts compares fits by their diagnostics, and "
            "num_diagnostic_samples=0 leaves these out."
        )
    if ranks.size > 1:
        raise ValueError(
            f"fit_guide: num_restarts is for one process, and {ranks.size} share this fit: pass "
            "distributed=False, or let each process make a fit of its own."
        )


def refuse_to_compile(compile: bool, ranks: Ranks) -> None:
    """Raise for steps that would be compiled and shared."""
    if compile and ranks.size > 1:
        raise ValueError(
            f"fit_guide: compile=True is for one process, and {ranks.size} share this fit. Leave "
            "it out, or pass distributed=False."
        )


def check_sample_average(number: int | None, guide: Any, loss: Any, ranks: Ranks) -> None:
    """Raise for a last phase that could not be."""
    if number is None:
        return
    if not (isinstance(guide, AutoFlow) and isinstance(loss, PathELBO)):
        raise TypeError(
            "fit_guide: sample_average keeps the draws of an AutoFlow under PathELBO, got "
            f"{guide_name(guide)} and {guide_name(loss)}: leave it out."
        )
    if ranks.size > 1:
        raise ValueError(
            f"fit_guide: sample_average is for one process, and {ranks.size} share this fit: leave "
            "it out, or pass distributed=False."
        )


def make_loss(loss: Any, num_particles: int | None, chunk_size: int | None, compile: bool) -> Any:
    """The loss that was asked for, and an instance where a class was given."""
    given, num_particles = num_particles, num_particles or LEAST_PARTICLES
    options = {"chunk_size": chunk_size, "compile": compile}
    options = {name: value for name, value in options.items() if value}
    if len(options) > 1:
        raise ValueError(
            f"fit_guide: compile=True takes all draws at once, got chunk_size={chunk_size} too. "
            "Leave one of them out."
        )
    if options:
        if loss not in (None, PathELBO):
            told = ", ".join(f"{name}={value}" for name, value in options.items())
            raise ValueError(
                f"fit_guide: got {told}, which PathELBO knows, and the loss {guide_name(loss)}. "
                f"Leave one of them out, or make the loss with PathELBO({told})."
            )
        return PathELBO(num_particles=num_particles, **options)
    if loss is None or isinstance(loss, type):
        return (loss or PathELBO)(num_particles=num_particles, vectorize_particles=True)
    if not (callable(loss) or hasattr(loss, "loss_and_grads")):
        raise TypeError(
            "fit_guide: expected loss to be None, a Pyro ELBO, a class of one, or a function, got "
            f"{type(loss).__name__}."
        )
    own = getattr(loss, "num_particles", num_particles)
    if given not in (None, own):
        raise ValueError(
            f"fit_guide: got num_particles={num_particles}, and a loss with num_particles={own}. "
            "Give it to the loss alone."
        )
    return loss


def check_data(guide: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    """Data must have the dtype and the device of the guide's parameters.

    Raises:
        ValueError: If a floating tensor, other than a scalar, has not.
    """
    if isinstance(guide, AutoFlow):  # which knows what it was made with, and checks at every call
        return
    param = next((p for _, p in module_params(guide) if p.is_floating_point()), None)
    if param is None:
        return
    named = [(f"model_args[{i}]", v) for i, v in enumerate(args)]
    named += [(f"model_kwargs[{k!r}]", v) for k, v in kwargs.items()]
    for name, value in named:
        for tensor in _tensors(value):
            if tensor.dim() and (tensor.dtype, tensor.device) != (param.dtype, param.device):
                raise ValueError(
                    f"fit_guide: {name} is {tensor.dtype} on {tensor.device}, but the parameters "
                    f"of {guide_name(guide)} are {param.dtype} on {param.device}. Cast the data, "
                    f"data.to({str(param.device)!r}, {param.dtype}), or the guide, "
                    f"guide.to({str(tensor.device)!r}, {tensor.dtype})."
                )


def warn_of_old_start(guide: Callable, spread: float) -> None:
    """Say that a guide fitted before has far to go, in steps sized for where it is.

    Args:
        guide: The guide.
        spread: Standard deviation of its log weights now, in nats; may be NaN.
    """
    if not isinstance(guide, AutoFlow) or not spread > _FAR_TO_GO:
        return
    outer = guide.bijector.bijectors[-1]
    if not any(bool(param.any()) for param in outer.parameters()):  # zero where it starts
        return
    warnings.warn(
        f"fit_guide: {guide_name(guide)} has been fitted before, and its log weights now spread "
        f"over {spread:.3g} nats: it is far from this posterior, and its steps are in proportion "
        "to the old one, so the way may be longer than the fit. For other data make a new guide, "
        "with model_args= of these data, which starts at their posterior.",
        stacklevel=4,
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
