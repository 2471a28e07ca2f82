"""What all that compiles has in common: how long it took, and why it was given up."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Protocol

from torch import Tensor

from .recorded import Recorded

__all__ = ["Compilations"]

_MAX_COMPILATIONS = 8


class Listener(Protocol):
    """Someone who shows what takes long."""

    def begin(self, work: str) -> None: ...

    def end(self, seconds: float) -> None: ...


class GivenUp(Exception):
    """Why nothing is compiled any more."""


class Compilations:
    """Compiled graphs by what they serve, made when asked for, until something is in the way.

    Attributes:
        seconds: What recording and compiling took.
        reason: Why nothing is compiled (any more), or nothing.
        listener: Is told when compiling begins and ends, if there is one.
    """

    subject = "Steps are"
    advice = ""

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self.seconds = 0.0
        self.reason = ""
        self._num_compiled = 0
        self._graphs: dict[tuple, Recorded] = {}

    def _get(
        self,
        key: tuple,
        serves: Callable[[Recorded], bool],
        make: Callable[[], tuple[Recorded, tuple[Tensor, ...]]],
    ) -> Recorded:
        """The graph of a key, or a new one: what to record, and with which arguments."""
        graph = self._graphs.get(key)
        if graph is None or not serves(graph):
            self._num_compiled += 1
            if self._num_compiled > _MAX_COMPILATIONS:
                raise GivenUp(
                    f"what they are made of changed {_MAX_COMPILATIONS} times, each of which takes "
                    f"a new compilation ({self.advice})"
                )
            graph, args = make()
            with self._timed():
                graph.compile(*args)
            self._graphs[key] = graph
        return graph

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

    @contextmanager
    def _or_give_up(self, unless: type[Exception] | tuple = ()) -> Iterator[None]:
        """Turn whatever the recorder, the compiler or its tool chain raise into a warning."""
        try:
            yield
        except unless:
            raise
        except GivenUp as error:
            self._give_up(str(error))
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0][:300]
            self._give_up(f"{type(error).__name__}: {first_line or 'without a word'}")

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._graphs.clear()
        warnings.warn(f"{self.subject} not compiled, but run eagerly: {reason}.", stacklevel=6)
