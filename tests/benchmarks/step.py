"""Time of one training step of a spline flow on an energy, beside the same flow in zuko.

    python -m tests.benchmarks.step                      # D = 8, 256 particles, one thread
    python -m tests.benchmarks.step --dim 32 --threads 2

The contestants take turns within one run, so that a noisy machine is noisy for all; the ratio is
taken round by round. Every one has an autoregressive rational quadratic spline flow of 3 layers
with hidden layers (64, 64) and 8 bins, cheap to sample, in float32, under torch's Adam:

    PathELBO    a step of ``fit_guide``: guide, energy model, path gradients
    SVI         Pyro's ``SVI.step`` with ``Trace_ELBO`` and the same guide
    zuko        ``rsample_and_log_prob``, loss (log q - log p).mean()
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._common import add_common_options, print_row, write_json

SIZES = {"num_layers": 3, "hidden_dims": (64, 64), "num_bins": 8}
Step = Callable[[], object]


def valley(x: Tensor) -> Tensor:
    """A chain of bent valleys: cheap, so that the flow is what is timed."""
    return -0.5 * x[..., 0] ** 2 - (x[..., 1:] - 0.5 * x[..., :-1] ** 2).square().sum(-1)


def ours(dim: int, num_particles: int) -> Step:
    target = pf.energy_model(valley, dim)
    guide = pf.AutoFlow(target, "nsf", model_args=(), **SIZES)
    elbo = pf.PathELBO(num_particles=num_particles)
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        elbo.differentiable_loss(target, guide).backward()
        optimizer.step()

    return step


def svi(dim: int, num_particles: int) -> Step:
    pyro.clear_param_store()
    target = pf.energy_model(valley, dim)
    guide = pf.AutoFlow(target, "nsf", model_args=(), **SIZES)
    elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=0)
    return SVI(target, guide, pyro.optim.Adam({"lr": 1e-3}), elbo).step


def zuko(dim: int, num_particles: int) -> Step:
    import zuko

    flow = zuko.flows.NSF(
        dim,
        transforms=SIZES["num_layers"],
        hidden_features=SIZES["hidden_dims"],
        bins=SIZES["num_bins"],
    )
    flow = zuko.flows.Flow(flow.transform.inv, flow.base)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        x, log_q = flow().rsample_and_log_prob((num_particles,))
        (log_q - valley(x)).mean().backward()
        optimizer.step()

    return step


def seconds_per_step(step: Step, num_steps: int) -> float:
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    return (time.perf_counter() - start) / num_steps


def race(
    steps: dict[str, Step], num_rounds: int, num_steps: int, warmup: int
) -> dict[str, list[float]]:
    """Seconds per step, one number a round, the contestants in turns."""
    for step in steps.values():
        seconds_per_step(step, warmup)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(num_rounds):
        order = list(steps) if i % 2 == 0 else list(reversed(steps))
        for name in order:
            times[name].append(seconds_per_step(steps[name], num_steps))
    return times


def summarise(times: dict[str, list[float]], reference: str | None) -> list[dict[str, object]]:
    rows = []
    for name, seconds in times.items():
        row: dict[str, object] = {"step": name, "ms": 1e3 * statistics.median(seconds)}
        if reference:
            pairs = zip(seconds, times[reference], strict=True)
            ratios = sorted(mine / theirs for mine, theirs in pairs)
            row |= {f"ratio to {reference}": statistics.median(ratios)}
            row |= {"lowest": ratios[0], "highest": ratios[-1]}
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--particles", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="steps in a round")
    add_common_options(parser)
    parser.set_defaults(threads=1)
    args = parser.parse_args(argv)
    rounds, num_steps, warmup = (2, 2, 2) if args.smoke else (args.rounds, args.steps, 10)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    steps = {"PathELBO": ours(args.dim, args.particles), "SVI": svi(args.dim, args.particles)}
    reference = "zuko"
    try:
        steps["zuko"] = zuko(args.dim, args.particles)
    except ImportError:
        reference = None
        print("zuko is not installed (pip install zuko), so there is nothing to compare with.")

    print(f"D = {args.dim}, {args.particles} particles, {args.threads} threads, float32")
    rows = summarise(race(steps, rounds, num_steps, warmup), reference)
    for i, row in enumerate(rows):
        print_row(row, header=i == 0)
    settings = {"dim": args.dim, "particles": args.particles, "rounds": rounds, "steps": num_steps}
    write_json(args.output, rows, **settings)
    torch.set_num_threads(threads_before)
    return rows


if __name__ == "__main__":
    main()
