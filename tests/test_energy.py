"""energy_model: any callable that is a log density is told apart right, any other is refused."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.distributions import biject_to, constraints

from pyroflows.energy import EnergyModel, energy_model


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def ring(x):
    return -((x.square().sum(-1) - 4) ** 2)


def of_columns(x):
    return -(x[:, 0] ** 2) - x[:, 1] ** 4


def of_one_point(x):
    a, b = x
    return -(a**2) - b**4


def summed_over_all(x):
    return -x.square().sum()


def with_an_if(x):
    return -x.square().sum() if x[0] > 0 else -2 * x.square().sum()


def squeezed(x):
    return -x.square().sum(-1, keepdim=True).squeeze()


def half_space(x):
    return torch.where(x[..., 0] > 0, -x.square().sum(-1), -torch.inf)


@pytest.mark.parametrize(
    ("log_density", "evaluation"),
    [
        (ring, "batched"),
        (of_columns, "batched"),
        (squeezed, "batched"),
        (half_space, "batched"),
        (of_one_point, "vmap"),
        (summed_over_all, "vmap"),
        (lambda x: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob(x), "batched"),
        (lambda x: dist.Normal(torch.zeros(2), torch.ones(2)).log_prob(x).sum(), "vmap"),
        (lambda x: -x.square().sum(0), "vmap"),
    ],
)
def test_batched_and_unbatched_callables_are_told_apart(log_density, evaluation):
    model = energy_model(log_density, dim=2)
    assert model.evaluation == evaluation
    x = torch.randn(3, 5, 2, requires_grad=True)
    loop = torch.stack(
        [
            log_density(p[None] if log_density is of_columns else p).reshape(())
            for p in x.reshape(-1, 2)
        ]
    ).reshape(3, 5)
    got = model.log_density(x)
    assert torch.allclose(got, loop)
    grads = [torch.autograd.grad(v.sum(), x)[0] for v in (got, loop)]
    assert torch.allclose(*grads, equal_nan=True)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5])
def test_no_dimension_fools_the_probe(dim):
    per_column = energy_model(lambda x: -x.square().sum(0), dim=dim)
    assert per_column.evaluation == "vmap"
    assert energy_model(lambda x: -x.square().sum(-1), dim=dim).evaluation == "batched"


def test_control_flow_is_evaluated_by_a_loop_with_a_word():
    with pytest.warns(UserWarning, match="point by point, which is slow.*vmap raised"):
        model = energy_model(with_an_if, dim=2)
    x = torch.randn(6, 2)
    assert model.evaluation == "loop"
    assert torch.equal(model.log_density(x), torch.stack([with_an_if(p) for p in x]))


def detached(x):
    return ring(x.detach())


def minus_mean(x):
    return -((x - x.mean(0)) ** 2).sum(-1)


def borrowed_gradient(x):
    return ring(x) + (x - x.detach()).sum()


def to_numpy(x):
    return torch.as_tensor(-(x.detach().numpy() ** 2).sum(-1))


def sqrt_of_zero(x):
    return -(x - x.detach()).square().sum(-1).sqrt()


@pytest.mark.parametrize(
    ("log_density", "message"),
    [
        (lambda x: -x.square().sum(-1, keepdim=True), r"returned shape \(3, 1\) where \(3,\)"),
        (lambda x: -x.square(), r"returned shape \(3, 2\) where \(3,\).*Sum over the coordinates"),
        (detached, r"without gradient.*without .detach\(\)"),
        (to_numpy, r"without gradient.*numpy"),
        (lambda x: x.sum(-1).long(), "returned torch.int64, not a floating dtype"),
        (lambda x: 1.0, "returned a float, not a tensor"),
        (lambda x: x @ torch.ones(7), "raised RuntimeError.*for one point it raised"),
        (lambda x: ring(x) * torch.nan, "is NaN at each of the points"),
        (sqrt_of_zero, "gradient of log_density is NaN"),
        (minus_mean, "mixed its rows: one has another value alone.*batched=False"),
        (borrowed_gradient, "mixed its rows: the value of one has a gradient in another"),
    ],
)
def test_what_is_no_log_density_is_refused(log_density, message):
    with pytest.raises(ValueError, match=message):
        energy_model(log_density, dim=2)


def test_the_caller_may_say_which_kind_it_is():
    assert energy_model(minus_mean, dim=2, batched=False).evaluation == "vmap"
    assert energy_model(ring, dim=2, batched=False).evaluation == "vmap"
    with pytest.raises(ValueError, match=r"batches of them it returned shape \(\) where"):
        energy_model(summed_over_all, dim=2, batched=True)
    with pytest.raises(ValueError, match="for one point it raised IndexError"):
        energy_model(of_columns, dim=2, batched=False)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({}, ValueError, r"expected dim, .*pass dim="),
        ({"dim": 0}, ValueError, "expected dim >= 1, got 0"),
        ({"dim": 2.0}, TypeError, "expected dim to be an int, got float"),
        ({"dim": 2, "support": "positive"}, TypeError, "to be a constraint.*got str"),
        ({"dim": 2, "support": constraints.boolean}, ValueError, "continuous support"),
        ({"dim": 2, "support": constraints.symmetric}, ValueError, "does not know the support"),
        ({"dim": 2, "batched": "maybe"}, ValueError, "True, False or 'auto', got 'maybe'"),
        ({"dim": 2, "dtype": torch.int64}, ValueError, "floating dtype, got torch.int64"),
        (
            {"dim": 2, "support": constraints.interval(torch.zeros(3), torch.ones(3))},
            ValueError,
            "dim=2, but .* has 3 coordinates",
        ),
    ],
)
def test_bad_arguments_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        energy_model(ring, **kwargs)


def test_a_log_density_that_is_not_callable_is_refused():
    with pytest.raises(TypeError, match="expected a callable log_density, got Tensor"):
        energy_model(torch.zeros(2), dim=2)


def test_minus_infinity_everywhere_is_told():
    with pytest.warns(UserWarning, match="-inf at each of the points.*Give support="):
        energy_model(lambda x: torch.where(x[..., 0] > 99, -x.sum(-1), -torch.inf), dim=2)


SUPPORTS = {
    "positive": (constraints.positive, 3),
    "unit_interval": (constraints.unit_interval, 3),
    "simplex": (constraints.simplex, 3),
    "ordered": (
        constraints.ordered_vector
        if hasattr(constraints, "ordered_vector")
        else dist.constraints.ordered_vector,
        3,
    ),
    "bounds": (constraints.interval(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])), None),
    "stack": (constraints.stack([constraints.positive, constraints.real], dim=-1), None),
    "cat": (
        constraints.cat([constraints.real, constraints.positive], dim=-1, lengths=[1, 2]),
        None,
    ),
    "corr_cholesky": (constraints.corr_cholesky, 3),
}


def smooth(x):
    return -(x**2).flatten(-2).sum(-1) if x.shape[-2:] == (3, 3) else -x.square().sum(-1)


@pytest.mark.parametrize("case", SUPPORTS)
def test_supports_hold_for_starting_points_and_draws(case):
    support, dim = SUPPORTS[case]
    model = energy_model(smooth, dim=dim, support=support)
    trace = poutine.trace(model).get_trace()
    site = trace.nodes["x"]
    assert site["value"].shape == model.event_shape
    assert site["fn"].event_shape == model.event_shape
    assert site["fn"].support.check(site["value"]).all()
    assert trace.log_prob_sum() == model.log_density(site["value"])
    with pyro.plate("particles", 7, dim=-1):
        batch = poutine.trace(model).get_trace()
    batch.compute_log_prob()
    x = batch.nodes["x"]["value"]
    assert x.shape == (7, *model.event_shape)
    assert torch.equal(batch.nodes["x_log_density"]["log_prob"], smooth(x))
    assert batch.nodes["x"]["log_prob"].shape == (7,)


def test_the_density_is_on_the_constrained_coordinates():
    """x ~ Gamma(3, 2), written as an energy: the guide finds its mean, 1.5."""
    gamma = dist.Gamma(torch.tensor(3.0), torch.tensor(2.0))
    model = energy_model(lambda x: gamma.log_prob(x).sum(-1), dim=1, support=constraints.positive)
    guide = AutoNormal(model)
    svi = SVI(
        model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(256, vectorize_particles=True)
    )
    for _ in range(200):
        svi.step()
    draws = Predictive(model, guide=guide, num_samples=4000, parallel=True)()["x"]
    assert draws.shape[-1] == 1
    assert abs(draws.mean() - 1.5) < 0.1
    assert abs(svi.evaluate_loss()) < 0.1


@pytest.mark.parametrize("log_density", [ring, of_one_point])
def test_pyro_guides_fit_an_energy(log_density):
    model = energy_model(log_density, dim=2)
    guide = AutoMultivariateNormal(model)
    elbo = Trace_ELBO(num_particles=64, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    losses = [svi.step() for _ in range(100)]
    assert sum(losses[-20:]) < sum(losses[:20])


def test_probing_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    energy_model(ring, dim=2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_density_that_draws_a_minibatch_is_still_batched():
    data = torch.randn(20)

    def log_density(x):
        return -((x - data[torch.randint(20, (3,))].mean()) ** 2).sum(-1)

    assert energy_model(log_density, dim=2).evaluation == "batched"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    other = torch.float32 if dtype is torch.float64 else torch.float64
    torch.set_default_dtype(other)
    try:
        model = energy_model(ring, dim=2, dtype=dtype)
        trace = poutine.trace(model).get_trace()
        trace.compute_log_prob()
    finally:
        torch.set_default_dtype(torch.float32)
    for site in trace.nodes.values():
        if site["type"] == "sample":
            assert site["log_prob"].dtype == dtype
    assert trace.nodes["x"]["value"].dtype == dtype


def test_a_network_is_an_energy_and_the_model_can_be_pickled():
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 1)

        def forward(self, x):
            return self.net(x).squeeze(-1) - x.square().sum(-1)

    assert energy_model(Energy(), dim=2).evaluation == "batched"
    copy = pickle.loads(pickle.dumps(energy_model(ring, dim=2)))
    assert isinstance(copy, EnergyModel)
    assert torch.equal(copy.log_density(torch.ones(2)), ring(torch.ones(2)))
    assert "ring" in repr(copy)
    assert "batched" in repr(copy)


def test_an_empty_batch_has_an_empty_log_density():
    assert energy_model(ring, dim=2).log_density(torch.zeros(0, 2)).shape == (0,)


def test_biject_to_agrees_on_the_number_of_coordinates():
    model = energy_model(smooth, dim=4, support=constraints.simplex)
    assert biject_to(model.support).inverse_shape(model.event_shape) == (3,)
