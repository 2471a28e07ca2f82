"""Posteriors whose moments are known without any fit: in closed form, or by a sum over a grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._known import two_arc
from tests.benchmarks._schools import eight_schools
from tests.benchmarks.targets import TARGETS, eight_schools_truth, grid_moments, sine_ring

__all__ = ["Posterior"]

Moments = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Posterior:
    """A model and what is known of its posterior.

    Args:
        model: The model.
        truth: Mean and standard deviation of its sites; ``None`` where it is improper.
    """

    model: Callable[..., None]
    truth: Moments | None


def _data(size: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Covariates and noise, in the default dtype."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    return x.to(torch.get_default_dtype()), noise.to(torch.get_default_dtype())


def _on_grid(
    log_density: Callable[[Tensor, Tensor], Tensor],
    bounds: dict[str, tuple[float, float]],
    num: int = 801,
) -> Moments:
    """Moments of two parameters, by a sum over a grid of their values."""
    axes = [torch.linspace(*pair, num, dtype=torch.float64) for pair in bounds.values()]
    grid = torch.meshgrid(*axes, indexing="ij")
    p = log_density(*grid).flatten().softmax(0).reshape(num, num)
    edge = torch.cat([p[0], p[-1], p[:, 0], p[:, -1]]).max()
    if not edge < 1e-6 * p.max():
        raise RuntimeError(f"the grid of {list(bounds)} cuts the posterior off")
    found = {}
    for name, value in zip(bounds, grid, strict=True):
        mean = (p * value).sum()
        found[name] = (mean, (p * (value - mean) ** 2).sum().sqrt())
    return found


# Regressions ---------------------------------------------------------------------------------


def linear(size: int, columns: int, seed: int, mix: float = 0.0) -> Posterior:
    """A linear regression of known noise; ``mix`` makes each covariate like the first."""
    x, noise = _data(size, columns, seed)
    x = (1 - mix) * x + mix * x[:, :1]
    y = x.sum(-1) + noise

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(columns), 10.0).to_event(1))
        pyro.sample("y", dist.Normal(w @ x.mT, 1.0).to_event(1), obs=y)

    x_, y_ = x.double(), y.double()
    covariance = torch.linalg.inv(x_.mT @ x_ + torch.eye(columns).double() / 100)
    return Posterior(model, {"w": (covariance @ x_.mT @ y_, covariance.diagonal().sqrt())})


def noisy_linear(size: int, columns: int, seed: int) -> Posterior:
    """A linear regression of unknown noise, with its conjugate prior."""
    x, noise = _data(size, columns, seed)
    y = x.sum(-1) + 2 * noise

    def model() -> None:
        precision = pyro.sample("precision", dist.Gamma(3.0, 2.0))
        scale = precision.rsqrt()
        prior = dist.Normal(torch.zeros(columns), 3 * scale[..., None]).to_event(1)
        w = pyro.sample("w", prior)
        mean = (w[..., None, :] * x).sum(-1)
        pyro.sample("y", dist.Normal(mean, scale[..., None]).to_event(1), obs=y)

    x_, y_ = x.double(), y.double()
    inner = x_.mT @ x_ + torch.eye(columns).double() / 9
    mean = torch.linalg.solve(inner, x_.mT @ y_)
    shape, rate = 3 + size / 2, 2 + 0.5 * (y_ @ y_ - mean @ inner @ mean)
    spread = torch.linalg.inv(inner).diagonal() * rate / (shape - 1)
    gamma = (shape / rate, shape**0.5 / rate)
    return Posterior(model, {"precision": gamma, "w": (mean, spread.sqrt())})


def logistic(size: int, seed: int) -> Posterior:
    """A logistic regression of two coefficients."""
    x, noise = _data(size, 1, seed)
    x = x[:, 0]
    y = (x + 0.5 + 1.5 * noise > 0).to(x)

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 2.5))
        b = pyro.sample("b", dist.Normal(0.0, 2.5))
        with pyro.plate("data", size):
            pyro.sample("y", dist.Bernoulli(logits=a + b * x), obs=y)

    def log_density(a: Tensor, b: Tensor) -> Tensor:
        logits = a[..., None] + b[..., None] * x.double()
        fit = dist.Bernoulli(logits=logits).log_prob(y.double()).sum(-1)
        return fit + dist.Normal(0.0, 2.5).log_prob(a) + dist.Normal(0.0, 2.5).log_prob(b)

    return Posterior(model, _on_grid(log_density, {"a": (-5.0, 5.0), "b": (-5.0, 7.0)}, 401))


def poisson(size: int, seed: int) -> Posterior:
    """A Poisson regression of two coefficients."""
    x, noise = _data(size, 1, seed)
    x = x[:, 0]
    y = (0.5 + 0.4 * x + 0.3 * noise).exp().round()

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        with pyro.plate("data", size):
            pyro.sample("y", dist.Poisson((a + b * x).exp()), obs=y)

    def log_density(a: Tensor, b: Tensor) -> Tensor:
        log_rate = a[..., None] + b[..., None] * x.double()
        fit = (y.double() * log_rate - log_rate.exp()).sum(-1)
        return fit + dist.Normal(0.0, 3.0).log_prob(a) + dist.Normal(0.0, 3.0).log_prob(b)

    return Posterior(model, _on_grid(log_density, {"a": (-2.0, 2.5), "b": (-2.0, 2.5)}, 401))


# Conjugate families, and others of one or two parameters ------------------------------------


def counts() -> Posterior:
    """Poisson counts of two groups, with Gamma priors."""
    y = torch.tensor([[3.0, 11.0], [5.0, 8.0], [2.0, 14.0], [6.0, 9.0]])
    y = y.to(torch.get_default_dtype())

    def model() -> None:
        with pyro.plate("group", 2):
            rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
            with pyro.plate("count", 4):
                pyro.sample("y", dist.Poisson(rate), obs=y)

    shape, rate = 2 + y.double().sum(0), 4.5
    return Posterior(model, {"rate": (shape / rate, shape.sqrt() / rate)})


def shares() -> Posterior:
    """Binomial counts with a Beta prior, three of them."""
    tried, good = torch.tensor([12.0, 30.0, 9.0]), torch.tensor([4.0, 26.0, 1.0])
    tried, good = (v.to(torch.get_default_dtype()) for v in (tried, good))

    def model() -> None:
        with pyro.plate("trial", 3):
            p = pyro.sample("p", dist.Beta(2.0, 2.0))
            pyro.sample("y", dist.Binomial(tried, p), obs=good)

    a, b = 2 + good.double(), 2 + (tried - good).double()
    mean = a / (a + b)
    return Posterior(model, {"p": (mean, (mean * (1 - mean) / (a + b + 1)).sqrt())})


def simplex() -> Posterior:
    """Counts of five kinds with a Dirichlet prior."""
    found = torch.tensor([12, 5, 1, 30, 7])

    def model() -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.ones(5)))
        pyro.sample("y", dist.Multinomial(probs=p, validate_args=False), obs=found.to(p))

    a = 1 + found.double()
    mean = a / a.sum()
    return Posterior(model, {"p": (mean, (mean * (1 - mean) / (a.sum() + 1)).sqrt())})


def place_and_scale(size: int, seed: int) -> Posterior:
    """A normal sample of unknown mean and standard deviation."""
    y = 3 + 2 * _data(size, 1, seed)[1]

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.HalfCauchy(5.0))
        with pyro.plate("data", size):
            pyro.sample("y", dist.Normal(loc, scale), obs=y)

    def log_density(loc: Tensor, scale: Tensor) -> Tensor:
        fit = dist.Normal(loc[..., None], scale[..., None]).log_prob(y.double()).sum(-1)
        prior = dist.Normal(0.0, 10.0).log_prob(loc)
        return fit + prior + dist.HalfCauchy(5.0).log_prob(scale)

    return Posterior(model, _on_grid(log_density, {"loc": (-2.0, 8.0), "scale": (0.3, 9.0)}))


def walk(size: int, seed: int) -> Posterior:
    """A random walk seen with noise."""
    noise = _data(size, 1, seed)[1]
    y = noise.cumsum(0)

    def model() -> None:
        step = pyro.sample("step", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(step.cumsum(-1), 0.5).to_event(1), obs=y)

    sums = torch.ones(size, size).double().tril()
    covariance = torch.linalg.inv(4 * sums.mT @ sums + torch.eye(size).double())
    mean = covariance @ (4 * sums.mT @ y.double())
    return Posterior(model, {"step": (mean, covariance.diagonal().sqrt())})


def schools(*, centered: bool) -> Posterior:
    """The eight schools."""
    truth = eight_schools_truth(centered=centered)
    return Posterior(lambda: eight_schools(centered=centered), truth)


# Densities -----------------------------------------------------------------------------------


def ring() -> Posterior:
    return Posterior(TARGETS["sine_ring"].model(), grid_moments(sine_ring, 3.0))


def arcs() -> Posterior:
    return Posterior(TARGETS["two_arc"].model(), grid_moments(two_arc, 7.0))


def gaussian(dim: int, correlation: float, *, chain: bool = False) -> Posterior:
    """A normal of unit scales, of equal correlations or of those of a chain."""
    index = torch.arange(dim, dtype=torch.float64)
    if chain:
        matrix = correlation ** (index[:, None] - index).abs()
    else:
        matrix = torch.full((dim, dim), correlation, dtype=torch.float64)
        matrix += (1 - correlation) * torch.eye(dim)
    precision = torch.linalg.inv(matrix).to(torch.get_default_dtype())

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * (x @ precision * x).sum(-1)

    dtype = torch.get_default_dtype()
    truth = {"x": (torch.zeros(dim).double(), torch.ones(dim).double())}
    return Posterior(pf.energy_model(log_density, dim=dim, dtype=dtype), truth)


def heaps(dim: int, distance: float, weight: float) -> Posterior:
    """Two unit normals; the one at ``distance`` in each coordinate has ``weight``."""

    def log_density(x: Tensor) -> Tensor:
        high = math.log(weight) - 0.5 * (x - distance).square().sum(-1)
        return torch.logaddexp(high, math.log(1 - weight) - 0.5 * (x + distance).square().sum(-1))

    mean = (2 * weight - 1) * distance
    sd = math.sqrt(1 + distance**2 - mean**2)
    truth = {"x": (torch.full((dim,), mean).double(), torch.full((dim,), sd).double())}
    return Posterior(pf.energy_model(log_density, dim=dim, dtype=torch.get_default_dtype()), truth)


def labels(seed: int) -> Posterior:
    """Data of two sorts, whose labels can be swapped."""
    noise = _data(40, 1, seed)[1]
    y = noise + torch.where(torch.arange(40) % 2 == 0, 4.0, -4.0)

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        one, two = (dist.Normal(c[..., None], 1.0).log_prob(y) for c in (a, b))
        pyro.factor("y", torch.logaddexp(one, two).sum(-1))

    def log_density(a: Tensor, b: Tensor) -> Tensor:
        one, two = (dist.Normal(c[..., None], 1.0).log_prob(y.double()) for c in (a, b))
        prior = dist.Normal(0.0, 10.0).log_prob(a) + dist.Normal(0.0, 10.0).log_prob(b)
        return torch.logaddexp(one, two).sum(-1) + prior

    return Posterior(model, _on_grid(log_density, {"a": (-8.0, 8.0), "b": (-8.0, 8.0)}))


def product(seed: int) -> Posterior:
    """Data of which a product is known, and so no sign of its factors."""
    y = 9 + 0.5 * _data(30, 1, seed)[1]

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        with pyro.plate("data", 30):
            pyro.sample("y", dist.Normal(a * b, 0.5), obs=y)

    a = torch.linspace(-25, 25, 20001, dtype=torch.float64)
    seen = dist.Normal(0.0, (9 * a**2 + 0.25 / 30).sqrt()).log_prob(y.double().mean())
    p = (seen - a**2 / 18).softmax(0)
    truth = (torch.zeros(()).double(), (p @ a**2).sqrt())
    return Posterior(model, {"a": truth, "b": truth})


def student(dim: int, df: float, scale: float) -> Posterior:
    """Independent Student-t's."""
    loc = torch.zeros(dim)

    def model() -> None:
        pyro.sample("x", dist.StudentT(df, loc, scale).to_event(1))

    sd = torch.full((dim,), scale * math.sqrt(df / (df - 2))).double()
    return Posterior(model, {"x": (torch.zeros(dim).double(), sd)})


# Improper ------------------------------------------------------------------------------------


def _flat(name: str, shape: tuple[int, ...] = ()) -> Tensor:
    support = constraints.real if not shape else constraints.real_vector
    return pyro.sample(name, dist.ImproperUniform(support, (), shape))


def two_intercepts(seed: int) -> Posterior:
    """Intercepts of groups and of all, with flat priors: only their sums are known."""
    y = _data(20, 1, seed)[1].reshape(4, 5)

    def model() -> None:
        mean = _flat("mean")
        group = _flat("group", (4,))
        effect = mean[..., None] + group
        pyro.sample("y", dist.Normal(effect[..., None], 1.0).to_event(2), obs=y)

    return Posterior(model, None)


def separated(seed: int) -> Posterior:
    """A logistic regression of data that a line divides, with flat priors."""
    x = _data(20, 2, seed)[0]
    y = (x.sum(-1) > 0).to(x)

    def model() -> None:
        w = _flat("w", (2,))
        logits = (w[..., None, :] * x).sum(-1)
        pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    return Posterior(model, None)


def unbounded_scale(seed: int) -> Posterior:
    """A hierarchy whose scale has the prior 1 / tau: it has infinite mass at zero."""
    y = 2 * _data(6, 1, seed)[1]

    def model() -> None:
        log_tau = _flat("log_tau")
        with pyro.plate("group", 6):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z * log_tau.exp(), 1.0), obs=y)

    return Posterior(model, None)


def ridge(seed: int) -> Posterior:
    """More covariates than data, with flat priors."""
    x, noise = _data(3, 5, seed)

    def model() -> None:
        w = _flat("w", (5,))
        pyro.sample("y", dist.Normal((w[..., None, :] * x).sum(-1), 1.0).to_event(1), obs=noise)

    return Posterior(model, None)
