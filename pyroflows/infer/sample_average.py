"""A last phase without noise: L-BFGS on the mean over draws that stay the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .checkpoint import random_state, set_random_state
from .objectives import PathELBO

__all__ = ["SampleAverage"]

_MAX_ITERATIONS = 100
_HISTORY = 20
_WALL = 1e30  # a loss that no line search goes through


class SampleAverage:
    r"""Maximises the ELBO of fixed draws, :math:`\frac1N \sum_n \log p(x, z_n) - \log q(z_n)`.

    The draws :math:`z_n = f_\phi(\epsilon_n)` are of noise that stays the same, so this is a smooth
    function of the parameters without noise, and a method of second order may go to its maximum.
    That is off the maximum of the ELBO by about P/2N nats for P parameters, so it is for small
    flows and many draws. What it finds is kept where the ELBO of other draws is higher for it.

    References:
        | Black Box Variational Inference with a Deterministic Objective (Giordano, Ingram,
          Broderick, 2024), https://arxiv.org/abs/2304.05527

    Args:
        loss: The objective.
        evaluate: Estimates the loss, with gradients.
        params: The tensors that are trained, by name.
        num_draws: The number N.
        device: Where they live.
    """

    def __init__(
        self,
        loss: PathELBO,
        evaluate: Callable[[], float],
        params: dict[str, Tensor],
        num_draws: int,
        device: torch.device,
    ) -> None:
        self._loss, self._evaluate, self._device = loss, evaluate, device
        self._params = [p for p in params.values() if p.requires_grad]
        self._num_passes = math.ceil(num_draws / loss.num_particles)

    def run(self, held_out: Callable[[], float]) -> float:
        """Maximise; return the gain in ELBO of other draws, in nats, or zero where none was kept.

        Args:
            held_out: Estimates the loss from draws that are the same each time.
        """
        start = [p.detach().clone() for p in self._params]
        before = held_out()
        try:
            self._minimise()
            gain = before - held_out()
        except BaseException:  # Ctrl-C: the middle of a line search is no place to stay
            self._set(start)
            raise
        if gain > 0:
            return gain
        self._set(start)
        return 0.0

    def _minimise(self) -> None:
        optimizer = torch.optim.LBFGS(
            self._params,
            max_iter=_MAX_ITERATIONS,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
        )
        now = random_state(self._device)
        with _with_score(self._loss):
            try:
                optimizer.step(lambda: self._value_and_gradient(now))
            finally:
                optimizer.zero_grad(set_to_none=True)

    def _value_and_gradient(self, state: object) -> Tensor:
        set_random_state(state, self._device)
        for p in self._params:
            p.grad = None
        loss = sum(self._evaluate() for _ in range(self._num_passes)) / self._num_passes
        found = [p.grad for p in self._params if p.grad is not None]
        torch._foreach_div_(found, self._num_passes)
        if not (math.isfinite(loss) and all(bool(torch.isfinite(g).all()) for g in found)):
            torch._foreach_zero_(found)
            loss = _WALL
        return self._params[0].new_tensor(loss)

    @torch.no_grad()
    def _set(self, values: Iterable[Tensor]) -> None:
        for p, value in zip(self._params, values, strict=True):
            p.copy_(value)


@contextmanager
def _with_score(loss: PathELBO) -> Iterator[None]:
    """The gradient of the estimate itself: that of the path alone belongs to no function."""
    before = loss.score_weight, loss.tail_weight
    loss.score_weight, loss.tail_weight = 1.0, 0.0
    try:
        yield
    finally:
        loss.score_weight, loss.tail_weight = before
