"""Residual layers: contractions for sure, and an estimate that is right in the mean."""

import pickle
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from pyroflows import build_flow
from pyroflows.bijectors import Residual
from pyroflows.bijectors.residual import _at_most, _term_weights
from tests import laws
from tests.case import CONTEXT_DIM, Case

pytestmark = pytest.mark.usefixtures("_double")


def moved(dim: int = 4, **options) -> Residual:
    torch.manual_seed(0)
    layer = Residual(dim, hidden_dims=(16, 16), **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return layer


@pytest.mark.parametrize("size", [1e-8, 0.1, 1.0, 1e8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 20), (20, 3), (64, 64)])
def test_no_singular_value_exceeds_the_bound(shape: tuple[int, int], size: float):
    weight = size * torch.randn(shape)
    largest = torch.linalg.matrix_norm(_at_most(weight, 0.9), ord=2)
    assert largest <= 0.9 * (1 + 1e-9)
    before = torch.linalg.matrix_norm(weight, ord=2)
    assert largest >= min(before, 0.75 * 0.9)  # nor is it made much smaller than it has to be


def test_weights_of_zero_have_finite_derivatives():
    weight = torch.zeros(3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(_at_most(weight, 0.9).sum(), weight)
    assert grad.isfinite().all()


def test_what_is_added_is_a_contraction():
    layer = moved(lipschitz=0.9)
    x = 10 * torch.randn(500, 4)
    added = layer.forward_and_log_det(x)[0] - x
    apart = (x[1:] - x[:-1]).norm(dim=-1)
    assert ((added[1:] - added[:-1]).norm(dim=-1) <= 0.9 * apart).all()


def test_an_estimate_is_a_function():
    """The same numbers for the same points, in any mode, in any batch, both ways, and loaded."""
    rough, x = moved(max_exact_dim=0), torch.randn(3, 4)
    y, first = rough.forward_and_log_det(x)
    twin = Residual(4, hidden_dims=(16, 16), max_exact_dim=0)
    twin.load_state_dict(rough.state_dict())
    for again in (rough, rough.eval(), pickle.loads(pickle.dumps(rough)), twin):
        assert_close(again.forward_and_log_det(x)[1], first, atol=0, rtol=0)
    assert_close(rough.forward_and_log_det(x[:1])[1], first[:1])
    assert_close(rough.inverse_and_log_det(y), (x, -first))
    other = moved(max_exact_dim=0, seed=1)
    assert not torch.allclose(other.forward_and_log_det(x)[1], first)


def test_the_estimate_is_right_in_the_mean():
    x = torch.randn(1, 4)
    expected = moved().forward_and_log_det(x)[1]
    rough = moved(max_exact_dim=0, num_terms=2, noise="fresh")
    with torch.no_grad():
        many = torch.stack([rough.forward_and_log_det(x.expand(100, 4))[1] for _ in range(300)])
        means = many.mean(1)  # one number of terms for each call
        error = means.std() / len(means) ** 0.5
        assert (many.std(1) > 0).all()  # noise of its own for each point
        assert (means.mean() - expected).abs() < 5 * error
        assert error < 0.05
        fixed = moved(max_exact_dim=0, num_terms=2)
        assert_close(rough.eval().forward_and_log_det(x), fixed.forward_and_log_det(x))
        seeds = [moved(max_exact_dim=0, seed=seed).forward_and_log_det(x)[1] for seed in range(99)]
        seeds = torch.stack(seeds)
        assert (seeds.mean() - expected).abs() < 5 * seeds.std() / len(seeds) ** 0.5
        many_probes = moved(max_exact_dim=0, num_probes=2000, num_terms=60)
    assert_close(many_probes.forward_and_log_det(x)[1], expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("lipschitz", [0.5, 0.97])
def test_terms_are_weighed_by_how_likely_they_are_and_never_outweigh_the_contraction(
    lipschitz: float,
):
    numbers = (torch.arange(20_000) + 0.5) / 20_000
    weights = [_term_weights(float(u), 3, lipschitz) for u in numbers]
    for k in range(12):  # a term that was not taken counts as zero
        mean = sum(w[k] for w in weights if len(w) > k) / len(weights)
        assert abs(mean - 1) < 0.01
    assert max(w * lipschitz**k for ws in weights for k, w in enumerate(ws)) <= 1 + 1e-12
    assert len(_term_weights(2.0**-53, 3, lipschitz)) < 1300


@pytest.mark.parametrize(
    "law",
    [
        "a_batch_is_a_loop",
        "compile_agrees",
        "context_broadcasts_against_the_batch",
        "every_parameter_gets_a_gradient",
        "gradients_through_the_inverse_are_right",
        "inverse_undoes_forward",
        "results_have_the_dtype_of_the_module_not_the_default",
        "second_derivatives_are_those_of_the_first",
        "the_score_is_the_gradient_of_the_log_density",
        "values_and_gradients_stay_finite_far_out",
    ],
)
def test_an_estimate_obeys_the_laws(law: str):
    options = {"max_exact_dim": 0, "num_terms": 3, "lipschitz": 0.5, "hidden_dims": (8,)}
    laws.LAWS[law](Case(partial(Residual, context_dim=CONTEXT_DIM, **options), CONTEXT_DIM))


def test_compiles():
    laws.compile_agrees(Case(partial(Residual, hidden_dims=(8,))))


def test_layers_of_the_flow_have_noise_of_their_own():
    flow = build_flow("residual", 4, num_layers=3, max_exact_dim=0)
    probes = torch.stack([layer.probes for layer in flow.bijectors])
    assert len(probes.unique(dim=0)) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 1.0}, "lipschitz between 0 and 1"),
        ({"hidden_dims": ()}, "one or more hidden_dims"),
        ({"hidden_dims": (4, 0)}, r"hidden_dims\[1\] to be positive"),
        ({"num_terms": 0}, "num_terms to be positive"),
        ({"num_probes": 0}, "num_probes to be positive"),
        ({"max_exact_dim": -1}, "max_exact_dim to be at least 0"),
        ({"noise": "none"}, "noise to be one of"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str):
    with pytest.raises(ValueError, match=f"Residual expected {message}"):
        Residual(2, **options)


@pytest.mark.parametrize("hidden_dims", [8, (8.0,), (0,), "ab"])
def test_hidden_layers_that_are_no_sizes_are_named(hidden_dims):
    with pytest.raises((TypeError, ValueError), match=r"Residual expected hidden_dims.*got"):
        Residual(3, hidden_dims=hidden_dims)
