"""The classic experiments of flows run, in small, and their densities are what they say."""

import math

import pyro
import pytest

from tests.test_examples import example

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def test_train_from_energy(tmp_path, capsys):
    runs = example("train_from_energy").main(["--smoke", "--output", str(tmp_path)])
    assert len(runs) == 2
    assert all(math.isfinite(run.kl) and 0 < run.ess <= 1 for run in runs)
    assert all(run.losses[-1] < run.losses[0] for run in runs[:1])
    assert "original: ends at -1.5888, that is KL 0.0232" in capsys.readouterr().out
    assert (tmp_path / "train_from_energy.png").stat().st_size > 10_000


def test_maf_moons(tmp_path, capsys):
    runs = example("maf_moons").main(["--smoke", "--output", str(tmp_path)])
    assert [run.name for run in runs] == ["maf", "nsf"]
    assert all(math.isfinite(run.nll) for run in runs)
    assert all(run.truth == pytest.approx(0.295, abs=0.03) for run in runs)
    assert "zuko 0.378" in capsys.readouterr().out
    assert (tmp_path / "maf_moons.png").stat().st_size > 10_000
