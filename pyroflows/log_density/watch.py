"""Whether what a model reads beside its arguments is what it was."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["Watch"]

_DEPTH = 3
_LARGEST = 64
_ENTRIES = 200
_FOREIGN = ("torch", "pyro", "numpy", "builtins", "functools", "collections")
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_MISSING = object()


class Watch:
    """Numbers, flags and tensors that a model can reach: globals, closures, attributes.

    Numbers are compared by value, tensors and arrays by identity. Not everything can be seen, so a
    model whose results are kept is compared with itself now and then too.

    Args:
        roots: The model, and arguments of it that are no tensors.
    """

    def __init__(self, *roots: Any) -> None:
        self._entries: list[tuple[Any, Any, Any]] = []  # holder, key, value
        self._seen: set[int] = set()
        self._changing: set[int] = set()
        self._roots = roots  # kept alive: they are known by their identity
        for root in roots:
            self._walk(root, _DEPTH)

    def unchanged(self) -> bool:
        """Whether all is as it was at construction."""
        return not any(
            i not in self._changing and not _same(_read(holder, key), value)
            for i, (holder, key, value) in enumerate(self._entries)
        )

    def forget_changes(self) -> None:
        """Leave out from now on what has changed since construction: running the model does it."""
        for i, (holder, key, value) in enumerate(self._entries):
            if not _same(_read(holder, key), value):
                self._changing.add(i)

    def _walk(self, value: Any, depth: int) -> None:
        if depth < 0 or id(value) in self._seen or isinstance(value, (*_PLAIN, Tensor, np.ndarray)):
            return
        self._seen.add(id(value))
        for holder, key in _places(value):
            if len(self._entries) >= _ENTRIES:
                return
            item = _read(holder, key)
            if isinstance(item, (*_PLAIN, Tensor, np.ndarray, np.generic)):
                self._entries.append((holder, key, item))
            elif item is not _MISSING and not _is_foreign(item):
                self._entries.append((holder, key, item))
                self._walk(item, depth - 1)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where values that a thing reads are kept, as pairs of holder and key."""
    if isinstance(value, types.MethodType):
        yield from ((value, "__self__"), (value, "__func__"))
    elif isinstance(value, functools.partial):
        yield from ((value, "func"), (value, "args"), (value, "keywords"))
    elif isinstance(value, types.FunctionType):
        yield from ((cell, "cell_contents") for cell in value.__closure__ or ())
        yield from ((value.__globals__, name) for name in sorted(_names(value.__code__)))
        yield from ((value, "__wrapped__"), (value, "__kwdefaults__"), (value, "__defaults__"))
    elif isinstance(value, dict):
        yield from ((value, key) for key in list(value)[:_LARGEST])
    elif isinstance(value, list | tuple):
        yield from ((value, i) for i in range(min(len(value), _LARGEST)))
    elif isinstance(value, nn.Module):
        for module in value.modules():
            own = {**module._parameters, **module._buffers}
            tensors = (module._parameters, module._buffers)
            yield from ((d, key) for d in tensors for key in d)
            yield from ((vars(module), k) for k in vars(module) if k[0] != "_" and k not in own)
        yield value, "forward"
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from ((vars(value), key) for key in list(vars(value))[:_LARGEST])
        yield value, "__call__"


def _names(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _read(holder: Any, key: Any) -> Any:
    try:
        if isinstance(holder, dict | list | tuple):
            return holder[key]
        return getattr(holder, key)
    except (KeyError, IndexError, AttributeError, ValueError):
        return _MISSING


def _is_foreign(value: Any) -> bool:
    """Whether a value belongs to a library, not to the model."""
    if isinstance(value, types.ModuleType | type | types.BuiltinFunctionType):
        return True
    if isinstance(value, dict | list | tuple | functools.partial | types.MethodType):
        return False
    module = getattr(value, "__module__", None) or type(value).__module__
    own = not isinstance(value, nn.Module)
    return own and str(module).split(".")[0] in _FOREIGN


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, _PLAIN) and isinstance(b, _PLAIN):
        return type(a) is type(b) and (a == b or (a != a and b != b))
    if isinstance(a, np.generic) and isinstance(b, np.generic):
        return bool(a == b)
    return isinstance(a, types.MethodType) and a == b
