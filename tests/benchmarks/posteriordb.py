"""Fits posteriors of a posteriordb folder and compares them with its reference draws.

    python -m tests.benchmarks.posteriordb --path posteriordb
    python -m tests.benchmarks.posteriordb --path posteriordb --posteriors all --seeds 0 1 2
    python -m tests.benchmarks.posteriordb --path posteriordb --peers  # other libraries beside it

The folder has the layout of https://github.com/stan-dev/posteriordb and is read where it lies.
The models are written as a user would write them: plain data in the units they came in, and flat
priors where Stan has none. A row: ``mean_error`` is the largest error of a posterior mean in
reference standard deviations and ``sd_error`` the largest relative error of a standard deviation,
from the guide's own draws (``raw_...``) and from weighted ones. Ten thousand draws of each side
alone make up to 0.04 of the one and 3 % of the other. At the end, for each flow: how many
posteriors meet the bars, in their worst seed, which do not, and the median of the seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._common import (
    Judged,
    add_common_options,
    default_dtype,
    fit_and_judge,
    moment_errors,
    print_row,
    write_json,
)
from tests.benchmarks._peers_guides import add_peers_option, judge_peers
from tests.benchmarks._posteriors import POSTERIORS

PATH_VARIABLE = "PYROFLOWS_POSTERIORDB"
MAIN = [
    "eight_schools-eight_schools_noncentered",
    "earnings-logearn_height",
    "kilpisjarvi_mod-kilpisjarvi",
    "mesquite-logmesquite",
    "sblrc-blr",
]

MEAN_BAR, SD_BAR = 0.05, 0.05
WEIGHTED_BAR = {"pareto_k": 0.7, "mean_error": MEAN_BAR, "sd_error": SD_BAR}
RAW_BAR = {"pareto_k": 0.5, "raw_mean_error": MEAN_BAR, "raw_sd_error": SD_BAR}
_NAMED = 8  # of those that miss a bar


class Database:
    """A folder in the layout of posteriordb."""

    def __init__(self, path: Path) -> None:
        inner = path / "posterior_database"
        self.root = inner if inner.is_dir() else path
        if not (self.root / "posteriors").is_dir():
            raise FileNotFoundError(
                f"{path} holds no posterior_database/posteriors: give the root of a clone of "
                "https://github.com/stan-dev/posteriordb."
            )

    def data(self, name: str) -> dict[str, object]:
        data_name = self._info(name)["data_name"]
        return _read_zip(self.root / "data" / "data" / f"{data_name}.json.zip")

    def reference(self, name: str) -> dict[str, Tensor]:
        """Reference draws of each scalar, chains joined."""
        draws_name = self._info(name)["reference_posterior_name"]
        folder = self.root / "reference_posteriors" / "draws" / "draws"
        chains = _read_zip(folder / f"{draws_name}.json.zip")
        return {
            scalar: torch.cat([torch.tensor(c[scalar], dtype=torch.float64) for c in chains])
            for scalar in chains[0]
        }

    def _info(self, name: str) -> dict[str, str]:
        return json.loads((self.root / "posteriors" / f"{name}.json").read_text())


def _read_zip(path: Path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def scalars(draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws by the names Stan gives to scalars: ``beta[1]``, ``sigma``."""
    named = {}
    for name, value in draws.items():
        if value.dim() == 1:
            named[name] = value
        else:
            named |= {f"{name}[{i + 1}]": value[:, i] for i in range(value.shape[1])}
    return named


def measure(
    database: Database,
    name: str,
    flow: str,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    num_steps: int | None = None,
    num_samples: int = 10_000,
    peers: bool = False,
) -> Iterator[dict[str, object]]:
    """The row of our fit, then those of its peers."""
    posterior = POSTERIORS[name]
    with default_dtype(dtype):
        made = {"num_samples": num_samples, "seed": seed}
        made["model_args"] = posterior.prepare(database.data(name), dtype)
        ours = fit_and_judge(posterior.model, flow, num_steps=num_steps, **made)
    truth = {
        scalar: (draws.mean(), draws.std()) for scalar, draws in database.reference(name).items()
    }
    yield _row(name, flow, seed, ours, truth)
    for peer, judged in judge_peers(ours, posterior.model, **made) if peers else ():
        yield _row(name, peer, seed, judged, truth)


def _row(
    name: str, flow: str, seed: int, judged: Judged, truth: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, object]:
    reported = scalars(POSTERIORS[name].report(judged.draws))
    judged = replace(judged, draws=reported)
    errors = moment_errors(judged.moments(), truth)
    raw_errors = moment_errors(judged.moments(weighted=False), truth)
    dtype = next(iter(reported.values())).dtype
    return {
        "posterior": name,
        "d": judged.fit.guide.latent_dim,
        "flow": flow,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "elbo": judged.elbo,
        "log_z": judged.log_z,
        **judged.verdict,
        "raw_mean_error": raw_errors[0],
        "raw_sd_error": raw_errors[1],
        "mean_error": errors[0],
        "sd_error": errors[1],
        "steps": judged.steps,
        "seconds": judged.seconds,
        "problem": judged.problem,
    }


def summary(rows: Sequence[dict[str, object]]) -> Iterator[str]:
    """How many posteriors meet each bar in every seed, and how long a fit took, for each flow."""
    for flow in dict.fromkeys(row["flow"] for row in rows):
        of_flow = [row for row in rows if row["flow"] == flow]
        names = list(dict.fromkeys(row["posterior"] for row in of_flow))
        yield f"{flow}: median {statistics.median(row['seconds'] for row in of_flow):.3g} s"
        for bars in (WEIGHTED_BAR, RAW_BAR):
            missed = {row["posterior"] for row in of_flow if not _meets(row, bars)}
            told = ", ".join(f"{name} <= {bar}" for name, bar in bars.items())
            which = f"; not {', '.join(sorted(missed))}" if 0 < len(missed) <= _NAMED else ""
            yield f"  {len(names) - len(missed)} of {len(names)}: {told}{which}"


def _meets(row: dict[str, object], bars: dict[str, float]) -> bool:
    return all(row[name] <= bar for name, bar in bars.items())  # what is NaN meets none


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get(PATH_VARIABLE)
    parser.add_argument("--path", type=Path, default=default, help=f"or ${PATH_VARIABLE}")
    parser.add_argument("--posteriors", nargs="+", default=MAIN, metavar="NAME", help="or 'all'")
    parser.add_argument("--flows", nargs="+", default=["auto"], metavar="NAME", help="or 'all'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--num-steps", type=int, help="default: that of fit_guide")
    parser.add_argument("--float64", action="store_true", help="data and guide in float64")
    add_peers_option(parser)
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.path is None:
        parser.error(f"no database: give --path or set {PATH_VARIABLE} to a clone of posteriordb")
    if args.threads:
        torch.set_num_threads(args.threads)
    names = list(POSTERIORS) if args.posteriors == ["all"] else args.posteriors
    if unknown := sorted(set(names) - set(POSTERIORS)):
        parser.error(f"no model was written for {unknown}: choose from {list(POSTERIORS)}")
    flows = pf.available_flows() if args.flows == ["all"] else args.flows
    settings = {"num_steps": args.num_steps, "num_samples": 10_000}
    if args.smoke:
        settings = {"num_steps": args.num_steps or 3, "num_samples": 1000}
    measured = {"dtype": torch.float64 if args.float64 else torch.float32, "peers": args.peers}

    database, rows = Database(args.path), []
    for name, flow, seed in itertools.product(names, flows, args.seeds):
        for row in measure(database, name, flow, seed, **measured, **settings):
            rows.append(row)
            print_row(row, header=len(rows) == 1)
            write_json(args.output, rows, **settings)
    print(*summary(rows), sep="\n")
    return rows


if __name__ == "__main__":
    main()
