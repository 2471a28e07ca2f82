"""The script that compares the majors of ArviZ does see a difference."""

import json
import math

import pytest

from tests.both_majors import differences, main

pytestmark = pytest.mark.arviz


def test_a_difference_is_seen():
    ours = {"a": 1.0, "b": math.nan, "c": math.inf, "d": 1e3}
    assert differences(ours, dict(ours)) == []
    assert differences(ours, ours | {"a": 1.0 + 2e-6}) == ["a: 1.0 here, 1.000002 there"]
    assert differences(ours, ours | {"d": 1e3 + 1e-4}) == []  # relative where large
    assert len(differences(ours, ours | {"b": 0.0, "c": -math.inf})) == 2
    assert differences(ours, ours | {"e": 1.0}) == ["e: only under one"]


@pytest.mark.slow
def test_the_script_writes_and_then_compares(tmp_path, capsys, monkeypatch):
    pytest.importorskip("arviz")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = tmp_path / "numbers.json"
    assert main(str(path)) == 0
    assert main(str(path)) == 0
    assert "are the same" in capsys.readouterr().out
    numbers = json.loads(path.read_text())
    path.write_text(json.dumps(numbers | {"loo/elpd": 0.0}))
    assert main(str(path)) == 1
