"""Tensors on different devices are refused by name; ``meta`` stands in for a GPU."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyroflows import AutoFlow, fit_guide, importance_diagnostics, to_inference_data

Y = torch.tensor([1.0, 2.0, 3.0])
QUIET = {"num_steps": 3, "progress_bar": False, "num_diagnostic_samples": 0}


def model(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize("kwargs", [False, True])
def test_data_on_another_device_are_named(kwargs):
    guide = AutoFlow(model, "affine", model_args=(Y,))
    data = {"model_kwargs": {"y": Y.to("meta")}} if kwargs else {"model_args": (Y.to("meta"),)}
    name = r"model_kwargs\['y'\]" if kwargs else r"model_args\[0\]"
    message = rf"AutoFlow is on cpu, but {name} is on meta: move one of them, data.to\('cpu'\)"
    with pytest.raises(ValueError, match=message):
        fit_guide(model, guide, **data, **QUIET)


@pytest.mark.parametrize(
    "use",
    [
        lambda guide: fit_guide(model, guide, model_args=(Y,), **QUIET),
        lambda guide: importance_diagnostics(model, guide, model_args=(Y,), num_samples=50),
        lambda guide: to_inference_data(guide, model, model_args=(Y,)),
    ],
)
def test_a_guide_that_was_moved_away_from_its_data_says_so(use):
    guide = AutoFlow(model, "affine", model_args=(Y,)).to("meta")
    message = r"AutoFlow is on meta, but model_args\[0\] is on cpu: move.*guide.to\('cpu'\)"
    with pytest.raises(ValueError, match=message):
        use(guide)


@pytest.mark.parametrize("make", [AutoFlow, AutoNormal])
def test_tensors_that_the_model_holds_itself_are_told_of(make):
    held = [Y]

    def holding(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=held[0] * x)

    guide = make(holding)
    guide(Y)
    held[0] = Y.to("meta")
    message = (
        rf"model and guide hold tensors on different devices \(the parameters of {make.__name__} "
        r"on cpu, model_args\[0\] on cpu; torch says: .*the tensors that the model itself"
    )
    with pytest.raises(ValueError, match=message):
        fit_guide(holding, guide, model_args=(Y,), **QUIET)
