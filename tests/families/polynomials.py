"""Polynomials: sums of squares, and Bernstein's form."""

from functools import partial

from pyroflows import build_flow
from pyroflows.bijectors import Autoregressive, Coupling, Elementwise
from pyroflows.transformers import Bernstein, SOSPolynomial
from tests.case import HIDDEN, SEARCH

SOS = SOSPolynomial(degree=2, bound=3.0)
BERNSTEIN = Bernstein(degree=5, bound=3.0)
NETWORK = {"hidden_dims": HIDDEN, "activation": "tanh"}


def builders():
    small = {**NETWORK, "num_layers": 1}
    structures = (Elementwise, Coupling, Autoregressive)
    kinds = {"sos": SOS, "bernstein": BERNSTEIN}
    return {
        **{
            f"{structure.__name__.lower()}-{name}": partial(structure, transformer=kind, **NETWORK)
            for structure in structures
            for name, kind in kinds.items()
        },
        "elementwise-bernstein_bounded": partial(
            Elementwise, transformer=Bernstein(degree=4, bound=3.0, bounded=True), **NETWORK
        ),
        "flow:sospf": partial(build_flow, "sospf", degree=2, **small),
        "flow:bpf": partial(build_flow, "bpf", degree=4, **small),
    }


EXCEPT = {"inverse_is_one_graph": dict.fromkeys(builders(), SEARCH)}
