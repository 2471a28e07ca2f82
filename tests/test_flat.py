"""Improper posteriors are not trusted, at few draws too; proper ones with long tails are."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyroflows import AutoFlow, energy_model, fit_guide, importance_diagnostics
from pyroflows.infer.draws import draw_from_guide

ROTATION = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))[0]


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def ridge(x):
    return -0.5 * (x[..., 0] - x[..., 1]).square()


def rotated_ridge(x):
    # By hand: a matrix product rounds a batch of such long vectors in another way than one.
    columns = [sum(x[..., i] * ROTATION[i, j].item() for i in range(4)) for j in range(1, 4)]
    return -0.5 * sum(column.square() for column in columns)


def one_sided(x):
    return -0.5 * x[..., 1].square() - 0.5 * x[..., 0].relu().square()


@pytest.mark.parametrize("flow", ["diagonal", "nsf"])
@pytest.mark.parametrize(
    ("density", "dim"), [(ridge, 2), (rotated_ridge, 4), (one_sided, 2)], ids=lambda p: str(p)[:16]
)
def test_a_posterior_without_end_is_not_trusted(density, dim, flow):
    # In single precision the rotation itself would round a ridge that is a million long.
    dtype = torch.float64 if density is rotated_ridge else torch.float32
    model = energy_model(density, dim=dim, dtype=dtype)
    guide = AutoFlow(model, flow)
    fit_guide(model, guide, num_steps=60, seed=0, progress_bar=False, num_diagnostic_samples=0)
    for seed in range(10):
        report = importance_diagnostics(model, guide, seed=seed, num_samples=1000)
        assert report.verdict == "do not trust", report
        if density is not one_sided:
            assert "does not fall off along 'x'" in report.reasons[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_flat_latents_are_named(seed):
    def model():
        pyro.sample("proper", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 2):
            a = pyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
            b = pyro.sample("b", dist.ImproperUniform(constraints.real, (), ()))
            pyro.sample("y", dist.Normal(a - b, 1.0), obs=torch.tensor([1.0, 2.0]))

    report = importance_diagnostics(model, AutoFlow(model, "diagonal"), seed=seed)
    assert "along 'a', 'b'," in report.reasons[0]


def student(x):
    return -2 * torch.log1p(x.square() / 3).sum(-1)


def laplace(x):
    return -x.abs().sum(-1)


def skewed(x):
    return (0.3 * x - x.exp()).sum(-1)


def plateau(x):
    return -((x / 4) ** 8).sum(-1)


@pytest.mark.parametrize("density", [student, laplace, skewed, plateau])
def test_long_or_level_but_proper_posteriors_raise_no_alarm(density):
    model = energy_model(density, dim=2)
    guide = AutoFlow(model, "affine")
    for seed in range(10):
        draws = draw_from_guide(model, guide, seed=seed, num_samples=100)
        assert draws.flat is None


def test_a_model_run_one_draw_at_a_time_is_probed_enough():
    def model():
        x = pyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (2,)))
        ways = (x[0] - x[1], x[1] - x[0])
        pyro.factor("f", -0.5 * ways[x[0].item() > 0].square())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guide = AutoFlow(model, "diagonal")
        draws = draw_from_guide(model, guide, seed=0, num_samples=700)
    assert not draws.vectorized
    assert len(draws.probe) == 500
    assert draws.flat == "'x'"


def test_a_draw_scored_through_a_rounded_inverse_is_no_failure_to_broadcast():
    """A ridge in single precision, a million times as long as wide."""
    model = energy_model(ridge, dim=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = importance_diagnostics(model, AutoFlow(model, "nsf"), seed=1, num_samples=500)
    assert report.vectorized
