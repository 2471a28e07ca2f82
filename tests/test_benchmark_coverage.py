"""The benchmark of coverage runs, in small, and goes on from its file."""

from __future__ import annotations

import json
import warnings

import pytest

from tests.benchmarks import coverage


@pytest.mark.slow
def test_the_benchmark_of_coverage(tmp_path, capsys):
    options = ["--smoke", "--checkpoint", str(tmp_path / "ranks.jsonl")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fits this short may say a thing or two
        rows = coverage.main([*options, "--output", str(tmp_path / "coverage.json")])
        again = coverage.main(options)
    assert rows == again
    assert len(rows) == 19  # mu, tau, eight deviations, eight effects, all of them
    assert rows[-1]["quantity"] == "all"
    assert 0 <= rows[-1]["held_90"] <= 100
    assert json.loads((tmp_path / "coverage.json").read_text())["settings"]["simulations"] == 3
    assert "90 % intervals hold" in capsys.readouterr().out
