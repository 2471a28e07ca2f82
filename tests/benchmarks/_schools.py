"""The eight schools (Rubin, 1981)."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

__all__ = ["EFFECT", "ERROR", "eight_schools"]

EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(*, centered: bool) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        if centered:
            theta = pyro.sample("theta", dist.Normal(mu, tau))
        else:
            theta = mu + tau * pyro.sample("deviation", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(theta, ERROR), obs=EFFECT)
