"""What the laws of bijectors share."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch.testing import assert_close

# Everything is bounded away from rounding by these two numbers.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3}
LAWS: dict[str, Callable] = {}


def law(function: Callable) -> Callable:
    LAWS[function.__name__] = function
    return function


def close(
    actual: object, expected: object, dtype: torch.dtype = torch.float64, own: float = 0.0
) -> None:
    bar = max(TOLERANCE[dtype], own)
    assert_close(actual, expected, atol=bar, rtol=bar)


def base(dim: int) -> dist.Distribution:
    """Not a standard normal: a rotation would leave its density as it was."""
    return dist.Normal(torch.linspace(-0.5, 1, dim), torch.linspace(1, 1.5, dim)).to_event(1)
