"""``vectorized_log_density``: a model as a function of a batch of points."""

import json
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch.testing import assert_close

import pyroflows as pf
from tests.benchmarks import log_density as benchmark

Y = torch.tensor([0.3, -1.2, 2.0, 0.7])


def model(y, *, shift=0.0):
    mu = pyro.sample("mu", dist.Normal(shift, 10.0))
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, s), obs=y)


def potential(u):
    fn = initialize_model(model, model_args=(Y,))[1]
    return torch.stack([-fn({"mu": row[0], "s": row[1]}) for row in u])


def test_it_is_minus_the_potential_of_pyro():
    log_density = pf.vectorized_log_density(model, model_args=(Y,))
    u = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(25):  # by handlers first, then from a flat graph
        assert_close(log_density(u), potential(u))
    assert log_density.dim == 2
    assert list(log_density.latents.sites) == ["mu", "s"]
    assert log_density.report == (
        "all points in one run of the model, under torch.vmap; from a flat graph, without running "
        "it again"
    )
    assert str(log_density).startswith("log density of mu (), s () on 2 unconstrained coordinates")


@pytest.mark.parametrize("method", ["vmap", "plate", "loop"])
def test_the_method_may_be_chosen(method):
    log_density = pf.vectorized_log_density(
        model, model_args=(Y,), model_kwargs={"shift": 1.0}, method=method
    )
    assert log_density.method == method
    assert log_density(torch.zeros(3, 2)).shape == (3,)
    assert log_density(torch.zeros(0, 2)).shape == (0,)


def test_sites_and_points_are_each_others_images():
    log_density = pf.vectorized_log_density(model, model_args=(Y,))
    u = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    sites = log_density.constrain(u)
    assert (sites["s"] > 0).all()
    assert_close(log_density.unconstrain(sites), u)


def test_the_generators_of_the_caller_are_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pf.vectorized_log_density(model, model_args=(Y,), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("points", [torch.zeros(2), torch.zeros(3, 4), [[0.0, 0.0]]])
def test_points_of_another_shape_are_refused(points):
    log_density = pf.vectorized_log_density(model, model_args=(Y,))
    with pytest.raises(ValueError, match=r"expected points of shape \(K, 2\)"):
        log_density(points)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="vectorized_log_density expected a callable model"):
        pf.vectorized_log_density(3)
    with pytest.raises(ValueError, match="expected method to be one of"):
        pf.vectorized_log_density(model, model_args=(Y,), method="fast")


def test_a_missing_compiler_is_named(monkeypatch):
    class MissingCompiler(Exception):
        __module__ = "torch._inductor.exc"

    def compile(graph, **options):
        def fail(*args):
            raise MissingCompiler("no g++")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    log_density = pf.vectorized_log_density(model, model_args=(Y,), compile=True)
    with pytest.raises(RuntimeError, match=r"no g\+\+.*C\+\+ compiler .*compile=False"):
        log_density(torch.zeros(3, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_density_is_the_same_and_live():
    log_density = pf.vectorized_log_density(model, model_args=(Y,), compile=True)
    u = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = log_density(u)
    assert_close(values, potential(u.detach()))
    (got,) = torch.autograd.grad(values.sum(), u)
    (expected,) = torch.autograd.grad(potential(u).sum(), u)
    assert_close(got, expected)
    assert "compiled" in log_density.report


def test_its_benchmark(tmp_path):
    output = tmp_path / "result.json"
    rows = benchmark.main(["--smoke", "--output", str(output)])
    assert [row["model"] for row in rows] == list(benchmark.models())
    for row in rows:
        assert all(row[f"{way}_ms"] > 0 for way in ("loop", "plate", "vmap", "graph"))
    assert len(json.loads(output.read_text())["rows"]) == len(rows)
