"""The benchmarks of speed run, in small; peers that are not installed are named, not missed."""

from __future__ import annotations

import json
import sys

import pyro
import pytest
import torch

import pyroflows as pf
from tests.benchmarks import _peers_fit, _peers_race, scaling, step, time_to_target
from tests.benchmarks._peers_fit import CapError, Watch
from tests.benchmarks._peers_race import ContestantError, Result, rows_of
from tests.benchmarks._peers_targets import PATH_VARIABLE, POSTERIORS, Posterior
from tests.benchmarks._peers_worker import CONTESTANTS, Worker, contestants


class InThisProcess:
    """A worker without a process: quicker to start, where its bounds do not matter."""

    def __init__(self, *options: object) -> None:
        self.worker = Worker(*options)

    def ask(self, action: str, name: str, **arguments: object) -> float:
        reply = self.worker.answer({"do": action, "name": name, **arguments})
        if "problem" in reply:
            raise ContestantError(reply["problem"])
        return reply["value"]

    def close(self) -> None:
        pass

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


@pytest.fixture
def _in_this_process(monkeypatch):
    monkeypatch.setattr(_peers_race, "WorkerProcess", InThisProcess)
    threads = torch.get_num_threads()
    with pyro.validation_enabled(True):
        yield
    torch.set_num_threads(threads)


def test_ratios_are_taken_round_by_round():
    """A round in which the machine was slow was slow for both."""
    mine, peer = Result("mine", seconds=[1.0, 20.0, 3.0]), Result("peer", seconds=[2.0, 40.0, 4.0])
    assert mine.ratio_to(peer) == (0.5, 0.5, 0.75)
    rows = rows_of({"mine": mine, "peer": peer}, ["peer"], dim=2)
    assert rows[0]["ms"] == 3000.0
    assert rows[0]["to_peer_highest"] == 0.75
    assert rows[1]["to_peer"] == 1.0


def test_a_contestant_with_a_problem_has_a_word_and_no_number():
    results = {"mine": Result("mine", seconds=[1.0]), "peer": Result("peer", problem="not there")}
    rows = rows_of(results, ["peer"], dim=2)
    assert rows[1]["problem"] == "not there"
    assert "ms" not in rows[1]
    assert "to_peer" not in rows[0]


def test_a_missing_peer_is_an_import_error(monkeypatch):
    monkeypatch.setitem(CONTESTANTS, "nobody", ("_peers", "nobody", "a_library_of_nobody"))
    worker = Worker.__new__(Worker)
    worker.steps, worker.device = {}, "cpu"
    with pytest.raises(ImportError, match="a_library_of_nobody"):
        worker.build("nobody", {"measure": "energy", "dim": 2})


def test_every_contestant_is_in_the_table():
    taking_part = {
        name for measure in step.MEASURES for name in contestants(measure, compiled=True)
    }
    assert taking_part == set(CONTESTANTS)


@pytest.mark.usefixtures("_in_this_process")
def test_the_benchmark_of_a_step(tmp_path, capsys):
    pytest.importorskip("zuko", reason="zuko, the peer, is not installed")
    some = ["networks", "pyroflows", "pyroflows path", "pyroflows by hand", "zuko", "pyro"]
    options = ["--smoke", "--only", *some, "--output", str(tmp_path / "step.json")]
    rows = step.main([*options, "--measure", "energy", "log_prob", "sample", "score_affine"])
    by_name = {(row["measure"], row["contestant"]): row for row in rows}
    assert [name for measure, name in by_name if measure == "energy"] == some
    assert not [row for row in rows if row["problem"]]
    assert all(row["to_zuko"] > 0 and row["start_up_seconds"] > 0 for row in rows)
    assert by_name["log_prob", "zuko"]["to_zuko"] == 1
    assert json.loads((tmp_path / "step.json").read_text())["rows"] == rows
    assert "score_affine, D = 2" in capsys.readouterr().out


def test_the_memory_of_a_step():
    """More than what one network returns, and less than all that three could hold."""
    task = {"measure": "energy", "dim": 16, "num_draws": 8192}
    output = 4 * 8192 * 16 * 23  # bytes
    assert output < _peers_race.Stable().peak_memory("networks", task) < 8 * output


def test_a_contestant_that_fails_says_so():
    """From a process of its own, which goes on."""
    with _peers_race.Stable() as stable:
        task = {"measure": "energy", "dim": 0}
        with pytest.raises(ContestantError, match="Error: "):
            stable.of("pyroflows").ask("build", "pyroflows", task=task)
        assert stable.of("networks").ask("build", "networks", task=task | {"dim": 2}) > 0


# Time to a target -----------------------------------------------------------------------------

WITHOUT_FILES = [name for name in POSTERIORS if name != "german_credit"]


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_the_plain_density_is_that_of_the_model(name: str):
    """On the same coordinates in the same order, log-Jacobian included."""
    posterior = POSTERIORS[name]()
    guide = pf.AutoFlow(posterior.model, "diagonal", init="point", model_args=())
    u = 0.5 * torch.randn(7, posterior.dim)
    assert guide.latent_dim == posterior.dim
    torch.testing.assert_close(guide.log_density()(u), posterior.log_density(u))


def test_the_correlated_target_is_normalised():
    """Pushed forward by a map that keeps volume up to its determinant: exact draws have log q."""
    posterior = POSTERIORS["correlated_64"]()
    z = torch.randn(1000, 64, dtype=torch.float64)
    covariance = 0.9 ** (torch.arange(64)[:, None] - torch.arange(64)).abs().double()
    tril = torch.linalg.cholesky(covariance)
    bent = torch.stack([z[:, ::2], z[:, 1::2] + 0.1 * (z[:, ::2] ** 2 - 1)], -1).flatten(1)
    log_q = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - tril.diagonal().log().sum()
    found = posterior.log_density((bent @ tril.T).float())
    torch.testing.assert_close(found, log_q.float(), rtol=0, atol=1e-3)


def _watch(gap: float, **options) -> Watch:
    """A watch over a guide whose every draw has the same weight."""
    time = iter(range(1000))
    posterior = Posterior(1, 0.0, lambda: None, lambda u: torch.full((len(u),), -gap))
    watch = Watch(posterior, bar=0.05, cap=100.0, clock=lambda: float(next(time)), **options)
    watch.draw = lambda n: (torch.zeros(n, 1), torch.zeros(n))
    watch.start()
    return watch


def test_the_watch_ends_a_fit_that_has_reached_the_bar_and_counts_no_watching():
    watch = _watch(gap=0.04)
    with pytest.raises(CapError):
        watch.look()
    row = watch.row()
    assert row["seconds_to_gap"] == 1
    assert abs(row["gap"] - 0.04) < 1e-6
    # Five ticks since the start, two of them while watching.
    assert row["seconds"] == 3


def test_enough_effective_draws_are_counted_in_batches():
    """Draws of equal weight are all effective."""
    assert abs(_peers_fit.batches_needed(torch.zeros(1000, dtype=torch.float64)) - 4) < 1e-9


def test_the_watch_goes_on_above_the_bar():
    watch = _watch(gap=0.06)
    watch.look()
    assert watch.row()["seconds_to_gap"] is None


def test_looks_grow_rarer():
    watch = _watch(gap=0.06)
    for _ in range(60):
        watch.look()
    assert 10 < len(watch.gaps) < 40


def test_the_benchmark_of_the_time_to_a_target(tmp_path, capsys):
    """Pyro alone, so that no peer has to be there."""
    options = ["--smoke", "--targets", "eight_schools", "--output", str(tmp_path / "t.json")]
    (row,) = time_to_target.main([*options, "--only", "pyro normal 0.01"])
    assert row["problem"] is None
    assert row["gap"] > 0.05
    assert row["seconds_to_gap"] is None
    assert json.loads((tmp_path / "t.json").read_text())["rows"] == [row]
    assert "> 1" in capsys.readouterr().out


def test_a_missing_sampler_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpyro", None)
    command = {"contestant": "numpyro vectorized", "target": "eight_schools", "clock": "wall"}
    reply = _peers_fit.answer({**command, "num_draws": 10, "seed": 0})
    assert "not installed" in reply["problem"]


def test_ours_is_watched_without_a_change_to_its_fit():
    """The same steps as ``fit_guide`` takes by itself, and the same draws at the end."""
    posterior = POSTERIORS["eight_schools"]()
    watch = Watch(posterior, bar=0.05, cap=1.0)
    pyro.set_rng_seed(0)
    row = _peers_fit.pyroflows(posterior, watch, num_steps=5)
    pyro.set_rng_seed(0)
    guide = pf.AutoFlow(posterior.model, "nsf", model_args=())
    fit = pf.fit_guide(posterior.model, guide, num_steps=5, seed=0, progress_bar=False)
    assert row["steps"] == 5
    assert row["ess"] == fit.diagnostics.ess


def test_missing_data_are_left_out_by_name(monkeypatch, capsys):
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    assert time_to_target.main(["--smoke", "--targets", "german_credit"]) == []
    assert PATH_VARIABLE in capsys.readouterr().out


# Scaling --------------------------------------------------------------------------------------


def test_the_exponent_of_a_power_is_found():
    assert abs(scaling.exponent([2, 4, 8], [3.0, 12.0, 48.0]) - 2) < 1e-12


@pytest.mark.usefixtures("_in_this_process")
def test_the_benchmark_of_scaling(tmp_path):
    options = ["--guides", "realnvp diagonal", "--output", str(tmp_path / "s.json")]
    rows = scaling.main(["--smoke", *options])
    assert [row.get("d") for row in rows] == [4, 8, None]
    assert all(row["ms"] > 0 and row["start_seconds"] > 0 for row in rows[:2])
    assert {"exponent_ms", "exponent_megabytes"} < set(rows[2])
