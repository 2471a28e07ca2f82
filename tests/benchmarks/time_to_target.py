"""Seconds until a fit is good, and until 4,000 draws are effective: the whole, start included.

    python -m tests.benchmarks.time_to_target --path folder-of-the-credit-data
    python -m tests.benchmarks.time_to_target --targets funnel correlated_64 --cap 60

The gap is log Z - ELBO, with log Z known; the bar is 0.05 nats. Each contestant runs in a process
of its own with the same threads, and its seconds count from after the imports: finding a start,
compiling, fitting, but not the watching of the gap. ``pyroflows`` is ``fit_guide`` at its
defaults, run to its own end; ``pyroflows 100 steps`` is a fit that is told to be short, with
``num_steps=100``. Pyro's guides (a full-rank normal, and a flow of three autoregressive
spline layers) run under ``SVI``, and a spline flow of zuko under a loop by hand, each with 256
draws a step and Adam at 0.01 and 0.001, until the bar or the cap is reached.

Effective draws: importance weights for ``pyroflows``, counted from the start of the fit to the
last draw (``earliest_4000``: had a fit been ended as soon as its gap was below the bar). For NUTS
the smallest bulk ESS over all coordinates: 4 chains of 1,000 draws after 1,000 of warm-up in
NumPyro (compilation counted, three ways of running chains), and one chain of a quarter of that in
Pyro, scaled up in proportion.

The credit data are read from ``--path`` (or the folder that PYROFLOWS_TARGETS names), a folder
with ``german.data-numeric`` of UCI's Statlog German credit; without it the target is left out.
On a busy machine ``--clock cpu`` counts the seconds that a process computed; it is right for one
thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks._common import add_common_options, write_json
from tests.benchmarks._peers_fit import FITS
from tests.benchmarks._peers_nuts import SAMPLERS
from tests.benchmarks._peers_race import ROOT
from tests.benchmarks._peers_targets import PATH_VARIABLE, POSTERIORS, german_credit_data
from tests.benchmarks._peers_worker import CLOCKS

_COLUMNS = (
    "seconds_to_gap",
    "seconds_to_4000",
    "earliest_4000",
    "seconds",
    "gap",
    "ess",
    "effective",
    "steps",
)
_GRACE = 600.0  # seconds beyond the cap after which a process is ended


def measure(target: str, contestant: str, args: argparse.Namespace) -> dict[str, object]:
    """Run one contestant in a process of its own."""
    command = {"target": target, "contestant": contestant, "bar": args.bar, "cap": args.cap}
    kept = ("seed", "threads", "num_draws", "clock")
    command |= {name: getattr(args, name) for name in kept}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    environment["OMP_NUM_THREADS"] = str(args.threads)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks._peers_fit", json.dumps(command)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=args.cap + _GRACE,
        )
    except subprocess.TimeoutExpired:
        return {"target": target, "contestant": contestant, "problem": "far beyond the cap: ended"}
    lines = done.stdout.splitlines()
    reply = json.loads(lines[-1]) if lines else {"problem": f"ended with code {done.returncode}"}
    return {"target": target, "contestant": contestant, "problem": None, **reply}


def show(row: dict[str, object], cap: float) -> None:
    if row["problem"]:
        print(f"{row['contestant']:22}  {row['problem']}", flush=True)
        return
    cells = []
    for name in _COLUMNS:
        value = row.get(name)
        missed = name == "seconds_to_gap" and "gap" in row and value is None
        text = f"> {min(cap, row['seconds']):.0f}" if missed else "-"
        cells.append(text if value is None else f"{value:.4g}")
    print(f"{row['contestant']:22}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*FITS, *SAMPLERS]
    parser.add_argument("--targets", nargs="+", choices=list(POSTERIORS), default=list(POSTERIORS))
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="CONTESTANT")
    parser.add_argument("--path", type=Path, help="folder of the credit data")
    parser.add_argument("--bar", type=float, default=0.05, help="gap to reach, in nats")
    parser.add_argument("--cap", type=float, default=120.0, help="seconds for a fit")
    parser.add_argument("--num-draws", type=int, default=1000, help="of a chain of NUTS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    add_common_options(parser)
    parser.set_defaults(threads=1)
    args = parser.parse_args(argv)
    if args.path:
        os.environ[PATH_VARIABLE] = str(args.path.resolve())
    if args.smoke:
        args.cap, args.num_draws = 1.0, 40
    return args


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    args = parse(argv)
    rows: list[dict[str, object]] = []
    for target in args.targets:
        print(f"\n{target}, gap {args.bar:g}, {args.threads} threads, cap {args.cap:g} s")
        if target == "german_credit":
            try:
                german_credit_data()
            except FileNotFoundError as error:
                print(f"left out: {error}")
                continue
        print(f"{'':22}" + "".join(f"{name:>16}" for name in _COLUMNS))
        for contestant in args.only:
            if contestant in SAMPLERS and "eight" not in target and "credit" not in target:
                continue
            rows.append(measure(target, contestant, args))
            show(rows[-1], args.cap)
    kept = ("bar", "cap", "num_draws", "seed", "threads", "clock")
    write_json(args.output, rows, **{name: getattr(args, name) for name in kept})
    return rows


if __name__ == "__main__":
    main()
