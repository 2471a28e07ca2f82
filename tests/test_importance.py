"""The verdict on a guide: exact answers, known errors, structures, broken input."""

from __future__ import annotations

import math
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import (
    AutoDelta,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    init_to_value,
)

from pyroflows import AutoFlow, ImportanceDiagnostics, importance_diagnostics
from pyroflows.infer._marginal import marginal_shape
from pyroflows.infer._verdict import Moved, judge
from pyroflows.infer.draws import draw_from_guide
from pyroflows.psis import smooth_log_weights

DATA = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def conjugate_posterior(y, shift=0.0, stretch=1.0):
    precision = len(y) + 1
    scale = precision**-0.5
    pyro.sample("mu", dist.Normal(y.sum() / precision + shift * scale, stretch * scale))


def conjugate_log_z(y):
    covariance = torch.eye(len(y), dtype=y.dtype) + 1
    return dist.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y).item()


def pair(target, guide):
    """A model and a guide of one latent each."""
    return (lambda: pyro.sample("x", target)), (lambda: pyro.sample("x", guide))


def normal(loc=0.0, scale=1.0, size=None):
    if size is None:
        return dist.Normal(*torch.tensor([loc, scale], dtype=torch.float64))
    loc, scale = (torch.full((size,), v, dtype=torch.float64) for v in (loc, scale))
    return dist.Normal(loc, scale).to_event(1)


# Values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_guide_has_equal_weights_and_exact_log_z(dtype):
    data = DATA.to(dtype)
    report = importance_diagnostics(conjugate, conjugate_posterior, model_args=(data,), seed=0)
    assert report.pareto_k == -math.inf
    assert report.ess == pytest.approx(1.0, abs=1e-9)
    assert report.log_z == pytest.approx(conjugate_log_z(DATA), abs=1e-6)
    assert report.elbo == pytest.approx(report.log_z, abs=1e-9)
    assert report.verdict == "usable"
    assert report.log_weights.shape == (10_000,)
    assert report.log_weights.dtype == torch.float64


def test_inexact_guide_has_exact_log_z_within_its_error():
    args = (DATA, 0.4, 1.3)
    gap = -math.log(1.3) + (1.3**2 + 0.4**2 - 1) / 2
    for seed in range(3):
        report = importance_diagnostics(
            lambda y, *_: conjugate(y), conjugate_posterior, model_args=args, seed=seed
        )
        assert abs(report.log_z - conjugate_log_z(DATA)) < 4 * report.log_z_se
        assert abs(report.elbo + gap - conjugate_log_z(DATA)) < 4 * report.elbo_se
        assert 0 < report.log_z_se < 0.02
        assert report.pareto_k < 0.5
        assert report.verdict == "reweight"


@pytest.mark.parametrize("guide_class", [AutoNormal, AutoMultivariateNormal])
def test_pyro_guides_with_constrained_latents(guide_class):
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Exponential(rate), obs=y)

    total = DATA.sum().item()
    log_z = math.lgamma(5) - math.lgamma(2) - 5 * math.log(1 + total)
    guide = guide_class(model, init_scale=0.6)
    report = importance_diagnostics(model, guide, model_args=(DATA.float(),), seed=0)
    assert abs(report.log_z - log_z) < 5 * report.log_z_se
    assert report.vectorized


@pytest.mark.parametrize("wide", [False, True])
def test_standard_error_of_log_z_is_the_spread_over_seeds(wide):
    model, guide = pair(normal(), normal(0.3, 1.5 if wide else 0.8))
    reports = [
        importance_diagnostics(model, guide, seed=seed, num_samples=1000) for seed in range(40)
    ]
    for value, error in (("log_z", "log_z_se"), ("elbo", "elbo_se")):
        spread = torch.tensor([getattr(r, value) for r in reports]).std().item()
        stated = torch.tensor([getattr(r, error) for r in reports]).mean().item()
        assert spread == pytest.approx(stated, rel=0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [3, 1000])
def test_the_standard_error_of_log_z_counts_rounding(dtype, size):
    """Of an exact guide all that is wrong is rounding, the same in every draw."""
    y = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    precision = size + 1
    log_z = -0.5 * (size * math.log(2 * math.pi) + math.log(precision))
    log_z = log_z - 0.5 * float(y.square().sum() - y.sum().square() / precision)
    for seed in range(3):
        report = importance_diagnostics(
            conjugate, conjugate_posterior, model_args=(y.to(dtype),), seed=seed
        )
        assert abs(report.log_z - log_z) < 3 * report.log_z_se
        assert 0 < report.log_z_se < 10 * size * torch.finfo(dtype).eps


# The verdict: each row is a guide wrong in a known way

TRIALS = [
    ("mean off 0.05", normal(0.05), normal(), "usable"),
    ("mean off 0.15", normal(0.15), normal(), "reweight"),
    ("mean off 1", normal(1.0), normal(), "reweight"),
    ("guide sd x 0.95", normal(), normal(scale=0.95), "usable"),
    ("guide sd x 0.85", normal(), normal(scale=0.85), "reweight"),
    ("guide sd x 0.3", normal(), normal(scale=0.3), "do not trust"),
    ("guide sd x 1.05", normal(), normal(scale=1.05), "usable"),
    ("guide sd x 1.2", normal(), normal(scale=1.2), "reweight"),
    ("10 guide sds x 0.95", normal(size=10), normal(scale=0.95, size=10), "usable"),
    ("100 means off 0.4", normal(0.4, size=100), normal(size=100), "do not trust"),
    ("normal for Cauchy", dist.Cauchy(0.0, 1.0), normal(scale=0.5), "do not trust"),
    ("t3 for normal", normal(), dist.StudentT(3.0, 0.0, 1.0), "reweight"),
    ("posterior at 5e4, sd 1e-3", normal(5e4, 1e-3), normal(5e4, 1e-3), "usable"),
    ("and off by half a sd", normal(5e4, 1e-3), normal(50000.0005, 1e-3), "reweight"),
]


@pytest.mark.parametrize(
    ("target", "guide", "expected"), [t[1:] for t in TRIALS], ids=[t[0] for t in TRIALS]
)
def test_verdict_on_known_errors(target, guide, expected):
    for seed in range(3):
        report = importance_diagnostics(*pair(target, guide), seed=seed)
        assert report.verdict == expected, report


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e6])
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_improper_posterior_is_not_trusted(slope, scale, seed):
    def model():
        pyro.sample("proper", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.ImproperUniform(constraints.real, (), ()))
        pyro.factor("growth", slope * b)

    def guide():
        pyro.sample("proper", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, scale))

    report = importance_diagnostics(model, guide, seed=seed)
    assert report.verdict == "do not trust"
    assert report.reasons


def far_mode(distance, weight=0.3):
    mixing = dist.Categorical(torch.tensor([1 - weight, weight], dtype=torch.float64))
    loc = torch.tensor([0.0, distance], dtype=torch.float64)
    return dist.MixtureSameFamily(mixing, dist.Normal(loc, 1.0))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("flow", [False, True])
def test_widened_draws_find_what_the_guide_misses(flow, seed):
    def model():
        x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
        pyro.factor("density", far_mode(12.0).log_prob(x))

    _, guide = pair(None, normal())
    if flow:
        zero = init_to_value(values={"x": torch.tensor(0.0, dtype=torch.float64)})
        options = {"init": "point", "init_loc_fn": zero, "init_scale": 1.0}
        guide = AutoFlow(model, "affine", model_args=(), **options)
    report = importance_diagnostics(model, guide, seed=seed)
    # Nothing in the guide's own draws tells.
    assert report.ess > 0.99
    assert report.log_z == pytest.approx(math.log(0.7), abs=0.01)
    assert report.missed == pytest.approx(0.3, abs=0.15)
    assert report.verdict == "do not trust"
    assert any("of the posterior where its own never go" in reason for reason in report.reasons)


def test_widened_draws_estimate_the_same_log_z():
    def model():
        with pyro.plate("n", 3):
            pyro.sample("a", normal())
        pyro.sample("b", dist.LogNormal(torch.tensor(0.0).double(), 1.0))
        pyro.sample("c", normal(size=4))

    def guide():
        with pyro.plate("n", 3):
            pyro.sample("a", normal(0.2, 1.2))
        pyro.sample("b", dist.LogNormal(torch.tensor(0.1).double(), 1.1))
        loc, scale_tril = torch.zeros(4).double(), 1.1 * torch.eye(4).double()
        pyro.sample("c", dist.MultivariateNormal(loc, scale_tril=scale_tril))

    draws = draw_from_guide(model, guide, seed=0, num_samples=40_000)
    assert draws.probe.shape == (40_000,)
    log_z = (draws.probe.logsumexp(0) - math.log(40_000)).item()
    error = (draws.probe.exp().std() / math.sqrt(40_000)).item()
    assert abs(log_z) < 4 * error < 0.05
    assert not torch.equal(draws.probe, draws.log_p - draws.log_q)


def test_guides_of_other_noise_are_not_probed():
    report = importance_diagnostics(*pair(normal(), dist.StudentT(3.0, 0.0, 1.0)), seed=0)
    assert math.isnan(report.missed)


def test_draws_that_ran_off_are_not_trusted():
    report = importance_diagnostics(*pair(normal(0.0, 1e16), normal(0.0, 1e16)), seed=0)
    assert report.verdict == "do not trust"
    assert any("'x' reaches" in reason for reason in report.reasons)


def test_point_guide_is_not_trusted():
    report = importance_diagnostics(
        conjugate, AutoDelta(conjugate), model_args=(DATA.float(),), seed=0
    )
    assert report.verdict == "do not trust"
    assert any("'mu' a single value" in reason for reason in report.reasons)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_log_densities_are_counted(bad):
    def model():
        x = pyro.sample("x", normal())
        pyro.factor("f", torch.where(x > 2.0, torch.full_like(x, bad), torch.zeros_like(x)))

    report = importance_diagnostics(model, lambda: pyro.sample("x", normal()), seed=0)
    assert 150 < report.num_nonfinite < 300
    assert report.verdict == "do not trust"
    assert f"at {report.num_nonfinite} of 10000 draws" in report.reasons[0]
    assert not math.isnan(report.elbo + report.log_z + report.pareto_k + report.ess)


def test_guide_beyond_the_support_is_to_be_reweighted():
    model, guide = pair(dist.HalfNormal(torch.tensor(1.0)), normal(0.8, 1.0))
    report = importance_diagnostics(model, guide, seed=0)
    assert report.elbo == -math.inf
    assert report.log_z == pytest.approx(0.0, abs=5 * report.log_z_se)
    assert report.verdict == "reweight"
    assert "outside the model's support" in report.reasons[0]
    # Its density is finite there, so only the support tells.
    model, guide = pair(dist.Exponential(torch.tensor(1.0)), normal(0.8, 1.5))
    report = importance_diagnostics(model, guide, seed=0)
    assert report.log_z == pytest.approx(0.0, abs=0.05)


def test_nothing_is_nan_when_every_draw_is_impossible():
    report = importance_diagnostics(
        *pair(dist.Uniform(torch.tensor(5.0), 6.0), dist.Uniform(torch.tensor(0.0), 1.0)), seed=0
    )
    assert report.verdict == "do not trust"
    assert report.log_z == -math.inf
    assert report.pareto_k == math.inf
    assert "nan" not in str(report)


@pytest.mark.parametrize("num_samples", [1, 2, 10, 24])
def test_few_draws_say_so(num_samples):
    report = importance_diagnostics(*pair(normal(), normal()), num_samples=num_samples, seed=0)
    assert report.verdict == "do not trust"
    assert any("too few" in reason for reason in report.reasons)
    assert "nan" not in str(report)


def test_printed_report_is_short_and_says_what_to_do():
    report = importance_diagnostics(*pair(normal(), normal(0.5)), seed=0)
    text = str(report)
    assert isinstance(report, ImportanceDiagnostics)
    for word in ("ELBO", "log Z", "k-hat", "ESS", "reweight", "'x'", "importance weights"):
        assert word in text
    assert len(text.splitlines()) < 12
    assert max(map(len, text.splitlines())) <= 100


# Structures


def test_plates_masks_scales_and_factors_are_in_log_p():
    mask = torch.tensor([True, False, True])

    def model(y):
        with pyro.plate("groups", 2, dim=-2):
            theta = pyro.sample("theta", dist.Normal(y.new_zeros(()), 1.0))
            with pyro.plate("n", 3, dim=-1), pyro.poutine.mask(mask=mask):
                pyro.sample("y", dist.Normal(theta, 1.0), obs=y)
        with pyro.poutine.scale(scale=2.0):
            pyro.factor("f", -theta.square().sum((-1, -2), keepdim=True))

    def guide(y):
        with pyro.plate("groups", 2, dim=-2):
            pyro.sample("theta", dist.Normal(y.new_zeros(()), 1.0))

    draws = draw_from_guide(model, guide, model_args=(DATA,), num_samples=50)
    theta = draws.values["theta"]
    assert theta.shape == (50, 2, 1)
    log_p = dist.Normal(0.0, 1.0).log_prob(theta).sum((-1, -2))
    log_p = log_p + (dist.Normal(theta, 1.0).log_prob(DATA) * mask).sum((-1, -2))
    log_p = log_p - 2 * theta.square().sum((-1, -2))
    assert draws.vectorized
    assert torch.allclose(draws.log_p, log_p.double())


def test_draws_equal_one_at_a_time():
    def model(y):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("n", len(y)):
            theta = pyro.sample("theta", dist.Normal(0.0, scale))
            loc = theta + weights[..., 0]
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    y = DATA.float()
    guide = AutoMultivariateNormal(model)
    together = importance_diagnostics(model, guide, model_args=(y,), seed=0, num_samples=200)
    assert together.vectorized
    in_parts = importance_diagnostics(
        model, guide, model_args=(y,), seed=0, num_samples=200, batch_size=32
    )
    assert in_parts.log_weights.shape == (200,)


def _does_not_broadcast(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(mu[0] + mu[1], 1.0), obs=y[0])


def _sums_over_draws(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.factor("f", -mu.square().sum())


def _outer_product(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(torch.stack([mu, mu, mu], -1), 1.0), obs=y)


def _errs_beside_a_large_constant(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1e-5).to_event(1))
    pyro.factor("constant", torch.full(mu.shape[:-1], 1e6))
    pyro.factor("f", -mu[0].sum() * 1e5)  # of the first draw alone where draws come together


@pytest.mark.parametrize(
    "model",
    [_does_not_broadcast, _sums_over_draws, _outer_product, _errs_beside_a_large_constant],
)
def test_models_that_do_not_broadcast_are_run_one_draw_at_a_time(model):
    y, guide = DATA.float(), AutoNormal(model)
    with pytest.warns(UserWarning, match="taking 60 draws one at a time") as caught:
        draws = draw_from_guide(model, guide, model_args=(y,), num_samples=60)
    assert len(caught) == 1
    assert not draws.vectorized
    for index in (0, 17):
        values = {name: value[index] for name, value in draws.values.items()}
        alone = pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace(y)
        assert draws.log_p[index].item() == pytest.approx(alone.log_prob_sum().item(), rel=1e-5)


def test_enumerated_discrete_latents_are_summed_out():
    def model(y):
        p = pyro.sample("p", dist.Beta(y.new_tensor(2.0), 2.0))
        with pyro.plate("n", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)

    def guide(y):
        pyro.sample("p", dist.Beta(y.new_tensor(2.0), 2.0))

    draws = draw_from_guide(model, guide, model_args=(DATA,), num_samples=40)
    p = draws.values["p"][:, None]
    terms = [
        dist.Normal(0.0, 1.0).log_prob(DATA) + (1 - p).log(),
        dist.Normal(2.0, 1.0).log_prob(DATA) + p.log(),
    ]
    expected = torch.logaddexp(*terms).sum(-1) + dist.Beta(p[:, 0] * 0 + 2, 2.0).log_prob(p[:, 0])
    assert draws.vectorized
    assert draws.marginalized == ("z",)
    assert torch.allclose(draws.log_p, expected)
    report = importance_diagnostics(model, guide, model_args=(DATA,), seed=0)
    grid = torch.linspace(0, 1, 4001, dtype=torch.float64)[1:-1, None]
    density = (1 - grid) * dist.Normal(0.0, 1.0).log_prob(DATA).exp()
    density = (density + grid * dist.Normal(2.0, 1.0).log_prob(DATA).exp()).prod(-1)
    log_z = (density * 6 * grid[:, 0] * (1 - grid[:, 0])).mean().log().item()
    assert report.log_z == pytest.approx(log_z, abs=max(4 * report.log_z_se, 1e-3))


# State


def test_seed_reproduces_and_disturbs_no_generator():
    model, guide = pair(normal(), normal(0.3))
    state = torch.get_rng_state()
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = importance_diagnostics(model, guide, seed=7, num_samples=500)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    torch.rand(3)
    second = importance_diagnostics(model, guide, seed=7, num_samples=500)
    other = importance_diagnostics(model, guide, seed=8, num_samples=500)
    assert torch.equal(first.log_weights, second.log_weights)
    assert not torch.equal(first.log_weights, other.log_weights)


def test_no_gradient_and_no_warning():
    guide = AutoNormal(conjugate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = importance_diagnostics(conjugate, guide, model_args=(DATA.float(),), seed=0)
    assert not report.log_weights.requires_grad
    assert all(p.grad is None for p in guide.parameters())
    assert all(p.requires_grad for p in guide.parameters())


def test_validation_settings_are_left_alone():
    model, guide = pair(normal(), normal())
    for is_on in (True, False):
        with pyro.validation_enabled(is_on):
            importance_diagnostics(model, guide, seed=0, num_samples=100)
            assert torch.distributions.Distribution._validate_args is is_on


@pytest.mark.cuda
def test_guide_on_a_cuda_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    data = DATA.cuda()
    state = torch.cuda.get_rng_state()
    first = importance_diagnostics(conjugate, conjugate_posterior, model_args=(data, 0.3), seed=0)
    second = importance_diagnostics(conjugate, conjugate_posterior, model_args=(data, 0.3), seed=0)
    assert torch.equal(first.log_weights, second.log_weights)
    assert torch.equal(torch.cuda.get_rng_state(), state)


# Refusals


def test_subsampled_plate_is_refused():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    with pytest.raises(ValueError, match=r"plate 'n' shows 2 of 3 .*pass the full data"):
        importance_diagnostics(model, AutoNormal(model), model_args=(DATA.float(),))


def test_latent_missing_from_the_guide_is_refused():
    def model():
        pyro.sample("x", normal())
        pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"\['z'\] of the model are missing .*enumerate"):
        importance_diagnostics(model, lambda: pyro.sample("x", normal()))


def test_guide_site_missing_from_the_model_is_refused():
    def guide():
        pyro.sample("x", normal())
        pyro.sample("w", normal())

    with pytest.raises(ValueError, match=r"draws \['w'\], which the model lacks"):
        importance_diagnostics(lambda: pyro.sample("x", normal()), guide)


def test_guide_without_latents_is_refused():
    with pytest.raises(ValueError, match="expected a guide that draws a latent"):
        importance_diagnostics(lambda: None, lambda: None)


@pytest.mark.parametrize("number", [0, -1, 1.5])
def test_bad_numbers_are_refused(number):
    with pytest.raises(ValueError, match=f"num_samples: expected a positive integer, got {number}"):
        importance_diagnostics(*pair(normal(), normal()), num_samples=number)
    with pytest.raises(ValueError, match="batch_size: expected a positive integer"):
        importance_diagnostics(*pair(normal(), normal()), batch_size=number)


def test_messenger_guides_are_refused():
    guide = AutoNormalMessenger(conjugate)
    with pytest.raises(TypeError, match="got the messenger AutoNormalMessenger"):
        importance_diagnostics(conjugate, guide, model_args=(DATA,))


def _draws_of(value, log_weights):
    """Draws of one latent, as far as its marginal is concerned."""
    site = SimpleNamespace(kind="latent")
    return SimpleNamespace(values={"x": value}, sites={"x": site}), log_weights


def test_marginal_shape_sees_large_weights_at_large_values():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(4000, generator=generator, dtype=torch.float64)
    log_weights = -0.5 * uniform.log()  # a tail of shape 0.5
    shape = smooth_log_weights(log_weights)[1]
    at_the_edge = marginal_shape(*_draws_of(log_weights[:, None], log_weights), tolerance=1e-8)
    scattered = torch.randn(4000, 3, generator=generator)
    anywhere = marginal_shape(*_draws_of(scattered, log_weights), tolerance=1e-8)
    assert at_the_edge[1] == "x"
    assert at_the_edge[0] > shape + 0.05
    assert anywhere[0] < at_the_edge[0]


def test_marginal_shape_of_equal_weights_is_that_of_a_normal():
    found = marginal_shape(*_draws_of(torch.randn(4000, 2), torch.zeros(4000)), tolerance=1e-8)
    assert found[0] < 0.2


def test_the_shape_is_printed_with_its_error():
    model, guide = pair(normal(0.0, 1.0), normal(0.0, 0.8))
    report = importance_diagnostics(model, guide, seed=0)
    assert math.isfinite(report.pareto_k_se)
    assert f"± {report.pareto_k_se:.2f}" in str(report)
    assert f"of weighted means at most {report.marginal_k:.2f} ('x')" in str(report)


def test_a_mean_that_hangs_on_few_draws_is_not_trusted():
    numbers = {"num_nonfinite": 0, "num_samples": 4000, "good_k": 0.7, "pareto_k": 0.65}
    numbers |= {"missed": 0.0, "log_z_se": 0.01, "ess": 0.8, "log_z": 0.0, "elbo": -0.1}
    numbers |= {"lacking": math.nan}
    draws = SimpleNamespace(point_masses=(), flat=None, num_outside=0, beyond=0.0)
    still = Moved(0.0, "", 1.0, "", 1.0, "", 1.0, "")
    for marginal_k, expected in [(0.68, "reweight"), (0.74, "do not trust")]:
        own = numbers | {"marginal_k": marginal_k, "marginal_k_at": "tau"}
        verdict, reasons = judge(draws, own, still, [])
        assert verdict == expected
    assert "k-hat of the mean of 'tau' is 0.74" in reasons[0]
