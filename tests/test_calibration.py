"""Calibration by simulation: ranks of what is known among draws of what is claimed."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

import pyroflows as pf
from pyroflows.diagnostics.calibration import binomial_tails

NUM, DRAWS = 400, 99


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def of_normal(loc: float = 0.0, scale: float = 1.0, num: int = NUM) -> pf.Calibration:
    """Truths from N(m, 1), draws from N(m + loc, scale), where m is each data set's own."""
    middle = 3 * torch.randn(num, 1)
    truths = middle + torch.randn(num, 1)
    draws = middle + loc + scale * torch.randn(DRAWS, num, 1)
    return pf.Calibration.of_draws(draws, truths, names=["mu"])


def test_tails_are_those_of_the_binomial():
    probs = np.array([0.01, 0.3, 0.999])
    lower, upper = binomial_tails(50, probs)
    counts = np.arange(51)
    for row, prob in enumerate(probs):
        np.testing.assert_allclose(lower[row], binom.cdf(counts, 50, prob), atol=1e-12)
        np.testing.assert_allclose(upper[row], binom.sf(counts - 1, 50, prob), atol=1e-12)


def test_ranks_count_the_draws_below():
    draws = torch.arange(10.0)[:, None, None].expand(10, 3, 1)
    found = pf.Calibration.of_draws(draws, torch.tensor([[-1.0], [4.5], [20.0]]))
    assert found.ranks["theta[0]"].tolist() == [0, 5, 10]
    assert found.num_draws == 10


def test_ties_are_broken_at_random():
    """All draws equal to the truth say nothing: the rank is any."""
    found = pf.Calibration.of_draws(torch.zeros(9, 2000, 1), torch.zeros(2000, 1))
    assert np.bincount(found.ranks["theta[0]"], minlength=10).min() > 120
    assert found.is_calibrated


def test_a_right_posterior_passes():
    found = of_normal()
    assert found.is_calibrated
    assert found.p_values["mu"] > 0.05
    assert "no departure" in str(found)


@pytest.mark.parametrize(
    ("loc", "scale", "said"),
    [(0, 0.6, "too narrow"), (0, 1.6, "too wide"), (0.4, 1, "too high"), (-0.4, 1, "too low")],
)
def test_a_wrong_posterior_fails_in_words(loc, scale, said):
    found = of_normal(loc, scale)
    assert not found.is_calibrated
    assert found.p_values["mu"] < 0.001
    assert said in str(found)


def test_of_right_posteriors_as_many_are_flagged_as_said():
    """One in twenty lies outside the band of 95 % somewhere, and exactly those have p < 0.05."""
    generator = np.random.default_rng(0)
    flagged = 0
    for _ in range(300):
        ranks = {"a": generator.integers(0, DRAWS + 1, 200)}
        found = pf.Calibration(ranks, DRAWS)
        at, difference, low, high = found.ecdf_difference("a")
        outside = bool(((difference < low - 1e-12) | (difference > high + 1e-12)).any())
        assert outside == (found.p_values["a"] < 0.05)
        assert len(at) == len(difference) == len(low) == len(high)
        flagged += outside
    assert 3 <= flagged <= 30


def test_coverage_of_intervals():
    share, error = of_normal(num=2000).coverage(0.9)["mu"]
    assert abs(share - 0.9) < 4 * error
    assert 0.005 < error < 0.01
    narrow, _ = of_normal(scale=0.6, num=2000).coverage(0.9)["mu"]
    assert narrow == pytest.approx(0.677, abs=0.04)  # of a normal within 0.6 * 1.645


def test_a_density_is_calibrated_where_it_is_right():
    density = pf.FlowDensity(1, "affine", context_dim=1, standardize=False)
    with torch.no_grad():
        for p in density.parameters():
            p.zero_()
    context = torch.randn(NUM, 1)
    truths = density(context).sample()
    right = pf.calibrate_density(density, truths, context, num_draws=DRAWS, names=["y"])
    assert list(right.ranks) == ["y"]
    assert right.is_calibrated
    shifted = pf.calibrate_density(density, truths + 0.5, context, num_draws=DRAWS)
    assert "too low" in str(shifted)


def test_a_density_without_covariates_is_calibrated_too():
    torch.manual_seed(1)
    density = pf.FlowDensity(2, "affine", standardize=False)
    found = pf.calibrate_density(density, density().sample((NUM,)), num_draws=20)
    assert found.is_calibrated
    assert list(found.ranks) == ["theta[0]", "theta[1]"]


def test_the_seed_of_the_simulations_may_be_that_of_the_ranks():
    density = pf.FlowDensity(1, "affine", standardize=False)
    torch.manual_seed(7)
    truths = density().sample((NUM,))
    assert pf.calibrate_density(density, truths, num_draws=1, seed=7).is_calibrated


def test_the_same_seed_gives_the_same_ranks():
    density = pf.FlowDensity(1, "affine")
    x = torch.randn(50, 1)
    first, second = (pf.calibrate_density(density, x, seed=3, num_draws=20) for _ in range(2))
    assert (first.ranks["theta[0]"] == second.ranks["theta[0]"]).all()


def test_refusals():
    with pytest.raises(ValueError, match=r"draws of shape \(L, 4, 2\), got \(10, 3, 2\)"):
        pf.Calibration.of_draws(torch.zeros(10, 3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="2 names, got 1"):
        pf.Calibration.of_draws(torch.zeros(10, 4, 2), torch.zeros(4, 2), names=["a"])
    with pytest.raises(ValueError, match="NaN or infinite"):
        pf.Calibration.of_draws(torch.full((10, 4, 2), torch.nan), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"ranks from 0 to 9, whole numbers, got 0 to 12"):
        pf.Calibration({"a": np.array([0, 12])}, 9)
    with pytest.raises(ValueError, match=r"whole numbers, got 0\.5 to 1"):
        pf.Calibration({"a": np.array([0.5, 1.0])}, 9)
    for ranks, num_draws in (
        ({}, 9),
        ({"a": []}, 9),
        ({"a": [1], "b": [1, 2]}, 9),
        ({"a": [0]}, 0),
    ):
        with pytest.raises(ValueError, match="equally many of each, among one draw or more"):
            pf.Calibration(ranks, num_draws)
    with pytest.raises(ValueError, match="num_draws >= 1, got 0"):
        pf.calibrate_density(pf.FlowDensity(1, "affine"), torch.zeros(5, 1), num_draws=0)
    with pytest.raises(ValueError, match=r"prob in \(0, 1\), got 90"):
        of_normal().coverage(90)
    with pytest.raises(KeyError, match="no quantity 'nu': one of mu"):
        of_normal().ecdf_difference("nu")


@pytest.mark.parametrize("kind", ["ecdf", "histogram"])
def test_the_figure_has_a_panel_for_each(kind, tmp_path):
    pytest.importorskip("matplotlib")
    ranks = {name: np.random.default_rng(0).integers(0, 100, 200) for name in "abc"}
    figure = pf.plot_calibration(pf.Calibration(ranks, 99), kind=kind)
    assert [axes.get_title().split(" ")[0] for axes in figure.axes] == ["a", "b", "c"]
    figure.savefig(tmp_path / "figure.png")
    with pytest.raises(ValueError, match="'ecdf' or 'histogram', got 'pie'"):
        pf.plot_calibration(pf.Calibration(ranks, 99), kind="pie")
