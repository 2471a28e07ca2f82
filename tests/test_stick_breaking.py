"""Simplexes and correlation matrices: coordinates that hold parts as small as the dtype can."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints
from torch.testing import assert_close

from pyroflows import AutoFlow
from pyroflows.latents import Site
from pyroflows.stick_breaking import CorrCholesky, StickBreaking

PAIRS = [
    (StickBreaking(), constraints.simplex, 4),
    (CorrCholesky(), constraints.corr_cholesky, 6),
]
IDS = ["simplex", "corr_cholesky"]


@pytest.mark.parametrize(("transform", "constraint", "size"), PAIRS, ids=IDS)
def test_the_coordinates_are_those_of_torch(transform, constraint, size):
    theirs = biject_to(constraint)
    x = torch.randn(50, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = transform(x)
    assert_close(y, theirs(x))
    assert constraint.check(y).all()
    assert_close(transform.log_abs_det_jacobian(x, y), theirs.log_abs_det_jacobian(x, y))
    assert_close(transform.inv(y), x)
    assert transform.forward_shape((3, size)) == theirs.forward_shape((3, size))
    assert transform.inverse_shape(y.shape) == x.shape


@pytest.mark.parametrize(("transform", "constraint", "size"), PAIRS, ids=IDS)
def test_the_round_trip_holds_far_from_the_center(transform, constraint, size):
    x = 8 * torch.randn(2000, size, generator=torch.Generator().manual_seed(0))
    x = x.clamp(-30, 30)
    y = transform(x)
    assert y.isfinite().all()
    assert constraint.check(y).all()
    again = transform.inv(y)
    assert again.isfinite().all()
    assert_close(transform(again), y, rtol=1e-4, atol=1e-30)
    exact = transform.log_abs_det_jacobian(x.double(), transform(x.double()))
    assert_close(transform.log_abs_det_jacobian(x, y).double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("edge", [0.0, 1e-45, 1e-30])
def test_parts_that_vanish_have_finite_coordinates(edge):
    y = torch.tensor([1.0, edge, 0.0, edge])
    assert StickBreaking().inv(y).isfinite().all()


@pytest.mark.parametrize(("transform", "constraint", "size"), PAIRS, ids=IDS)
def test_gradients_and_vmap(transform, constraint, size):
    x = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jacobian = torch.func.vmap(torch.func.jacrev(transform._call))(x).flatten(1, -2)
    if constraint is constraints.simplex:
        jacobian = jacobian[:, :-1]
    else:
        rows, columns = torch.tril_indices(4, 4, -1)
        jacobian = jacobian[:, rows * 4 + columns]
    log_det = jacobian.slogdet().logabsdet
    assert_close(log_det, transform.log_abs_det_jacobian(x, transform(x)))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transform.inv(transform(x)), (x,))


@pytest.mark.parametrize("event_dim", [1, 2])
def test_sites_use_them(event_dim):
    fn = dist.Dirichlet(torch.ones(2, 3)).to_event(event_dim - 1)
    site = Site("p", fn.support, fn.shape(), event_dim)
    x = torch.randn(5, 2, 2)
    assert_close(site.transform.inv(site.transform(40 * x)), 40 * x, rtol=0.2, atol=30.0)
    assert site.transform(100 * x).min() > 0


@pytest.mark.parametrize(
    "fn",
    [dist.Dirichlet(0.1 * torch.ones(30)), dist.LKJCholesky(6, 10.0), dist.LKJCholesky(6, 0.5)],
    ids=["sparse", "concentrated", "spread"],
)
def test_a_guide_scores_its_own_draws(fn):
    """Torch's inverse loses small remainders: a nat for a third of these draws, or infinity."""
    guide = AutoFlow(lambda: pyro.sample("p", fn), "affine")
    torch.manual_seed(0)
    with torch.no_grad():
        u, log_q = guide.get_posterior().rsample_and_log_prob((500,))
        sites, log_det = guide.latents.constrain(u)
        again = guide.log_prob(sites)
    assert again.isfinite().all()
    error = (again - (log_q - log_det)).abs()
    assert error.median() < 1e-3
    assert (error < 0.02).float().mean() > 0.99
