"""A last phase for tails: log weights made equal where draws seldom go."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from ..bijector import Bijector
from ..guides import AutoFlow
from ..psis import smooth_log_weights
from ._passes import InPasses
from .surrogate import flow_terms

__all__ = ["Tails", "find_tails"]

_K = 0.4  # a shape that is good enough, and known to be by so few draws
_NEAR = 0.5  # tolerances: of a guide farther off the tail is not all that is wrong
_NUM_JUDGED = 10_000
_NUM_STEPS = 200
_LEARNING_RATE = 2e-3
_BETAS, _EPS = (0.9, 0.95), 1e-6
_WIDTH = 2.0
_SHARE = 0.75  # of the draws that are widened
_DELTA = 0.5  # nats, beyond which a log weight counts by its size, not its square
_MARGIN = 0.1  # tolerances of the ELBO that a better tail may cost
_MAX_ROUNDING = 1e-3
_TIME_SHARE = 0.5  # of what the fit took before, or
_MIN_SECONDS = 10.0


class _State(NamedTuple):
    """What weights of the guide's own draws say of it."""

    elbo: float
    log_z: float
    shape: float


class Tails:
    r"""Makes the log weights of widened draws equal, where their tail is heavy.

    A guide that is right where its draws go may be wrong a little further out, as few draws tell.
    So three in four draws have one coordinate of their noise doubled, which of them by chance, and

    .. math:: \mathrm E_r \, \ell\big(\log p(x, z) - \log q(z) - \log Z\big)

    falls, with Huber's loss :math:`\ell`. Where the flow can be the posterior, that is zero for it
    and only for it whatever the draws r, and so is the noise of the gradient. Where it cannot,
    the minimum is not that of the ELBO: what was found is kept if the shape of the weights' tail
    is better for it, and the ELBO not worse by more than a tenth of the fit's tolerance.

    References:
        | VarGrad: A Low-Variance Gradient Estimator for Variational Inference (Richter, Boustati,
          Nüsken, Ruiz, Akyildiz, 2020), https://arxiv.org/abs/2010.10436

    Args:
        bijector: Gives the flow with its parameters as they are.
        log_density: The log density of the model at unconstrained points.
        params: The tensors that are trained, by name.
        dim: The number of latent coordinates.
        num_draws: Draws a step.
        tolerance: That of the fit, in nats.
    """

    def __init__(
        self,
        bijector: Callable[[], Bijector],
        log_density: Callable[[Tensor], Tensor],
        params: dict[str, Tensor],
        *,
        dim: int,
        num_draws: int,
        tolerance: float,
    ) -> None:
        self._bijector, self._log_density = bijector, log_density
        self._in_passes = InPasses(log_density)
        self._params = [p for p in params.values() if p.requires_grad]
        self._dim, self._num_draws, self._tolerance = dim, num_draws, tolerance

    def run(self, seconds: float) -> str:
        """Mend the tail, unless it is right; return what became of it in words, or nothing.

        Args:
            seconds: What the fit took so far.
        """
        held_out = self._noise(_NUM_JUDGED)
        before, found = self._judge(held_out), None
        if not before.shape > _K or not before.log_z - before.elbo <= _NEAR * self._tolerance:
            return ""
        start = [p.detach().clone() for p in self._params]
        try:
            self._minimise(before.log_z, max(_TIME_SHARE * seconds, _MIN_SECONDS))
            found = self._judge(held_out)
        finally:  # Ctrl-C too: what has not been judged is not kept
            is_better = found is not None and self._is_better(found, before)
            if not is_better:
                self._set(start)
        if not is_better:
            return f"Steps for the tails, for a k-hat of {before.shape:.2f}, made nothing better."
        return (
            f"{_NUM_STEPS} steps more, for the tails, took k-hat from {before.shape:.2f} to "
            f"{found.shape:.2f}."
        )

    def _is_better(self, found: _State, before: _State) -> bool:
        # not by log Z - ELBO, which is small too where mass was let go
        return found.shape < before.shape and found.elbo >= before.elbo - _MARGIN * self._tolerance

    @torch.no_grad()
    def _judge(self, noise: Tensor) -> _State:
        u, log_det = self._bijector().forward_and_log_det(noise)
        log_noise = -0.5 * (noise.square().sum(-1) + self._dim * math.log(2 * math.pi))
        weights = self._in_passes(u).double() - (log_noise - log_det).double()
        if not bool(torch.isfinite(weights).all()):
            return _State(-math.inf, math.inf, math.inf)
        rounding = 16 * torch.finfo(noise.dtype).eps * float(weights.abs().max())
        tolerance = min(max(1e-8, rounding), _MAX_ROUNDING)
        smoothed, shape = smooth_log_weights(weights.cpu(), tolerance=tolerance)
        log_z = float(smoothed.logsumexp(0)) - math.log(len(weights))
        return _State(float(weights.mean()), log_z, shape)

    def _minimise(self, log_z: float, limit: float) -> None:
        optimizer = torch.optim.Adam(self._params, betas=_BETAS, eps=_EPS)
        started = perf_counter()
        for step in range(_NUM_STEPS):
            done = max(step / _NUM_STEPS, (perf_counter() - started) / limit)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * (1 + math.cos(math.pi * done)) / 2
            optimizer.zero_grad(set_to_none=True)
            with suppress(torch.linalg.LinAlgError):  # a model that refuses a draw far out
                self._add_gradients(log_z)
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _add_gradients(self, log_z: float) -> None:
        noise = self._widened(self._num_draws)
        terms = flow_terms(self._bijector(), self._log_density, noise, score_weight=1.0)
        # far out a density may well be no number
        off = torch.where(torch.isfinite(terms.log_weights), terms.parts - log_z, 0)
        huber_loss(off, torch.zeros_like(off), delta=_DELTA).backward()
        found = [p.grad for p in self._params if p.grad is not None]
        if not all(bool(torch.isfinite(g).all()) for g in found):
            torch._foreach_zero_(found)

    def _widened(self, number: int) -> Tensor:
        """Noise, one coordinate of most of it doubled."""
        noise = self._noise(number)
        wide = noise[: int(_SHARE * number)]
        chosen = torch.randint(self._dim, (len(wide), 1), device=noise.device)
        wide = wide.scatter(1, chosen, _WIDTH * wide.gather(1, chosen))
        return torch.cat([wide, noise[len(wide) :]])

    def _noise(self, number: int) -> Tensor:
        like = self._params[0]
        return torch.randn(number, self._dim, dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for p, value in zip(self._params, values, strict=True):
            p.copy_(value)


def find_tails(guide: Any, loss: Any, params: dict[str, Tensor], tolerance: float) -> Tails | None:
    """The last phase for a guide, where it is made of normal noise and draws are cheap."""
    if not isinstance(guide, AutoFlow) or guide.unregistered_posterior().base is not None:
        return None
    density = loss.density
    if density is None or not density.vectorized:
        return None
    return Tails(
        lambda: guide.unregistered_posterior().bijector,
        density,
        params,
        dim=guide.latent_dim,
        num_draws=loss.num_particles,
        tolerance=tolerance,
    )
