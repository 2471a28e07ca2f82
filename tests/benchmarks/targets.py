"""Fits targets whose truth is known, at the defaults of ``fit_guide``, and measures the distance.

    python -m tests.benchmarks.targets                            # every target, seed 0
    python -m tests.benchmarks.targets --targets sine_ring --seeds 0 1 2
    python -m tests.benchmarks.targets --targets gaussians --flows all
    python -m tests.benchmarks.targets --path folder-of-data      # those with data files too
    python -m tests.benchmarks.targets --peers      # and other libraries' fits of the same length

A row: ``gap`` is log Z - ELBO in nats, of 100,000 draws; ``log_z_error`` that of importance
sampling; ``mean_error`` the largest error of a weighted mean in true standard deviations,
``sd_error`` the largest relative error of a weighted standard deviation, where they are known, and
``raw_...`` those of the guide's own draws; ``share_error`` that of the share of draws below a
bound: P(tau < 1) of the eight schools, or the largest over the modes. ``report_gap`` is the gap by
the fit's own report. A target whose data are not found is left out, and named.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._common import (
    Judged,
    add_common_options,
    default_dtype,
    fit_and_judge,
    moment_errors,
    print_row,
    write_json,
)
from tests.benchmarks._known import KNOWN, MissingData
from tests.benchmarks._peers_guides import add_peers_option, judge_peers
from tests.benchmarks._peers_targets import PATH_VARIABLE
from tests.benchmarks._schools import EFFECT, ERROR, eight_schools

Moments = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Target:
    """A density whose normaliser is known, and its moments where they are.

    Args:
        model: Makes the Pyro model.
        log_z: Log of the normaliser.
        truth: Makes the mean and standard deviation of each site.
        share_error: The error of some share of the posterior, from draws by site and weights.
        skip: Flows that cannot hold it: a mean field has no correlation to give.
    """

    model: Callable[[], Callable[[], None]]
    log_z: float
    truth: Callable[[], Moments] | None = None
    share_error: Callable[[dict[str, Tensor], Tensor], float] | None = None
    skip: tuple[str, ...] = ()


# Two dimensions ------------------------------------------------------------------------------


def sine_ring(x: Tensor) -> Tensor:
    """The energy of the tutorial on reverse KL: a ring with three heaps."""
    return torch.sin(math.pi * x[..., 0]) - 2 * (x.square().sum(-1) - 2) ** 2


def grid_moments(log_density: Callable[[Tensor], Tensor], bound: float) -> Moments:
    """Moments of a density on the plane, by summing over a square grid."""
    axis = torch.linspace(-bound, bound, 2001, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    p = log_density(x).softmax(0)
    mean = p @ x
    return {"x": (mean, (p @ (x - mean) ** 2).sqrt())}


# Gaussians: where they are and how wide, in raw units ----------------------------------------


def gaussian_target(
    loc: list[float],
    scale: list[float],
    correlation: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Target:
    """A normalised Gaussian on the plane, as an energy."""
    loc, scale = torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype)
    rest = math.sqrt(1 - correlation**2)

    def log_density(x: Tensor) -> Tensor:
        # Whitened by hand: the covariance itself would lose the correlation to rounding.
        z1, z2 = ((x - loc) / scale).unbind(-1)
        z2 = (z2 - correlation * z1) / rest
        log_det = scale.log().sum() + math.log(rest)
        return -0.5 * (z1**2 + z2**2) - log_det - math.log(2 * math.pi)

    return Target(
        model=lambda: pf.energy_model(log_density, dim=2, dtype=dtype),
        log_z=0.0,
        truth=lambda: {"x": (loc.double(), scale.double())},
        skip=("diagonal",) if correlation else (),
    )


# Eight schools -------------------------------------------------------------------------------


def _grid_of_scales() -> tuple[Tensor, Tensor, Tensor]:
    """A grid over mu and tau, and the posterior's log density there, in log tau.

    Given these two each school is conjugate.
    """
    mu = torch.linspace(-30, 30, 601, dtype=torch.float64)[:, None, None]
    log_tau = torch.linspace(-14, 9, 1151, dtype=torch.float64)[:, None]
    tau = log_tau.exp()
    scale = (tau**2 + ERROR.double() ** 2).sqrt()
    log_p = dist.Normal(mu, scale).log_prob(EFFECT.double()).sum(-1)
    log_p = log_p + dist.Normal(0.0, 5.0).log_prob(mu)[..., 0]
    return mu, tau, log_p + (dist.HalfCauchy(5.0).log_prob(tau) + log_tau)[..., 0]


def eight_schools_truth(*, centered: bool) -> Moments:
    """Given mu and tau each school is conjugate, so the rest is a sum over a grid of the two."""
    y, s = EFFECT.double(), ERROR.double()
    mu, tau, log_p = _grid_of_scales()
    p = log_p.flatten().softmax(0).reshape(log_p.shape)
    gain = tau / (tau**2 + s**2)
    deviation_mean, deviation_var = gain * (y - mu), 1 - gain * tau
    sites = {"mu": (mu[..., 0], 0.0), "tau": (tau[..., 0], 0.0)}
    if centered:
        sites["theta"] = (mu + tau * deviation_mean, tau**2 * deviation_var)
    else:
        sites["deviation"] = (deviation_mean, deviation_var)
    return {name: _mixture_moments(p, *moments) for name, moments in sites.items()}


def _mixture_moments(p: Tensor, mean: Tensor, var: Tensor | float) -> tuple[Tensor, Tensor]:
    p = p.reshape(*p.shape, *[1] * (mean.dim() - 2))
    total = (p * mean).sum((0, 1))
    return total, (p * ((mean - total) ** 2 + var)).sum((0, 1)).sqrt()


def _small_tau(draws: dict[str, Tensor], weights: Tensor) -> float:
    """The error of P(tau < 1)."""
    _, tau, log_p = _grid_of_scales()
    share = log_p.logsumexp(0).softmax(0)[tau[:, 0] < 1].sum()
    return float((weights * (draws["tau"] < 1)).sum() - share)


def _eight_schools_target(centered: bool) -> Target:
    return Target(
        model=lambda: partial(eight_schools, centered=centered),
        log_z=-31.311349,
        truth=lambda: eight_schools_truth(centered=centered),
        share_error=_small_tau,
    )


TARGETS = {
    "sine_ring": Target(
        lambda: pf.energy_model(sine_ring, dim=2), 1.611997, lambda: grid_moments(sine_ring, 3.0)
    ),
    **{name: Target(make, log_z) for name, (make, log_z) in KNOWN.items()},
    "eight_schools_noncentered": _eight_schools_target(centered=False),
    "eight_schools_centered": _eight_schools_target(centered=True),
    "gaussian_far": gaussian_target([50.0, -30.0], [0.1, 0.1]),
    "gaussian_very_far": gaussian_target([5e4, 5e4], [1e-3, 1e-3], dtype=torch.float64),
    "gaussian_two_scales": gaussian_target([0.0, 0.0], [5e4, 1e-3]),
    "gaussian_correlated": gaussian_target([0.0, 0.0], [1.0, 1.0], correlation=0.9999),
}
GROUPS = {"gaussians": [name for name in TARGETS if name.startswith("gaussian")]}


def measure(
    name: str,
    flow: str,
    seed: int,
    *,
    num_steps: int | None = None,
    num_samples: int = 100_000,
    peers: bool = False,
) -> Iterator[dict[str, object]]:
    """The row of our fit, then those of its peers."""
    model, made = TARGETS[name].model(), {"num_samples": num_samples, "seed": seed}
    ours = fit_and_judge(model, flow, num_steps=num_steps, **made)
    report_gap = TARGETS[name].log_z - ours.fit.diagnostics.elbo
    yield _row(name, flow, seed, ours) | {"report_gap": report_gap}
    for peer, judged in judge_peers(ours, model, **made) if peers else ():
        yield _row(name, peer, seed, judged)


def _row(name: str, flow: str, seed: int, judged: Judged) -> dict[str, object]:
    target = TARGETS[name]
    errors, raw_errors = (math.nan, math.nan), (math.nan, math.nan)
    if target.truth is not None:
        truth = target.truth()
        errors = moment_errors(judged.moments(), truth)
        raw_errors = moment_errors(judged.moments(weighted=False), truth)
    share = target.share_error
    shown = math.nan if share is None else share(judged.draws, judged.weights)
    return {
        "target": name,
        "d": judged.fit.guide.latent_dim,
        "flow": flow,
        "seed": seed,
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "elbo": judged.elbo,
        "gap": target.log_z - judged.elbo,
        "log_z_error": judged.log_z - target.log_z,
        "report_gap": math.nan,
        **judged.verdict,
        "raw_mean_error": raw_errors[0],
        "raw_sd_error": raw_errors[1],
        "mean_error": errors[0],
        "sd_error": errors[1],
        "share_error": shown,
        "steps": judged.steps,
        "seconds": judged.seconds,
        "problem": judged.problem,
    }


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), metavar="NAME")
    parser.add_argument("--flows", nargs="+", default=["auto"], metavar="NAME", help="or 'all'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--num-steps", type=int, help="default: that of fit_guide")
    parser.add_argument("--path", type=Path, help="folder of the data files")
    parser.add_argument("--float64", action="store_true", help="model and guide in float64")
    add_peers_option(parser)
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    names = [n for name in args.targets for n in GROUPS.get(name, [name])]
    if unknown := sorted(set(names) - set(TARGETS)):
        parser.error(f"unknown targets {unknown}: choose from {[*TARGETS, *GROUPS]}")
    flows = pf.available_flows() if args.flows == ["all"] else args.flows
    if args.path:
        os.environ[PATH_VARIABLE] = str(args.path.resolve())
    settings = {"num_steps": args.num_steps, "num_samples": 100_000}
    if args.smoke:
        settings = {"num_steps": args.num_steps or 3, "num_samples": 1000}
    rows: list[dict[str, object]] = []
    with default_dtype(torch.float64 if args.float64 else torch.float32):
        for row in _all_rows(names, flows, args.seeds, peers=args.peers, **settings):
            rows.append(row)
            print_row(row, header=len(rows) == 1)
            write_json(args.output, rows, **settings)
    return rows


def _all_rows(
    names: Sequence[str], flows: Sequence[str], seeds: Sequence[int], **settings: object
) -> Iterator[dict[str, object]]:
    for name in names:
        try:
            TARGETS[name].model()
        except MissingData as error:
            print(f"left out: {error}")
            continue
        for flow in flows:
            for seed in seeds if flow not in TARGETS[name].skip else ():
                yield from measure(name, flow, seed, **settings)


if __name__ == "__main__":
    main()
