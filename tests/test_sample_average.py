"""The end of a fit: L-BFGS on draws that stay the same, and steps of more draws before it."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyroflows import AutoFlow, fit_guide
from pyroflows.infer.distributed import Ranks
from pyroflows.infer.steps import TorchStepper

Y = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
quick = partial(
    fit_guide, model_args=(Y,), progress_bar=False, seed=0, num_diagnostic_samples=0, num_steps=5
)


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def correlated(y):
    a = pyro.sample("a", dist.Normal(y.new_zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(a + 0.8 * a.roll(1, -1), 0.5).to_event(1), obs=y)


@torch.no_grad()
def elbo_gap(guide):
    """The KL divergence of a Gaussian posterior, which log weights tell exactly."""
    u, log_q = guide.get_posterior().rsample_and_log_prob((20_000,))
    log_weights = guide.log_density(Y)(u) - log_q
    return float(log_weights.logsumexp(0) - torch.tensor(20_000.0).log() - log_weights.mean())


def start_far(model=correlated):
    guide = AutoFlow(model, "affine", model_args=(Y,), init="point")
    return guide


def test_it_goes_where_few_steps_do_not():
    near, far = start_far(), start_far()
    quick(correlated, far)
    fit = quick(correlated, near, sample_average=2**14)
    assert elbo_gap(far) > 0.1
    assert elbo_gap(near) < 0.01  # nine parameters and 16,384 draws: 3e-4 by theory
    assert fit.sample_average_gain > 0.1
    assert fit.num_steps == 5


def test_what_other_draws_do_not_confirm_is_not_kept():
    """Two draws in three dimensions are described perfectly by a flow that fits nothing else."""
    with_it, without = start_far(), start_far()
    options = {"num_steps": 300, "num_particles": 64}
    fit = quick(correlated, with_it, sample_average=2, **options | {"num_particles": 2})
    quick(correlated, without, **options | {"num_particles": 2})
    assert fit.sample_average_gain == 0.0
    assert all(map(torch.equal, with_it.parameters(), without.parameters()))


def test_a_file_of_a_fit_that_had_it_is_not_polished_again(tmp_path):
    options = {"sample_average": 512, "checkpoint": tmp_path / "fit.pt"}
    first = start_far()
    quick(correlated, first, **options)
    pyro.clear_param_store()
    again = start_far()
    fit = quick(correlated, again, **options)
    assert fit.num_steps == 5
    assert all(map(torch.equal, first.parameters(), again.parameters()))


def test_ctrl_c_leaves_what_there_was(monkeypatch):
    def interrupted(self, closure):
        closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(7.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.LBFGS, "step", interrupted)
    guide, alone = start_far(), start_far()
    fit = quick(correlated, guide, sample_average=512)
    assert fit.stop_reason == "interrupted"
    quick(correlated, alone)
    assert all(map(torch.equal, guide.parameters(), alone.parameters()))


def subsampled(y):
    a = pyro.sample("a", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", 3, subsample_size=2) as index:
        pyro.sample("y", dist.Normal(a, 1.0), obs=y[index])


def test_errors():
    with pytest.raises(ValueError, match="subsampled plate shows other data"):
        quick(subsampled, start_far(subsampled), sample_average=512)
    with pytest.raises(TypeError, match="under PathELBO, got AutoNormal and PathELBO"):
        quick(correlated, AutoNormal(correlated), sample_average=512)
    with pytest.raises(TypeError, match="got AutoFlow and Trace_ELBO"):
        quick(correlated, start_far(), sample_average=512, loss=Trace_ELBO)
    with pytest.raises(ValueError, match="sample_average to be an integer >= 1, got 0"):
        quick(correlated, start_far(), sample_average=0)


# -- more draws near the end -------------------------------------------------------------------


def passes_of(monkeypatch, guide, **options):
    found = []
    step = TorchStepper.step

    def noted(self, factor, num_passes=1):
        found.append(num_passes)
        return step(self, factor, num_passes)

    monkeypatch.setattr(TorchStepper, "step", noted)
    quick(correlated, guide, num_steps=100, **options)
    return found


def test_the_last_steps_take_twice_the_draws(monkeypatch):
    found = passes_of(monkeypatch, start_far())
    assert set(found[:90]) == {1}
    assert set(found[-7:]) == {2}


def test_not_where_their_number_was_given(monkeypatch):
    assert set(passes_of(monkeypatch, start_far(), num_particles=32)) == {1}


def test_a_step_of_two_passes_is_one_of_their_mean():
    calls = iter([(3.0, 1.0), (5.0, 2.0)])
    weight = torch.zeros(2, requires_grad=True)

    def evaluate():
        loss, slope = next(calls)
        (slope * weight).sum().backward()
        return loss

    stepper = TorchStepper(torch.optim.SGD, 0.1, {"w": weight}, evaluate, Ranks())
    assert stepper.step(1.0, 2) == 4.0
    assert torch.allclose(weight, torch.full((2,), -0.15))
