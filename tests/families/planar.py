"""Planar and radial layers."""

from functools import partial

from pyroflows import build_flow
from pyroflows.bijectors import Planar, Radial
from tests.case import HIDDEN


def builders():
    return {
        "planar": partial(Planar, hidden_dims=HIDDEN),
        "planar-leaky_relu": partial(Planar, activation="leaky_relu", hidden_dims=HIDDEN),
        "flow:planar": partial(build_flow, "planar", num_layers=2, hidden_dims=HIDDEN),
        "radial": partial(Radial, hidden_dims=HIDDEN),
        "flow:radial": partial(build_flow, "radial", num_layers=2, hidden_dims=HIDDEN),
    }
