"""Where normalising layers take location and scale from, and when they leave them alone."""

import copy
import io
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import pyroflows as pf
from pyroflows import Compose
from pyroflows.bijectors import ActNorm, BatchNorm, Coupling, LULinear
from tests import laws
from tests.case import Case
from tests.families import normalization

pytestmark = pytest.mark.usefixtures("_double")
BUILDERS = normalization.builders()


def data(*batch: int, dim: int = 3) -> torch.Tensor:
    return torch.linspace(-5, 40, dim) + torch.linspace(0.01, 20, dim) * torch.randn(*batch, dim)


def is_standard(x: torch.Tensor) -> bool:
    x = x.detach().reshape(-1, x.shape[-1])
    mean, var = x.mean(0), x.var(0, correction=0)
    return torch.allclose(mean, 0 * mean) and torch.allclose(var, torch.ones_like(var))


def parameters(layer: ActNorm) -> list[torch.Tensor]:
    return [v.clone() for v in layer.state_dict().values()]


@pytest.mark.parametrize("name", BUILDERS)
def test_compiles(name: str):
    laws.compile_agrees(Case(BUILDERS[name]))


# --- ActNorm --------------------------------------------------------------------------------


def test_act_norm_starts_as_the_identity_and_stays_so_until_asked():
    layer, y = ActNorm(3), data(50)
    assert_close(layer.inv(y), y)
    assert_close(layer(y), y)
    assert not layer.initialized


@pytest.mark.parametrize("direction", ["inverse", "forward"])
@pytest.mark.parametrize("batch", [(50,), (5, 10), (5, 1, 10)])
@pytest.mark.parametrize("by_method", [True, False])
def test_the_data_that_initialise_come_out_standard(direction: str, batch, by_method: bool):
    y = data(*batch)
    layer = ActNorm(3, first_batch=None if by_method else direction)
    if by_method:
        layer.initialize_(y, direction=direction)
    way = layer.inv if direction == "inverse" else layer
    out, log_det = way.forward_and_log_det(y)
    assert layer.initialized
    assert is_standard(out)
    std = y.reshape(-1, 3).std(0, correction=0)
    assert_close(log_det, -std.log().sum().expand(batch))
    before = parameters(layer)
    assert not is_standard(way.forward_and_log_det(7 * y + 1)[0])
    assert all(torch.equal(a, b) for a, b in zip(parameters(layer), before, strict=True))


def test_only_batches_in_the_direction_that_was_named_initialise():
    layer = ActNorm(3, first_batch="inverse")
    layer(data(10))
    assert not layer.initialized
    layer.eval().inv(data(10))
    assert not layer.initialized
    for batch in ((0,), (1,), ()):  # as guides draw one point to see what comes
        layer.train().inv(data(*batch))
        assert not layer.initialized
    layer.inv(data(10))
    assert layer.initialized


def test_a_path_gradient_pass_initialises_too():
    layer, x = ActNorm(3, first_batch="forward"), data(20)
    y, _, score = layer.forward_with_score(x, -x)
    assert layer.initialized
    assert is_standard(y)
    assert_close(score, -x * x.std(0, correction=0))


def test_traced_and_mapped_batches_are_let_by():
    layer, y = ActNorm(3, first_batch="inverse"), data(10)
    torch.vmap(layer.inverse_and_log_det)(y)
    torch.func.jacrev(lambda v: layer.inverse_and_log_det(v)[0])(y[0])
    torch._dynamo.reset()
    compiled = torch.compile(layer.inverse_and_log_det, fullgraph=True, backend="eager")
    assert_close(compiled(y)[0], y)
    assert not layer.initialized


def reloaded(layer: ActNorm) -> list[ActNorm]:
    fresh = ActNorm(3, first_batch="inverse")
    fresh.load_state_dict(layer.state_dict())
    store = io.BytesIO()
    torch.save(layer.state_dict(), store)
    store.seek(0)
    from_file = ActNorm(3, first_batch="inverse")
    from_file.load_state_dict(torch.load(store, weights_only=True))
    return [fresh, from_file, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]


def test_a_loaded_copied_or_pickled_layer_is_never_initialised_again():
    layer, y = ActNorm(3, first_batch="inverse"), data(50)
    layer.inv(y)
    with torch.no_grad():  # as training does
        layer.affine.loc.add_(0.3)
    expected = layer.inv(y)
    for twin in reloaded(layer):
        assert twin.training
        assert twin.initialized
        twin.inv(100 * data(50))
        assert_close(twin.inv(y), expected)


def test_a_layer_that_was_saved_before_its_first_batch_still_waits_for_it():
    for twin in reloaded(ActNorm(3, first_batch="inverse")):
        assert is_standard(twin.inv(data(50)))


def test_initialising_again_by_hand_forgets_what_was_trained():
    layer = ActNorm(3)
    layer.initialize_(data(50))
    with torch.no_grad():
        layer.affine.log_scale.add_(0.3)
    y = 3 * data(50)
    layer.initialize_(y)
    assert is_standard(layer.inv(y))


@pytest.mark.parametrize("by_method", [True, False])
def test_a_column_of_one_value_keeps_scale_one_and_says_so(by_method: bool):
    y = data(20)
    y[:, 1] = 0.1
    layer = ActNorm(3, first_batch="inverse")
    with pytest.warns(UserWarning, match=r"1 of 3 columns have one value in all 20 .*: \[1\]"):
        _ = layer.initialize_(y) if by_method else layer.inv(y)
    x, log_det = layer.inverse_and_log_det(y)
    assert_close(x[:, 1], torch.zeros(20))
    assert log_det.isfinite().all()
    assert layer.affine.anchor_scale[1] == 1


@pytest.mark.parametrize("batch", [(1,), ()])
def test_one_point_sets_the_location_alone(batch):
    layer, y = ActNorm(3), data(*batch)
    with pytest.warns(UserWarning, match="3 of 3 columns have one value in all 1 points"):
        layer.initialize_(y)
    assert_close(layer.inv(y), torch.zeros_like(y))
    assert_close(layer.affine.anchor_scale, torch.ones(3))


def test_a_tiny_spread_far_from_zero_is_a_spread():
    y = 5e4 + 1e-3 * torch.randn(100, 1)
    layer = ActNorm(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.initialize_(y)
    assert_close(layer.inv(y).std(correction=0), torch.tensor(1.0))


def test_wrong_data_are_refused():
    layer = ActNorm(3)
    bad = data(10)
    bad[[2, 5], 0] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(ValueError, match=r"ActNorm.initialize_ expected finite data: 2 of 10"):
        layer.initialize_(bad)
    with pytest.raises(ValueError, match=r"ActNorm expected data of shape \(\*, 3\), got \(5, 2\)"):
        layer.initialize_(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="one or more points, got none"):
        layer.initialize_(torch.zeros(0, 3))
    with pytest.raises(TypeError, match="expected data to be a tensor, got list"):
        layer.initialize_([[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match='direction to be "inverse" or "forward", got \'back\''):
        layer.initialize_(data(5), direction="back")
    with pytest.raises(ValueError, match="ActNorm expected first_batch to be"):
        ActNorm(3, first_batch="first")
    with pytest.raises(
        ValueError, match=r"ActNorm.initialize_in_ found no ActNorm in the LULinear"
    ):
        ActNorm.initialize_in_(LULinear(3), data(5))
    assert not layer.initialized


def test_each_layer_of_a_flow_starts_from_what_reaches_it():
    def seen(flow: Compose, y: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for layer in reversed(flow.bijectors):
            y = layer.inverse_and_log_det(y)[0]
            if isinstance(layer, ActNorm):
                outputs.append(y)
        return outputs

    flow = Compose(ActNorm(3), Coupling(3, hidden_dims=(8,)), ActNorm(3), LULinear(3))
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
    y = data(60)
    ActNorm.initialize_in_(flow, y)
    assert all(is_standard(x) for x in seen(flow, y))
    inverted = copy.deepcopy(flow).inv
    with torch.no_grad():
        inverted.base.bijectors[1].conditioner.net.linears[-1].bias.add_(0.5)
    ActNorm.initialize_in_(inverted, y, direction="forward")
    assert all(is_standard(x) for x in seen(inverted.base, y))
    assert not any(m._is_asked for m in flow.modules() if isinstance(m, ActNorm))


def test_a_layer_that_comes_twice_starts_from_what_reaches_it_first():
    layer, y = ActNorm(3), data(60)
    ActNorm.initialize_in_(Compose(layer, layer), y)
    assert is_standard(layer.inv(y))


def test_data_of_a_conditional_layer_set_what_does_not_depend_on_the_context():
    layer, y = ActNorm(3, context_dim=2, hidden_dims=(8,), first_batch="inverse"), data(50)
    assert is_standard(layer.condition(torch.randn(50, 2)).inv(y))


def test_a_density_fits_from_the_first_batch_on():
    flow = pf.build_flow("glow", 3, num_layers=2, hidden_dims=(16,))
    y = data(400)
    ActNorm.initialize_in_(flow, y)
    d = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [flow])
    exact = dist.Normal(y.mean(0), y.std(0)).to_event(1).log_prob(y).mean()
    assert_close(d.log_prob(y).mean(), exact, atol=0.01, rtol=0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        (-d.log_prob(y).mean()).backward()
        optimizer.step()
    assert d.log_prob(y).mean() > exact + 0.005


# --- BatchNorm ------------------------------------------------------------------------------


def test_a_batch_in_training_is_normalised_and_moves_the_running_statistics():
    layer, twin, y = BatchNorm(3), nn.BatchNorm1d(3), data(30)
    x, log_det = layer.inverse_and_log_det(y)
    assert_close(x, twin(y))
    assert_close(log_det, -0.5 * (y.var(0, correction=0) + 1e-5).log().sum().expand(30))
    assert_close(layer.running_mean, twin.running_mean)
    assert_close(layer.running_var, twin.running_var)
    assert_close(layer.eval().inv(y), twin.eval()(y))


def test_statistics_are_over_all_leading_dimensions():
    flat, deep, y = BatchNorm(3), BatchNorm(3), data(4, 1, 6)
    x, log_det = deep.inverse_and_log_det(y)
    assert log_det.shape == (4, 1, 6)
    assert_close(x.view(24, 3), flat.inverse_and_log_det(y.view(24, 3))[0])
    assert_close(deep.running_var, flat.running_var)


@pytest.mark.parametrize("batch", [(1,), (), (1, 1), (0,)])
def test_a_batch_of_one_point_takes_the_running_statistics(batch):
    layer = normalization._batch_norm(3).train()
    before, y = [b.clone() for b in layer.buffers()], data(*batch)
    x, log_det = layer.inverse_and_log_det(y)
    assert x.isfinite().all()
    assert_close((x, log_det), layer.eval().inverse_and_log_det(y))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), before, strict=True))


def test_draws_take_the_running_statistics_in_both_modes():
    layer, x = normalization._batch_norm(3).train(), data(8)
    before = [b.clone() for b in layer.buffers()]
    together = layer(x)
    assert_close(together[2], layer(x[2]))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), before, strict=True))
    assert_close(together, layer.eval()(x))


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: Compose(LULinear(3), b)])
def test_a_density_in_training_counts_the_log_det_of_the_batch(wrap):
    layer, y = BatchNorm(3), data(30)
    flow = wrap(layer)
    d = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [flow])
    mean, std = y.mean(0), (y.var(0, correction=0) + 1e-5).sqrt()
    exact = dist.Normal(mean, std).to_event(1).log_prob(y)
    assert_close(d.log_prob(y), exact)
    score = d.log_prob(y).sum()
    d.rsample((4,)).sum().backward()  # the statistics moved since: graphs must not mind
    score.backward()


def test_evaluation_undoes_what_forward_does_though_batches_came_by():
    layer = BatchNorm(3)
    for _ in range(200):
        layer.inv(data(64))
    layer.eval()
    y = data(2000)
    x, log_det = layer.inverse_and_log_det(y)
    assert (x.mean(0).abs() < 0.2).all()
    assert (x.std(0) - 1).abs().max() < 0.1
    assert_close(layer.forward_and_log_det(x), (y, -log_det))


def test_gradients_reach_the_data_through_the_statistics():
    y = data(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: BatchNorm(3).inverse_and_log_det(v), y)


def test_one_bad_batch_does_not_stay():
    layer, y = BatchNorm(3), data(10)
    y[0, 1] = torch.nan
    assert layer.inv(y)[:, 1].isnan().all()
    assert all(b.isfinite().all() for b in layer.buffers())
    assert layer.running_mean[0] != 0


def test_running_statistics_are_saved_and_loaded():
    layer, y = BatchNorm(3), data(30)
    layer.inv(y)
    fresh = BatchNorm(3)
    fresh.load_state_dict(layer.state_dict())
    expected = layer.eval().inv(y)
    for twin in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(twin.eval().inv(y), expected)


def test_what_cannot_move_the_statistics_is_refused_in_training_alone():
    layer, y = BatchNorm(3), data(2, 5)
    with pytest.raises(RuntimeError, match=r"torch.func cannot follow: call eval\(\) first"):
        torch.vmap(layer.inverse_and_log_det)(y)
    torch._dynamo.reset()
    compiled = torch.compile(layer.inverse_and_log_det, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="running statistics"):
        compiled(y)
    layer.eval()
    assert_close(torch.vmap(layer.inverse_and_log_det)(y), layer.inverse_and_log_det(y))
    torch._dynamo.reset()
    compiled = torch.compile(layer.inverse_and_log_det, backend="eager", fullgraph=True)
    assert_close(compiled(y), layer.inverse_and_log_det(y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.0}, r"momentum in \(0, 1\], got 0.0"),
        ({"momentum": 1.5}, r"momentum in \(0, 1\], got 1.5"),
        ({"epsilon": 0.0}, "epsilon > 0, got 0.0"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        BatchNorm(3, **options)


# --- in a guide -----------------------------------------------------------------------------


def correlated():
    pyro.sample("z", dist.MultivariateNormal(torch.tensor([2.0, -1.0]), torch.eye(2) + 0.5))


def with_norms(dim: int, *, context_dim: int = 0) -> Compose:
    layers = [Coupling(dim, hidden_dims=(8,)), BatchNorm(dim), ActNorm(dim), LULinear(dim)]
    return Compose(*layers)


@pytest.mark.parametrize("num_particles", [1, 8])
@pytest.mark.parametrize("loss", [pyro.infer.Trace_ELBO, pf.PathELBO])
def test_normalisation_in_a_guide_is_a_plain_scale(num_particles: int, loss):
    guide = pf.AutoFlow(correlated, with_norms)
    elbo = loss(num_particles=num_particles, vectorize_particles=True)
    svi = pyro.infer.SVI(correlated, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    losses = [svi.step() for _ in range(40)]
    assert all(-50 < value < 50 for value in losses)
    assert sum(losses[-10:]) / 10 < 0.5  # the bound is zero
    norm = next(m for m in guide.modules() if isinstance(m, BatchNorm))
    assert_close(norm.running_mean, torch.zeros(2))
    assert_close(norm.running_var, torch.ones(2))
