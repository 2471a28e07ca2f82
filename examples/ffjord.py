"""FFJORD: a continuous flow of ten numbers, fitted to a hundred draws of a normal.

The example of DiffEqFlux.jl: N(0, 1) is carried to 100 draws of N(6, 0.7) by the field
dx/dt = f(x), a network 1-3-1 with tanh, over the times 0 to 10. Adam with step size 0.01 takes 20
steps, then L-BFGS goes on. The fit is judged by the total variation at those draws,

    sum_i |p(x_i) - q(x_i)| / 2 / 100,

with the exact trace. Two things are done otherwise. The original generates data from the weights
of before training, this from the trained ones. And L-BFGS is stopped where ten iterations gain
less than one nat over all draws: ten numbers follow the noise of a hundred draws if they may, and
an added parameter is worth its place from one nat on (Akaike).

Hutchinson's estimate of the trace, with random signs, is exact in one coordinate. So the two are
compared on pairs of correlated coordinates as well. There each draw has signs of its own, the same
at each step, as L-BFGS needs a function to minimise.

    python examples/ffjord.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

import pyroflows as pf
from pyroflows.bijectors import Continuous

LOC, SCALE, SPAN, NUM_POINTS, NUM_DRAWS = 6.0, 0.7, 10.0, 100, 10_000
TRUE = Normal(LOC, SCALE)
ORIGINAL = 0.0314  # total variation, from the documentation of DiffEqFlux.jl


class Field(nn.Module):
    """The velocity: a small network of the point alone, in units in which all time is one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        linears = nn.Linear(dim, 3 * dim), nn.Linear(3 * dim, dim)
        for linear in linears:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.net = nn.Sequential(linears[0], nn.Tanh(), linears[1], nn.Tanh())

    def forward(self, point_and_time: Tensor, context: None = None) -> Tensor:
        return SPAN * self.net(point_and_time[..., :-1])


def ffjord(dim: int, *, context_dim: int = 0, trace: str = "exact") -> pf.Bijector:
    """A recipe: the layer of the flow "cnf" with that field in place of its own."""
    flow = Continuous(
        dim, context_dim=context_dim, trace=trace, noise="fresh", solver="rk4", num_steps=10
    )
    flow.velocity = Field(dim)
    return flow


class Run(NamedTuple):
    """A fit and what it is worth."""

    density: pf.FlowDensity
    x: Tensor
    total_variation: float
    draws: Tensor
    num_iterations: int
    seconds: float


def train(density: pf.FlowDensity, x: Tensor, num_adam: int, num_lbfgs: int) -> int:
    """Maximise the likelihood; return the number of iterations of L-BFGS."""

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.random.fork_rng():  # the noise of an estimated trace is that of all steps
            torch.manual_seed(0)
            value = -density().log_prob(x).mean()
        value.backward()
        return value

    optimizer = torch.optim.Adam(density.parameters(), lr=0.01)
    for _ in range(num_adam):
        optimizer.step(loss)
    optimizer = torch.optim.LBFGS(
        density.parameters(), max_iter=10, history_size=10, line_search_fn="strong_wolfe"
    )
    before = math.inf
    for iteration in range(0, num_lbfgs, 10):
        now = float(optimizer.step(loss).detach())  # the loss that the ten iterations start from
        if before - now < 1 / len(x):
            return iteration
        before = now
    return num_lbfgs


def run(seed: int, num_adam: int = 20, num_lbfgs: int = 100) -> Run:
    """Fit the density to a hundred draws, and draw from what was trained."""
    torch.manual_seed(seed)
    x = TRUE.sample((NUM_POINTS, 1)).double()
    density = pf.FlowDensity(1, ffjord, standardize=False).double()
    started = perf_counter()
    num_iterations = train(density, x, num_adam, num_lbfgs)
    seconds = perf_counter() - started
    with torch.no_grad():
        p, q = TRUE.log_prob(x[:, 0]).exp(), density().log_prob(x).exp()
        draws = density().sample((NUM_DRAWS,))[:, 0]
    total_variation = float((p - q).abs().sum()) / 2 / len(x)
    return Run(density, x[:, 0], total_variation, draws, num_iterations, seconds)


@torch.no_grad()
def score(density: pf.FlowDensity, x: Tensor, trace: str) -> Tensor:
    """Log densities by one way to take the trace."""
    flow = density.bijector.bijectors[0]
    flow.trace, kept = trace, flow.trace
    log_prob = density().log_prob(x)
    flow.trace = kept
    return log_prob


def compare_traces(found: Run, num_adam: int, num_lbfgs: int) -> None:
    """Print what Hutchinson's estimate costs: in one coordinate nothing, in two something."""
    x = found.x[:, None]
    by_each = [score(found.density, x, trace) for trace in ("exact", "hutchinson")]
    print("\nlargest difference of log densities by the exact trace and by Hutchinson's estimate")
    print(f"  one coordinate     {(by_each[0] - by_each[1]).abs().max():.1e}")

    torch.manual_seed(0)
    covariance = SCALE**2 * torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    pairs = MultivariateNormal(torch.full((2,), LOC), covariance).sample((NUM_POINTS,)).double()
    print("pairs of coordinates, trained by   nll by the exact trace   by the estimate   seconds")
    for trace in ("exact", "hutchinson"):
        torch.manual_seed(0)
        density = pf.FlowDensity(2, ffjord, standardize=False, trace=trace).double()
        started = perf_counter()
        train(density, pairs, num_adam, num_lbfgs)
        seconds = perf_counter() - started
        exact, estimate = (-score(density, pairs, t).mean() for t in ("exact", "hutchinson"))
        print(f"  {trace:<32} {exact:22.4f} {estimate:17.4f} {seconds:9.1f}")


@torch.no_grad()
def plot(found: Run):
    """The data, both densities, and as many draws of the trained flow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    grid = torch.linspace(LOC - 5 * SCALE, LOC + 5 * SCALE, 300, dtype=torch.float64)
    bins = torch.linspace(LOC - 4 * SCALE, LOC + 4 * SCALE, 25).numpy()
    axes.hist(found.x, bins=bins, density=True, color="C0", alpha=0.4, label="data")
    axes.hist(
        found.draws[:NUM_POINTS], bins=bins, density=True, histtype="step", color="C1",
        label=f"{NUM_POINTS} draws of the flow",
    )  # fmt: skip
    axes.plot(grid, TRUE.log_prob(grid).exp(), color="k", label="true density")
    axes.plot(grid, found.density().log_prob(grid[:, None]).exp(), color="C3", label="flow")
    axes.set(xlabel="x", ylabel="density", title=f"total variation {found.total_variation:.4f}")
    axes.legend()
    return figure


def main(argv: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, default=Path("ffjord"), help="a folder")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args(argv)
    seeds, lengths = (args.seeds[:1], (3, 10)) if args.smoke else (args.seeds, (20, 100))

    print("seed   total variation   mean, sd of draws   of the data   L-BFGS iterations   seconds")
    runs = []
    for seed in seeds:
        found = run(seed, *lengths)
        runs.append(found)
        print(
            f"{seed:4d} {found.total_variation:17.4f} {found.draws.mean():12.3f} "
            f"{found.draws.std():6.3f} {found.x.mean():7.3f} {found.x.std():5.3f} "
            f"{found.num_iterations:19d} {found.seconds:9.1f}"
        )
    values = torch.tensor([found.total_variation for found in runs])
    print(f"median of total variations {values.quantile(0.5):.4f}, largest {values.max():.4f}")
    print(f"original                   {ORIGINAL:.4f} (documentation of DiffEqFlux.jl, one run)")
    print(f"true mean and sd           {LOC:.3f} {SCALE:.3f}")
    compare_traces(runs[0], *lengths)

    args.output.mkdir(parents=True, exist_ok=True)
    plot(runs[0]).savefig(args.output / "ffjord.png", dpi=150)
    print(f"Wrote ffjord.png to {args.output}.")
    return runs


if __name__ == "__main__":
    main()
