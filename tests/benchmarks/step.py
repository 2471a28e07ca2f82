"""Time and memory of one step of a spline flow, beside the same flow in other libraries.

    python -m tests.benchmarks.step                              # all measures, one thread
    python -m tests.benchmarks.step --measure energy --dims 8 --threads 2
    python -m tests.benchmarks.step --compile                    # compiled steps too
    python -m tests.benchmarks.step --device cuda --draws 8192

One task for all: three autoregressive rational quadratic spline layers, hidden layers (64, 64),
8 bins, 256 draws, float32. The measures:

    energy      draw, score the draws, energy, backward, Adam
    log_prob    score data with the flow that does so in one pass, backward, Adam
    sample      draw from the flow that scores in one pass, without gradients
    score       score given points under the flow that draws in one pass, without gradients
    sample_affine, score_affine     the same with affine layers (MAF and IAF)
    eight_schools, german_credit    an ``energy`` step on the posterior of a Pyro model, beside
                Pyro's guide; the credit data are those of ``time_to_target``
    memory      peak memory of an ``energy`` step at D = 64 with 4,096 draws

``networks`` is the floor: dense networks of the same sizes, forward and backward (forward alone
where there are no gradients). ``pyroflows`` and ``pyroflows path`` are steps of ``fit_guide``,
with the ordinary and the path gradient; ``by hand`` is the flow alone under a loop like the
peers'. Peers that are not installed are named and left out. On a busy machine ``--clock cpu``
counts the seconds that each process computed, not those it waited for a core; it is right for one
thread.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tests.benchmarks._common import add_common_options, write_json
from tests.benchmarks._peers_race import ContestantError, Stable, print_rows, race, rows_of
from tests.benchmarks._peers_targets import PATH_VARIABLE
from tests.benchmarks._peers_worker import CLOCKS, CONTESTANTS, MODELS, contestants

TIMED = ("energy", "log_prob", "sample", "score", "sample_affine", "score_affine")
MEASURES = (*TIMED, *MODELS, "memory")
REFERENCES = ("networks", "zuko", "pyro", "flowjax")
_MODEL_DIMS = {"eight_schools": 10, "german_credit": 25}
_MEGABYTE = 2**20


def measure_memory(stable: Stable, names: list[str], dim: int, draws: int) -> list[dict]:
    task = {"measure": "energy", "dim": dim, "num_draws": draws}
    print(f"\npeak memory of a step: D = {dim}, {draws} draws, in MiB")
    rows: list[dict[str, object]] = []
    for name in names:
        row: dict[str, object] = {"measure": "memory", **task, "contestant": name, "problem": None}
        try:
            row["megabytes"] = stable.peak_memory(name, task) / _MEGABYTE
            print(f"{name:24}{row['megabytes']:10.1f}", flush=True)
        except ContestantError as error:
            row["problem"] = str(error)
            print(f"{name:24}  {error}", flush=True)
        rows.append(row)
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--dims", nargs="+", type=int, default=[2, 8, 32, 64])
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--path", type=Path, help="folder of the credit data")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), help="some contestants")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--turn", type=float, default=0.25, help="seconds of a turn")
    parser.add_argument("--memory-dim", type=int, default=64)
    parser.add_argument("--memory-draws", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--compile", action="store_true", help="time compiled steps too")
    add_common_options(parser)
    parser.set_defaults(threads=1)
    args = parser.parse_args(argv)
    if args.path:
        os.environ[PATH_VARIABLE] = str(args.path.resolve())
    if args.smoke:
        args.dims, args.draws, args.rounds, args.turn = [2], 8, 2, 0.0
        args.memory_dim, args.memory_draws = 2, 8
    return args


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    args = parse(argv)
    rows: list[dict[str, object]] = []
    print(f"{args.draws} draws, {args.threads} threads, {args.device}, {args.clock} clock, float32")
    with Stable(args.threads, args.device, args.clock) as stable:
        for measure in args.measure:
            names = contestants("energy" if measure == "memory" else measure, compiled=args.compile)
            names = [name for name in args.only or names if name in names]
            if measure == "memory":
                rows += measure_memory(stable, names, args.memory_dim, args.memory_draws)
                continue
            for dim in args.dims if measure in TIMED else [_MODEL_DIMS[measure]]:
                task = {"measure": measure, "dim": dim, "num_draws": args.draws}
                results = race(stable, names, task, num_rounds=args.rounds, turn=args.turn)
                new = rows_of(results, REFERENCES, **task)
                print_rows(f"{measure}, D = {dim}", new, REFERENCES)
                rows += new
    kept = ("threads", "device", "clock", "rounds", "turn")
    write_json(args.output, rows, **{name: getattr(args, name) for name in kept})
    return rows


if __name__ == "__main__":
    main()
