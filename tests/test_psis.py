"""Pareto smoothed importance sampling against ArviZ, theory and every known edge case."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from pyroflows.psis import good_pareto_k, pareto_k_error, psis, smooth_log_weights

INF = math.inf


def _normal(num_samples: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_samples, dtype=torch.float64, generator=generator)


def _arviz_psislw(log_weights):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz")
        if arviz.__version__.startswith("0."):
            smoothed, shape = arviz.psislw(log_weights.numpy().copy())
            return torch.as_tensor(smoothed), float(shape), 1e-10
        from arviz_stats.base import array_stats

        # This major takes log likelihoods, whose negatives are the log weights, and rounds the
        # length of the tail down.
        smoothed, shape = array_stats.psislw(-log_weights.numpy().copy(), r_eff=1.0, axis=-1)
        return torch.as_tensor(smoothed), float(shape), 0.05


@pytest.mark.arviz
@pytest.mark.parametrize("num_samples", [100, 500, 1000, 2000, 10_000])
@pytest.mark.parametrize("scale", [0.01, 0.5, 1.0, 3.0, 10.0])
def test_equals_arviz_on_ordinary_weights(num_samples, scale):
    for seed in range(3):
        log_weights = _normal(num_samples, scale, seed) - 31.3
        expected, expected_k, tolerance = _arviz_psislw(log_weights)
        smoothed, k = psis(log_weights)
        assert k == pytest.approx(expected_k, abs=max(tolerance, tolerance * abs(k)))
        if tolerance < 1e-6:
            assert torch.allclose(smoothed, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("true_k", [0.1, 0.5, 0.9])
def test_recovers_the_shape_of_a_pareto_tail(true_k):
    uniform = torch.rand(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, k = psis(-true_k * uniform.log())
    assert k == pytest.approx(true_k, abs=0.12)


@pytest.mark.parametrize(
    ("log_weights", "expected"),
    [
        (torch.full((1000,), -31.3), -INF),
        (torch.tensor([0.0, 1.0]).repeat(500), -INF),
        (torch.cat([torch.zeros(980), torch.ones(20)]), -INF),
        (torch.zeros(10), INF),
        (_normal(1), INF),
        (_normal(10), INF),
        (_normal(20), INF),
        (torch.full((1000,), -INF), INF),
        (torch.cat([torch.full((999,), -INF), torch.zeros(1)]), INF),
        (torch.cat([torch.zeros(999), torch.tensor([50.0])]), INF),
    ],
)
def test_edge_cases_have_their_sign(log_weights, expected):
    smoothed, k = psis(log_weights)
    assert k == expected
    assert not smoothed.isnan().any()
    if (log_weights > -INF).any():
        assert smoothed.exp().sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("num_samples", [24, 25, 50, 1000, 10_000])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 30.0, 500.0, 1e5])
def test_is_never_nan(num_samples, scale):
    for seed in range(5):
        smoothed, k = psis(_normal(num_samples, scale, seed))
        assert not math.isnan(k)
        assert not smoothed.isnan().any()
        assert smoothed.logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)


def test_hopeless_weights_have_a_large_finite_shape():
    _, k = psis(_normal(1000, 500.0))
    assert 50 < k < 500


def test_mostly_zero_weights_are_fitted_on_the_rest():
    log_weights = torch.cat([torch.full((950,), -INF, dtype=torch.float64), _normal(50)])
    smoothed, k = psis(log_weights)
    assert math.isfinite(k)
    assert (smoothed[:950] == -INF).all()


def test_rounding_noise_is_no_tail():
    noise = (torch.randint(0, 4, (1000,), generator=torch.Generator().manual_seed(0)) - 31) * 1e-15
    assert psis(noise.double())[1] == -INF
    steps = torch.zeros(1000, dtype=torch.float64)
    steps[0] = 1e-6
    assert psis(steps, tolerance=1e-5)[1] == -INF


def test_unnormalised_weights_keep_their_scale():
    log_weights = _normal(4000) - 200.0
    smoothed, k = smooth_log_weights(log_weights)
    log_mean = (smoothed.logsumexp(0) - math.log(4000)).item()
    assert log_mean == pytest.approx(-199.5, abs=0.1)
    assert psis(log_weights)[1] == k


def test_input_is_left_alone_and_float32_is_raised_to_float64():
    log_weights = _normal(1000, 2.0).float().requires_grad_()
    before = log_weights.detach().clone()
    smoothed, _ = psis(log_weights)
    assert smoothed.dtype == torch.float64
    assert not smoothed.requires_grad
    assert torch.equal(log_weights, before)


def test_order_does_not_matter():
    log_weights = _normal(1000, 2.0)
    permutation = torch.randperm(1000, generator=torch.Generator().manual_seed(3))
    smoothed, k = psis(log_weights)
    permuted, permuted_k = psis(log_weights[permutation])
    assert k == pytest.approx(permuted_k)
    assert torch.allclose(smoothed[permutation], permuted)


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_nan_and_infinity_are_refused(bad):
    log_weights = _normal(100)
    log_weights[3] = bad
    with pytest.raises(ValueError, match=r"psis: expected .* got 1 of 100 that are NaN or \+inf"):
        psis(log_weights)


def test_bad_shapes_and_types_are_refused():
    with pytest.raises(ValueError, match=r"shape \(S,\) .* got \(3, 2\)"):
        psis(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"got \(0,\)"):
        psis(torch.zeros(0))
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        psis(torch.arange(3))
    with pytest.raises(TypeError, match="got list"):
        psis([0.0, 1.0])


def test_good_pareto_k():
    assert good_pareto_k(10_000) == 0.7
    assert good_pareto_k(100) == pytest.approx(0.5)
    assert good_pareto_k(1) == -INF


@pytest.mark.parametrize("true_k", [0.2, 0.5, 0.9])
def test_the_standard_error_of_a_shape_is_its_spread(true_k):
    size, shapes = 4000, []
    for seed in range(150):
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(size, generator=generator, dtype=torch.float64)
        shapes.append(smooth_log_weights(-true_k * uniform.log())[1])
    spread = torch.tensor(shapes).std()
    stated = pareto_k_error(torch.tensor(shapes).mean().item(), size)
    assert 0.75 < stated / spread < 1.4  # the spread of 150 is known to a fifteenth


def test_a_shape_that_is_no_number_has_no_error():
    assert all(math.isnan(pareto_k_error(k, 1000)) for k in (math.inf, -math.inf, -0.6))
