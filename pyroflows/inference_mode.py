"""What needs derivatives of its own also where the caller asked for none at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["outside_inference_mode", "usable"]


def usable(value: Any) -> Any:
    """The value, or a copy that autograd can use of a tensor made in inference mode."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def outside_inference_mode(method: Callable) -> Callable:
    """Make a method that differentiates on its way work under ``torch.inference_mode``.

    It runs under ``torch.no_grad`` there, on copies of tensors that autograd refuses; elsewhere it
    runs as it is.
    """

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A compiler cannot ask for the mode, and has left it where it runs what was compiled.
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return method(self, *args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            copies = {name: usable(value) for name, value in kwargs.items()}
            return method(self, *map(usable, args), **copies)

    return run
