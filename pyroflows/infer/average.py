"""The mean of the parameters over the end of a fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checkpoint import random_state, set_random_state

__all__ = ["Average"]

_NUM_EVALUATIONS = 4


class Average:
    r"""The mean of the iterates :math:`\bar\phi = \frac{1}{n} \sum_t \phi_t` over the last steps.

    Noise that moves the parameters to and fro cancels in it. It is taken where its ELBO is higher
    than that of the last iterate, on the same draws.

    References:
        | Acceleration of stochastic approximation by averaging (Polyak and Juditsky, 1992),
          https://doi.org/10.1137/0330046

    Args:
        params: The tensors that are trained, by name.
        device: Where they live.
    """

    def __init__(self, params: dict[str, Tensor], device: torch.device) -> None:
        self._params, self._device = params, device
        self._mean: dict[str, Tensor] = {}
        self.number = 0

    @torch.no_grad()
    def add(self) -> None:
        """Count the parameters as they are."""
        self.number += 1
        if not self._mean:
            self._mean = {name: p.detach().clone() for name, p in self._params.items()}
            return
        for name, p in self._params.items():
            self._mean[name].lerp_(p, 1 / self.number)

    @torch.no_grad()
    def settle(self, evaluate: Callable[[], float]) -> float:
        """Take the mean if it is better; return what it gained in ELBO, in nats, or zero."""
        if self.number < 2:
            return 0.0
        last = {name: p.detach().clone() for name, p in self._params.items()}
        random = random_state(self._device)
        before = self._loss(evaluate)
        self._set(self._mean)
        set_random_state(random, self._device)
        gain = before - self._loss(evaluate)
        if gain > 0:
            return gain
        self._set(last)
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a file holds of it."""
        return {"number": self.number, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a file holds."""
        self.number = state["number"]
        self._mean = {name: mean.to(self._params[name]) for name, mean in state["mean"].items()}

    def _loss(self, evaluate: Callable[[], float]) -> float:
        return sum(evaluate() for _ in range(_NUM_EVALUATIONS)) / _NUM_EVALUATIONS

    def _set(self, values: dict[str, Tensor]) -> None:
        for name, p in self._params.items():
            p.copy_(values[name])
