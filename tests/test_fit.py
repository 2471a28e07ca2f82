"""fit_guide: it finds posteriors, stops for a reason that it tells, and loses nothing."""

import math
import pickle
import random
import time
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.distributions import constraints

from pyroflows import energy_model
from pyroflows.guides import AutoFlow
from pyroflows.infer.fit import GuideFit, fit_guide
from pyroflows.infer.schedule import MAX_STEPS, Schedule, mean_and_error

Y = torch.tensor([1.0, 2.0, 3.0])
LOG_Z = dist.Normal(0.0, 2**0.5).log_prob(Y).sum().item()

quick = partial(
    fit_guide,
    progress_bar=False,
    num_particles=32,
    seed=0,
    num_diagnostic_samples=0,
    loss=Trace_ELBO,
)
diagnosed = partial(quick, num_diagnostic_samples=1000)


pytestmark = pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro tells what we plant


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def conjugate(y):
    """Posterior N(y / 2, 1 / 2), log evidence that of N(0, 2)."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3, dtype=y.dtype), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)


def mean_of(guide, *args):
    return guide.quantiles([0.5], *args)["mu"].squeeze(0)


# -- it finds what there is to find -------------------------------------------------------------


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal])
def test_a_conjugate_posterior_is_found(make):
    guide = make(conjugate)
    fit = diagnosed(conjugate, guide, model_args=(Y,), num_steps=300, learning_rate=0.03)
    assert torch.allclose(mean_of(guide, Y), Y / 2, atol=0.06)
    assert abs(fit.elbo - LOG_Z) < 0.01
    assert fit.diagnostics.verdict == "usable"


def test_the_default_is_path_gradients_on_our_guide():
    guide = AutoFlow(conjugate, "affine", model_args=(Y,))
    fit = quick(conjugate, guide, model_args=(Y,), num_steps=60, loss=None)
    assert abs(-fit.losses[-1] - LOG_Z) < 1e-3  # zero noise at the optimum
    assert fit.vectorized is True


def test_a_fit_that_has_converged_stops():
    fit = quick(conjugate, AutoNormal(conjugate), model_args=(Y,), learning_rate=0.05)
    assert fit.stop_reason == "converged"
    assert 300 < fit.num_steps < 1500
    assert fit.learning_rates[-1] < 1e-4
    assert abs(fit.elbo - LOG_Z) < 0.01


def test_num_steps_is_kept_and_the_learning_rate_warms_up_and_decays():
    fit = quick(conjugate, AutoNormal(conjugate), model_args=(Y,), num_steps=100)
    rates = fit.learning_rates
    assert (fit.stop_reason, fit.num_steps, len(rates)) == ("num_steps", 100, 100)
    assert rates[0] < 0.2 * max(rates)
    assert rates[40] == max(rates) == 0.01
    assert rates[-1] < 0.01 * max(rates)


def test_a_time_budget_is_kept_and_the_decay_fits_into_it():
    started = time.perf_counter()
    fit = quick(conjugate, AutoNormal(conjugate), model_args=(Y,), time_budget=0.5, tolerance=0.0)
    assert fit.stop_reason == "time_budget"
    assert time.perf_counter() - started < 1.5
    assert fit.learning_rates[-1] < 0.1 * max(fit.learning_rates)


def test_a_model_without_noise_in_its_steps_converges_too():
    schedule = Schedule(None, None, tolerance=0.01)
    for step in range(1, 2000):
        schedule.factor(step - 1, 0.0)
        schedule.observe(step, -1.0)
        if schedule.stop_reason(step, 0.0):
            break
    assert schedule.stop_reason(step, 0.0) == "converged"
    exploring, flat = 250, 400  # warm-up and two windows; then one to compare three others with
    assert step == math.ceil(1.5 * (exploring + flat))


def test_a_guide_that_starts_close_does_not_explore_and_takes_small_steps():
    far, close, unknown = (Schedule(None, None, tolerance=0.01) for _ in range(3))
    for schedule, spread in ((far, 3.0), (close, 0.03), (unknown, math.nan)):
        schedule.start_from(spread)
    assert [s.score_weight for s in (far, close, unknown)] == [1.0, 0.0, 1.0]
    assert close.factor(100, 0.0) == pytest.approx(0.01 * far.factor(100, 0.0))


def test_a_guide_that_starts_near_explores_for_the_warm_up_alone():
    far, near = (Schedule(None, None, tolerance=0.01) for _ in range(2))
    short = Schedule(20, None, tolerance=0.01)
    for schedule, spread in ((far, 10.0), (near, 1.5), (short, 1.5)):
        schedule.start_from(spread)
    for step, expected in ((49, [1.0, 1.0]), (50, [1.0, 0.0])):
        for schedule in (far, near):
            schedule.factor(step, 0.0)
        assert [s.score_weight for s in (far, near)] == expected
    assert near.factor(60, 0.0) == far.factor(60, 0.0)  # its steps are as long
    short.factor(6, 0.0)
    assert short.score_weight == 0.0  # three tenths of a short run, as ever
    resumed = Schedule(None, None, 0.01)
    resumed.load_state_dict(near.state_dict())
    assert resumed.state_dict() == near.state_dict()


def test_a_guide_that_was_not_built_explores_in_full_however_small_its_spread():
    """One that covers a part of the posterior evenly has weights that are nearly equal."""
    schedule, built = (Schedule(500, None, tolerance=0.01) for _ in range(2))
    schedule.start_from(1.5, is_built=False)
    built.start_from(1.5)
    for s in (schedule, built):
        s.factor(100, 0.0)
    assert (schedule.score_weight, built.score_weight) == (1.0, 0.0)


def _run(losses: list[float]) -> Schedule:
    """A schedule of a thousand steps that has seen these losses."""
    schedule = Schedule(1000, None, tolerance=0.01)
    for step, loss in enumerate(losses):
        schedule.factor(step, 0.0)
        schedule.observe(step + 1, loss + 0.1 * math.sin(step))
    return schedule


def test_a_bound_that_gets_worse_under_the_path_gradient_makes_the_run_explore_again():
    steady = _run([1.0] * 600)
    assert not steady.returned
    assert steady.score_weight == 0
    drifting = _run([1.0] * 300 + [1.0 + 0.002 * i for i in range(300)])
    assert drifting.returned
    assert drifting.score_weight == 1
    assert drifting.factor(650, 0.0) > 0
    assert drifting.score_weight == 1  # until the learning rate falls
    resumed = Schedule(1000, None, tolerance=0.01)
    resumed.load_state_dict(drifting.state_dict())
    assert resumed.returned


@pytest.mark.parametrize(("slope", "weight"), [(0.0, 0.0), (-0.002, 0.0), (0.002, 1.0)])
def test_the_decay_tries_the_path_gradient_again_once(slope: float, weight: float):
    drift = [1.0] * 300 + [1.0 + 0.002 * i for i in range(300)] + [1.6] * 100
    schedule = _run(drift)
    schedule.factor(700, 0.0)
    assert (schedule.phase, schedule.score_weight) == ("decay", 0.0)
    ended = _run(drift + [1.6 + slope * i for i in range(300)])
    assert ended.score_weight == weight
    assert ended.returned


def test_a_fit_that_starts_too_narrow_does_not_end_as_the_posterior_cut_off():
    """Log weights that are nearly constant, and one and a half nats below the evidence."""
    scale = math.sqrt(1 - 0.9**2)

    def walk(x):
        steps = (x[..., 1:] - 0.9 * x[..., :-1]) / scale
        square = x[..., 0] ** 2 + steps.square().sum(-1)
        return -0.5 * square - 4 * math.log(scale) - 2.5 * math.log(2 * math.pi)

    target = energy_model(walk, 5)
    pyro.set_rng_seed(0)
    guide = AutoFlow(target, "nsf", model_args=(), init="point")
    fit = fit_guide(target, guide, num_steps=400, num_particles=64, seed=0, progress_bar=False)
    assert -fit.elbo < 0.1


def test_the_schedule_goes_on_while_the_loss_falls():
    schedule = Schedule(None, None, tolerance=0.01)
    for step in range(1, MAX_STEPS + 1):
        schedule.factor(step - 1, 0.0)
        schedule.observe(step, -0.01 * step)
    assert schedule.stop_reason(MAX_STEPS - 1, 0.0) is None
    assert schedule.stop_reason(MAX_STEPS, 0.0) == "num_steps"


def test_smoothing_ignores_what_is_not_finite():
    assert mean_and_error([1.0, math.nan, 3.0, math.inf]) == (2.0, 1.0)
    assert math.isnan(mean_and_error([])[0])


# -- what is trained ---------------------------------------------------------------------------


def with_a_scale(y):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


@pytest.mark.parametrize("optimizer", [None, pyro.optim.Adam({"lr": 0.05})])
def test_constrained_parameters_of_the_model_are_trained(optimizer):
    y = 4 * torch.randn(200)
    rate = None if optimizer else 0.05
    quick(
        with_a_scale,
        AutoNormal(with_a_scale),
        model_args=(y,),
        num_steps=200,
        optimizer=optimizer,
        learning_rate=rate,
    )
    assert abs(pyro.param("scale") - y.std()) < 0.4


def test_parameters_that_appear_late_are_trained_with_a_word():
    calls = []

    def model():
        calls.append(1)
        shift = pyro.param("late", torch.tensor(0.0)) if len(calls) > 8 else 0.0
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("f", -((shift - 3.0) ** 2) - mu**2)

    with pytest.warns(UserWarning, match=r"appeared on the way are trained too: \['late'\]"):
        quick(model, AutoNormal(model), num_steps=300, learning_rate=0.1, num_particles=1)
    assert abs(pyro.param("late") - 3) < 0.3


def test_mini_batches_train():
    data = 3 + torch.randn(100)

    def model(data):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data), subsample_size=20) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=data[index])

    guide = AutoNormal(model)
    with pytest.warns(UserWarning, match="no diagnostics: ValueError.*subsampl"):
        fit = diagnosed(model, guide, model_args=(data,), num_steps=200, learning_rate=0.1)
    assert abs(mean_of(guide, data) - data.mean()) < 0.1
    assert fit.diagnostics is None
    assert "no diagnostics" in str(fit)


def test_a_function_is_a_guide():
    def guide(y):
        loc = pyro.param("loc", torch.zeros(3))
        scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale).to_event(1))

    fit = quick(conjugate, guide, model_args=(Y,), num_steps=300, learning_rate=0.03)
    assert torch.allclose(pyro.param("loc"), Y / 2, atol=0.08)
    assert str(fit).startswith("guide: the fit took all its steps after 300 steps")


class FlowGuide(pyro.nn.PyroModule):
    """A guide whose parameters are in a plain module, which Pyro stores under "net$$$..."."""

    def __init__(self, event_dim=3):
        super().__init__()
        self.net = nn.Linear(1, 2 * event_dim)

    def forward(self, y):
        loc, raw = self.net(torch.ones(1)).chunk(2)
        return pyro.sample("mu", dist.Normal(loc, raw.exp()).to_event(1))


@pytest.mark.parametrize("pyro_optimizer", [False, True])
def test_two_guides_in_one_process_both_train(pyro_optimizer):
    def run(guide, y):
        optimizer = pyro.optim.Adam({"lr": 0.03}) if pyro_optimizer else None
        rate = None if pyro_optimizer else 0.03
        quick(
            conjugate,
            guide,
            model_args=(y,),
            num_steps=300,
            optimizer=optimizer,
            learning_rate=rate,
        )
        with torch.no_grad():
            return guide.net(torch.ones(1))[:3]

    first, second = FlowGuide(), FlowGuide()
    run(first, Y)
    with pytest.warns(UserWarning, match=r"store held 2 entries of another module.*net\$\$\$bias"):
        found = run(second, -Y)
    assert torch.allclose(found, -Y / 2, atol=0.08)
    assert torch.allclose(first.net(torch.ones(1))[:3], Y / 2, atol=0.08)


def test_a_guide_that_inherits_parameters_from_the_store_says_so():
    quick(conjugate, AutoNormal(conjugate), model_args=(Y,), num_steps=5)
    with pytest.warns(UserWarning, match="shares, 2 parameters that Pyro's param store already"):
        quick(conjugate, AutoNormal(conjugate), model_args=(Y,), num_steps=5)


def test_untrained_parameters_are_named():
    guide = FlowGuide()
    guide.spare = nn.Linear(1, 1)
    with pytest.warns(UserWarning, match=r"receive no gradient.*'spare.weight', 'spare.bias'"):
        quick(conjugate, guide, model_args=(Y,), num_steps=10)


def test_modes_of_the_guide_are_put_back():
    guide = FlowGuide()
    guide.train()
    guide.net.eval()
    quick(conjugate, guide, model_args=(Y,), num_steps=3)
    assert guide.training
    assert not guide.net.training


# -- optimizers and losses ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.AdamW,
        partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        lambda params: torch.optim.Adam(params, lr=torch.tensor(0.03)),
        pyro.optim.Adam({"lr": 0.03}),
        pyro.optim.ClippedAdam({"lr": 0.03}),
        pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.99}
        ),
        pyro.optim.ReduceLROnPlateau(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "patience": 20}
        ),
    ],
)
def test_every_kind_of_optimizer_trains(optimizer):
    guide = AutoNormal(conjugate)
    rate = 0.05 if optimizer is torch.optim.AdamW else None
    quick(conjugate, guide, model_args=(Y,), num_steps=250, optimizer=optimizer, learning_rate=rate)
    assert torch.allclose(mean_of(guide, Y), Y / 2, atol=0.1)


def test_a_pyro_scheduler_is_stepped():
    rates = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5}
    fit = quick(
        conjugate,
        AutoNormal(conjugate),
        model_args=(Y,),
        num_steps=4,
        optimizer=pyro.optim.ExponentialLR(rates),
    )
    assert fit.learning_rates == [0.05, 0.025, 0.0125, 0.00625]


def test_a_ready_optimizer_gets_its_rates_back():
    guide = FlowGuide()
    optimizer = torch.optim.Adam(
        [{"params": [guide.net.weight], "lr": 0.1}, {"params": [guide.net.bias], "lr": 0.02}]
    )
    fit = quick(conjugate, guide, model_args=(Y,), num_steps=100, optimizer=optimizer)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.02]
    assert fit.losses[-1] < fit.losses[0] - 1
    assert fit.learning_rates[50] == 0.1


def test_a_ready_optimizer_may_train_a_part():
    guide = FlowGuide()
    before = guide.net.weight.detach().clone()
    optimizer = torch.optim.Adam([guide.net.bias], lr=0.1)
    with pytest.warns(UserWarning, match=r"without 1 of 2 parameters.*\['net.weight'\]"):
        quick(conjugate, guide, model_args=(Y,), num_steps=10, optimizer=optimizer)
    assert torch.equal(before, guide.net.weight)


@pytest.mark.parametrize(
    "loss",
    [
        TraceMeanField_ELBO,
        Trace_ELBO(num_particles=16, vectorize_particles=True),
        RenyiELBO(alpha=0.5, num_particles=16, vectorize_particles=True),
        lambda *args: Trace_ELBO().differentiable_loss(*args),
    ],
)
@pytest.mark.parametrize("optimizer", [None, pyro.optim.Adam({"lr": 0.01})])
def test_every_kind_of_loss_trains(loss, optimizer):
    guide = AutoNormal(conjugate)
    fit = quick(
        conjugate,
        guide,
        model_args=(Y,),
        num_steps=100,
        loss=loss,
        optimizer=optimizer,
        num_particles=None,
    )
    assert sum(fit.losses[-20:]) < sum(fit.losses[:20])


# -- what goes wrong ---------------------------------------------------------------------------


class Faulty(Trace_ELBO):
    """A loss with a fault at the steps that ``when`` picks."""

    def __init__(self, fault, when):
        super().__init__(num_particles=8, vectorize_particles=True)
        self.fault, self.when, self.step = fault, when, 0

    def differentiable_loss(self, model, guide, *args, **kwargs):
        self.step += 1
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        return self.fault(loss) if self.when(self.step) else loss


def interrupt(loss):
    raise KeyboardInterrupt


def nan_loss(loss):
    return loss * math.nan


def nan_gradient(loss):
    zero = (loss - loss.detach()).abs()
    return loss + zero.sqrt()


def huge_gradient(loss):
    return loss + 1e6 * (loss - loss.detach())


def test_ctrl_c_returns_the_fit_so_far():
    guide = AutoNormal(conjugate)
    fit = diagnosed(
        conjugate,
        guide,
        model_args=(Y,),
        loss=Faulty(interrupt, lambda step: step == 30),
        num_particles=None,
    )
    assert (fit.stop_reason, fit.num_steps) == ("interrupted", 29)
    assert fit.diagnostics is not None
    assert "was interrupted, before its learning rate came down, after 29 steps" in str(fit)
    assert torch.isfinite(mean_of(guide, Y)).all()


def test_ctrl_c_before_the_first_step_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        quick(
            conjugate,
            AutoNormal(conjugate),
            model_args=(Y,),
            num_particles=None,
            loss=Faulty(interrupt, lambda step: True),
        )


@pytest.mark.parametrize("fault", [nan_loss, nan_gradient])
@pytest.mark.parametrize("optimizer", [None, pyro.optim.Adam({"lr": 0.01})])
def test_steps_that_are_not_finite_are_skipped_and_counted(fault, optimizer):
    guide = AutoNormal(conjugate)
    fit = quick(
        conjugate,
        guide,
        model_args=(Y,),
        loss=Faulty(fault, lambda step: step % 10 == 0),
        num_steps=100,
        num_particles=None,
        optimizer=optimizer,
    )
    assert (fit.num_steps, fit.num_skipped_steps) == (100, 10)
    assert "10 steps skipped as not finite" in str(fit)
    assert all(p.isfinite().all() for p in guide.parameters())


def test_outliers_of_the_gradient_are_clipped_and_counted():
    fit = quick(
        conjugate,
        AutoNormal(conjugate),
        model_args=(Y,),
        num_steps=60,
        num_particles=None,
        loss=Faulty(huge_gradient, lambda step: step == 40),
        optimizer=torch.optim.SGD,
        learning_rate=1e-3,
    )
    assert fit.num_clipped_steps >= 1
    assert max(fit.losses[40:]) < max(fit.losses[:40])


def test_a_fit_that_diverges_returns_the_last_good_parameters():
    guide = FlowGuide()

    def poison(loss):
        with torch.no_grad():
            guide.net.bias.fill_(math.nan)
        return loss * math.nan

    fit = quick(
        conjugate,
        guide,
        model_args=(Y,),
        loss=Faulty(poison, lambda step: step > 60),
        num_particles=None,
    )
    assert fit.stop_reason == "diverged"
    assert fit.num_skipped_steps == 20
    assert guide.net.bias.isfinite().all()
    assert "diverged: too many steps in a row were not finite" in str(fit)


def test_draws_that_are_not_finite_are_counted():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("hole", torch.where(mu > 1.5, -math.inf, 0.0))

    guide = AutoFlow(model, "affine", model_args=(Y,))
    fit = quick(model, guide, model_args=(Y,), num_steps=20, loss=None)
    assert fit.num_nonfinite_particles > 0
    assert f"{fit.num_nonfinite_particles} draws left out as not finite" in str(fit)


def test_a_loss_that_is_never_finite_is_refused():
    def model(y):
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.tensor(math.nan))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"each of the first 10 steps.*data with NaN"):
            quick(model, AutoNormal(model), model_args=(Y,))


# -- seeds, reports ------------------------------------------------------------------------------


def _numpy_state():
    return np.random.get_state()[1].copy()  # noqa: NPY002 - the global one, which models may use


def test_the_same_seed_gives_the_same_losses_and_leaves_the_caller_alone():
    def run(seed):
        pyro.clear_param_store()
        return quick(conjugate, AutoNormal(conjugate), model_args=(Y,), num_steps=20, seed=seed)

    states = torch.get_rng_state(), random.getstate(), _numpy_state()
    first, again, other = run(1), run(1), run(2)
    assert first.losses == again.losses != other.losses
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], _numpy_state())
    assert first.seed == 1


def test_without_a_seed_the_caller_s_generator_is_used():
    torch.manual_seed(5)
    first = quick(conjugate, AutoNormal(conjugate), model_args=(Y,), num_steps=5, seed=None)
    pyro.clear_param_store()
    torch.manual_seed(5)
    again = quick(conjugate, AutoNormal(conjugate), model_args=(Y,), num_steps=5, seed=None)
    assert first.losses == again.losses


def test_the_report_is_for_a_person_and_ends_with_the_verdict():
    guide = AutoNormal(conjugate)
    fit = diagnosed(conjugate, guide, model_args=(Y,), num_steps=150, learning_rate=0.05)
    lines = str(fit).splitlines()
    assert lines[0].startswith("AutoNormal: the fit took all its steps after 150 steps in ")
    assert lines[1].startswith("Training ELBO -7.")
    assert "over the last 15 steps of 32 draws." in lines[1]
    assert str(fit).endswith(str(fit.diagnostics))
    assert "diagnostics" not in repr(fit)


def test_a_fit_can_be_pickled():
    fit = diagnosed(conjugate, FlowGuide(), model_args=(Y,), num_steps=5)
    copy = pickle.loads(pickle.dumps(fit))
    assert isinstance(copy, GuideFit)
    assert copy.losses == fit.losses
    assert str(copy) == str(fit)
    for a, b in zip(copy.guide.parameters(), fit.guide.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_printed_unless_asked_for(capfd):
    guide = AutoFlow(conjugate, "affine", model_args=(Y,))
    quick(conjugate, guide, model_args=(Y,), num_steps=5, loss=None)
    assert capfd.readouterr() == ("", "")
    quick(conjugate, guide, model_args=(Y,), num_steps=5, loss=None, progress_bar=True)
    shown = capfd.readouterr().err
    assert "AutoFlow: 100%" in shown
    assert "ELBO -7." in shown


def test_a_sequential_model_gets_fewer_diagnostic_draws_with_a_word(monkeypatch):
    monkeypatch.setattr("pyroflows.infer.diagnose._SECONDS_FOR_SEQUENTIAL_DIAGNOSTICS", 0.01)
    fit = quick(
        conjugate,
        AutoNormal(conjugate),
        model_args=(Y,),
        num_steps=3,
        loss=Trace_ELBO(num_particles=4),
        num_particles=None,
        num_diagnostic_samples=1000,
    )
    assert fit.vectorized is False
    assert fit.diagnostics.num_samples == 500
    assert "diagnostics from 500 draws, not 1000" in str(fit)
    assert "of 4 draws, one after the other." in str(fit)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_particles": 0}, ValueError, "num_particles to be an integer >= 1, got 0"),
        ({"num_steps": 0}, ValueError, "num_steps to be an integer >= 1, got 0"),
        ({"num_steps": 1.5}, ValueError, "num_steps to be an integer >= 1, got 1.5"),
        ({"time_budget": 0.0}, ValueError, "time_budget > 0 and finite, got 0.0"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate > 0 and finite, got -1.0"),
        ({"tolerance": -1.0}, ValueError, "tolerance >= 0, got -1.0"),
        ({"optimizer": "adam"}, TypeError, "a factory of one.*got str"),
        ({"optimizer": lambda params: 3}, TypeError, "to return a torch.optim.Optimizer.*got int"),
        ({"optimizer": torch.optim.LBFGS}, TypeError, "LBFGS evaluates the loss several times"),
        (
            {"optimizer": pyro.optim.Adam({"lr": 1.0}), "learning_rate": 1.0},
            ValueError,
            "learning_rate=1.0 and an optimizer that has its own already",
        ),
        (
            {"optimizer": torch.optim.Adam([nn.Parameter(torch.zeros(1))])},
            ValueError,
            "the optimizer holds none of the parameters of this guide",
        ),
        ({"loss": 3}, TypeError, "expected loss to be None, a Pyro ELBO.*got int"),
        (
            {"loss": Trace_ELBO(num_particles=8), "num_particles": 16},
            ValueError,
            "num_particles=16, and a loss with num_particles=8",
        ),
        ({"loss": lambda *_: 1.0}, ValueError, "the loss has no gradient"),
        ({"loss": lambda *_: torch.ones(())}, ValueError, "the loss has no gradient"),
        (
            {"model_args": (Y.double(),)},
            ValueError,
            r"model_args\[0\] is torch.float64 on cpu, but the parameters of FlowGuide are "
            r"torch.float32 on cpu. Cast the data, data.to\('cpu', torch.float32\), or the guide",
        ),
        (
            {"model_args": (), "model_kwargs": {"y": [Y.double()]}},
            ValueError,
            r"model_kwargs\['y'\] is torch.float64",
        ),
        ({"model_args": (Y.to("meta"),)}, ValueError, "float32 on meta, but the parameters of"),
    ],
)
def test_bad_arguments_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        quick(conjugate, FlowGuide(), **{"model_args": (Y,)} | kwargs)


def test_a_model_without_latents_is_refused():
    def model(y):
        pyro.sample("y", dist.Normal(pyro.param("a", torch.zeros(3)), 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match="expected a model with latent variables"):
        quick(model, lambda y: None, model_args=(Y,))


def test_a_guide_without_parameters_is_refused():
    def guide(y):
        pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    with pytest.raises(ValueError, match="expected a guide with parameters to train, got guide"):
        quick(conjugate, guide, model_args=(Y,))


def test_a_guide_that_has_no_weights_still_fits():
    guide = AutoDelta(conjugate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = diagnosed(conjugate, guide, model_args=(Y,), num_steps=200, learning_rate=0.05)
    assert torch.allclose(guide.median(Y)["mu"], Y / 2, atol=0.02)
    assert fit.num_steps == 200


def test_a_models_own_parameters_are_trained_in_full_steps_from_a_guide_that_starts_close():
    """The guide starts at the posterior under the first parameters, which are not the best."""
    y = 1.0 + torch.randn(50, generator=torch.Generator().manual_seed(0))

    def model(y):
        shift = pyro.param("shift", torch.tensor(5.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.1 * z + shift, 1.0), obs=y)

    guide = AutoFlow(model, "affine", model_args=(y,))
    fit_guide(
        model,
        guide,
        model_args=(y,),
        num_steps=2000,
        seed=0,
        progress_bar=False,
        num_diagnostic_samples=0,
    )
    assert abs(pyro.param("shift").item() - y.mean().item()) < 0.3


def test_a_guide_fitted_to_other_data_says_that_it_has_far_to_go():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1000.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, 0.1), obs=y)

    y = torch.linspace(-1, 1, 100)
    guide = AutoFlow(model, "affine", model_args=(y,))
    options = {"num_steps": 3, "seed": 0, "progress_bar": False, "num_diagnostic_samples": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_guide(model, guide, model_args=(y,), **options)
        fit_guide(model, guide, model_args=(y + 0.1,), **options)
    with pytest.warns(UserWarning, match=r"fitted before, .* spread over .*make a new guide"):
        fit_guide(model, guide, model_args=(y + 100,), **options)


def test_the_number_of_draws_is_found_for_a_flat_prior_too():
    """It cannot be drawn from."""

    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    guide = AutoFlow(model, "affine", model_args=(Y,))
    fit = fit_guide(model, guide, model_args=(Y,), num_steps=3, seed=0, progress_bar=False)
    assert fit.num_particles == 1024
    assert fit.diagnostics.verdict == "usable"
