"""A posterior seen from the base space of a flow, where it is nearly the base."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from ...guides import AutoFlow
from ...psis import psis
from .._flow_draws import FlowDraws, exactly, finite_or_zero, flow_draws
from .._passes import where_defined
from .weighted import systematic

__all__ = ["BaseSpace", "Points", "require_flow"]

_POOL = 1000
_POOL_PER_CHAIN = 8


def require_flow(guide: Callable, owner: str) -> None:
    """Raise unless a guide is an ``AutoFlow``, whose density can be had wherever a chain goes."""
    if not isinstance(guide, AutoFlow):
        raise TypeError(
            f"{owner} expected an AutoFlow, whose chains move in the base space of its flow, got "
            f"{type(guide).__name__}: fit an AutoFlow, or use posterior_draws, which weighs the "
            "draws of any guide."
        )


@dataclass(frozen=True)
class Points:
    """Some points of the base space.

    Attributes:
        noise: Where they are, shape ``(C, D)``.
        u: Their images on unconstrained coordinates, shape ``(C, D)``.
        log_p: Log density of the model there, float64 on the CPU, shape ``(C)``.
        log_det: Log-determinant of the flow, likewise.
        grad: Gradient of their sum by the noise, shape ``(C, D)``.
    """

    noise: Tensor
    u: Tensor
    log_p: Tensor
    log_det: Tensor
    grad: Tensor

    @property
    def log_target(self) -> Tensor:
        """Log density of the posterior in the base space, unnormalised, shape ``(C)``."""
        return self.log_p + self.log_det

    @property
    def finite(self) -> Tensor:
        """Where density and gradient are numbers, shape ``(C)``, on the CPU."""
        return self.log_target.isfinite() & self.grad.isfinite().all(-1).cpu()

    def where(self, accepted: Tensor, other: Points) -> Points:
        """These points where accepted, others elsewhere; ``accepted`` is on the CPU."""
        rows = accepted[:, None].to(self.noise.device)
        return Points(
            torch.where(rows, self.noise, other.noise),
            torch.where(rows, self.u, other.u),
            torch.where(accepted, self.log_p, other.log_p),
            torch.where(accepted, self.log_det, other.log_det),
            torch.where(rows, self.grad, other.grad),
        )


class BaseSpace:
    r"""The posterior as a density of the noise, :math:`\log p(x, f(z)) + \log |\det f'(z)|`.

    Args:
        guide: The guide.
        flow: What scores its draws.
    """

    def __init__(self, guide: AutoFlow, flow: FlowDraws) -> None:
        self._flow = flow
        self._posterior = guide.unregistered_posterior()
        self._base = guide.get_base_dist()
        self.latents = guide.latents

    @classmethod
    def of(
        cls,
        model: Callable,
        guide: AutoFlow,
        args: tuple,
        kwargs: dict[str, Any],
        owner: str,
        batch_size: int | None = None,
    ) -> BaseSpace:
        """Make it, or raise where the model is not the guide's."""
        flow = flow_draws(model, guide, args, kwargs, batch_size)
        if flow is None:
            raise ValueError(
                f"{owner}: the model has no density with a gradient at draws of the guide, or its "
                "latents are not the guide's: pass the model and the arguments that the guide was "
                "fitted to."
            )
        return cls(guide, flow)

    @property
    def base_name(self) -> str:
        base = self._posterior.base
        return "normal" if base is None else type(base).__name__

    @property
    def is_real(self) -> bool:
        """Whether the noise is free to go anywhere."""
        base = self._posterior.base
        return base is None or base.support is constraints.real_vector

    def draw(self, num: int) -> Tensor:
        """Draw noise, shape ``(num, D)``."""
        with torch.no_grad():
            return self._posterior.draw_noise((num,)).detach()

    def weigh(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return images of noise ``(S, D)``, and log p and log q there, float64 on the CPU.

        Both are densities on unconstrained coordinates.
        """
        with torch.no_grad():
            u, log_det = self._posterior.bijector.forward_and_log_det(noise)
            log_q = exactly(self._base.log_prob(noise)) - exactly(log_det)
            return u, self._flow.log_p(u), log_q

    def look(self, noise: Tensor) -> Points:
        """Return density and gradient at some noise ``(C, D)``."""
        with torch.inference_mode(False), torch.enable_grad():
            noise = noise.clone().requires_grad_()
            u, log_det = self._posterior.bijector.forward_and_log_det(noise)
            log_p = where_defined(self._flow.density, u)
            total, grad = (log_p + log_det).sum(), torch.zeros_like(noise)
            if total.requires_grad:
                (grad,) = torch.autograd.grad(
                    total, noise, allow_unused=True, materialize_grads=True
                )
        noise, u, grad = noise.detach(), u.detach(), grad.detach()
        return Points(noise, u, exactly(log_p), exactly(log_det), grad)

    def log_base(self, noise: Tensor) -> Tensor:
        """Score noise ``(*, D)`` under the base, float64 on the CPU."""
        with torch.no_grad():
            return exactly(self._base.log_prob(noise))

    def start(self, num_chains: int, owner: str) -> Tensor:
        """Draw noise for the start of chains: a pool of draws, resampled by smoothed weights."""
        noise = self.draw(max(_POOL, _POOL_PER_CHAIN * num_chains))
        _, log_p, log_q = self.weigh(noise)
        log_weights = finite_or_zero(log_p - log_q)
        if not bool((log_weights > -math.inf).any()):
            raise ValueError(
                f"{owner}: none of {len(noise)} draws of the guide has a finite density under the "
                "model, so chains have nowhere to start: fit the guide to this model first, or "
                "find where the log density overflows."
            )
        smoothed, _ = psis(log_weights)
        return noise[systematic(smoothed.exp(), num_chains).to(noise.device)]
