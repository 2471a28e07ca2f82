"""Polynomials: sums of squares, and Bernstein's form."""

from functools import partial

from pyroflows import build_flow
from pyroflows.bijectors import Autoregressive, Coupling, Elementwise
from pyroflows.transformers import Bernstein, SOSPolynomial
from tests.case import HIDDEN

SOS = SOSPolynomial(degree=2, bound=3.0)
BERNSTEIN = Bernstein(degree=5, bound=3.0)
NETWORK = {"hidden_dims": HIDDEN, "activation": "tanh"}


def builders():
    small = {**NETWORK, "num_layers": 1}
    return {
        "elementwise-sos": partial(Elementwise, transformer=SOS, **NETWORK),
        "coupling-sos": partial(Coupling, transformer=SOS, **NETWORK),
        "autoregressive-bernstein": partial(Autoregressive, transformer=BERNSTEIN, **NETWORK),
        "elementwise-bernstein_bounded": partial(
            Elementwise, transformer=Bernstein(degree=4, bound=3.0, bounded=True), **NETWORK
        ),
        "flow:sospf": partial(build_flow, "sospf", degree=2, **small),
        "flow:bpf": partial(build_flow, "bpf", degree=4, **small),
    }
