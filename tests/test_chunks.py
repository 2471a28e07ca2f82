"""Draws in chunks, mini-batches of data: the same gradient, less memory, no bias."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.testing import assert_close

from pyroflows import AutoFlow, PathELBO, energy_model, fit_guide

pytestmark = pytest.mark.usefixtures("_double")


def banana():
    x = pyro.sample("x", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
    pyro.factor("curve", -2.0 * (x[..., 1] - x[..., 0] ** 2) ** 2)


def half(x):
    """Not a number where the first coordinate is negative."""
    return torch.where(x[..., 0] >= 0, -0.5 * x.square().sum(-1), torch.nan)


def moved(model, *args, flow="realnvp", **options):
    torch.manual_seed(0)
    guide = AutoFlow(model, flow, model_args=args, **options)
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return guide


def loss_and_gradient(loss, model, guide, *args, seed=1):
    guide.zero_grad()
    loss.prepare(model, guide, *args)
    torch.manual_seed(seed)
    value = loss.loss_and_grads(model, guide, *args)
    return torch.tensor(value), torch.cat([p.grad.flatten() for p in guide.parameters()])


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize("chunk_size", [1, 7, 16, 48, 100])
def test_a_step_in_chunks_is_that_of_all_draws(chunk_size, weights):
    guide = moved(banana)
    options = dict(zip(("score_weight", "tail_weight"), weights, strict=True))
    expected = loss_and_gradient(PathELBO(48, **options), banana, guide)
    chunked = PathELBO(48, chunk_size=chunk_size, **options)
    assert_close(loss_and_gradient(chunked, banana, guide), expected)


@pytest.mark.parametrize("tail_weight", [0.0, 1.0])
def test_draws_that_are_not_finite_are_left_out_of_chunks_too(tail_weight):
    model = energy_model(half, 2)
    guide = moved(model, flow="affine", init="point", init_scale=1.0)
    whole, parts = (PathELBO(64, tail_weight=tail_weight, chunk_size=c) for c in (None, 10))
    expected = loss_and_gradient(whole, model, guide)
    assert_close(loss_and_gradient(parts, model, guide), expected)
    assert parts.num_nonfinite_particles == whole.num_nonfinite_particles > 10
    assert parts.spread != parts.spread  # NaN, as for one that knows all of them


def test_gradients_are_added_to_those_that_are_there():
    guide = moved(banana)
    loss = PathELBO(32, chunk_size=8)
    _, once = loss_and_gradient(loss, banana, guide)
    torch.manual_seed(1)
    loss.loss_and_grads(banana, guide)
    assert_close(torch.cat([p.grad.flatten() for p in guide.parameters()]), 2 * once)


def mini_batch(data):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2).double(), 3.0).to_event(1))
    with pyro.plate("data", len(data), subsample_size=5) as index:
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=data[index])


def all_data(data):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2).double(), 3.0).to_event(1))
    with pyro.plate("data", len(data)):
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=data)


DATA = torch.arange(40, dtype=torch.float64).reshape(20, 2) / 10


def test_all_chunks_of_a_step_see_the_same_mini_batch():
    guide = moved(mini_batch, DATA, flow="affine", init="point")
    expected = loss_and_gradient(PathELBO(24), mini_batch, guide, DATA)
    chunked = PathELBO(24, chunk_size=5)
    assert_close(loss_and_gradient(chunked, mini_batch, guide, DATA), expected)
    other = loss_and_gradient(PathELBO(24), mini_batch, guide, DATA, seed=2)
    assert (other[1] - expected[1]).abs().max() > 1.0  # another mini-batch is another gradient


def test_mini_batches_give_the_gradient_of_all_data_on_average():
    guide = moved(all_data, DATA, flow="affine", init="point")
    whole = loss_and_gradient(PathELBO(4000), all_data, guide, DATA)[1]
    part = PathELBO(64)
    found = [loss_and_gradient(part, mini_batch, guide, DATA, seed=s)[1] for s in range(300)]
    found = torch.stack(found)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - whole).abs() < 4 * error + 0.02 * whole.abs().max()).all()
    assert part.subsampled


@pytest.mark.slow
def test_a_fit_to_mini_batches_finds_the_posterior_of_all_data():
    torch.manual_seed(0)
    guide = AutoFlow(mini_batch, "affine", model_args=(DATA,))
    fit = fit_guide(
        mini_batch,
        guide,
        model_args=(DATA,),
        num_steps=400,
        chunk_size=100,
        seed=0,
        progress_bar=False,
        num_diagnostic_samples=0,
    )
    precision = len(DATA) + 1 / 9
    draws = guide.get_posterior().rsample((4000,))
    assert_close(draws.mean(0), DATA.sum(0) / precision, atol=0.12, rtol=0)
    assert_close(draws.std(0), torch.full((2,), precision**-0.5).double(), atol=0.05, rtol=0)
    assert fit.num_steps == 400


def test_memory_is_that_of_a_chunk():
    """What autograd keeps for the way back, at its highest."""
    guide = moved(banana)
    held = {}
    for chunk_size in (None, 64):
        loss = PathELBO(1024, chunk_size=chunk_size, tail_weight=1.0)
        loss.prepare(banana, guide)
        held[chunk_size] = most_held(lambda loss=loss: loss.loss_and_grads(banana, guide))
    assert held[64] < 0.15 * held[None]


class _Kept:
    """A saved tensor; its bytes count as long as the graph keeps it."""

    def __init__(self, tensor, counts):
        self.tensor, self.counts = tensor, counts
        counts["now"] += tensor.numel() * tensor.element_size()
        counts["most"] = max(counts["most"], counts["now"])

    def __del__(self):
        self.counts["now"] -= self.tensor.numel() * self.tensor.element_size()


def most_held(run):
    counts = {"now": 0, "most": 0}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: _Kept(tensor, counts), lambda kept: kept.tensor
    ):
        run()
    return counts["most"]


def test_fit_guide_passes_the_chunk_size_on():
    options = {"num_steps": 10, "num_particles": 1024, "seed": 0, "progress_bar": False}
    losses, held = [], []
    for chunk_size in (None, 64):
        torch.manual_seed(0)
        guide = AutoFlow(banana, "realnvp")
        options["num_diagnostic_samples"] = 0

        def fit(guide=guide, chunk_size=chunk_size):
            found = fit_guide(banana, guide, chunk_size=chunk_size, **options)
            losses.append(torch.tensor(found.losses))

        held.append(most_held(fit))
    assert_close(*losses)
    assert held[1] < 0.3 * held[0]


def test_chunks_are_refused_where_nothing_knows_of_them():
    with pytest.raises(ValueError, match="chunk_size >= 1, got 0"):
        PathELBO(8, chunk_size=0)
    with pytest.raises(ValueError, match=r"chunk_size to be an integer >= 1, got 1\.5"):
        fit_guide(banana, AutoNormal(banana), chunk_size=1.5)
    with pytest.raises(ValueError, match="in chunks for an AutoFlow only, got AutoNormal"):
        fit_guide(banana, AutoNormal(banana), chunk_size=8, progress_bar=False)
    with pytest.raises(ValueError, match="chunk_size=8, which PathELBO knows, and the loss"):
        fit_guide(banana, AutoNormal(banana), chunk_size=8, loss=pyro.infer.Trace_ELBO())
