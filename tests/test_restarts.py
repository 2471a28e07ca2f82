"""Independent refits: the best is kept, and those that disagree are heard."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyroflows as pf
from pyroflows.infer.report import Restart
from pyroflows.infer.restarts import _judge

QUICK = {"num_steps": 40, "num_particles": 64, "seed": 0, "progress_bar": False}
QUICK |= {"num_diagnostic_samples": 2000}


def pair():
    x = pyro.sample("x", dist.Normal(3.0, 2.0))
    pyro.sample("y", dist.Normal(0.5 * x, 0.1))


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def test_refits_of_an_easy_posterior_agree():
    guide = pf.AutoFlow(pair, "affine")
    fit = pf.fit_guide(pair, guide, num_restarts=2, **QUICK)
    assert fit.guide is guide
    assert len(fit.restarts) == 2
    assert fit.diagnostics.verdict == "usable"
    assert all(r.verdict == "usable" and r.shift < 0.1 for r in fit.restarts)
    assert {fit.seed, *(r.seed for r in fit.restarts)} == {0, 7919, 2 * 7919}
    assert "The best of 3 independent fits" in str(fit)


def test_the_best_is_kept_and_nothing_else():
    guide = pf.AutoFlow(pair, "nsf", num_layers=1, hidden_dims=(8,))
    fit = pf.fit_guide(pair, guide, num_restarts=1, **QUICK)
    assert fit.elbo >= max(r.elbo for r in fit.restarts)
    again = pf.importance_diagnostics(pair, guide, num_samples=2000, seed=fit.seed)
    assert again.elbo == pytest.approx(fit.elbo, abs=1e-5)
    assert not [key for key in pyro.get_param_store() if "restart" in key]
    names = [name for name, _ in guide.named_parameters()]
    assert len(names) == len(set(names))


def two_heaps():
    x = pyro.sample("x", dist.Normal(0.0, 30.0))
    away = torch.logaddexp(-0.5 * ((x - 20) / 0.3) ** 2, -0.5 * ((x + 20) / 0.3) ** 2 - 2.0)
    pyro.factor("heaps", away)


def test_a_guide_made_again_has_weights_and_a_start_of_its_own():
    from pyroflows.guides.again import made_again

    guide = pf.AutoFlow(two_heaps, "nsf", hidden_dims=(8,))
    twin = made_again(guide, (), {}, 1, "twin")
    mine, other = (dict(g.named_parameters()) for g in (guide, twin))
    assert mine.keys() == other.keys()
    assert not any(mine[name] is other[name] for name in mine)
    weights = [name for name in mine if name.endswith("weight")]
    assert any(not torch.equal(mine[name], other[name]) for name in weights)


def report(**changes):
    guide = pf.AutoFlow(pair, "affine")
    return replace(pf.importance_diagnostics(pair, guide, num_samples=2000, seed=0), **changes)


AGREES = Restart(1, -0.01, 0.0, 0.001, "usable", 0.02, 1.01)


def test_a_refit_that_finds_more_is_believed():
    kept = report()
    assert _judge(kept, (AGREES,)).verdict == "usable"
    more = replace(AGREES, log_z=kept.log_z + 0.5)
    judged = _judge(kept, (AGREES, more))
    assert judged.verdict == "do not trust"
    assert "0.5 nat higher" in judged.reasons[0]
    # what is not to be trusted itself accuses nobody
    assert _judge(kept, (replace(more, verdict="do not trust"),)).verdict == "usable"


@pytest.mark.parametrize("change", [{"shift": 0.4}, {"spread": 1.5}, {"spread": 0.6}])
def test_a_refit_elsewhere_asks_for_weights(change):
    judged = _judge(report(), (replace(AGREES, **change),))
    assert judged.verdict == "reweight"
    assert "an independent refit has a mean" in judged.reasons[0]
    assert _judge(report(verdict="do not trust"), (replace(AGREES, **change),)).reasons == (
        "raw and weighted draws agree in every latent coordinate",
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_restarts": -1}, ValueError, "integer >= 0, got -1"),
        ({"num_restarts": 1.5}, ValueError, "integer >= 0, got 1.5"),
        ({"num_restarts": 1, "num_diagnostic_samples": 0}, ValueError, "leaves these out"),
        ({"num_restarts": 1, "optimizer": pyro.optim.Adam({})}, ValueError, "for each fit"),
    ],
)
def test_what_cannot_be_refitted_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        pf.fit_guide(pair, pf.AutoFlow(pair, "affine"), **QUICK | options)


def test_other_guides_are_not_made_again():
    guide = pyro.infer.autoguide.AutoNormal(pair)
    with pytest.raises(TypeError, match="for an AutoFlow, got AutoNormal"):
        pf.fit_guide(pair, guide, num_restarts=1, **QUICK)


def test_a_bound_that_rises_when_the_rate_falls_is_told():
    losses = [10 - 0.01 * i for i in range(300)] + [7.0] * 100
    rates = [0.01] * 300 + [0.01 * (1 - i / 100) for i in range(1, 101)]
    fit = pf.GuideFit(pair, losses, rates, 1.0, "num_steps", 8)
    assert fit.rise[0] == pytest.approx(1.0)
    assert "still rose by 1" in str(fit)
    flat = pf.GuideFit(pair, [7.0] * 400, rates, 1.0, "num_steps", 8)
    assert "still rose" not in str(flat)


def test_a_bound_that_rises_to_the_end_of_a_short_fit_is_told():
    guide = pf.AutoFlow(pair, "affine", init="point")
    fit = pf.fit_guide(pair, guide, num_steps=20, seed=0, progress_bar=False)
    assert fit.diagnostics.verdict == "do not trust"
    assert "The bound still rose by" in str(fit)
    rates = [0.01] * 14 + [0.001] * 6
    noise = torch.randn(20, generator=torch.Generator().manual_seed(0)).tolist()
    assert "still rose" not in str(pf.GuideFit(pair, noise, rates, 1.0, "num_steps", 8))
