"""When to learn how fast, and when to stop: warm-up, stable, decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any

__all__ = ["MAX_STEPS", "Schedule", "mean_and_error", "most_steps"]

MAX_STEPS = 1_500
_MAX_STEPS_OF_FEW = 2_500
_FEW = 16  # coordinates: their steps are cheap, and what is far from Gaussian asks for more
_WARM_UP_STEPS = 50
_WARM_UP_FRACTION = 0.1  # of a run too short for the whole warm-up
_CLOSE = 0.3  # nats of spread in the log weights, a KL of about 0.05
_NEAR = 3.0  # the same: the right place and width, with other tails
_EXPLORE_FRACTION = 0.3  # of a run at most
_BRIEF = 100  # steps
_DECAY_FRACTION = 0.3  # of a run whose length is known
_DECAY_PER_STEP = 0.5  # of the steps so far, in a run that stops when it has converged
_SETTLING = 0.5  # of the decay
_ENDING = 0.75  # of the decay
_WINDOW = 100
_FLAT_WINDOWS = 3
_WATCH_WINDOW = 50
_WORSE = 0.05  # nats by which a bound has to fall to be called worse
_SURE = 4.0  # standard errors
_STATE = (
    "_window",
    "_last",
    "_num_flat",
    "_explores",
    "_explore_steps",
    "_height",
    "_decay_from",
    "_decay_steps",
    "_converged",
    "_watched",
    "_best",
    "_num_returns",
    "_tries_again",
)


class Schedule:
    r"""The factor on the learning rate, and the reason to stop.

    The factor rises from zero to one (warm-up), stays there (stable), and falls along half a
    cosine to zero (decay). What the noise of large steps costs is won back in the decay, so each
    fit ends in one: at a fixed part of a run whose length in steps or seconds is known, or else
    when two windows of losses in a row were no better than the one before by more than
    ``tolerance`` and by more than the standard error of the difference.

    The first part of a run explores (:attr:`score_weight`): with the ordinary gradient, which
    spreads draws into what they have missed so far. Then comes the path gradient, whose noise
    vanishes at the optimum. It vanishes too where a guide is the posterior cut off somewhere, and
    may lead there: where the bound gets worse under it, the run explores again. The noise of
    exploring would keep it from coming close, so the decay, whose steps are small and smaller,
    tries the path gradient once more; where the bound gets worse again, that is the end of it.

    References:
        | MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training
          Strategies (Hu et al., 2024), https://arxiv.org/abs/2404.06395

    Args:
        num_steps: Steps to take, all of them; ``None`` to stop early when converged.
        time_budget: Seconds to take at most.
        tolerance: Improvement of the ELBO over a window, in nats, that is worth going on for.
        most: Steps to take at most where neither is given.
    """

    def __init__(
        self,
        num_steps: int | None,
        time_budget: float | None,
        tolerance: float,
        most: int = MAX_STEPS,
    ) -> None:
        self.max_steps = num_steps or (None if time_budget else most)
        self.time_budget = time_budget
        self.tolerance = tolerance
        self._may_converge = num_steps is None
        self._window: list[float] = []
        self._last: tuple[float, float] | None = None
        self._num_flat = 0
        self._explores, self._explore_steps, self._height = True, math.inf, 1.0
        self._decay_from: tuple[int, float] | None = None  # step, progress
        self._decay_steps = math.inf
        self._converged = False
        self._watched: list[float] = []
        self._best: tuple[float, float] | None = None
        self._num_returns, self._tries_again = 0, False

    @property
    def phase(self) -> str:
        """``"stable"`` (warm-up included) or ``"decay"``."""
        return "stable" if self._decay_from is None else "decay"

    @property
    def may_end_early(self) -> bool:
        """Whether nobody said how many steps there are to be."""
        return self._may_converge

    @property
    def score_weight(self) -> float:
        """The weight of the score in the gradient: one while exploring, then zero."""
        return 1.0 if self._explores else 0.0

    @property
    def explores_briefly(self) -> bool:
        """Whether it explores, for so few steps that nothing is worth preparing for them."""
        of_run = math.inf if self.max_steps is None else _EXPLORE_FRACTION * self.max_steps
        return self._explores and min(self._explore_steps, of_run) <= _BRIEF

    @property
    def last_step(self) -> int | None:
        """The number of steps after which the fit ends at the latest, as far as is known."""
        ends = [] if self.max_steps is None else [self.max_steps]
        if self._decay_from is not None and self._converged:
            ends.append(self._decay_from[0] + math.ceil(self._decay_steps))
        return min(ends, default=None)

    @property
    def returned(self) -> bool:
        """Whether the bound got worse under the path gradient, so that it explores again."""
        return self._num_returns > 0

    def start_from(self, spread: float, *, is_built: bool = True) -> None:
        """Take note of how far the guide starts from the posterior.

        A guide that starts near has met most of the posterior and explores for the warm-up alone,
        as the noise of exploring would keep it from coming closer. One that starts close needs no
        exploring and small steps: Adam's steps are as large as the learning rate however small the
        gradient, and would only shake it.

        Args:
            spread: Standard deviation of the log weights at the start, in nats; may be NaN.
            is_built: Whether the guide was built from the posterior. Any other may have a small
                spread because it covers a small part.
        """
        if spread < _CLOSE:
            self.end_exploring()
            self._height = (spread / _CLOSE) ** 2
        elif spread < _NEAR and is_built:
            self._explore_steps = _WARM_UP_STEPS

    def shorten(self, num_steps: int) -> None:
        """Leave out so many steps, which were taken before."""
        if self.max_steps is not None:
            self.max_steps = max(self.max_steps - num_steps, 1)

    def scale(self, factor: float) -> None:
        """Change the learning rate from here on."""
        self._height *= factor

    def is_settling(self, step: int, elapsed: float) -> bool:
        """Whether the last steps have come, small and smaller."""
        return self._decayed(step, elapsed) >= _SETTLING

    def is_ending(self, step: int, elapsed: float) -> bool:
        """Whether steps are so small that the noise of their gradient is what is left."""
        return self._decayed(step, elapsed) >= _ENDING

    def end_exploring(self) -> None:
        """Compare no losses from before with those after."""
        self._explores, self._num_flat, self._last, self._window = False, 0, None, []

    def factor(self, step: int, elapsed: float) -> float:
        """The factor on the learning rate for the step after ``step`` steps and some seconds."""
        progress = self._progress(step, elapsed)
        is_explored = progress >= _EXPLORE_FRACTION or step >= self._explore_steps
        if self._explores and is_explored and not self.returned:
            self.end_exploring()
        if self._decay_from is None and (self._converged or progress >= 1 - _DECAY_FRACTION):
            self._decay_from = (step, progress)
            self._decay_steps = _DECAY_PER_STEP * step if self._converged else math.inf
            if self._explores and self.returned:
                self.end_exploring()
                self._tries_again, self._watched, self._best = True, [], None
        warm = max((step + 1) / _WARM_UP_STEPS, progress / _WARM_UP_FRACTION)
        return (
            self._height
            * min(1.0, warm)
            * (1 + math.cos(math.pi * self._decayed(step, elapsed)))
            / 2
        )

    def observe(self, step: int, loss: float) -> None:
        """Take note of the loss of the latest of ``step`` steps."""
        may_return = self._num_returns == (1 if self._tries_again else 0)
        if step > _WARM_UP_STEPS and math.isfinite(loss) and may_return:
            self._watch(loss)
        if not self._may_converge or self._decay_from is not None or step <= _WARM_UP_STEPS:
            return
        if math.isfinite(loss):
            self._window.append(loss)
        if len(self._window) == _WINDOW:
            self._compare(mean_and_error(self._window))
            self._window = []
        if self._explores and self._num_flat and not self.returned:
            self.end_exploring()
        self._converged = self._num_flat >= _FLAT_WINDOWS

    def fall(self, steps_before: int) -> tuple[tuple[int, str], ...]:
        """When the learning rate began to fall, counted from ``steps_before``, if it did."""
        if self._decay_from is None:
            return ()
        return ((steps_before + self._decay_from[0], "the learning rate begins to fall"),)

    def stop_reason(self, step: int, elapsed: float) -> str | None:
        """Why to stop after ``step`` steps and ``elapsed`` seconds, or ``None`` to go on."""
        if self._converged and self._decayed(step, elapsed) >= 1:
            return "converged"
        if self.max_steps is not None and step >= self.max_steps:
            return "num_steps"
        if self.time_budget is not None and elapsed >= self.time_budget:
            return "time_budget"
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a file holds of it: where it is, not how it was set up."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a file holds."""
        for name in _STATE:
            setattr(self, name, state[name])

    def _watch(self, loss: float) -> None:
        """Explore again if the bound is worse than it was."""
        self._watched.append(loss)
        if len(self._watched) < _WATCH_WINDOW:
            return
        current, self._watched = mean_and_error(self._watched), []
        if self._best is None or current[0] < self._best[0]:
            self._best = current
        elif not self._explores:
            margin = max(_WORSE, _SURE * math.hypot(self._best[1], current[1]))
            if current[0] - self._best[0] > margin:
                self.end_exploring()  # compare no losses across
                self._explores = True
                self._num_returns += 1

    def _compare(self, current: tuple[float, float]) -> None:
        if self._last is not None:
            error = math.hypot(self._last[1], current[1])
            flat = self._last[0] - current[0] < max(self.tolerance, error)
            self._num_flat = self._num_flat + 1 if flat else 0
        self._last = current

    def _progress(self, step: int, elapsed: float) -> float:
        steps = step / self.max_steps if self.max_steps else 0.0
        return max(steps, elapsed / self.time_budget if self.time_budget else 0.0)

    def _decayed(self, step: int, elapsed: float) -> float:
        """How much of the decay is over, from 0 to 1."""
        if self._decay_from is None:
            return 0.0
        first, before = self._decay_from
        by_limit = (self._progress(step, elapsed) - before) / max(1 - before, 1e-12)
        return min(1.0, max((step - first) / self._decay_steps, by_limit))


def most_steps(guide: Callable) -> int:
    """How many steps a fit of a guide takes at most, if it is to end by itself."""
    dim = getattr(guide, "latent_dim", math.inf)
    return _MAX_STEPS_OF_FEW if dim <= _FEW else MAX_STEPS


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean of the finite values and its standard error (NaN where there are too few)."""
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < 2:
        return (finite[0] if finite else math.nan), math.nan
    return fmean(finite), stdev(finite) / math.sqrt(len(finite))
