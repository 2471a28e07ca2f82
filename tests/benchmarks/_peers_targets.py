"""Posteriors of known evidence, each as a Pyro model and as a plain log density.

The plain density is on the unconstrained coordinates in the order in which the model names its
sites, log-Jacobian included: what a user of a library without models would write.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._schools import EFFECT, ERROR, eight_schools

PATH_VARIABLE = "PYROFLOWS_TARGETS"
_CREDIT_FILE = "german.data-numeric"
_PAIRS, _CORRELATION, _BEND = 32, 0.9, 0.1


@dataclass(frozen=True)
class Posterior:
    """A Pyro model without arguments, its log density, and the log of its evidence."""

    dim: int
    log_z: float
    model: Callable[[], object]
    log_density: Callable[[Tensor], Tensor]


def _normal(x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    return -0.5 * (x / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


# German credit: logistic regression ----------------------------------------------------------


def german_credit_data() -> tuple[Tensor, Tensor]:
    """An intercept and the features in units of their standard deviation; the labels."""
    path = Path(os.environ.get(PATH_VARIABLE, ""))
    file = path if path.is_file() else path / _CREDIT_FILE
    if PATH_VARIABLE not in os.environ or not file.is_file():
        raise FileNotFoundError(
            f"no {_CREDIT_FILE} (UCI, Statlog German credit, numeric): give its folder as --path "
            f"or in {PATH_VARIABLE}"
        )
    rows = [line.split() for line in file.read_text().splitlines() if line.strip()]
    table = torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)
    features = table[:, :-1] / table[:, :-1].std(0, correction=0)
    x = torch.cat([torch.ones(len(table), 1), features], 1)
    dtype = torch.get_default_dtype()
    return x.to(dtype), (table[:, -1] - 1).to(dtype)


def german_credit() -> Posterior:
    x, y = german_credit_data()

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(25), 10.0).to_event(1))
        pyro.sample("default", dist.Bernoulli(logits=w @ x.T).to_event(1), obs=y)

    def log_density(w: Tensor) -> Tensor:
        logits = w @ x.T
        fit = (y * logits - torch.nn.functional.softplus(logits)).sum(-1)
        return fit + _normal(w, 10.0).sum(-1)

    return Posterior(25, -585.098, model, log_density)


# The others ----------------------------------------------------------------------------------


def schools(*, centered: bool) -> Posterior:
    def log_density(u: Tensor) -> Tensor:
        mu, log_tau, rest = u[..., :1], u[..., 1:2], u[..., 2:]
        tau = log_tau.exp()
        theta = rest if centered else mu + tau * rest
        prior = _normal(rest - mu, tau) if centered else _normal(rest)
        half_cauchy = math.log(2 / (5 * math.pi)) - torch.log1p((tau / 5) ** 2) + log_tau
        scalars = _normal(mu, 5.0) + half_cauchy
        return scalars[..., 0] + (prior + _normal(EFFECT - theta, ERROR)).sum(-1)

    return Posterior(10, -31.311349, partial(eight_schools, centered=centered), log_density)


def funnel() -> Posterior:
    def model() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        with pyro.plate("coordinate", 9):
            pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))

    def log_density(u: Tensor) -> Tensor:
        v, x = u[..., :1], u[..., 1:]
        return _normal(v, 3.0)[..., 0] + _normal(x, (v / 2).exp()).sum(-1)

    return Posterior(10, 0.0, model, log_density)


def correlated() -> Posterior:
    """A chain of 64 coordinates, correlated by 0.9 to the next, bent a little, normalised."""
    dim = 2 * _PAIRS
    index = torch.arange(dim)
    covariance = _CORRELATION ** (index[:, None] - index).abs().double()
    tril = torch.linalg.cholesky(covariance)
    whiten, log_det = tril.inverse().float(), float(tril.diagonal().log().sum())

    def log_density(x: Tensor) -> Tensor:
        z = x @ whiten.T
        straight, bent = z[..., ::2], z[..., 1::2]
        bent = bent - _BEND * (straight**2 - 1)
        return (_normal(straight) + _normal(bent)).sum(-1) - log_det

    return Posterior(dim, 0.0, pf.energy_model(log_density, dim), log_density)


POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "german_credit": german_credit,
    "funnel": funnel,
    "eight_schools": partial(schools, centered=False),
    "eight_schools_centered": partial(schools, centered=True),
    "correlated_64": correlated,
}
