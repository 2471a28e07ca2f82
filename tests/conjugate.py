"""Models whose posterior and evidence are known, and guides that are off by a known amount."""

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyroflows import AutoFlow, Bijector


class Off(Bijector):
    """Noise scaled and shifted: before an outer map that is right, a guide that is off by it."""

    def __init__(self, dim, *, context_dim=0, scale=1.3, shift=0.3):
        super().__init__(dim, context_dim=context_dim)
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("shift", torch.tensor(float(shift)))

    def forward_and_log_det(self, x, context=None):
        log_det = self.dim * self.scale.log()
        return self.scale * x + self.shift, log_det.expand(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        log_det = -self.dim * self.scale.log()
        return (y - self.shift) / self.scale, log_det.expand(y.shape[:-1])


@dataclass
class Conjugate:
    """A model with its posterior.

    Attributes:
        model: The model, a function of its data.
        data: The data.
        mean: Posterior means of the elements of its only site ``"x"``.
        sd: Their posterior standard deviations.
        log_z: The log evidence.
        quantiles: Posterior quantiles at LEVELS, shape ``(3, elements)``.
    """

    model: Any
    data: Tensor
    mean: Tensor
    sd: Tensor
    log_z: float
    quantiles: Tensor | None = None

    def guide(self, *, scale=1.3, shift=0.3, **kwargs):
        options = {"scale": scale, "shift": shift}
        return AutoFlow(self.model, Off, model_args=(self.data,), **options, **kwargs)

    def wide_guide(self):
        """A normal that is 14 wide and covers both of two far modes."""
        return self.guide(scale=14.0, shift=0.0, outer=None)


LEVELS = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


def normal(dtype=torch.float64):
    y = torch.tensor([1.0, 2.0, 0.5], dtype=dtype)

    def model(y):
        x = pyro.sample("x", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    mean, sd = y.double().sum() / 4, torch.tensor(0.5, dtype=torch.float64)
    covariance = torch.eye(3, dtype=torch.float64) + 1
    evidence = dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance)
    quantiles = dist.Normal(mean, sd).icdf(LEVELS)[:, None]
    return Conjugate(
        model, y, mean[None], sd[None], float(evidence.log_prob(y.double())), quantiles
    )


def correlated(dtype=torch.float64):
    """A prior that couples two coordinates, and data on their sum: correlation -0.9 or so."""
    y = torch.tensor([3.0], dtype=dtype)
    prior = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    row = torch.ones(2, dtype=torch.float64)
    noise = 0.1

    def model(y):
        x = pyro.sample("x", dist.MultivariateNormal(y.new_zeros(2), prior.to(y)))
        pyro.sample("y", dist.Normal(x.sum(-1, keepdim=True), noise**0.5).to_event(1), obs=y)

    covariance = (prior.inverse() + row[:, None] * row / noise).inverse()
    mean = covariance @ row * 3.0 / noise
    variance = row @ prior @ row + noise
    log_z = dist.Normal(torch.zeros_like(variance), variance.sqrt()).log_prob(y.double()[0])
    sd = covariance.diagonal().sqrt()
    quantiles = dist.Normal(mean, sd).icdf(LEVELS[:, None])
    return Conjugate(model, y, mean, sd, float(log_z), quantiles)


def positive(dtype=torch.float64):
    """A gamma rate of Poisson counts: its posterior is a gamma."""
    y = torch.tensor([3.0, 5.0, 1.0, 4.0], dtype=dtype)

    def model(y):
        x = pyro.sample("x", dist.Gamma(y.new_tensor(2.0), y.new_tensor(1.0)))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Poisson(x), obs=y)

    a, b = torch.tensor(15.0, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)
    x = torch.tensor(1.0, dtype=torch.float64)
    prior = dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0).log_prob(x)
    log_z = prior + dist.Poisson(x).log_prob(y.double()).sum() - dist.Gamma(a, b).log_prob(x)
    quantiles = on_grid(lambda g: dist.Gamma(a, b).log_prob(g), 1e-6, 15.0)
    return Conjugate(
        model, y, (a / b)[None], (a.sqrt() / b)[None], float(log_z), quantiles[:, None]
    )


def simplex(dtype=torch.float64):
    """Proportions of a multinomial: their posterior is a Dirichlet."""
    y = torch.tensor([4.0, 1.0, 7.0], dtype=dtype)

    def model(y):
        x = pyro.sample("x", dist.Dirichlet(y.new_full((3,), 2.0)))
        pyro.sample("y", dist.Multinomial(probs=x, validate_args=False), obs=y)

    alpha = y.double() + 2
    total = alpha.sum()
    x = torch.full((3,), 1 / 3, dtype=torch.float64)
    prior = dist.Dirichlet(torch.full((3,), 2.0, dtype=torch.float64)).log_prob(x)
    likelihood = dist.Multinomial(12, probs=x).log_prob(y.double())
    log_z = prior + likelihood - dist.Dirichlet(alpha).log_prob(x)
    mean = alpha / total
    sd = (mean * (1 - mean) / (total + 1)).sqrt()
    marginals = [dist.Beta(a, total - a) for a in alpha]
    quantiles = torch.stack([on_grid(m.log_prob, 1e-6, 1 - 1e-6) for m in marginals], 1)
    return Conjugate(model, y, mean, sd, float(log_z), quantiles)


def on_grid(log_prob, low, high):
    """Quantiles of a density of one variable at LEVELS, by sums over a fine grid."""
    grid = torch.linspace(low, high, 200_001, dtype=torch.float64)
    mass = log_prob(grid).exp().cumsum(0)
    return grid[torch.searchsorted(mass / mass[-1], LEVELS)]


CASES = {"normal": normal, "correlated": correlated, "positive": positive, "simplex": simplex}


def two_modes(dtype=torch.float64):
    """A mixture of two normals 24 standard deviations apart, a quarter and three quarters."""
    y = torch.zeros(1, dtype=dtype)
    far = 12.0

    def model(y):
        log_weights = y.new_tensor([0.25, 0.75]).log()
        locs = y.new_tensor([-far, far])
        x = pyro.sample("x", dist.Normal(y.new_zeros(()), 1e3))
        modes = dist.Normal(locs, 1.0).log_prob(x[..., None]) + log_weights
        pyro.factor("modes", modes.logsumexp(-1) - dist.Normal(0 * x, 1e3).log_prob(x))

    mean = torch.tensor([far / 2], dtype=torch.float64)
    sd = (far**2 + 1 - mean.square()).sqrt()
    return Conjugate(model, y, mean, sd, 0.0)


class TwoModes(Bijector):
    """From a normal to an even mixture of two, at 12 and -12, both 1.2 wide."""

    def forward_and_log_det(self, x, context=None):
        below = (2 * torch.special.ndtr(-x.abs())).clamp(max=1 - 1e-9)
        noise = torch.special.ndtri(below)
        log_slope = math.log(2.4) + 0.5 * (noise.square() - x.square())
        return x.sign() * (12 - 1.2 * noise), log_slope.sum(-1)
