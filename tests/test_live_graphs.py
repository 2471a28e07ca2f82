"""A flat graph never answers for a model that has become another."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyroflows import AutoFlow, fit_guide, vectorized_log_density

pytestmark = pytest.mark.usefixtures("_double")
POINTS = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]


def often(density, points):
    """The last of so many calls that a graph is in use."""
    for _ in range(30):
        value = density(points)
    return value


def latent():
    return pyro.sample("x", dist.Normal(0.0, 1.0))


def test_a_tensor_passed_twice_and_then_another():
    def model(a, b):
        x = latent()
        pyro.factor("f", -((x - a) ** 2) - (x - b) ** 2)

    one, two = torch.tensor(1.0), torch.tensor(2.0)
    density = vectorized_log_density(model, model_args=(one, one))
    before = often(density, POINTS)
    density._density.model_args = (one, two)
    expected = before + (POINTS[:, 0] - 1) ** 2 - (POINTS[:, 0] - 2) ** 2
    assert_close(density(POINTS), expected)


def test_an_argument_that_the_model_holds_too():
    held = torch.tensor(1.0)

    def model(a):
        x = latent()
        pyro.factor("f", -a * held * x**2)

    density = vectorized_log_density(model, model_args=(held,))
    before = often(density, POINTS)
    density._density.model_args = (torch.tensor(2.0),)
    assert_close(density(POINTS), before - POINTS[:, 0] ** 2)


@pytest.mark.parametrize("read", [float, torch.Tensor.item], ids=["float", "item"])
def test_a_number_read_from_a_tensor_that_the_model_holds(read):
    beta = torch.tensor(1.0)

    def model():
        x = latent()
        pyro.factor("f", -read(beta) * x**2)

    density = vectorized_log_density(model)
    before = often(density, POINTS)
    beta.fill_(3.0)
    assert_close(density(POINTS), before - 2 * POINTS[:, 0] ** 2)


def test_a_mask_that_the_model_holds():
    keep = torch.tensor([True, False, True])
    y = torch.tensor([1.0, 2.0, 3.0])

    def model():
        x = latent()
        pyro.factor("f", -((x - y[keep]) ** 2).sum())

    density = vectorized_log_density(model)
    before = often(density, POINTS)
    keep.fill_(True)
    assert_close(density(POINTS), before - (POINTS[:, 0] - 2) ** 2)


def test_a_store_that_was_cleared():
    pyro.clear_param_store()

    def model():
        shift = pyro.param("shift", torch.tensor(0.0))
        x = latent()
        pyro.factor("f", -((x - shift) ** 2))

    density = vectorized_log_density(model)
    before = often(density, POINTS)
    with torch.no_grad():
        pyro.param("shift").fill_(5.0)
    assert not torch.allclose(density(POINTS), before)
    pyro.clear_param_store()
    assert_close(density(POINTS), before)
    assert "shift" in pyro.get_param_store()


class Settings:
    beta = 1.0


def test_what_cannot_be_seen_is_found_within_fifty_calls():
    def model():
        x = latent()
        pyro.factor("f", -Settings.beta * x**2)

    density = vectorized_log_density(model)
    before = often(density, POINTS)
    for _ in range(120):
        density(POINTS)
    Settings.beta = 2.0
    try:
        with pytest.warns(UserWarning, match="changed between calls"):
            value = [density(POINTS) for _ in range(50)][-1]
    finally:
        Settings.beta = 1.0
    assert_close(value, before - POINTS[:, 0] ** 2)


def plain(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.as_tensor(y, dtype=torch.float64))


def enclosing(y):
    def model():
        plain(y)

    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda y: (plain, (y,)),
        lambda y: (plain, (np.full(1, y),)),
        lambda y: (functools.partial(plain, y), ()),
        lambda y: (enclosing(y), ()),
        lambda y: (enclosing(torch.tensor(y)), ()),
    ],
    ids=["number", "array", "partial", "closure", "tensor in a closure"],
)
def test_a_file_of_a_fit_to_other_data_is_refused(make, tmp_path):
    options = {"num_steps": 5, "progress_bar": False, "num_diagnostic_samples": 0, "seed": 0}
    for y in (1.0, 50.0):
        model, args = make(y)
        guide = AutoFlow(model, "diagonal", model_args=args, init="point")
        call = functools.partial(
            fit_guide, model, guide, model_args=args, checkpoint=tmp_path / "fit", **options
        )
        if y == 1.0:
            call()
        else:
            with pytest.raises(ValueError, match="another"):
                call()
