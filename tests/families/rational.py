"""Linear rational splines."""

from functools import partial

from pyroflows.bijectors import Autoregressive, Coupling, Elementwise
from pyroflows.transformers import LinearRationalSpline
from tests.case import HIDDEN


def builders():
    spline = LinearRationalSpline(num_bins=4, bound=3.0)
    return {
        f"{structure.__name__.lower()}-linear_rational": partial(
            structure, transformer=spline, hidden_dims=HIDDEN
        )
        for structure in (Elementwise, Coupling, Autoregressive)
    }
