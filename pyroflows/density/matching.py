"""Flow matching: fit the velocity of a continuous flow without solving for its paths."""

from __future__ import annotations

import torch
from torch import Tensor

from ..bijectors import Continuous
from .module import FlowDensity
from .split import Rows

__all__ = ["FlowMatching"]

_NUM_HELD = 8  # noise draws a row, held fixed to judge by


class FlowMatching:
    r"""The mean squared error of the velocity along straight paths from noise to data.

    .. math:: \mathrm E_{t, z, y}\, \big| v((1 - t) z + t y, t; c) - (y - z) \big|^2, \qquad
        t \sim U(0, 1), \; z \sim \text{base}

    with data :math:`y` in the coordinates in which the flow ends. No differential equation is
    solved, so a step costs one pass of the network; the minimum is a velocity whose flow carries
    the base to the data.

    References:
        | Flow Matching for Generative Modeling (Lipman et al., 2023)
        | https://arxiv.org/abs/2210.02747

    Args:
        density: One whose flow is a single continuous one.

    Raises:
        ValueError: If its flow is another.
    """

    def __init__(self, density: FlowDensity) -> None:
        self._density = density
        self._flow, *self._outer = density.bijector.bijectors
        if not isinstance(self._flow, Continuous):
            raise ValueError(
                "fit_density: objective='flow_matching' is for a single continuous flow, "
                f"FlowDensity(dim, 'cnf'), and the density has {type(self._flow).__name__}."
            )

    def __call__(self, rows: Rows) -> Tensor:
        """The loss of rows, from a draw of time and noise for each."""
        end, context = self._ends(rows), self._context(rows)
        base = self._density.base.distribution(context if self._density.base.context_dim else None)
        start = base.expand(end.shape[:-1]).sample()
        time = torch.rand_like(end[..., :1])
        point = torch.lerp(start, end, time)
        velocity = self._flow.velocity(torch.cat([point, time], -1), context)
        return (velocity - (end - start)).square().sum(-1).mean()

    @torch.no_grad()
    def validate(self, rows: Rows) -> float:
        """The loss from draws that are the same each time."""
        index = torch.arange(rows.number, device=rows.x.device).repeat(_NUM_HELD)
        devices = [rows.x.device] if rows.x.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            return float(self(rows[index]))

    @torch.no_grad()
    def _ends(self, rows: Rows) -> Tensor:
        end = self._density.unbounded(rows.x)
        for part in reversed(self._outer):
            end = part.inverse_and_log_det(end)[0]
        return end

    def _context(self, rows: Rows) -> Tensor | None:
        return None if rows.context is None else self._density.standardized(rows.context)
