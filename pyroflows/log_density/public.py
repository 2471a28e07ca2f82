"""A model's log density as a function of a batch of points, for use outside of a guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from ..arguments import check_arguments
from ..latents import Latents
from .checks import spread
from .density import METHODS, LogDensity
from .reading import init_to_center, read_latents
from .tracing import Program

__all__ = ["VectorizedLogDensity", "vectorized_log_density"]

_OWNER = "vectorized_log_density"


class VectorizedLogDensity:
    r"""What :func:`~pyroflows.vectorized_log_density` returns: a callable of points.

    Args:
        density: The log density of the model.
        origin: The point that the model was read at, on unconstrained coordinates, shape ``(D)``.
        compile: Whether to compile the flat graph.

    Attributes:
        latents: The latents: their order, shapes and supports on one flat vector.
    """

    def __init__(self, density: LogDensity, origin: Tensor, compile: bool) -> None:
        self.latents: Latents = density.latents
        self._density = density
        self._origin = origin
        self._is_compiled = compile
        self._compiled: dict[Program, Callable] = {}

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        return self.latents.dim

    @property
    def method(self) -> str:
        """How a batch is evaluated: ``"vmap"``, ``"plate"`` or ``"loop"``."""
        return self._density.method or "loop"

    @property
    def report(self) -> str:
        """How batches are evaluated and what was tried before, in words."""
        told = {
            "vmap": "all points in one run of the model, under torch.vmap",
            "plate": "all points in one run of the model, in an outer plate",
            "loop": "one run of the model for each point",
        }[self.method]
        if self._compiled:
            told += "; compiled"
        elif self._density.traced:
            told += "; from a flat graph, without running it again"
        notes = "; ".join(self._density.notes)
        return told + (f" ({notes})" if notes else "")

    def __call__(self, u: Tensor) -> Tensor:
        """Return the log density of each point.

        Args:
            u: Unconstrained points, shape ``(K, D)``.

        Returns:
            Log densities, shape ``(K)``, differentiable in ``u`` and the model's parameters.

        Raises:
            ValueError: If ``u`` is of another shape.
            RuntimeError: If compiling was asked for and there is no compiler.
        """
        if not isinstance(u, Tensor) or u.dim() != 2 or u.shape[-1] != self.dim:
            got = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
            raise ValueError(
                f"{_OWNER} expected points of shape (K, {self.dim}), got {got}: one row a point, "
                "on unconstrained coordinates (.unconstrain gives them)."
            )
        return self._call_compiled(u) if self._is_compiled and len(u) else self._density(u)

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """Return site values of points ``(*batch, D)``, shape ``(*batch, *shape)`` each."""
        return self.latents.constrain(u, skip_jacobian=True)[0]

    def unconstrain(self, sites: dict[str, Tensor]) -> Tensor:
        """Return the points ``(*batch, D)`` of some site values."""
        self.latents.check_values(sites, _OWNER)
        return self.latents.unconstrain(sites)

    def _call_compiled(self, u: Tensor) -> Tensor:
        program = self._density.program(len(u), like=u)
        if program is None:
            return self._density(u)
        if program not in self._compiled:
            self._compiled = {p: c for p, c in self._compiled.items() if p.is_current()}
            self._compiled[program] = torch.compile(program.graph, fullgraph=True, dynamic=False)
        try:
            return self._compiled[program](u, *program.inputs())
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).split())[:200]
            raise RuntimeError(
                f"{_OWNER}(compile=True): torch.compile failed ({reason}). It needs a C++ compiler "
                "(g++ or clang) on the path: install one, or pass compile=False."
            ) from error

    def __str__(self) -> str:
        sites = ", ".join(f"{n} {tuple(s.shape)}" for n, s in self.latents.sites.items())
        return f"log density of {sites} on {self.dim} unconstrained coordinates: {self.report}"

    def __repr__(self) -> str:
        return f"VectorizedLogDensity(dim={self.dim}, method={self.method!r})"


def vectorized_log_density(
    model: Callable,
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    method: str = "auto",
    compile: bool = False,
    seed: int | None = None,
) -> VectorizedLogDensity:
    r"""Make a function of a batch of points from a Pyro model.

    .. math:: u \mapsto \log p(x, z(u)) + \log |\partial z / \partial u|

    with :math:`z(u)` the bijection of unconstrained coordinates onto the supports of the latents.
    Discrete sites that are enumerated are summed out. The model is run for many points at once,
    under ``torch.vmap`` or in one more plate, where either gives what Pyro gives one point at a
    time: value by site, gradient by coordinate, and no influence of one point on another. Batches
    of a size that comes again are taken from a flat graph of tensor operations, without running
    the model: its data and parameters stay live, and minibatches stay random.

    Args:
        model: A Pyro model with continuous latents; discrete ones must be enumerated.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.
        method: ``"vmap"``, ``"plate"`` or ``"loop"``; ``"auto"`` takes the first that is right.
        compile: Whether to compile the flat graph with ``torch.compile``: seconds at the first
            call of each batch size, and some times faster from then on.
        seed: Of what the model draws in the checks.

    Returns:
        A callable of points ``(K, D)`` with ``dim``, ``latents``, ``method``, ``report``,
        ``constrain`` and ``unconstrain``.

    Raises:
        ValueError: If the model has latents that cannot be held, or cannot be evaluated by the
            method that was asked for.

    Example:
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> log_density = vectorized_log_density(model, model_args=(torch.tensor([1.0, 2.0]),))
        >>> log_density.method, log_density.dim
        ('vmap', 1)
        >>> log_density(torch.zeros(3, 1)).shape
        torch.Size([3])
    """
    check_arguments(_OWNER, model, model_args, model_kwargs)
    if method not in ("auto", *METHODS):
        raise ValueError(
            f"{_OWNER} expected method to be one of {('auto', *METHODS)}, got {method!r}."
        )
    kwargs = dict(model_kwargs or {})
    with poutine.block(), torch.no_grad():
        trace = poutine.trace(InitMessenger(init_to_center)(model)).get_trace(*model_args, **kwargs)
        latents = read_latents(trace, _OWNER)
        origin = latents.unconstrain({n: trace.nodes[n]["value"] for n in latents.sites})
    density = LogDensity(model, latents, model_args, kwargs, method=method)
    points = spread(origin[None], 3)
    with torch.random.fork_rng([origin.device] if origin.is_cuda else []):
        torch.manual_seed(0 if seed is None else seed)
        density.check(points)
    return VectorizedLogDensity(density, origin, compile)
