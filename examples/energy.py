"""An energy: draws from an unnormalised log density, and its normaliser.

There is no model and there are no data here, only a function proportional to a density,

    log p(x) = sin(pi x_1) - 2 (x_1^2 + x_2^2 - 2)^2 - log Z,

a ring with three heaps of mass. A flow is fitted to it, and because the constant is known
to be log Z = 1.611997, so is the distance that is left: KL(q, p) = log Z - ELBO.

    python examples/energy.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

import pyroflows as pf

LOG_Z = 1.611997


def sine_ring(x: torch.Tensor) -> torch.Tensor:
    """The log density, up to a constant, of points with shape (*, 2)."""
    radius = x.square().sum(-1)
    return torch.sin(math.pi * x[..., 0]) - 2 * (radius - 2) ** 2


def plot(fit: pf.GuideFit, num_samples: int = 2000):
    """Draw the target, the flow's samples and the learning curve side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    density, samples, curve = figure.subplots(1, 3)

    axis = torch.linspace(-2.5, 2.5, 200)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    with torch.no_grad():
        target = (sine_ring(grid) - LOG_Z).exp()
        flow = fit.guide.log_prob({"x": grid}).exp()
        x = fit.guide.get_posterior().sample((num_samples,))

    density.contourf(axis, axis, target, levels=20, cmap="Blues")
    density.contour(axis, axis, flow, levels=6, colors="k", linewidths=0.5)
    density.set(title="density (lines: the flow)", xlabel="$x_1$", ylabel="$x_2$")

    samples.contour(axis, axis, target, levels=6, cmap="Blues")
    samples.plot(*x.T, ".", color="k", markersize=2, alpha=0.4)
    samples.set(title=f"{num_samples} draws of the flow", xlabel="$x_1$", ylabel="$x_2$")

    kl = [LOG_Z + loss for loss in fit.losses]
    curve.plot(kl, linewidth=0.5)
    curve.set_yscale("symlog", linthresh=1e-2)
    curve.axhline(0, color="k", linewidth=0.5)
    curve.set(title="learning curve", xlabel="step", ylabel="log Z - ELBO (nats)")
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("energy"), help="a folder")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args(argv)

    target = pf.energy_model(sine_ring, dim=2)
    guide = pf.AutoFlow(target, "nsf")
    num_steps = 20 if args.smoke else 2048
    fit = pf.fit_guide(target, guide, num_steps=num_steps, num_particles=256, seed=args.seed)
    print(fit)

    result = fit.diagnostics
    print(f"\nKL(flow, target) = log Z - ELBO = {LOG_Z - result.elbo:.4f} nats")
    print(f"log Z by importance sampling  {result.log_z:.4f} +- {result.log_z_se:.4f}")
    print(f"log Z, known                  {LOG_Z:.4f}")
    print(f"Pareto k-hat                  {result.pareto_k:.2f}")

    args.output.mkdir(parents=True, exist_ok=True)
    plot(fit).savefig(args.output / "energy.png", dpi=150)
    print(f"Wrote energy.png to {args.output}.")


if __name__ == "__main__":
    main()
