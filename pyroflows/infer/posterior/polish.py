"""A short run of MCMC that starts from the draws of a guide and moves in its base space."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...arguments import check_arguments
from .._seeding import seeded
from ..draws import GuideDraws, draw_from_guide
from ..importance import ImportanceDiagnostics, diagnose
from ._base_space import BaseSpace, require_flow
from ._samplers import Hamiltonian, Independence, Move, Sampler
from ._sites import with_deterministic
from .polished import Polished

__all__ = ["polish"]

_METHODS = ("hmc", "independence")
_DRAWS_TO_JUDGE = 1000


def polish(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    method: str = "hmc",
    num_chains: int = 16,
    num_samples: int = 250,
    num_warmup: int = 250,
    target_accept: float = 0.8,
    num_leapfrog: int | None = None,
    seed: int | None = None,
    progress_bar: bool = True,
) -> Polished:
    r"""Take what a guide is off by away, by MCMC from its own draws.

    Chains move in the base space of the flow f, where the posterior is

    .. math:: \log \pi(\epsilon) = \log p(x, f(\epsilon)) + \log |\det f'(\epsilon)|

    and, as far as the guide is right, the base itself. They start from draws of the guide,
    resampled by their smoothed weights, and all move together.

    - ``"hmc"``: Hamiltonian Monte Carlo with unit masses, a step size found in the warm-up by dual
      averaging and a random number of leapfrog steps. It corrects any smooth error; between far
      modes it crosses only where the flow has brought them together in its base space.
    - ``"independence"``: Metropolis with draws of the guide as proposals. It needs no gradient and
      jumps between all modes that the guide holds; it misses what the guide misses.

    Proposals whose density or gradient is no number are rejected and counted. Ctrl-C ends the run
    with the draws made so far.

    Args:
        model: The model that the guide was fitted to.
        guide: An :class:`~pyroflows.AutoFlow`; for ``"hmc"`` with a base of real vectors.
        model_args: Positional arguments of both.
        model_kwargs: Keyword arguments of both.
        method: ``"hmc"`` or ``"independence"``.
        num_chains: Number of chains.
        num_samples: Draws of each chain that are kept.
        num_warmup: Draws of each chain before that.
        target_accept: Probability of acceptance that the step size is tuned to.
        num_leapfrog: Largest number of leapfrog steps of a move, each number up to it as likely;
            unless given, half a turn takes as many in the widest direction met, 64 at most.
        seed: Seed; the caller's generators are left as they were. None: draw on.
        progress_bar: Whether to show one.

    Returns:
        Draws by chain, with acceptance, divergences, and R-hat and ESS where ArviZ is installed;
        ``print`` it to read it.

    Warns:
        UserWarning: Where proposals are independent and the verdict on the guide is "do not trust".

    Raises:
        TypeError: If the guide is not an ``AutoFlow``.
        ValueError: If a number is out of range, the method or the base does not fit, a plate is
            subsampled, or chains have nowhere to start.

    References:
        Hoffman et al. (2019). NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural
        transport.
        Hoffman, Gelman (2014). The No-U-Turn sampler. JMLR 15.
        Tierney (1994). Markov chains for exploring posterior distributions. Annals of Statistics
        22.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyroflows as pf
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor(2.0)
        >>> guide = pf.AutoFlow(model, "affine", model_args=(y,))
        >>> chains = pf.polish(model, guide, model_args=(y,), num_samples=50, num_warmup=50, seed=0,
        ...                    progress_bar=False)
        >>> chains.values["mu"].shape
        torch.Size([16, 50])
    """
    check_arguments("polish", model, model_args, model_kwargs, guide)
    require_flow(guide, "polish")
    _check(method, num_chains, num_samples, num_warmup, target_accept, num_leapfrog)
    args, kwargs = tuple(model_args), dict(model_kwargs or {})
    with seeded(seed), pyro.validation_enabled(False):
        draws, diagnostics, space = look_at(model, guide, args, kwargs, "polish")
        _warn_of_blind_spots(method, diagnostics)
        started = perf_counter()
        sampler = _sampler(method, space, num_chains, target_accept, num_leapfrog)
        title, total = f"{method}, {num_chains} chains", num_warmup + num_samples
        bar = tqdm(total=total, desc=title, disable=not progress_bar)
        moves, interrupted = _run(sampler, num_warmup, num_samples, bar)
        seconds = perf_counter() - started
        values, noise, u = _values(model, args, kwargs, draws, space, moves)
    return Polished(
        method=method,
        values=values,
        unconstrained=u,
        noise=noise,
        log_p=_by_chain(moves, "log_p"),
        log_q=_by_chain(moves, "log_q"),
        acceptance=_by_chain(moves, "acceptance"),
        diverging=_by_chain(moves, "diverged"),
        nonfinite=_by_chain(moves, "nonfinite"),
        num_warmup=num_warmup,
        seconds=seconds,
        interrupted=interrupted,
        guide_diagnostics=diagnostics,
        sites=draws.sites,
        **sampler.told(),
    )


def look_at(
    model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any], owner: str
) -> tuple[GuideDraws, ImportanceDiagnostics, BaseSpace]:
    """Judge a guide by some draws, refuse what cannot be weighed, and look at its base space."""
    draws = draw_from_guide(
        model, guide, model_args=args, model_kwargs=kwargs, num_samples=_DRAWS_TO_JUDGE
    )
    diagnostics = diagnose(draws)
    return draws, diagnostics, BaseSpace.of(model, guide, args, kwargs, owner)


def _check(
    method: str,
    num_chains: int,
    num_samples: int,
    num_warmup: int,
    target_accept: float,
    num_leapfrog: int | None,
) -> None:
    if method not in _METHODS:
        raise ValueError(f"polish expected method among {_METHODS}, got {method!r}.")
    numbers = (
        ("num_chains", num_chains, 1),
        ("num_samples", num_samples, 1),
        ("num_warmup", num_warmup, 0),
        ("num_leapfrog", 1 if num_leapfrog is None else num_leapfrog, 1),
    )
    for name, number, least in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"polish expected {name} to be an int >= {least}, got {number!r}.")
    if not 0 < target_accept < 1:
        raise ValueError(f"polish expected target_accept between 0 and 1, got {target_accept!r}.")


def _sampler(
    method: str,
    space: BaseSpace,
    num_chains: int,
    target_accept: float,
    num_leapfrog: int | None,
) -> Sampler:
    if method == "hmc" and not space.is_real:
        raise ValueError(
            f"polish: method='hmc' needs a base of real vectors to move in, and that of this "
            f"guide is {space.base_name}: take method='independence'."
        )
    start = space.start(num_chains, "polish")
    if method == "independence":
        return Independence(space, start)
    return Hamiltonian(space, start, target_accept, num_leapfrog, "polish")


def _warn_of_blind_spots(method: str, diagnostics: ImportanceDiagnostics) -> None:
    """Independent proposals cannot tell of what the guide misses; gradients can."""
    if method == "independence" and diagnostics.verdict == "do not trust":
        warnings.warn(
            f"polish: the guide is not to be trusted ({diagnostics.reasons[0]}), and chains with "
            "its draws as proposals miss what it misses: take method='hmc', or fit it better.",
            stacklevel=3,
        )


def _run(sampler: Sampler, num_warmup: int, num_samples: int, bar: tqdm) -> tuple[list[Move], bool]:
    """Make the moves; those after the warm-up, and whether they were cut short."""
    moves: list[Move] = []
    try:
        with bar:
            for step in range(num_warmup + num_samples):
                if step == num_warmup:
                    sampler.settle()
                move = sampler.move(adapt=step < num_warmup)
                if step >= num_warmup:
                    moves.append(move)
                words = "warm-up, " if step < num_warmup else ""
                accepted = float(move.acceptance.mean())
                bar.set_postfix_str(f"{words}acceptance {accepted:.2f}", refresh=False)
                bar.update()
    except KeyboardInterrupt:
        if not moves:  # there is nothing to give back
            raise
        return moves, True
    return moves, False


def _by_chain(moves: list[Move], name: str) -> Tensor:
    return torch.stack([getattr(move, name) for move in moves], 1)


def _values(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    draws: GuideDraws,
    space: BaseSpace,
    moves: list[Move],
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return site values ``(M, N, *shape)``, noise and unconstrained draws ``(M, N, D)``."""
    noise, u = _by_chain(moves, "noise"), _by_chain(moves, "u")
    with torch.no_grad():
        latents, _ = space.latents.constrain(u.flatten(0, 1), skip_jacobian=True)
    values = with_deterministic(model, args, kwargs, draws, latents)
    return {name: value.unflatten(0, u.shape[:2]) for name, value in values.items()}, noise, u
