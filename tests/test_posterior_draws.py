"""Weighted draws: right against conjugate models, whatever the guide; errors that are honest."""

import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import pyroflows as pf
from pyroflows.infer.posterior._statistics import (
    autocorrelated_size,
    weighted_error,
    weighted_quantile,
    weighted_sd,
)
from tests import conjugate
from tests.conjugate import CASES, LEVELS

each_case = pytest.mark.parametrize("name", list(CASES))
ERRORS = 4.0  # standard errors that a result may be off by; about one law in 15,000 fails by chance


def draw(case, guide, **kwargs):
    return pf.posterior_draws(case.model, guide, model_args=(case.data,), seed=1, **kwargs)


# Laws


@each_case
def test_a_guide_that_is_off_is_corrected(name):
    case = CASES[name]()
    draws = draw(case, case.guide())
    assert draws.diagnostics.verdict != "do not trust"
    mean, error = draws.mean()["x"].reshape(-1), draws.mcse()["x"].reshape(-1)
    assert (error < 0.03 * case.sd).all()
    assert ((mean - case.mean).abs() < ERRORS * error).all()
    raw = draws.values["x"].reshape(len(draws.log_weights), -1).mean(0)
    assert ((raw - case.mean).abs() > 5 * error).any()
    torch.testing.assert_close(draws.sd()["x"].reshape(-1), case.sd, rtol=0.04, atol=0)
    found = draws.quantile(LEVELS)["x"].reshape(3, -1)
    assert ((found - case.quantiles).abs() < 0.06 * case.sd).all()
    report = draws.diagnostics
    assert abs(report.log_z - case.log_z) < ERRORS * report.log_z_se


def test_errors_are_calibrated():
    case = conjugate.normal()
    guide = case.guide()
    z_means, z_log_z = [], []
    for seed in range(40):
        draws = pf.posterior_draws(
            case.model, guide, model_args=(case.data,), num_samples=1000, seed=seed
        )
        z_means.append(float((draws.mean()["x"] - case.mean) / draws.mcse()["x"]))
        report = draws.diagnostics
        z_log_z.append((report.log_z - case.log_z) / report.log_z_se)
    for scores in (np.array(z_means), np.array(z_log_z)):
        assert (np.abs(scores) < 3).mean() >= 0.95
        assert 0.6 < np.sqrt((scores**2).mean()) < 1.5


def test_weights_cross_between_modes_that_a_guide_weighs_wrongly():
    case = conjugate.two_modes()

    def guide(y):
        x = y.new_tensor([-12.0, 12.0])
        even = dist.MixtureSameFamily(dist.Categorical(y.new_ones(2)), dist.Normal(x, 1.2))
        pyro.sample("x", even)

    draws = draw(case, guide)
    assert ((draws.mean()["x"] - case.mean).abs() < ERRORS * draws.mcse()["x"]).all()
    assert abs(draws.diagnostics.log_z) < ERRORS * draws.diagnostics.log_z_se
    draws = draw(case, case.wide_guide())
    assert ((draws.mean()["x"] - case.mean).abs() < ERRORS * draws.mcse()["x"]).all()


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal])
def test_guides_of_pyro(make):
    case = conjugate.normal(torch.float32)
    guide = make(case.model, init_scale=0.6)
    guide(case.data)
    draws = draw(case, guide)
    assert abs(float(draws.mean()["x"] - case.mean)) < ERRORS * float(draws.mcse()["x"])


def test_regions_without_a_density_count_for_nothing():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("half", torch.where(x > 0, 0.0, -math.inf))

    def guide():
        pyro.sample("x", dist.Normal(torch.zeros(()), 1.2))

    draws = pf.posterior_draws(model, guide, seed=0)
    exact = math.sqrt(2 / math.pi)
    assert abs(float(draws.mean()["x"]) - exact) < ERRORS * float(draws.mcse()["x"])
    assert (draws.quantile([0.0])["x"] > 0).all()


def test_a_guide_without_any_density_is_refused():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("none", x * 0 - math.inf)

    def guide():
        pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))

    with pytest.raises(ValueError, match="none of 100 draws of the guide has a finite density"):
        pf.posterior_draws(model, guide, num_samples=100, seed=0)


# Statistics


def test_quantiles_of_equal_weights_are_hazens():
    x = torch.randn(41, 3, dtype=torch.float64)
    weights = torch.full((41,), 1 / 41, dtype=torch.float64)
    levels = torch.tensor([0.0, 0.003, 0.1, 0.5, 0.77, 1.0], dtype=torch.float64)
    expected = np.quantile(x.numpy(), levels.numpy(), axis=0, method="hazen")
    np.testing.assert_allclose(weighted_quantile(x, weights, levels), expected, atol=1e-12)


def test_quantiles_with_one_weight_and_with_ties():
    x = torch.tensor([[3.0], [1.0], [1.0], [2.0]], dtype=torch.float64)
    one = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert weighted_quantile(x, one, LEVELS).flatten().tolist() == [1.0, 1.0, 1.0]
    same = torch.full((4,), 0.25, dtype=torch.float64)
    assert weighted_quantile(x, same, torch.tensor([0.25])).item() == 1.0


def test_equal_weights_give_the_ordinary_moments():
    case = conjugate.normal()
    draws = draw(case, case.guide(scale=1.0, shift=0.0))
    x = draws.values["x"]
    torch.testing.assert_close(draws.mean()["x"], x.mean())
    torch.testing.assert_close(draws.sd()["x"], x.std())
    error = x.std(correction=0) / math.sqrt(len(x))
    torch.testing.assert_close(draws.mcse()["x"], error)


def test_errors_of_unequal_weights():
    x = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    weights = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    mean = 0.7  # 0.2 + 0.5
    exact = math.sqrt(0.49 * mean**2 + 0.04 * 0.3**2 + 0.01 * 4.3**2)
    assert weighted_error(x, weights).item() == pytest.approx(exact)
    variance = (0.7 * mean**2 + 0.2 * 0.3**2 + 0.1 * 4.3**2) / (1 - 0.54)
    assert weighted_sd(x, weights).item() == pytest.approx(math.sqrt(variance))


def test_levels_outside_of_the_unit_interval_are_refused():
    case = conjugate.normal()
    draws = draw(case, case.guide(), num_samples=500)
    with pytest.raises(ValueError, match=r"expected q in \[0, 1\], got 5"):
        draws.quantile(5)
    assert draws.quantile(0.5)["x"].shape == ()
    assert draws.quantile([0.5, 0.9])["x"].shape == (2,)


def test_effective_size_of_chains_with_known_autocorrelation():
    noise = torch.randn(8, 4000, 2, dtype=torch.float64)
    chains = torch.empty_like(noise)
    rho = torch.tensor([0.9, -0.5], dtype=torch.float64)
    state = torch.zeros(8, 2, dtype=torch.float64)
    for i in range(4000):
        state = rho * state + (1 - rho.square()).sqrt() * noise[:, i]
        chains[:, i] = state
    exact = 32_000 * (1 - rho) / (1 + rho)
    torch.testing.assert_close(autocorrelated_size(chains), exact, rtol=0.15, atol=0)
    apart = chains + 5 * torch.arange(8.0, dtype=torch.float64)[:, None, None]
    assert (autocorrelated_size(apart) < 20).all()


# Resampling


def test_resampling_is_systematic_and_counts():
    case = conjugate.normal()
    draws = draw(case, case.guide())
    again = draws.resample(20_000, seed=3)
    weights = draws.log_weights.exp()
    counts = torch.bincount(again.indices, minlength=len(weights))
    assert ((counts - 20_000 * weights).abs() < 1 + 1e-9).all()
    assert again.num_distinct == int((counts > 0).sum()) < 10_001
    assert f"{again.num_distinct} of them distinct" in str(again)
    assert not (again.indices.diff() >= 0).all()  # any part of them is like the whole
    assert list(again) == ["x"]
    assert torch.equal(again["x"], draws.values["x"][again.indices])
    error = float(draws.mcse()["x"]) + 1 / math.sqrt(20_000) * float(case.sd)
    assert abs(float(again["x"].mean() - case.mean)) < ERRORS * error
    assert len(draws.resample()["x"]) == len(weights)
    half = again["x"][:10_000].mean() - again["x"][10_000:].mean()
    assert abs(float(half)) < 5 * float(case.sd) * math.sqrt(4 / 10_000)


def test_a_number_of_draws_that_is_none_is_refused():
    case = conjugate.normal()
    draws = draw(case, case.guide(), num_samples=500)
    with pytest.raises(ValueError, match="expected num_samples to be a positive integer, got 0"):
        draws.resample(0)


def test_a_verdict_against_the_draws_is_a_warning_with_its_reason():
    case = conjugate.normal()
    guide = case.guide(scale=0.2)
    with pytest.warns(UserWarning, match="posterior_draws: do not trust these draws.*k-hat"):
        draws = draw(case, guide)
    with pytest.warns(UserWarning, match=r"PosteriorDraws.resample: do not trust"):
        draws.resample(seed=0)


# Sites, dtypes, seeds


def schools(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(y)):
        trans = pyro.sample("trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
    pyro.deterministic("count", torch.tensor(len(y)))


SCHOOLS = (torch.tensor([10.0, 5.0, 8.0]), torch.tensor([1.0, 2.0, 0.5]))


@pytest.mark.filterwarnings("ignore:.*do not trust")
@pytest.mark.parametrize("make", [lambda m: pf.AutoFlow(m, "affine"), AutoNormal])
def test_deterministic_sites_come_along(make):
    guide = make(schools)
    guide(*SCHOOLS)
    draws = pf.posterior_draws(schools, guide, model_args=SCHOOLS, num_samples=500, seed=0)
    assert list(draws.values) == ["mu", "tau", "trans", "theta", "count"]
    v = draws.values
    torch.testing.assert_close(v["theta"], v["mu"][:, None] + v["tau"][:, None] * v["trans"])
    assert draws.mean()["theta"].shape == (3,)
    assert draws.mean()["count"] == 3
    text = str(draws)
    assert "theta[2]" in text
    assert "mcse" in text
    assert "verdict" in text


def test_deterministic_sites_of_a_model_that_branches():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.deterministic("sign", torch.ones(()) if float(x.sum()) > 0 else -torch.ones(()))

    def guide():
        pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))

    draws = pf.posterior_draws(model, guide, num_samples=200, seed=0)
    assert torch.equal(draws.values["sign"], draws.values["x"].sign())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype):
    case = conjugate.normal(dtype)
    draws = draw(case, case.guide(), num_samples=500)
    assert draws.values["x"].dtype == dtype
    assert draws.log_weights.dtype == torch.float64
    assert draws.mean()["x"].dtype == draws.quantile(0.5)["x"].dtype == dtype
    assert float(draws.log_weights.exp().sum()) == pytest.approx(1.0)


def test_seeds_leave_the_generators_alone_and_repeat():
    case = conjugate.normal()
    guide = case.guide()
    before = torch.get_rng_state(), random.getstate()
    first, second = (draw(case, guide, num_samples=500) for _ in range(2))
    again, more = (first.resample(seed=4) for _ in range(2))
    assert torch.equal(first.values["x"], second.values["x"])
    assert torch.equal(again["x"], more["x"])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert not torch.equal(first.resample()["x"], first.resample()["x"])


def test_long_tables_end():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(150), 1.0).to_event(1))

    draws = pf.posterior_draws(model, pf.AutoFlow(model, "diagonal"), num_samples=500, seed=0)
    text = str(draws)
    assert "x[99]" in text
    assert "x[100]" not in text
    assert "... and 50 more elements" in text
