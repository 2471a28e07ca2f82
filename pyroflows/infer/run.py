"""The loop of a fit: step after step, until there is a reason to stop."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint, random_state, set_random_state
from .distributed import ExchangeError, Ranks, Terminated, terminable
from .ending import Ending
from .objectives import PathELBO
from .opening import NUM_OPENING_STEPS, Opening
from .particles import halved
from .progress import Progress
from .race import hold_race
from .schedule import Schedule
from .steps import Guard, Stepper
from .survey import guide_name

__all__ = ["Run"]

_PATIENCE_AT_START = 10  # steps without a finite loss before the fit is given up
_PATIENCE = 20  # the same later on
_NUM_EVALUATIONS = 4
_GROWTH = 2  # of the draws a step
_STEPS_TO_MEET_ALL_PARAMS = 5


class Run:
    """The loop, and what it writes down.

    Args:
        stepper: Takes the steps.
        schedule: Says how long they are, and when to stop.
        progress: Shows how it goes.
        started: When the fit began, in seconds of ``perf_counter``.
        loss: The objective.
        device: Where the guide lives.
        ranks: The processes that share the steps.

    Attributes:
        explores: Whether the schedule sets the weights of the objective.
        weighs_tails: Whether it sets that of the tails too.
        grows: Whether steps take more draws near the end.
        draws_apart: Whether each rank has a random state of its own.
    """

    def __init__(
        self,
        stepper: Stepper,
        schedule: Schedule,
        progress: Progress,
        started: float,
        loss: Any,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.explores = self.weighs_tails = self.draws_apart = False
        self.stepper = stepper
        self.schedule = schedule
        self.progress = progress
        self.started = started
        self.loss = loss
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.stop_reason = ""
        self.seconds = 0.0
        self.opening_told = ""
        self._device = device
        self.ranks = ranks
        self._elapsed = 0.0
        self._checkpoint: Checkpoint | None = None
        self._mark: tuple[int, dict, Any] = (0, {}, 0)
        self._opening: Opening | None = None
        self._gaps: list[float] = []
        self.races, self.race_factor, self.events = False, 1.0, list[tuple[int, str]]()
        self.grows = False
        self.ending = Ending()
        self.params: dict[str, Tensor] = {}
        self.evaluate_anew: Callable[[], float] = lambda: math.nan
        self._held_out = random_state(device)
        self._main, self._steps_before = schedule, 0
        self._tell(progress)

    def open_with(self, opening: Opening) -> None:
        """Begin with a short run of a part of the flow."""
        self._opening = opening
        opening.sleep()
        self.stepper.guard.left_out |= opening.parameters
        self._main.shorten(NUM_OPENING_STEPS)
        self.schedule = Schedule(NUM_OPENING_STEPS, None, self._main.tolerance)
        self.progress.follow(self.schedule, 0)

    def train(self, guide: Callable, checkpoint: Checkpoint | None = None) -> None:
        """Step until there is a reason to stop; go on from a file where there is one.

        Raises:
            LostRank: If another process of the fit is gone.
            ValueError: If no loss was finite.
        """
        self._checkpoint = checkpoint
        if checkpoint is not None and checkpoint.found is not None:
            self._load(checkpoint.found)
        self._look_at_clock()
        self._remember()
        with terminable(self.ranks):
            self._go(guide)
        if not self.stepper.guard.num_applied:
            raise _nothing_finite(len(self.losses))

    def _go(self, guide: Callable) -> None:
        try:
            if self._opening is None and not self.losses:
                self._race()
                self._remember()
            while not self.stop_reason:
                self._step(guide)
        except KeyboardInterrupt:
            if not self.losses or self.ranks.size > 1:  # others may be a step ahead, or wait
                raise
            self.stop_reason = "interrupted"
        except (ExchangeError, Terminated) as error:
            self._save()
            raise self.ranks.lost(self._saved(), len(self.losses), error) from error
        finally:
            self._save()
            rate = self.stepper.learning_rate
            self.stepper.close()
            self._tell(None)
            self.progress.close(self.losses, rate)
            self.seconds = perf_counter() - self.started

    def _step(self, guide: Callable) -> None:
        self.advance()
        self._look_at_clock()
        self.stop_reason = self._reason_to_stop()
        if self.stop_reason in ("converged", "num_steps", "time_budget"):
            self._finish()
        else:
            self._average()
        self._watch(self.stepper.guard, guide)
        self._remember()
        self.progress.update(self.losses, self.learning_rates[-1])
        if self._checkpoint is not None and self._checkpoint.due():
            self._save()

    def advance(self, factor: float = 1.0) -> None:
        """Take a step, with a factor on its size."""
        factor = factor * self.schedule.factor(self._steps_taken, self._elapsed)
        if self.explores:
            self.loss.score_weight = self.schedule.score_weight
            if self.loss.compiled is not None:
                opens = self._opening is not None
                self.loss.compiled.paused = opens or self.schedule.explores_briefly
            if self.weighs_tails:
                self.loss.tail_weight = 1.0 - self.schedule.score_weight
        loss = self.stepper.step(factor, self._num_passes())
        self.losses.append(loss)
        self.learning_rates.append(self.stepper.learning_rate)
        self.schedule.observe(self._steps_taken, loss)

    def _num_passes(self) -> int:
        """Twice the draws near the end, where the noise of gradients is what is left to remove."""
        ends = self._opening is None and self.schedule.is_ending(self._steps_taken, self._elapsed)
        return _GROWTH if self.grows and ends else 1

    @property
    def _steps_taken(self) -> int:
        """Of this schedule."""
        return len(self.losses) - self._steps_before

    def _reason_to_stop(self) -> str:
        opening, budget = self._opening, self._main.time_budget
        if opening is None:
            return self.schedule.stop_reason(self._steps_taken, self._elapsed) or ""
        if not opening.is_over(self._steps_taken, self._elapsed, budget):
            return ""
        lap = self.losses[self._steps_before :]
        decision = opening.decide(lap, may_go_on=budget is None)
        decision, self.opening_told = self.ranks.tell((decision, opening.told))
        if decision == "stay":
            return "converged"
        if decision == "again" or (budget is None and opening.wake_next()):
            self._open_again()
            return ""
        self._go_on(self.loss.spread)
        self._race()
        return ""

    def _open_again(self) -> None:
        """Another lap of the opening."""
        self.events.append((len(self.losses), "more of the flow wakes"))
        self._steps_before = len(self.losses)
        self.schedule = Schedule(NUM_OPENING_STEPS, None, self._main.tolerance)
        self.schedule.end_exploring()  # the lap before has met the posterior
        if self._opening.gaps:  # what has just woken takes steps of full length
            self.schedule.start_from(self.loss.spread)
            self.schedule.scale(1 / len(self._opening.gaps))
        self.progress.follow(self.schedule, self._steps_before)

    def _go_on(self, spread: float | None) -> None:
        """Go on from the opening with all of the flow."""
        self._opening.wake()
        self.events.append((len(self.losses), "the whole flow wakes"))
        if self.grows and self._opening.left_little:
            self.loss.num_particles = halved(self.loss.num_particles)
        self._gaps = self._opening.gaps
        self._opening, self._steps_before = None, len(self.losses)
        self.schedule = self._main
        self.progress.follow(self.schedule, self._steps_before)
        if spread is not None:
            self.schedule.start_from(spread)

    def _race(self) -> None:
        """Find the step size, unless it was given."""
        if not self.races:
            return
        self.progress.begin("a race of step sizes")
        first, self.race_factor = len(self.losses), hold_race(self)
        self.events.append((first, f"race of step sizes: x {self.race_factor:.2g} wins"))
        self.schedule.scale(self.race_factor)

    def told_events(self) -> tuple[tuple[int, str], ...]:
        """What happened on the way, by the step after which it did."""
        return (*self.events, *self.schedule.fall(self._steps_before))

    def _average(self) -> None:
        """Count the parameters in the mean over the end of the fit."""
        if self.schedule.is_settling(self._steps_taken, self._elapsed):
            self.ending.add()

    def _finish(self) -> None:
        """Take what is better than the parameters after the last step."""
        self.ending.run(self.evaluate_anew, self.evaluate, self.progress, self.ranks, self._elapsed)

    # -- there and back, for the race ----------------------------------------------------------

    @torch.no_grad()
    def snapshot(self) -> dict[str, Any]:
        """All that steps change."""
        return {
            "params": {name: p.detach().clone() for name, p in self.params.items()},
            "stepper": copy.deepcopy(self.stepper.state_dict()),
            "schedule": copy.deepcopy(self.schedule.state_dict()),
            "random": random_state(self._device),
            "losses": list(self.losses),
            "learning_rates": list(self.learning_rates),
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where a snapshot was taken."""
        for name, p in self.params.items():
            p.copy_(state["params"][name])
        # an optimizer goes on with the very tensors that it is given
        self.stepper.load_state_dict(copy.deepcopy(state["stepper"]))
        self.schedule.load_state_dict(copy.deepcopy(state["schedule"]))
        set_random_state(state["random"], self._device)
        self.losses[:], self.learning_rates[:] = state["losses"], state["learning_rates"]

    def evaluate(self) -> float:
        """Estimate the loss from draws that are the same each time."""
        now = random_state(self._device)
        set_random_state(self._held_out, self._device)
        try:
            return sum(self.evaluate_anew() for _ in range(_NUM_EVALUATIONS)) / _NUM_EVALUATIONS
        finally:
            set_random_state(now, self._device)

    def _tell(self, listener: Progress | None) -> None:
        """Let the bar know of work between steps."""
        if isinstance(self.loss, PathELBO) and self.loss.compiled is not None:
            self.loss.compiled.listener = listener

    def _look_at_clock(self) -> None:
        """Seconds so far; those of rank 0 where something is decided by them."""
        self._elapsed = perf_counter() - self.started
        if self.schedule.time_budget is not None:
            self._elapsed = self.ranks.tell(self._elapsed)

    def _watch(self, guard: Guard, guide: Callable) -> None:
        if len(self.losses) == _STEPS_TO_MEET_ALL_PARAMS:
            _warn_of_untrained(guide, guard)
        if not guard.num_applied and guard.num_skipped >= _PATIENCE_AT_START:
            raise _nothing_finite(len(self.losses))
        if guard.num_skipped_in_a_row >= _PATIENCE:
            guard.restore()
            self.stop_reason = "diverged"

    # -- files ---------------------------------------------------------------------------------

    def _remember(self) -> None:
        """Note what the next step changes on its way, so that one cut short leaves no trace."""
        if self._checkpoint is not None:
            self._mark = (len(self.losses), random_state(self._device), self._count())

    def _count(self) -> Any:
        return self.loss.nonfinite_so_far() if isinstance(self.loss, PathELBO) else 0

    def _save(self) -> None:
        """Write the file, unless a step was cut short after its gradient and before its end."""
        guard = self.stepper.guard
        is_whole = guard.num_applied and guard.num_seen == len(self.losses) == self._mark[0]
        if self._checkpoint is None or not is_whole:
            return
        self._checkpoint.write(
            {
                "losses": self.losses,
                "learning_rates": self.learning_rates,
                "seconds": perf_counter() - self.started,
                "stop_reason": "" if self.stop_reason == "interrupted" else self.stop_reason,
                "schedule": self.schedule.state_dict(),
                "opening": {
                    "is_over": self._opening is None,
                    "steps_before": self._steps_before,
                    "told": self.opening_told,
                    "gaps": self._opening.gaps if self._opening else self._gaps,
                    "num_awake": self._opening.num_awake if self._opening else 0,
                },
                "stepper": self.stepper.state_dict(),
                "average": self.ending.average and self.ending.average.state_dict(),
                "race_factor": self.race_factor,
                "events": self.events,
                "random": self._mark[1],
                "num_nonfinite": int(self._mark[2]),
            }
        )

    def _saved(self) -> str:
        """What to do after a failure."""
        if self._checkpoint is None:
            return "Nothing was saved: pass checkpoint='a file' to be able to go on from there."
        steps = self._checkpoint.num_steps
        if self.ranks.is_first and steps is None:
            return "It was too early for a checkpoint: start the processes again."
        held = f" of {steps} steps" if self.ranks.is_first else ""
        return (
            f"Start the processes again, or one with as many particles as all had, and the fit "
            f"goes on from the checkpoint {str(self._checkpoint.path)!r}{held}."
        )

    def _load(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])
        self.progress.resume(len(self.losses))
        self.learning_rates = list(state["learning_rates"])
        self.started = perf_counter() - state["seconds"]
        self.stop_reason = state["stop_reason"]
        opening = state["opening"]
        self.opening_told = opening["told"]
        if self._opening is not None:
            self._opening.gaps = list(opening["gaps"])
            self._opening.num_awake = opening["num_awake"]
            self._opening.sleep()
            if opening["is_over"]:
                self._go_on(None)
        self._steps_before = opening["steps_before"]
        self.progress.follow(self.schedule, self._steps_before)
        self.schedule.load_state_dict(state["schedule"])
        self.stepper.load_state_dict(state["stepper"])
        self.race_factor = state["race_factor"]
        self.events = [tuple(event) for event in state.get("events", ())]
        if self.ending.average is not None:
            self.ending.average.load_state_dict(state["average"])
        set_random_state(state["random"], self._device)
        if self.draws_apart:
            self.ranks.part_ways()
        if isinstance(self.loss, PathELBO):
            self.loss.count_nonfinite_from(state["num_nonfinite"])


def _nothing_finite(num_steps: int) -> ValueError:
    return ValueError(
        f"fit_guide: the loss or its gradient was NaN or infinite at each of the first {num_steps} "
        "steps, for every draw. Likely causes: data with NaN or outside the support of the "
        "likelihood; a log density that is -inf where the guide starts, or that rises without "
        "end, as that of an improper posterior; overflow, which float64 or a better scaled model "
        "avoids. Evaluate the model at a point of the guide to see."
    )


def _warn_of_untrained(guide: Callable, guard: Guard) -> None:
    if not guard.num_applied or not isinstance(guide, nn.Module):
        return
    names = [n for n, p in guide.named_parameters() if p.requires_grad]
    explained = guard.with_gradient | guard.left_out
    untrained = [n for n in names if id(guide.get_parameter(n)) not in explained]
    if untrained:
        warnings.warn(
            f"fit_guide: {len(untrained)} of {len(names)} parameters of {guide_name(guide)} "
            f"receive no gradient and stay as they are: {untrained[:5]}. They may not be used by "
            "the guide, or be detached on the way.",
            stacklevel=6,
        )
