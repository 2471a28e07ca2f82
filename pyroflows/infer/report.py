"""What came of a fit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .importance import ImportanceDiagnostics
from .schedule import mean_and_error
from .survey import guide_name

__all__ = ["GuideFit", "Restart"]

_RISING = 0.05  # nats in 100 steps
_FEWEST = 5  # losses that have a mean and an error to compare

_REASONS = {
    "converged": "converged",
    "num_steps": "took all its steps",
    "time_budget": "used up its time",
    "interrupted": "was interrupted, before its learning rate came down,",
    "diverged": "diverged: too many steps in a row were not finite, so the last good parameters "
    "were put back,",
}


@dataclass(frozen=True)
class Restart:
    """An independent refit, beside the fit that was kept.

    Attributes:
        seed: Its seed; ``None`` if the fit had none.
        elbo: Its ELBO, in nats.
        log_z: Its log evidence by importance sampling.
        log_z_se: The standard error of that.
        verdict: The verdict on it alone.
        shift: The largest distance between its means and those kept, over unconstrained
            coordinates, in standard deviations of the latter.
        spread: The factor between standard deviations that is farthest from one.
    """

    seed: int | None
    elbo: float
    log_z: float
    log_z_se: float
    verdict: str
    shift: float
    spread: float


@dataclass
class GuideFit:
    """What came of a fit. Printed, it is a report that ends with a verdict.

    Attributes:
        guide: The guide, fitted.
        losses: Minus the estimated ELBO at each step, skipped ones included.
        learning_rates: The learning rate of each step.
        seconds: What the fit took, without its diagnostics.
        stop_reason: ``"converged"``, ``"num_steps"``, ``"time_budget"``, ``"interrupted"`` or
            ``"diverged"``.
        num_particles: Draws a step, of each process.
        num_skipped_steps: Steps not taken because the loss or a gradient was not finite.
        num_clipped_steps: Steps shortened because their gradient was far out of line.
        num_nonfinite_particles: Draws left out because their density was not finite.
        vectorized: Whether the model was run on all draws at once; ``None`` if unknown.
        seed: The seed that was given.
        diagnostics: What importance weights say; ``None`` if there are none.
        note: Why there are no diagnostics, or fewer draws in them than were asked for.
        explored_again: Whether the bound got worse under the path gradient, so that the ordinary
            one was used from then, until the learning rate fell.
        num_processes: Processes that shared the steps.
        compilation: What became of ``compile=True``, and how long it took, in words.
        compile_seconds: What compiling took of ``seconds``.
        race_factor: The factor on the learning rate that won the race of step sizes.
        averaging_gain: What the mean of the parameters over the last steps gained on the last
            ones, in nats of ELBO; zero where the last ones were kept.
        sample_average_gain: What ``sample_average`` gained, by other draws; zero where it was
            asked for and not kept, or not asked for.
        opening: What the fit found of the flow without its couplings, in words, if it began so.
        tails: What became of steps for the tails, in words, if there were any.
        events: What happened on the way, each with the number of steps before it: parts of the flow
            that woke, the race of step sizes, the fall of the learning rate.
        model: The model, and ``model_args`` and ``model_kwargs``, what it was called with.
        restarts: The other fits, where ``num_restarts`` asked for some: this one is the best.
    """

    guide: Callable
    losses: list[float] = field(repr=False)
    learning_rates: list[float] = field(repr=False)
    seconds: float
    stop_reason: str
    num_particles: int
    num_skipped_steps: int = 0
    num_clipped_steps: int = 0
    num_nonfinite_particles: int = 0
    vectorized: bool | None = None
    seed: int | None = None
    diagnostics: ImportanceDiagnostics | None = field(default=None, repr=False)
    note: str = ""
    explored_again: bool = False
    num_processes: int = 1
    compilation: str = ""
    compile_seconds: float = 0.0
    restarts: tuple[Restart, ...] = ()
    opening: str = ""
    tails: str = ""
    race_factor: float = 1.0
    averaging_gain: float = 0.0
    sample_average_gain: float = 0.0
    events: tuple[tuple[int, str], ...] = ()
    model: Callable | None = field(default=None, repr=False)
    model_args: tuple = field(default=(), repr=False)
    model_kwargs: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def num_steps(self) -> int:
        """The number of steps."""
        return len(self.losses)

    @property
    def seconds_per_step(self) -> float:
        """What a step took on average, the preparation of the first included, not compiling."""
        return (self.seconds - self.compile_seconds) / max(self.num_steps, 1)

    @property
    def elbo(self) -> float:
        """The ELBO: of the diagnostics' draws, or else smoothed over the last steps."""
        return self._smoothed()[0] if self.diagnostics is None else self.diagnostics.elbo

    def report(self, path: str | os.PathLike, **options: Any) -> str:
        """Write one page of HTML on this fit: verdict, tables, figures, environment.

        Args:
            path: The file.
            **options: As of :func:`pyroflows.write_report`: ``num_samples``, ``seed``, ...

        Returns:
            The path.

        Raises:
            ValueError: If the fit has no model, as one read from an old file.
        """
        # The one step up the layers, taken when it is called for: see the page on the design.
        from ..diagnostics.html_report import report_of_fit

        return report_of_fit(self, path, **options)

    def __str__(self) -> str:
        elbo, error = self._smoothed()
        lines = [
            f"{guide_name(self.guide)}: the fit {_REASONS[self.stop_reason]} after "
            f"{self.num_steps} steps in {self.seconds:.1f} s "
            f"({1e3 * self.seconds_per_step:.3g} ms a step).",
            f"Training ELBO {elbo:.6g} ± {error:.2g} over the last {self._num_smoothed()} steps "
            f"of {self.num_particles} draws{self._shared()}"
            f"{'' if self.vectorized else self._sequential()}.",
        ]
        counts = {
            "steps skipped as not finite": self.num_skipped_steps,
            "steps clipped": self.num_clipped_steps,
            "draws left out as not finite": self.num_nonfinite_particles,
        }
        told = [f"{count} {what}" for what, count in counts.items() if count]
        lines += [f"Of them {', '.join(told)}."] if told else []
        if self.explored_again:
            lines.append(
                "The bound got worse under the path gradient: the ordinary one was used from then, "
                "and the other tried again as the learning rate fell."
            )
        lines += [told for told in (self.opening, self.tails) if told]
        lines += [self.compilation] if self.compilation else []
        lines += [f"Note: {self.note}"] if self.note else []
        lines += [self._rising_in_words()] if self._is_rising() else []
        lines += self._restarts_in_words()
        lines += [str(self.diagnostics)] if self.diagnostics is not None else []
        return "\n".join(lines)

    @property
    def rise(self) -> tuple[float, float]:
        """What the bound still gained over 100 steps, in nats, and its standard error.

        Of the last steps before the learning rate began to fall, as the fall itself always gains;
        NaN where these are fewer than ten.
        """
        highest = max(self.learning_rates, default=0.0)
        full = [i for i, rate in enumerate(self.learning_rates) if rate >= highest]
        steady = self.losses[full[0] : full[-1] + 1] if full else []
        half = min(100, len(steady) // 2)
        if half < _FEWEST:
            return math.nan, math.nan
        before, error_before = mean_and_error(steady[-2 * half : -half])
        after, error_after = mean_and_error(steady[-half:])
        scale = 100 / half
        return scale * (before - after), scale * math.hypot(error_before, error_after)

    def _is_rising(self) -> bool:
        rise, error = self.rise
        return rise > max(_RISING, 4 * error)

    def _rising_in_words(self) -> str:
        rise, error = self.rise
        return (
            f"The bound still rose by {rise:.2g} ± {error:.1g} nat in 100 steps when the learning "
            "rate began to fall: fit longer."
        )

    def _restarts_in_words(self) -> list[str]:
        if not self.restarts:
            return []
        lines = [f"The best of {1 + len(self.restarts)} independent fits. The others:"]
        return lines + [
            f"  ELBO {r.elbo:.4f}, log Z {r.log_z:.4f} ± {r.log_z_se:.2g}, {r.verdict}; means up "
            f"to {r.shift:.2f} standard deviations away, these up to {r.spread:.2f} times as large"
            for r in self.restarts
        ]

    def _shared(self) -> str:
        return "" if self.num_processes == 1 else f" on each of {self.num_processes} processes"

    def _sequential(self) -> str:
        return "" if self.vectorized is None else ", one after the other"

    def _num_smoothed(self) -> int:
        return min(len(self.losses), max(10, min(100, len(self.losses) // 10)))

    def _smoothed(self) -> tuple[float, float]:
        mean, error = mean_and_error(self.losses[-self._num_smoothed() :])
        return -mean, error
