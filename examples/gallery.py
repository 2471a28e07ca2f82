"""A gallery: each registered flow fitted to two energies, and what it does to a grid.

    python examples/gallery.py                          # all flows, a picture each
    python examples/gallery.py --flows nsf planar --output pictures

On the left the grid of the base, [-3, 3]^2, as the flow lays it out once fitted to the first
energy, two facing arcs; then draws of the guide over the density of both energies. KL(q, p) is
log Z less the evidence bound. A flow of angles is fitted to two energies on a torus instead, and
its grid is that of the square [-pi, pi)^2.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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


def coupled_angles(x: Tensor) -> Tensor:
    """Two angles that follow one another, with heaps on opposite sides of the circle."""
    first, second = x.unbind(-1)
    heaps = torch.logaddexp(2 * (first - 3.0).cos(), (first - 0.5).cos())
    return heaps + 3 * (second - first).cos()


def winding_angles(x: Tensor) -> Tensor:
    """A band that winds round the torus twice while it goes along once."""
    first, second = x.unbind(-1)
    return 4 * (second - 2 * first).cos() + first.cos()


class Energy(NamedTuple):
    """A log density, the log of its normaliser, and half the widths of picture and grid."""

    log_density: Callable[[Tensor], Tensor]
    log_z: float
    half: float
    grid: float


PLANE = {
    "two arcs": Energy(two_arc, 2.313289, 6.0, 3.0),
    "sine ring": Energy(sine_ring, 1.611997, 2.5, 3.0),
}
TORUS = {
    "coupled angles": Energy(coupled_angles, 6.526784, math.pi, math.pi),
    "winding angles": Energy(winding_angles, 6.336641, math.pi, math.pi),
}
ANGLES = ("ncsf",)  # flows of angles
# A solver that adapts takes many times as long where a fit is hard, as two arcs are.
OPTIONS: dict[str, dict[str, object]] = {"cnf": {"solver": "rk4", "num_steps": 5}}


def energies_for(flow: str) -> dict[str, Energy]:
    return TORUS if flow in ANGLES else PLANE


def fit(flow: str, energy: Energy, num_steps: int) -> tuple[pf.AutoFlow, float]:
    """Fit a guide, and measure the divergence that is left."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = pf.energy_model(energy.log_density, dim=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flows that are too simple for these say so
        guide = pf.AutoFlow(model, flow, model_args=(), **OPTIONS.get(flow, {}))
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
    return guide, energy.log_z - found.elbo


@torch.no_grad()
def draw_grid(axes, guide: pf.AutoFlow, energy: Energy) -> None:
    """The lines of a regular grid of the base, after the flow, broken where a circle closes."""
    bijector, end = guide.get_posterior().bijector, energy.grid
    fine, coarse = torch.linspace(-end, end, 400), torch.linspace(-end, end, 13)
    for first in (True, False):
        for value in coarse:
            line = torch.stack([value.expand(400), fine], -1)
            line = bijector.forward_and_log_det(line if first else line.flip(-1))[0]
            if energy in TORUS.values():
                jumps = (line.diff(dim=0).abs() > math.pi).any(-1)
                line[1:][jumps] = torch.nan
            colour = "C0" if first else "C1"
            axes.plot(*line.T, color=colour, linewidth=0.6)
    half = energy.half
    axes.set(xlim=(-half, half), ylim=(-half, half), title="a grid of the base")


@torch.no_grad()
def draw_fit(axes, guide: pf.AutoFlow, energy: Energy, title: str) -> None:
    """Draws of the guide over the density of the energy."""
    log_density, log_z, half, _ = energy
    axis = torch.linspace(-half, half, 200)
    x = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    axes.contourf(axis, axis, (log_density(x) - log_z).exp(), levels=12, cmap="Blues")
    draws = guide.get_posterior().sample((NUM_DRAWS,))
    axes.plot(*draws.T, ".", color="k", markersize=1.5, alpha=0.35)
    axes.set(xlim=(-half, half), ylim=(-half, half), title=title)


def picture(flow: str, num_steps: int) -> tuple[object, dict[str, float]]:
    """The picture of one flow, and its divergences."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    grid, *rest = figure.subplots(1, 3)
    divergences = {}
    for axes, (name, energy) in zip(rest, energies_for(flow).items(), strict=True):
        guide, divergences[name] = fit(flow, energy, num_steps)
        draw_fit(axes, guide, energy, f"{name}: KL {divergences[name]:.3f}")
        if axes is rest[0]:
            draw_grid(grid, guide, energy)
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
    for flow in args.flows:
        figure, divergences = picture(flow, 5 if args.smoke else NUM_STEPS)
        figure.savefig(args.output / f"{flow}.png", dpi=80)
        print(f"{flow:>14}", *(f"   {name}: KL {kl:.4f}" for name, kl in divergences.items()))


if __name__ == "__main__":
    main()
