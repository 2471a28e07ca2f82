"""The benchmark of densities in small, and the truth of its toys."""

import json
import math

import numpy as np
import pytest
import torch

from tests.benchmarks import density
from tests.benchmarks._density_toys import TOYS

ENTROPIES = {"moons": (0.295, 0.01), "8 gaussians": (2.845, 0.01), "checkerboard": (3.4657, 1e-4),
             "rings": (2.111, 0.02)}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", TOYS)
def test_toys_integrate_to_one(name):
    grid = torch.linspace(-4.5, 4.5, 601, dtype=torch.float64) + 1e-4
    points = torch.cartesian_prod(grid, grid)
    mass = TOYS[name].log_prob(points).exp().sum() * (9 / 600) ** 2
    assert float(mass) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", TOYS)
def test_draws_of_toys_have_their_entropy(name):
    known, tolerance = ENTROPIES[name]
    found = -TOYS[name].log_prob(TOYS[name].draw(10_000)).mean()
    assert float(found) == pytest.approx(known, abs=tolerance + 0.03)


def test_it_runs_in_small(tmp_path, capsys):
    rows = np.random.RandomState(0).randn(300, 3).cumsum(-1)
    np.savetxt(tmp_path / "own.csv.gz", rows, delimiter=",")
    found = density.main(
        ["--smoke", "--toys", "moons", "--sets", "own", "--seeds", "0",
         "--path", str(tmp_path), "--output", str(tmp_path / "out.json")]
    )  # fmt: skip
    assert [row["target"] for row in found] == ["moons", "own"]
    assert all(math.isfinite(row["log_likelihood"]) for row in found)
    assert math.isfinite(found[0]["gap"])
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == 2
    assert "log_likelihood" in capsys.readouterr().out


def test_real_sets_are_left_out_in_words(capsys, monkeypatch):
    monkeypatch.delenv(density.PATH_VARIABLE, raising=False)
    density.main(["--smoke", "--toys", "rings", "--seeds", "0"])
    assert "no real sets: give their folder by --path" in capsys.readouterr().out


@pytest.mark.parametrize("peer", ["zuko nsf", "mixture"])
def test_peers_run_beside(peer):
    pytest.importorskip("zuko" if peer.startswith("zuko") else "sklearn")
    found = density.main(["--smoke", "--toys", "rings", "--seeds", "0", "--peers", peer])
    assert [row["library"] for row in found] == ["pyroflows", peer]
