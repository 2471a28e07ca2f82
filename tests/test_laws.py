"""Every bijector obeys every law."""

import pytest
import torch

import pyroflows.bijectors
from pyroflows import Bijector, Compose, Inverse
from tests import laws
from tests.cases import BUILT_IN, CASES, FAMILIES, SMALL, Case

pytestmark = pytest.mark.usefixtures("_double")

IN_BOTH_DTYPES = {
    "inverse_undoes_forward",
    "log_det_is_that_of_the_jacobian",
    "results_have_the_dtype_of_the_module_not_the_default",
    "values_and_gradients_stay_finite_far_out",
}
CONDITIONAL = {
    "context_broadcasts_against_the_batch",
    "every_moved_coordinate_depends_on_the_whole_context",
    "each_context_has_its_own_noise",
}
# Newton's method takes as many steps as the values ask for, which vmap and graphs cannot; what is
# set to given values needs values, which the meta device has not.
EXCEPT = {
    "vmap_agrees": "bend",
    "inverse_is_one_graph": "bend",
    "works_on_another_device": "anchored",
}
GRAPHS = ("forward_is_one_graph", "inverse_is_one_graph")
COMPILED = {*SMALL, "autoregressive-order|context", "autoregressive-graph", "compose"}


def applies(law: str, name: str, case: Case) -> bool:
    if law in CONDITIONAL and not case.context_dim:
        return False
    if any(name.partition("|")[0] in getattr(f, "EXCEPT", {}).get(law, {}) for f in FAMILIES):
        return False
    if law in EXCEPT and EXCEPT[law] in name:
        return False
    if law == "density_integrates_to_one" and case.context_dim:
        return name.partition("|")[0] in SMALL  # at one context it is a map like any other
    if law in GRAPHS and case.context_dim:
        return name.partition("|")[0] in SMALL  # tracing is slow
    return law != "compile_agrees" or name in COMPILED


def combinations():
    for law in laws.LAWS:
        for name, case in CASES.items():
            if applies(law, name, case):
                yield pytest.param(law, case, id=f"{law}-{name}")


def single_precision():
    for law in sorted(IN_BOTH_DTYPES):
        for name, case in CASES.items():
            if applies(law, name, case):
                yield pytest.param(law, case, id=f"{law}-{name}")


@pytest.mark.parametrize(("law", "case"), list(combinations()))
def test_law(law: str, case: Case):
    laws.LAWS[law](case)


@pytest.mark.parametrize(("law", "case"), list(single_precision()))
def test_law_in_single_precision(law: str, case: Case):
    laws.LAWS[law](case, torch.float32)


@pytest.mark.cuda
@pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))
def test_works_on_cuda(case: Case):
    laws.works_on_another_device(case, "cuda")


def test_every_registered_flow_has_a_case():
    assert {f"flow:{name}" for name in BUILT_IN} <= set(CASES)


def test_every_public_bijector_has_a_case():
    public = {getattr(pyroflows.bijectors, name) for name in pyroflows.bijectors.__all__}
    tested = {type(m) for case in CASES.values() for m in case.build(case.dim).modules()}
    assert public | {Compose, Inverse} <= tested
    assert all(issubclass(b, Bijector) for b in public)
