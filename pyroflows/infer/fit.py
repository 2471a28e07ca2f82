"""Fitting a guide to a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import pyro
from pyro.optim import PyroOptim
from torch import nn

from .checks import check_data, check_numbers, check_optimizer, make_loss
from .draws import seeded
from .importance import ImportanceDiagnostics, importance_diagnostics
from .objectives import PathELBO
from .progress import Progress
from .schedule import Schedule, mean_and_error
from .steps import Guard, PyroStepper, Stepper, TorchStepper, loss_and_grads
from .survey import guide_name, survey

__all__ = ["GuideFit", "fit_guide"]

_PATIENCE_AT_START = 10  # steps without a finite loss before the fit is given up
_PATIENCE = 20  # the same later on
_STEPS_TO_MEET_ALL_PARAMS = 5
_SECONDS_FOR_SEQUENTIAL_DIAGNOSTICS = 10.0
_MIN_DIAGNOSTIC_SAMPLES = 500

_REASONS = {
    "converged": "converged",
    "num_steps": "took all its steps",
    "time_budget": "used up its time",
    "interrupted": "was interrupted, before its learning rate came down,",
    "diverged": "diverged: too many steps in a row were not finite, so the last good parameters "
    "were put back,",
}


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
        num_particles: Draws a step.
        num_skipped_steps: Steps not taken because the loss or a gradient was not finite.
        num_clipped_steps: Steps shortened because their gradient was far out of line.
        num_nonfinite_particles: Draws left out because their density was not finite.
        vectorized: Whether the model was run on all draws at once; ``None`` if unknown.
        seed: The seed that was given.
        diagnostics: What importance weights say; ``None`` if there are none.
        note: Why there are no diagnostics, or fewer draws in them than were asked for.
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

    @property
    def num_steps(self) -> int:
        """The number of steps."""
        return len(self.losses)

    @property
    def seconds_per_step(self) -> float:
        """What a step took on average, the preparation of the first included."""
        return self.seconds / max(self.num_steps, 1)

    @property
    def elbo(self) -> float:
        """The ELBO: of the diagnostics' draws, or else smoothed over the last steps."""
        return self._smoothed()[0] if self.diagnostics is None else self.diagnostics.elbo

    def __str__(self) -> str:
        elbo, error = self._smoothed()
        lines = [
            f"{guide_name(self.guide)}: the fit {_REASONS[self.stop_reason]} after "
            f"{self.num_steps} steps in {self.seconds:.1f} s "
            f"({1e3 * self.seconds_per_step:.3g} ms a step).",
            f"Training ELBO {elbo:.6g} ± {error:.2g} over the last {self._num_smoothed()} steps "
            f"of {self.num_particles} draws{'' if self.vectorized else self._sequential()}.",
        ]
        counts = {
            "steps skipped as not finite": self.num_skipped_steps,
            "steps clipped": self.num_clipped_steps,
            "draws left out as not finite": self.num_nonfinite_particles,
        }
        told = [f"{count} {what}" for what, count in counts.items() if count]
        lines += [f"Of them {', '.join(told)}."] if told else []
        lines += [f"Note: {self.note}"] if self.note else []
        lines += [str(self.diagnostics)] if self.diagnostics is not None else []
        return "\n".join(lines)

    def _sequential(self) -> str:
        return "" if self.vectorized is None else ", one after the other"

    def _num_smoothed(self) -> int:
        return min(len(self.losses), max(10, min(100, len(self.losses) // 10)))

    def _smoothed(self) -> tuple[float, float]:
        mean, error = mean_and_error(self.losses[-self._num_smoothed() :])
        return -mean, error


def fit_guide(
    model: Callable,
    guide: Callable,
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    num_steps: int | None = None,
    time_budget: float | None = None,
    num_particles: int = 256,
    learning_rate: float | None = None,
    optimizer: Any = None,
    loss: Any = None,
    tolerance: float = 0.002,
    seed: int | None = None,
    progress_bar: bool = True,
    num_diagnostic_samples: int = 10_000,
) -> GuideFit:
    r"""Fit a guide to a model by stochastic variational inference, and judge the result.

    Maximises the evidence lower bound

    .. math:: \mathrm{ELBO} = E_{z \sim q}[\log p(x, z) - \log q(z)]
        = \log p(x) - \mathrm{KL}(q \| p(\cdot \mid x))

    over the parameters of the guide (and those of the model, if it has any). The learning rate
    warms up, stays, and decays to zero. Steps and draws that are not finite are left out and
    counted. Ctrl-C ends the fit and returns what there is. The last word is that of importance
    weights, see :func:`pyroflows.importance_diagnostics`.

    Args:
        model: A Pyro model.
        guide: Any Pyro guide, :class:`pyroflows.AutoFlow` first of all.
        model_args: Positional arguments of model and guide.
        model_kwargs: Keyword arguments of model and guide.
        num_steps: Steps to take, all of them. If not given, the fit stops when the ELBO has
            stopped improving, after 2,000 steps at most (or at the end of ``time_budget``).
        time_budget: Seconds after which the fit has to end; the decay is fitted into it. The
            diagnostics come on top. Equal seeds give equal fits only without a time budget.
        num_particles: Draws a step.
        learning_rate: The highest of the schedule: 0.01 for Adam, or the default of the factory.
        optimizer: ``None`` for Adam; a factory such as ``torch.optim.AdamW``, called with the
            parameters; a torch optimizer; or one of Pyro's, which has no schedule but its own.
        loss: ``None`` for :class:`pyroflows.PathELBO`; a Pyro ELBO, or a class of one; or a
            function ``(model, guide, *args, **kwargs)`` that returns a differentiable tensor.
        tolerance: Improvement of the ELBO over 100 steps, in nats, that is worth going on for.
        seed: Seeds the fit and its diagnostics; the caller's random state is left as it was.
        progress_bar: Whether to show one. Nothing else is ever printed.
        num_diagnostic_samples: Draws for the diagnostics; 0 for none.

    Returns:
        The fit; ``print`` it.

    Raises:
        ValueError: If an argument is out of range or contradicts another, the data have another
            dtype or device than the guide, model or guide have nothing to fit, or no loss was
            finite at the start.
        TypeError: If the optimizer or the loss is none.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyroflows as pf
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> guide = pf.AutoFlow(model, "affine")
        >>> fit = pf.fit_guide(model, guide, model_args=(torch.tensor(2.0),), num_steps=50,
        ...                    seed=0, progress_bar=False)
        >>> fit.diagnostics.verdict
        'usable'
    """
    started = perf_counter()
    args, kwargs = tuple(model_args), dict(model_kwargs or {})
    check_numbers(num_steps, time_budget, num_particles, learning_rate, tolerance)
    check_optimizer(optimizer, learning_rate)
    explores = loss is None
    loss = make_loss(loss, num_particles)
    schedule = Schedule(num_steps, time_budget, tolerance)
    with seeded(seed), _training(guide):
        stepper = _make_stepper(model, guide, args, kwargs, optimizer, learning_rate, loss)
        bar = Progress(progress_bar, guide_name(guide), schedule)
        run = _Run(stepper, schedule, bar, started, loss if explores else None)
        if explores:
            with pyro.validation_enabled(False):
                loss.loss(model, guide, *args, **kwargs)
            # A posterior that moves, with the data shown or with the model's own parameters, is
            # no fixed target; and the model's parameters have the ELBO's gradient, no other.
            if not loss.subsampled and stepper.trains_only(guide):
                run.weighs_tails = True
                schedule.start_from(loss.spread)
        with pyro.validation_enabled(False):  # the survey ran under it; NaN is now to be skipped
            run.train(guide)
    fit = _collect(run, guide, loss, seed)
    if num_diagnostic_samples:
        _diagnose(fit, model, args, kwargs, num_diagnostic_samples)
    return fit


class _Run:
    """The loop, and what it writes down."""

    def __init__(
        self,
        stepper: Stepper,
        schedule: Schedule,
        progress: Progress,
        started: float,
        own_loss: PathELBO | None,
    ) -> None:
        self.own_loss = own_loss
        self.weighs_tails = False
        self.stepper = stepper
        self.schedule = schedule
        self.progress = progress
        self.started = started
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.stop_reason = ""
        self.seconds = 0.0

    def train(self, guide: Callable) -> None:
        """Step until there is a reason to stop."""
        try:
            while not self.stop_reason:
                self._step(guide)
        except KeyboardInterrupt:
            if not self.losses:
                raise
            self.stop_reason = "interrupted"
        finally:
            rate = self.stepper.learning_rate
            self.stepper.close()
            self.progress.close(self.losses, rate)
            self.seconds = perf_counter() - self.started
        if not self.stepper.guard.num_applied:
            raise _nothing_finite(len(self.losses))

    def _step(self, guide: Callable) -> None:
        factor = self.schedule.factor(len(self.losses), perf_counter() - self.started)
        if self.own_loss is not None:
            self.own_loss.score_weight = self.schedule.score_weight
            if self.weighs_tails:
                self.own_loss.tail_weight = 1.0 - self.schedule.score_weight
        loss = self.stepper.step(factor)
        self.losses.append(loss)
        self.learning_rates.append(self.stepper.learning_rate)
        self.progress.update(self.losses, self.learning_rates[-1])
        self.schedule.observe(len(self.losses), loss)
        elapsed = perf_counter() - self.started
        self.stop_reason = self.schedule.stop_reason(len(self.losses), elapsed) or ""
        self._watch(self.stepper.guard, guide)

    def _watch(self, guard: Guard, guide: Callable) -> None:
        if len(self.losses) == _STEPS_TO_MEET_ALL_PARAMS:
            _warn_of_untrained(guide, guard)
        if not guard.num_applied and guard.num_skipped >= _PATIENCE_AT_START:
            raise _nothing_finite(len(self.losses))
        if guard.num_skipped_in_a_row >= _PATIENCE:
            guard.restore()
            self.stop_reason = "diverged"


def _nothing_finite(num_steps: int) -> ValueError:
    return ValueError(
        f"fit_guide: the loss or its gradient was NaN or infinite at each of the first {num_steps} "
        "steps, for every draw. Likely causes: data with NaN or outside the support of the "
        "likelihood; a log density that is -inf where the guide starts; overflow, which float64 "
        "or a better scaled model avoids. Evaluate the model at a point of the guide to see."
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


def _make_stepper(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    optimizer: Any,
    learning_rate: float | None,
    loss: Any,
) -> Stepper:
    check_data(guide, args, kwargs)
    found = survey(model, guide, args, kwargs)
    check_data(guide, args, kwargs)
    backward = loss_and_grads(loss)
    if isinstance(optimizer, PyroOptim):
        return PyroStepper(optimizer, model, guide, backward, args, kwargs)
    return TorchStepper(
        optimizer, learning_rate, found.params, lambda: backward(model, guide, *args, **kwargs)
    )


@contextmanager
def _training(guide: Callable) -> Iterator[None]:
    """Training mode for the guide, and back to the mode of each of its parts."""
    if not isinstance(guide, nn.Module):
        yield
        return
    modes = {module: module.training for module in guide.modules()}
    guide.train()
    try:
        yield
    finally:
        for module in guide.modules():
            module.training = modes.get(module, module.training)


def _collect(run: _Run, guide: Callable, loss: Any, seed: int | None) -> GuideFit:
    guard = run.stepper.guard
    return GuideFit(
        guide=guide,
        losses=run.losses,
        learning_rates=run.learning_rates,
        seconds=run.seconds,
        stop_reason=run.stop_reason,
        num_particles=getattr(loss, "num_particles", 1),
        num_skipped_steps=guard.num_skipped,
        num_clipped_steps=guard.num_clipped,
        num_nonfinite_particles=getattr(loss, "num_nonfinite_particles", 0),
        vectorized=getattr(loss, "vectorized", getattr(loss, "vectorize_particles", None)),
        seed=seed,
    )


def _diagnose(
    fit: GuideFit, model: Callable, args: tuple, kwargs: dict[str, Any], num_samples: int
) -> None:
    """Add the diagnostics; a fit is worth keeping even where there can be none."""
    if fit.vectorized is False:
        per_draw = fit.seconds_per_step / fit.num_particles
        affordable = int(_SECONDS_FOR_SEQUENTIAL_DIAGNOSTICS / per_draw)
        if num_samples > (fewer := max(affordable, _MIN_DIAGNOSTIC_SAMPLES)):
            fit.note = (
                f"diagnostics from {fewer} draws, not {num_samples}: the model is run for one at "
                "a time."
            )
            num_samples = fewer
    try:
        fit.diagnostics = importance_diagnostics(
            model,
            fit.guide,
            model_args=args,
            model_kwargs=kwargs,
            num_samples=num_samples,
            seed=fit.seed,
        )
    except KeyboardInterrupt:
        fit.note = "no diagnostics, because they were interrupted."
    except Exception as error:  # any failure, told in full: it must not take the fit with it
        first_line = str(error).partition("\n")[0]  # Pyro adds the shapes of every site
        fit.note = f"no diagnostics: {type(error).__name__}: {first_line}"
        warnings.warn(f"fit_guide: {fit.note}", stacklevel=3)
