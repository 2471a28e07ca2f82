"""Bad input gets an error that says what was expected, what came and what to do."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import pyroflows as pf

TINY = {"num_layers": 1, "hidden_dims": (8,)}
QUIET = {"num_steps": 2, "num_particles": 4, "progress_bar": False, "seed": 0}


@pytest.fixture(autouse=True)
def _fresh():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(before)


def model():
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def regression(x: Tensor, y: Tensor):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[-1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        mean = (x * w).sum(-1)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


# Flows ---------------------------------------------------------------------------------------


def test_an_unknown_flow_is_named_with_the_closest_match():
    with pytest.raises(ValueError, match=r"(?s)'nsff'.*realnvp") as error:
        pf.build_flow("nsff", 2)
    assert "mean 'nsf'" in str(error.value)
    with pytest.raises(ValueError, match=r"(?s)'real_nvp'.*mean 'realnvp'"):
        pf.AutoFlow(model, "real_nvp", model_args=())


def test_an_unknown_flow_is_refused_when_the_guide_is_made():
    with pytest.raises(ValueError, match="'nsff'"):
        pf.AutoFlow(model, "nsff")


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("flow", pf.available_flows())
def test_a_dim_below_one_is_refused(flow: str, dim: int):
    with pytest.raises(ValueError, match=rf"dim.*{dim}"):
        pf.build_flow(flow, dim)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="num_bin"):
        pf.build_flow("nsf", 2, num_bin=4)


def test_a_missing_context_is_asked_for():
    flow = pf.build_flow("nsf", 2, context_dim=3, **TINY)
    with pytest.raises((TypeError, ValueError), match=r"(?s)context.*condition"):
        flow(torch.zeros(5, 2))
    with pytest.raises((TypeError, ValueError), match="context"):
        flow.condition(None)


def test_an_unexpected_context_is_refused():
    flow = pf.build_flow("nsf", 2, **TINY)
    with pytest.raises((TypeError, ValueError), match=r"(?s)context.*context_dim"):
        flow.condition(torch.zeros(3))


def test_a_context_of_the_wrong_width_is_refused():
    flow = pf.build_flow("nsf", 2, context_dim=3, **TINY)
    with pytest.raises(ValueError, match=r"context.*\(\*, 3\).*\(5, 4\)"):
        flow.condition(torch.zeros(5, 4))


@pytest.mark.parametrize("shape", [(5, 3), (5, 1), ()])
def test_a_point_of_the_wrong_width_is_refused(shape: tuple[int, ...]):
    flow = pf.build_flow("nsf", 2, **TINY)
    with pytest.raises(ValueError, match=r"\(\*, 2\).*got"):
        flow(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"\(\*, 2\).*got"):
        flow.inv(torch.zeros(shape))


class Unsummed(pf.Bijector):
    """Forgets to sum the log-slopes of its coordinates."""

    def __init__(self, dim, *, context_dim=0):
        super().__init__(dim, context_dim=context_dim)
        self.a = torch.nn.Parameter(torch.zeros(dim))

    def forward_and_log_det(self, x, context=None):
        return x * self.a.exp(), self.a.expand(x.shape)

    def inverse_and_log_det(self, y, context=None):
        return y * (-self.a).exp(), -self.a.expand(y.shape)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_log_determinant_for_each_coordinate_is_refused(dim: int):
    flow, x, message = Unsummed(dim), torch.zeros(5, dim), r"Unsummed.*\(5,\).*\.sum\(-1\)"
    composed = pf.Compose(flow)
    score = torch.zeros(5, dim)
    for run in (flow, flow.inv, composed.forward_and_log_det, composed.inverse_and_log_det):
        with pytest.raises(ValueError, match=message):
            run(x)
    with pytest.raises(ValueError, match=message):
        flow.log_abs_det_jacobian(x, x)
    with pytest.raises(ValueError, match=message):
        composed.forward_with_score(x, score)
    with pytest.raises(ValueError, match=r"Unsummed.*\.sum\(-1\)"):
        pf.fit_guide(model, pf.AutoFlow(model, Unsummed), **QUIET)


def test_one_point_under_many_contexts_has_a_log_determinant_for_each():
    flow, contexts = pf.build_flow("affine", 2, context_dim=1), torch.randn(5, 1)
    for run in (flow.condition(contexts), flow.condition(contexts).inv):
        y = run(torch.zeros(2))
        assert run.log_abs_det_jacobian(torch.zeros(2), y).shape == (5,)


# Energies ------------------------------------------------------------------------------------


def fit_energy(log_density, dim: int = 2, **options) -> pf.GuideFit:
    target = pf.energy_model(log_density, dim, **options)
    return pf.fit_guide(target, pf.AutoFlow(target, "affine"), **QUIET)


@pytest.mark.parametrize("dim", [0, -2])
def test_an_energy_without_coordinates_is_refused(dim: int):
    with pytest.raises(ValueError, match=rf"dim.*{dim}"):
        pf.energy_model(lambda x: -x.square().sum(-1), dim)


def test_an_energy_without_dim_or_support_is_refused():
    with pytest.raises((TypeError, ValueError), match=r"dim.*support"):
        pf.energy_model(lambda x: -x.square().sum(-1))


@pytest.mark.parametrize(
    "log_density",
    [
        lambda x: -x.square(),
        lambda x: -x.square().sum(-1, keepdim=True),
        lambda x: -x.new_ones(5) * x.square().sum(),
    ],
    ids=["per coordinate", "kept dimension", "a constant shape"],
)
def test_a_log_density_of_the_wrong_shape_is_refused(log_density):
    with pytest.raises(ValueError, match=r"returned shape \(.*where \(3,\) was due"):
        fit_energy(log_density)


def test_a_log_density_that_is_no_tensor_is_refused():
    with pytest.raises((TypeError, ValueError), match=r"(?i)tensor.*(float|got)"):
        fit_energy(lambda x: 0.5)


def test_a_log_density_that_is_nan_everywhere_is_refused():
    with pytest.raises(ValueError, match=r"(?i)nan|not finite|finite"):
        fit_energy(lambda x: x.sum(-1) * float("nan"))


def test_a_log_density_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match=r"(?i)gradient"):
        fit_energy(lambda x: -x.detach().square().sum(-1))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_callable_that_takes_one_point_is_never_given_a_batch():
    """A sum over everything is right for one point and silently wrong for many."""
    fit = fit_energy(lambda x: -0.5 * x.square().sum())
    assert abs(fit.diagnostics.log_z - math.log(2 * math.pi)) < 0.02


# Models and data -----------------------------------------------------------------------------


def test_a_model_without_latents_is_refused():
    def nothing():
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    with pytest.raises((ValueError, RuntimeError), match=r"(?i)no (continuous )?latent"):
        pf.AutoFlow(nothing, "affine", model_args=())
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)no (continuous )?latent"):
        pf.AutoFlow(nothing, "affine")()


def test_a_discrete_latent_is_refused_by_name():
    def mixture():
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        k = pyro.sample("which", dist.Bernoulli(p))
        pyro.sample("y", dist.Normal(k, 1.0), obs=torch.tensor(1.0))

    with pytest.raises((ValueError, NotImplementedError), match=r"(?s)which.*enumerat"):
        pf.AutoFlow(mixture, "affine", model_args=())


@pytest.mark.filterwarnings("ignore:Found vars in model")
def test_a_structure_that_changes_is_refused():
    def changing(wide: bool):
        pyro.sample("a", dist.Normal(0.0, 1.0))
        if wide:
            pyro.sample("b", dist.Normal(0.0, 1.0))

    guide = pf.AutoFlow(changing, "affine", model_args=(False,))
    with pytest.raises(ValueError, match=r"(?s)'?b'?.*"):
        pf.fit_guide(changing, guide, model_args=(True,), **QUIET)


def test_a_plate_that_changes_its_size_is_refused():
    def local(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    guide = pf.AutoFlow(local, "affine", model_args=(torch.zeros(3),))
    with pytest.raises(ValueError, match=r"(?s)z|data"):
        pf.fit_guide(local, guide, model_args=(torch.zeros(5),), **QUIET)


def test_an_angle_is_not_treated_as_a_real_number():
    def angular():
        pyro.sample("angle", dist.VonMises(0.0, 2.0))

    with pytest.raises((ValueError, NotImplementedError), match=r"(?s)angle.*real number"):
        pf.AutoFlow(angular, "affine", model_args=())


def test_data_of_another_dtype_than_the_guide_is_refused():
    x, y = torch.randn(5, 2), torch.randn(5)
    guide = pf.AutoFlow(regression, "affine", model_args=(x, y))
    with pytest.raises((TypeError, ValueError), match=r"(?s)float64.*float32|float32.*float64"):
        pf.fit_guide(regression, guide, model_args=(x.double(), y.double()), **QUIET)


def test_data_on_another_device_than_the_guide_is_refused():
    x, y = torch.randn(5, 2), torch.randn(5)
    guide = pf.AutoFlow(regression, "affine", model_args=(x, y))
    with pytest.raises((TypeError, ValueError), match=r"(?s)cpu.*meta|meta.*cpu"):
        pf.fit_guide(regression, guide, model_args=(x.to("meta"), y.to("meta")), **QUIET)


# Fitting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_particles", [0, -1])
def test_fewer_than_one_particle_is_refused(num_particles: int):
    with pytest.raises(ValueError, match=rf"num_particles.*{num_particles}"):
        pf.PathELBO(num_particles=num_particles)
    guide = pf.AutoFlow(model, "affine")
    with pytest.raises(ValueError, match=rf"num_particles.*{num_particles}"):
        pf.fit_guide(model, guide, num_steps=2, num_particles=num_particles, progress_bar=False)


def test_fewer_than_one_step_is_refused():
    guide = pf.AutoFlow(model, "affine")
    with pytest.raises(ValueError, match=r"num_steps.*-1"):
        pf.fit_guide(model, guide, num_steps=-1, progress_bar=False)


@pytest.mark.parametrize("num_samples", [0, -1])
def test_too_few_draws_for_a_verdict_are_refused(num_samples: int):
    guide = pf.AutoFlow(model, "affine", model_args=())
    with pytest.raises(ValueError, match=rf"num_samples.*{num_samples}"):
        pf.importance_diagnostics(model, guide, num_samples=num_samples)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("flow", ["affine", "nsf_coupling"])
def test_an_improper_posterior_is_not_to_be_trusted(flow: str):
    """Nothing holds ``b`` from below: its posterior has no normaliser."""

    def unbounded():
        flat = dist.ImproperUniform(constraints.real, (), ())
        a = pyro.sample("a", flat)
        b = pyro.sample("b", flat)
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(0.5))
        pyro.factor("above", -torch.nn.functional.softplus(b))

    options = {} if flow == "affine" else TINY
    guide = pf.AutoFlow(unbounded, flow, **options)
    fit = pf.fit_guide(unbounded, guide, num_steps=300, progress_bar=False, seed=0)
    assert fit.diagnostics.verdict == "do not trust"
    assert fit.diagnostics.reasons
