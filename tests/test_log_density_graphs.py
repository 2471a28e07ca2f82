"""A flat graph of the log density is the model: its values, gradients, data and parameters."""

import copy
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule
from torch.testing import assert_close

from pyroflows.guides.prototype import init_to_center, read_latents
from pyroflows.log_density import LogDensity

Y = torch.tensor([0.3, -1.2, 2.0, 0.7])


def density_of(model, *args, **kwargs):
    with poutine.block():
        trace = poutine.trace(InitMessenger(init_to_center)(model)).get_trace(*args, **kwargs)
    return LogDensity(model, read_latents(trace, "Test"), args, kwargs)


def ready(model, *args, number=5, **kwargs):
    """A density with its program, and points."""
    density = density_of(model, *args, **kwargs)
    u = torch.randn(number, density.latents.dim, generator=torch.Generator().manual_seed(0))
    density.check(u)
    program = density.program(number)
    assert program is not None, density.notes
    return density, program, u


def normal(y, scale=1.0):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def alone(density, u):
    return torch.stack([density._single(row) for row in u])


def test_other_data_of_the_same_kind_need_no_other_graph():
    density, program, u = ready(normal, Y)
    density.model_args = (Y + 1,)
    assert density.program(5) is program
    assert_close(program.fn(u, program.inputs()), alone(density, u))
    assert_close(density(u), alone(density, u))


def test_tensors_deep_in_the_arguments_are_inputs():
    def model(data, *, more):
        normal(data["y"][0] + more)

    density, program, u = ready(model, {"y": [Y]}, more=torch.ones(4))
    density.model_args, density.model_kwargs = ({"y": [2 * Y]},), {"more": torch.zeros(4)}
    assert density.program(5) is program
    assert_close(program(u), alone(density, u))


def test_data_of_another_shape_and_other_numbers_get_another_graph():
    density, program, u = ready(normal, Y, 1.0)
    for args in ((torch.cat([Y, Y]), 1.0), (Y, 2.0), (Y.double(), 1.0)):
        density.model_args = args
        other = density.program(5)
        assert other is not program
        assert_close(other(u), alone(density, u), check_dtype=False)


def test_parameters_are_live_and_get_their_gradients():
    pyro.clear_param_store()
    net = torch.nn.Linear(1, 1)

    def model(y):
        pyro.module("net", net)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(net(y[:, None])[:, 0] * a, scale), obs=y)

    density, program, u = ready(model, Y)
    unconstrained = pyro.param("scale").unconstrained()
    params = [net.weight, net.bias, unconstrained]
    got = torch.autograd.grad(program(u).square().sum(), params)
    expected = torch.autograd.grad(alone(density, u).square().sum(), params)
    assert_close(got, expected)
    with torch.no_grad():
        net.weight += 1
        unconstrained -= 0.3
    assert density.program(5) is program
    assert_close(program(u), alone(density, u))
    pyro.get_param_store()["scale"] = torch.tensor(3.0)
    assert_close(density.program(5)(u), alone(density, u))


def test_parameters_of_a_pyro_module_are_live():
    pyro.clear_param_store()

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.shift = pyro.nn.PyroParam(torch.tensor(0.5))
            self.register_buffer("known", torch.tensor(2.0))

        def forward(self, y):
            normal(y - self.shift, self.known)

    model = Model()
    density, program, u = ready(model, Y)
    (got,) = torch.autograd.grad(program(u).sum(), [model.shift])
    (expected,) = torch.autograd.grad(alone(density, u).sum(), [model.shift])
    assert_close(got, expected)
    with torch.no_grad():
        model.shift += 1
    model.known = torch.tensor(3.0)
    assert density.program(5) is not None, density.notes
    assert_close(density.program(5)(u), alone(density, u))


def test_parameters_may_be_made_anew():
    pyro.clear_param_store()

    def model():
        loc = pyro.param("loc", lambda: torch.randn(()))
        pyro.sample("x", dist.Normal(loc, 1.0))

    density = density_of(model)
    u = torch.randn(4, 1)
    for _ in range(3):
        density(u)
        pyro.clear_param_store()
    assert density.method == "vmap"
    program = density.program(4)
    assert_close(program(u), alone(density, u))


def test_handlers_around_learn_of_the_parameters():
    pyro.clear_param_store()

    def model():
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(loc, 1.0))

    density, _, u = ready(model)
    with poutine.trace(param_only=True) as seen:
        density(u)
    assert list(seen.trace.nodes) == ["loc"]
    assert density.traced


def test_other_handlers_around_get_the_model_itself():
    density, _, u = ready(normal, Y)
    with poutine.scale(scale=2.0):
        scaled = density(u)
    log_det = density.latents.constrain(u)[1]
    assert_close(scaled - log_det, 2 * (density(u) - log_det))


def test_minibatches_stay_random_and_of_one_kind_for_all_points():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=2) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    density, program, u = ready(model, Y)
    values = torch.stack([program(torch.zeros(5, 1)) for _ in range(40)])
    assert len(values[:, 0].unique()) > 3
    assert_close(values, values[:, :1].expand_as(values))
    assert density.subsampled
    torch.manual_seed(3)
    got = program(u)
    torch.manual_seed(3)
    assert_close(got, density._by_handlers(u))


def test_second_derivatives():
    density, program, u = ready(normal, Y)

    def hessians(fn):
        at = u.clone().requires_grad_()
        (grad,) = torch.autograd.grad(fn(at).sum(), at, create_graph=True)
        return torch.autograd.grad(grad.sum(), at)[0]

    assert_close(hessians(program), torch.full_like(u, -5.0))
    assert_close(hessians(density._by_handlers), torch.full_like(u, -5.0))


def test_the_function_of_a_program_may_be_traced_and_transformed():
    from torch.fx.experimental.proxy_tensor import make_fx

    _, program, u = ready(normal, Y)
    inputs = program.inputs()
    again = make_fx(lambda u, inputs: program.fn(u, inputs))(u, inputs)
    assert_close(again(u, inputs), program(u))
    grads = torch.func.grad(lambda u: program.fn(u, inputs).sum())(u)
    at = u.clone().requires_grad_()
    assert_close(grads, torch.autograd.grad(program(at).sum(), at)[0])


def test_calls_take_a_graph_only_where_they_come_again():
    density = density_of(normal, Y)
    u = torch.randn(4, 1)
    density(u)
    assert not density.traced
    for _ in range(30):
        density(u)
    assert density.traced
    assert_close(density(u), alone(density, u))


def test_numbers_read_out_of_data_bind_the_graph_to_them():
    def model(group, y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(int(group.max()) + 1), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc[group], 1.0), obs=y[y > -5])

    group = torch.tensor([0, 1, 1, 0])
    density, program, u = ready(model, group, Y)
    assert density.program(5) is program
    density.model_args = (torch.tensor([0, 0, 1, 1]), Y)
    other = density.program(5)
    assert other is not program
    assert_close(other(u), alone(density, u))


def test_a_number_that_changes_outside_is_noticed():
    class Annealed:
        beta = 1.0

        def __init__(self):
            self.beta = 0.1

        def __call__(self, y):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=self.beta), pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    model = Annealed()
    density, program, u = ready(model, Y)
    model.beta = 0.7
    assert not program.is_current()
    assert_close(density(u), alone(density, u))
    for i in range(8):
        model.beta = 0.2 + 0.1 * i
        density.program(5)
        assert_close(density(u), alone(density, u))
    assert any("keeps changing" in note for note in density.notes)


def test_a_model_that_counts_its_calls_gets_no_graph():
    calls = []

    def model():
        calls.append(1)
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", -x.square() * len(calls))

    density = density_of(model)
    density.method = "vmap"
    assert density.program(3) is None
    assert any("no flat graph" in note for note in density.notes)


def test_what_could_not_be_seen_is_found_by_comparing_now_and_then():
    hidden = {"deep": [[[[{"scale": 1.0}]]]]}

    def model():
        pyro.sample("x", dist.Normal(0.0, hidden["deep"][0][0][0][0]["scale"]))

    density, program, u = ready(model)
    density(u)
    hidden["deep"][0][0][0][0]["scale"] = 2.0
    assert not program.agrees(u)
    with pytest.warns(UserWarning, match="changed between calls with the same arguments"):
        got = density(u)
    assert_close(got, alone(density, u))
    assert density.program(5) is None


@pytest.mark.parametrize("kind", ["branch", "write", "custom gradient"])
def test_what_a_graph_cannot_hold_is_left_to_handlers(kind):
    class Doubled(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    seen = torch.zeros(())

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if kind == "branch":
            pyro.factor("f", x if x > 0 else -x)
        elif kind == "write":
            seen.add_(1)
        else:
            pyro.factor("f", Doubled.apply(x))

    density = density_of(model)
    u = torch.randn(3, 1, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        density.check(u)
    assert density.program(3) is None
    assert_close(density(u), alone(density, u))


def test_copies_take_their_own_graphs():
    density, _, u = ready(normal, Y)
    for twin in (copy.deepcopy(density), pickle.loads(pickle.dumps(density))):
        assert not twin.traced
        assert_close(twin(u), density(u))


def test_both_precisions_have_their_own_graph():
    density, program, u = ready(normal, Y)
    double = density.program(5, like=torch.zeros((), dtype=torch.float64))
    assert double is not program
    assert double(u.double()).dtype == torch.float64
    assert_close(double(u.double()).float(), program(u), rtol=1e-4, atol=1e-4)
