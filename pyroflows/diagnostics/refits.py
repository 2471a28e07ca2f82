"""Calibration of a guide: it is fitted again to data that the model makes itself."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from ..arguments import check_arguments
from ..guides import AutoFlow
from ..infer import fit_guide
from ..infer._given import plain_draws
from ..infer.draws import seeded
from ..supports import check_size
from ._pool import Notes, run_all
from ._simulations import Simulated, check_can_simulate, labels_of, ranks_among, simulate
from .calibration import Calibration

__all__ = ["calibrate_guide"]

_OWN = 0x5BC1


def calibrate_guide(
    model: Callable[..., Any],
    guide: Callable[[Callable], Callable] | None = None,
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    num_simulations: int = 200,
    num_draws: int = 199,
    fit: Callable[..., Any] | None = fit_guide,
    fit_options: Mapping[str, Any] | None = None,
    sites: Sequence[str] | None = None,
    num_workers: int = 1,
    checkpoint: str | os.PathLike | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> Calibration:
    """Fit a guide to data simulated by the model, many times, and rank the truths among draws.

    Each simulation draws parameters from the prior and data from the model, with the shapes of the
    data in ``model_args``; makes a guide of the model conditioned on these data, fits it, and ranks
    the parameters among the guide's draws, unweighted. Where fits are right, ranks are uniform,
    whatever the model: this is simulation-based calibration with refits. It takes as long as
    ``num_simulations`` fits.

    Args:
        model: A Pyro model with proper priors that observes its data by ``obs=``.
        guide: Called with each conditioned model, whose attribute ``data`` holds what was simulated
            by site; returns a guide. ``AutoFlow`` unless given.
        model_args: Positional arguments of the model, the data among them.
        model_kwargs: Arguments by name.
        num_simulations: Number of data sets N.
        num_draws: Draws L of each guide.
        fit: Called as ``fit(model, guide, model_args=..., model_kwargs=..., seed=...,
            progress_bar=False, **fit_options)``; None takes guides as they are made.
        fit_options: What else it is to be called with, such as ``{"num_steps": 500}``.
        sites: Latent or deterministic sites to rank; all unless given.
        num_workers: Processes that share the simulations, with one thread each. Where processes
            cannot be forked (CUDA, macOS, Windows) model and guide have to be picklable.
        checkpoint: A file that keeps what is done; where it exists, the same call goes on from it.
        seed: Of everything; simulation i is the same whatever the number of workers.
        progress_bar: Whether to show one.

    Returns:
        Ranks of every coordinate, with the verdict on each fit and the messages of those that
        raised. Ctrl-C returns what is done so far, with a warning.

    Raises:
        TypeError: If the model cannot be called with these arguments.
        ValueError: If the model observes nothing, adds factors, subsamples, or has an improper
            prior; if a number is out of range, sites are unknown, or the checkpoint is another's.
        RuntimeError: If no fit succeeded.

    References:
        Talts et al. (2018). Validating Bayesian inference algorithms with simulation-based
        calibration.
        Yao, Vehtari, Simpson, Gelman (2018). Yes, but did it work?: evaluating variational
        inference. ICML.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyroflows as pf
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> def exact(conditioned):
        ...     def guide(y):
        ...         pyro.sample("mu", dist.Normal(conditioned.data["y"] / 2, 0.5**0.5))
        ...     return guide
        >>> pf.calibrate_guide(model, exact, model_args=(torch.tensor(0.0),), fit=None,
        ...                    num_simulations=50, progress_bar=False).is_calibrated
        True
    """
    owner = "calibrate_guide"
    args, kwargs = tuple(model_args), dict(model_kwargs or {})
    check_arguments(owner, model, model_args, model_kwargs)
    for name, number in (
        ("num_simulations", num_simulations),
        ("num_draws", num_draws),
        ("num_workers", num_workers),
    ):
        check_size(owner, name, number, 1)
    check_can_simulate(owner, model, args, kwargs)
    wanted = _sites(model, args, kwargs, sites)
    job = _Refit(model, guide or AutoFlow, args, kwargs, num_draws, fit, wanted, seed)
    job.options.update(fit_options or {})
    facts = {
        "model": getattr(model, "__name__", type(model).__name__),
        "guide": getattr(guide or AutoFlow, "__name__", type(guide).__name__),
        "shapes": {name: list(value.shape) for name, value in job.simulate(0).truths.items()},
        "num_draws": num_draws,
        "fit_options": {name: repr(value) for name, value in job.options.items()},
        "sites": wanted,
        "seed": seed,
    }
    notes = Notes(checkpoint, facts)
    finished = run_all(
        job, range(num_simulations), notes,
        num_workers=num_workers, title="simulations", shown=progress_bar,
    )  # fmt: skip
    return _collect(notes, num_simulations, num_draws, finished)


def _sites(
    model: Callable, args: tuple, kwargs: dict[str, Any], sites: Sequence[str] | None
) -> list[str]:
    known = list(simulate(model, args, kwargs, 0).truths)
    unknown = sorted(set(sites or ()) - set(known))
    if unknown:
        raise ValueError(f"calibrate_guide: sites {unknown} are none of the model's: {known}.")
    return known if sites is None else list(sites)


@dataclass
class _Refit:
    """One simulation, by its number."""

    model: Callable
    guide: Callable[[Callable], Callable]
    args: tuple
    kwargs: dict[str, Any]
    num_draws: int
    fit: Callable[..., Any] | None
    sites: list[str]
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    def simulate(self, index: int) -> Simulated:
        return simulate(self.model, self.args, self.kwargs, self._seeds(index)[0])

    def _seeds(self, index: int) -> list[int]:
        return np.random.SeedSequence([self.seed, _OWN, index]).generate_state(4).tolist()

    def __call__(self, index: int) -> dict[str, Any]:
        started = perf_counter()
        try:
            found = self._ranks(index)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        return {"index": index, "seconds": round(perf_counter() - started, 3), **found}

    def _ranks(self, index: int) -> dict[str, Any]:
        _, made_by, fitted_by, drawn_by = self._seeds(index)
        simulated = self.simulate(index)
        data = {"model_args": self.args, "model_kwargs": self.kwargs}
        with seeded(made_by):
            guide = self.guide(simulated.model)
        report = None
        if self.fit is not None:
            report = self.fit(
                simulated.model, guide, **data, seed=fitted_by, progress_bar=False, **self.options
            )
        draws = plain_draws(
            simulated.model, guide, **data,
            num_samples=self.num_draws, seed=drawn_by,
        ).values  # fmt: skip
        rng = np.random.default_rng(drawn_by)
        chosen = {name: draws[name] for name in self.sites if name in draws}
        ranks = ranks_among(simulated.truths, chosen, rng)
        named = {
            label: rank
            for name in chosen
            for label, rank in zip(
                labels_of(name, simulated.truths[name].shape), ranks[name], strict=True
            )
        }
        diagnostics = getattr(report, "diagnostics", None)
        return {"ranks": named, "verdict": getattr(diagnostics, "verdict", "")}


def _collect(notes: Notes, wanted: int, num_draws: int, finished: bool) -> Calibration:
    done = [notes.done[index] for index in sorted(notes.done) if index < wanted]
    right = [note for note in done if "ranks" in note]
    failures = tuple(f"simulation {n['index']}: {n['error']}" for n in done if "error" in n)
    if not right:
        told = f"the first: {failures[0]}" if failures else "interrupted before the first"
        raise RuntimeError(f"calibrate_guide: no fit of {len(done)} succeeded; {told}")
    if failures:
        warnings.warn(
            f"calibrate_guide: {len(failures)} of {len(done)} fits raised and are left out of the "
            f"ranks, which may flatter the rest; the first: {failures[0]}",
            stacklevel=3,
        )
    if not finished:
        warnings.warn(
            f"calibrate_guide: interrupted after {len(done)} of {wanted} simulations; the ranks "
            "are of these.",
            stacklevel=3,
        )
    names = list(right[0]["ranks"])
    ranks = {name: np.array([note["ranks"][name] for note in right]) for name in names}
    return Calibration(
        ranks, num_draws, verdicts=tuple(note["verdict"] for note in right), failures=failures
    )
