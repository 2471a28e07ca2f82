"""The model's log density on unconstrained coordinates equals Pyro's, batched or not."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.indexing import Vindex
from torch.testing import assert_close

from pyroflows import AutoFlow
from pyroflows.guides.prototype import init_to_center, read_latents
from pyroflows.log_density import LogDensity, StructureError

Y = torch.tensor([0.3, -1.2, 2.0, 0.7])


def regression(y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w[..., 0] + w[..., 1] * y, s), obs=y)


def nested(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Normal(mu, 1.0))
        with pyro.plate("inner", 4, dim=-1):
            b = pyro.sample("b", dist.Gamma(2.0, 1.0))
            pyro.sample("y", dist.Normal(a, b), obs=y)


def constrained(y):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    chol = pyro.sample("chol", dist.LKJCholesky(3, 2.0))
    u = pyro.sample("u", dist.Uniform(-1.0, 2.0))
    pyro.factor("f", (p * torch.tensor([1.0, 2.0, 3.0])).sum(-1) + chol[..., 2, 0] * u)


def masked(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4), poutine.mask(mask=torch.tensor([True, False, True, True])):
        pyro.sample("y", dist.StudentT(3.0, mu, 1.0), obs=y)


def scaled(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.5), pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@config_enumerate
def mixture(y):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(w))
        pyro.sample("y", dist.Normal(Vindex(loc)[..., k], 1.0), obs=y)


MODELS = [regression, nested, constrained, masked, scaled, mixture]


def log_density(model, *args):
    trace = poutine.trace(InitMessenger(init_to_center)(model)).get_trace(*args)
    return LogDensity(model, read_latents(trace, "Test"), args)


def reference(model, latents, u, *args):
    """Pyro's own potential, one point at a time."""
    _, potential, transforms, _ = initialize_model(model, model_args=args)
    rows = []
    for row in u:
        values = {}
        for site, flat in latents.split(row):
            values[site.name] = flat.reshape(site.unconstrained_shape)
        rows.append(-potential(values))
    assert set(transforms) == set(latents.sites)
    return torch.stack(rows)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_density_is_that_of_pyro(model, request):
    pyro.set_rng_seed(0)
    request.addfinalizer(lambda dtype=torch.get_default_dtype(): torch.set_default_dtype(dtype))
    torch.set_default_dtype(torch.float64)  # Pyro's own density cannot mix dtypes
    density = log_density(model, Y.double())
    u = torch.randn(5, density.latents.dim, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of these models needs the fall-back
        got = density(u)
    assert density.vectorized
    expected = reference(model, density.latents, u, Y.double())
    assert_close(got, expected, rtol=1e-6, atol=1e-6)
    for method in ("vmap", "plate", "loop"):
        one = LogDensity(model, density.latents, (Y.double(),), method=method)
        assert_close(one(u), expected, rtol=1e-6, atol=1e-6)
        assert one.method == method


def wrong_sum(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("f", -(mu - 1.0).square().sum())


def matrix_product(y):
    w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(torch.eye(4, dtype=w.dtype) @ w, 1.0), obs=y)


def value_branch(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    shift = 1.0 if mu > 0 else -1.0
    pyro.sample("y", dist.Normal(mu + shift, 1.0).expand([4]).to_event(1), obs=y)


def small_wrong_sum(y):
    """Too small beside the rest to be seen in the value, and in each point's own gradient."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("f", 1e6 - 1e-5 * (mu - 1.0).square().sum())


def test_a_branch_on_a_latent_is_run_one_by_one():
    density = log_density(value_branch, Y)
    u = torch.tensor([[0.5], [1.5], [-0.7]])
    with pytest.warns(UserWarning, match="one by one"):
        got = density(u)
    assert density.vectorized is False
    assert density.method == "loop"
    assert [note.split(":")[0] for note in density.notes] == ["vmap", "plate"]
    assert_close(got, torch.stack([density._single(row) for row in u]))


@pytest.mark.parametrize("model", [wrong_sum, small_wrong_sum, matrix_product])
def test_models_that_do_not_broadcast_are_right_under_vmap(model):
    density = log_density(model, Y)
    u = torch.randn(6, density.latents.dim, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = density(u)
    assert density.method == "vmap"
    assert_close(got, torch.stack([density._single(row) for row in u]))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (wrong_sum, "depends on the others|the log density of f"),
        (small_wrong_sum, "the density of one draw depends on the others"),
        (matrix_product, "RuntimeError"),
    ],
)
def test_a_plate_is_refused_where_it_is_wrong(model, reason):
    plain = log_density(model, Y)
    u = torch.randn(3, plain.latents.dim, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=f"method='plate'.*({reason})"):
        LogDensity(model, plain.latents, (Y,), method="plate").check(u)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"expected method to be one of .*'plate'.*got 'fast'"):
        LogDensity(regression, None, method="fast")


def test_changed_structure_is_refused():
    state = {"extra": False}

    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        if state["extra"]:
            pyro.sample("b", dist.Normal(0.0, 1.0))

    density = log_density(model)
    density(torch.zeros(1, 1))
    state["extra"] = True
    with pytest.raises(StructureError, match=r"latents that appeared \['b'\]"):
        density(torch.zeros(1, 1))


def test_a_support_that_depends_on_latents_is_refused():
    def model():
        a = pyro.sample("a", dist.HalfNormal(1.0))
        pyro.sample("b", dist.Uniform(0.0, a))

    density = log_density(model)
    with pytest.raises(StructureError, match="support of site 'b' changes"):
        density(torch.randn(3, 2))


def test_subsampled_data_are_one_minibatch_for_all_points():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4, subsample_size=2) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    density = log_density(model, Y)
    u = torch.zeros(8, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(density(u).unique()) == 1


def test_a_density_without_gradient_is_refused():
    def model():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("f", -x.detach().square())

    with pytest.raises(ValueError, match="no gradient with respect to its latents"):
        log_density(model)(torch.randn(3, 1))


def test_points_less_precise_than_the_data_are_no_lack_of_broadcast():
    density = log_density(masked, Y.double())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density(torch.randn(4, 1))
    assert density.vectorized


@pytest.mark.parametrize(("size", "is_part"), [(2, True), (4, False)])
def test_a_density_from_a_part_of_the_data_is_known_as_such(size, is_part):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4, subsample_size=size) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    density = log_density(model, Y)
    density(torch.zeros(2, 1))
    assert density.subsampled is is_part


def test_one_point_of_an_enumerated_model_and_a_guide_for_it():
    density = log_density(mixture, Y)
    u = torch.randn(3, density.latents.dim)
    together = density(u)
    assert_close(torch.cat([density(row[None]) for row in u]), together, rtol=1e-4, atol=1e-4)
    assert AutoFlow(mixture, "affine", model_args=(Y,)).report.startswith("started")


def test_a_scale_on_one_site_of_a_discrete_sum_is_refused():
    @config_enumerate
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.7))
            with poutine.scale(scale=2.0):
                pyro.sample("y", dist.Normal(a * z, 1.0), obs=y)

    with pytest.raises(StructureError, match="have different scales"):
        AutoFlow(model, "affine", model_args=(Y,))


def test_a_site_that_is_observed_in_part_is_refused_by_name():
    """Pyro keeps a latent at observed positions too, where nothing says where it is."""

    def model():
        with pyro.plate("data", 4):
            mask = torch.tensor([True, False, True, True])
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=Y, obs_mask=mask)

    with pytest.raises(ValueError, match=r"site 'y_unobserved'.*3 of 4.*obs_mask="):
        AutoFlow(model, "affine")


def test_a_mask_that_hides_nothing_is_no_matter():
    def model():
        with pyro.plate("data", 4), poutine.mask(mask=torch.ones(4, dtype=torch.bool)):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    assert AutoFlow(model, "affine").latent_dim == 4
