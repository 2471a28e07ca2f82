"""Densities whose normaliser is known, as Pyro models that a user would write.

Where the numbers come from: quadrature where few dimensions are left, or else long runs of NUTS
with bridge sampling, checked against sequential Monte Carlo. The data of two of them are files of
the UCI repository, read from a folder that the user gives; those of a third come with scikit-learn.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._peers_targets import PATH_VARIABLE, funnel, german_credit

__all__ = ["BOXED", "KNOWN", "MissingData", "two_arc"]

LOG_2PI = math.log(2 * math.pi)


class MissingData(RuntimeError):
    """What a target needs and does not find, and where to get it."""


# Two dimensions ------------------------------------------------------------------------------


def two_arc(z: Tensor) -> Tensor:
    """Two facing arcs (Rezende and Mohamed, 2015)."""
    ring = 0.5 * ((z.norm(dim=-1) - 4) / 0.4).square()
    return _heap(z[..., 0], 2, 0.8) - ring


def _heap(first: Tensor, place: float, scale: float) -> Tensor:
    sides = [-0.5 * ((first + side) / scale).square() for side in (-place, place)]
    return torch.logaddexp(*sides)


def _wave(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = z[..., 0]
    bump = 3 * (-0.5 * ((first - 1) / 0.6).square()).exp()
    return (2 * math.pi * first / 4).sin(), bump, 3 * ((first - 1) / 0.3).sigmoid()


def u1(z: Tensor) -> Tensor:
    return _heap(z[..., 0], 2, 0.6) - 0.5 * ((z.norm(dim=-1) - 2) / 0.4).square()


def u2(z: Tensor) -> Tensor:
    return -0.5 * ((z[..., 1] - _wave(z)[0]) / 0.4).square()


def u3(z: Tensor) -> Tensor:
    wave, bump, _ = _wave(z)
    away = z[..., 1] - wave
    return torch.logaddexp(-0.5 * (away / 0.35).square(), -0.5 * ((away + bump) / 0.35).square())


def u4(z: Tensor) -> Tensor:
    wave, _, step = _wave(z)
    away = z[..., 1] - wave
    return torch.logaddexp(-0.5 * (away / 0.4).square(), -0.5 * ((away + step) / 0.35).square())


def gmm9(z: Tensor) -> Tensor:
    """Nine normals of unit scale on a grid."""
    places = torch.tensor([-10.0, 0.0, 10.0], dtype=z.dtype, device=z.device)
    away = z[..., None, :] - torch.cartesian_prod(places, places)
    return (-0.5 * away.square().sum(-1) - LOG_2PI).logsumexp(-1) - math.log(9)


def many_well(z: Tensor) -> Tensor:
    """Sixteen independent pairs of a double well and a normal."""
    x, v = z[..., ::2], z[..., 1::2]
    return (-(x**4) + 6 * x.square() + 0.5 * x - 0.5 * v.square()).sum(-1)


BOXED = {"U1": (u1, 1.877502), "U2": (u2, 2.082089), "U3": (u3, 2.641705), "U4": (u4, 2.684568)}


def boxed(energy: Callable[[Tensor], Tensor]) -> Callable:
    """The density on the square [-4, 4]^2, zero outside."""
    square = constraints.independent(constraints.interval(-4.0, 4.0), 1)
    return lambda: pf.energy_model(energy, dim=2, support=square)


# Regressions ---------------------------------------------------------------------------------

SEEDS_R = [10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3]
SEEDS_N = [39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7]
SEEDS_X2 = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def seeds() -> None:
    """Germination of seeds (Crowder, 1978), a logistic regression with a random effect."""
    r, n, x2 = (torch.tensor(v, dtype=torch.float) for v in (SEEDS_R, SEEDS_N, SEEDS_X2))
    x1 = (torch.arange(21) >= 11).to(torch.get_default_dtype())
    tau = pyro.sample("tau", dist.Gamma(0.01, 0.01))
    a0, a1, a2, a12 = (pyro.sample(f"a{i}", dist.Normal(0.0, 10.0)) for i in ("0", "1", "2", "12"))
    with pyro.plate("plot", 21):
        b = pyro.sample("b", dist.Normal(0.0, tau.rsqrt()))
        logits = a0 + a1 * x1 + a2 * x2 + a12 * x1 * x2 + b
        pyro.sample("germinated", dist.Binomial(n, logits=logits), obs=r)


def logistic(x: Tensor, y: Tensor, scale: float) -> Callable:
    """Logistic regression with a normal prior."""

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), scale).to_event(1))
        pyro.sample("y", dist.Bernoulli(logits=w @ x.T).to_event(1), obs=y)

    return model


def _in_default_dtype(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(torch.get_default_dtype()) for tensor in tensors]


def breast_cancer() -> Callable:
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise MissingData("breast_cancer: its data come with scikit-learn, not found") from error
    features, label = load_breast_cancer(return_X_y=True)
    x = torch.tensor(features, dtype=torch.float64)
    x = torch.cat([torch.ones(len(x), 1), x / x.std(0, correction=0)], 1)
    return logistic(*_in_default_dtype(x, torch.tensor(label)), 10.0)


def ionosphere() -> Callable:
    file = Path(os.environ.get(PATH_VARIABLE, "")) / "ionosphere.csv"
    if PATH_VARIABLE not in os.environ or not file.is_file():
        raise MissingData(f"no ionosphere.csv (UCI): give its folder as --path or {PATH_VARIABLE}")
    rows = [line.split(",") for line in file.read_text().splitlines() if line[:1] not in ("", "#")]
    table = torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)
    x = table[:, :-1]
    scale = x.std(0, correction=0)
    x = (x - x.mean(0)) / torch.where(scale > 0, scale, 1.0)
    x = torch.cat([torch.ones(len(x), 1), x], 1)
    return logistic(*_in_default_dtype(x, (table[:, -1] + 1) / 2), 1.0)


def credit() -> Callable:
    try:
        return german_credit().model
    except FileNotFoundError as error:
        raise MissingData(str(error)) from error


# By name: what makes the model, and the log of its normaliser.
KNOWN: dict[str, tuple[Callable[[], Callable], float]] = {
    "two_arc": (lambda: pf.energy_model(two_arc, dim=2), 2.313289),
    **{name: (boxed(energy), log_z) for name, (energy, log_z) in BOXED.items()},
    "gmm9": (lambda: pf.energy_model(gmm9, dim=2), 0.0),
    "many_well": (lambda: pf.energy_model(many_well, dim=32), 164.695675),
    "funnel": (lambda: funnel().model, 0.0),
    "german_credit": (credit, -585.098),
    "seeds": (lambda: seeds, -73.4063),
    "breast_cancer": (breast_cancer, -77.57),
    "ionosphere": (ionosphere, -111.611),
}
