"""Masked autoregressive flows: first a normal to find by shift and scale, then two moons.

The shift and scale of a normal are found by one affine layer. The moons are two half circles with
noise,

    (cos a, sin a) or (1 - cos a, 1/2 - sin a),   a ~ U(0, pi),   plus N(0, 0.05^2),

10,000 points. Three masked autoregressive layers with hidden layers (128, 128) and ReLU, the order
of the coordinates turned round in between, are trained in batches of 256 over 20 epochs, as is a
flow of splines. The steps are those of `fit_density`, where the original takes Adam's of 1e-3, and
flows start as the normal with the mean and covariance of the data. They are judged by 10,000 fresh
points, whose mean log density under the truth is known by quadrature.
After an experiment of the package dmol.

    python examples/maf_moons.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

import pyroflows as pf

NUM_POINTS, NOISE, NUM_EPOCHS, BATCH = 10_000, 0.05, 20, 256
PEERS = {"MAF of other libraries": 0.73, "NSF of zuko": 0.378}  # at 20 epochs
FLOWS = {"maf": {"hidden_dims": (128, 128)}, "nsf": {}}
LOC, SCALE = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.5])
SQUARE = torch.tensor([[-2.5, 2.5], [-2.5, 2.5]])


def arcs(angle: Tensor) -> Tensor:
    """Points of both half circles, shape (2, N, 2)."""
    upper = torch.stack([angle.cos(), angle.sin()], -1)
    return torch.stack([upper, torch.tensor([1.0, 0.5]) - upper])


def draw_moons(num: int) -> Tensor:
    points = arcs(math.pi * torch.rand(num))[torch.randint(2, (num,)), torch.arange(num)]
    return points + NOISE * torch.randn(num, 2)


def score_moons(x: Tensor, num_nodes: int = 2000) -> Tensor:
    """Log densities, by the midpoint rule along both arcs."""
    nodes = arcs(math.pi * (torch.arange(num_nodes) + 0.5) / num_nodes).reshape(-1, 2).double()
    parts = [-0.5 * (torch.cdist(part, nodes) / NOISE) ** 2 for part in x.double().split(1000)]
    total = torch.cat([part.logsumexp(-1) for part in parts])
    return total - math.log(len(nodes) * 2 * math.pi * NOISE**2)


def fit_toy(num_steps: int) -> pf.FlowDensity:
    """Find the shift and the scale of a normal, from a start that knows nothing of them."""
    x = LOC + SCALE * torch.randn(NUM_POINTS, 2)
    density = pf.FlowDensity(2, "diagonal", standardize=False)
    optimizer = torch.optim.Adam(density.parameters(), lr=0.05)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = -density().log_prob(x).mean()
        loss.backward()
        optimizer.step()
    found = density()
    print(f"shift and scale   {_row(found.mean)}   {_row(found.stddev)}")
    print(f"true              {_row(LOC)}   {_row(SCALE)}")
    return density


def _row(numbers: Tensor) -> str:
    return " ".join(f"{number:7.3f}" for number in numbers.tolist())


class Run(NamedTuple):
    name: str
    density: pf.FlowDensity
    untrained: Tensor  # density on the grid
    fit: pf.DensityFit
    nll: float
    truth: float
    seconds: float


def run(name: str, seed: int, num_points: int, num_epochs: int) -> Run:
    """Fit one flow to the moons."""
    torch.manual_seed(seed)
    x, fresh = draw_moons(num_points), draw_moons(NUM_POINTS)
    started = perf_counter()
    density = pf.FlowDensity(2, name, **FLOWS[name]).initialize(x)
    untrained = pf.density_grid(density, limits=SQUARE)[1].exp()
    fit = pf.fit_density(
        density,
        x,
        test=fresh,
        num_epochs=num_epochs,
        batch_size=BATCH,
        seed=seed,
        progress_bar=False,
    )
    truth = -float(score_moons(fresh).mean())
    return Run(name, density, untrained, fit, -fit.log_likelihood, truth, perf_counter() - started)


@torch.no_grad()
def plot(toy: pf.FlowDensity, maf: Run):
    """The toy, the base, the density before and after training, losses and draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 3).flatten()
    base = maf.density.base.distribution().sample((NUM_POINTS,))
    draws = maf.density().sample((NUM_POINTS,))
    box = torch.tensor([[-4.0, 4.0], [-4.0, 4.0]])
    images = {
        "shift and scale": (box, pf.density_grid(toy, limits=box)[1].exp()),
        "untrained": (SQUARE, maf.untrained),
        "trained": (SQUARE, pf.density_grid(maf.density, limits=SQUARE)[1].exp()),
    }
    for axes, (title, (limits, image)) in zip(panels[[1, 2, 3]], images.items(), strict=True):
        extent = limits.flatten().tolist()
        axes.imshow(image.T.numpy(), origin="lower", extent=extent, cmap="magma")
        axes.set_title(title)
    for axes, points, title in (
        (panels[0], base, "draws of the base"),
        (panels[5], draws, f"{NUM_POINTS:,} draws"),
    ):
        axes.plot(*points.numpy().T, ".", markersize=1)
        axes.set(title=title, aspect="equal")
    panels[4].plot(maf.fit.losses, label="learned from")
    panels[4].plot(maf.fit.validation_losses, label="validation")
    panels[4].axhline(maf.truth, color="k", linewidth=0.6, linestyle=":", label="truth")
    panels[4].set(title="negative log-likelihood", xlabel="epoch")
    panels[4].legend()
    return figure


def main(argv: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("maf_moons"), help="a folder")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args(argv)
    seeds, num_points, num_epochs = args.seeds, NUM_POINTS, NUM_EPOCHS
    if args.smoke:
        seeds, num_points, num_epochs = seeds[:1], 600, 2

    torch.manual_seed(seeds[0])
    toy = fit_toy(20 if args.smoke else 400)
    print("\nseed  flow     nll of fresh points   truth   above it   steps   seconds")
    runs = []
    for seed in seeds:
        for name in FLOWS:
            found = run(name, seed, num_points, num_epochs)
            runs.append(found)
            print(
                f"{seed:4d}  {name:<4} {found.nll:23.4f} {found.truth:7.4f} "
                f"{found.nll - found.truth:10.4f} {found.fit.num_steps:7d} {found.seconds:9.1f}",
                flush=True,
            )
    print("others:   " + ", ".join(f"{name} {nll}" for name, nll in PEERS.items()))

    args.output.mkdir(parents=True, exist_ok=True)
    plot(toy, runs[0]).savefig(args.output / "maf_moons.png", dpi=100)
    print(f"Wrote maf_moons.png to {args.output}.")
    return runs


if __name__ == "__main__":
    main()
