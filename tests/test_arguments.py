"""What is wrong with a call is said in the words of that call."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyroflows as pf
from pyroflows.bijectors import LocScale


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


Y = torch.zeros(3)


@pytest.fixture(scope="module")
def guide() -> pf.AutoFlow:
    return pf.AutoFlow(model, "affine", model_args=(Y,))


CALLS = {
    "fit_guide": lambda guide, **kw: pf.fit_guide(model, guide, **kw),
    "importance_diagnostics": lambda guide, **kw: pf.importance_diagnostics(model, guide, **kw),
    "vectorized_log_density": lambda guide, **kw: pf.vectorized_log_density(model, **kw),
    "to_inference_data": lambda guide, **kw: pf.to_inference_data(guide, model, **kw),
}
FAULTS = {
    "missing": ({}, r"model model\(y\) cannot be called.*missing.*'y'.*model_args=\(\.\.\.\)"),
    "no tuple": ({"model_args": Y}, r"expected model_args to be a tuple.*model_args=\(data,\)"),
    "no dict": ({"model_kwargs": [1]}, "expected model_kwargs to be a dict, got list"),
    "unknown": ({"model_kwargs": {"z": Y}}, r"model_kwargs \['z'\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_the_model_does_not_take_are_named(guide, name: str, fault: str):
    if name == "to_inference_data":
        pytest.importorskip("arviz")
    kwargs, message = FAULTS[fault]
    with pytest.raises(TypeError, match=f"^{name}.*{message}"):
        CALLS[name](guide, **kwargs)


@pytest.mark.parametrize("name", ["fit_guide", "importance_diagnostics"])
def test_the_name_of_a_flow_is_no_guide(name: str):
    with pytest.raises(TypeError, match=rf"{name} expected a guide, got str: AutoFlow\(model, 'n"):
        CALLS[name]("nsf", model_args=(Y,))


def test_a_wrong_method_is_named_in_the_words_of_the_caller():
    with pytest.raises(ValueError, match=r"^vectorized_log_density expected method to be one of"):
        pf.vectorized_log_density(model, model_args=(Y,), method="fast")


GUIDES = {
    "flow": ({"flow": "nfs"}, ValueError, r"Unknown flow 'nfs'.*mean 'nsf'"),
    "no flow": ({"flow": 3}, TypeError, "expected a name or a recipe, got int"),
    "built": (
        {"flow": LocScale(1)},
        TypeError,
        r"recipe, got a LocScale that is built.*lambda dim, \*\*_: LocScale",
    ),
    "context": (
        {"flow": lambda dim: LocScale(dim)},
        TypeError,
        r"takes no 'context_dim': a recipe is called as \(dim, context_dim=0",
    ),
    "option": ({"num_layer": 2}, TypeError, "'hybrid' takes no option 'num_layer': it takes num_l"),
    "base": ({"base": "studentt"}, ValueError, r"Unknown base 'studentt'.*mean 'student_t'"),
    "base's context": (
        {"base": lambda dim: pf.bases.StudentT(dim)},
        TypeError,
        r"base .* takes no 'context_dim': a recipe is called as \(dim, context_dim=0",
    ),
    "outer": ({"outer": "ful"}, ValueError, "expected outer to be one of .*'full'.*got 'ful'"),
    "no tuple": ({"model_args": Y}, TypeError, r"^AutoFlow expected model_args to be a tuple"),
    "missing": ({"model_args": ()}, TypeError, r"^AutoFlow: the model model\(y\) cannot be called"),
}


@pytest.mark.parametrize("fault", GUIDES)
def test_what_a_guide_cannot_be_is_refused_where_it_is_asked_for(fault: str):
    options, error, message = GUIDES[fault]
    with pytest.raises(error, match=message):
        pf.AutoFlow(model, **options)  # without model_args, no flow is built here
