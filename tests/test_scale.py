"""A thousand dimensions and more: time and memory linear in them, and a start that is sound."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyroflows import AutoFlow, energy_model, fit_guide
from pyroflows.guides.slim import slim_curvature
from pyroflows.guides.start import find_start


def correlated(dim, rank=4):
    """A Gaussian energy of unlike scales, correlated along a few directions, and its log Z."""
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(dim, generator=generator).double().exp()
    factor = 3 * torch.randn(dim, rank, generator=generator).double() / dim**0.5

    def log_density(x):
        z = x * slopes.to(x)
        return -0.5 * (z.square().sum(-1) + (z @ factor.to(x)).square().sum(-1))

    inner = torch.eye(rank).double() + factor.mT @ factor
    log_det = inner.logdet() + 2 * slopes.log().sum()
    log_z = 0.5 * dim * torch.tensor(2 * torch.pi).log() - 0.5 * log_det
    precision = slopes[:, None] * (torch.eye(dim).double() + factor @ factor.mT) * slopes
    return log_density, log_z.item(), precision


class Sizes(TorchDispatchMode):
    """The largest tensor that any operation has made."""

    def __init__(self):
        super().__init__()
        self.largest, self.shape, self.op = 0, (), ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.numel() > self.largest:
                self.largest, self.shape, self.op = value.numel(), tuple(value.shape), str(func)
        return out


def hierarchical(dim):
    def model():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("all", dim - 1):
            x = pyro.sample("x", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.linspace(-2, 2, dim - 1))

    return model


@pytest.mark.parametrize(
    ("outer", "kind"),
    [("auto", "energy"), ("low_rank", "energy"), ("diagonal", "energy"), ("auto", "model")],
)
def test_no_matrix_of_all_dimensions_is_made(outer, kind):
    dim = 1024
    model = energy_model(correlated(dim)[0], dim) if kind == "energy" else hierarchical(dim)
    with Sizes() as sizes:
        guide = AutoFlow(model, "realnvp", outer=outer)
        options = {"num_particles": 256, "num_diagnostic_samples": 0}  # draws by dimensions: few
        fit_guide(model, guide, num_steps=3, progress_bar=False, **options)
    assert 100 * dim < sizes.largest < dim * dim, (sizes.shape, sizes.op)


def test_the_spy_sees_a_matrix_where_one_was_asked_for():
    model = energy_model(correlated(300)[0], 300)
    with Sizes() as sizes:
        AutoFlow(model, "affine")
    assert sizes.largest >= 300 * 300


def test_memory_of_a_step_is_linear():
    held = []
    for dim in (512, 2048):
        model = energy_model(correlated(dim, 2)[0], dim)
        guide = AutoFlow(model, "realnvp", init="point")
        with Sizes() as sizes:
            fit_guide(model, guide, num_steps=2, progress_bar=False, num_diagnostic_samples=0)
        held.append(sizes.largest)
    assert held[1] <= 4 * held[0]


def test_it_says_which_outer_map_was_chosen():
    small, large = (AutoFlow(energy_model(correlated(d, 1)[0], d), "realnvp") for d in (20, 300))
    assert "rank" not in small.report
    assert large.report.endswith("the outer map has rank 16")
    assert "the diagonal and 16 directions of the curvature" in large.report


@pytest.mark.parametrize("rank", [0, 4, 16])
def test_the_curvature_of_few_directions_is_that_of_the_matrix(rank):
    log_density, _, precision = correlated(400)
    slim = slim_curvature(log_density, torch.zeros(400).double(), rank)
    assert slim.directions.shape == (400, rank)
    assert_close(slim.directions.mT @ slim.directions, torch.eye(rank).double())
    assert_close(slim.scale, precision.diagonal().rsqrt(), rtol=0.1, atol=0)
    if rank:
        factor = slim.times(torch.eye(400).double()).mT
        white = factor.mT @ precision @ factor
        assert_close(torch.linalg.eigvalsh(white), torch.ones(400).double(), atol=0.35, rtol=0)
        assert_close(slim.log_det(), factor.det().abs().log(), atol=1e-6, rtol=0)
        assert_close(slim.deviations(), factor.square().sum(-1).sqrt())


@pytest.mark.parametrize(("rank", "gap"), [(16, 5.0), (0, 60.0)])
def test_the_start_is_close_to_the_posterior(rank, gap):
    log_density, log_z, _ = correlated(600)
    points = torch.randn(2, 600, generator=torch.Generator().manual_seed(0)).double()
    start = find_start(log_density, points, max_full_dim=256, rank=rank)
    assert start.scale_tril is None
    assert log_z - gap < start.elbo < log_z + 1e-6
    assert not start.modes  # both climbs ended at the same


def test_a_density_without_a_second_derivative_has_a_start_too():
    def log_density(x):
        return -(0.5 * Once.apply(x).square() + 0.1 * x**4).sum(-1)

    start = find_start(log_density, torch.ones(1, 300).double(), max_full_dim=256, rank=4)
    assert torch.isfinite(start.scale).all()
    assert start.elbo > 200  # log Z is 230


class Once(torch.autograd.Function):
    """The identity, differentiable once."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad
