"""Sylvester layers."""

from functools import partial

from pyroflows import build_flow
from pyroflows.bijectors import Sylvester
from tests.case import HIDDEN


def _of_two(dim, **options):
    """Fewer directions than coordinates, wherever there are more than two."""
    return Sylvester(dim, rank=min(dim, 2), hidden_dims=HIDDEN, **options)


def builders():
    return {
        "sylvester": _of_two,
        "sylvester-householder": partial(Sylvester, frame="householder", hidden_dims=HIDDEN),
        "flow:sylvester": partial(build_flow, "sylvester", num_layers=2, hidden_dims=HIDDEN),
    }
