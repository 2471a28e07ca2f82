"""A flow in continuous time: the solution of a differential equation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from ..bijector import Bijector
from ..networks import Conditioner

__all__ = ["Continuous"]

_SMOOTH = ("tanh", "silu", "gelu", "elu")
_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")
_FIXED = ("rk4", "midpoint", "euler")
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # relative and absolute


class Continuous(Bijector):
    r"""The flow of a velocity field for one unit of time.

    .. math:: \frac{\mathrm{d} x}{\mathrm{d} t} = v(x, t; c), \qquad
        \log |\det J| = \int_0^1 \operatorname{tr} \frac{\partial v}{\partial x} \, \mathrm{d} t

    The field is a network with a smooth activation; it starts at zero, so the map starts at the
    identity. With ``"tanh"`` it is bounded, and so is what the map moves. Value and
    log-determinant go through one solver, `torchdiffeq <https://github.com/rtqichen/torchdiffeq>`_,
    whose steps hold the largest error of any number of the batch to the tolerance: each point is
    as exact among many as alone, and both directions undo each other to the tolerance, not to
    rounding. Steps of fixed length have no tolerance; their error falls as a power of it.

    References:
        | FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models
        | (Grathwohl et al., 2019), https://arxiv.org/abs/1810.01367
        | Neural Ordinary Differential Equations (Chen et al., 2018)
        | https://arxiv.org/abs/1806.07366

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for none.
        hidden_dims: Sizes of the hidden layers of the field.
        activation: Its activation, ``"tanh"``, ``"silu"``, ``"gelu"`` or ``"elu"``.
        trace: ``"exact"``, at the cost of :math:`D` products with the Jacobian an evaluation, or
            ``"hutchinson"``, an unbiased estimate at the cost of ``num_probes``. An attribute: what
            was trained by the estimate can be scored by the exact trace.
        num_probes: Noise vectors of the estimate, of independent random signs.
        noise: ``"fixed"``: the same for all calls and points, a buffer that is drawn once from a
            seed of its own, so that a log density is a function. Long training may fit the field
            to it, where the estimate is not the trace; with ``"fresh"`` each call and point in
            training mode has noise of its own, held for that call, and evaluation mode the fixed.
        solver: ``"dopri5"``, ``"dopri8"``, ``"bosh3"`` or ``"adaptive_heun"``, which adapt their
            steps, or ``"rk4"``, ``"midpoint"`` or ``"euler"``.
        tolerance: Relative and absolute tolerance of a solver that adapts; by default 1e-9 in
            float64 and 1e-5 in float32. Below eight roundings of the dtype, 1e-6 in float32, no
            step is small enough: that is the least.
        num_steps: Steps of a solver that does not.
        adjoint: Whether gradients come from a second differential equation, solved backwards: less
            memory, gradients to the tolerance, and no second derivatives.

    Attributes:
        num_evaluations: Evaluations of the field in the latest pass.

    Raises:
        ImportError: If torchdiffeq is not installed.
        ValueError: If an option is none of those named, or a number is not positive.
        RuntimeError: When called, if a solver's steps become too small to go on.

    Example:
        >>> flow = Continuous(2, hidden_dims=(16,))
        >>> y, log_det = flow.forward_and_log_det(torch.ones(5, 2))
        >>> print(y[0], log_det[0], flow.num_evaluations > 0)  # doctest: +SKIP
        tensor([1., 1.]...) tensor(0....) True
    """

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "tanh",
        trace: str = "exact",
        num_probes: int = 1,
        noise: str = "fixed",
        solver: str = "dopri5",
        tolerance: float | None = None,
        num_steps: int = 20,
        adjoint: bool = False,
    ) -> None:
        super().__init__(dim, context_dim=context_dim)
        _check_choice("activation", activation, _SMOOTH)
        _check_choice("trace", trace, ("exact", "hutchinson"))
        _check_choice("noise", noise, ("fixed", "fresh"))
        _check_choice("solver", solver, (*_ADAPTIVE, *_FIXED))
        for name, value in {"num_probes": num_probes, "num_steps": num_steps}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Continuous expected {name} to be a positive int, got {value!r}.")
        if tolerance is not None and not 0 < tolerance < 1:
            raise ValueError(f"Continuous expected tolerance between 0 and 1, got {tolerance}.")
        _torchdiffeq()
        self.trace, self.noise, self.solver, self.adjoint = trace, noise, solver, adjoint
        self.tolerance, self.num_steps = tolerance, num_steps
        self.num_evaluations = 0
        self.velocity = Conditioner(
            dim + 1,
            (dim,),
            context_dim=context_dim,
            hidden_dims=hidden_dims,
            activation=activation,
        )
        generator = torch.Generator("cpu").manual_seed(0)  # the same on every device
        signs = torch.randint(2, (num_probes, dim), generator=generator, device="cpu")
        own = next(self.velocity.parameters())
        self.register_buffer("probes", (2 * signs - 1).to(own))

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._flow(x, context, 0.0, 1.0)

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._flow(y, context, 1.0, 0.0)

    def _flow(
        self, x: Tensor, context: Tensor | None, start: float, end: float
    ) -> tuple[Tensor, Tensor]:
        if context is not None:
            batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
            x = x.expand(*batch, self.dim)
            context = context.expand(*batch, self.context_dim)
        if not x.numel():  # a solver has no steps to choose
            return x * 1, x.sum(-1)
        field = _Field(self, context, self._noise(x))
        times = torch.tensor([start, end], dtype=x.dtype, device=x.device)
        # A compiler would take the solver to pieces, and count evaluations as new programs.
        compiling = torch.compiler.is_compiling()
        solve = torch.compiler.disable(self._solve) if compiling else self._solve
        y, log_det = solve(field, (x, x.new_zeros(x.shape[:-1])), times)
        self.num_evaluations = field.num_evaluations
        return y[-1], log_det[-1]

    def _solve(self, field: _Field, state: tuple[Tensor, ...], times: Tensor) -> Any:
        library = _torchdiffeq()
        options: dict[str, Any] = {"method": self.solver}
        if self.solver in _FIXED:
            options["options"] = {"grid_constructor": self._grid}
        else:
            tolerance = self.tolerance or _TOLERANCE.get(times.dtype, 1e-2)
            tolerance = max(tolerance, 8 * torch.finfo(times.dtype).eps)
            options |= {"rtol": tolerance, "atol": tolerance}
            options["options"] = {"norm": _largest, "dtype": times.dtype}
        try:
            if self.adjoint and torch.is_grad_enabled():
                norm = {"norm": _largest} if self.solver in _ADAPTIVE else {}
                return library.odeint_adjoint(
                    field, state, times, adjoint_options=options["options"] | norm, **options
                )
            return library.odeint(field, state, times, **options)
        except AssertionError as error:  # the solver's own, for a step of no length
            raise RuntimeError(
                f"Continuous: the solver {self.solver!r} could not go on ({error}). Are the "
                "parameters finite? A larger tolerance, or a solver of fixed steps, may help."
            ) from error

    def _grid(self, field: _Field, state: Tensor, times: Tensor) -> Tensor:
        parts = torch.arange(self.num_steps + 1, dtype=times.dtype, device=times.device)
        return times[0] + (times[-1] - times[0]) * (parts / self.num_steps)

    def _noise(self, x: Tensor) -> Tensor | None:
        if self.trace == "exact":
            return None
        shape = (len(self.probes), *x.shape)
        if self.noise == "fresh" and self.training:
            return 2 * torch.randint(2, shape, dtype=x.dtype, device=x.device) - 1
        return self.probes.view(shape[0], *[1] * (x.dim() - 1), self.dim).expand(shape)


class _Field(nn.Module):
    """The right-hand side: velocity, and its divergence, at one context and with one noise."""

    def __init__(self, owner: Continuous, context: Tensor | None, noise: Tensor | None) -> None:
        super().__init__()
        self.velocity = owner.velocity
        self.context, self.noise = context, noise
        self.num_evaluations = 0

    def forward(self, time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.num_evaluations += 1
        x = state[0]
        moments = time.to(x.dtype).expand(*x.shape[:-1], 1)

        def velocity(x: Tensor) -> Tensor:
            return self.velocity(torch.cat([x, moments], -1), self.context)

        value, pull = vjp(velocity, x)
        return value, self._divergence(pull, x)

    def _divergence(self, pull: Callable, x: Tensor) -> Tensor:
        if self.noise is None:
            basis = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
            basis = basis.view(len(basis), *[1] * (x.dim() - 1), len(basis)).expand(-1, *x.shape)
            scale = 1.0
        else:
            basis, scale = self.noise, 1 / len(self.noise)
        return scale * (vmap(pull)(basis)[0] * basis).sum((0, -1))


def _largest(values: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The norm that holds each number to the tolerance, however many there are."""
    parts = (values,) if isinstance(values, Tensor) else values
    return torch.stack([part.abs().max() for part in parts]).max()


def _check_choice(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"Continuous expected {name} to be one of {tuple(known)}, got {value!r}.")


def _torchdiffeq() -> Any:
    try:
        with warnings.catch_warnings():  # it warns of its own parts
            warnings.simplefilter("ignore", DeprecationWarning)
            import torchdiffeq
    except ImportError as error:
        raise ImportError(
            "Continuous needs torchdiffeq: pip install 'pyroflows[ode]', or torchdiffeq itself."
        ) from error
    return torchdiffeq
