"""A race of step sizes, some steps long."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

__all__ = ["Track", "hold_race"]

FACTORS = (1.0, 1 / 3, 3.0)  # on the learning rate; the first wins a tie
LAPS = ((3, 40), (2, 60))  # the runners that start, and the steps of each


class Track(Protocol):
    """What is raced on: a fit that can go back to where it was."""

    def snapshot(self) -> Any:
        """All that steps change."""

    def restore(self, state: Any) -> None:
        """Go back."""

    def advance(self, factor: float) -> None:
        """Take a step, with a factor on its size."""

    def evaluate(self) -> float:
        """Estimate the loss from draws that are the same each time."""


class _Runner(NamedTuple):
    factor: float
    state: Any
    loss: float = math.inf


def hold_race(track: Track) -> float:
    """Run a few step sizes from one point; return the factor of the one that got farthest.

    The steps of the winner have been taken then, those of the others have not.
    """
    start = track.snapshot()
    runners = [_Runner(factor, start) for factor in FACTORS]
    try:
        for number, num_steps in LAPS:
            lap = [_lap(track, runner, num_steps) for runner in runners[:number]]
            runners = sorted(lap, key=lambda runner: runner.loss)
    except BaseException:  # Ctrl-C first of all: half a lap is no part of the fit
        track.restore(runners[0].state)
        raise
    track.restore(runners[0].state)
    return runners[0].factor


def _lap(track: Track, runner: _Runner, num_steps: int) -> _Runner:
    track.restore(runner.state)
    for _ in range(num_steps):
        track.advance(runner.factor)
    loss = track.evaluate()
    return runner._replace(state=track.snapshot(), loss=loss if math.isfinite(loss) else math.inf)
