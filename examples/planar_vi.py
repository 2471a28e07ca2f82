"""Variational inference with planar flows: four lobes of mass from bends of a normal.

The first experiment of Rezende and Mohamed, Variational Inference with Normalizing Flows (2015): a
density known up to its normaliser,

    log p(z) = -((|z| - 4) / 0.4)^2 / 2
               + log(exp(-((z_1 - 2) / 0.8)^2 / 2) + exp(-((z_1 + 2) / 0.8)^2 / 2)) - log Z,

and 16 planar layers z + u tanh(w'z + b) on a normal, trained by RMSprop on the free energy of 40
draws a step, over 10,000 steps. As log Z = 2.313289 is known (by quadrature), so is the distance
KL(q, p) = log Z + free energy. Beside it: what `fit_guide` finds by itself with the default guide,
whose middle layers are splines.

Layers are invertible by construction here. So that no lobe is lost, the energy is switched on
slowly as in the paper, times 0.01 at first and 1 from half of the steps on; and the normal is wide
at the start, of scale 3, and its location and scales are trained. The step size falls from 0.01 to
zero, linearly; RMSprop's average of squares decays by 0.99 a step.

Then the paper's energies U1 to U4, on the box [-4, 4]^2 (U2 to U4 have no normaliser on the plane),
with 2, 8 and 32 layers: 2,000 steps of 200 draws, from step size 0.02, for the first seed.

    python examples/planar_vi.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

import pyroflows as pf

Energy = Callable[[Tensor], Tensor]
ORIGINAL = 0.078  # KL of a run with unconstrained planar layers, after 5,000 steps
ARCS = "two arcs"
LOG_Z = {ARCS: 2.313289, "U1": 1.877502, "U2": 2.082089, "U3": 2.641705, "U4": 2.684568}
NUM_LAYERS, DEPTHS, NUM_DRAWS = 16, (2, 8, 32), 100_000
MOMENTS = (0, 0.1, 0.25, 0.5)  # of the training, to look at
BOX = biject_to(constraints.interval(-4.0, 4.0))


def _heaps(x: Tensor, place: float, scale: float) -> Tensor:
    return torch.logaddexp(*(-0.5 * ((x - side) / scale) ** 2 for side in (-place, place)))


def _bands(z: Tensor, gap: Tensor, scale: float) -> Tensor:
    off = z[..., 1] - (math.pi * z[..., 0] / 2).sin()
    return torch.logaddexp(-0.5 * (off / scale) ** 2, -0.5 * ((off + gap) / 0.35) ** 2)


ENERGIES: dict[str, Energy] = {  # log densities, up to a constant
    ARCS: lambda z: _heaps(z[..., 0], 2, 0.8) - 0.5 * ((z.norm(dim=-1) - 4) / 0.4) ** 2,
    "U1": lambda z: _heaps(z[..., 0], 2, 0.6) - 0.5 * ((z.norm(dim=-1) - 2) / 0.4) ** 2,
    "U2": lambda z: -0.5 * ((z[..., 1] - (math.pi * z[..., 0] / 2).sin()) / 0.4) ** 2,
    "U3": lambda z: _bands(z, 3 * (-0.5 * ((z[..., 0] - 1) / 0.6) ** 2).exp(), 0.35),
    "U4": lambda z: _bands(z, 3 * ((z[..., 0] - 1) / 0.3).sigmoid(), 0.4),
}


def boxed(energy: Energy) -> Energy:
    """The same on the box, in coordinates that know no bounds."""

    def log_density(y: Tensor) -> Tensor:
        z = BOX(y)
        return energy(z) + BOX.log_abs_det_jacobian(y, z).sum(-1)

    return log_density


class Approximation(nn.Module):
    """Planar layers on a normal, both trained."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.base = pf.build_base("diagonal_normal", 2)
        self.flow = pf.build_flow("planar", 2, num_layers=num_layers)
        with torch.no_grad():
            self.base.raws()["log_scale"].fill_(math.log(3.0))

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """Draws and their log densities, in one pass."""
        base = self.base.distribution()
        noise = base.rsample((num,))
        z, log_det = self.flow.forward_and_log_det(noise)
        return z, base.log_prob(noise) - log_det


class Run(NamedTuple):
    """A trained approximation and what it is worth."""

    q: Approximation
    kl: float
    shares: list[float]  # of draws, by lobe
    frames: dict[int, Tensor]  # a thousand draws, by step
    seconds: float


def train(energy: Energy, q: Approximation, num_steps: int, batch: int, lr: float) -> dict:
    """Minimise the free energy E[log q - log p]; return draws of some steps."""
    kept, frames = {}, {int(num_steps * moment) for moment in MOMENTS}
    optimizer = torch.optim.RMSprop(q.parameters(), lr=lr)
    for step in range(num_steps):
        if step in frames:
            kept[step] = q.draw(1000)[0].detach()
        done = step / num_steps
        optimizer.param_groups[0]["lr"] = lr * (1 - done)
        z, log_q = q.draw(batch)
        loss = (log_q - min(1.0, 0.01 + 2 * done) * energy(z)).mean()
        optimizer.zero_grad()
        loss.backward()
        # one draw far out has a gradient that the average of squares remembers for long
        nn.utils.clip_grad_norm_(q.parameters(), 100.0)
        optimizer.step()
    return kept


def run(name: str, num_layers: int, num_steps: int, batch: int, lr: float) -> Run:
    """Train, and measure with fresh draws."""
    energy = ENERGIES[name] if name == ARCS else boxed(ENERGIES[name])
    q = Approximation(num_layers)
    started = perf_counter()
    frames = train(energy, q, num_steps, batch, lr)
    seconds = perf_counter() - started
    with torch.no_grad():
        z, log_q = q.draw(NUM_DRAWS)
        kl = LOG_Z[name] + float((log_q - energy(z)).mean())
    return Run(q, kl, lobes(z), frames | {num_steps: z[:1000]}, seconds)


def lobes(z: Tensor) -> list[float]:
    """Which share of draws lies in each quadrant, where a lobe has one quarter."""
    quadrant = 2 * (z[:, 0] > 0).long() + (z[:, 1] > 0).long()
    return (torch.bincount(quadrant, minlength=4) / len(z)).tolist()


def fit_default(seed: int, num_steps: int | None) -> tuple[float, list[float], float, str]:
    """KL, lobes, seconds and verdict of the default guide, told nothing but the energy."""
    torch.manual_seed(seed)
    target = pf.energy_model(ENERGIES[ARCS], dim=2)
    guide = pf.AutoFlow(target)
    fit = pf.fit_guide(target, guide, num_steps=num_steps, seed=seed, progress_bar=False)
    with torch.no_grad():
        z, log_q = guide.get_posterior().rsample_and_log_prob((NUM_DRAWS,))
        kl = LOG_Z[ARCS] + float((log_q - ENERGIES[ARCS](z)).mean())
    return kl, lobes(z), fit.seconds, fit.diagnostics.verdict


@torch.no_grad()
def plot(found: Run):
    """The density on [-7, 7]^2, and a thousand draws at moments of the training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, (1 + len(found.frames)) // 2, sharex=True, sharey=True)
    axis = torch.linspace(-7, 7, 300)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    density = (ENERGIES[ARCS](grid) - LOG_Z[ARCS]).exp().numpy()
    levels = [density.max() * share for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    panels.flat[0].imshow(density, origin="lower", extent=(-7, 7, -7, 7), cmap="magma")
    panels.flat[0].set(title="the density")
    for axes, (step, z) in zip(panels.flat[1:], found.frames.items(), strict=True):
        axes.contour(axis, axis, density, levels=levels, colors="k", linewidths=0.3)
        axes.plot(*z.numpy().T, ".", markersize=2)
        axes.set(title=f"1,000 draws, step {step:,}", xlim=(-7, 7), ylim=(-7, 7), aspect="equal")
    for axes in panels[-1]:
        axes.set_xlabel("$z_1$")
    for axes in panels[:, 0]:
        axes.set_ylabel("$z_2$")
    return figure


def report(label: str, kl: float, shares: list[float], seconds: float, verdict: str = "") -> None:
    cells = " ".join(f"{share:.3f}" for share in shares)
    print(f"{label:<25} {kl:7.4f}   {cells} {seconds:9.0f}   {verdict}", flush=True)


def compare_depths(seed: int, num_steps: int) -> dict[str, list[float]]:
    """Print and return the KL to each of the paper's energies, by the number of layers."""
    print(f"\nKL by the number of layers, {num_steps:,} steps of 200 draws, seed {seed}")
    print("energy " + "".join(f"{depth:9d}" for depth in DEPTHS))
    table = {}
    for name in ("U1", "U2", "U3", "U4"):
        torch.manual_seed(seed)
        table[name] = [run(name, depth, num_steps, 200, 0.02).kl for depth in DEPTHS]
        print(f"{name:<7}" + "".join(f"{kl:9.4f}" for kl in table[name]), flush=True)
    return table


def main(argv: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("planar_vi"), help="a folder")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args(argv)
    seeds, steps, steps_by_depth = args.seeds, 10_000, 2_000
    if args.smoke:
        seeds, steps, steps_by_depth = seeds[:1], 40, 10

    print("two arcs                       KL   shares of the lobes       seconds   verdict")
    runs, guides = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        found = run(ARCS, NUM_LAYERS, steps, 40, 0.01)
        runs.append(found)
        report(f"16 planar layers, seed {seed}", found.kl, found.shares, found.seconds)
        guides.append(fit_default(seed, 20 if args.smoke else None))
        report(f"default guide, seed {seed}", *guides[-1])
    for label, kls in (("planar", [r.kl for r in runs]), ("default", [s[0] for s in guides])):
        values = torch.tensor(kls)
        print(f"{label}: median {values.quantile(0.5):.4f}, largest {values.max():.4f}")
    print(f"original: {ORIGINAL:.4f}, one run of unconstrained planar layers, 5,000 steps")
    compare_depths(seeds[0], steps_by_depth)

    args.output.mkdir(parents=True, exist_ok=True)
    plot(runs[0]).savefig(args.output / "planar_vi.png", dpi=100)
    print(f"Wrote planar_vi.png to {args.output}.")
    return runs


if __name__ == "__main__":
    main()
