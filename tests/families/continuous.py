"""A flow in continuous time, whose numbers are right to the tolerance of its solver.

Steps of fixed length make these cases functions of each point alone, quick ones. What is right to
a tolerance only is held to that in ``test_continuous.py``.
"""

from functools import partial

from pyroflows import build_flow
from pyroflows.bijectors import Continuous
from tests.case import HIDDEN

NAMES = ("continuous", "flow:cnf")
TO_A_TOLERANCE = "both directions agree to the error of the solver, not to rounding"
EXCEPT = {
    law: dict.fromkeys(NAMES, TO_A_TOLERANCE)
    for law in (
        "inverse_undoes_forward",
        "log_det_is_that_of_the_jacobian",
        "density_integrates_to_one",
        "an_own_draw_is_scored_for_free",
        "an_own_draw_is_scored_with_todays_parameters",
        "the_score_is_the_gradient_of_the_log_density",
    )
} | {
    "vmap_agrees": dict.fromkeys(NAMES, "the solver adds in place to what is not mapped"),
    "works_on_another_device": dict.fromkeys(NAMES, "the solver reads times, which meta has not"),
}


def builders():
    small = {"hidden_dims": HIDDEN, "solver": "rk4", "num_steps": 3}
    return {
        "continuous": partial(Continuous, **small),
        "flow:cnf": partial(build_flow, "cnf", **small),
    }
