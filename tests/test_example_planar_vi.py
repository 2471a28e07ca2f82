"""The example of planar flows runs, in small."""

from __future__ import annotations

import math

import pyro
import pytest
import torch

from tests.benchmarks._known import BOXED, two_arc
from tests.test_examples import example

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _fresh():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(before)


def test_planar_vi(tmp_path, capsys):
    (run,) = example("planar_vi").main(["--smoke", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "original: 0.0780" in printed
    assert "default guide, seed 0" in printed
    assert printed.count("\nU") == 4
    assert 0 < run.kl < 10
    assert sum(run.shares) == pytest.approx(1)
    assert list(run.frames) == [0, 4, 10, 20, 40]
    assert (tmp_path / "planar_vi.png").stat().st_size > 10_000


def test_energies_and_normalisers():
    """Against the benchmarks' own, and quadrature."""
    module = example("planar_vi")
    axis = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    for name, (energy, log_z) in {module.ARCS: (two_arc, 2.313289), **BOXED}.items():
        value = module.ENERGIES[name](grid)
        torch.testing.assert_close(value, energy(grid))
        weight = torch.ones_like(axis)
        if name != module.ARCS:  # the trapezoid rule on the box
            weight = (axis.abs() <= 4 + 1e-9).double() * (1 - 0.5 * ((axis.abs() - 4).abs() < 1e-9))
        total = value + weight.log() + weight.log()[:, None]
        assert total.flatten().logsumexp(0) + 2 * math.log(0.01) == pytest.approx(log_z, abs=1e-4)
        assert module.LOG_Z[name] == log_z


def test_draws_are_scored_with_their_own_density():
    """After some steps, against the inverse of the flow."""
    module = example("planar_vi")
    q = module.Approximation(4)
    before = q.base.raws()["log_scale"].detach().clone()
    module.train(module.ENERGIES[module.ARCS], q, 30, 40, 0.05)
    assert (q.base.raws()["log_scale"] != before).all()  # the base is trained too
    with torch.no_grad():
        z, log_q = q.draw(50)
        noise, log_det = q.flow.inverse_and_log_det(z)
        again = q.base.log_prob(noise) + log_det
    torch.testing.assert_close(log_q, again, atol=1e-3, rtol=1e-4)


def test_a_box_costs_its_jacobian():
    """Mass in coordinates without bounds is mass on the box."""
    module = example("planar_vi")
    axis = torch.linspace(-20, 20, 2001, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    total = module.boxed(module.ENERGIES["U4"])(grid).flatten().logsumexp(0) + 2 * math.log(0.02)
    assert total == pytest.approx(module.LOG_Z["U4"], abs=1e-3)


def test_lobes_are_quarters():
    module = example("planar_vi")
    z = torch.tensor([[-2.0, -3.5], [-2.0, 3.5], [2.0, 3.5], [2.0, 3.4]])
    assert module.lobes(z) == [0.25, 0.25, 0.0, 0.5]
