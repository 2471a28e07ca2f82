"""Laws of every base: density, draws, gradients of draws, context, copies, extremes."""

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyroflows as pf
from pyroflows import bases

NUM_BATCHES, BATCH = 40, 5000
STANDARD_ERRORS = 5.0  # of the Monte Carlo mean of a gradient
QUADRATURE = 1e-5  # absolute, of integrals on a grid

BUILDERS = {
    "normal": bases.StandardNormal,
    "diagonal_normal": bases.DiagonalNormal,
    "full_normal": bases.FullNormal,
    "student_t": bases.StudentT,
    "gaussian_mixture": lambda dim, **o: bases.GaussianMixture(dim, num_components=3, **o),
    "uniform": bases.Uniform,
    "von_mises": bases.VonMises,
    "circular": lambda dim, **o: bases.circular(
        dim, indices=[0], circle="von_mises", line="student_t", **o
    ),
}
CIRCULAR = {"uniform": (0, 1), "von_mises": (0, 1), "circular": (0,)}


def build(name, dim, *, noise=0.5, seed=0, **options):
    torch.manual_seed(seed)
    base = BUILDERS[name](dim, **options)
    with torch.no_grad():
        for param in base.parameters():
            param.add_(noise * torch.randn(param.shape, dtype=param.dtype))
    return base


def axis(name, i, num):
    """Nodes and weights on one coordinate, equally spaced, or in the sinh of what is."""
    if i in CIRCULAR.get(name, ()):
        nodes = torch.linspace(-math.pi, math.pi, num + 1)[:-1]
        return nodes, torch.full_like(nodes, 2 * math.pi / num)
    u = torch.linspace(-14, 14, num)
    return u.sinh(), u.cosh() * (u[1] - u[0])


def grid(name, dim, num):
    axes = [axis(name, i, num) for i in range(dim)]
    points = torch.cartesian_prod(*(a[0] for a in axes)).reshape(-1, dim)
    weights = torch.cartesian_prod(*(a[1] for a in axes)).reshape(-1, dim).prod(-1)
    return points, weights


def smooth(name, z):
    """A bounded function, periodic where the coordinates are."""
    parts = [
        z[..., i].cos() + 0.5 * z[..., i].sin()
        if i in CIRCULAR.get(name, ())
        else (z[..., i] - 0.3).tanh()
        for i in range(z.shape[-1])
    ]
    return sum(parts) + math.prod(parts)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", BUILDERS)
def test_density_integrates_to_one(name, dim):
    base = build(name, dim)
    points, weights = grid(name, dim, 1200)
    total = (base.log_prob(points).exp() * weights).sum()
    assert abs(total - 1) < QUADRATURE


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("name", [n for n in BUILDERS if n not in ("normal", "uniform")])
def test_draws_carry_the_gradient_of_a_mean_to_every_parameter(name):
    base = build(name, 2)
    params = list(base.parameters())
    points, weights = grid(name, 2, 1200)
    mean = (base.log_prob(points).exp() * weights * smooth(name, points)).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(mean, params)])
    found = []
    for _ in range(NUM_BATCHES):
        mean = smooth(name, base.distribution().rsample((BATCH,))).mean()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(mean, params)]))
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(NUM_BATCHES)
    assert (error < 0.05).all()
    assert ((found.mean(0) - expected).abs() <= STANDARD_ERRORS * error + QUADRATURE).all()


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("name", ["gaussian_mixture", "von_mises"])
@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
def test_in_one_dimension_draws_move_as_the_distribution_function_does(name, noise):
    base = build(name, 1, noise=noise)
    draws = base.distribution().rsample((20,))
    nodes, weights = (torch.from_numpy(a) for a in _gauss_legendre(2000))
    params = list(base.parameters())
    for z in draws:
        low = -math.pi if name == "von_mises" else -40.0
        # The von Mises is cut at the location's far side, where draws are wrapped.
        if name == "von_mises":
            loc = base.distribution().loc.detach()
            offset = (z.detach() - loc + math.pi) % (2 * math.pi) - math.pi
            points = low + (nodes + 1) / 2 * (offset - low)
            below = _cdf(base, points + loc, (offset - low) / 2 * weights)
        else:
            points = low + (nodes + 1) / 2 * (z.detach() - low)
            below = _cdf(base, points, (z.detach() - low) / 2 * weights)
        density = base.log_prob(z.detach()).exp()
        for param in params:
            if name == "von_mises" and param is base.raw_loc:
                continue  # the cut moves along
            expected = -torch.autograd.grad(below, param, retain_graph=True)[0] / density.detach()
            got = torch.autograd.grad(z.sum(), param, retain_graph=True)[0]
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def _gauss_legendre(num):
    import numpy as np

    return np.polynomial.legendre.leggauss(num)


def _cdf(base, points, weights):
    return (base.log_prob(points.reshape(-1, 1)).exp() * weights).sum()


@pytest.mark.usefixtures("_double")
def test_degrees_of_freedom_move_draws_as_a_finite_difference_says():
    df = torch.tensor([1.2, 3.0, 30.0], requires_grad=True)

    def mean_at(value):
        u = torch.linspace(-16, 16, 20001)
        z, weight = u.sinh(), u.cosh() * (u[1] - u[0])
        law = torch.distributions.StudentT(value)
        return (law.log_prob(z[:, None]).exp() * weight[:, None] * z[:, None].abs().log1p()).sum(0)

    step = 1e-4
    expected = (mean_at(df.detach() + step) - mean_at(df.detach() - step)) / (2 * step)
    draws = bases.student_t._StudentTs(df).rsample((400_000,))
    (got,) = torch.autograd.grad(draws.abs().log1p().mean(0).sum(), df)
    assert ((got - expected).abs() < 0.02 * expected.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_student_t_has_the_density_of_its_textbook_at_all_degrees(dtype):
    df = torch.tensor([1.01, 2.0, 10.0, 49.9, 50.1, 1e3, 1e6, 1e12], dtype=dtype)
    z = torch.tensor([[0.0], [1.0], [7.0]], dtype=dtype)
    found = torch.stack([bases.student_t._StudentTs(d[None]).log_prob(z) for d in df], -1)
    expected = torch.distributions.StudentT(df.double()).log_prob(z.double())
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z.double())
    expected = torch.where(df > 1e8, normal, expected)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-8  # lgamma at 1e6 has lost eight digits
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BUILDERS)
def test_value_and_gradient_are_finite_far_out(name, dtype):
    base = build(name, 3).to(dtype)
    z = torch.tensor([[1e6] * 3, [-1e6] * 3, [0.0] * 3], dtype=dtype, requires_grad=True)
    if name == "uniform":
        assert base.log_prob(z).tolist()[:2] == [-math.inf, -math.inf]
        return
    value = base.log_prob(z)
    grads = torch.autograd.grad(value.sum(), [z, *base.parameters()], allow_unused=True)
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in grads if g is not None)
    assert value.dtype == dtype


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BUILDERS)
def test_dtype_shapes_and_support(name, default):
    base = build(name, 3).to(torch.float64)
    torch.set_default_dtype(default)
    law = base.distribution()
    draws = law.expand((4,)).rsample((2,))
    assert draws.dtype == torch.float64
    assert draws.shape == (2, 4, 3)
    assert law.log_prob(draws).shape == (2, 4)
    assert law.log_prob(draws).dtype == torch.float64
    assert law.event_shape == (3,)
    assert law.has_rsample
    assert base.support.check(draws).all()
    assert law.support.check(draws).all()
    assert base.center().shape == (3,)
    assert base.center().isfinite().all()
    score = base.score(draws)
    assert score.shape == draws.shape
    assert not score.requires_grad
    assert law.mask(False).log_prob(draws).sum() == 0


@pytest.mark.parametrize("name", BUILDERS)
def test_score_is_the_gradient_of_the_log_density(name):
    base = build(name, 2)
    z = base.distribution().rsample((5,)).detach().requires_grad_()
    value = base.log_prob(z).sum()
    expected = torch.autograd.grad(value, z)[0] if value.requires_grad else torch.zeros_like(z)
    torch.testing.assert_close(base.score(z), expected)
    with torch.inference_mode():
        torch.testing.assert_close(base.score(z.detach().clone()), expected)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("name", BUILDERS)
def test_context_gives_the_batch_and_matters(name):
    base = build(name, 2, noise=0.1, context_dim=3)
    context = torch.randn(4, 3)
    law = base.distribution(context)
    draws = law.rsample((5,))
    assert draws.shape == (5, 4, 2)
    one_by_one = torch.stack([base.log_prob(draws[:, i], context[i]) for i in range(4)], dim=1)
    torch.testing.assert_close(law.log_prob(draws), one_by_one)
    if list(base.parameters()):
        assert not torch.allclose(law.log_prob(draws), base.log_prob(draws, 0 * context))
    with pytest.raises(TypeError, match=r"needs a context of shape \(\*, 3\) but got None"):
        base.distribution()
    with pytest.raises(ValueError, match=r"expected context of shape \(\*, 3\), got \(4, 2\)"):
        base.distribution(context[:, :2])
    with pytest.raises(TypeError, match="takes no context"):
        build(name, 2).distribution(context)


@pytest.mark.parametrize("name", BUILDERS)
def test_copies_files_and_state(name):
    base = build(name, 2)
    z = base.distribution().rsample((5,)).detach()
    expected = base.log_prob(z)
    fresh = build(name, 2, seed=1)
    fresh.load_state_dict(base.state_dict())
    twins = [copy.deepcopy(base), pickle.loads(pickle.dumps(base)), fresh]
    for twin in twins:
        torch.testing.assert_close(twin.log_prob(z), expected, rtol=0, atol=0)


def test_mixture_draws_of_alike_or_far_components_have_finite_gradients():
    for apart in (0.0, 1e-8, 1.0, 1e3):
        base = bases.GaussianMixture(3, num_components=2)
        with torch.no_grad():
            base.anchor_loc.copy_(torch.tensor([[0.0], [apart]]).expand(2, 3))
        base.distribution().rsample((1000,)).sum().backward()
        assert all(p.grad.isfinite().all() for p in base.parameters())


def test_concentrations_from_broad_to_narrow_have_finite_gradients():
    base = bases.VonMises(4)
    with torch.no_grad():
        base.raw_log_concentration.copy_(torch.tensor([1e-6, 1e-2, 1e2, 1e6]).log())
    draws = base.distribution().rsample((1000,))
    (grad,) = torch.autograd.grad(draws.square().mean(0).sum(), base.raw_log_concentration)
    narrow = 1 / torch.tensor([1e2, 1e6])  # the variance is 1 / concentration there
    torch.testing.assert_close(grad[2:], -narrow, rtol=0.3, atol=0)
    assert grad.isfinite().all()


def test_names_lead_to_bases_and_wrong_ones_are_told():
    assert set(BUILDERS) == set(pf.available_bases())
    for name in pf.available_bases():
        options = {"indices": [1]} if name == "circular" else {}
        assert isinstance(pf.build_base(name, 2, **options), pf.Base)
    built = bases.StudentT(2)
    assert pf.build_base(built, 2) is built
    with pytest.raises(ValueError, match="Did you mean 'student_t'"):
        pf.build_base("student", 2)
    with pytest.raises(TypeError, match="takes no option 'scale': it takes df"):
        pf.build_base("student_t", 2, scale=1.0)
    with pytest.raises(ValueError, match=r"asked for dim=3, context_dim=0 and is of dim=2"):
        pf.build_base(built, 3)
    with pytest.raises(TypeError, match="set it when building"):
        pf.build_base(built, 2, df=3.0)
    with pytest.raises(TypeError, match="a recipe returns a Base"):
        pf.build_base(lambda dim, *, context_dim=0: nn.Linear(dim, dim), 2)
    with pytest.raises(TypeError, match="expected a name, a recipe or a Base, got int"):
        pf.build_base(3, 2)
    with pytest.raises(ValueError, match="already registered"):
        bases.register_base("normal")(bases.StandardNormal)
    with pytest.raises(TypeError, match="expected a name"):
        bases.register_base(bases.StandardNormal)


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: bases.StudentT(0), ValueError, "StudentT expected dim to be an int >= 1, got 0"),
        (lambda: bases.StudentT(2, df=1.0), ValueError, "0 < min_df < df"),
        (lambda: bases.GaussianMixture(2, num_components=0), ValueError, "num_components"),
        (lambda: bases.Uniform(2, low=1.0, high=0.0), ValueError, "low < high"),
        (lambda: bases.Uniform(2, low=[1.0] * 3), ValueError, r"of shape \(\) or \(2,\)"),
        (lambda: bases.VonMises(2, concentration=-1.0), ValueError, "concentration > 0"),
        (lambda: bases.circular(2, indices=[2]), ValueError, r"indices out of 0\.\.1"),
        (lambda: bases.Product([(bases.StudentT(2), [0])]), ValueError, "expected 2 indices"),
        (lambda: bases.Product([(bases.StudentT(1), [1])]), ValueError, "each index of 0..0"),
        (lambda: bases.Product([(nn.Linear(1, 1), [0])]), TypeError, "expected bases"),
    ],
)
def test_wrong_options_are_told(make, error, told):
    with pytest.raises(error, match=told):
        make()


def test_a_flow_on_a_base_is_a_distribution_of_pyro():
    base, flow = bases.StudentT(2), pf.build_flow("nsf", 2, num_layers=1, hidden_dims=(8,))
    law = dist.TransformedDistribution(base.distribution(), [flow])
    law.rsample((5,)).sum().backward()
    assert base.raw_df.grad.abs().min() > 0
    assert all(p.grad is not None for p in flow.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_of_any_concentration_are_drawn_and_scored(dtype):
    """Far from the start, where a training may end up, the loop that draws did not end."""
    base = bases.VonMises(7).to(dtype)
    concentrations = torch.tensor([900.0, 1.1e3, 1e7, 1e12, 1e20, torch.inf, torch.nan])
    with torch.no_grad():
        base.raw_log_concentration.copy_(concentrations.log())
    draws = base.distribution().rsample((2000,)).detach()
    spread = draws[:, :5].double().square().mean(0) * concentrations[:5].double()
    narrow = torch.finfo(dtype).eps ** -2 / 1e3  # beyond, draws are rounded to the location
    assert ((spread - 1).abs() < 0.15)[concentrations[:5] < narrow].all()
    assert draws[:, -1].isnan().all()
    # at the location the density is sqrt(k / 2 pi), so that its log has slope 1/2 in log k
    log_prob = base.log_prob(torch.zeros(7, dtype=dtype))
    (grad,) = torch.autograd.grad(log_prob, base.raw_log_concentration)
    torch.testing.assert_close(
        grad[1:5].double(), torch.full((4,), 0.5).double(), atol=2e-4, rtol=0
    )
    assert abs(grad[0] - 0.5) < 2e-4
