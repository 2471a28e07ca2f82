"""Monotone networks and mixtures, whose inverses are numerical."""

from functools import partial

from pyroflows import build_flow
from pyroflows.bijectors import Coupling, Elementwise
from pyroflows.transformers import DeepSigmoidal, MixtureCDF, MonotonicNetwork
from tests.case import HIDDEN, SEARCH

SMALL = {
    "deep_sigmoidal": DeepSigmoidal(num_components=3),
    "monotonic_network": MonotonicNetwork(num_units=3, num_nodes=12),
    "mixture_cdf": MixtureCDF(num_components=3),
}


def builders():
    cases = {
        f"{structure.__name__.lower()}-{name}": partial(
            structure, transformer=transformer, hidden_dims=HIDDEN
        )
        for structure in (Elementwise, Coupling)  # autoregressive ones are flows
        for name, transformer in SMALL.items()
    }
    sizes = {
        "naf": {"num_components": 3},
        "unaf": {"num_units": 3, "num_nodes": 12},
        "gf": {"num_components": 3, "num_layers": 1},
    }
    for flow, size in sizes.items():
        cases[f"flow:{flow}"] = partial(
            build_flow, flow, **({"num_layers": 2, "hidden_dims": HIDDEN} | size)
        )
    return cases


EXCEPT = {
    "forward_is_one_graph": {"flow:gf": f"it samples by its searched direction: {SEARCH}"},
    "inverse_is_one_graph": {name: SEARCH for name in builders() if name != "flow:gf"},
}
