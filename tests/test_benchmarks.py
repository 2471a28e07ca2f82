"""The benchmarks of speed run, in small; peers that are not installed are named, not missed."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import _peers_race, step
from tests.benchmarks._peers_race import Result, rows_of
from tests.benchmarks._peers_worker import CONTESTANTS, Worker, contestants


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
    """Of what is certain: a larger task takes more, by about what its tensors hold."""
    stable = _peers_race.Stable()
    sizes = [
        stable.peak_memory("networks", {"measure": "energy", "dim": 16, "num_draws": n})
        for n in (1, 8192)
    ]
    out = 8192 * 16 * 23 * 4  # bytes of what one network returns
    assert out < sizes[1] - sizes[0] < 8 * out


def test_a_contestant_that_fails_says_so():
    with _peers_race.Stable() as stable:
        task = {"measure": "energy", "dim": 0}
        with pytest.raises(_peers_race.ContestantError, match="Error: "):
            stable.of("pyroflows").ask("build", "pyroflows", task=task)
