"""Fitting a guide to a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import pyro
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ..arguments import check_arguments
from ..guides import AutoFlow
from ..guides.prototype import device_of
from .average import Average
from .checkpoint import Checkpoint, describe, named_tensors
from .checks import (
    check_data,
    check_numbers,
    check_optimizer,
    check_restarts,
    check_sample_average,
    make_loss,
    refuse_to_compile,
    warn_of_old_start,
)
from .diagnose import diagnose
from .distributed import Ranks, find_ranks
from .draws import seeded
from .muon import network_matrices
from .objectives import PathELBO
from .opening import Opening, is_fresh
from .particles import fill_in_particles
from .progress import Progress
from .report import GuideFit
from .restarts import refit
from .run import Run
from .sample_average import SampleAverage
from .schedule import Schedule, most_steps
from .steps import PyroStepper, Stepper, TorchStepper, loss_and_grads
from .survey import guide_name, survey
from .tails import find_tails

__all__ = ["GuideFit", "fit_guide"]

_SETTINGS = ("num_steps", "time_budget", "learning_rate", "tolerance", "seed", "sample_average")


def fit_guide(
    model: Callable,
    guide: Callable,
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    num_steps: int | None = None,
    time_budget: float | None = None,
    num_particles: int | None = None,
    learning_rate: float | None = None,
    optimizer: Any = None,
    loss: Any = None,
    tolerance: float = 0.002,
    seed: int | None = None,
    progress_bar: bool = True,
    num_diagnostic_samples: int | None = None,
    num_restarts: int = 0,
    chunk_size: int | None = None,
    compile: bool = False,
    checkpoint: str | os.PathLike | None = None,
    distributed: bool | str = "auto",
    sample_average: int | None = None,
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
            stopped improving, after 1,500 steps at most, 2,500 in up to 16 dimensions (or at the
            end of ``time_budget``).
        time_budget: Seconds after which the fit has to end; the decay is fitted into it. The
            diagnostics come on top. Equal seeds give equal fits only without a time budget.
        num_particles: Draws a step. If not given, 1,024 for an ``AutoFlow`` whose model is run on
            all at once and has few data, down to 256 where it has many, and for other guides.
        learning_rate: The highest of the schedule: 0.01 for Adam, or the default of the factory.
        optimizer: ``None`` for Adam; a factory such as ``torch.optim.AdamW``, called with the
            parameters; a torch optimizer; or one of Pyro's, which has no schedule but its own.
        loss: ``None`` for :class:`pyroflows.PathELBO`; a Pyro ELBO, or a class of one; or a
            function ``(model, guide, *args, **kwargs)`` that returns a differentiable tensor.
        tolerance: Improvement of the ELBO over 100 steps, in nats, that is worth going on for.
        seed: Seeds the fit and its diagnostics; the caller's random state is left as it was. The
            weights of a guide are drawn where it is made: for the same numbers again, call
            ``pyro.set_rng_seed`` before that too.
        progress_bar: Whether to show one. Nothing else is ever printed.
        num_diagnostic_samples: Draws for the diagnostics; 0 for none. If not given, 10,000, and
            100,000 where weights are nearly equal but the shape of their tail is not clear from
            these, if the model is cheap.
        num_restarts: Independent refits of an :class:`~pyroflows.AutoFlow`, each from other points
            and weights, at the cost of a fit. The best of all is kept; where another finds more of
            the posterior, or another place for it, the verdict says so.
        chunk_size: Draws that go through flow and model together, for less memory: the step is
            that of all ``num_particles``, to rounding.
        compile: Whether the steps of an :class:`~pyroflows.AutoFlow` are recorded and compiled,
            flow and model together: a step takes a third to two thirds of its time, after a start
            of half a minute to two minutes in each fit, as much as some thousands of steps. So it
            pays for large models, many particles and long fits. It needs a C++ compiler on CPU.
            What cannot be compiled is run eagerly, with a warning.
        checkpoint: A file that is written now and then and at the end, whatever ends the fit.
            Where it exists, the same call goes on from it, to the same numbers as a fit left
            alone; one of another fit is refused. ``torch.load(weights_only=True)`` reads it.
        distributed: Whether the processes that ``torchrun`` started, or those of a
            ``torch.distributed`` that is initialised already, fit this guide together: N of them
            take the steps of one process with N times the particles. ``"auto"``: if there are
            several; ``False``: each on its own. Rank 0 shows, writes and judges.
        sample_average: Draws of a last phase of an ``AutoFlow``'s fit, or ``None``: L-BFGS on their
            mean, free of noise as they stay the same. With N draws P parameters end about P/2N nats
            off the best, so it is for small flows, such as ``"affine"``, and tens of thousands of
            draws. Its result is kept if other draws agree; a ``time_budget`` does not count it.

    Returns:
        The fit; ``print`` it.

    Raises:
        ValueError: If an argument is out of range or contradicts another, the data have another
            dtype or device than the guide, model or guide have nothing to fit, or no loss was
            finite at the start.
        TypeError: If the optimizer or the loss is none.
        LostRank: A ``RuntimeError``, if another process of a shared fit is gone.

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
    given, started = dict(locals()), perf_counter()
    check_arguments("fit_guide", model, model_args, model_kwargs, guide)
    args, kwargs = tuple(model_args), dict(model_kwargs or {})
    check_numbers(given)
    check_optimizer(optimizer, learning_rate)
    explores = loss is None
    loss = make_loss(loss, num_particles, chunk_size, compile)
    ranks = find_ranks(distributed, device_of(guide, args, kwargs))
    check_restarts(num_restarts, guide, optimizer, num_diagnostic_samples, ranks)
    refuse_to_compile(compile, ranks)
    check_sample_average(sample_average, guide, loss, ranks)
    with seeded(ranks.common_seed(seed)), _training(guide), _sharing(loss, ranks):
        stepper, params = _make_stepper(
            model, guide, args, kwargs, optimizer, learning_rate, loss, ranks
        )
        schedule = Schedule(num_steps, time_budget, tolerance, most_steps(guide))
        if num_particles is None and explores:
            fill_in_particles(loss, model, guide, args, kwargs)
        settings = {name: given[name] for name in _SETTINGS} | {
            "particles": ranks.size * getattr(loss, "num_particles", 1),
            "loss": guide_name(loss),
            "optimizer": stepper.name,
        }
        file = _agreed(model, guide, args, kwargs, params, settings, checkpoint, ranks)
        bar = Progress(progress_bar and ranks.is_first, guide_name(guide), schedule)
        run = Run(stepper, schedule, bar, started, loss, device_of(guide, args, kwargs), ranks)
        with pyro.validation_enabled(False):  # the survey ran under it; NaN is now to be skipped
            run.params = params
            run.races = explores and learning_rate is None and optimizer is None
            run.grows = explores and num_particles is None and isinstance(guide, AutoFlow)
            _start(run, model, guide, args, kwargs, explores, file)
            if sample_average:
                run.ending.sample_average = _sample_average(
                    run, model, guide, args, kwargs, sample_average
                )
            run.train(guide, file)
    fit = _collect(run, guide, loss, seed, ranks, (model, args, kwargs))
    if num_diagnostic_samples != 0:
        diagnose(fit, model, args, kwargs, num_diagnostic_samples, ranks)
    return _refitted(fit, given, args, kwargs) if num_restarts else fit


def _refitted(
    fit: GuideFit, given: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> GuideFit:
    """The best of this fit and others from the same arguments, ``given``."""

    def fit_again(twin: AutoFlow, seed: int | None) -> GuideFit:
        changed = {"guide": twin, "seed": seed, "num_restarts": 0, "checkpoint": None}
        return fit_guide(**given | changed)

    if fit.stop_reason == "interrupted":
        return fit
    return refit(fit, fit_again, args, kwargs, given["num_restarts"])


def _start(
    run: Run,
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    explores: bool,
    file: Checkpoint | None,
) -> None:
    """Do what the first step would beside its draws, and see how far the guide has to go."""
    loss = run.loss
    if isinstance(loss, PathELBO):
        loss.prepare(model, guide, *args, **kwargs)
    elif isinstance(loss, ELBO) and file is not None and file.found is not None:
        loss.loss(model, guide, *args, **kwargs)  # which looks at the model once
    run.draws_apart = not (isinstance(loss, PathELBO) and isinstance(guide, AutoFlow))
    if run.draws_apart:
        run.ranks.part_ways()
    if not explores:
        return
    run.explores = True
    run.evaluate_anew = evaluate = partial(loss.loss, model, guide, *args, **kwargs)
    is_free = run.schedule.may_end_early
    run.races = run.races and is_free and isinstance(guide, AutoFlow)
    run.ending.average = Average(run.params, device_of(guide, args, kwargs))
    _open(run, guide, evaluate, file)
    loss.loss(model, guide, *args, **kwargs)
    warn_of_old_start(guide, loss.spread)
    # A posterior that moves, with the data shown or with the model's own parameters, is no fixed
    # target; and the model's parameters have the ELBO's gradient, no other.
    if not loss.subsampled and run.stepper.trains_only(guide):
        run.weighs_tails = True
        run.schedule.start_from(loss.spread, is_built=_is_built(guide))
        if is_free and run.schedule.time_budget is None and run.ranks.size == 1:
            run.ending.tails = find_tails(guide, loss, run.params, run.schedule.tolerance)


def _sample_average(
    run: Run, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any], number: int
) -> SampleAverage:
    loss = run.loss
    run.evaluate_anew = partial(loss.loss, model, guide, *args, **kwargs)
    if loss.subsampled:
        raise ValueError(
            "fit_guide: sample_average is a mean over draws that stay the same, and a model with "
            "a subsampled plate shows other data each time. Leave one of them out."
        )
    evaluate = partial(loss_and_grads(loss), model, guide, *args, **kwargs)
    return SampleAverage(loss, evaluate, run.params, number, device_of(guide, args, kwargs))


def _is_built(guide: Callable) -> bool:
    """Whether a guide starts with the shape of the posterior, not just somewhere in it."""
    if not isinstance(guide, AutoFlow):
        return False
    return guide._init["init"] == "auto" and not guide.report.startswith("fell back")


def _open(
    run: Run, guide: Callable, evaluate: Callable[[], float], file: Checkpoint | None
) -> None:
    """Begin without the parts of the flow that may not be needed, if it may end early at all."""
    loss, is_resumed = run.loss, file is not None and file.found is not None
    if not isinstance(guide, AutoFlow) or loss.subsampled or not run.schedule.may_end_early:
        return
    if run.stepper.trains_only(guide) and (is_resumed or is_fresh(guide)):
        run.open_with(Opening(guide, evaluate, loss, run.schedule.tolerance))


def _agreed(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    params: dict[str, Tensor],
    settings: dict[str, Any],
    checkpoint: str | os.PathLike | None,
    ranks: Ranks,
) -> Checkpoint | None:
    """Make all ranks start from one point, and open the file of the fit, if there is to be one."""
    if ranks.size == 1 and checkpoint is None:
        return None
    tensors = named_tensors(model, guide, params)
    facts = describe(model, guide, args, kwargs, tensors, settings)
    ranks.agree(facts | {"checkpoint": str(checkpoint)})
    ranks.share_(tensors.values())
    return None if checkpoint is None else Checkpoint(checkpoint, facts, tensors, ranks)


@contextmanager
def _sharing(loss: Any, ranks: Ranks) -> Iterator[None]:
    """Let our objective know with whom it shares its draws."""
    if not isinstance(loss, PathELBO):
        yield
        return
    loss.ranks = ranks
    try:
        yield
    finally:
        loss.ranks = Ranks()


def _make_stepper(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    optimizer: Any,
    learning_rate: float | None,
    loss: Any,
    ranks: Ranks,
) -> tuple[Stepper, dict[str, Tensor]]:
    check_data(guide, args, kwargs)
    found = survey(model, guide, args, kwargs)
    check_data(guide, args, kwargs)
    backward = loss_and_grads(loss)
    if isinstance(optimizer, PyroOptim):
        params, shared = found.params, ranks
        return PyroStepper(optimizer, model, guide, backward, args, kwargs, params, shared), params
    evaluate = partial(backward, model, guide, *args, **kwargs)
    weights = network_matrices(guide) if isinstance(guide, AutoFlow) else ()
    stepper = TorchStepper(optimizer, learning_rate, found.params, evaluate, ranks, weights)
    return stepper, found.params


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


def _collect(
    run: Run, guide: Callable, loss: Any, seed: int | None, ranks: Ranks, called: tuple
) -> GuideFit:
    guard = run.stepper.guard
    model, args, kwargs = called
    return GuideFit(
        guide=guide,
        model=model,
        model_args=args,
        model_kwargs=kwargs,
        losses=run.losses,
        learning_rates=run.learning_rates,
        seconds=ranks.tell(run.seconds),
        stop_reason=run.stop_reason,
        num_particles=getattr(loss, "num_particles", 1),
        num_skipped_steps=guard.num_skipped,
        num_clipped_steps=guard.num_clipped,
        num_nonfinite_particles=getattr(loss, "num_nonfinite_particles", 0),
        num_processes=ranks.size,
        vectorized=getattr(loss, "vectorized", getattr(loss, "vectorize_particles", None)),
        seed=seed,
        explored_again=run.explores and run.schedule.returned,
        opening=run.opening_told,
        tails=run.ending.told,
        race_factor=run.race_factor,
        events=run.told_events(),
        averaging_gain=run.ending.averaging_gain,
        sample_average_gain=run.ending.sample_average_gain,
        compilation=str(getattr(loss, "compiled", None) or ""),
        compile_seconds=getattr(getattr(loss, "compiled", None), "seconds", 0.0),
    )
