"""Log Z by bridge sampling: known evidence, honest errors, refusals."""

import dataclasses
import math
import random
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyroflows as pf
from pyroflows.infer._seeding import seeded
from pyroflows.infer.posterior.bridge import _estimate, _seeded_apart, iterate_bridge
from tests import conjugate
from tests.conjugate import CASES
from tests.pretended import pretended_device

ERRORS = 4.0  # standard errors that a result may be off by
SHORT = {"num_samples": 120, "num_warmup": 60, "seed": 1, "progress_bar": False}
QUIET = pytest.mark.filterwarnings("ignore:polish. the guide is not to be trusted")


def bridge(case, guide, *, seed=2, method="hmc", **kwargs):
    data = {"model_args": (case.data,)}
    chains = pf.polish(case.model, guide, method=method, **data, **(SHORT | kwargs))
    return pf.bridge_log_z(case.model, guide, chains=chains, seed=seed, **data)


# Laws


@pytest.mark.parametrize("method", ["hmc", "independence"])
@pytest.mark.parametrize("name", list(CASES))
def test_log_z_is_known(name, method):
    case = CASES[name]()
    found = bridge(case, case.guide(), method=method)
    assert 0 < found.log_z_se < 0.03
    assert abs(found.log_z - case.log_z) < ERRORS * found.log_z_se
    assert abs(found.psis_log_z - case.log_z) < ERRORS * found.psis_log_z_se
    assert 1 < found.num_iterations < 50
    assert 200 < found.num_effective < 8000
    assert found.num_guide_draws == 16 * 120


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exact_guide_has_no_error(dtype):
    case = conjugate.normal(dtype)
    found = bridge(case, case.guide(scale=1.0, shift=0.0))
    tolerance = 1e-5 if dtype is torch.float32 else 1e-9
    assert found.log_z == pytest.approx(case.log_z, abs=tolerance)
    assert found.log_z_se < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hmc", "independence"])
def test_errors_are_calibrated(method):
    case = conjugate.normal()
    guide = case.guide()
    size = {"num_chains": 16, "num_samples": 25, "num_warmup": 8, "progress_bar": False}
    size |= {"num_leapfrog": 2, "method": method}
    scores = []
    for seed in range(40):
        chains = pf.polish(case.model, guide, model_args=(case.data,), seed=seed, **size)
        found = pf.bridge_log_z(
            case.model, guide, model_args=(case.data,), chains=chains, seed=seed
        )
        scores.append((found.log_z - case.log_z) / found.log_z_se)
    scores = np.array(scores)
    assert (np.abs(scores) < 3).mean() >= 0.95
    assert 0.6 < np.sqrt((scores**2).mean()) < 1.5


def test_a_guide_without_the_tails_is_where_a_bridge_is_better_than_weights():
    case = conjugate.normal()
    found = bridge(case, case.guide(scale=0.6, shift=0.0), num_samples=400)
    assert abs(found.log_z - case.log_z) < ERRORS * found.log_z_se
    assert found.log_z_se < 0.05


@QUIET
def test_modes_that_a_guide_weighs_wrongly():
    case = conjugate.two_modes()
    guide = pf.AutoFlow(case.model, conjugate.TwoModes, model_args=(case.data,), outer=None)
    crossing = bridge(case, guide, method="independence", num_samples=500)
    assert abs(crossing.log_z) < ERRORS * crossing.log_z_se
    assert crossing.log_z_se < 0.05
    stuck = bridge(case, case.wide_guide(), num_samples=40, num_warmup=30)
    # Chains that cannot cross are worth a draw each: the error is honest about it.
    assert stuck.num_effective < 50
    assert abs(stuck.log_z) < ERRORS * stuck.log_z_se


@QUIET
def test_regions_without_a_density():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.validation_enabled(False):
            pyro.factor("cut", torch.where(x > -0.5, 0.0, math.nan))

    guide = pf.AutoFlow(model, "affine", init="point", init_scale=1.1)
    chains = pf.polish(model, guide, method="independence", seed=0, progress_bar=False)
    found = pf.bridge_log_z(model, guide, chains=chains, seed=0)
    assert abs(found.log_z - math.log(0.6914624612740131)) < ERRORS * found.log_z_se


# The iteration


def log_weight(x):
    """Of a standard normal under a guide that is 1.3 wide and off by 0.3."""
    guide = dist.Normal(*torch.tensor([0.3, 1.3], dtype=torch.float64))
    return dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(x) - guide.log_prob(x)


@pytest.mark.parametrize(
    ("length", "num_guide", "rho"), [(50, 4000, 0.0), (1000, 200, 0.0), (200, 4000, 0.8)]
)
def test_errors_of_each_side_are_calibrated(length, num_guide, rho):
    scores, psis = [], SimpleNamespace(log_z=0.0, log_z_se=0.0, rounding=0.0)
    for _ in range(200):
        noise = torch.randn(4, length, dtype=torch.float64)
        x = noise.clone()
        for i in range(1, length if rho else 0):
            x[:, i] = rho * x[:, i - 1] + math.sqrt(1 - rho**2) * noise[:, i]
        own = 0.3 + 1.3 * torch.randn(num_guide, dtype=torch.float64)
        chains = SimpleNamespace(log_p=log_weight(x), log_q=torch.zeros_like(x))
        found = _estimate(chains, log_weight(own), psis)
        scores.append(found.log_z / found.log_z_se)
    rms = math.sqrt(sum(score**2 for score in scores) / len(scores))
    assert 0.85 < rms < 1.17  # three standard errors of it


def test_iteration_against_the_formula():
    posterior, guide = (torch.randn(n, dtype=torch.float64) for n in (50, 70))
    log_z, count = iterate_bridge(posterior, guide, 50.0, 0.0)
    s1, s2 = 50 / 120, 70 / 120
    w1, w2, z = posterior.exp(), guide.exp(), math.exp(log_z)
    upper = (w2 / (s1 * w2 + s2 * z)).mean()
    lower = (1 / (s1 * w1 + s2 * z)).mean()
    assert float(upper / lower) == pytest.approx(z, rel=1e-9)
    assert count < 200


@pytest.mark.parametrize("shift", [-1e5, 1e5])
def test_iteration_far_from_one(shift):
    posterior, guide = (torch.randn(n, dtype=torch.float64) for n in (50, 70))
    near, _ = iterate_bridge(posterior, guide, 50.0, 0.0)
    far, _ = iterate_bridge(posterior + shift, guide + shift, 50.0, -math.inf)
    assert far - shift == pytest.approx(near, abs=2e-5)


def test_weights_of_zero_count_as_zero():
    guide = torch.tensor([0.0, -math.inf], dtype=torch.float64).repeat(500)
    posterior = torch.zeros(1000, dtype=torch.float64)
    assert iterate_bridge(posterior, guide, 1000.0, 0.0)[0] == pytest.approx(-math.log(2))


# Arguments


def test_other_guides_are_refused():
    case = conjugate.normal()
    with pytest.raises(TypeError, match=r"bridge_log_z expected an AutoFlow.*got AutoNormal"):
        pf.bridge_log_z(case.model, AutoNormal(case.model), model_args=(case.data,))


def test_other_chains_are_refused():
    case = conjugate.normal()
    guide = case.guide()
    data = {"model_args": (case.data,)}
    with pytest.raises(TypeError, match="expected chains of polish, got dict"):
        pf.bridge_log_z(case.model, guide, chains={"x": case.data}, **data)
    chains = pf.polish(case.model, guide, **data, **SHORT | {"num_samples": 5, "num_warmup": 5})
    with pytest.raises(ValueError, match="chains are of another model, guide or data"):
        pf.bridge_log_z(case.model, case.guide(shift=0.1), chains=chains, **data)
    with pytest.raises(ValueError, match="chains are of another model, guide or data"):
        pf.bridge_log_z(case.model, guide, chains=chains, model_args=(case.data + 0.1,))
    with pytest.raises(ValueError, match="num_guide_draws to be an int >= 1, got 0"):
        pf.bridge_log_z(case.model, guide, chains=chains, num_guide_draws=0, **data)


def test_a_subsampled_plate_is_refused():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y), subsample_size=2) as i:
            pyro.sample("y", dist.Normal(x, 1.0), obs=y[i])

    y = torch.arange(4.0)
    with pytest.raises(ValueError, match="plate 'n' shows 2 of 4 elements"):
        pf.bridge_log_z(model, pf.AutoFlow(model, "affine", model_args=(y,)), model_args=(y,))


@QUIET
def test_estimates_that_disagree_are_a_warning():
    case = conjugate.two_modes()
    guide = pf.AutoFlow(case.model, conjugate.TwoModes, model_args=(case.data,), outer=None)
    data = {"model_args": (case.data,)}
    options = SHORT | {"num_chains": 64, "method": "independence", "num_samples": 20}
    chains = pf.polish(case.model, guide, **data, **options)
    # Draws of the lesser mode alone, as of chains that all went there.
    low = (chains.values["x"] < 0).flatten().nonzero()[:, 0][:300]
    names = ("noise", "unconstrained", "log_p", "log_q", "acceptance", "diverging", "nonfinite")
    chosen = {name: getattr(chains, name).flatten(0, 1)[low][None] for name in names}
    values = {"x": chains.values["x"].flatten()[low][None]}
    lost = dataclasses.replace(chains, values=values, **chosen)
    with pytest.warns(UserWarning, match="one of them misses a part of the posterior"):
        pf.bridge_log_z(case.model, guide, chains=lost, seed=0, **data)


# Seeds, devices, words


def test_seeds_leave_the_generators_alone_and_repeat():
    case = conjugate.normal()
    guide = case.guide()
    before = torch.get_rng_state(), random.getstate()
    first, second = (bridge(case, guide, num_samples=20, num_warmup=10) for _ in range(2))
    assert first.log_z == second.log_z
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    other = bridge(case, guide, num_samples=20, num_warmup=10, seed=3)
    assert other.log_z != first.log_z


def test_draws_are_not_those_that_made_the_chains():
    case = conjugate.normal()
    guide = case.guide()
    with seeded(1):
        proposed = torch.randn(5)
    with _seeded_apart(1):
        assert not torch.equal(torch.randn(5), proposed)
    found = bridge(case, guide, method="independence", seed=1)  # that of the chains
    assert abs(found.log_z - case.log_z) < ERRORS * found.log_z_se


def test_chains_are_made_where_none_are_given(capsys):
    case = conjugate.positive(torch.float32)
    guide = case.guide()
    found = pf.bridge_log_z(
        case.model, guide, model_args=(case.data,), seed=0, progress_bar=False, num_guide_draws=500
    )
    assert capsys.readouterr().err == ""
    assert found.num_guide_draws == 500
    assert abs(found.log_z - case.log_z) < ERRORS * found.log_z_se
    text = str(found)
    assert "log Z by bridge sampling" in text
    assert "log Z by importance sampling" in text
    assert "from 500 draws of the guide and 4000 of the posterior, worth" in text


def test_all_is_made_on_the_device_of_the_guide():
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros_like(y), torch.ones_like(y)).to_event(1))
        pyro.sample("y", dist.Normal(x, torch.ones_like(y)).to_event(1), obs=y)

    y = torch.tensor([1.0, 2.0])
    guide = pf.AutoFlow(model, "affine", model_args=(y,))
    exact = dist.Normal(0.0, 2**0.5).log_prob(y).sum()
    with pretended_device() as device:
        data = {"model_args": (y.to(device),)}
        moved = guide.to(device)
        options = SHORT | {"num_samples": 20, "method": "independence"}
        chains = pf.polish(model, moved, **data, **options)
        found = pf.bridge_log_z(model, moved, chains=chains, seed=0, **data)
    assert found.log_z == pytest.approx(float(exact), abs=1e-4)
