"""The order in which the default flow lets some coordinates set the width of others."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyroflows import AutoFlow
from pyroflows.bijectors import Autoregressive


def model():
    pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("groups", 2):
        pyro.sample("scale", dist.Gamma(2.0, 1.0))
    pyro.sample("flat", dist.ImproperUniform(constraints.positive, (), ()))


def orders(guide):
    return [list(m.conditioner.order) for m in guide.modules() if isinstance(m, Autoregressive)]


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()


def init(site):
    return torch.ones(site["fn"].shape()) * 0.5


def test_positive_latents_come_first_and_all_others_as_they_are_drawn():
    guide = AutoFlow(model, model_args=(), init="point", init_loc_fn=init)
    assert orders(guide) == [[2, 1, 0, 5, 4, 3], [3, 4, 5, 0, 1, 2]]


def test_an_order_of_ones_own():
    order = [5, 3, 1, 0, 2, 4]
    guide = AutoFlow(model, model_args=(), init="point", init_loc_fn=init, order=order)
    assert orders(guide) == [order[::-1], order]
