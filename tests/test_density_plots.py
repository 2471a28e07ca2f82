"""Ranks of points in a density, its values on a grid, and its figure."""

import pytest
import torch
from torch.distributions import constraints

import pyroflows as pf


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def fitted(dim, **options):
    x = torch.randn(500, dim) @ (torch.eye(dim) + 0.5 * torch.ones(dim, dim).tril(-1)) + 3
    return pf.FlowDensity(dim, "affine", **options).initialize(x), x


def test_ranks_of_own_draws_are_uniform_and_of_others_not():
    density, _ = fitted(2)
    draws = density().sample((4000,)).detach()
    for u in pf.pit(density, draws).T:
        assert abs(float(u.mean()) - 0.5) < 0.02
        assert abs(float(u.var()) - 1 / 12) < 0.005
    assert abs(float(pf.pit(density, draws + 2)[:, 0].mean()) - 0.5) > 0.2


def test_ranks_need_a_base_that_has_them():
    with pytest.raises(ValueError, match="distribution functions, 'normal' or 'diagonal_normal'"):
        pf.pit(pf.FlowDensity(2, "affine", base="student_t"), torch.randn(5, 2))


@pytest.mark.parametrize("dim", [1, 2])
def test_a_grid_holds_nearly_all_of_the_mass(dim):
    density, _ = fitted(dim)
    axes, log_prob = pf.density_grid(density, 150)
    cell = torch.stack([a[1] - a[0] for a in axes]).prod()
    assert log_prob.shape == (150,) * dim
    assert float(log_prob.exp().sum() * cell) == pytest.approx(1, abs=0.02)


def test_a_grid_goes_beyond_the_support_where_it_is_asked_to():
    density = pf.FlowDensity(1, "affine", support=constraints.positive)
    _, log_prob = pf.density_grid(density, 11, limits=[[-5.0, 5.0]])
    assert (log_prob[:5] == -torch.inf).all()
    assert log_prob[6:].isfinite().all()


def test_a_grid_has_two_dimensions_at_most():
    with pytest.raises(ValueError, match="one or two coordinates"):
        pf.density_grid(pf.FlowDensity(3, "affine"))
    with pytest.raises(ValueError, match=r"limits of shape \(2, 2\)"):
        pf.density_grid(pf.FlowDensity(2, "affine"), limits=[0.0, 1.0])


def area(curve):
    x, y = (torch.as_tensor(values) for values in (curve.get_xdata(), curve.get_ydata()))
    return float(torch.trapezoid(y, x))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("with_data", [False, True])
def test_figures(dim, with_data, tmp_path):
    pytest.importorskip("matplotlib")
    density, x = fitted(dim)
    figure = pf.plot_density(density, x if with_data else None)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    if dim == 1:
        curve = figure.axes[0].lines[0]
        assert area(curve) == pytest.approx(1, abs=0.02)


def test_a_figure_at_covariates():
    pytest.importorskip("matplotlib")
    density = pf.FlowDensity(1, "affine", context_dim=2)
    assert pf.plot_density(density, context=torch.zeros(2)).axes
    with pytest.raises(ValueError, match=r"x of shape \(N, 1\), got \(5, 2\)"):
        pf.plot_density(density, torch.randn(5, 2), context=torch.zeros(2))
