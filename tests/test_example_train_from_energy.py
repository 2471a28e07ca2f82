"""What the example "train from energy" reports is what quadrature says of the same flow."""

from __future__ import annotations

import math

import pyro
import pytest
import torch

from tests.test_examples import example


@pytest.fixture(autouse=True)
def _fresh():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(before)


def square(half: float, num: int) -> tuple[torch.Tensor, float]:
    """Midpoints of equal cells, shape (num^2, 2), and the area of a cell."""
    axis = half * ((2 * torch.arange(num, dtype=torch.float64) + 1) / num - 1)
    return torch.cartesian_prod(axis, axis), (2 * half / num) ** 2


def test_the_known_normaliser_is_that_of_the_energy():
    module = example("train_from_energy")
    x, area = square(4.0, 1000)
    log_z = float(module.log_energy(x).logsumexp(0)) + math.log(area)
    assert log_z == pytest.approx(module.LOG_Z, abs=1e-6)


@pytest.mark.parametrize("way", ["Adam", "fit_guide"])
def test_the_numbers_of_a_run(way, monkeypatch):
    """KL, share of effective draws and log Z, by draws as on a grid; and the steps taken."""
    module = example("train_from_energy")
    monkeypatch.setattr(module, "EPOCH", 150)
    found = module.run(way, 0, 1, num_draws=50_000)
    assert len(found.losses) == 150

    x, area = square(6.0, 500)
    with torch.no_grad():
        log_q = found.guide.log_prob({"x": x.float()}).double()
    q, log_u = log_q.exp() * area, module.log_energy(x)
    assert float(q.sum()) == pytest.approx(1, abs=0.01)
    assert found.kl == pytest.approx(float((q * (log_q - log_u)).sum()) + module.LOG_Z, abs=0.02)
    if way == "fit_guide":  # after so few steps of Adam, cells too rare to be drawn decide it
        log_ess = 2 * module.LOG_Z - float((2 * (log_u - log_q)).add(q.log()).logsumexp(0))
        assert found.ess == pytest.approx(math.exp(log_ess), rel=0.05)
    assert found.log_z == pytest.approx(module.LOG_Z, abs=0.02)
