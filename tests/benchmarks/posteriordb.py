"""Fits posteriors of a posteriordb folder and compares them with its reference draws.

    python -m tests.benchmarks.posteriordb --path posteriordb
    python -m tests.benchmarks.posteriordb --path posteriordb --posteriors mesquite-logmesquite

The folder has the layout of https://github.com/stan-dev/posteriordb and is read where it lies.
The models are written as a user would write them: plain data in the units they came in, and flat
priors where Stan has none. A row: ``mean_error`` is the largest error of a posterior mean in
reference standard deviations and ``sd_error`` the largest relative error of a standard deviation,
from the guide's own draws (``raw_...``) and from weighted ones.
"""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._common import (
    add_common_options,
    fit_and_judge,
    mean_and_sd,
    print_row,
    verdict_columns,
    write_json,
)
from tests.benchmarks._posteriors import POSTERIORS

PATH_VARIABLE = "PYROFLOWS_POSTERIORDB"
MAIN = [
    "eight_schools-eight_schools_noncentered",
    "earnings-logearn_height",
    "kilpisjarvi_mod-kilpisjarvi",
    "mesquite-logmesquite",
    "sblrc-blr",
]


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


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The precision of a model's own numbers, such as those of its priors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


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
) -> dict[str, object]:
    """One row of the table."""
    posterior = POSTERIORS[name]
    options = {"num_steps": num_steps, "num_samples": num_samples, "seed": seed}
    with default_dtype(dtype):
        model_args = posterior.prepare(database.data(name), dtype)
        judged = fit_and_judge(posterior.model, flow, model_args=model_args, **options)
    reported = scalars(posterior.report(judged.draws))
    equal = torch.full_like(judged.weights, 1 / num_samples)
    raw, weighted = {}, {}
    for scalar, draws in database.reference(name).items():
        truth = draws.mean(), draws.std()
        raw[scalar] = _errors(mean_and_sd(reported[scalar], equal), truth)
        weighted[scalar] = _errors(mean_and_sd(reported[scalar], judged.weights), truth)
    result = judged.fit.diagnostics
    return {
        "posterior": name,
        "d": judged.fit.guide.latent_dim,
        "flow": flow,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "elbo": result.elbo,
        "log_z": result.log_z,
        **verdict_columns(judged),
        "raw_mean_error": max(mean for mean, _ in raw.values()),
        "raw_sd_error": max(sd for _, sd in raw.values()),
        "mean_error": max(mean for mean, _ in weighted.values()),
        "sd_error": max(sd for _, sd in weighted.values()),
        "steps": len(judged.fit.losses),
        "seconds": judged.seconds,
    }


def _errors(moments: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> tuple[float, float]:
    (mean, sd), (true_mean, true_sd) = moments, truth
    return abs((mean - true_mean) / true_sd).item(), abs(sd / true_sd - 1).item()


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get(PATH_VARIABLE)
    parser.add_argument("--path", type=Path, default=default, help=f"or ${PATH_VARIABLE}")
    parser.add_argument("--posteriors", nargs="+", default=MAIN, metavar="NAME", help="or 'all'")
    parser.add_argument("--flows", nargs="+", default=["nsf"], metavar="NAME", help="or 'all'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--num-steps", type=int, help="default: that of fit_guide")
    parser.add_argument("--float64", action="store_true", help="data and guide in float64")
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
    num_steps, num_samples = args.num_steps, 10_000
    if args.smoke:
        num_steps, num_samples = num_steps or 3, 1000
    dtype = torch.float64 if args.float64 else torch.float32

    database, rows = Database(args.path), []
    for name in names:
        for flow in flows:
            for seed in args.seeds:
                options = {"dtype": dtype, "num_steps": num_steps, "num_samples": num_samples}
                rows.append(measure(database, name, flow, seed, **options))
                print_row(rows[-1], header=len(rows) == 1)
    write_json(args.output, rows, num_steps=num_steps, num_samples=num_samples)
    return rows


if __name__ == "__main__":
    main()
