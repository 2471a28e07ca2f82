"""Train from energy: a spline flow fitted to an unnormalised log density, epoch by epoch.

The experiment of a tutorial of zuko:

    log U(x) = sin(pi x_1) - 2 (x_1^2 + x_2^2 - 2)^2,

an inverted neural spline flow of 3 transforms with hidden layers (64, 64) and 8 bins, and 8 epochs
of 256 steps with 256 draws each. The loss is E[log q - log U], at best -log Z = -1.6120 (by
quadrature), so the distance KL(q, p) is what is left above it. Once as in the original, by Adam
with step size 1e-3, and once by `fit_guide` with the same number of steps and draws; gradients are
path gradients in both.

    python examples/train_from_energy.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

import pyroflows as pf

LOG_Z = 1.611997
ORIGINAL = -1.5888  # the loss that the tutorial ends at
NUM_EPOCHS, EPOCH, NUM_PARTICLES = 8, 256, 256
FLOW = {"num_layers": 3, "hidden_dims": (64, 64), "num_bins": 8}


def log_energy(x: Tensor) -> Tensor:
    """log U of points with shape (*, 2)."""
    return (math.pi * x[..., 0]).sin() - 2 * (x.square().sum(-1) - 2) ** 2


class Run(NamedTuple):
    guide: pf.AutoFlow
    losses: list[float]
    kl: float
    ess: float
    log_z: float
    seconds: float


def by_adam(target: Callable, guide: pf.AutoFlow, num_epochs: int, seed: int) -> list[float]:
    """As the original does it, with Pyro's own loop."""
    svi = pyro.infer.SVI(target, guide, pyro.optim.Adam({"lr": 1e-3}), pf.PathELBO(NUM_PARTICLES))
    return [svi.step() for _ in range(num_epochs * EPOCH)]


def by_fit_guide(target: Callable, guide: pf.AutoFlow, num_epochs: int, seed: int) -> list[float]:
    """As this library does it."""
    return pf.fit_guide(
        target,
        guide,
        num_steps=num_epochs * EPOCH,
        num_particles=NUM_PARTICLES,
        seed=seed,
        progress_bar=False,
    ).losses


WAYS = {"Adam": by_adam, "fit_guide": by_fit_guide}


def run(way: str, seed: int, num_epochs: int, num_draws: int = 100_000) -> Run:
    """Train one guide and judge it by fresh draws."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    target = pf.energy_model(log_energy, dim=2)
    guide = pf.AutoFlow(target, "nsf", **FLOW)
    started = perf_counter()
    losses = WAYS[way](target, guide, num_epochs, seed)
    seconds = perf_counter() - started
    with torch.no_grad():
        x, log_q = guide.get_posterior().rsample_and_log_prob((num_draws,))
        log_weights = (log_energy(x) - log_q).double()
    log_z = float(log_weights.logsumexp(0)) - math.log(num_draws)
    ess = float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()) / num_draws
    return Run(guide, losses, LOG_Z - float(log_weights.mean()), ess, log_z, seconds)


def print_epochs(way: str, losses: list[float]) -> None:
    """The loss of each epoch, mean and standard deviation over its steps."""
    print(f"epoch   loss, by {way}")
    for epoch, part in enumerate(torch.tensor(losses).split(EPOCH), 1):
        print(f"{epoch:5d} {part.mean():9.4f} +- {part.std():.4f}")


@torch.no_grad()
def plot(guide: pf.AutoFlow, num_draws: int = 16_384, bins: int = 64):
    """The energy on [-3, 3]^2 beside a histogram of the flow's draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    axis = torch.linspace(-3, 3, 300)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    left.imshow(log_energy(grid).exp().numpy(), origin="lower", extent=(-3, 3, -3, 3))
    left.set(title="U", xlabel="$x_1$", ylabel="$x_2$")
    draws = guide.get_posterior().sample((num_draws,)).numpy()
    right.hist2d(*draws.T, bins=bins, range=((-3, 3), (-3, 3)))
    right.set(title=f"{num_draws:,} draws of the flow", xlabel="$x_1$", aspect="equal")
    return figure


def main(argv: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("train_from_energy"), help="a folder")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args(argv)
    seeds, size = (args.seeds[:1], (1, 1000)) if args.smoke else (args.seeds, (NUM_EPOCHS, 100_000))

    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    for way in WAYS:
        for seed in seeds:
            runs[way].append(run(way, seed, *size))
        print_epochs(way, runs[way][0].losses)
    print(
        f"original: ends at {ORIGINAL}, that is KL {LOG_Z + ORIGINAL:.4f}; the floor {-LOG_Z:.4f}"
    )
    print("\nby          seed      KL     ESS   log Z   error   seconds")
    for way, found in runs.items():
        for seed, one in zip(seeds, found, strict=True):
            print(
                f"{way:<10} {seed:5d} {one.kl:7.4f} {one.ess:7.3f} {one.log_z:7.4f} "
                f"{one.log_z - LOG_Z:7.4f} {one.seconds:9.0f}"
            )
        print(f"{way:<10} median KL {torch.tensor([one.kl for one in found]).median():.4f}")

    args.output.mkdir(parents=True, exist_ok=True)
    plot(runs["Adam"][0].guide).savefig(args.output / "train_from_energy.png", dpi=100)
    print(f"Wrote train_from_energy.png to {args.output}.")
    return [one for found in runs.values() for one in found]


if __name__ == "__main__":
    main()
