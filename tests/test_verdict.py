"""What the verdict must see, and what it must not make much of."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value

from pyroflows import AutoFlow, energy_model, importance_diagnostics


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def mixture(distance, weight, dim=2):
    """Two unit Gaussians at plus and minus ``distance``; ``weight`` is that of the positive one."""

    def log_density(x):
        high = math.log(weight) - 0.5 * (x - distance).square().sum(-1)
        return torch.logaddexp(high, math.log1p(-weight) - 0.5 * (x + distance).square().sum(-1))

    return energy_model(log_density, dim=dim)


# Modes that a guide without a search of its own never met ------------------------------------


def normal_guide(loc, dim):
    def guide():
        pyro.sample("x", dist.Normal(torch.full((dim,), loc), 1.0).to_event(1))

    return guide


def pyro_guide(kind, loc, dim):
    start = init_to_value(values={"x": torch.full((dim,), loc)})
    return kind(mixture(loc, 0.5, dim), init_loc_fn=start, init_scale=1.0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("weight", [0.3, 0.9])
@pytest.mark.parametrize("kind", ["by hand", "mean field", "full", "point"])
def test_a_guide_in_one_of_two_modes_is_told_of_the_other(kind, weight, seed):
    model = mixture(10.0, weight, 3)
    if kind == "point":
        start = {"init": "point", "init_scale": 1.0}
        guide = AutoFlow(model, "affine", **start)
        guide.bijector.bijectors[-1].set_(torch.full((3,), 10.0), torch.eye(3))
    elif kind == "by hand":
        guide = normal_guide(10.0, 3)
    else:
        guide = pyro_guide(AutoNormal if kind == "mean field" else AutoMultivariateNormal, 10.0, 3)
    report = importance_diagnostics(model, guide, seed=seed, num_samples=4000)
    assert report.ess > 0.99  # nothing in the guide's own draws tells
    assert report.verdict == "do not trust"
    ((place, share),) = report.missed_modes
    assert place.startswith("'x' = (-10, -10, -10)")
    assert share == pytest.approx(1 - weight, rel=0.15)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("distance", [0.5, 2.0, 10.0])
def test_a_guide_that_holds_its_modes_raises_no_alarm(distance, seed):
    model = mixture(distance, 0.6)

    def guide():
        loc = torch.tensor([[distance, distance], [-distance, -distance]])
        parts = dist.Normal(loc, 1.0).to_event(1)
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.6, 0.4])), parts))

    report = importance_diagnostics(model, guide, seed=seed, num_samples=4000)
    assert report.missed_modes == ()
    assert report.verdict == "usable"


def test_a_guide_far_from_the_only_mode_is_told_where_it_is():
    def model():
        scale = pyro.sample("scale", dist.LogNormal(2.0, 0.1))
        pyro.sample("x", dist.Normal(100.0, scale))

    def guide():
        pyro.sample("scale", dist.LogNormal(2.0, 0.1))
        pyro.sample("x", dist.Normal(-100.0, 0.5))

    report = importance_diagnostics(model, guide, seed=0, num_samples=1000)
    assert report.verdict == "do not trust"
    assert report.missed_modes[0][0].startswith("'x' = 100")
    text = " ".join(str(report).split())
    assert "Fit longer" in text
    assert "one guide for each mode" not in text  # it holds none of them


def test_a_user_who_chose_where_a_flow_starts_is_not_told_of_elsewhere():
    """One guide for each mode: each is judged on its own."""
    model = mixture(10.0, 0.7)
    start = init_to_value(values={"x": torch.full((2,), -10.0)})
    guide = AutoFlow(model, "affine", init_loc_fn=start)
    report = importance_diagnostics(model, guide, seed=0)
    assert report.verdict == "usable"
    assert report.log_z == pytest.approx(math.log(2 * math.pi * 0.3), abs=0.01)


# Guides that end where the posterior goes on -------------------------------------------------


def half_normal():
    pyro.sample("x", dist.HalfNormal(1.0))


def uniform():
    pyro.sample("x", dist.Uniform(-10.0, 0.5))


@pytest.mark.parametrize("guide", [half_normal, uniform])
def test_a_guide_that_is_cut_off_is_not_trusted(guide):
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    report = importance_diagnostics(model, guide, seed=0)
    assert report.verdict == "do not trust"
    told = [reason for reason in report.reasons if "outside the support of the guide" in reason]
    assert told
    share = int(told[0].split("at least ")[1].split(" %")[0].split("%")[0]) / 100
    assert 0.02 < share < (0.5 if guide is half_normal else 0.31)  # a lower bound


def test_a_guide_with_the_support_of_the_posterior_is_not_blamed_for_it():
    def model():
        p = pyro.sample("p", dist.Beta(2.0, 5.0))
        pyro.sample("s", dist.Gamma(3.0, 1.0 + p))

    def guide():
        p = pyro.sample("p", dist.Beta(2.0, 5.0))
        pyro.sample("s", dist.Gamma(3.0, 1.0 + p))

    assert importance_diagnostics(model, guide, seed=0).verdict == "usable"


# A heavy tail with next to nothing in it -----------------------------------------------------


def contaminated(share, scale=3.0):
    """A standard normal, but for a share that is wider."""
    mixing = dist.Categorical(torch.tensor([1 - share, share], dtype=torch.float64))
    scales = torch.tensor([1.0, scale], dtype=torch.float64)
    target = dist.MixtureSameFamily(mixing, dist.Normal(torch.zeros(2).double(), scales))
    return lambda: pyro.sample("x", target)


def standard():
    pyro.sample("x", dist.Normal(torch.tensor(0.0).double(), 1.0))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [1e-6, 1e-4])
def test_a_heavy_tail_that_holds_nothing_is_no_reason_for_distrust(share, seed):
    """The standard deviation is right to a thousandth, whatever the shape of the weights."""
    report = importance_diagnostics(contaminated(share), standard, seed=seed)
    assert report.pareto_k > 0.5
    assert report.lacking < 1e-3
    assert report.verdict == "usable"
    assert "little is in it" in report.reasons[1]
    assert f"{report.pareto_k:.2f}" in report.reasons[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.03, 0.05, 0.1])
def test_a_heavy_tail_that_holds_something_still_is(share, seed):
    """The standard deviation is short by 11 % and more."""
    report = importance_diagnostics(contaminated(share), standard, seed=seed)
    assert report.lacking > 0.005
    assert report.verdict != "usable"


def test_the_share_that_a_guide_lacks_is_that_of_the_target():
    share, scale = 0.05, 3.0
    report = importance_diagnostics(contaminated(share, scale), standard, seed=0)
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    wide = dist.Normal(torch.tensor(0.0).double(), scale).log_prob(x).exp()
    narrow = dist.Normal(torch.tensor(0.0).double(), 1.0).log_prob(x).exp()
    target = (1 - share) * narrow + share * wide
    exact = float((target * (target > 2 * narrow)).sum() * (x[1] - x[0]))
    assert report.lacking == pytest.approx(exact, rel=0.25)
    assert report.lacking > exact


# The same where no coordinate of the guide's noise leads ------------------------------------


def energy(log_density, dim):
    model = energy_model(log_density, dim=dim)
    guide = AutoFlow(model, "affine", init="point", init_scale=1.0)
    guide.bijector.bijectors[-1].set_(torch.zeros(dim), torch.eye(dim))
    return model, guide


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dim", [3, 10, 40])
def test_a_heavy_tail_in_all_coordinates_together_is_seen(dim, seed):
    """Standard deviations are short by 18 %, but the weights of draws are all but equal."""

    def log_density(x):
        square = x.square().sum(-1)
        wide = math.log(0.05) - dim * math.log(3) - square / 18
        return torch.logaddexp(math.log(0.95) - square / 2, wide)

    report = importance_diagnostics(*energy(log_density, dim), seed=seed)
    assert report.lacking > 0.01
    assert report.verdict != "usable"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dim", [3, 40])
@pytest.mark.parametrize(("share", "exact"), [(0.03, 0.009655), (0.005, 0.001176)])
def test_a_heavy_tail_across_the_coordinates_is_seen(share, exact, dim, seed):
    """Its share, by quadrature along it, is the least that is said."""

    def log_density(x):
        along = x.sum(-1).square() / dim
        near = torch.full_like(along, math.log(1 - share))
        wide = math.log(share / 3) + along * (1 - 1 / 9) / 2
        return torch.logaddexp(near, wide) - x.square().sum(-1) / 2

    report = importance_diagnostics(*energy(log_density, dim), seed=seed)
    assert 0.95 * exact < report.lacking < 3 * exact
    assert (report.verdict == "usable") == (share == 0.005)
