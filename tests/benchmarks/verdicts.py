"""Asks for the verdict on fits that are broken on purpose, and on ordinary ones.

    python -m tests.benchmarks.verdicts                           # twenty of each
    python -m tests.benchmarks.verdicts --kinds mode improper     # some kinds of them
    python -m tests.benchmarks.verdicts --measure log_z           # errors of log Z in their own

A row: ``mean_error`` is the largest error of a mean of the guide's own draws, in true standard
deviations, ``sd_error`` the largest relative error of a standard deviation; they say what the fit
is, whatever the verdict: good where neither exceeds a tenth (``honest`` says whether the case is
what it is called). A fit is flagged if its verdict is not "usable", and ``right`` says whether it
should be. ``rise`` is what the bound still gained in 100 steps, in nats, where that is known.

The second measure: ``errors`` is the error of log Z in standard errors of its own, ``within``
whether that is at most three.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator, Sequence

import pyro
import torch

import pyroflows as pf
from tests.benchmarks._common import (
    add_common_options,
    default_dtype,
    mean_and_sd,
    moment_errors,
    print_row,
    write_json,
)
from tests.benchmarks._verdict_cases import BROKEN, GOOD, Case
from tests.benchmarks._verdict_log_z import ROUTES, log_z_rows
from tests.benchmarks._verdict_posteriors import Posterior

BAR = 0.1  # of means, in true standard deviations, and of standard deviations
MOST_MISSED = 1  # broken fits called usable
MOST_ALARMS = 1  # good fits not called usable
WITHIN = 0.95  # share of errors of at most three standard errors
KINDS = list(dict.fromkeys(case.kind for case in [*BROKEN, *GOOD]))


def judge(
    case: Case, *, num_steps: int | None = None, num_samples: int = 200_000, seed: int = 0
) -> dict[str, object]:
    """Fit, ask for the verdict, and measure what the fit really is."""
    with default_dtype(case.dtype), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict has to say it
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        posterior = case.posterior()
        guide = case.make_guide(posterior.model)
        start, rise = time.perf_counter(), math.nan
        if case.options is None:
            found = pf.importance_diagnostics(posterior.model, guide, seed=seed)
        else:
            options = case.options | ({"num_steps": num_steps} if num_steps else {})
            fit = pf.fit_guide(posterior.model, guide, seed=seed, progress_bar=False, **options)
            found, rise = fit.diagnostics, fit.rise[0]
        seconds = time.perf_counter() - start
        draws = pf.posterior_draws(posterior.model, guide, num_samples=num_samples, seed=seed + 1)
    errors = _errors(draws.values, posterior)
    is_good = max(errors) <= BAR
    return {
        "kind": case.kind,
        "case": case.name,
        "verdict": found.verdict,
        "right": (found.verdict == "usable") == (case.kind == "good"),
        "honest": is_good == (case.kind == "good"),
        "mean_error": errors[0],
        "sd_error": errors[1],
        "k": found.pareto_k,
        "k_se": found.pareto_k_se,
        "marginal_k": found.marginal_k,
        "ess": found.ess,
        "gap": found.log_z - found.elbo,
        "rise": rise,
        "seconds": seconds,
        "reasons": "; ".join(found.reasons),
    }


def _errors(values: dict[str, torch.Tensor], posterior: Posterior) -> tuple[float, float]:
    """Of means and standard deviations of draws; infinite where there is no posterior."""
    if posterior.truth is None:
        return math.inf, math.inf
    num = len(next(iter(values.values())))
    equal = torch.full((num,), 1 / num, dtype=torch.float64)
    moments = {name: mean_and_sd(value, equal) for name, value in values.items()}
    return moment_errors(moments, posterior.truth)


def verdict_rows(cases: Sequence[Case], **settings: int | None) -> Iterator[dict[str, object]]:
    for case in cases:
        yield judge(case, **settings)


def told_of_verdicts(rows: Sequence[dict[str, object]]) -> str:
    """How many of the broken and of the good were flagged, and whether the labels are honest."""
    broken = [row for row in rows if row["kind"] != "good"]
    good = [row for row in rows if row["kind"] == "good"]
    flagged = sum(row["verdict"] != "usable" for row in broken)
    alarms = sum(row["verdict"] != "usable" for row in good)
    wrong = [row["case"] for row in rows if not row["honest"]]
    return (
        f"of {len(broken)} broken fits {flagged} flagged (bar: all but {MOST_MISSED}), of "
        f"{len(good)} good ones {alarms} (bar: {MOST_ALARMS}); not what they are called: "
        f"{', '.join(wrong) or 'none'}"
    )


def told_of_log_z(rows: Sequence[dict[str, object]]) -> str:
    """The share of errors within three standard errors, for each way to log Z."""
    told = []
    for route in ROUTES:
        mine = [row["within"] for row in rows if row["route"] == route]
        if mine:
            told.append(f"{route}: {sum(mine)} of {len(mine)} ({sum(mine) / len(mine):.1%})")
    return f"within three standard errors (bar {WITHIN:.0%}): {', '.join(told)}"


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", choices=("verdicts", "log_z"), default="verdicts")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of verdicts")
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="those with TEXT in the name")
    parser.add_argument("--seeds", nargs="+", type=int, default=None)
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    settings: dict[str, object] = {}
    if args.smoke:
        settings = {"num_steps": 3, "num_samples": 1000}
    rows: list[dict[str, object]] = []
    if args.measure == "log_z":
        made = log_z_rows(args.seeds or range(3), smoke=args.smoke)
    else:
        cases = [case for case in [*BROKEN, *GOOD] if case.kind in args.kinds]
        if args.cases:
            cases = [c for c in cases if any(text in c.name for text in args.cases)]
        if args.smoke:
            cases = [next(c for c in cases if c.kind == kind) for kind in args.kinds]
        made = (r for seed in args.seeds or [0] for r in verdict_rows(cases, seed=seed, **settings))
    for row in made:
        rows.append(row)
        print_row(row, header=len(rows) == 1)
        write_json(args.output, rows, measure=args.measure, **settings)
    print(told_of_log_z(rows) if args.measure == "log_z" else told_of_verdicts(rows))
    return rows


if __name__ == "__main__":
    main()
