"""Fit a density to data."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

from torch import Tensor

from ..infer.draws import seeded
from .baseline import gaussian_log_prob
from .matching import FlowMatching
from .module import FlowDensity
from .report import DensityFit
from .second_phase import run_lbfgs
from .split import Rows, gathered, split_rows
from .trainer import Limits, Trainer, log_probs

__all__ = ["fit_density"]

_BATCH_SIZE = 256
_LEARNING_RATE = 1e-2
_NUM_STEPS = (2_000, 10_000)  # of a run of which nobody said how long it is
_NUM_EPOCHS = 100


def fit_density(
    density: FlowDensity,
    x: Any,
    context: Any = None,
    *,
    validation: Any = 0.1,
    test: Any = 0.1,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    time_budget: float | None = None,
    objective: str = "likelihood",
    batch_size: int | None = None,
    learning_rate: float = _LEARNING_RATE,
    weight_decay: float = 0.0,
    lbfgs_steps: int | None = None,
    seed: int | None = None,
    progress_bar: bool = True,
) -> DensityFit:
    r"""Fit a density to data by maximum likelihood, and say how good it is.

    .. math:: \max_\phi \frac1N \sum_n \log q_\phi(x_n \mid c_n)

    A density that was never fitted starts at the mean and covariance of the data. Rows are
    shared out: a tenth to judge by at the end, a tenth to choose weights by, and the rest to learn
    from. Steps are those of Muon for the weights of networks and Adam for all else, with warm-up
    and a cosine; the weights with the best validation loss are kept, be they of one step or the
    mean over many. Without limits there are 100 epochs, or 2,000 to 10,000 steps where
    these are fewer or more. Where a third of a run brings nothing better, it goes back to the best
    weights, and ends from there with steps that fall to zero. Weights that are better than the
    start by no more than one standard error, on validation rows, are not taken.

    Args:
        density: What is fitted, in place.
        x: Points, shape ``(N, *event_shape)``: an array, a tensor, or a ``Dataset`` or
            ``DataLoader`` of points or of pairs ``(x, context)``, which is read once.
        context: Covariates, shape ``(N, context_dim)``, for a density that takes some.
        validation: The share of the rows to choose weights by, or rows of their own, ``x`` or
            ``(x, context)``; 0 to keep the last weights.
        test: The share of the rows to judge by, or rows of their own, or 0.
        num_epochs: How often to go through the rows to learn from, at most.
        num_steps: How many steps to take at most.
        time_budget: How many seconds to train at most.
        objective: ``"likelihood"``, or ``"flow_matching"`` for the flow ``"cnf"``: a step then
            takes one pass of its network, losses are squared errors of the velocity, and the
            log-likelihood of test rows is exact all the same.
        batch_size: Rows a step; those of a ``DataLoader``, or 256, unless given.
        learning_rate: The highest step size.
        weight_decay: By how much parameters shrink at each step, in learning rates.
        lbfgs_steps: Iterations of a second phase, L-BFGS on all rows at once: for small flows and
            few rows. What it finds is kept where validation rows agree.
        seed: Seed of the order of rows; the caller's generator is left as it was. ``None``: draw
            on.
        progress_bar: Whether there is a progress bar.

    Returns:
        Losses, the reason to stop, and the log-likelihood of the test rows beside that of a
        Gaussian; ``print`` it to read it. Ctrl-C ends a fit with what it has so far.

    Raises:
        TypeError: If data are no floating numbers, or covariates are missing or not wanted.
        ValueError: If data are not finite, outside the support, constant in a column, of the
            wrong shape or too few, or no loss was finite.

    Example:
        >>> import torch
        >>> x = torch.randn(500, 2).cumsum(-1)
        >>> density = FlowDensity(2, "realnvp")
        >>> fit = fit_density(density, x, num_steps=20, seed=0, progress_bar=False)
        >>> fit.stop_reason, fit.log_likelihood > -4
        ('num_steps', True)
    """
    _check_density(density)
    _check_counts(
        num_epochs=num_epochs, num_steps=num_steps, batch_size=batch_size, lbfgs_steps=lbfgs_steps
    )
    _check_sizes(time_budget, learning_rate, weight_decay)
    loss, judge = _objective(density, objective)
    x, context, loader_size = gathered(x, context)
    started = perf_counter()
    with seeded(seed):
        split = split_rows(density, x, context, validation, test, seed)
        if not density.is_initialized:
            density.initialize(*split.train)
        batch_size = min(batch_size or loader_size or _BATCH_SIZE, split.train.number)
        trainer = Trainer(
            density,
            split,
            _limits(num_epochs, num_steps, time_budget, split.train.number / batch_size),
            loss,
            judge,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            shown=progress_bar,
        )
        density.train()
        trainer.run()
        may_go_on = lbfgs_steps and trainer.stop_reason != "interrupted"
        gain = run_lbfgs(trainer, lbfgs_steps) if may_go_on else 0.0
        if objective == "likelihood" and trainer.prefer_start():
            gain = 0.0
        density.eval()
    return _collect(trainer, gain, perf_counter() - started)


def _objective(
    density: FlowDensity, name: str
) -> tuple[Callable[[Rows], Tensor], Callable[[Rows], float]]:
    """The loss of some rows, and the same without noise."""
    if name == "flow_matching":
        matching = FlowMatching(density)
        return matching, matching.validate
    if name != "likelihood":
        raise ValueError(
            f"fit_density expected objective to be 'likelihood' or 'flow_matching', got {name!r}."
        )
    return (
        lambda rows: -density(rows.context).log_prob(rows.x).mean(),
        lambda rows: -float(log_probs(density, rows).mean()),
    )


def _collect(trainer: Trainer, gain: float, seconds: float) -> DensityFit:
    split = trainer.split
    fit = DensityFit(
        density=trainer.density,
        losses=trainer.losses,
        validation_losses=trainer.validation_losses,
        best_epoch=trainer.best_epoch,
        stop_reason=trainer.stop_reason,
        num_steps=trainer.num_steps,
        seconds=seconds,
        num_skipped_steps=trainer.num_skipped,
        lbfgs_gain=gain,
    )
    if split.test is not None:
        _judge(fit, split.train, split.test)
    return fit


def _judge(fit: DensityFit, train: Rows, test: Rows) -> None:
    scores = log_probs(fit.density, test)
    fit.log_likelihood = float(scores.mean())
    fit.log_likelihood_se = float(scores.std()) / math.sqrt(len(scores))
    fit.gaussian = float(gaussian_log_prob(fit.density, train, test).mean())


def _limits(
    num_epochs: int | None, num_steps: int | None, seconds: float | None, per_epoch: float
) -> Limits:
    if num_epochs is None and num_steps is None and seconds is None:
        least, most = _NUM_STEPS
        num_steps = round(min(max(_NUM_EPOCHS * per_epoch, least), most))
    return Limits(num_epochs or math.inf, num_steps or math.inf, seconds or math.inf)


def _check_density(density: Any) -> None:
    if not isinstance(density, FlowDensity):
        raise TypeError(
            f"fit_density expected a FlowDensity, got {type(density).__name__}: make one with "
            "FlowDensity(dim, flow)."
        )
    if not any(p.requires_grad for p in density.parameters()):
        raise ValueError(
            "fit_density: no parameter of the density requires a gradient, so there is nothing to "
            "fit. Call density.requires_grad_() first."
        )


def _check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        is_count = isinstance(count, int) and not isinstance(count, bool)
        if count is not None and not (is_count and count >= 1):
            raise ValueError(f"fit_density expected {name} to be an integer >= 1, got {count!r}.")


def _check_sizes(time_budget: Any, learning_rate: Any, weight_decay: Any) -> None:
    sizes = {"time_budget": time_budget, "learning_rate": learning_rate}
    for name, size in sizes.items():
        if size is not None and not 0 < size < math.inf:
            raise ValueError(f"fit_density expected {name} to be positive, got {size!r}.")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"fit_density expected weight_decay >= 0, got {weight_decay!r}.")
