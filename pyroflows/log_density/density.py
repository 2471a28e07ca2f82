"""The log density of a Pyro model on unconstrained coordinates, for a batch of points at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from ..latents import Latents
from .checks import complaint, probe_points, reference, spread
from .programs import Programs, is_heard
from .runs import METHODS, JointRuns, total
from .tracing import Program, arguments_of

__all__ = ["LogDensity"]

_ORDER = ("vmap", "plate")
_UNDECIDED_CALLS = 2  # of one point each, before the ways to take many are worth their check


class LogDensity:
    r"""The function :math:`u \mapsto \log p(x, z(u)) + \log |\partial z / \partial u|`.

    A batch of points is evaluated in one run of the model, under ``torch.vmap`` or inside one
    more, outermost plate. Each way is compared with Pyro's own density of one point at a time
    before it is used, site by site and coordinate by coordinate, and the density of one point must
    not depend on another. A model that allows neither is run point by point, with a warning.
    Discrete sites that are enumerated are summed out exactly.

    Args:
        model: A Pyro model.
        latents: Its latents.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.
        method: ``"vmap"``, ``"plate"`` or ``"loop"``; ``"auto"`` takes the first that is right.

    Attributes:
        method: How batches are evaluated; ``None`` until it has been decided.
        subsampled: Whether the latest run showed only a part of some plate, so that the density is
            an estimate.
    """

    def __init__(
        self,
        model: Callable,
        latents: Latents,
        model_args: tuple = (),
        model_kwargs: dict[str, Any] | None = None,
        *,
        method: str = "auto",
    ) -> None:
        if method not in ("auto", *METHODS):
            raise ValueError(
                f"LogDensity expected method to be one of {('auto', *METHODS)}, got {method!r}."
            )
        self._runs = JointRuns(model, latents, tuple(model_args), dict(model_kwargs or {}))
        self._candidates = _ORDER if method == "auto" else (method,)
        self._is_given = method != "auto"
        self.method: str | None = "loop" if method == "loop" else None
        self._notes: tuple[str, ...] = ()
        self._programs = Programs(self._runs)
        self._seen: Tensor | None = None  # points that the model was run at
        self._num_undecided = 0

    @property
    def model(self) -> Callable:
        return self._runs.model

    @property
    def latents(self) -> Latents:
        return self._runs.latents

    @property
    def model_args(self) -> tuple:
        return self._runs.model_args

    @model_args.setter
    def model_args(self, args: tuple) -> None:
        self._runs.model_args = tuple(args)

    @property
    def model_kwargs(self) -> dict[str, Any]:
        return self._runs.model_kwargs

    @model_kwargs.setter
    def model_kwargs(self, kwargs: dict[str, Any]) -> None:
        self._runs.model_kwargs = dict(kwargs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was tried and not taken, in words."""
        reason = self._programs.reason
        return (*self._notes, f"no flat graph: {reason}") if reason else self._notes

    @property
    def traced(self) -> bool:
        """Whether a flat graph of tensor operations stands for the model at some batch size."""
        return self._programs.any

    @property
    def subsampled(self) -> bool:
        return self._runs.subsampled

    @property
    def vectorized(self) -> bool | None:
        """Whether batches take one run; ``None`` until it has been decided."""
        return None if self.method is None else self.method != "loop"

    def __call__(self, u: Tensor) -> Tensor:
        """Return the log density of each point.

        Args:
            u: Unconstrained points, shape ``(K, D)``.

        Returns:
            Log densities, shape ``(K)``, differentiable in ``u`` and the model's parameters.
        """
        if not len(u):
            return u.new_zeros(0)
        if self._seen is None:
            self._seen = probe_points(u)
        if self.method is None:
            self._num_undecided += 1
            if len(u) > 1 or self._num_undecided > _UNDECIDED_CALLS:
                self.check(probe_points(u))
        program = None if is_heard() else self._programs.find(u.shape, u, self.method, lambda: u)
        values = None if program is None else self._programs.run(program, u)
        return self._by_handlers(u) if values is None else values

    def program(self, num_points: int, like: Tensor | None = None) -> Program | None:
        """Return the log density of so many points as a flat graph, taken now if there is none.

        The same object comes back as long as it is right, so this may be asked at every step, and
        what was built upon it is to be built anew when another comes. The tensors of ``inputs()``
        are those of now: data passed by :attr:`model_args`, and the model's parameters. What cannot
        be seen from outside the model is found by ``Program.agrees``, which costs a run of it.

        Args:
            num_points: The number of points ``K``.
            like: A tensor of the dtype and device of the points; that of the latest call if not
                given.

        Returns:
            The program, or ``None`` if the model cannot be taken as a graph: :attr:`notes` say why.
        """
        if like is None:
            like = torch.zeros((), device=self._device()) if self._seen is None else self._seen[0]
        if self.method is None:
            self.check(probe_points(self._known(like)))
        shape = torch.Size((num_points, self.latents.dim))
        return self._programs.find(
            shape, like, self.method, lambda: spread(self._known(like), num_points), now=True
        )

    def _known(self, like: Tensor) -> Tensor:
        """Points that the model was run at, or else one."""
        seen = like.new_zeros(1, self.latents.dim) if self._seen is None else self._seen
        return seen.to(like)

    def _device(self) -> torch.device | None:
        """The device of the model's data, if they tell it."""
        tensors, _ = arguments_of(self._runs)
        return tensors[0].device if tensors else None

    def _by_handlers(self, u: Tensor) -> Tensor:
        # Extreme points may make parameters invalid: they get NaN, not an exception.
        with pyro.validation_enabled(False):
            try:
                return total(METHODS[self.method or "loop"](self._runs, u))
            except RuntimeError:
                if self.method != "vmap":
                    raise
                # Parameters that are gone cannot be made anew under vmap, but by one point alone.
                with torch.no_grad():
                    self._single(u[0].detach())
                return total(METHODS["vmap"](self._runs, u))

    def check(self, points: Tensor) -> bool:
        """Decide how batches are evaluated, by comparing each way with one run per point.

        Args:
            points: At least two distinct points, shape ``(P, D)``.

        Returns:
            Whether batches take one run. Points of infinite density decide nothing.

        Raises:
            ValueError: If the way that was asked for is not right for this model.
        """
        if self.method == "loop":
            return False
        self._seen = points.detach()
        method, reasons = self._first_right(points, self._candidates)
        if method is None and not reasons:
            return False
        self._notes = tuple(reasons)
        if method is None and self._is_given:
            raise ValueError(
                f"LogDensity: the model cannot be evaluated with method={self._candidates[0]!r} "
                f"({'; '.join(reasons)}). Use method='auto' to have one chosen that can."
            )
        self.method = method or "loop"
        if method is None:
            _warn_of_loop("nor does it run under torch.vmap, ", reasons)
        return method is not None

    def broadcasts(self, points: Tensor) -> bool:
        """Whether the model may be run inside a plate of particles, as Pyro's losses do.

        Args:
            points: At least two distinct points, shape ``(P, D)``.
        """
        method, reasons = self._first_right(points, ("plate",))
        if reasons:
            _warn_of_loop("", reasons)
        return method is not None

    def _first_right(
        self, points: Tensor, candidates: tuple[str, ...]
    ) -> tuple[str | None, list[str]]:
        """The first of some methods that is right, and what is wrong with those before it."""
        seed = int(torch.randint(2**31, (), device="cpu"))
        reasons: list[str] = []
        with pyro.validation_enabled(False):
            expected = reference(self._runs, points, seed)
            for method in candidates if expected.finite.any() else ():
                reason = complaint(self._runs, method, expected)
                if not reason:
                    return method, reasons
                reasons.append(f"{method}: {reason}")
        return None, reasons

    def _single(self, u: Tensor) -> Tensor:
        """The log density of one point by Pyro's handlers."""
        return total(self._runs.single(u))


def _warn_of_loop(also: str, reasons: list[str]) -> None:
    warnings.warn(
        f"The model does not broadcast over draws, {also}so draws are evaluated one by one, which "
        f"is slower ({'; '.join(reasons)}). Write event dimensions to the right of plates, sum "
        "only over event dimensions, and let no branch depend on the value of a latent to have "
        "them evaluated together.",
        stacklevel=4,
    )
