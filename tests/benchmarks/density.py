"""Fits densities to toys whose truth is known, and to real data.

    python -m tests.benchmarks.density                          # the toys
    python -m tests.benchmarks.density --path FOLDER            # real sets in FOLDER too
    python -m tests.benchmarks.density --peers                  # other libraries in the same run

A toy has 10,000 points to learn from, 10,000 fresh ones to judge by, and 1,000 steps of batch 256:
``gap`` is the true log-likelihood of the latter less that reached, in nats. A real set is a file
``NAME.csv.gz`` without a header in FOLDER: shuffled by ``RandomState(0)``, a tenth for the test,
a tenth for validation, in units of the standard deviations of the rest; the fit has 18 seconds.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._common import add_common_options, print_row, write_json
from tests.benchmarks._density_peers import PEERS, fit_peer
from tests.benchmarks._density_toys import TOYS

PATH_VARIABLE = "PYROFLOWS_DENSITY"
SETS = ("magic", "protein")
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
    path: Path, name: str, seed: int, seconds: float, peers: Sequence[str]
) -> Iterator[dict[str, object]]:
    """The row of our fit to a real set, then those of its peers."""
    parts = standardized(np.loadtxt(path / f"{name}.csv.gz", delimiter=","))
    limits = {"num_steps": None, "seconds": seconds}
    for row in _rows(name, seed, parts, peers, limits):
        yield row | {"gap": math.nan}


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
        "steps": found[2],
        "cpu_seconds": time.process_time() - started,
    }


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Run the benchmark; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, default=os.environ.get(PATH_VARIABLE))
    parser.add_argument("--toys", nargs="*", default=list(TOYS), choices=list(TOYS))
    parser.add_argument("--sets", nargs="*", default=list(SETS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--peers", nargs="*", default=None, choices=list(PEERS))
    add_common_options(parser)
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    peers = list(PEERS) if options.peers == [] else options.peers or []
    size = (500, 5) if options.smoke else (NUM_POINTS, NUM_STEPS)
    jobs = [toy_rows(toy, seed, *size, peers) for toy in options.toys for seed in options.seeds]
    if options.path is None:
        print(f"no real sets: give their folder by --path or {PATH_VARIABLE}")
    else:
        seconds = 0.5 if options.smoke else options.seconds
        given = (Path(options.path), seconds, peers)
        jobs += [set_rows(given[0], n, s, *given[1:]) for n in options.sets for s in options.seeds]
    rows: list[dict[str, object]] = []
    for row in (row for job in jobs for row in job):
        print_row(row, header=not rows)
        rows.append(row)
    write_json(options.output, rows, seconds=options.seconds)
    return rows


if __name__ == "__main__":
    main()
