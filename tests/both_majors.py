"""The same numbers under both majors of ArviZ: written under one, compared under the other.

    python -m tests.both_majors numbers.json            # where the file is not there: writes it
    python -m tests.both_majors numbers.json            # where it is: compares, to 1e-6

Everything is made of given draws of a model with fixed data, so that nothing but ArviZ, xarray and
this package's use of them can differ. ``.ci/run`` does the one in its first environment and the
other in its second. All plot functions are called as well, and any warning is an error.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyroflows as pf
from pyroflows.diagnostics import _arviz

TOLERANCE = 1e-6
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
NUM = 500
# Draws come from NumPy's generator, as torch's may differ between builds.
RNG = np.random.default_rng(0)


def model(y, sigma, width=5.0):
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=y.dtype), width))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0, dtype=y.dtype)))
    with pyro.plate("school", len(y)):
        eta = pyro.sample("eta", dist.Normal(torch.tensor(0.0, dtype=y.dtype), 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


class Fixed(dist.Normal):
    """A normal law whose draws are those of NumPy's generator."""

    def __init__(self, loc, scale, seed):
        super().__init__(loc, scale)
        self.seed = seed

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.from_numpy(np.random.default_rng(self.seed).standard_normal(shape))
        return self.loc + self.scale * noise

    def expand(self, batch_shape, _instance=None):
        return Fixed(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.seed)


def normal(loc, scale, seed):
    double = {"dtype": torch.float64}
    return Fixed(torch.tensor(loc, **double), torch.tensor(scale, **double), seed)


def guide(spread):
    def drawn(y, sigma, width=5.0):
        pyro.sample("mu", normal(4.2, 3.3 * spread, 1))
        log = dist.transforms.ExpTransform()
        pyro.sample("tau", dist.TransformedDistribution(normal(0.9, spread, 2), log))
        with pyro.plate("school", len(y)):
            pyro.sample("eta", normal(0.1, spread, 3))

    return drawn


def converted(spread, width=5.0):
    fit = SimpleNamespace(
        losses=list(40 + 10 / (1 + np.arange(200))),
        learning_rates=[0.01] * 150 + list(np.linspace(0.01, 0, 50)),
        seconds=1.0, stop_reason="converged", events=((10, "a race"), (150, "a fall")),
    )  # fmt: skip
    return pf.to_inference_data(
        guide(spread), model, model_args=(Y, SIGMA, width), num_samples=NUM, fit=fit, seed=0
    )


def of(prefix, data) -> Iterator[tuple[str, float]]:
    """Numbers of every group."""
    names = data.children if hasattr(data, "children") else data.groups()
    for group in sorted(names):
        if group in ("posterior_predictive", "prior_predictive"):  # torch's generator
            continue
        found = _arviz.get_group(data, group)
        for name, array in sorted(found.data_vars.items()):
            values = np.asarray(array.values, dtype=float)
            finite = values[np.isfinite(values)]
            key = f"{prefix}/{group}/{name}"
            yield f"{key}/dims", float(hash_of(array.dims))
            yield f"{key}/mean", float(finite.mean()) if finite.size else math.nan
            yield f"{key}/last", float(values.ravel()[-1])


def hash_of(dims) -> int:
    return sum(ord(letter) * (i + 1) for i, letter in enumerate(",".join(map(str, dims))))


def table(prefix, frame) -> Iterator[tuple[str, float]]:
    """Numbers of a data frame."""
    for index, row in frame.iterrows():
        for column, value in row.items():
            if isinstance(value, (int, float, np.number)):
                yield f"{prefix}/{index}/{column}", float(value)


def numbers() -> dict[str, float]:
    fits = {"good": converted(1.0), "wide": converted(1.3)}
    other = converted(1.0, width=20.0)
    rng = np.random.default_rng(2)
    reference = {
        "mu": rng.normal(4.2, 3.3, NUM), "tau": np.exp(rng.normal(0.9, 1.0, NUM)),
        "eta": rng.normal(0.1, 1.0, (NUM, 8)),
    }  # fmt: skip
    reference["theta"] = reference["mu"][:, None] + reference["tau"][:, None] * reference["eta"]
    found = dict(of("good", fits["good"]))
    found |= dict(table("compare", pf.compare_fits(fits, reference)))
    found |= dict(table("marginals", pf.marginal_distances(fits, reference)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # says that k-hats are high, as they are
        found |= dict(table("models", pf.compare_models({"narrow": fits["good"], "flat": other})))
    report = pf.loo(fits["good"])
    found |= {"loo/elpd": report.elpd, "loo/se": report.se, "loo/p": report.p_loo}
    found |= {f"loo/k/{i}": float(k) for i, k in enumerate(report.pareto_k.values)}
    plots(fits, reference)
    return found


def plots(fits, reference) -> None:
    """Call every plot function on what this major makes."""
    data = fits["good"]
    figures = [
        *(pf.plot_posteriors(fits, ["mu", "tau"], kind=k) for k in ("density", "forest", "pair")),
        pf.plot_posteriors(fits | {"ref": reference}, ["mu", "tau"], reference="ref"),
        pf.plot_fit(data),
        pf.plot_weights(data),
        *(pf.plot_predictive(data, kind=kind) for kind in ("density", "intervals")),
        pf.plot_flow(pf.build_flow("nsf", 2)),
        pf.plot_density(pf.FlowDensity(2, "affine"), num=20),
        pf.plot_calibration(pf.Calibration({"mu": RNG.integers(0, 100, 200)}, 99)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, figure in enumerate(figures):
            figure.savefig(Path(folder) / f"{number}.png")
        data.to_netcdf(str(Path(folder) / "fit.nc"), engine="h5netcdf")
        assert pf.write_report(data, Path(folder) / "report.html")


def differences(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    told = [f"{name}: only under one" for name in sorted(ours.keys() ^ theirs.keys())]
    for name in ours.keys() & theirs.keys():
        one, two = ours[name], theirs[name]
        same = one == two or (math.isnan(one) and math.isnan(two))
        near = math.isfinite(one) and abs(one - two) <= TOLERANCE * max(1.0, abs(one))
        if not (same or near):
            told.append(f"{name}: {one!r} here, {two!r} there")
    return told


def main(path: str) -> int:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing a major refactor")
    found, file = numbers(), Path(path)
    if not file.exists():
        file.write_text(json.dumps(found, indent=1))
        print(f"Wrote {len(found)} numbers under ArviZ {_arviz.major()}.")
        return 0
    told = differences(found, json.loads(file.read_text()))
    print("\n".join(told) or f"{len(found)} numbers are the same to {TOLERANCE} under both majors.")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
