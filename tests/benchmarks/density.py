"""Fits densities to toys whose truth is known, and to real data.

    python -m tests.benchmarks.density                          # the toys
    python -m tests.benchmarks.density --path FOLDER            # real sets in FOLDER too
    python -m tests.benchmarks.density --posteriordb CLONE      # and draws of posteriors
    python -m tests.benchmarks.density --peers                  # other libraries in the same run

A toy has 10,000 points to learn from, 10,000 fresh ones to judge by, and 1,000 steps of batch 256:
``gap`` is the true log-likelihood of the latter less that reached, in nats. So has ``conditional``,
a number given a covariate; its ``shuffled`` is what is lost if rows get each other's covariates.
A real set is a file ``NAME.csv.gz`` without a header in FOLDER, the reference draws of a posterior
of posteriordb, or images of scikit-learn: shuffled by ``RandomState(0)``, a tenth for the test, a
tenth for validation, in units of the standard deviations of the rest; the fit has 18 seconds.
What is not found is left out, and named.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._common import add_common_options, print_row, write_json
from tests.benchmarks._density_peers import PEERS, fit_peer
from tests.benchmarks._density_sets import MissingSet, rows_of
from tests.benchmarks._density_toys import TOYS, draw_conditional, score_conditional
from tests.benchmarks.posteriordb import PATH_VARIABLE as DATABASE_VARIABLE

PATH_VARIABLE = "PYROFLOWS_DENSITY"
SETS = ("magic", "protein", "diamonds", "lotka_volterra", "digits", "patches")
CONDITIONAL = "conditional"
NUM_POINTS, NUM_STEPS, SECONDS = 10_000, 1_000, 18.0


def toy_rows(
    name: str, seed: int, num_points: int, num_steps: int, peers: Sequence[str]
) -> Iterator[dict[str, object]]:
    """The row of our fit to a toy, then those of its peers."""
    torch.manual_seed(seed)
    train, test = (TOYS[name].draw(num_points).float() for _ in range(2))
    truth = float(TOYS[name].log_prob(test.double()).mean())
    limits = {"num_steps": num_steps, "seconds": None}
    for row in _rows(name, seed, (train, train[:0], test), peers, limits):
        yield row | {"gap": truth - row["log_likelihood"]}


def set_rows(
    name: str, rows: np.ndarray, seed: int, seconds: float, peers: Sequence[str]
) -> Iterator[dict[str, object]]:
    """The row of our fit to a real set, then those of its peers."""
    limits = {"num_steps": None, "seconds": seconds}
    for row in _rows(name, seed, standardized(rows), peers, limits):
        yield row | {"gap": math.nan}


def conditional_row(seed: int, num_points: int, num_steps: int) -> dict[str, object]:
    """The row of our fit to numbers given a covariate."""
    torch.manual_seed(seed)
    (x, c), (test, test_c) = (draw_conditional(num_points) for _ in range(2))
    truth = float(score_conditional(test, test_c).mean())
    density, started = pf.FlowDensity(1, context_dim=1), time.process_time()
    fit = pf.fit_density(
        density,
        x.float(),
        context=c.float(),
        test=(test.float(), test_c.float()),
        num_steps=num_steps,
        seed=seed,
        progress_bar=False,
    )
    found = (fit.log_likelihood, 2 * fit.log_likelihood_se, fit.num_steps)
    row = _row(CONDITIONAL, "pyroflows", seed, found, fit.gaussian, started)
    with torch.no_grad():
        moved = density(test_c[torch.randperm(len(test_c))].float()).log_prob(test.float()).mean()
    return row | {"gap": truth - fit.log_likelihood, "shuffled": fit.log_likelihood - float(moved)}


def standardized(rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to learn from, to choose by and to judge by."""
    rows = rows[np.random.RandomState(0).permutation(len(rows))]
    tenth = len(rows) // 10
    test, validation, train = rows[:tenth], rows[tenth : 2 * tenth], rows[2 * tenth :]
    loc, scale = train.mean(0), train.std(0)
    return tuple(torch.tensor((p - loc) / scale).float() for p in (train, validation, test))


def _rows(
    name: str,
    seed: int,
    parts: tuple[Tensor, Tensor, Tensor],
    peers: Sequence[str],
    limits: dict[str, object],
) -> Iterator[dict[str, object]]:
    train, validation, test = parts
    torch.manual_seed(seed)
    density, started = pf.FlowDensity(train.shape[1]), time.process_time()
    fit = pf.fit_density(
        density,
        train,
        validation=validation if len(validation) else 0.1,
        test=test,
        num_steps=limits["num_steps"],
        time_budget=limits["seconds"],
        seed=seed,
        progress_bar=False,
    )
    found = (fit.log_likelihood, 2 * fit.log_likelihood_se, fit.num_steps)
    yield _row(name, "pyroflows", seed, found, fit.gaussian, started)
    for peer in peers:
        started = time.process_time()
        scores, num_steps = fit_peer(peer, parts, seed=seed, **limits)
        error = 2 * float(scores.std()) / math.sqrt(len(scores))
        found = (float(scores.mean()), error, num_steps)
        yield _row(name, peer, seed, found, fit.gaussian, started)


def _row(
    name: str,
    library: str,
    seed: int,
    found: tuple[float, float, int],
    gaussian: float,
    started: float,
) -> dict[str, object]:
    return {
        "target": name,
        "library": library,
        "seed": seed,
        "log_likelihood": found[0],
        "two_se": found[1],
        "gaussian": gaussian,
        "shuffled": math.nan,
        "steps": found[2],
        "cpu_seconds": time.process_time() - started,
    }


def _all_rows(options: argparse.Namespace, peers: Sequence[str]) -> Iterator[dict[str, object]]:
    size = (500, 5) if options.smoke else (NUM_POINTS, NUM_STEPS)
    for toy, seed in product(options.toys, options.seeds):
        if toy == CONDITIONAL:
            yield conditional_row(seed, *size)
        else:
            yield from toy_rows(toy, seed, *size, peers)
    seconds = 0.5 if options.smoke else options.seconds
    for name in options.sets:
        try:
            rows = rows_of(name, options.path, options.posteriordb)
        except MissingSet as error:
            print(f"left out: {error}")
            continue
        for seed in options.seeds:
            yield from set_rows(name, rows, seed, seconds, peers)


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Run the benchmark; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, default=os.environ.get(PATH_VARIABLE))
    parser.add_argument("--posteriordb", type=Path, default=os.environ.get(DATABASE_VARIABLE))
    toys = [*TOYS, CONDITIONAL]
    parser.add_argument("--toys", nargs="*", default=toys, choices=toys)
    parser.add_argument("--sets", nargs="*", default=list(SETS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--peers", nargs="*", default=None, choices=list(PEERS))
    add_common_options(parser)
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    peers = list(PEERS) if options.peers == [] else options.peers or []
    rows: list[dict[str, object]] = []
    for row in _all_rows(options, peers):
        print_row(row, header=not rows)
        rows.append(row)
    write_json(options.output, rows, seconds=options.seconds)
    return rows


if __name__ == "__main__":
    main()
