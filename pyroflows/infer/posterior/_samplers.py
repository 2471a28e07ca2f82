"""Markov chains in the base space of a flow, many at once: Hamiltonian and independent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .._flow_draws import finite_or_zero
from ._base_space import BaseSpace, Points

__all__ = ["DualAveraging", "Hamiltonian", "Independence", "Move", "Sampler"]

_MAX_ENERGY = 1000.0
_MAX_LEAPFROG = 64
_PROPOSALS_AT_ONCE = 4096
_MOVES_BETWEEN = 25  # that the width of the posterior is measured anew
_MAX_DIM_OF_COVARIANCE = 256


@dataclass(frozen=True)
class Move:
    """Where all chains are after one step of each.

    Attributes:
        noise: Where in the base space, shape ``(C, D)``.
        u: Where on unconstrained coordinates, shape ``(C, D)``.
        log_p: Log density of the model there, on unconstrained coordinates, float64 ``(C)``.
        log_q: That of the guide, float64 ``(C)``.
        acceptance: Probability with which each proposal was accepted, float64 ``(C)``.
        diverged: Whose energy error was beyond all bounds, bool ``(C)``.
        nonfinite: Whose proposal met a density or gradient that is no number, bool ``(C)``.
    """

    noise: Tensor
    u: Tensor
    log_p: Tensor
    log_q: Tensor
    acceptance: Tensor
    diverged: Tensor
    nonfinite: Tensor


class Sampler(Protocol):
    """What moves chains."""

    def move(self, adapt: bool) -> Move:
        """Move each chain once; learn from it where asked to."""

    def settle(self) -> None:
        """End the warm-up."""

    def told(self) -> dict[str, Any]:
        """What was learned, by name."""


@dataclass
class DualAveraging:
    r"""Search for the step size at which proposals are accepted with a given probability.

    Attributes:
        target: This probability.
        step: The step size to use now.

    References:
        Hoffman, Gelman (2014). The No-U-Turn sampler. JMLR 15, section 3.2.
    """

    target: float
    step: float
    _gap: float = 0.0
    _log_mean: float = 0.0
    _count: int = 0
    _center: float = field(init=False)

    def __post_init__(self) -> None:
        self._center = math.log(10 * self.step)

    def update(self, acceptance: float) -> None:
        self._count += 1
        weight = 1 / (self._count + 10)
        self._gap += weight * (self.target - acceptance - self._gap)
        log_step = self._center - math.sqrt(self._count) / 0.05 * self._gap
        share = self._count**-0.75
        self._log_mean += share * (log_step - self._log_mean)
        self.step = math.exp(log_step)

    def settle(self) -> None:
        """Take the average from now on."""
        if self._count:
            self.step = math.exp(self._log_mean)


class Hamiltonian:
    """Leapfrog steps with unit masses: the flow has made all directions alike.

    All chains share a step size, and a number of steps drawn anew for each move, so that no
    trajectory length is one that comes back to its start.

    Args:
        space: Where to move.
        start: Noise to start from, shape ``(C, D)``.
        target_accept: Probability of acceptance to tune the step size to.
        num_leapfrog: Largest number of steps of a move; unless given, as many as half a turn takes
            in the widest direction that the warm-up met.
        owner: Who asks, for messages.
    """

    def __init__(
        self,
        space: BaseSpace,
        start: Tensor,
        target_accept: float,
        num_leapfrog: int | None,
        owner: str,
    ) -> None:
        self._space = space
        fine = space.look(start).finite.nonzero()[:, 0]
        if not len(fine):
            raise ValueError(
                f"{owner}: the log density has no finite gradient at any of {len(start)} starting "
                "points; take method='independence', which needs none."
            )
        self._space = space
        # Chains that would start where there is no gradient start where another does.
        self._state = space.look(start[fine[torch.arange(len(start)) % len(fine)].to(start.device)])
        self._search = DualAveraging(target_accept, start.shape[-1] ** -0.25)
        self._num_leapfrog = num_leapfrog
        self._width = 1.0
        self._seen: list[Tensor] = []

    @property
    def num_leapfrog(self) -> int:
        """The largest number of steps of a move."""
        if self._num_leapfrog is not None:
            return self._num_leapfrog
        half_turn = math.pi * self._width / self._search.step
        return min(max(math.ceil(half_turn), 1), _MAX_LEAPFROG)

    def move(self, adapt: bool) -> Move:
        state, momentum = self._state, torch.randn_like(self._state.noise)
        num = int(torch.randint(1, self.num_leapfrog + 1, (), device="cpu"))
        end, momentum_at_end, broken = self._trajectory(momentum, num)
        gain = end.log_target - state.log_target + _energy(momentum) - _energy(momentum_at_end)
        probability = gain.clamp(max=0.0).exp().masked_fill(broken, 0.0)
        accepted = torch.rand(len(gain), dtype=torch.float64, device="cpu") < probability
        self._state = state = end.where(accepted, state)
        if adapt:
            self._learn(float(probability.mean()))
        diverged = ~broken & (gain < -_MAX_ENERGY)
        log_q = self._space.log_base(state.noise) - state.log_det
        return Move(state.noise, state.u, state.log_p, log_q, probability, diverged, broken)

    def _learn(self, acceptance: float) -> None:
        self._search.update(acceptance)
        self._seen.append(self._state.noise)
        if len(self._seen) % _MOVES_BETWEEN == 0:
            self._width = _widest(torch.cat(self._seen[len(self._seen) // 2 :]))

    def _trajectory(self, momentum: Tensor, num: int) -> tuple[Points, Tensor, Tensor]:
        """Go ``num`` steps; a chain that meets no number stays there, and is marked as broken.

        Going back from its end would meet the same points, so that rejecting it is fair.
        """
        step, point = self._search.step, self._state
        broken = torch.zeros(len(momentum), dtype=torch.bool, device="cpu")
        for _ in range(num):
            half = momentum + 0.5 * step * point.grad
            reached = self._space.look(point.noise + step * half)
            broken = broken | ~reached.finite
            point = point.where(broken, reached)
            rows = broken[:, None].to(momentum.device)
            momentum = torch.where(rows, momentum, half + 0.5 * step * point.grad)
        return point, momentum, broken

    def settle(self) -> None:
        self._search.settle()
        self._seen = []

    def told(self) -> dict[str, Any]:
        return {"step_size": self._search.step, "num_leapfrog": self.num_leapfrog}


class Independence:
    """Metropolis with draws of the guide as proposals, made many at a time.

    Args:
        space: Where to move.
        start: Noise to start from, shape ``(C, D)``.
    """

    def __init__(self, space: BaseSpace, start: Tensor) -> None:
        self._space, self._num = space, len(start)
        self._state = _Weighed.at(space, start)
        self._proposals: list[_Weighed] = []

    def move(self, adapt: bool) -> Move:
        if not self._proposals:
            number = max(_PROPOSALS_AT_ONCE // self._num, 1)
            drawn = _Weighed.at(self._space, self._space.draw(number * self._num))
            self._proposals = drawn.split(self._num)
        proposal, state = self._proposals.pop(), self._state
        nonfinite = ~(proposal.log_p - proposal.log_q).isfinite()
        gain = finite_or_zero(proposal.log_p - proposal.log_q) - (state.log_p - state.log_q)
        probability = gain.clamp(max=0.0).exp()
        accepted = torch.rand(self._num, dtype=torch.float64, device="cpu") < probability
        self._state = state = proposal.where(accepted, state)
        diverged = torch.zeros_like(nonfinite)
        return Move(
            state.noise, state.u, state.log_p, state.log_q, probability, diverged, nonfinite
        )

    def settle(self) -> None:
        """Nothing was learned."""

    def told(self) -> dict[str, Any]:
        return {"step_size": None, "num_leapfrog": None}


@dataclass(frozen=True)
class _Weighed:
    """Noise, its images and both log densities there."""

    noise: Tensor
    u: Tensor
    log_p: Tensor
    log_q: Tensor

    @classmethod
    def at(cls, space: BaseSpace, noise: Tensor) -> _Weighed:
        return cls(noise, *space.weigh(noise))

    def split(self, num: int) -> list[_Weighed]:
        parts = (v.split(num) for v in (self.noise, self.u, self.log_p, self.log_q))
        return [_Weighed(*part) for part in zip(*parts, strict=True)]

    def where(self, accepted: Tensor, other: _Weighed) -> _Weighed:
        rows = accepted[:, None].to(self.noise.device)
        return _Weighed(
            torch.where(rows, self.noise, other.noise),
            torch.where(rows, self.u, other.u),
            torch.where(accepted, self.log_p, other.log_p),
            torch.where(accepted, self.log_q, other.log_q),
        )


def _widest(noise: Tensor) -> float:
    """Standard deviation of draws ``(S, D)`` along the direction where it is largest, at least one.

    What few draws of a standard normal would show in excess of one is taken off.
    """
    size, dim = noise.shape
    centered = noise.to("cpu", torch.float64)
    centered = centered - centered.mean(0)
    if dim > _MAX_DIM_OF_COVARIANCE:
        return max(float(centered.std(0).max()), 1.0)
    largest = torch.linalg.eigvalsh(centered.mT @ centered / size)[-1]
    return max(math.sqrt(max(float(largest), 0.0)) / (1 + math.sqrt(dim / size)), 1.0)


def _energy(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.to("cpu", torch.float64).square().sum(-1)
