"""Guides, fits and their verdicts on CUDA, and on devices that stand in for it.

The CPU proves the tests; a pretended device has values, and refuses tensors that were made on the
CPU. On a GPU: ``pytest -m cuda``.
"""

import copy
import math
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.testing import assert_close

import pyroflows as pf
from tests.pretended import pretended_device

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
PRETENDED = pytest.param("pretended", marks=pytest.mark.slow)
QUIET = {"progress_bar": False, "seed": 0}
SHORT = {**QUIET, "num_steps": 5, "num_particles": 16, "num_diagnostic_samples": 0}
TINY = {"hidden_dims": (8,)}


@pytest.fixture(params=["cpu", CUDA])
def device(request) -> torch.device:
    return torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(params=["cpu", PRETENDED, CUDA])
def any_device(request) -> Iterator[torch.device]:
    if request.param == "pretended":
        with pretended_device() as device:
            yield device
    else:
        yield torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")


def regression(x: Tensor, y: Tensor) -> None:
    """A vector, a positive scalar and a plate."""
    zero = x.new_zeros(())
    w = pyro.sample("w", dist.Normal(zero, 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(zero, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((x * w).sum(-1), sigma), obs=y)


def data(device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 40)
    x = torch.stack([x, x.square()], -1)
    return x.to(device), (x @ torch.tensor([1.0, -2.0]) + 0.3 * torch.cos(40 * x[:, 0])).to(device)


def make_guide(device: torch.device, flow: str = "nsf_coupling") -> pf.AutoFlow:
    pyro.set_rng_seed(0)
    lines = {"circular": []} if flow == "ncsf" else {}  # no latent here is an angle
    return pf.AutoFlow(regression, flow, model_args=data(device), **TINY, **lines)


def steps(device: torch.device) -> int:
    return 10 if device.type == "meta" else 200


def where(guide: torch.nn.Module) -> set[torch.device]:
    return {t.device for t in (*guide.parameters(), *guide.buffers())}


@pytest.mark.parametrize("flow", ["nsf", "nsf_coupling"])
def test_a_fit_to_an_energy(any_device: torch.device, flow: str):
    device = any_device

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * (x[..., 0] - 1).square() - 2 * (x[..., 1] - 0.3 * x[..., 0].square()).square()

    model = pf.energy_model(log_density, dim=2, device=device)
    guide = pf.AutoFlow(model, flow, model_args=(), **TINY)
    assert where(guide) == {device}
    fit = pf.fit_guide(
        model,
        guide,
        num_steps=steps(device),
        num_particles=128,
        num_diagnostic_samples=2000,
        **QUIET,
    )
    few = device.type == "meta"  # steps, as pretending takes its time
    assert abs(fit.diagnostics.log_z - math.log(math.pi)) < (0.3 if few else 0.05)
    assert device.type == "meta" or fit.diagnostics.verdict in {"usable", "reweight"}
    assert where(guide) == {device}


def test_a_fit_to_a_model_ends_with_a_verdict(any_device: torch.device):
    device = any_device
    guide = make_guide(device)
    fit = pf.fit_guide(
        regression,
        guide,
        model_args=data(device),
        num_steps=steps(device),
        num_particles=64,
        num_diagnostic_samples=2000,
        **QUIET,
    )
    assert device.type == "meta" or fit.diagnostics.verdict in {"usable", "reweight"}
    assert fit.vectorized
    median = guide.median(*data(device))
    assert {v.device for v in median.values()} == {device}
    assert_close(median["w"].cpu(), torch.tensor([1.0, -2.0]), atol=0.3, rtol=0)


@pytest.mark.parametrize("flow", pf.available_flows())
def test_every_flow_takes_a_step_draws_and_scores(device: torch.device, flow: str):
    guide, args = make_guide(device, flow), data(device)
    fit = pf.fit_guide(regression, guide, model_args=args, **SHORT)
    assert all(map(math.isfinite, fit.losses))
    with pyro.plate("draws", 3, dim=-2):
        draws = guide(*args)
    score = guide.log_prob(draws)
    assert {v.device for v in (*draws.values(), score)} == where(guide) == {device}
    assert score.isfinite().all()


@pytest.mark.parametrize("weights", [{}, {"score_weight": 1.0, "tail_weight": 0.5}], ids=str)
def test_a_step_of_the_path_objective_whole_and_in_chunks(any_device: torch.device, weights: dict):
    device = any_device
    found = []
    for chunk_size in (None, 7):
        guide = make_guide(device)
        pyro.set_rng_seed(1)
        loss = pf.PathELBO(24, chunk_size=chunk_size, **weights)
        value = loss.loss_and_grads(regression, guide, *data(device))
        grads = [p.grad for p in guide.parameters() if p.grad is not None]
        assert {g.device for g in grads} == {device}
        found.append((torch.as_tensor(float(value)), [g.cpu() for g in grads]))
    assert_close(*found, atol=1e-3, rtol=1e-3)


def test_chunks_and_checkpoints_of_a_fit(device: torch.device, tmp_path):
    options = {**SHORT, "model_args": data(device), "num_steps": 8}
    path = tmp_path / "fit.pt"
    expected = pf.fit_guide(regression, make_guide(device), chunk_size=5, **options).losses
    guide = make_guide(device)
    pf.fit_guide(regression, guide, chunk_size=5, checkpoint=path, **options)
    again = make_guide(device)
    resumed = pf.fit_guide(regression, again, chunk_size=5, checkpoint=path, **options)
    assert_close(resumed.losses, expected)
    assert_close(dict(again.state_dict()), dict(guide.state_dict()))


@pytest.mark.slow
@pytest.mark.cuda
def test_a_compiled_fit():
    device = torch.device("cuda", 0)
    guide = make_guide(device)
    options = {**SHORT, "num_steps": 40, "num_particles": 64}
    fit = pf.fit_guide(regression, guide, model_args=data(device), compile=True, **options)
    eager = pf.fit_guide(regression, make_guide(device), model_args=data(device), **options)
    assert abs(fit.losses[-1] - eager.losses[-1]) < 1.0


@pytest.mark.parametrize("make", [AutoNormal, make_guide], ids=["AutoNormal", "AutoFlow"])
def test_importance_diagnostics(any_device: torch.device, make):
    device = any_device
    args = data(device)
    guide = make(device) if make is make_guide else make(regression)
    guide(*args)
    first, second = (
        pf.importance_diagnostics(regression, guide, model_args=args, num_samples=500, seed=3)
        for _ in range(2)
    )
    assert torch.equal(first.log_weights, second.log_weights)
    assert first.log_weights.isfinite().all()
    assert first.verdict in {"usable", "reweight", "do not trust"}


@pytest.mark.arviz
def test_arviz_data(any_device: torch.device):
    device = any_device
    pytest.importorskip("arviz")
    draws = pf.to_inference_data(
        make_guide(device), regression, model_args=data(device), num_samples=20, seed=0
    )
    posterior = draws["posterior"]
    assert posterior["w"].shape[-1] == 2
    assert bool((posterior["sigma"] > 0).all())


def test_draws_for_prediction_and_steps_of_svi(device: torch.device):
    guide, args = make_guide(device), data(device)
    svi = SVI(regression, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert math.isfinite(svi.step(*args))
    samples = Predictive(regression, guide=guide, num_samples=4)(args[0], args[1])
    assert {v.device for v in samples.values()} == {device}


def test_neutra(device: torch.device):
    args, guide = data(device), make_guide(device)
    neutra = pf.NeuTraReparam(guide)
    kernel = NUTS(neutra.reparam(regression), max_tree_depth=3)
    mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run(*args)
    (latent,) = mcmc.get_samples().values()
    sites = neutra.transform_sample(latent)
    assert {v.device for v in sites.values()} == {device}
    assert_close(sites["w"].mean(0).cpu(), torch.tensor([1.0, -2.0]), atol=0.4, rtol=0)


def test_a_log_density_of_many_points(any_device: torch.device):
    device = any_device
    log_density = pf.vectorized_log_density(regression, model_args=data(device))
    points = torch.linspace(-1, 1, 15).view(5, 3)
    on_cpu = pf.vectorized_log_density(regression, model_args=data(torch.device("cpu")))
    for _ in range(3):  # the model first, then its flat graph
        value = log_density(points.to(device))
        assert value.device == device
        assert_close(value.cpu(), on_cpu(points), atol=1e-4, rtol=1e-4)


def test_weights_are_smoothed_where_they_are(device: torch.device):
    log_weights = dist.StudentT(3.0).sample((2000,)).abs()
    on_cpu, there = pf.psis(log_weights), pf.psis(log_weights.to(device))
    assert there[0].device == device
    assert_close(there[0].cpu(), on_cpu[0], atol=1e-3, rtol=1e-3)
    assert abs(float(on_cpu[1]) - float(there[1])) < 1e-3


def test_a_state_dict_goes_there_and_back(device: torch.device, tmp_path):
    guide = make_guide(device)
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.01)
    torch.save(guide.state_dict(), tmp_path / "guide.pt")
    state = torch.load(tmp_path / "guide.pt", map_location="cpu", weights_only=True)
    on_cpu = make_guide(torch.device("cpu"))
    on_cpu.load_state_dict(state)
    back = make_guide(device)
    back.load_state_dict(on_cpu.state_dict())
    moved = copy.deepcopy(guide).to("cpu").to(device)
    for twin in (back, moved):
        assert where(twin) == {device}
        twin_state, state = twin.state_dict(), guide.state_dict()
        assert all(torch.equal(twin_state[k].to(v), v) for k, v in state.items())
    noise = torch.randn(5, 3)
    values = [g.get_transform()(noise.to(next(g.parameters()))) for g in (guide, on_cpu)]
    assert_close(values[0].cpu(), values[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("other", ["meta", pytest.param("cuda:0", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("make", [pf.AutoFlow, AutoNormal])
def test_mixed_devices_are_refused(make, other: str):
    here = data(torch.device("cpu"))
    there = tuple(v.to(other) for v in here)
    guide = make(regression)
    guide(*here)
    for args in (there, (here[0], there[1])):
        with pytest.raises(ValueError, match=rf"on cpu.*on {other}|on {other}.*on cpu"):
            pf.fit_guide(regression, guide, model_args=args, **SHORT)
    if isinstance(guide, pf.AutoFlow):
        message = rf"AutoFlow is on {other}, but model_args\[0\] is on cpu"
        with pytest.raises(ValueError, match=message):
            pf.importance_diagnostics(regression, guide.to(other), model_args=here)


@pytest.mark.cuda
def test_a_default_device_is_enough():
    """Priors of plain numbers land on the default device, so does all that follows."""

    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.tensor(0.0), 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    torch.set_default_device("cuda")
    y = torch.tensor([1.0, 2.0, 3.0])
    guide = pf.AutoFlow(model, "nsf", model_args=(y,), **TINY)
    fit = pf.fit_guide(model, guide, model_args=(y,), num_steps=100, **QUIET)
    assert {d.type for d in where(guide)} == {"cuda"}
    assert fit.diagnostics.verdict == "usable"
