"""The benchmark of densities in small, and the truth of its toys."""

import json
import math

import numpy as np
import pytest
import torch

from tests.benchmarks import density
from tests.benchmarks._density_sets import rows_of
from tests.benchmarks._density_toys import TOYS, draw_conditional, score_conditional

ENTROPIES = {"moons": (0.295, 0.01), "8 gaussians": (2.845, 0.01), "checkerboard": (3.4657, 1e-4),
             "rings": (2.111, 0.02)}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", TOYS)
def test_toys_integrate_to_one(name):
    num = 151 if name == "moons" else 301  # whose score is a sum over many nodes
    grid = torch.linspace(-4.5, 4.5, num, dtype=torch.float64) + 1e-4
    points = torch.cartesian_prod(grid, grid)
    mass = TOYS[name].log_prob(points).exp().sum() * (9 / (num - 1)) ** 2
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


def test_what_is_missing_is_left_out_in_words(capsys, monkeypatch):
    for variable in (density.PATH_VARIABLE, density.DATABASE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    found = density.main(["--smoke", "--toys", "--sets", "magic", "diamonds", "--seeds", "0"])
    assert not found
    printed = capsys.readouterr().out
    assert "left out: magic: give the folder of magic.csv.gz by --path" in printed
    assert "left out: diamonds: give a clone of posteriordb" in printed


@pytest.mark.parametrize(("name", "shape"), [("digits", (1797, 64)), ("patches", (33_180, 63))])
def test_images_become_rows(name, shape):
    pytest.importorskip("sklearn")
    rows = rows_of(name, None, None)
    assert rows.shape == shape
    assert np.isfinite(rows).all()


def test_the_conditional_toy_integrates_to_one():
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    for c in (-2.0, -0.3, 1.5):
        mass = score_conditional(grid, torch.full_like(grid, c)).exp().sum() * 12 / 4000
        assert float(mass) == pytest.approx(1, abs=1e-6)


def test_draws_of_the_conditional_toy_are_its_own():
    """The same mean log density, of draws and by the sum over a grid."""
    x, c = draw_conditional(200_000)
    grid = torch.linspace(-6, 6, 801, dtype=torch.float64)[None, :, None].expand(400, -1, 1)
    at = ((torch.arange(400, dtype=torch.float64) + 0.5) / 100 - 2)[:, None, None].expand_as(grid)
    score = score_conditional(grid.reshape(-1, 1), at.reshape(-1, 1))
    expected = (score.exp() * score).sum() * 12 / 800 / 400
    assert float(score_conditional(x, c).mean()) == pytest.approx(float(expected), abs=0.01)


def test_a_covariate_counts(capsys):
    (row,) = density.main(["--smoke", "--toys", "conditional", "--sets", "--seeds", "0"])
    assert math.isfinite(row["gap"])
    assert math.isfinite(row["shuffled"])


@pytest.mark.parametrize("peer", ["zuko nsf", "mixture"])
def test_peers_run_beside(peer):
    pytest.importorskip("zuko" if peer.startswith("zuko") else "sklearn")
    found = density.main(["--smoke", "--toys", "rings", "--sets", "--seeds", "0", "--peers", peer])
    assert [row["library"] for row in found] == ["pyroflows", peer]
