"""A fit that is cut short goes on from its file to the same numbers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyroflows import AutoFlow, PathELBO, fit_guide
from pyroflows.infer import checkpoint as files

Y = torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()


def model(y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3), scale[..., None]).to_event(1))
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


def with_a_shift(y):
    shift = pyro.param("shift", torch.tensor(0.5))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(loc + shift, 1.0).to_event(1), obs=y)


def mini_batch(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y[index])


def holed(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.factor("hole", torch.where(loc > 1.5, -torch.inf, 0.0))


def fit(model, guide, stop_at=None, monkeypatch=None, error=KeyboardInterrupt, **options):
    """Fit, and press Ctrl-C after a step."""
    defaults = {"model_args": (Y,), "num_steps": 40, "num_particles": 16, "seed": 0}
    defaults |= {"progress_bar": False, "num_diagnostic_samples": 0}
    if stop_at is None:
        return fit_guide(model, guide, **defaults | options)
    evaluate = type(guide)._prepare if hasattr(guide, "_prepare") else None
    steps = []

    def interrupted(self, *args):
        steps.append(1)
        if len(steps) > stop_at:
            raise error
        return evaluate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(type(guide), "_prepare", interrupted)
        return fit_guide(model, guide, **defaults | options)


def new(model, flow="realnvp"):
    torch.manual_seed(1)
    return AutoFlow(model, flow, model_args=(Y,))


@pytest.mark.parametrize("kind", [model, with_a_shift, mini_batch, holed])
def test_a_fit_interrupted_and_resumed_has_the_same_numbers(kind, tmp_path, monkeypatch):
    alone = fit(kind, new(kind))
    shift = pyro.param("shift").item() if kind is with_a_shift else None
    pyro.clear_param_store()
    path = tmp_path / "fit.pt"
    first = fit(kind, new(kind), stop_at=20, monkeypatch=monkeypatch, checkpoint=path)
    assert first.stop_reason == "interrupted"
    assert 10 < first.num_steps < 30
    pyro.clear_param_store()
    guide = new(kind)
    torch.rand(7)  # the caller's random state is not that of the first time
    second = fit(kind, guide, checkpoint=path)
    assert second.losses == alone.losses
    assert second.learning_rates == alone.learning_rates
    assert second.num_nonfinite_particles == alone.num_nonfinite_particles
    assert (second.num_skipped_steps, second.num_clipped_steps) == (
        alone.num_skipped_steps,
        alone.num_clipped_steps,
    )
    for a, b in zip(alone.guide.parameters(), guide.parameters(), strict=True):
        assert torch.equal(a, b)
    if shift is not None:
        assert pyro.param("shift").item() == shift
    assert second.seconds > first.seconds


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch
from tests.test_checkpoint import files, fit, model, new
from pyroflows.infer.progress import Progress
files.SECONDS_BETWEEN = files._COST = 0.0

def update(self, losses, rate):
    if len(losses) == 23:
        os.kill(os.getpid(), signal.SIGKILL)

Progress.update = update
fit(model, new(model), checkpoint={path!r})
"""


def test_a_fit_that_was_killed_goes_on(tmp_path):
    path, root = tmp_path / "fit.pt", str(Path(__file__).parent.parent)
    code = SCRIPT.format(root=root, path=str(path))
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["fit.pt"]
    assert len(torch.load(path, weights_only=True)["run"]["losses"]) == 22
    assert fit(model, new(model), checkpoint=path).losses == fit(model, new(model)).losses


def test_a_fit_that_converges_stops_where_it_would_have(tmp_path, monkeypatch):
    options = {"num_steps": None, "tolerance": 1.0, "num_particles": 4}
    alone = fit(model, new(model, "affine"), **options)
    assert alone.stop_reason == "converged"
    guide, path = new(model, "affine"), tmp_path / "fit.pt"
    for stop_at in (300, 350):
        fit(model, guide, stop_at=stop_at, monkeypatch=monkeypatch, checkpoint=path, **options)
    again = fit(model, new(model, "affine"), checkpoint=path, **options)
    assert again.losses == alone.losses
    assert again.stop_reason == "converged"


def test_a_finished_fit_is_read_and_not_repeated(tmp_path):
    path = tmp_path / "fit.pt"
    first = fit(model, new(model), checkpoint=path)
    guide = new(model)
    again = fit(model, guide, checkpoint=path, num_diagnostic_samples=500)
    assert (again.losses, again.stop_reason) == (first.losses, "num_steps")
    assert again.diagnostics is not None
    for a, b in zip(first.guide.parameters(), guide.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [lambda: torch.optim.AdamW, lambda: pyro.optim.Adam({"lr": 0.01})])
def test_other_optimizers_losses_and_guides_go_on_too(make, tmp_path):
    steps = []

    class Interrupted(Trace_ELBO):
        def differentiable_loss(self, *args, **kwargs):
            steps.append(1)
            if len(steps) == 15:
                raise KeyboardInterrupt
            return super().differentiable_loss(*args, **kwargs)

    def run(loss=Trace_ELBO, **options):
        pyro.clear_param_store()
        return fit(model, AutoNormal(model), loss=loss, optimizer=make(), **options)

    Interrupted.__name__ = "Trace_ELBO"
    alone = run()
    path = tmp_path / "fit.pt"
    assert run(Interrupted, checkpoint=path).num_steps == 14
    assert run(checkpoint=path).losses == alone.losses


def test_an_error_leaves_a_file_to_go_on_from(tmp_path, monkeypatch):
    path = tmp_path / "fit.pt"
    with pytest.raises(ZeroDivisionError):
        fit(model, new(model), 20, monkeypatch, ZeroDivisionError, checkpoint=path)
    assert 10 < len(torch.load(path, weights_only=True)["run"]["losses"]) < 30
    assert fit(model, new(model), checkpoint=path).losses == fit(model, new(model)).losses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow": "maf"}, r"its parameters 'bijector.* is .*, that of this one"),
        ({"kind": with_a_shift}, "its model is model, that of this one with_a_shift"),
        ({"guide": AutoNormal}, "its guide is AutoFlow, that of this one AutoNormal"),
        ({"num_steps": 50}, "its settings 'num_steps' is 40, that of this one 50"),
        ({"num_particles": 8}, "its settings 'particles' is 16, that of this one 8"),
        ({"model_args": (Y + 1,)}, r"its data 'model_args\[0\]' is torch.float32 \(3,\) #"),
        ({"optimizer": torch.optim.SGD, "learning_rate": 0.1}, "'learning_rate' is None"),
    ],
)
def test_a_file_of_another_fit_is_refused_by_name(change, message, tmp_path):
    path = tmp_path / "fit.pt"
    fit(model, new(model), checkpoint=path)
    kind = change.pop("kind", model)
    make = change.pop("guide", None)
    guide = make(kind) if make else new(kind, change.pop("flow", "realnvp"))
    with pytest.raises(ValueError, match=message) as error:
        fit(kind, guide, checkpoint=path, **change)
    assert "delete the file to start anew" in str(error.value)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "fit.pt"
    path.write_bytes(b"not a file of ours")
    with pytest.raises(ValueError, match="is no checkpoint of a fit"):
        fit(model, new(model), checkpoint=path)
    for other in ({"weights": torch.ones(3)}, torch.ones(3), {"version": 1, "facts": None}):
        torch.save(other, path)
        with pytest.raises(ValueError, match="is no checkpoint of a fit"):
            fit(model, new(model), checkpoint=path)
    fit(model, new(model), checkpoint=(whole := tmp_path / "whole.pt"))
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match="is no checkpoint of a fit"):
        fit(model, new(model), checkpoint=path)
    for bad in (tmp_path, tmp_path / "nowhere" / "fit.pt"):
        with pytest.raises(ValueError, match="a file in an existing folder"):
            fit(model, new(model), checkpoint=bad)


def test_a_file_that_cannot_be_written_does_not_take_the_fit_with_it(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.warns(UserWarning, match="the checkpoint was not written: no space left"):
        found = fit(model, new(model), checkpoint=tmp_path / "fit.pt")
    assert found.num_steps == 40
    assert os.listdir(tmp_path) == []


def test_our_objective_with_options_goes_on_too(tmp_path, monkeypatch):
    def run(**options):
        loss = PathELBO(16, score_weight=0.5, chunk_size=5)
        return fit(model, new(model), loss=loss, num_particles=16, **options)

    alone = run()
    path = tmp_path / "fit.pt"
    run(stop_at=20, monkeypatch=monkeypatch, checkpoint=path)
    assert run(checkpoint=path).losses == alone.losses


def test_the_file_is_small_and_plain(tmp_path):
    guide = new(model)
    fit(model, guide, checkpoint=tmp_path / "fit.pt")
    state = torch.load(tmp_path / "fit.pt", weights_only=True)
    assert state["version"] == files.VERSION
    assert set(state) == {"version", "facts", "tensors", "run"}
    numbers = sum(p.numel() for p in guide.parameters())
    assert (tmp_path / "fit.pt").stat().st_size < 4 * 4 * numbers * 1.5 + 100_000
