"""Where guides start: modes, curvature, several modes, no mode at all."""

import copy
import math
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyroflows import AutoFlow, energy_model
from pyroflows.guides.start import find_start, hessian


def gaussian(loc, covariance):
    normal = torch.distributions.MultivariateNormal(loc, covariance)
    return normal.log_prob


def points(dim):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (5e4, 1e-3), (1e-4, 1e5)], ids=str)
@pytest.mark.parametrize("correlation", [0.0, 0.9999])
def test_a_gaussian_is_found_exactly_at_any_scale(scales, correlation):
    scale = torch.tensor(scales, dtype=torch.float64)
    matrix = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    covariance = scale[:, None] * matrix * scale
    loc = torch.tensor([50.0, -30.0], dtype=torch.float64) * scale
    start = find_start(gaussian(loc, covariance), points(2))
    assert_close((start.loc - loc) / scale, torch.zeros(2, dtype=torch.float64), atol=1e-4, rtol=0)
    assert_close(start.scale_tril @ start.scale_tril.mT, covariance, rtol=1e-4, atol=0)
    assert abs(start.elbo) < 1e-3


def test_several_modes_are_all_covered():
    """Weights of draws from one mode cannot see the others, so a start in one would stay there."""

    def log_density(u):
        centers = torch.tensor([[-6.0, 0.0], [6.0, 0.0], [0.0, 6.0]], dtype=u.dtype)
        distances = (u[..., None, :] - centers).square().sum(-1)
        return (-0.5 * distances).logsumexp(-1)

    corners = torch.tensor([[-4.0, -2.0], [5.0, 1.0], [1.0, 4.0], [4.0, -3.0], [-2.0, 0.0]])
    start = find_start(log_density, corners.double())
    assert "3 modes" in start.report
    assert_close(start.loc, torch.tensor([0.0, 2.0]).double(), atol=0.3, rtol=0)
    assert_close(start.scale, torch.tensor([25.0, 9.0]).double().sqrt(), atol=0.3, rtol=0)


def test_a_density_without_a_mode_gets_a_gaussian_from_the_way_there():
    """A centered hierarchy is unbounded as its scale goes to zero."""

    def log_density(u):
        scale = u[..., :1].exp()
        local = -0.5 * (u[..., 1:] / scale).square() - u[..., :1]
        return -0.5 * (u[..., 0] / 2).square() + local.sum(-1)

    start = find_start(log_density, points(6))
    assert math.isfinite(start.elbo)
    assert start.scale.min() > 0.05


def test_negative_curvature_is_taken_by_its_size():
    def log_density(u):  # flat-topped: the curvature vanishes at the mode
        return -u.pow(4).sum(-1)

    start = find_start(log_density, points(2))
    assert 0.1 < start.scale.min() <= start.scale.max() < 3.0


def test_the_hessian_is_exact_and_falls_back_to_differences():
    class NoSecondDerivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return -u.pow(4).sum(-1)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            (u,) = ctx.saved_tensors
            return -4 * u.pow(3) * grad[..., None]

    u = torch.tensor([0.5, -1.5], dtype=torch.float64)
    expected = (-12 * u.square()).diag()
    assert_close(hessian(lambda v: -v.pow(4).sum(-1), u), expected)
    assert_close(hessian(NoSecondDerivative.apply, u), expected, rtol=1e-5, atol=1e-6)


def test_an_impossible_model_is_refused():
    def log_density(u):
        return u.sum(-1) * math.nan

    with pytest.raises(ValueError, match="not finite at any of the 4 points"):
        find_start(log_density, points(2))


@pytest.mark.parametrize("outer", ["full", "diagonal", "low_rank"])
def test_every_outer_map_starts_at_the_posterior(outer):
    def model():
        pyro.sample("x", dist.Normal(torch.tensor([50.0, -30.0]), 0.1).to_event(1))

    guide = AutoFlow(model, "nsf", outer=outer, num_layers=1)
    draws = guide.unpack(guide.get_posterior().sample((2000,)))["x"]
    assert_close(draws.mean(0), torch.tensor([50.0, -30.0]), atol=0.02, rtol=0)
    assert_close(draws.std(0), torch.tensor([0.1, 0.1]), atol=0.02, rtol=0)


def test_a_high_dimension_needs_no_square_matrix():
    def model():
        scale = torch.linspace(0.1, 3.0, 1500)
        pyro.sample("x", dist.Normal(torch.ones(1500), scale).to_event(1))

    guide = AutoFlow(model, "diagonal")
    draws = guide.unpack(guide.get_posterior().sample((500,)))["x"]
    assert_close(draws.std(0), torch.linspace(0.1, 3.0, 1500), rtol=0.25, atol=0)
    assert_close(draws.mean(), torch.tensor(1.0), rtol=0.05, atol=0)


def test_single_precision_that_cannot_hold_the_posterior_is_named():
    def model():
        pyro.sample("x", dist.Normal(5e4, 1e-3))

    with pytest.warns(UserWarning, match="too narrow for torch.float32"):
        AutoFlow(model, "affine")


def test_a_point_can_be_given():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    init = pyro.infer.autoguide.initialization.init_to_value(values={"x": torch.tensor(3.0)})
    guide = AutoFlow(model, "affine", init="point", init_loc_fn=init, init_scale=0.5)
    assert_close(guide.unpack(guide.median_latent())["x"], torch.tensor(3.0))
    assert "0.5 wide" in guide.report


def test_an_improper_model_still_starts_at_finite_numbers():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))

    guide = AutoFlow(model, "nsf")
    assert all(v.isfinite().all() for v in guide.state_dict().values())


def test_data_in_double_precision_give_a_guide_in_double_precision():
    """Priors written with Python numbers are single; rounding of one is not a lack of broadcast."""
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)

    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(slope * x, scale), obs=y)

    guide = AutoFlow(model, "affine", model_args=(x, 2 * x + 0.1 * x.sin().cos()))
    assert guide.dtype == torch.float64
    y = (2 * x + 0.1 * x.sin().cos()).float()
    single = AutoFlow(model, "affine", model_args=(x.float(), y))
    assert single.dtype == torch.float32


def two_far_modes(u):
    """A mixture of 62 and 38 %, whose second derivative by logaddexp is NaN at both modes."""
    big = math.log(0.62) - 0.5 * (u - 20).square().sum(-1)
    return torch.logaddexp(big, math.log(0.38) - 0.5 * (u + 20).square().sum(-1))


def test_an_overflow_in_the_second_derivative_hides_no_mode():
    u = torch.full((2,), 20.0, dtype=torch.float64)
    assert_close(hessian(two_far_modes, u), -torch.eye(2).double(), atol=1e-6, rtol=0)
    start = find_start(two_far_modes, points(2))
    assert "2 modes" in start.report
    low, high = sorted(start.modes, key=lambda mode: mode.loc[0].item())
    for mode, place, mass in ((low, -20.0, 0.38), (high, 20.0, 0.62)):
        assert_close(mode.mode, torch.full((2,), place).double(), atol=1e-3, rtol=0)
        assert mode.elbo == pytest.approx(math.log(2 * math.pi * mass), abs=0.01)


def test_one_mode_is_not_kept():
    eye = torch.eye(2).double()
    assert find_start(gaussian(torch.ones(2).double(), eye), points(2)).modes == ()


def test_modes_stay_with_a_copy_of_the_guide():
    model = energy_model(two_far_modes, dim=2)
    guide = AutoFlow(model, "affine")
    assert len(guide.modes) == 2
    twins = [copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), AutoFlow(model, "affine")]
    twins[-1].load_state_dict(guide.state_dict())
    for twin in twins:
        for mode, other in zip(guide.modes, twin.modes, strict=True):
            assert torch.equal(mode.loc, other.loc)
            assert torch.equal(mode.scale_tril, other.scale_tril)


@pytest.mark.parametrize("flow", ["affine", "diagonal"])
def test_a_density_without_curvature_starts_at_its_width(flow):
    """A Laplace has none but at its kinks, where it has no second derivative."""
    guide = AutoFlow(energy_model(lambda x: -(x - 5).abs().sum(-1), dim=3), flow)
    draws = guide.unpack(guide.get_posterior().sample((2000,)))["x"]
    assert_close(draws.mean(0), torch.full((3,), 5.0), atol=0.5, rtol=0)
    assert (draws.std(0) > 0.5).all()
    assert (draws.std(0) < 2.5).all()


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_climb_without_end_is_named(slope):
    def model():
        pyro.sample("proper", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("growth", slope * b)

    # Farther than single precision goes.
    with pytest.raises(ValueError, match=r"without coming to an end: 'b' ran off .* improper"):
        AutoFlow(model, "affine")
    one_sided = energy_model(lambda x: slope * x.sum(-1), dim=1)
    with pytest.warns(UserWarning, match="'x' ran off"):
        AutoFlow(one_sided, "nsf")


def test_a_density_that_outruns_every_number_is_refused_by_name():
    with pytest.raises(ValueError, match=r"without coming to an end: 'x' ran off .* proper prior"):
        AutoFlow(energy_model(lambda x: x.square().sum(-1), dim=1), "nsf")


def _branch():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    slope = 1.0 if x.item() > 0 else 0.5
    pyro.sample("y", dist.Normal(slope * x, 1.0), obs=torch.tensor(0.7))


def _two_modes():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    side = 6.0 if x[0].item() > 0 else -6.0
    pyro.factor("f", -0.5 * (x[0] - side).square() - 0.5 * (x[1] - x[0]).square())


def _long():
    x = pyro.sample("x", dist.StudentT(4.0, torch.zeros(8), 1.0).to_event(1))
    pyro.factor("f", 0.0 if x[0].item() > 0 else x[0] * 0)


@pytest.mark.filterwarnings("ignore:The model does not broadcast")
@pytest.mark.parametrize(
    ("model", "loc", "scale", "most"),
    [(_branch, 0.18, 0.8, 2500), (_two_modes, 0.0, 6.0, 8000), (_long, 0.0, 1.25, 4000)],
)
def test_a_model_run_one_point_at_a_time_starts_with_few_runs(model, loc, scale, most):
    def counted():
        counted.runs += 1
        return model()

    counted.runs = 0
    guide = AutoFlow(counted, "affine")
    assert counted.runs <= most
    assert "from fewer draws, as the model is run for one at a time" in guide.report
    draws = guide.get_posterior().sample((4000,))
    assert_close(draws[:, 0].mean().item(), loc, atol=0.2 * scale, rtol=0)
    assert_close(draws[:, 0].std().item(), scale, rtol=0.2, atol=0)


def double_moon(x):
    r = x.norm(dim=-1)
    left, right = (-0.5 * ((x[..., 0] - side) / 0.3).square() for side in (-2, 2))
    return -0.5 * ((r - 2) / 0.2).square() + torch.logaddexp(left, right)


def start_at(log_density, point, flow="nsf"):
    init = pyro.infer.autoguide.initialization.init_to_value(values={"x": torch.tensor(point)})
    return AutoFlow(energy_model(log_density, dim=len(point)), flow, init_loc_fn=init)


@pytest.mark.parametrize("height", [0.0, 1e-3])
def test_a_mode_flat_in_one_direction_only_starts_at_its_width(height):
    """Across the ring the mode is 0.17 wide; along it the curvature is zero, or none in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide = start_at(double_moon, [2.0, height])
    draws = guide.unpack(guide.get_posterior().sample((4000,)))["x"]
    assert_close(draws.mean(0), torch.tensor([1.97, 0.0]), atol=0.2, rtol=0)
    assert 0.08 < draws[:, 0].std() < 0.25
    assert 0.35 < draws[:, 1].std() < 0.9


@pytest.mark.parametrize("angle", [0.0, 0.6])
def test_flat_directions_need_not_be_coordinates(angle):
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    def log_density(u):
        v = u @ turn.to(u)
        return -0.5 * (v[..., 0] / 1e-3).square() - v[..., 1].pow(4)

    start = find_start(log_density, torch.zeros(1, 2).double())
    spread = (turn.double().mT @ start.scale_tril).square().sum(-1).sqrt()
    assert 0.5e-3 < spread[0] < 2e-3
    assert 0.3 < spread[1] < 0.8


def test_curvature_that_is_not_finite_at_a_point_is_taken_beside_it():
    def log_density(u):  # The root has a gradient of NaN all along the line where it is zero.
        across = (u[..., 0] - 2).square().sqrt()
        return -0.5 * (across / 0.2).square() - 0.5 * (u[..., 1] - u[..., 0]).square()

    point = torch.tensor([2.0, 1.0], dtype=torch.float64)
    expected = torch.tensor([[-26.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    assert_close(hessian(log_density, point), expected, rtol=1e-4, atol=1e-4)
    start = find_start(log_density, point[None])
    assert start.scale[0].item() == pytest.approx(0.2, rel=0.05)


class _GradientInOnePlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return -0.5 * x.square().sum(-1)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return -x.where(x[..., :1] < 1.5, math.nan) * grad[..., None]


def test_a_second_derivative_that_is_nowhere_finite_is_named_with_its_place():
    told = r"fell back to .* second derivative of the log density is not finite at \(2, 0.5\)"
    with pytest.warns(UserWarning, match=told):
        start_at(_GradientInOnePlace.apply, [2.0, 0.5], "affine")
