"""Fits every registered flow to three targets whose truth is known, and measures the distance.

    python -m tests.benchmarks.families                           # all flows, three seeds
    python -m tests.benchmarks.families --flows nsf planar --tasks two_arc --seeds 0

``two_arc`` and ``correlated`` are fitted as guides: ``start`` and ``gap`` are log Z - ELBO in nats
before and after. The correlated normal, whose start would be the truth, starts at its mode with
unit scale. ``moons`` is fitted as a density to 4,000 points: ``start`` and ``gap`` are the mean of
log p - log q over as many other points, p being known, before and after. As a density a flow is
used in the direction that is the faster one to score in. ``ncsf``, whose coordinates are angles,
has a target of its own, ``torus``, fitted as a guide.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pyro
import torch
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._common import add_common_options, print_row, write_json
from tests.benchmarks._known import KNOWN, two_arc

NUM_STEPS, NUM_DRAWS, NUM_SAMPLES = 500, 128, 10_000
CORRELATION = 0.9
TORUS_LOG_Z = 6.526784
ANGLES = ("ncsf",)
# A solver that adapts takes many times as long where a fit is hard, as two arcs are.
OPTIONS: dict[str, dict[str, object]] = {"cnf": {"solver": "rk4", "num_steps": 5}}


def correlated(x: Tensor) -> Tensor:
    """A normal in five dimensions; each two neighbours are correlated, as in a random walk."""
    first, rest = x[..., 0], x[..., 1:] - CORRELATION * x[..., :-1]
    scale = math.sqrt(1 - CORRELATION**2)
    normal = -0.5 * (first.square() + (rest / scale).square().sum(-1))
    return normal - 4 * math.log(scale) - 2.5 * math.log(2 * math.pi)


def torus(x: Tensor) -> Tensor:
    """Two angles that follow one another, with two heaps on opposite sides of the circle."""
    first, second = x.unbind(-1)
    heaps = torch.logaddexp(2 * (first - 3.0).cos(), (first - 0.5).cos())
    return heaps + 3 * (second - first).cos()


class Moons:
    """Two interleaved half circles with normal noise, and their density."""

    scale = 0.1

    @staticmethod
    def _centres(t: Tensor) -> Tensor:
        upper = torch.stack([t.cos(), t.sin()], -1)
        return torch.stack([upper, torch.tensor([1.0, 0.5]) - upper])

    def sample(self, num: int) -> Tensor:
        t, which = math.pi * torch.rand(num), torch.randint(2, (num,))
        centres = self._centres(t)[which, torch.arange(num)]
        return centres + self.scale * torch.randn(num, 2)

    def log_prob(self, x: Tensor) -> Tensor:
        """By the midpoint rule along both arcs, in steps far below the noise."""
        t = (torch.arange(400) + 0.5) * (math.pi / 400)
        offsets = (x[:, None] - self._centres(t).flatten(0, 1)) / self.scale
        log_normal = -0.5 * offsets.square().sum(-1) - math.log(2 * math.pi * self.scale**2)
        return log_normal.logsumexp(-1) - math.log(800)


def fit_energy(
    flow: str, seed: int, num_steps: int, energy: Callable, dim: int, log_z: float, init: str
) -> dict[str, object]:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model = pf.energy_model(energy, dim=dim)
    guide = pf.AutoFlow(model, flow, model_args=(), init=init, **OPTIONS.get(flow, {}))
    start = elbo_of(model, guide)
    fit = pf.fit_guide(
        model,
        guide,
        num_steps=num_steps,
        num_particles=NUM_DRAWS,
        num_diagnostic_samples=0,
        seed=seed,
        progress_bar=False,
    )
    bad = sum(not math.isfinite(loss) for loss in fit.losses)
    return {"start": log_z - start, "gap": log_z - elbo_of(model, guide), "nan_steps": bad}


def elbo_of(model: Callable, guide: pf.AutoFlow) -> float:
    return pf.importance_diagnostics(model, guide, num_samples=NUM_SAMPLES, seed=1).elbo


def fit_moons(flow: str, seed: int, num_steps: int) -> dict[str, object]:
    pyro.set_rng_seed(seed)
    moons = Moons()
    data, held_out = moons.sample(4000), moons.sample(4000)
    loc, scale = data.mean(0), data.std(0)
    bijector = quicker_to_score(pf.build_flow(flow, 2, **OPTIONS.get(flow, {})))

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = bijector.inverse_and_log_det((x - loc) / scale)
        normal = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
        return normal + log_det - scale.log().sum()

    @torch.no_grad()
    def gap() -> float:
        return (moons.log_prob(held_out) - log_prob(held_out)).mean().item()

    start, bad = gap(), 0
    optimizer = torch.optim.Adam(bijector.parameters(), lr=3e-3, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = -log_prob(data[torch.randint(len(data), (2 * NUM_DRAWS,))]).mean()
        bad += not math.isfinite(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bijector.parameters(), 10.0)
        optimizer.step()
        decay.step()
    return {"start": start, "gap": gap(), "nan_steps": bad}


def quicker_to_score(bijector: pf.Bijector) -> pf.Bijector:
    """The flow or its inverse, whichever takes less to score a point."""
    seconds = []
    for run in (bijector.forward_and_log_det, bijector.inverse_and_log_det):
        x = torch.randn(2 * NUM_DRAWS, bijector.dim)
        run(x)
        start = time.perf_counter()
        for _ in range(3):
            run(x)
        seconds.append(time.perf_counter() - start)
    return bijector.inv if seconds[0] < seconds[1] else bijector


TASKS: dict[str, Callable[[str, int, int], dict[str, object]]] = {
    "two_arc": lambda *a: fit_energy(*a, two_arc, 2, KNOWN["two_arc"][1], "auto"),
    "correlated": lambda *a: fit_energy(*a, correlated, 5, 0.0, "point"),
    "moons": fit_moons,
    "torus": lambda *a: fit_energy(*a, torus, 2, TORUS_LOG_Z, "auto"),
}


def measure(task: str, flow: str, seed: int, num_steps: int) -> dict[str, object]:
    """One row of the table."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = TASKS[task](flow, seed, num_steps)
    seconds = time.perf_counter() - start
    return {"target": task, "flow": flow, "seed": seed, **found, "seconds": seconds}


def table(rows: list[dict]) -> str:
    """The gaps in Markdown, a line a flow: median and worst of the seeds."""
    flows, tasks = (list(dict.fromkeys(row[k] for row in rows)) for k in ("flow", "target"))
    lines = ["| flow | " + " | ".join(tasks) + " |", "| --- |" + " --- |" * len(tasks)]
    for flow in sorted(flows):
        cells = []
        for task in tasks:
            mine = [row for row in rows if (row["flow"], row["target"]) == (flow, task)]
            if not mine:
                cells.append("")
                continue
            gaps = sorted(row["gap"] for row in mine)
            starts = sorted(row["start"] for row in mine)
            shown = f"{starts[len(mine) // 2]:.2f} → {gaps[len(mine) // 2]:.3f} ({gaps[-1]:.3f})"
            cells.append(shown.replace("-0.000", "0.000"))
        lines.append(f"| `{flow}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows", nargs="+", default=pf.available_flows(), metavar="NAME")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-steps", type=int, default=NUM_STEPS)
    parser.add_argument("--table", type=Path, nargs="+", help="only show the table of these files")
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.table:
        rows = [row for path in args.table for row in json.loads(path.read_text())["rows"]]
        print(table(rows))
        return rows
    if args.threads:
        torch.set_num_threads(args.threads)
    num_steps, seeds = (3, [0]) if args.smoke else (args.num_steps, args.seeds)

    rows: list[dict[str, object]] = []
    for flow in args.flows:
        for task in args.tasks:
            if (task == "torus") != (flow in ANGLES):
                continue
            for seed in seeds:
                rows.append(measure(task, flow, seed, num_steps))
                print_row(rows[-1], header=len(rows) == 1)
                write_json(args.output, rows, num_steps=num_steps)
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
