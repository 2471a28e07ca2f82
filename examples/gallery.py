"""A gallery: each registered flow fitted to two energies, and what it does to a grid.

    python examples/gallery.py                          # all flows, a picture each
    python examples/gallery.py --flows nsf planar --output pictures

On the left the grid of the base, [-3, 3]^2, as the flow lays it out once fitted to the first
energy, two facing arcs; then draws of the guide over the density of both energies. KL(q, p) is
log Z less the evidence bound.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pyro
import torch
from torch import Tensor

import pyroflows as pf

NUM_STEPS, NUM_PARTICLES, NUM_DRAWS = 500, 256, 2000


def two_arc(x: Tensor) -> Tensor:
    """The energy of Rezende and Mohamed (2015)."""
    ring = 0.5 * ((x.norm(dim=-1) - 4) / 0.4).square()
    heaps = [-0.5 * ((x[..., 0] + shift) / 0.8).square() for shift in (-2, 2)]
    return torch.logaddexp(*heaps) - ring


def sine_ring(x: Tensor) -> Tensor:
    """A ring with three heaps of mass."""
    return torch.sin(math.pi * x[..., 0]) - 2 * (x.square().sum(-1) - 2).square()


# Each with the log of its normaliser, and half the width of its picture.
ENERGIES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "two arcs": (two_arc, 2.313289, 6.0),
    "sine ring": (sine_ring, 1.611997, 2.5),
}


def fit(flow: str, energy: str, num_steps: int) -> tuple[pf.AutoFlow, float]:
    """Fit a guide, and measure the divergence that is left."""
    log_density, log_z, _ = ENERGIES[energy]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = pf.energy_model(log_density, dim=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flows that are too simple for these say so
        guide = pf.AutoFlow(model, flow, model_args=())
        pf.fit_guide(
            model,
            guide,
            num_steps=num_steps,
            num_particles=NUM_PARTICLES,
            num_diagnostic_samples=0,
            seed=0,
            progress_bar=False,
        )
        found = pf.importance_diagnostics(model, guide, num_samples=10_000, seed=0)
    return guide, log_z - found.elbo


@torch.no_grad()
def draw_grid(axes, guide: pf.AutoFlow, half: float) -> None:
    """The lines of a regular grid of the base, after the flow."""
    bijector = guide.get_posterior().bijector
    fine, coarse = torch.linspace(-3, 3, 400), torch.linspace(-3, 3, 13)
    for first in (True, False):
        for value in coarse:
            line = torch.stack([value.expand(400), fine], -1)
            line = bijector.forward_and_log_det(line if first else line.flip(-1))[0]
            colour = "C0" if first else "C1"
            axes.plot(*line.T, color=colour, linewidth=0.6)
    axes.set(xlim=(-half, half), ylim=(-half, half), title="a grid of the base")


@torch.no_grad()
def draw_fit(axes, guide: pf.AutoFlow, energy: str, kl: float) -> None:
    """Draws of the guide over the density of the energy."""
    log_density, log_z, half = ENERGIES[energy]
    axis = torch.linspace(-half, half, 200)
    x = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    axes.contourf(axis, axis, (log_density(x) - log_z).exp(), levels=12, cmap="Blues")
    draws = guide.get_posterior().sample((NUM_DRAWS,))
    axes.plot(*draws.T, ".", color="k", markersize=1.5, alpha=0.35)
    axes.set(xlim=(-half, half), ylim=(-half, half), title=f"{energy}: KL {kl:.3f}")


def picture(flow: str, num_steps: int) -> tuple[object, dict[str, float]]:
    """The picture of one flow, and its divergences."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    grid, *rest = figure.subplots(1, 3)
    divergences = {}
    for axes, energy in zip(rest, ENERGIES, strict=True):
        guide, kl = fit(flow, energy, num_steps)
        divergences[energy] = kl
        draw_fit(axes, guide, energy, kl)
        if axes is rest[0]:
            draw_grid(grid, guide, ENERGIES[energy][2])
    for axes in (grid, *rest):
        axes.set_aspect("equal")
        axes.tick_params(labelsize=7)
    return figure, divergences


def main(argv: list[str] | None = None) -> None:
    """Draw one picture a flow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows", nargs="+", default=pf.available_flows(), metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("gallery"), help="folder for pictures")
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that it works")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"{'flow':>14}" + "".join(f"{'KL, ' + name:>16}" for name in ENERGIES))
    for flow in args.flows:
        figure, divergences = picture(flow, 5 if args.smoke else NUM_STEPS)
        figure.savefig(args.output / f"{flow}.png", dpi=80)
        print(f"{flow:>14}" + "".join(f"{kl:>16.4f}" for kl in divergences.values()), flush=True)


if __name__ == "__main__":
    main()
