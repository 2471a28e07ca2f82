"""A fit begins without the larger part of its flow, and adds it where that pays."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyroflows import AutoFlow, energy_model, fit_guide
from pyroflows.infer.average import Average
from pyroflows.infer.opening import NUM_OPENING_STEPS, Opening, dormant_parts
from pyroflows.infer.particles import halved
from pyroflows.infer.race import FACTORS, hold_race

Y = torch.tensor([1.0, 2.0, 3.0])
SMALL = {"num_layers": 2, "hidden_dims": (8,), "num_bins": 4}
quick = partial(fit_guide, progress_bar=False, seed=0, num_diagnostic_samples=0)


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


@pytest.fixture
def brief(monkeypatch):
    """All stages of a fit, each short, and none left out."""
    monkeypatch.setattr("pyroflows.infer.opening._GOOD_K", -float("inf"))
    monkeypatch.setattr("pyroflows.infer.opening._FAIR_K", -float("inf"))
    monkeypatch.setattr("pyroflows.infer.opening._EVEN", -float("inf"))
    monkeypatch.setattr("pyroflows.infer.opening._NUM_DRAWS", 64)
    monkeypatch.setattr("pyroflows.infer.opening.NUM_OPENING_STEPS", 40)
    monkeypatch.setattr("pyroflows.infer.run.NUM_OPENING_STEPS", 40)
    monkeypatch.setattr("pyroflows.infer.race.LAPS", ((3, 10), (2, 10)))
    monkeypatch.setattr("pyroflows.infer.schedule._WINDOW", 20)


def normal(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


def banana():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.5 * x**2, 0.3))


def guide_of(model, *args, **options):
    return AutoFlow(model, model_args=args, **SMALL | options)


def is_awake(guide):
    return [part.awake for part in dormant_parts(guide)]


# -- whether the rest is needed ----------------------------------------------------------------


def test_a_gaussian_posterior_takes_no_couplings():
    guide = guide_of(normal, Y)
    fit = quick(normal, guide, model_args=(Y,))
    assert (fit.num_steps, fit.stop_reason) == (NUM_OPENING_STEPS, "converged")
    assert not any(is_awake(guide))
    assert "stays without its couplings" in str(fit)


def test_a_bent_posterior_takes_them():
    guide = guide_of(banana)
    fit = quick(banana, guide, time_budget=4.0)
    assert fit.num_steps > NUM_OPENING_STEPS / 2
    assert all(is_awake(guide))
    assert "Couplings were added to the flow, whose ELBO was" in str(fit)


def test_two_modes_seen_take_them_however_well_one_is_held():
    def two(x):
        return torch.logaddexp(-0.5 * (x - 20).square().sum(-1), -0.5 * (x + 20).square().sum(-1))

    guide = guide_of(energy_model(two, dim=2))
    assert len(guide.modes) >= 2
    quick(energy_model(two, dim=2), guide, time_budget=3.0)
    assert all(is_awake(guide))


@pytest.mark.parametrize("options", [{"num_steps": 20}, {"loss": Trace_ELBO}])
def test_with_steps_or_a_loss_given_all_of_the_flow_is_trained(options):
    guide = guide_of(normal, Y)
    fit = quick(normal, guide, model_args=(Y,), **{"num_steps": 20} | options)
    assert all(is_awake(guide))
    assert fit.opening == ""


def test_what_was_fitted_before_stays_awake():
    guide = guide_of(banana)
    quick(banana, guide, num_steps=20)
    fit = quick(banana, guide, time_budget=1.0)
    assert all(is_awake(guide))
    assert fit.opening == ""


def test_no_warning_of_parameters_that_sleep(recwarn):
    quick(normal, guide_of(normal, Y), model_args=(Y,))
    assert not [w for w in recwarn if "receive no gradient" in str(w.message)]


def funnel():
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(torch.zeros(2), (0.5 * x).exp()[..., None]).to_event(1))


def test_a_funnel_needs_more_laps_and_no_couplings():
    guide = guide_of(funnel)
    fit = quick(funnel, guide, num_diagnostic_samples=10_000)
    assert NUM_OPENING_STEPS < fit.num_steps <= 10 * NUM_OPENING_STEPS
    assert fit.num_steps % NUM_OPENING_STEPS == 0
    assert not any(is_awake(guide))
    assert fit.diagnostics.log_z - fit.diagnostics.elbo < 0.01


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(y.new_zeros(2), 10.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfCauchy(y.new_ones(())))
    mean = (slope[..., None, :] * x).sum(-1)
    pyro.sample("y", dist.Normal(mean, scale[..., None]).to_event(1), obs=y)


def test_a_regression_takes_splines_and_no_couplings():
    """Its scale is drawn last, and first in the flow: given it, the slopes are Gaussian."""
    x = torch.randn(12, 2)
    args = (x, x @ torch.tensor([1.0, -2.0]) + torch.randn(12))
    guide = AutoFlow(regression, model_args=args)
    fit = quick(regression, guide, model_args=args, num_diagnostic_samples=10_000)
    assert is_awake(guide) == [False, True]  # couplings, splines
    assert fit.num_steps % NUM_OPENING_STEPS == 0
    assert fit.diagnostics.log_z - fit.diagnostics.elbo < 0.004


def test_parts_wake_one_after_the_other_and_the_largest_last():
    guide = guide_of(normal, Y)
    opening = Opening(guide, None, None, tolerance=0.002)
    opening.sleep()
    assert is_awake(guide) == [False, False]
    assert opening.wake_next()
    assert is_awake(guide) == [False, True]
    assert not opening.wake_next()
    opening.wake()
    assert is_awake(guide) == [True, True]


FLAT, FALLING = [1.0] * 200, [1.0] * 150 + [0.0] * 50


@pytest.mark.parametrize(
    ("laps", "decision"),
    [
        ([(0.5, FLAT)], "wake"),  # nothing more to come
        ([(0.5, FALLING)], "again"),
        ([(5.0, [10.0] * 150 + [0.0] * 50)], "wake"),  # too far off for a flow without couplings
        ([(0.0023, FLAT)], "stay"),  # what is not worth couplings,
        ([(0.0023, FALLING)], "again"),  # but a lap
        ([(0.0015, FALLING)], "stay"),
        ([(0.5, FALLING), (0.6, FLAT)], "again"),  # one lap may fail
        ([(0.5, FALLING), (0.6, FLAT), (0.45, FLAT)], "wake"),  # two may not
        ([(0.5, FALLING), (0.6, FLAT), (0.3, FLAT)], "again"),
        ([(float("inf"), FALLING)], "wake"),
    ],
)
def test_what_comes_after_a_lap(laps, decision, monkeypatch):
    opening = Opening(guide_of(normal, Y), None, None, tolerance=0.002)
    for gap, losses in laps:
        monkeypatch.setattr(opening, "_judge", lambda gap=gap: (gap, 0.3))
        found = opening.decide(losses)
    assert found == decision


@pytest.mark.parametrize(
    ("num_awake", "laps", "decision"),
    [
        (0, [(0.001, 0.6)], "wake"),  # splines
        (1, [(0.001, 0.6)], "again"),
        (1, [(0.001, 0.6)] * 2, "again"),
        (1, [(0.001, 0.6)] * 3, "stay"),  # as good as it gets without couplings
        (1, [(0.001, 0.8)] * 3, "wake"),
        (1, [(0.0004, 0.8)] * 3, "stay"),  # weights so equal that the shape is noise
        (1, [(0.001, 0.4)], "stay"),
    ],
)
def test_a_tail_gets_a_few_laps(num_awake, laps, decision, monkeypatch):
    opening = Opening(guide_of(normal, Y), None, None, tolerance=0.002)
    opening.num_awake = num_awake
    for judged in laps:
        monkeypatch.setattr(opening, "_judge", lambda judged=judged: judged)
        found = opening.decide(FLAT)
    assert found == decision


def test_with_a_time_budget_there_is_one_lap(monkeypatch):
    opening = Opening(guide_of(normal, Y), None, None, tolerance=0.002)
    monkeypatch.setattr(opening, "_judge", lambda: (0.5, 0.3))
    assert opening.decide(FALLING, may_go_on=False) == "wake"


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("cut_at", [60, 130, 190, 250])
def test_a_fit_cut_short_goes_on_to_the_same_numbers(cut_at, tmp_path, monkeypatch):
    """In both stages of the opening, in the race that follows, and after that."""
    monkeypatch.setattr("pyroflows.infer.opening._PROMISING", -1e9)
    monkeypatch.setattr("pyroflows.infer.opening._PAYS", 1e9)
    monkeypatch.setattr("pyroflows.infer.opening._NEAR", 1e9)
    monkeypatch.setattr("pyroflows.infer.opening._MAX_LAPS", 2)
    options = {"num_particles": 16, "tolerance": 10.0, "checkpoint": tmp_path / "fit.pt"}

    def fit(**more):
        torch.manual_seed(0)
        pyro.clear_param_store()
        guide = guide_of(banana)
        return quick(banana, guide, **options | more), guide

    whole, left_alone = fit(checkpoint=None)
    steps = []
    step = torch.optim.Adam.step

    def cut(self, *args, **kwargs):
        steps.append(1)
        if len(steps) > cut_at:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", cut)
        first, _ = fit()
    assert first.stop_reason == "interrupted"
    again, resumed = fit()
    assert again.losses == whole.losses
    pairs = zip(resumed.parameters(), left_alone.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


# -- how many draws ----------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "half"), [(1024, 512), (512, 256), (300, 256), (256, 256)])
def test_half_the_draws_and_no_fewer_than_the_fewest(number, half):
    assert halved(number) == half


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("small", "number"), [(1e9, 512), (0.0, 1024)])
def test_half_the_draws_where_little_is_left(small, number, monkeypatch):
    monkeypatch.setattr("pyroflows.infer.opening._SMALL", small)
    fit = quick(banana, guide_of(banana), tolerance=10.0)
    assert fit.num_particles == number
    given = quick(banana, guide_of(banana), tolerance=10.0, num_particles=64)
    assert given.num_particles == 64


def many_data(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc[..., 0, None], 1.0), obs=y)


def branching(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    if loc[0] > 0:  # a batch cannot be asked this
        pass
    pyro.sample("y", dist.Normal(loc.sum(-1), 1.0), obs=y)


@pytest.mark.parametrize(("number", "expected"), [(10, 1024), (1_000, 512), (20_000, 256)])
def test_a_step_takes_fewer_draws_of_a_model_with_many_data(number, expected):
    y = torch.zeros(number)
    fit = quick(many_data, guide_of(many_data, y), model_args=(y,), num_steps=1)
    assert fit.num_particles == expected


@pytest.mark.filterwarnings("ignore")
def test_a_step_takes_few_draws_of_other_guides_and_of_models_run_one_by_one():
    y = torch.tensor(1.0)
    one_by_one = quick(branching, guide_of(branching, y), model_args=(y,), num_steps=1)
    assert (one_by_one.vectorized, one_by_one.num_particles) == (False, 256)
    assert quick(normal, AutoNormal(normal), model_args=(Y,), num_steps=1).num_particles == 256


def test_the_number_of_draws_that_is_given_is_taken():
    fit = quick(normal, guide_of(normal, Y), model_args=(Y,), num_steps=1, num_particles=7)
    assert fit.num_particles == 7


# -- the race of step sizes --------------------------------------------------------------------


class Slope:
    """Steps of some size down to zero, which none may pass."""

    def __init__(self, height, size):
        self.height, self.size, self.steps = height, size, []

    def snapshot(self):
        return self.height, list(self.steps)

    def restore(self, state):
        self.height, self.steps = state[0], list(state[1])

    def advance(self, factor):
        self.steps.append(factor)
        self.height -= factor * self.size

    def evaluate(self):
        return abs(self.height)


@pytest.mark.parametrize(("height", "factor"), [(300.0, 3.0), (100.0, 1.0), (33.0, 1 / 3)])
def test_the_step_size_that_gets_farthest_wins(height, factor):
    slope = Slope(height, 1.0)
    assert hold_race(slope) == factor
    assert slope.steps == [factor] * 100


def test_a_race_cut_short_leaves_no_trace():
    slope = Slope(100.0, 1.0)

    def cut(factor):
        if len(slope.steps) == 30:
            raise KeyboardInterrupt
        Slope.advance(slope, factor)

    slope.advance = cut
    with pytest.raises(KeyboardInterrupt):
        hold_race(slope)
    assert (slope.height, slope.steps) == (100.0, [])  # no lap was whole


@pytest.mark.usefixtures("brief")
def test_a_fit_races_unless_a_learning_rate_is_given():
    flow = {"flow": "nsf", "num_layers": 1, "hidden_dims": (4,)}
    guide = AutoFlow(banana, model_args=(), **flow)
    raced = quick(banana, guide, num_particles=16, tolerance=10.0)
    assert raced.race_factor in FACTORS
    assert len(raced.losses) == len(raced.learning_rates)
    assert max(raced.learning_rates) <= 0.01 * max(FACTORS)
    guide = AutoFlow(banana, model_args=(), **flow)
    given = quick(banana, guide, num_particles=16, learning_rate=0.02, time_budget=1.0)
    assert given.race_factor == 1


# -- the mean of the iterates ------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.0, 4.0])
def test_the_mean_is_taken_where_it_is_better(target):
    x = torch.zeros(2)
    average = Average({"x": x}, x.device)
    for value in (-2.0, 0.0, 2.0, 4.0):  # their mean is one, the last is four
        x.fill_(value)
        average.add()
    before = (x - target).square().sum().item()
    gain = average.settle(lambda: (x - target).square().sum().item())
    expected = 1.0 if target == 0 else 4.0
    assert torch.equal(x, torch.full((2,), expected))
    assert gain == before - (x - target).square().sum().item()


def test_the_mean_goes_on_from_a_file():
    x = torch.tensor([1.0])
    average = Average({"x": x}, x.device)
    average.add()
    again = Average({"x": x}, x.device)
    again.load_state_dict(average.state_dict())
    x.fill_(3.0)
    again.add()
    again.settle(lambda: (x - 2).abs().item())
    assert x.item() == 2.0
