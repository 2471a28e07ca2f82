"""Cost of a step against the number of dimensions: coupling flows under slim affine maps.

    python -m tests.benchmarks.scaling
    python -m tests.benchmarks.scaling --dims 16 64 256 1024 4096 --threads 2

One step of ``fit_guide`` with the flow ``realnvp`` under a diagonal or low-rank outer map, 256
draws of a cheap energy, float32: milliseconds, and the peak of memory in a fresh process. The
exponent is the slope of the logarithms, by least squares over all sizes and between the last
two; 1 is linear.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence

from tests.benchmarks._common import add_common_options, print_row, write_json
from tests.benchmarks._peers_race import ContestantError, Stable, race
from tests.benchmarks._peers_worker import CLOCKS, SCALED

_MEGABYTE = 2**20


def exponent(dims: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of log cost over log dimension."""
    x, y = [math.log(d) for d in dims], [math.log(c) for c in costs]
    return statistics.linear_regression(x, y).slope


def measure(stable: Stable, name: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """One row a size."""
    rows = []
    for dim in args.dims:
        task = {"measure": "energy", "dim": dim, "num_draws": args.draws}
        result = race(stable, [name], task, num_rounds=args.rounds, turn=args.turn)[name]
        if result.problem:
            raise ContestantError(f"{name} at D = {dim}: {result.problem}")
        row = {"guide": name, "d": dim, "ms": 1e3 * statistics.median(result.seconds)}
        row["megabytes"] = stable.peak_memory(name, task) / _MEGABYTE
        row["start_seconds"] = result.start_up
        rows.append(row)
    return rows


def exponents(rows: Sequence[dict], name: str) -> dict[str, object]:
    row: dict[str, object] = {"guide": name}
    dims = [r["d"] for r in rows]
    for what in ("ms", "megabytes"):
        costs = [max(r[what], 1e-3) for r in rows]
        row[f"exponent_{what}"] = exponent(dims, costs)
        row[f"last_{what}"] = exponent(dims[-2:], costs[-2:])
    return row


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guides", nargs="+", choices=list(SCALED), default=list(SCALED))
    parser.add_argument("--dims", nargs="+", type=int, default=[16, 64, 256, 1024])
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=float, default=0.25, help="seconds of a turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    add_common_options(parser)
    parser.set_defaults(threads=1)
    args = parser.parse_args(argv)
    if args.smoke:
        args.dims, args.draws, args.rounds, args.turn = [4, 8], 8, 2, 0.0
    rows: list[dict[str, object]] = []
    with Stable(args.threads, args.device, args.clock) as stable:
        for name in args.guides:
            new = measure(stable, name, args)
            for i, row in enumerate(new):
                print_row(row, header=i == 0)
            rows += [*new, exponents(new, name)]
            print_row(rows[-1], header=True)
    kept = ("threads", "device", "clock", "draws")
    write_json(args.output, rows, **{name: getattr(args, name) for name in kept})
    return rows


if __name__ == "__main__":
    main()
