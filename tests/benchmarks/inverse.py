"""Time of the direction of an autoregressive flow that goes coordinate by coordinate.

    python -m tests.benchmarks.inverse                      # D = 64, 256 points, one thread
    python -m tests.benchmarks.inverse --dims 8 64 256

Sampling from a masked autoregressive flow and scoring points under an inverse autoregressive one
are the same computation: 3 layers, hidden layers (64, 64), affine or with splines of 8 bins, in
float32. With ``backward``, the gradients of the parameters follow. The contestants take turns
within one run, and ratios are taken round by round:

    steps       this package, each hidden unit computed once
    pass        the same flow in its other direction, one pass of the networks: the floor
    zuko        its inverse, D passes of the networks
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._common import add_common_options, print_row, write_json

LAYERS, HIDDEN, BINS = 3, (64, 64), 8
Run = Callable[[], object]


def ours(dim: int, spline: bool) -> pf.Bijector:
    options = {"num_bins": BINS} if spline else {}
    name = "nsf" if spline else "iaf"
    flow = pf.build_flow(name, dim, num_layers=LAYERS, hidden_dims=HIDDEN, **options)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return flow


def zukos(dim: int, spline: bool) -> torch.nn.Module:
    import zuko

    options = {"transforms": LAYERS, "hidden_features": HIDDEN}
    if spline:
        return zuko.flows.NSF(dim, bins=BINS, **options).transform
    return zuko.flows.MAF(dim, **options).transform


def repeated(function: Callable[[Tensor], tuple], points: Tensor, backward: bool) -> Run:
    def run() -> None:
        with torch.set_grad_enabled(backward):
            value, log_det = function(points)
        if backward:
            (value.square().sum() + log_det.sum()).backward()

    return run


def contestants(dim: int, points: Tensor, spline: bool, backward: bool) -> dict[str, Run]:
    flow = ours(dim, spline)
    runs = {
        "steps": repeated(flow.inverse_and_log_det, points, backward),
        "pass": repeated(flow.forward_and_log_det, points, backward),
    }
    try:
        theirs = zukos(dim, spline)
    except ImportError:
        return runs
    inverse = lambda points: theirs().inv.call_and_ladj(points)  # noqa: E731
    return {**runs, "zuko": repeated(inverse, points, backward)}


def race(runs: dict[str, Run], num_rounds: int, turn: float) -> dict[str, list[float]]:
    """Seconds a run, one number a round, in turns of about so many seconds each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    repeats = {}
    for name, run in runs.items():
        run()  # what is slow once
        start = time.perf_counter()
        run()
        repeats[name] = max(1, round(turn / (time.perf_counter() - start)))
    for i in range(num_rounds):
        for name in list(runs) if i % 2 == 0 else reversed(runs):
            start = time.perf_counter()
            for _ in range(repeats[name]):
                runs[name]()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def row_of(times: dict[str, list[float]], **what: object) -> dict[str, object]:
    row = {**what, **{f"{n} ms": 1e3 * statistics.median(t) for n, t in times.items()}}
    for other in [name for name in times if name != "steps"]:
        ratios = sorted(a / b for a, b in zip(times["steps"], times[other], strict=True))
        row |= {f"to {other}": statistics.median(ratios)}
        row |= {f"lowest to {other}": ratios[0], f"highest to {other}": ratios[-1]}
    return row


def measured(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    for dim in args.dims:
        for spline in (False, True):
            for backward in (False, True):
                points = torch.randn(args.points, dim)
                runs = contestants(dim, points, spline, backward)
                what = {
                    "D": dim,
                    "map": "spline" if spline else "affine",
                    "backward": "yes" if backward else "no",
                }
                yield row_of(race(runs, args.rounds, args.turn), **what)


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[64])
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of a turn, about")
    add_common_options(parser)
    parser.set_defaults(threads=1)
    args = parser.parse_args(argv)
    if args.smoke:
        args.dims, args.points, args.rounds, args.turn = [3], 8, 2, 0.0
    threads_before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{args.points} points, {args.threads} threads, float32")
    rows = []
    for row in measured(args):
        rows.append(row)
        print_row(row, header=len(rows) == 1)
    if "zuko ms" not in rows[0]:
        print("zuko is not installed (pip install zuko), so there is nothing to compare with.")
    write_json(args.output, rows, dims=args.dims, points=args.points, rounds=args.rounds)
    torch.set_num_threads(threads_before)
    return rows


if __name__ == "__main__":
    main()
