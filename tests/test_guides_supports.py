"""AutoFlow over every structure and support a model with continuous latents may have."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO
from pyro.infer.autoguide import init_to_value
from torch import Tensor
from torch.distributions import biject_to
from torch.testing import assert_close

import pyroflows as pf

ROOT = Path(__file__).parent.parent
TINY = {"num_layers": 1, "hidden_dims": (8,)}
Y = torch.tensor([0.3, -1.2, 0.7, 2.1, 0.4, -0.6])


@pytest.fixture(autouse=True)
def _fresh():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(before)


def scalar():
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y)


def positive():
    scale = pyro.sample("scale", dist.HalfCauchy(2.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Normal(rate, scale), obs=Y)


def plate():
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("groups", 6):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, 0.5), obs=Y)


def plate_first():
    with pyro.plate("groups", 6):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, scale), obs=Y)


def nested_plates():
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("inner", 3, dim=-1):
            b = pyro.sample("b", dist.LogNormal(a, 0.5))
            pyro.sample("y", dist.Normal(a, b), obs=Y.reshape(2, 3))


def crossed_plates():
    rows = pyro.plate("rows", 2, dim=-2)
    columns = pyro.plate("columns", 3, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with columns:
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with rows, columns:
        pyro.sample("y", dist.Normal(a + b, 0.7), obs=Y.reshape(2, 3))


def sequential_plate():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", 3):
        pyro.sample(f"y_{i}", dist.Normal(mu, 1.0), obs=Y[i])


def event_dims():
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    v = pyro.sample("v", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    mean = w[..., 0].sum(-1) - w[..., 1:].sum((-1, -2)) + v[..., 0] - v[..., 1]
    pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor(0.5))


def event_in_plate():
    with pyro.plate("groups", 3):
        v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(v, 0.5).to_event(1), obs=Y.reshape(3, 2))


def simplex():
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Categorical(p), obs=torch.tensor([0, 1, 2, 2]))


def simplex_in_plate():
    with pyro.plate("groups", 2):
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
        pyro.sample("y", dist.Categorical(p), obs=torch.tensor([0, 2]))


def corr_cholesky():
    with pyro.plate("groups", 2):
        factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
        y = Y.reshape(2, 3)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor), obs=y)


def improper(support, shape, low: float, high: float) -> Callable[[], None]:
    """A flat prior on a support, and observations that make the posterior proper."""

    def model():
        x = pyro.sample("x", dist.ImproperUniform(support, (), shape))
        loc = torch.linspace(low, high, math.prod(shape)).reshape(shape)
        pyro.factor("tether", dist.Normal(loc, 0.5).to_event(len(shape)).log_prob(x))

    return model


def intervals():
    a = pyro.sample("a", dist.Uniform(-2.0, 3.0))
    b = pyro.sample("b", dist.Beta(2.0, 3.0))
    pyro.sample("y", dist.Normal(a + b, 1.0), obs=torch.tensor(0.5))


def dependent_support():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(-1.0, 2.0))
    pyro.sample("y", dist.Normal(a * b, 1.0), obs=torch.tensor(0.5))


def factor():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("tilt", -0.5 * (x - 1.0) ** 2 / 0.1)


def mask():
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 6), poutine.mask(mask=torch.tensor([1, 1, 0, 1, 0, 1]).bool()):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, 0.5), obs=Y)
    with pyro.plate("others", 6):
        gap = pyro.sample("gap", dist.Normal(theta, 1.0))
        pyro.sample("z", dist.Normal(gap, 1.0), obs=Y)


def scaled():
    with poutine.scale(scale=3.0):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor(0.5))


def subsampled_data():
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 6, subsample_size=3) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y[i])


class Case(NamedTuple):
    model: Callable[[], None]
    shapes: dict[str, tuple[int, ...]]
    dim: int


BOUNDED = {
    "greater_than": (constraints.greater_than(2.0), (), 2.5, 2.5),
    "greater_than_eq": (constraints.greater_than_eq(-1.0), (), 0.0, 0.0),
    "less_than": (constraints.less_than(-2.0), (), -2.5, -2.5),
    "interval": (constraints.interval(-3.0, 5.0), (), 1.0, 1.0),
    "half_open_interval": (constraints.half_open_interval(-3.0, 5.0), (), 1.0, 1.0),
    "unit_interval": (constraints.unit_interval, (), 0.5, 0.5),
    "positive": (constraints.positive, (), 1.0, 1.0),
    "nonnegative": (constraints.nonnegative, (), 1.0, 1.0),
    "softplus_positive": (constraints.softplus_positive, (), 1.0, 1.0),
    "real": (constraints.real, (), 1.0, 1.0),
    "real_vector": (constraints.real_vector, (3,), -1.0, 1.0),
    "positive_vector": (constraints.independent(constraints.positive, 1), (3,), 1.0, 2.0),
    "ordered_vector": (constraints.ordered_vector, (3,), -1.0, 1.0),
    "positive_ordered_vector": (constraints.positive_ordered_vector, (3,), 1.0, 3.0),
    "corr_matrix": (constraints.corr_matrix, (3, 3), 0.0, 0.0),
}

CASES = {
    "scalar": Case(scalar, {"mu": ()}, 1),
    "positive": Case(positive, {"scale": (), "rate": ()}, 2),
    "plate": Case(plate, {"mu": (), "theta": (6,)}, 7),
    "plate_first": Case(plate_first, {"scale": (6,)}, 6),
    "nested_plates": Case(nested_plates, {"a": (2, 1), "b": (2, 3)}, 8),
    "crossed_plates": Case(crossed_plates, {"a": (2, 1), "b": (3,)}, 5),
    "sequential_plate": Case(sequential_plate, {"mu": ()}, 1),
    "event_dims": Case(event_dims, {"w": (2, 3), "v": (2,)}, 8),
    "event_in_plate": Case(event_in_plate, {"v": (3, 2)}, 6),
    "simplex": Case(simplex, {"p": (3,)}, 2),
    "simplex_in_plate": Case(simplex_in_plate, {"p": (2, 3)}, 4),
    "corr_cholesky": Case(corr_cholesky, {"factor": (2, 3, 3)}, 6),
    "intervals": Case(intervals, {"a": (), "b": ()}, 2),
    "dependent_support": Case(dependent_support, {"a": (), "b": ()}, 2),
    "factor": Case(factor, {"x": ()}, 1),
    "mask": Case(mask, {"mu": (), "theta": (6,), "gap": (6,)}, 13),
    "scaled": Case(scaled, {"mu": ()}, 1),
    "subsampled_data": Case(subsampled_data, {"mu": ()}, 1),
    **{
        f"improper_{name}": Case(improper(*spec), {"x": spec[1]}, 3 if spec[1] else 1)
        for name, spec in BOUNDED.items()
    },
}

# Particles are drawn in one outer plate, so these leave the model no room for one.
NOT_VECTORIZED = {"sequential_plate"}
# Predictive samples the prior first, which flat ones cannot, and takes the event dimension of a
# simplex outside of plates for a plate.
NOT_PARALLEL = (sequential_plate, simplex)
# Those a structure's plates alone tell apart: enough where the support plays no part.
SOME = ("scalar", "positive", "plate_first", "nested_plates", "simplex_in_plate", "mask")


def guide_of(case: Case, init: str = "point") -> pf.AutoFlow:
    return pf.AutoFlow(case.model, "nsf_coupling", init=init, model_args=(), **TINY)


def perturb(guide: pf.AutoFlow) -> pf.AutoFlow:
    """Move every parameter, so that nothing is an identity by accident."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return guide


def trained(guide: pf.AutoFlow) -> dict[str, Tensor]:
    """What training has to move: all but the triangle below the diagonal of a 1 x 1 matrix."""
    return {
        name: p.detach().clone()
        for name, p in guide.named_parameters()
        if not (guide.latent_dim == 1 and name.endswith("lower"))
    }


def unmoved(guide: pf.AutoFlow, before: dict[str, Tensor]) -> list[str]:
    now = dict(guide.named_parameters())
    return [name for name, value in before.items() if torch.equal(now[name], value)]


def draws(guide: pf.AutoFlow, *batch: int) -> dict[str, Tensor]:
    with torch.no_grad():
        return guide.unpack(guide.get_posterior().rsample(batch))


all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
some_cases = pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=SOME)


@all_cases
def test_a_draw_has_the_models_shapes_and_lies_in_the_support(case: Case):
    guide = perturb(guide_of(case))
    assert guide.latent_dim == case.dim
    trace = poutine.trace(guide).get_trace()
    sites = {name: trace.nodes[name]["value"] for name in case.shapes}
    assert {name: tuple(value.shape) for name, value in sites.items()} == case.shapes
    model = poutine.trace(poutine.condition(case.model, data=sites)).get_trace()
    for name, value in sites.items():
        fn = model.nodes[name]["fn"]
        assert fn.support.check(value).all(), name
    assert torch.isfinite(model.log_prob_sum())


@all_cases
def test_log_prob_is_that_of_the_guides_own_trace(case: Case):
    guide = perturb(guide_of(case))
    for _ in range(2):
        trace = poutine.trace(guide).get_trace()
        sites = {name: trace.nodes[name]["value"].detach().clone() for name in case.shapes}
        log_prob = guide.log_prob(sites)
        assert log_prob.shape == ()
        assert_close(log_prob, trace.log_prob_sum(), atol=1e-3, rtol=1e-4)


@all_cases
def test_log_prob_of_a_batch_is_that_of_a_loop(case: Case):
    guide = perturb(guide_of(case))
    sites = draws(guide, 2, 3)
    assert {k: tuple(v.shape) for k, v in sites.items()} == {
        k: (2, 3, *shape) for k, shape in case.shapes.items()
    }
    batched = guide.log_prob(sites)
    assert batched.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = guide.log_prob({name: value[i, j] for name, value in sites.items()})
            assert_close(batched[i, j], one, atol=1e-3, rtol=1e-4)


@all_cases
def test_pack_undoes_unpack(case: Case):
    guide = guide_of(case)
    u = guide.get_posterior().rsample((5,)).detach()
    assert u.shape == (5, case.dim)
    assert_close(guide.pack(guide.unpack(u)), u, atol=2e-3, rtol=1e-3)


@all_cases
def test_svi_trains_every_parameter(case: Case):
    guide = guide_of(case)
    before = trained(guide)
    svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        assert math.isfinite(svi.step())
    assert before
    assert not unmoved(guide, before)


@pytest.mark.parametrize("name", sorted(set(CASES) - NOT_VECTORIZED - {"subsampled_data"}))
def test_vectorized_particles_agree_with_single_ones(name: str):
    case = CASES[name]
    guide = perturb(guide_of(case))
    one = Trace_ELBO(num_particles=1)
    many = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=2)
    pyro.set_rng_seed(1)
    losses = torch.tensor([one.loss(case.model, guide) for _ in range(64)])
    error = 6 * losses.std() / 8 + 0.05
    assert abs(many.loss(case.model, guide) - losses.mean()) < error


@some_cases
def test_path_elbo_agrees_with_trace_elbo(case: Case):
    guide = perturb(guide_of(case))
    losses = torch.tensor([Trace_ELBO().loss(case.model, guide) for _ in range(64)])
    path = pf.PathELBO(num_particles=256).loss(case.model, guide)
    assert abs(path - losses.mean()) < 6 * losses.std() / 8 + 0.05


@all_cases
def test_median_and_quantiles(case: Case):
    guide = guide_of(case)
    median = guide.median()
    assert {name: tuple(value.shape) for name, value in median.items()} == case.shapes
    quantiles = guide.quantiles([0.1, 0.5, 0.9])
    for name, shape in case.shapes.items():
        low, middle, high = quantiles[name]
        assert low.shape == shape
        assert (low <= middle).all()
        assert (middle <= high).all()
        assert not quantiles[name].requires_grad


@all_cases
def test_parallel_predictive(case: Case):
    if case.model in NOT_PARALLEL or "ImproperUniform" in case.model.__code__.co_names:
        pytest.skip("Pyro's Predictive cannot run this model in parallel under any guide")
    guide = guide_of(case)
    sites = list(case.shapes)
    predictive = Predictive(
        case.model, guide=guide, num_samples=7, parallel=True, return_sites=sites
    )
    samples = predictive()
    for name, shape in case.shapes.items():
        assert samples[name].shape[0] == 7
        assert samples[name].shape[1:].numel() == math.prod(shape)
        assert len(samples[name].reshape(7, -1).unique(dim=0)) == 7


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@some_cases
def test_jit_trace_elbo(case: Case):
    guide = guide_of(case)
    svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 0.01}), JitTrace_ELBO())
    before = trained(guide)
    for _ in range(2):
        assert math.isfinite(svi.step())
    assert not unmoved(guide, before)


@all_cases
def test_copies_score_the_same_before_and_after_use(case: Case):
    guide = guide_of(case)
    for _ in range(2):  # fresh, then after a step of SVI
        sites = draws(guide, 4)
        expected = guide.log_prob(sites).detach()
        assert_close(copy.deepcopy(guide).log_prob(sites).detach(), expected)
        other = guide_of(case)
        other.load_state_dict(guide.state_dict())
        assert_close(other.log_prob(sites).detach(), expected)
        assert_close(guide.log_prob(sites).detach(), expected)
        SVI(case.model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_holds_the_guide(when: str, tmp_path):
    guide = guide_of(CASES["plate"])
    if when == "after":
        SVI(plate, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
    sites = draws(guide, 4)
    torch.save(guide.state_dict(), tmp_path / "guide.pt")
    fresh = pf.AutoFlow(plate, "nsf_coupling", model_args=(), **TINY)
    fresh.load_state_dict(torch.load(tmp_path / "guide.pt", weights_only=True))
    assert_close(fresh.log_prob(sites), guide.log_prob(sites))
    pickled = pickle.loads(pickle.dumps(guide))
    assert_close(pickled.log_prob(sites), guide.log_prob(sites))
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    assert_close(torch.load(buffer, weights_only=False).log_prob(sites), guide.log_prob(sites))
    assert guide.model is not None
    guide()  # still works: writing it down changed nothing


def test_a_deep_copy_keeps_the_model_and_trains_apart():
    guide = guide_of(CASES["scalar"])
    SVI(scalar, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
    twin = copy.deepcopy(guide)
    assert twin.model is not None
    before = trained(guide)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.1)
    Trace_ELBO().differentiable_loss(scalar, twin).backward()
    optimizer.step()
    assert unmoved(guide, before) == list(before)
    assert not unmoved(twin, before)


def test_a_deep_copy_before_the_first_call_works():
    guide = pf.AutoFlow(scalar, "nsf_coupling", **TINY)
    twin = copy.deepcopy(guide)
    assert set(twin()) == {"mu"}
    assert set(guide()) == {"mu"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_to_double(when: str):
    guide = guide_of(CASES["plate"])
    if when == "after":
        guide()
    guide.double()
    assert guide.dtype == torch.float64
    u = guide.get_posterior().rsample((3,))
    assert u.dtype == torch.float64
    sites = guide.unpack(u)
    assert {v.dtype for v in sites.values()} == {torch.float64}
    assert guide.log_prob(sites).dtype == torch.float64
    assert guide()["theta"].dtype == torch.float64


def test_to_double_before_the_model_is_known():
    guide = pf.AutoFlow(scalar, "nsf_coupling", **TINY).double()
    assert guide()["mu"].dtype == torch.float64


def test_an_optimizer_takes_the_parameters_before_any_call():
    guide = guide_of(CASES["plate"])
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.01)
    known = {id(p) for p in guide.parameters()}
    before = trained(guide)
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True)
    for _ in range(2):
        optimizer.zero_grad()
        elbo.differentiable_loss(plate, guide).backward()
        optimizer.step()
    assert {id(p) for p in guide.parameters()} == known
    assert not unmoved(guide, before)


@pytest.mark.slow
def test_a_state_dict_means_the_same_in_a_fresh_process(tmp_path):
    """Built from another seed there: no permutation or mask may be left to chance."""
    saved = []
    for flow in pf.available_flows():
        options = {} if flow in ("affine", "diagonal") else {"hidden_dims": (8,)}
        options["init"] = "point"
        guide = perturb(pf.AutoFlow(plate, flow, model_args=(), **options))
        sites = draws(guide, 4)
        saved.append((flow, options, guide.state_dict(), sites, guide.log_prob(sites).detach()))
    torch.save(saved, tmp_path / "state.pt")
    script = f"""
        import pyro, torch
        import pyroflows as pf
        from tests.test_guides_supports import plate
        for flow, options, state, sites, expected in torch.load({str(tmp_path / "state.pt")!r}):
            pyro.set_rng_seed(12345)
            guide = pf.AutoFlow(plate, flow, model_args=(), **options)
            guide.load_state_dict(state)
            torch.testing.assert_close(guide.log_prob(sites), expected, atol=1e-4, rtol=1e-4)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# The density by hand: log q(u) less the log-Jacobian of each support's map, written out.


def posterior_log_prob(guide: pf.AutoFlow, *coordinates: Tensor) -> Tensor:
    return guide.get_posterior().log_prob(torch.stack(coordinates, -1))


def test_log_prob_of_positive_latents_by_hand():
    guide = perturb(guide_of(CASES["positive"]))
    scale, rate = torch.tensor([0.5, 2.0]), torch.tensor([1.5, 0.2])
    expected = posterior_log_prob(guide, scale.log(), rate.log()) - scale.log() - rate.log()
    assert_close(guide.log_prob({"scale": scale, "rate": rate}), expected)


def test_log_prob_on_intervals_by_hand():
    guide = perturb(guide_of(CASES["intervals"]))
    a, b = torch.tensor([-1.0, 2.5]), torch.tensor([0.2, 0.9])
    p = (a + 2) / 5
    expected = posterior_log_prob(guide, p.logit(), b.logit())
    expected = expected - (5 * p * (1 - p)).log() - (b * (1 - b)).log()
    assert_close(guide.log_prob({"a": a, "b": b}), expected, atol=1e-4, rtol=1e-4)


def test_log_prob_of_an_ordered_vector_by_hand():
    guide = perturb(guide_of(CASES["improper_ordered_vector"]))
    x = torch.tensor([[-1.0, 0.5, 2.0], [0.0, 0.1, 3.0]])
    gaps = x.diff(dim=-1).log()
    expected = posterior_log_prob(guide, x[:, 0], gaps[:, 0], gaps[:, 1]) - gaps.sum(-1)
    assert_close(guide.log_prob({"x": x}), expected, atol=1e-4, rtol=1e-4)


def test_log_prob_in_plates_by_hand():
    guide = perturb(guide_of(CASES["nested_plates"]))
    sites = {"a": torch.randn(4, 2, 1), "b": torch.rand(4, 2, 3) + 0.1}
    u = torch.cat([sites["a"].flatten(1), sites["b"].log().flatten(1)], -1)
    expected = guide.get_posterior().log_prob(u) - sites["b"].log().flatten(1).sum(-1)
    assert_close(guide.log_prob(sites), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["simplex", "corr_cholesky", "improper_corr_matrix"])
def test_log_prob_on_matrices_and_simplices_by_its_transform(name: str):
    case = CASES[name]
    guide = perturb(guide_of(case))
    (site,) = case.shapes
    u = guide.get_posterior().rsample((4,)).detach()
    trace = poutine.trace(case.model).get_trace() if "improper" not in name else None
    support = constraints.corr_matrix if trace is None else trace.nodes[site]["fn"].support
    transform = biject_to(support)
    x = guide.unpack(u)[site]
    v = transform.inv(x)
    jacobian = transform.log_abs_det_jacobian(v, x).reshape(4, -1).sum(-1)
    expected = guide.get_posterior().log_prob(u) - jacobian
    assert_close(guide.log_prob({site: x}), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("flow", ["affine", "nsf", "nsf_coupling", "maf"])
@pytest.mark.parametrize(
    "name", ["scalar", "factor", "improper_unit_interval", "improper_positive"]
)
def test_the_density_of_one_latent_integrates_to_one(name: str, flow: str):
    case = CASES[name]
    guide = perturb(pf.AutoFlow(case.model, flow, model_args=()))
    (site,) = case.shapes
    edges = torch.linspace(-14, 14, 40_001, dtype=torch.float64)  # unconstrained, then mapped
    if name == "improper_unit_interval":
        edges = edges.sigmoid()
    elif name == "improper_positive":
        edges = edges.exp()
    middle = ((edges[1:] + edges[:-1]) / 2).float()
    with torch.no_grad():
        mass = (guide.log_prob({site: middle}).double().exp() * edges.diff()).sum()
    assert abs(mass - 1) < 5e-3


# Initialisation: where the posterior starts.


@all_cases
def test_every_model_is_climbed(case: Case):
    """No fall-back and no warning: each of these has a mode, and broadcasts."""
    guide = guide_of(case, init="auto")
    assert "fell back" not in guide.report
    if case.model not in (sequential_plate, subsampled_data):
        start = pf.importance_diagnostics(case.model, guide, num_samples=500, seed=0)
        assert start.log_z - start.elbo < 1.5


def test_a_gaussian_posterior_is_found_before_training():
    """The mode and the curvature there are the posterior itself."""
    guide = pf.AutoFlow(plate, "affine", model_args=())
    report = pf.importance_diagnostics(plate, guide, num_samples=1000, seed=0)
    assert report.pareto_k < 0.3
    assert report.log_z - report.elbo < 0.01


@pytest.mark.slow
def test_every_flow_starts_near_the_outer_affine():
    for flow in set(pf.available_flows()) - {"affine", "diagonal", "ncsf"}:  # angles have no affine
        guide = pf.AutoFlow(plate, flow, outer="full", model_args=())
        report = pf.importance_diagnostics(plate, guide, num_samples=1000, seed=0)
        assert report.log_z - report.elbo < 0.5, flow


@pytest.mark.parametrize("outer", ["auto", "full", "diagonal", "low_rank", None])
def test_each_outer_affine_trains(outer: str | None):
    guide = pf.AutoFlow(plate, "nsf_coupling", outer=outer, model_args=(), **TINY)
    svi = SVI(plate, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert math.isfinite(svi.step())
    assert guide.log_prob(draws(guide, 3)).shape == (3,)
    assert isinstance(guide.report, str)
    assert guide.report


def test_the_start_may_be_given():
    init = init_to_value(values={"mu": torch.tensor(7.0)})
    guide = pf.AutoFlow(scalar, "affine", init="point", init_loc_fn=init, model_args=())
    assert abs(guide.median()["mu"] - 7.0) < 0.5


def test_neutra_with_nuts_finds_the_posterior():
    guide = pf.AutoFlow(plate, "nsf_coupling", model_args=(), **TINY)
    neutra = pf.NeuTraReparam(guide)
    kernel = pyro.infer.NUTS(neutra.reparam(plate), max_tree_depth=4)
    mcmc = pyro.infer.MCMC(kernel, num_samples=60, warmup_steps=30, disable_progbar=True)
    mcmc.run()
    (latent,) = mcmc.get_samples().values()
    sites = neutra.transform_sample(latent)
    # theta_j given y_j: an average of the group's datum and of mu, whose own mean is that of y.
    assert abs(sites["theta"].reshape(60, 6).mean(0) - (0.8 * Y + 0.2 * 0.27)).max() < 0.4


def mixture_of(components):
    weights = torch.tensor([0.3, 0.7]).expand(components.batch_shape)
    return dist.MixtureSameFamily(dist.Categorical(weights), components)


TWO = torch.tensor([1.0, 2.0])
PAIRS = torch.stack([TWO, 3 * TWO])
MIXTURES = {
    "positive": (lambda: dist.LogNormal(TWO - 1, 0.2), constraints.positive),
    "interval": (lambda: dist.Uniform(torch.zeros(2), 3.0), constraints.interval(0.0, 3.0)),
    "bound": (lambda: dist.Pareto(torch.ones(2), TWO), constraints.greater_than_eq(1.0)),
    "unit": (lambda: dist.Beta(TWO, 3.0), constraints.unit_interval),
    "real": (lambda: dist.Normal(TWO, 1.0), constraints.real),
    "simplex": (lambda: dist.Dirichlet(PAIRS), constraints.simplex),
    "vector": (
        lambda: dist.Gamma(PAIRS, 1.0).to_event(1),
        constraints.independent(constraints.positive, 1),
    ),
    "batch": (lambda: dist.LogNormal(torch.zeros(3, 2), 0.2), constraints.positive),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_lives_where_its_components_do(name):
    components, support = MIXTURES[name]

    def model():
        fn = mixture_of(components())
        pyro.sample("x", fn.to_event(len(fn.batch_shape)))

    guide = pf.AutoFlow(model, "affine")
    fn = mixture_of(components())
    (site,) = guide.latents.sites.values()
    raw = torch.randn(50, *site.unconstrained_shape)
    assert_close(site.transform(raw), biject_to(support)(raw))
    values = guide.unpack(guide.get_posterior().rsample((2000,)))["x"]
    assert values.shape == (2000, *fn.shape())
    assert fn.support.check(values).all()
    assert guide.log_prob(guide()).isfinite()
    assert copy.deepcopy(guide).double().log_prob(guide()).isfinite()
    report = pf.importance_diagnostics(model, guide, seed=0)
    assert report.log_z == pytest.approx(0.0, abs=0.4)


@pytest.mark.parametrize(
    "components",
    [dist.Uniform(torch.zeros(2), TWO), dist.Pareto(TWO, 1.0), dist.VonMises(TWO, 1.0)],
    ids=["uniform", "pareto", "angles"],
)
def test_components_that_live_apart_are_refused(components):
    with pytest.raises(ValueError, match=r"knows no bijection .* site 'x'|the angle 'x'"):
        pf.AutoFlow(lambda: pyro.sample("x", mixture_of(components)), "affine")
