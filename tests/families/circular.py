"""Circular splines, alone and beside others."""

from functools import partial

from pyroflows import build_flow
from pyroflows.bijectors import Autoregressive, Coupling, Elementwise
from pyroflows.transformers import ByIndex, CircularSpline, RationalQuadraticSpline
from tests.case import HIDDEN


def _mixed(structure, dim, **options):
    """Angles in even places, numbers in odd ones."""
    spline = RationalQuadraticSpline(num_bins=4, bound=3.0)
    parts = [(CircularSpline(num_bins=3), range(0, dim, 2)), (spline, range(1, dim, 2))]
    return structure(dim, transformer=ByIndex(parts), hidden_dims=HIDDEN, **options)


def builders():
    angles = {"transformer": CircularSpline(num_bins=4), "hidden_dims": HIDDEN}
    cases = {}
    for structure in (Elementwise, Coupling, Autoregressive):
        name = structure.__name__.lower()
        cases[f"{name}-circular"] = partial(structure, **angles)
        cases[f"{name}-mixed"] = partial(_mixed, structure)
    sizes = {"hidden_dims": HIDDEN, "num_bins": 4, "num_layers": 2}
    return cases | {"flow:ncsf": partial(build_flow, "ncsf", **sizes)}
