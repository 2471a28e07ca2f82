"""Whether operations of now run, or are recorded for a compiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["for_a_compiler", "is_for_a_compiler"]

_FOR_A_COMPILER: ContextVar[bool] = ContextVar("_FOR_A_COMPILER", default=False)


@contextmanager
def for_a_compiler() -> Iterator[None]:
    """Tell kernels that a compiler takes their operations, so that many short ones cost nothing."""
    token = _FOR_A_COMPILER.set(True)
    try:
        yield
    finally:
        _FOR_A_COMPILER.reset(token)


def is_for_a_compiler() -> bool:
    """Whether operations of now are taken by a compiler."""
    return _FOR_A_COMPILER.get()
