"""Every way to evaluate a batch is Pyro's own sequential density, for models of many kinds."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.ops.indexing import Vindex
from torch.testing import assert_close

from pyroflows.guides.prototype import init_to_center, read_latents
from pyroflows.log_density import LogDensity

NUMBER = 4
EVERY = ("vmap", "plate", "loop")


def numbers(*values):
    return torch.tensor(values, dtype=torch.get_default_dtype())


def hierarchical():
    y, s = numbers(28.0, 8.0, -3.0), numbers(15.0, 10.0, 16.0)
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 3):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


def matrix_product():
    design = numbers(1.0, 0.5, 0.3, -1.0, 0.2, 0.8).reshape(3, 2)
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Bernoulli(logits=design @ w), obs=numbers(1.0, 0.0, 1.0))


@config_enumerate
def mixture_by_index():
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", 4):
        k = pyro.sample("k", dist.Categorical(w))
        pyro.sample("y", dist.Normal(loc[k], 1.0), obs=numbers(0.3, -1.2, 2.0, 0.7))


@config_enumerate
def hidden_markov():
    p = pyro.sample("p", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    z = torch.tensor(0)
    for t in pyro.markov(range(4)):
        z = pyro.sample(f"z{t}", dist.Categorical(Vindex(p)[..., z, :]))
        pyro.sample(f"y{t}", dist.Normal(Vindex(loc)[..., z], 1.0), obs=numbers(0.5 * t)[0])


@config_enumerate
def impossible_states():
    """Transitions of probability zero: terms of minus infinity in the sum."""
    q = pyro.sample("q", dist.Beta(2.0, 2.0))
    z = pyro.sample("z", dist.Categorical(numbers(1.0, 0.0)))
    p = torch.stack([torch.stack([q, 1 - q], -1), torch.stack([0 * q, 0 * q + 1], -1)], -2)
    x = pyro.sample("x", dist.Categorical(Vindex(p)[..., z, :]))
    pyro.sample("y", dist.Normal(1.0 * x, 1.0), obs=numbers(0.4)[0])


@config_enumerate
def scaled_mixture():
    """Subsampled data of a mixture: the scale is outside of the sum over the parts."""
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 6, subsample_size=3) as i:
        k = pyro.sample("k", dist.Bernoulli(0.3))
        y = numbers(0.3, -1.2, 2.0, 0.7, 1.1, 0.1)[i]
        pyro.sample("y", dist.Normal(loc * (2 * k - 1), 1.0), obs=y)


@config_enumerate
def masked_mixture():
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(loc * k, 1.0), obs=numbers(0.3, -1.2, 2.0))


def constrained():
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    chol = pyro.sample("chol", dist.LKJCholesky(3, 2.0))
    u = pyro.sample("u", dist.Uniform(-1.0, 2.0))
    o = pyro.sample("o", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("f", (p * numbers(1.0, 2.0, 3.0)).sum(-1) + chol[..., 2, 0] * u + o[..., 0])


def factor_with_sum():
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("f", -(mu - 1.0).square().sum())


def subsampled():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4, subsample_size=2) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=numbers(0.3, -1.2, 2.0, 0.7)[i])


def masked():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 2), poutine.mask(mask=torch.tensor([True, False])):
        pyro.sample("y", dist.StudentT(3.0, mu, 1.0), obs=numbers(0.3, -1.2))


def scaled():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.5), pyro.plate("data", 2):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=numbers(0.3, -1.2))


def deterministic():
    x = pyro.sample("x", dist.Gamma(2.0, 1.0))
    y = pyro.deterministic("y", x.log())
    pyro.factor("f", -y.square())


def nested_plates():
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Normal(mu, 1.0))
        with pyro.plate("inner", 3, dim=-1):
            b = pyro.sample("b", dist.Gamma(2.0, 1.0))
            pyro.sample("y", dist.Normal(a, b), obs=numbers(0.3, -1.2, 2.0))


class WithParameters(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = pyro.nn.PyroParam(lambda: numbers(0.7)[0], dist.constraints.positive)

    def forward(self):
        x = pyro.sample("x", dist.Normal(0.0, self.scale))
        pyro.sample("y", dist.Normal(x, 1.0), obs=numbers(0.4)[0])


def with_parameters():
    WithParameters()()


def ordered_logistic():
    steps = pyro.sample("steps", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    cuts = steps.exp().cumsum(-1) - 1.0
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4):
        predictor = slope * numbers(-1.0, 0.0, 0.5, 1.0)
        observed = dist.OrderedLogistic(predictor, cuts)
        pyro.sample("y", observed, obs=torch.tensor([0, 1, 2, 3]))


def improper():
    flat = dist.ImproperUniform(dist.constraints.positive, (), (2,))
    x = pyro.sample("x", flat)
    with pyro.plate("data", 2):
        pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=numbers(0.4, 1.0))


CASES = {
    hierarchical: EVERY,
    matrix_product: ("vmap", "loop"),
    mixture_by_index: ("vmap", "loop"),
    hidden_markov: EVERY,
    impossible_states: EVERY,
    scaled_mixture: EVERY,
    masked_mixture: EVERY,
    constrained: EVERY,
    factor_with_sum: ("vmap", "loop"),
    subsampled: EVERY,
    masked: EVERY,
    scaled: EVERY,
    deterministic: EVERY,
    nested_plates: EVERY,
    with_parameters: EVERY,
    ordered_logistic: ("plate", "loop"),
    improper: EVERY,
}


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    before = torch.get_default_dtype()
    pyro.clear_param_store()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def latents_of(model):
    with poutine.block():
        trace = poutine.trace(InitMessenger(init_to_center)(model)).get_trace()
    return read_latents(trace, "Test")


def sequential(model, latents, u, seed):
    """Pyro's own log density of each point, from its ELBO of a point mass."""
    rows = []
    for row in u:
        values, log_det = latents.constrain(row)

        def guide(values=values):
            for name, value in values.items():
                pyro.sample(name, dist.Delta(value, event_dim=value.dim()))

        if latents.enumerated:
            # The plates of local latents are of no matter to a point mass: there are none here.
            torch.manual_seed(seed)
            elbo = TraceEnum_ELBO(max_plate_nesting=latents.max_plate_nesting)
            log_p = -elbo.differentiable_loss(model, guide)
        else:
            torch.manual_seed(seed)
            log_p = poutine.trace(poutine.condition(model, values)).get_trace().log_prob_sum()
        rows.append(log_p + log_det)
    return torch.stack(rows)


def value_and_grad(fn, u):
    u = u.clone().requires_grad_()
    values = fn(u)
    return values.detach(), torch.autograd.grad(values.sum(), u)[0]


@pytest.mark.parametrize("model", CASES, ids=lambda m: m.__name__)
def test_each_way_is_the_sequential_density(model, dtype):
    latents = latents_of(model)
    u = 0.5 * torch.randn(NUMBER, latents.dim, generator=torch.Generator().manual_seed(1))
    seed = 5
    expected = value_and_grad(lambda u: sequential(model, latents, u, seed), u)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    allowed = CASES[model]
    for method in EVERY:
        density = LogDensity(model, latents, method=method)
        if method not in allowed:
            with pytest.raises(ValueError, match=f"cannot be evaluated with method='{method}'"):
                density.check(u)
            continue
        density.check(u)

        def seeded(fn):
            def run(u):
                torch.manual_seed(seed)
                return fn(u)

            return run

        if method == "loop" and model in (subsampled, scaled_mixture):
            continue  # draws another minibatch for every point
        assert_close(value_and_grad(seeded(density._by_handlers), u), expected, **tolerance)
        if method != "loop":
            program = density.program(NUMBER)
            assert program is not None, density.notes
            assert_close(value_and_grad(seeded(program), u), expected, **tolerance)


@pytest.mark.parametrize("model", CASES, ids=lambda m: m.__name__)
def test_the_first_right_way_is_taken_without_a_word(model, dtype):
    density = LogDensity(model, latents_of(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density(torch.randn(3, density.latents.dim, generator=torch.Generator().manual_seed(0)))
    assert density.method == CASES[model][0]
    assert len(density.notes) == EVERY.index(density.method)
