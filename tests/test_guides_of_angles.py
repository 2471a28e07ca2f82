"""Guides whose latents are angles: a flow on circles from a base on circles."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import pyroflows as pf
from tests.case import HIDDEN

HALF = pf.bases.Uniform(1, low=-1.0, high=1.0)
MIXED = {"circular": [1], "hidden_dims": HIDDEN, "num_layers": 2}


def coupled_angles(x):
    """Two angles that follow one another, with a second heap on the far side of the circle."""
    first, second = x.unbind(-1)
    heaps = torch.logaddexp(2 * (first - 3.0).cos(), 1.0 * (first - 0.5).cos())
    return heaps + 3 * (second - first).cos()


def angle_and_number(x):
    number, angle = x.unbind(-1)
    return -0.5 * (number - angle.cos()).square() + 2 * (angle - 3.0).cos()


def log_mass(log_density, *axes):
    """By the midpoint rule, which is exact to rounding for what is smooth and periodic."""
    points, log_cell = [], 0.0
    for low, high, num in axes:
        points.append(low + (torch.arange(num, dtype=torch.float64) + 0.5) * ((high - low) / num))
        log_cell += math.log((high - low) / num)
    grid = torch.stack(torch.meshgrid(*points, indexing="ij"), -1)
    return (log_density(grid).flatten().logsumexp(0) + log_cell).item()


CIRCLE, LINE = (-math.pi, math.pi, 400), (-12.0, 12.0, 2000)


@pytest.mark.parametrize(
    ("log_density", "axes", "options"),
    [
        (coupled_angles, (CIRCLE, CIRCLE), {"hidden_dims": (16, 16)}),
        (coupled_angles, (CIRCLE, CIRCLE), {"hidden_dims": (16, 16), "base": "von_mises"}),
        (angle_and_number, (LINE, CIRCLE), MIXED),
    ],
    ids=["uniform", "von_mises", "mixed"],
)
def test_a_guide_fits_angles_across_the_seam(log_density, axes, options):
    pyro.set_rng_seed(0)
    log_z = log_mass(log_density, *axes)
    model = pf.energy_model(log_density, dim=2)
    guide = pf.AutoFlow(model, "ncsf", model_args=(), **options)
    start = pf.importance_diagnostics(model, guide, num_samples=4000, seed=1)
    fit = pf.fit_guide(model, guide, num_steps=300, num_particles=128, seed=0, progress_bar=False)
    found = fit.diagnostics
    assert log_z - start.elbo > 0.3
    assert -0.005 < log_z - found.elbo < 0.05
    assert abs(found.log_z - log_z) < 0.02
    assert not any("fall off" in reason for reason in found.reasons)  # a circle ends where it began
    draws = guide.get_posterior().sample((1000,))
    angles = draws if "circular" not in options else draws[:, options["circular"]]
    assert angles.abs().max() <= math.pi
    assert (angles.abs() > 2.8).any()  # mass on both sides of where the circle closes


def test_a_model_with_von_mises_sites():
    def model(seen):
        centre = pyro.sample("centre", dist.VonMises(torch.tensor(3.0), torch.tensor(1.0)))
        with pyro.plate("data", len(seen)):
            pyro.sample("seen", dist.VonMises(centre, torch.tensor(4.0)), obs=seen)

    seen = torch.tensor([3.0, -3.0, -2.5])
    pyro.set_rng_seed(0)
    guide = pf.AutoFlow(model, "ncsf", model_args=(seen,), hidden_dims=HIDDEN)
    fit = pf.fit_guide(
        model,
        guide,
        model_args=(seen,),
        num_steps=200,
        num_particles=128,
        seed=0,
        progress_bar=False,
    )
    # the sum of von Mises log densities with a common angle is one of them
    arrows = torch.polar(torch.tensor([1.0, 4.0, 4.0, 4.0]), torch.cat([torch.tensor([3.0]), seen]))
    towards = arrows.sum()
    log_normalisers = [math.log(2 * math.pi * torch.special.i0(k)) for k in arrows.abs()]
    log_z = math.log(2 * math.pi * torch.special.i0(towards.abs())) - sum(log_normalisers)
    assert abs(fit.diagnostics.log_z - log_z) < 0.02
    draws = guide.get_posterior().sample((4000,))
    error = torch.polar(torch.ones(()), draws).mean().angle() - towards.angle()
    assert torch.atan2(error.sin(), error.cos()).abs() < 0.05


def test_any_point_is_scored_and_outside_the_circle_there_is_nothing():
    model = pf.energy_model(coupled_angles, dim=2)
    guide = pf.AutoFlow(model, "ncsf", model_args=(), hidden_dims=HIDDEN)
    x, log_q = guide.get_posterior().rsample_and_log_prob((50,))
    torch.testing.assert_close(
        guide.log_prob({"x": x.detach().clone()}), log_q, atol=1e-4, rtol=1e-4
    )
    assert guide.log_prob({"x": torch.tensor([4.0, 0.0])}) == -torch.inf
    total = log_mass(lambda v: guide.log_prob({"x": v.float()}).detach().double(), CIRCLE, CIRCLE)
    assert abs(total) < 1e-3
    assert "next to the identity" in guide.report


def test_svi_takes_a_guide_of_angles():
    model = pf.energy_model(coupled_angles, dim=2)
    guide = pf.AutoFlow(model, "ncsf", model_args=(), hidden_dims=HIDDEN)
    elbo = Trace_ELBO(num_particles=8)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    losses = [svi.step() for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_what_would_cut_a_circle_is_refused():
    model = pf.energy_model(coupled_angles, dim=2)
    for options, message in [
        ({"base": "student_t"}, "a base with angles.*'von_mises'"),
        ({"base": "diagonal_normal"}, "a base with angles"),
        ({"outer": "full"}, "circles onto themselves"),
        ({"outer": "diagonal"}, "circles onto themselves"),
    ]:
        with pytest.raises(ValueError, match=message):
            pf.AutoFlow(model, "ncsf", model_args=(), **options)
    with pytest.raises(ValueError, match="site 'scale' as an angle, but its support"):
        pf.AutoFlow(lambda: pyro.sample("scale", dist.Gamma(1.0, 1.0)), "ncsf", model_args=())
    with pytest.raises(ValueError, match="or a flow of angles, 'ncsf'"):
        pf.AutoFlow(model, "nsf", base="uniform", model_args=())


def test_a_base_with_other_angles_than_the_flow_is_refused():
    """A line that starts on a circle would stay bounded, a part of a circle would stay a part."""
    model = pf.energy_model(angle_and_number, dim=2)
    for base, message in [
        ("von_mises", r"coordinate 0 is a real number.*got VonMises.*angles \[1\].*partial"),
        ("uniform", "coordinate 0 is a real number"),
        (partial(pf.build_base, "circular", indices=[0]), "coordinate 0 is a real number"),
        (pf.bases.Product([(pf.bases.StandardNormal(1), [0]), (HALF, [1])]), "coordinate 1 is an"),
    ]:
        with pytest.raises(ValueError, match=message):
            pf.AutoFlow(model, "ncsf", model_args=(), base=base, **MIXED)
    base = partial(pf.build_base, "circular", indices=[1], circle="von_mises", line="student_t")
    guide = pf.AutoFlow(model, "ncsf", model_args=(), base=base, **MIXED)
    assert guide.log_prob(guide()).isfinite()


def test_an_angle_among_numbers_is_named():
    def model():
        pyro.sample("speed", dist.Gamma(2.0, 1.0))
        pyro.sample("wind", dist.VonMises(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"'wind' as a real number.*circular=\[1, 2\]"):
        pf.AutoFlow(model, "nsf", model_args=())
    guide = pf.AutoFlow(model, "ncsf", circular=[1, 2], hidden_dims=HIDDEN, model_args=())
    assert guide.report.endswith("coordinates [1, 2] are angles")
    assert guide()["wind"].abs().max() <= math.pi


def test_no_angles_in_ncsf_is_a_guide_like_any():
    model = pf.energy_model(lambda x: -0.5 * (x - 7).square().sum(-1), dim=2)
    guide = pf.AutoFlow(model, "ncsf", model_args=(), circular=[], hidden_dims=HIDDEN)
    assert guide.get_posterior().base is None
    torch.testing.assert_close(guide.median_latent(), torch.full((2,), 7.0), atol=0.1, rtol=0)
