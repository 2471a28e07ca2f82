"""Residual layers, inverted by Newton's method."""

from functools import partial

from pyroflows import build_flow
from pyroflows.bijectors import Residual
from tests.case import HIDDEN, SEARCH

NAMES = ("residual", "flow:residual")
EXCEPT = {
    "density_integrates_to_one": {"flow:residual": "held by its layer; two searches are slow"},
    "inverse_is_one_graph": dict.fromkeys(NAMES, SEARCH),
    "vmap_agrees": dict.fromkeys(NAMES, "Newton's method takes as many steps as values ask for"),
}


def builders():
    return {
        "residual": partial(Residual, hidden_dims=HIDDEN),
        "flow:residual": partial(build_flow, "residual", hidden_dims=HIDDEN, num_layers=2),
    }
