"""The progress bar of a fit."""

from __future__ import annotations

import math
from time import perf_counter

from .schedule import Schedule, mean_and_error

__all__ = ["Progress"]

_SECONDS_BETWEEN = 0.2
_SMOOTHED_OVER = 50


class Progress:
    """A bar with the smoothed ELBO and its noise, or nothing at all.

    Args:
        shown: Whether there is a bar.
        title: What is being fitted.
        schedule: Tells the last step, which may come closer on the way.
    """

    def __init__(self, shown: bool, title: str, schedule: Schedule) -> None:
        self._schedule = schedule
        self._bar = None
        self._written_at = 0.0
        self._steps_before = 0
        if shown:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=schedule.last_step, desc=title, unit="step", leave=True)

    def update(self, losses: list[float], learning_rate: float) -> None:
        """Show the latest of ``losses``, at most a few times a second."""
        if self._bar is None or perf_counter() - self._written_at < _SECONDS_BETWEEN:
            return
        self._written_at = perf_counter()
        self._write(losses, learning_rate)

    def follow(self, schedule: Schedule, steps_before: int) -> None:
        """Go on with another schedule, after so many steps."""
        self._schedule, self._steps_before = schedule, steps_before

    def resume(self, num_steps: int) -> None:
        """Go on from so many steps, which took none of this bar's time."""
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = num_steps

    def begin(self, work: str) -> None:
        """Show work between steps that takes long."""
        if self._bar is not None:
            self._bar.set_postfix_str(work)

    def end(self, seconds: float) -> None:
        """Leave such work out of what a step takes, as there is no more of it to come."""
        if self._bar is not None:
            self._bar.start_t += seconds
            self._bar.last_print_t += seconds

    def close(self, losses: list[float], learning_rate: float) -> None:
        """Show the last state and leave it there."""
        if self._bar is not None:
            self._write(losses, learning_rate)
            self._bar.close()

    def _write(self, losses: list[float], learning_rate: float) -> None:
        mean, error = mean_and_error(losses[-_SMOOTHED_OVER:])
        last = self._schedule.last_step
        self._bar.total = None if last is None else self._steps_before + last
        noise = "" if math.isnan(error) else f" ± {error:.2g}"
        self._bar.set_postfix_str(
            f"ELBO {-mean:.4g}{noise}, lr {learning_rate:.1e}, {self._schedule.phase}",
            refresh=False,
        )
        self._bar.update(len(losses) - self._bar.n)
