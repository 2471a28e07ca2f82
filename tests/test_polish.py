"""Chains that polish a guide: right against conjugate models, honest errors, counted failures."""

import builtins
import math
import random
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyroflows as pf
from pyroflows.infer.posterior import _samplers
from pyroflows.infer.posterior._samplers import DualAveraging, Hamiltonian, _widest
from tests import conjugate
from tests.conjugate import CASES, LEVELS
from tests.pretended import pretended_device

ERRORS = 4.0  # standard errors that a result may be off by
METHODS = ("hmc", "independence")
each_method = pytest.mark.parametrize("method", METHODS)


def run(case, guide, **kwargs):
    options = {"seed": 1, "progress_bar": False, "num_warmup": 60, "num_samples": 100, **kwargs}
    return pf.polish(case.model, guide, model_args=(case.data,), **options)


# Laws


@each_method
@pytest.mark.parametrize("name", list(CASES))
def test_a_guide_that_is_off_is_corrected(name, method):
    case = CASES[name]()
    more = {"num_samples": 500} if method == "independence" else {}
    chains = run(case, case.guide(), method=method, **more)
    mean, error = chains.mean()["x"].reshape(-1), chains.mcse()["x"].reshape(-1)
    assert (error < 0.06 * case.sd).all()
    assert ((mean - case.mean).abs() < ERRORS * error).all()
    torch.testing.assert_close(chains.sd()["x"].reshape(-1), case.sd, rtol=0.1, atol=0)
    found = chains.quantile(LEVELS)["x"].reshape(3, -1)
    assert ((found - case.quantiles).abs() < 0.25 * case.sd).all()
    assert 0.6 < float(chains.acceptance.mean()) < 0.95
    assert chains.num_divergences == chains.num_nonfinite == 0


@each_method
def test_errors_are_calibrated(method):
    case = conjugate.normal()
    guide = case.guide()
    options = {"num_chains": 8, "num_samples": 40, "num_warmup": 10, "method": method}
    scores = []
    for seed in range(12):
        chains = run(case, guide, seed=seed, **options)
        scores.append(float((chains.mean()["x"] - case.mean) / chains.mcse()["x"]))
    assert max(map(abs, scores)) < 3.5
    assert 0.5 < math.sqrt(sum(s * s for s in scores) / len(scores)) < 1.6


def test_a_flow_that_bends_is_bent_back():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("y", dist.Normal(x**2 / 2, 1.0))

    guide = pf.AutoFlow(model, "nsf", init="point", init_scale=0.7)
    with pyro.poutine.block(), torch.no_grad():
        chains = pf.polish(model, guide, num_samples=80, num_warmup=60, seed=0, progress_bar=False)
    for name, mean, sd in (("x", 0.0, 1.0), ("y", 0.5, math.sqrt(1.5))):
        error = float(chains.mcse()[name])
        assert error < 0.2
        assert abs(float(chains.mean()[name]) - mean) < ERRORS * error
        assert float(chains.sd()[name]) == pytest.approx(sd, rel=0.15)


def test_only_independent_proposals_cross_between_the_modes_of_a_wide_guide():
    case = conjugate.two_modes()
    crossing = run(case, case.wide_guide(), method="independence", num_samples=2000)
    error = crossing.mcse()["x"]
    assert error < 0.1 * case.sd
    assert (crossing.mean()["x"] - case.mean).abs() < ERRORS * error
    stuck = run(case, case.wide_guide(), num_warmup=50, num_samples=50)
    signs = stuck.values["x"].sign()
    assert (signs == signs[:, :1]).all()
    # Chains that cannot cross are worth a draw each, and the error says so.
    assert stuck.mcse()["x"] > 0.15 * case.sd
    assert (stuck.mean()["x"] - case.mean).abs() < ERRORS * stuck.mcse()["x"]


@pytest.mark.filterwarnings("ignore:polish. the guide is not to be trusted")
@each_method
def test_chains_cross_between_modes_that_the_flow_has_joined(method):
    case = conjugate.two_modes()
    guide = pf.AutoFlow(case.model, conjugate.TwoModes, model_args=(case.data,), outer=None)
    chains = run(case, guide, method=method, num_warmup=50, num_samples=60)
    error = chains.mcse()["x"]
    assert error < 0.25 * case.sd
    assert (chains.mean()["x"] - case.mean).abs() < ERRORS * error


def test_independent_proposals_of_a_guide_that_misses_tails_come_with_a_warning():
    case = conjugate.normal()
    with pytest.warns(UserWarning, match=r"polish: the guide is not to be trusted \(.*'hmc'"):
        chains = run(case, case.guide(scale=0.3), method="independence")
    assert "Proposals miss what the guide misses" in str(chains)
    short = {"num_warmup": 10, "num_samples": 10}
    assert "Proposals miss" not in str(run(case, case.guide(scale=0.3), **short))


# Densities that are no number


@pytest.mark.filterwarnings("ignore:polish. the guide is not to be trusted")
@each_method
def test_regions_without_a_density_are_rejected_and_counted(method):
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.validation_enabled(False):
            pyro.factor("cut", torch.where(x > -0.5, 0.0, math.nan))

    guide = pf.AutoFlow(model, "affine", init="point", init_scale=1.0)
    options = {"num_samples": 60, "num_warmup": 10, "num_leapfrog": 3}
    options |= {"num_samples": 500} if method == "independence" else {}
    chains = pf.polish(model, guide, method=method, seed=0, progress_bar=False, **options)
    x = chains.values["x"]
    assert (x > -0.5).all()
    assert chains.num_nonfinite > 50
    assert (chains.acceptance[chains.nonfinite] == 0).all()
    exact = math.exp(-1 / 8) / math.sqrt(2 * math.pi) / 0.6914624612740131
    assert abs(float(x.mean()) - exact) < ERRORS * float(chains.mcse()["x"])
    assert f"{chains.num_nonfinite} proposals without a finite density" in str(chains)


def test_divergences_are_counted():
    case = conjugate.normal()
    guide = case.guide(scale=300.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chains = run(case, guide, num_warmup=0, num_samples=20, num_leapfrog=20)
    assert chains.num_divergences > 0
    assert f"{chains.num_divergences} moves diverged" in str(chains)
    assert chains.num_leapfrog == 20


@each_method
def test_a_model_without_a_density_anywhere_is_refused(method):
    def model(bad):
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("bad", x * bad)

    guide = pf.AutoFlow(model, "affine", model_args=(torch.tensor(0.0),))
    with pytest.raises(ValueError, match=r"polish: .*density"):
        pf.polish(model, guide, model_args=(torch.tensor(math.nan),), method=method)


# Step size


def test_dual_averaging_finds_the_step_of_a_known_acceptance():
    search = DualAveraging(0.8, 10.0)
    steps = []
    for noise in torch.randn(1000).tolist():
        search.update(math.exp(-search.step) + 0.2 * noise)
        steps.append(search.step)
    search.settle()
    assert max(steps[-100:]) > 1.2 * search.step
    assert math.exp(-search.step) == pytest.approx(0.8, abs=0.02)


def test_trajectories_are_as_long_as_the_posterior_is_wide():
    case = conjugate.correlated()
    length = {"num_warmup": 100, "num_samples": 60}
    right = run(case, case.guide(scale=1.0, shift=0.0), **length)
    slanted = run(case, case.guide(scale=1.0, shift=0.0, outer="diagonal"), **length)
    assert right.num_leapfrog < 6 < 8 < slanted.num_leapfrog
    assert (slanted.mcse()["x"] < 0.1 * case.sd).all()
    assert ((slanted.mean()["x"] - case.mean).abs() < ERRORS * slanted.mcse()["x"]).all()
    noise = torch.randn(300, 60, dtype=torch.float64)
    assert _widest(noise) < 1.15
    noise[:, 0] += 5 * noise[:, 1]
    assert _widest(noise) == pytest.approx(math.sqrt(26), rel=0.35)


def test_leapfrog_goes_back_to_where_it_came_from():
    case = conjugate.positive()
    guide = case.guide()
    guide(case.data)
    space = _space(case, guide)
    torch.manual_seed(0)
    start = space.draw(8)
    sampler = Hamiltonian(space, start, 0.8, None, "test")
    momentum = torch.randn_like(start)
    end, turned, broken = sampler._trajectory(momentum, 5)
    sampler._state = end
    back, again, _ = sampler._trajectory(-turned, 5)
    assert not broken.any()
    assert not torch.allclose(end.noise, start, atol=0.1)
    torch.testing.assert_close(back.noise, start)
    torch.testing.assert_close(-again, momentum)


def test_gradients_are_those_of_the_density():
    case = conjugate.simplex()
    guide = case.guide()
    space = _space(case, guide)
    noise = space.draw(4)
    points = space.look(noise)
    step = 1e-5
    for i in range(noise.shape[-1]):
        shift = step * torch.eye(noise.shape[-1], dtype=noise.dtype)[i]
        up, down = space.look(noise + shift).log_target, space.look(noise - shift).log_target
        torch.testing.assert_close(
            (up - down) / (2 * step), points.grad[:, i], rtol=1e-6, atol=1e-6
        )
    u, log_p, log_q = space.weigh(noise)
    torch.testing.assert_close(log_p - log_q, points.log_target - space.log_base(noise))
    torch.testing.assert_close(log_q, guide.get_posterior().log_prob(u).detach())


def _space(case, guide):
    guide(case.data)
    with pyro.validation_enabled(False):
        return _samplers.BaseSpace.of(case.model, guide, (case.data,), {}, "test")


# Arguments


def test_other_guides_are_refused():
    case = conjugate.normal()
    with pytest.raises(TypeError, match=r"expected an AutoFlow.*got AutoNormal.*posterior_dra"):
        run(case, AutoNormal(case.model))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "nuts"}, r"expected method among \('hmc', 'independence'\), got 'nuts'"),
        ({"num_chains": 0}, "expected num_chains to be an int >= 1, got 0"),
        ({"num_samples": 2.0}, "expected num_samples to be an int >= 1, got 2.0"),
        ({"num_warmup": -1}, "expected num_warmup to be an int >= 0, got -1"),
        ({"num_leapfrog": 0}, "expected num_leapfrog to be an int >= 1, got 0"),
        ({"target_accept": 1.0}, "expected target_accept between 0 and 1, got 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(kwargs, message):
    case = conjugate.normal()
    with pytest.raises(ValueError, match=message):
        run(case, case.guide(), **kwargs)


def test_a_model_of_other_latents_is_refused():
    case = conjugate.normal()

    def other(y):
        pyro.sample("x", dist.Normal(y.new_zeros(()), 1.0))
        pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))

    with pytest.raises(ValueError, match=r"\['z'\] of the model are missing"):
        pf.polish(other, case.guide(), model_args=(case.data,))


def angles():
    pyro.sample("x", dist.VonMises(torch.tensor(1.0), torch.tensor(3.0)))


@pytest.mark.filterwarnings("ignore:polish. the guide is not to be trusted")
def test_hmc_refuses_a_base_of_angles_by_name_and_independence_takes_it():
    guide = pf.AutoFlow(angles, "ncsf")
    with pytest.raises(ValueError, match="that of this guide is Uniform: take method='indep"):
        pf.polish(angles, guide)
    chains = pf.polish(
        angles, guide, method="independence", num_samples=500, seed=0, progress_bar=False
    )
    x = chains.values["x"].flatten()
    assert float(x.sin().mean().atan2(x.cos().mean())) == pytest.approx(1.0, abs=0.1)


@pytest.mark.filterwarnings("ignore:.*do not trust")
def test_hmc_takes_other_bases_of_real_vectors():
    case = conjugate.normal(torch.float32)
    guide = pf.AutoFlow(case.model, "affine", base="student_t", model_args=(case.data,))
    chains = run(case, guide)
    assert abs(float(chains.mean()["x"] - case.mean)) < ERRORS * float(chains.mcse()["x"])


# Dtypes, devices, seeds, sites


@each_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype, method):
    case = conjugate.correlated(dtype)
    chains = run(case, case.guide(), method=method, num_samples=50, num_warmup=50)
    assert chains.values["x"].shape == (16, 50, 2)
    assert chains.values["x"].dtype == chains.unconstrained.dtype == chains.noise.dtype == dtype
    assert chains.log_p.dtype == chains.log_q.dtype == torch.float64
    assert chains.mean()["x"].dtype == dtype
    guide_log_q = case.guide().get_posterior().log_prob(chains.unconstrained.flatten(0, 1))
    torch.testing.assert_close(chains.log_q.flatten(), guide_log_q.double(), rtol=1e-4, atol=1e-3)


@each_method
def test_all_is_made_on_the_device_of_the_guide(method):
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros_like(y), torch.ones_like(y)).to_event(1))
        pyro.sample("y", dist.Normal(x, torch.ones_like(y)).to_event(1), obs=y)

    y = torch.tensor([1.0, 2.0])
    guide = pf.AutoFlow(model, "affine", model_args=(y,))
    with pretended_device() as device:
        moved = guide.to(device)
        chains = pf.polish(
            model,
            moved,
            model_args=(y.to(device),),
            method=method,
            num_samples=10,
            num_warmup=10,
            num_chains=4,
            progress_bar=False,
        )
        assert chains.values["x"].device.type == device.type
        assert chains.mean()["x"].device.type == device.type


@each_method
def test_seeds_leave_the_generators_alone_and_repeat(method):
    case = conjugate.normal()
    guide = case.guide()
    before = torch.get_rng_state(), random.getstate()
    options = {"method": method, "num_samples": 20, "num_warmup": 20}
    first, second = (run(case, guide, **options) for _ in range(2))
    assert torch.equal(first.values["x"], second.values["x"])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    other = run(case, guide, **options, seed=2)
    assert not torch.equal(first.values["x"], other.values["x"])


SCHOOLS = (torch.tensor([10.0, 5.0, 8.0]), torch.tensor([1.0, 2.0, 0.5]))


def schools(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(y)):
        trans = pyro.sample("trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def polished_schools(**kwargs):
    guide = pf.AutoFlow(schools, "affine", model_args=SCHOOLS)
    options = {"num_samples": 30, "num_warmup": 40, "seed": 0, "progress_bar": False, **kwargs}
    return pf.polish(schools, guide, model_args=SCHOOLS, **options)


def test_deterministic_sites_come_along():
    v = polished_schools().values
    assert list(v) == ["mu", "tau", "trans", "theta"]
    assert (v["tau"] > 0).all()
    theta = v["mu"][..., None] + v["tau"][..., None] * v["trans"]
    torch.testing.assert_close(v["theta"], theta)


def test_samples_as_pyro_gives_them():
    chains = polished_schools(num_chains=3)
    assert chains.get_samples()["theta"].shape == (90, 3)
    assert chains.get_samples(group_by_chain=True)["theta"].shape == (3, 30, 3)


# Course


def test_an_interrupt_keeps_what_there_is(monkeypatch):
    case = conjugate.normal()
    calls, move = [], Hamiltonian.move

    def interrupted(self, adapt):
        calls.append(adapt)
        if len(calls) == 31:
            raise KeyboardInterrupt
        return move(self, adapt)

    monkeypatch.setattr(Hamiltonian, "move", interrupted)
    chains = run(case, case.guide(), num_warmup=20, num_samples=50)
    assert chains.interrupted
    assert chains.values["x"].shape == (16, 10)
    assert "10 draws, interrupted" in str(chains)
    calls[:] = [True] * 15
    with pytest.raises(KeyboardInterrupt):
        run(case, case.guide(), num_warmup=20, num_samples=50)


def test_the_bar_is_shown_where_it_is_asked_for(capsys):
    case = conjugate.normal()
    run(case, case.guide(), num_warmup=5, num_samples=5)
    assert capsys.readouterr().err == ""
    run(case, case.guide(), num_warmup=5, num_samples=5, progress_bar=True)
    assert "hmc, 16 chains" in capsys.readouterr().err


def test_without_arviz_the_report_says_what_is_missing(monkeypatch):
    found = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "arviz":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    text = str(polished_schools())
    assert "pip install pyroflows[arviz]" in text
    assert "r_hat" not in text


# ArviZ


@pytest.fixture
def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz")


def group(data, name):
    return data[name].to_dataset() if hasattr(data, "children") else data[name]


@pytest.mark.arviz
def test_report_has_r_hat_and_effective_size(arviz):
    case = conjugate.correlated()
    chains = run(case, case.guide())
    text = str(chains)
    assert "r_hat" in text
    assert "The chains agree: largest R-hat 1.0" in text
    bimodal = conjugate.two_modes()
    stuck = run(bimodal, bimodal.wide_guide(), num_warmup=30, num_samples=30)
    assert "The chains do not agree yet: largest R-hat" in str(stuck)


@pytest.mark.arviz
def test_chains_as_inference_data(arviz):
    chains = polished_schools(num_chains=4)
    data = pf.to_inference_data(chains)
    posterior, stats = group(data, "posterior"), group(data, "sample_stats")
    assert posterior["theta"].dims == ("chain", "draw", "school")
    assert posterior["theta"].shape == (4, 30, 3)
    assert posterior["mu"].values == pytest.approx(chains.values["mu"].numpy())
    assert posterior["trans"].values == pytest.approx(chains.values["trans"].numpy())
    assert set(stats.data_vars) == {"lp", "lp_approx", "acceptance_rate", "diverging", "step_size"}
    assert stats["diverging"].dtype == bool
    named = pf.to_inference_data(chains, coords={"school": ["a", "b", "c"]})
    assert list(group(named, "posterior")["school"].values) == ["a", "b", "c"]
    assert "r_hat" in arviz.summary(data, var_names=["mu"]).columns


@pytest.mark.arviz
def test_chains_and_weighted_draws_beside_a_guide(arviz):
    guide = pf.AutoFlow(schools, "affine", model_args=SCHOOLS)
    chains = polished_schools()
    data = pf.to_inference_data(guide, schools, model_args=SCHOOLS, seed=0)
    draws = pf.posterior_draws(schools, guide, model_args=SCHOOLS, num_samples=2000, seed=0)
    fits = {"guide": data, "chains": chains, "weighted": draws}
    table = pf.compare_fits(fits, reference="chains")
    assert table.loc["chains", "num_draws"] == 480
    assert table.loc["guide", "max_mean_error"] < 1.0
    assert table.loc["weighted", "max_mean_error"] < 0.6
    assert len(pf.plot_posteriors(fits, var_names=["mu", "theta"]).axes) == 4


@pytest.mark.arviz
def test_a_model_is_asked_for_with_a_guide_and_not_with_chains(arviz):
    guide = pf.AutoFlow(schools, "affine", model_args=SCHOOLS)
    with pytest.raises(TypeError, match="expected a model with the guide AutoFlow"):
        pf.to_inference_data(guide)
    with pytest.raises(TypeError, match="chains hold their draws"):
        pf.to_inference_data(polished_schools(), schools)
