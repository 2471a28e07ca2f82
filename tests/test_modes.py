"""Modes that the start climbed to and the guide has lost: seen, named, and no false alarms."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyroflows import AutoFlow, energy_model, importance_diagnostics


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def mixture(distance, weight, dim=2):
    """Two unit Gaussians at plus and minus ``distance``; ``weight`` is that of the positive one."""
    constant = -dim / 2 * math.log(2 * math.pi)

    def log_density(x):
        high = math.log(weight) - 0.5 * (x - distance).square().sum(-1)
        return constant + torch.logaddexp(
            high, math.log(1 - weight) - 0.5 * (x + distance).square().sum(-1)
        )

    return energy_model(log_density, dim=dim)


def collapse(guide, loc, scale=1.0):
    """Put the guide on one Gaussian, as a fit that has lost the other mode does."""
    eye = scale * torch.eye(guide.latent_dim)
    guide.bijector.bijectors[-1].set_(torch.full((guide.latent_dim,), loc), eye)
    return guide


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("distance", "dim"), [(20.0, 2), (60.0, 3), (8.0, 10)])
@pytest.mark.parametrize("weight", [0.38, 0.62, 0.97])
def test_a_lost_mode_is_named_with_its_mass(distance, dim, weight, seed):
    model = mixture(distance, weight, dim)
    guide = collapse(AutoFlow(model, "affine"), distance)
    report = importance_diagnostics(model, guide, seed=seed, num_samples=4000)
    # Nothing in the guide's own draws tells.
    assert report.pareto_k == -math.inf
    assert report.log_z == pytest.approx(math.log(weight), abs=1e-4)
    assert report.verdict == "do not trust"
    ((place, share),) = report.missed_modes
    assert f"(-{distance:.3g}, -{distance:.3g}" in place
    assert share == pytest.approx(1 - weight, rel=0.15)
    assert any("the guide's draws never go there" in reason for reason in report.reasons)


def test_a_mode_of_little_mass_is_told_but_costs_no_trust():
    model = mixture(20.0, 0.997)
    report = importance_diagnostics(model, collapse(AutoFlow(model, "affine"), 20.0), seed=0)
    ((_, share),) = report.missed_modes
    assert share == pytest.approx(0.003, rel=0.15)
    assert report.verdict == "usable"
    assert "Use the draws as they are" in str(report)


def test_a_lost_mode_is_met_with_one_guide_for_each():
    model = mixture(20.0, 0.6)
    report = importance_diagnostics(model, collapse(AutoFlow(model, "affine"), 20.0), seed=0)
    text = " ".join(str(report).split())
    assert "Fit one guide for each mode" in text
    assert "init_loc_fn=init_to_value(values={...})" in text
    assert "here {'x': (-20, -20)}" in text
    assert "fit longer" not in text.lower()
    assert max(map(len, str(report).splitlines())) <= 100


def test_other_reasons_beside_a_lost_mode_keep_their_advice():
    model = mixture(20.0, 0.6)
    guide = collapse(AutoFlow(model, "affine"), 20.0, scale=0.3)
    text = " ".join(str(importance_diagnostics(model, guide, seed=0)).split())
    assert "Fit one guide for each mode" in text
    assert "For the other reasons, fit longer" in text


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("distance", [1.5, 2.0, 2.5])
def test_a_guide_over_both_modes_raises_no_alarm(distance, seed):
    model = mixture(distance, 0.6)
    guide = AutoFlow(model, "affine")
    assert len(guide.modes) == 2
    report = importance_diagnostics(model, guide, seed=seed, num_samples=4000)
    assert report.missed_modes == ()
    assert "mode" not in " ".join(report.reasons)


def test_modes_of_a_copy_and_under_other_data():
    def model(shift):
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        high = -0.5 * (x - shift - 20).square().sum(-1)
        low = -0.5 * (x - shift + 20).square().sum(-1)
        pyro.factor("density", torch.logaddexp(high, low))

    here, there = torch.zeros(()), torch.full((), 300.0)
    guide = collapse(AutoFlow(model, "affine", model_args=(here,)), 20.0)
    twin = copy.deepcopy(guide)
    for each in (guide, twin):
        report = importance_diagnostics(model, each, model_args=(here,), seed=0)
        assert report.verdict == "do not trust"
        assert report.missed_modes[0][1] == pytest.approx(0.5, rel=0.15)
    # Fitted anew, to data for which the modes of the start are none.
    report = importance_diagnostics(model, collapse(guide, 320.0), model_args=(there,), seed=0)
    assert report.missed_modes == ()


def test_sites_are_named_as_the_model_has_them():
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        pyro.factor("f", -50 * (x.abs() - 5).square() + 0 * scale)

    guide = AutoFlow(model, "affine")
    loc = guide.pack({"scale": torch.tensor(1.0), "x": torch.tensor(5.0)})
    guide.bijector.bijectors[-1].set_(loc, torch.tensor([0.1, 0.1]).diag())
    report = importance_diagnostics(model, guide, seed=0)
    place, share = report.missed_modes[0]
    assert place.startswith("'x' = -5")
    assert share == pytest.approx(0.5, rel=0.15)


def test_a_model_run_one_draw_at_a_time_is_searched_too():
    def one_by_one():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        side = 20.0 if x[0].item() > 0 else -20.0
        pyro.factor("f", -0.5 * (x[0] - side).square() - 0.5 * x[1].square())

    modes = AutoFlow(mixture(20.0, 0.5), "affine").modes
    places = torch.tensor([[20.0, 0.0], [-20.0, 0.0]]).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guide = AutoFlow(one_by_one, "affine", init="point")
        guide.modes = tuple(
            replace(mode, loc=place, mode=place)
            for mode, place in zip(modes[-2:], places, strict=True)
        )
        guide.bijector.bijectors[-1].set_(torch.tensor([20.0, 0.0]), torch.eye(2))
        report = importance_diagnostics(one_by_one, guide, seed=0, num_samples=100)
    assert not report.vectorized
    assert report.missed_modes[0][1] == pytest.approx(0.5, rel=0.3)


def test_modes_known_by_their_scales_alone_as_in_high_dimension():
    model = mixture(8.0, 0.38, 10)
    guide = collapse(AutoFlow(model, "affine"), 8.0)
    guide.modes = tuple(replace(mode, scale_tril=None) for mode in guide.modes)
    report = importance_diagnostics(model, guide, seed=0)
    assert report.missed_modes[0][1] == pytest.approx(0.62, rel=0.05)
