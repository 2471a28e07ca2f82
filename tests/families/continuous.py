"""A flow in continuous time, whose numbers are right to the error of its solver.

The layer takes steps of fixed length, the flow adapts them.
"""

from functools import partial

from pyroflows import build_flow
from pyroflows.bijectors import Continuous
from tests.case import HIDDEN

STEPS = "8 steps of fixed length, whose error falls as the fourth power of their number"
SOLVED = "a tolerance of 1e-8, and the errors of many steps, which a batch shares, add up"
LIBRARY = "torchdiffeq reads times and writes into a tensor of its own"
DEAR = "solves of many steps each: held for the layer, with steps of fixed length"
NAMES = ("continuous", "flow:cnf")
BARS = {
    "log_det_is_that_of_the_jacobian": 1e-4,
    "inverse_undoes_forward": 1e-4,
    "an_own_draw_is_scored_for_free": 1e-4,
    "the_score_is_the_gradient_of_the_log_density": 1e-4,
    "density_integrates_to_one": 1e-3,
}
TOLERANCES = {
    law: {"continuous": (bar, STEPS), "flow:cnf": (bar, SOLVED)} for law, bar in BARS.items()
} | {"a_batch_is_a_loop": {"flow:cnf": (1e-5, SOLVED)}}
EXCEPT = {
    "density_integrates_to_one": {"flow:cnf": DEAR},
    "gradients_through_the_inverse_are_right": {"flow:cnf": DEAR},
    "vmap_agrees": dict.fromkeys(NAMES, LIBRARY),
    "works_on_another_device": dict.fromkeys(NAMES, LIBRARY),
    "forward_is_one_graph": dict.fromkeys(NAMES, LIBRARY),
    "inverse_is_one_graph": dict.fromkeys(NAMES, LIBRARY),
}


def builders():
    return {
        "continuous": partial(Continuous, hidden_dims=HIDDEN, solver="rk4", num_steps=8),
        "flow:cnf": partial(build_flow, "cnf", hidden_dims=HIDDEN, tolerance=1e-8),
    }
