"""The moons are drawn from the density that scores them, and the numbers are of fresh points."""

from __future__ import annotations

import pyro
import pytest
import torch

from tests.test_examples import example


@pytest.fixture(autouse=True)
def _fresh():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(before)


def test_the_truth_is_a_density_and_that_of_the_draws():
    module = example("maf_moons")
    axis = torch.linspace(-2.0, 3.0, 250, dtype=torch.float64)
    log_p = module.score_moons(torch.cartesian_prod(axis, axis), num_nodes=400)
    p = log_p.exp() * float(axis[1] - axis[0]) ** 2
    assert float(p.sum()) == pytest.approx(1, abs=1e-4)

    entropy = -float((p * log_p).sum())
    assert entropy == pytest.approx(0.2892, abs=5e-4)  # the same on finer grids
    scores = module.score_moons(module.draw_moons(10_000), num_nodes=400)
    assert -float(scores.mean()) == pytest.approx(entropy, abs=4 * float(scores.std()) / 100)


def test_the_toy_finds_shift_and_scale():
    module = example("maf_moons")
    found = module.fit_toy(400)()
    torch.testing.assert_close(found.mean, module.LOC, atol=0.06, rtol=0)
    torch.testing.assert_close(found.stddev, module.SCALE, atol=0.06, rtol=0)


def test_the_likelihood_is_that_of_fresh_points_and_the_network_the_one_named():
    module = example("maf_moons")
    found = module.run("maf", 3, num_points=600, num_epochs=2)
    torch.manual_seed(3)
    seen, fresh = module.draw_moons(600), module.draw_moons(module.NUM_POINTS)
    with torch.no_grad():
        assert -float(found.density().log_prob(fresh).mean()) == pytest.approx(found.nll, abs=1e-4)
        assert -float(found.density().log_prob(seen).mean()) != pytest.approx(found.nll, abs=1e-4)
    widths = [tuple(weight.shape) for weight in found.density.parameters() if weight.dim() == 2]
    assert widths.count((128, 128)) == 3  # one between the hidden layers of each of three
