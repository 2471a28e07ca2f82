"""How often intervals of the default fit hold the truth, over simulated eight-schools data.

    python -m tests.benchmarks.coverage --workers 2 --checkpoint coverage.jsonl   # 200 data sets
    python -m tests.benchmarks.coverage --smoke                                   # three short fits

The non-centred model; each data set is made by the model from parameters of its prior, and fitted
by ``AutoFlow`` and ``fit_guide`` at their defaults. A row a quantity: how often 50 and 90 %
intervals hold the truth, in per cent with the standard error, and the p-value of its ranks as
uniform. An interrupted run goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import pyroflows as pf
from examples.eight_schools import EFFECT, ERROR, noncentered
from tests.benchmarks._common import add_common_options, write_json

LEVELS = (0.5, 0.9)
NUM_SIMULATIONS = 200


def rows_of(found: pf.Calibration) -> list[dict[str, object]]:
    """A row for each quantity, and one for all."""
    p_values, rows = found.p_values, []
    by_level = {level: found.coverage(level) for level in LEVELS}
    for name, p in p_values.items():
        row = {"quantity": name, "p": p}
        for level, covered in by_level.items():
            row |= _shares(level, *covered[name])
        rows.append(row)
    overall = {"quantity": "all", "p": min(1.0, min(p_values.values()) * len(p_values))}
    for level in LEVELS:
        overall |= _shares(level, *found.overall_coverage(level))
    return [*rows, overall]


def _shares(level: float, share: float, error: float) -> dict[str, float]:
    return {f"held_{100 * level:.0f}": 100 * share, f"error_{100 * level:.0f}": 100 * error}


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=NUM_SIMULATIONS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, help="where to go on from")
    parser.add_argument("--seed", type=int, default=0)
    add_common_options(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads or 1)
    short = {"num_steps": 20, "num_particles": 16, "num_diagnostic_samples": 100}
    found = pf.calibrate_guide(
        noncentered,
        model_args=(EFFECT, ERROR),
        num_simulations=3 if args.smoke else args.simulations,
        fit_options=short if args.smoke else None,
        num_workers=args.workers,
        checkpoint=args.checkpoint,
        seed=args.seed,
    )
    print(found)
    rows = rows_of(found)
    write_json(args.output, rows, simulations=found.num_simulations, seed=args.seed)
    return rows


if __name__ == "__main__":
    main()
