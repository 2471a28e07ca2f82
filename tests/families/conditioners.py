"""Layers whose networks a user brings."""

from functools import partial

from torch import nn

from pyroflows.bijectors import Autoregressive, Coupling, Elementwise
from pyroflows.networks import Hermite
from pyroflows.transformers import RationalQuadraticSpline
from tests.case import HIDDEN


class Gated(nn.Module):
    """A module as a user writes it: its last layer does not start at zero."""

    def __init__(self, input_dim, output_dim):
        super().__init__()
        self.hidden = nn.Linear(input_dim, HIDDEN[0])
        self.gate = nn.Linear(input_dim, HIDDEN[0])
        self.last = nn.Linear(HIDDEN[0], output_dim)

    def forward(self, x):
        return self.last(self.hidden(x).tanh() * self.gate(x).sigmoid())


def builders():
    spline = RationalQuadraticSpline(num_bins=4, bound=3.0)
    return {
        "elementwise-own": partial(Elementwise, network=Gated),
        "coupling-own": partial(Coupling, network=Gated, transformer=spline),
        "coupling-hermite": partial(Coupling, network=Hermite),
        "autoregressive-own": partial(Autoregressive, network=Gated, transformer=spline),
        "autoregressive-hermite": partial(Autoregressive, network=partial(Hermite, degree=2)),
    }
