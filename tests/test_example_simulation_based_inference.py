"""Inference from a simulator runs, in small, and its exact posterior is one."""

import math

import pytest
import torch

from tests.test_examples import example

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_it_runs(tmp_path, capsys):
    module = example("simulation_based_inference")
    (found,) = module.main(["--smoke", "--output", str(tmp_path)])
    assert math.isfinite(found.exact_kl)
    assert list(found.calibration.ranks) == ["t1", "t2"]
    assert "90 % intervals hold" in capsys.readouterr().out
    for name in ("posterior", "calibration"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_the_exact_posterior_is_that_of_the_simulator():
    """Its mean of a function, against parameters whose simulated data come near the observed."""
    module = example("simulation_based_inference")
    axis = (torch.arange(1000) + 0.5) / 500 - 1
    exact = module.exact_posterior(axis, torch.zeros(2)) / 500**2
    assert float(exact.sum()) == pytest.approx(1, abs=1e-4)
    theta = 2 * torch.rand(2_000_000, 2) - 1
    near = theta[module.simulate(theta).norm(dim=-1) < 0.02]
    found = (axis[:, None] * axis * exact).sum()
    assert float(near.prod(-1).mean()) == pytest.approx(float(found), abs=0.005)
    assert float(found) > 0.02
