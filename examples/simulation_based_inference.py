"""Inference from a simulator: parameters of "two moons" from data alone, and whether to trust it.

The parameters are two numbers, uniform on (-1, 1)^2. The simulator puts a point at random on a half
circle, and moves it by the parameters:

    a ~ U(-pi/2, pi/2),   r ~ N(0.1, 0.01),
    x = (r cos a + 1/4 - |t1 + t2| / sqrt(2),   r sin a + (t2 - t1) / sqrt(2)).

A density of parameters given data, fitted to simulated pairs, is the posterior of any data: two
crescents, as the simulator cannot tell t1 + t2 from its negative. It is checked twice: by ranks of
true parameters among draws for data not trained on (simulation-based calibration), and by the exact
posterior on a grid, which is known here. The simulator: Greenberg, Nonnenmacher and Macke,
Automatic posterior transformation for likelihood-free inference (2019).

    python examples/simulation_based_inference.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

import pyroflows as pf

MIDDLE, SD = 0.1, 0.01  # of the radius
OBSERVED = torch.zeros(2)


def simulate(theta: Tensor) -> Tensor:
    """Data for parameters of shape (N, 2)."""
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = MIDDLE + SD * torch.randn(len(theta))
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1) + moved(theta)


def moved(theta: Tensor) -> Tensor:
    """The middle of the half circle."""
    total, difference = theta.sum(-1), theta[..., 1] - theta[..., 0]
    return torch.stack([0.25 - total.abs() / math.sqrt(2), difference / math.sqrt(2)], -1)


def exact_posterior(axis: Tensor, x: Tensor) -> Tensor:
    """The density on a grid of parameters, normalised by a sum over it."""
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    point = x - moved(grid)
    radius = point.norm(dim=-1)
    density = (-0.5 * ((radius - MIDDLE) / SD) ** 2).exp() / radius
    density = density * (point[..., 0] > 0)
    return density / (density.sum() * (axis[1] - axis[0]) ** 2)


class Run(NamedTuple):
    posterior: pf.FlowDensity
    fit: pf.DensityFit
    calibration: pf.Calibration
    exact_kl: float
    seconds: float


def run(seed: int, num_pairs: int, num_checks: int, num_steps: int | None) -> Run:
    """Simulate, fit, check."""
    torch.manual_seed(seed)
    started = perf_counter()

    # These ten lines are all that inference from a simulator takes.
    theta = 2 * torch.rand(num_pairs, 2) - 1
    x = simulate(theta)
    posterior = pf.FlowDensity(2, context_dim=2, support=constraints.interval(-1.0, 1.0))
    fit = pf.fit_density(posterior, theta, context=x, num_steps=num_steps, seed=seed)
    fresh = 2 * torch.rand(num_checks, 2) - 1
    calibration = pf.calibrate_density(posterior, fresh, simulate(fresh), names=["t1", "t2"])
    draws = posterior(OBSERVED).sample((1000,))

    print(fit, f"the mean of draws given {OBSERVED.tolist()} is {draws.mean(0).tolist()}", sep="\n")
    return Run(posterior, fit, calibration, exact_kl(posterior), perf_counter() - started)


@torch.no_grad()
def exact_kl(posterior: pf.FlowDensity, num: int = 1000) -> float:
    """KL(exact, fitted) given the observed data, in nats."""
    axis = (torch.arange(num) + 0.5) / num * 2 - 1
    exact = exact_posterior(axis, OBSERVED)
    held = exact > 0
    index = held.nonzero()
    points = torch.stack([axis[index[:, 0]], axis[index[:, 1]]], -1)
    found = torch.cat([posterior(OBSERVED).log_prob(part) for part in points.split(20_000)])
    return float((exact[held] * (exact[held].log() - found)).sum() * (2 / num) ** 2)


@torch.no_grad()
def plot(posterior: pf.FlowDensity, num: int = 400):
    """Exact and fitted posterior, and draws."""
    from matplotlib.figure import Figure

    limits = torch.tensor([[-0.5, 0.5], [-0.5, 0.5]])
    axis = torch.linspace(-0.5, 0.5, num)
    _, log_prob = pf.density_grid(posterior, num, limits=limits, context=OBSERVED)
    draws = posterior(OBSERVED).sample((2000,))
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    images = exact_posterior(axis, OBSERVED), log_prob.exp()
    top = float(images[0].quantile(0.995))
    for axes, image, title in zip(panels, images, ("exact", "fitted"), strict=False):
        axes.pcolormesh(axis.numpy(), axis.numpy(), image.T.numpy(), cmap="magma", vmin=0, vmax=top)
        axes.set(title=f"{title} posterior", xlabel="$t_1$")
    panels[2].plot(*draws.T, ".", markersize=2, alpha=0.5)
    panels[2].set(title=f"{len(draws)} draws", xlabel="$t_1$", xlim=(-0.5, 0.5), ylim=(-0.5, 0.5))
    panels[0].set_ylabel("$t_2$")
    return figure


def main(argv: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pairs", type=int, default=20_000, help="simulations to learn from")
    parser.add_argument("--checks", type=int, default=1_000, help="simulations to check by")
    parser.add_argument("--output", type=Path, default=Path("sbi"), help="a folder")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args(argv)
    numbers = (500, 100, 20) if args.smoke else (args.pairs, args.checks, None)

    runs = []
    for seed in args.seeds:
        found = run(seed, *numbers)
        runs.append(found)
        print(found.calibration)
        print(f"seed {seed}: KL(exact, fitted) {found.exact_kl:.4f} nats, {found.seconds:.0f} s\n")

    args.output.mkdir(parents=True, exist_ok=True)
    plot(runs[0].posterior).savefig(args.output / "posterior.png", dpi=120)
    pf.plot_calibration(runs[0].calibration).savefig(args.output / "calibration.png", dpi=120)
    print(f"Wrote posterior.png and calibration.png to {args.output}.")
    return runs


if __name__ == "__main__":
    main()
