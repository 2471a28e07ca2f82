"""The examples and the benchmarks run, in small."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch

import pyroflows as pf
from tests.benchmarks import _posteriors, families, posteriordb, targets

ROOT = Path(__file__).parent.parent
DATABASE = os.environ.get(posteriordb.PATH_VARIABLE)
needs_database = pytest.mark.skipif(
    DATABASE is None,
    reason=f"no posteriordb: set {posteriordb.PATH_VARIABLE} to a clone of it",
)
TABLE_WORDS = ("elbo", "pareto_k")


@pytest.fixture(autouse=True)
def _fresh():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(before)


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.arviz
@pytest.mark.parametrize(
    "form",
    [[], pytest.param(["--centered"], marks=pytest.mark.slow)],
    ids=["noncentered", "centered"],
)
def test_eight_schools(form: list[str], tmp_path, capsys):
    az = pytest.importorskip("arviz")
    example("eight_schools").main(["--smoke", "--output", str(tmp_path), *form])
    printed = capsys.readouterr().out
    for name in ("mean field", "full rank", "flow"):
        assert printed.count(name) >= 2, printed  # its verdict and its row in the table
    assert all(word in printed for word in TABLE_WORDS)
    assert (tmp_path / "posteriors.png").stat().st_size > 1000
    idata = az.from_netcdf(tmp_path / "flow.nc")
    assert dict(idata["posterior"].sizes) == {"chain": 1, "draw": 1000, "school": 8}
    assert {"mu", "tau", "theta"} <= set(idata["posterior"].data_vars)
    assert "log_weight" in idata["sample_stats"]


def test_energy(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    example("energy").main(["--smoke", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "KL(flow, target)" in printed
    assert "k-hat" in printed
    assert (tmp_path / "energy.png").stat().st_size > 1000


def test_an_example_runs_as_a_user_runs_it(tmp_path):
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "examples" / "energy.py", "--smoke", "--output", "out"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "energy.png").exists()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_benchmark_of_known_targets(name: str, tmp_path, capsys):
    rows = targets.main(
        ["--smoke", "--targets", name, "--flows", "affine", "--output", str(tmp_path / "t.json")]
    )
    if not rows:  # a target of other people's data says so
        said = capsys.readouterr().out
        assert "left out: " in said
        pytest.skip(said.strip())
    (row,) = rows
    assert row["target"] == name
    (written,) = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert written["elbo"] == row["elbo"]
    # A Gaussian is found by the start alone, whatever its place and its width.
    if name.startswith("gaussian"):
        assert row["gap"] < 0.01
        assert abs(row["log_z_error"]) < 0.01
        assert row["mean_error"] < 0.15


def test_a_group_of_targets_leaves_out_what_a_flow_cannot_hold():
    rows = targets.main(["--smoke", "--targets", "gaussians", "--flows", "diagonal"])
    assert [row["target"] for row in rows] == targets.GROUPS["gaussians"][:-1]


def test_the_truths_are_those_of_importance_sampling():
    """The quadratures of the table against independent draws."""
    mean, sd = targets.eight_schools_truth(centered=True)["theta"]
    assert mean.shape == sd.shape == (8,)
    # Reference draws: theta[1] 6.15 (sd 5.6), theta[3] 3.9 (sd 5.3), as is published.
    assert abs(mean[0] - 6.2) < 0.1
    assert abs(sd[0] - 5.6) < 0.1
    assert abs(mean[2] - 3.9) < 0.1


def test_a_missing_database_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(posteriordb.PATH_VARIABLE, raising=False)
    with pytest.raises(SystemExit):
        posteriordb.main([])
    assert posteriordb.PATH_VARIABLE in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="posterior_database"):
        posteriordb.main(["--path", str(tmp_path)])


@needs_database
@pytest.mark.parametrize("name", posteriordb.MAIN)
def test_the_benchmark_of_posteriordb(name: str, tmp_path):
    options = ["--smoke", "--path", DATABASE, "--posteriors", name, "--flows", "affine"]
    (row,) = posteriordb.main([*options, "--output", str(tmp_path / "p.json")])
    assert row["posterior"] == name
    assert math.isfinite(row["mean_error"])
    assert json.loads((tmp_path / "p.json").read_text())["rows"][0]["posterior"] == name


@needs_database
@pytest.mark.parametrize("name", _posteriors.POSTERIORS)
def test_a_model_is_that_of_the_reference_draws(name: str):
    """Stein's identity: over draws of the true posterior, the score has mean zero."""
    torch.set_default_dtype(torch.float64)
    posterior, database = _posteriors.POSTERIORS[name], posteriordb.Database(Path(DATABASE))
    model_args = posterior.prepare(database.data(name), torch.float64)
    guide = pf.AutoFlow(posterior.model, "diagonal", init="point", model_args=model_args)
    reference = {scalar: draws[::50] for scalar, draws in database.reference(name).items()}
    if "eight_schools" in name:
        for j in range(1, 9):
            theta = reference.pop(f"theta[{j}]")
            reference[f"theta_trans[{j}]"] = (theta - reference["mu"]) / reference["tau"]
    sites = {
        site: torch.stack([reference[f"{site}[{j + 1}]"] for j in range(value.shape[0])], -1)
        if value.dim()
        else reference[site]
        for site, value in guide.median().items()
    }
    u = guide.pack(sites).detach().requires_grad_()
    (score,) = torch.autograd.grad(guide.log_density(*model_args)(u).sum(), u)
    deviations = score.mean(0) / score.std(0) * len(u) ** 0.5
    assert deviations.abs().max() < 4.5


@pytest.mark.parametrize("num_times", [2, 3, 7, 8])
def test_hidden_states_are_summed_out(num_times: int):
    """Against the sum over all paths."""
    theta1, theta2 = torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)
    emission = torch.randn(num_times, 2, dtype=torch.float64)
    trace = pyro.poutine.trace(_posteriors._two_state_hmm).get_trace(theta1, theta2, emission)
    transition = torch.stack([theta1, theta2]).log()
    paths = torch.cartesian_prod(*[torch.arange(2)] * num_times)
    log_p = emission[torch.arange(num_times), paths].sum(-1)
    log_p = log_p + transition[paths[:, :-1], paths[:, 1:]].sum(-1)
    torch.testing.assert_close(trace.log_prob_sum(), log_p.logsumexp(0))


@pytest.mark.parametrize("flow", ["planar", "ncsf"])
def test_gallery_draws_a_picture_of_a_flow(tmp_path, flow, capsys):
    example("gallery").main(["--smoke", "--flows", flow, "--output", str(tmp_path)])
    assert (tmp_path / f"{flow}.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("KL") == 2


def test_families_are_measured_on_their_targets(tmp_path):
    options = ["--smoke", "--flows", "diagonal", "ncsf", "--output", str(tmp_path / "f.json")]
    rows = families.main(options)
    assert [row["target"] for row in rows] == ["two_arc", "correlated", "moons", "torus"]
    assert all(math.isfinite(row["gap"]) and row["nan_steps"] == 0 for row in rows)
    assert (
        families.main(["--table", str(tmp_path / "f.json")])
        == json.loads((tmp_path / "f.json").read_text())["rows"]
    )
