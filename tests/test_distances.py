"""Distances of draws from a reference: coordinate by coordinate, and by a classifier."""

from __future__ import annotations

import math
import time
import warnings

import numpy as np
import pytest
import torch

from pyroflows.diagnostics import _arviz
from pyroflows.diagnostics.distances import c2st, marginal_distances

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("arviz")

COLUMNS = ["mean_error", "sd_ratio", "q05_error", "q50_error", "q95_error", "wasserstein"]


def draws(shape, loc=0.0, scale=1.0, seed=0):
    return loc + scale * np.random.default_rng(seed).normal(size=shape)


def pair_of(dim, seed=0, number=1000):
    return torch.randn(2, number, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.arviz
def test_shift_and_stretch_are_in_standard_deviations_of_the_reference():
    reference = {"z": draws(20_000, 5.0, 2.0)}
    moved = {"z": 3.0 + 1.5 * reference["z"]}
    # 5 + 2 x becomes 10.5 + 3 x: by 2.75 + x / 2 standard deviations of the reference.
    table = marginal_distances({"moved": moved, "same": reference}, reference)
    assert table.index.names == ["fit", "coordinate"]
    assert list(table.columns) == COLUMNS
    row = table.loc[("moved", "z")]
    assert row["sd_ratio"] == pytest.approx(1.5)
    assert row["mean_error"] == pytest.approx(2.75, abs=0.02)
    assert row["q50_error"] == pytest.approx(2.75, abs=0.02)
    assert row["q05_error"] == pytest.approx(2.75 - 1.645 / 2, abs=0.03)
    assert row["q95_error"] == pytest.approx(2.75 + 1.645 / 2, abs=0.03)
    assert row["wasserstein"] == pytest.approx(2.75, abs=0.02)
    assert list(table.loc[("same", "z")]) == [0, 1, 0, 0, 0, 0]


@pytest.mark.arviz
def test_wasserstein_of_a_wider_law():
    # Between N(0, 1) and N(0, 1.5^2) it is half the mean of |x|.
    fits = {"wide": {"z": draws(40_000, scale=1.5, seed=1)}}
    table = marginal_distances(fits, {"z": draws(40_000)})
    row = table.loc[("wide", "z")]
    assert row["wasserstein"] == pytest.approx(0.5 * math.sqrt(2 / math.pi), abs=0.03)
    assert row["mean_error"] == pytest.approx(0.0, abs=0.03)


@pytest.mark.arviz
def test_coordinates_are_called_by_their_labels():
    import xarray as xr

    lead = ("chain", "draw")
    posterior = xr.Dataset(
        {
            "mu": (lead, draws((2, 50))),
            "theta": ((*lead, "school", "part"), draws((2, 50, 2, 2))),
        },
        coords={"school": ["a", "b"]},
    )
    data = _arviz.build({"posterior": posterior}, {})
    table = marginal_distances({"one": data, "two": data}, "one")
    assert list(table.index) == [
        ("two", label)
        for label in ("mu", "theta[a, 0]", "theta[a, 1]", "theta[b, 0]", "theta[b, 1]")
    ]
    assert list(marginal_distances({"two": data}, data, var_names=["mu"]).index) == [("two", "mu")]


@pytest.mark.arviz
def test_what_the_reference_holds_fixed_has_no_scale():
    reference = draws((1000, 2))
    reference[:, 1] = 0.1
    table = marginal_distances({"fit": {"z": draws((800, 2), seed=1)}}, {"z": reference})
    assert table.loc[("fit", "z[1]")].isna().all()
    assert table.loc[("fit", "z[0]")].abs().max() < 1.2


@pytest.mark.arviz
def test_bad_marginals_are_refused():
    fits = {"a": {"z": draws(100)}}
    with pytest.raises(ValueError, match=r"a reference among \['a'\], got 'b'"):
        marginal_distances(fits, "b")
    with pytest.raises(ValueError, match="fits beside the reference 'a', got none"):
        marginal_distances(fits, "a")
    with pytest.raises(ValueError, match="expected a mapping of name to fit, got dict, empty"):
        marginal_distances({}, fits["a"])
    with pytest.raises(TypeError, match=r"'a': expected InferenceData, .* got int"):
        marginal_distances({"a": 3}, fits["a"])
    with pytest.raises(ValueError, match="'z' differs between fits"):
        marginal_distances(fits, {"z": draws((100, 2))})
    broken = {"z": np.array([0.0, np.nan, 1.0, np.inf])}
    with pytest.raises(ValueError, match=r"finite draws or more of 'z' in 'a', got 2 of 4"):
        marginal_distances({"a": broken}, fits["a"])
    with pytest.raises(ValueError, match=r"of 'z' in 'the reference', got 2 of 4"):
        marginal_distances(fits, broken)
    with pytest.raises(ValueError, match="at least one variable"):
        marginal_distances(fits, fits["a"], var_names=[])


@pytest.mark.parametrize(("dim", "seed"), [(1, 0), (2, 1), (10, 2)])
def test_equal_laws_are_not_told_apart(dim, seed):
    one, other = pair_of(dim, seed)
    start = time.perf_counter()
    assert 0.47 < c2st(one, other, seed=seed) < 0.54
    assert time.perf_counter() - start < 10  # one second on an idle core


def test_a_wider_law_is_told_apart():
    # The best that any classifier can do with one coordinate is 0.597.
    one, other = pair_of(1)
    assert 0.57 < c2st(1.5 * one, other) < 0.63
    one, other = pair_of(5)
    assert c2st(1.5 * one, other) > 0.65


def test_a_correlation_is_told_apart():
    one, other = pair_of(2)
    tied = one.clone()
    tied[:, 1] = 0.9 * one[:, 0] + math.sqrt(1 - 0.9**2) * one[:, 1]
    assert c2st(tied, other) > 0.7
    assert c2st(other, tied) > 0.7


def test_scale_and_place_do_not_matter():
    one, other = pair_of(2)
    stretch = torch.tensor([1e-6, 1e5])
    expected = c2st(one + 0.5, other)
    moved = [stretch.double() * (points.double() + 3.0) for points in (one + 0.5, other)]
    assert c2st(*moved) == pytest.approx(expected, abs=0.02)


def test_a_far_law_is_always_told_apart():
    one, other = pair_of(2)
    assert c2st(one + 1e30, other) == 1.0
    assert c2st(one, torch.ones_like(other)) > 0.99


def test_accuracy_is_of_what_was_held_out():
    # With more coordinates than draws to learn from, a network knows every draw it has seen.
    one, other = pair_of(40, number=60)
    assert c2st(one, other) < 0.75


def test_seed_decides_and_the_callers_generator_is_left_alone():
    one, other = pair_of(3, number=200)
    before = torch.get_rng_state()
    first = c2st(one + 0.3, other, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert c2st(one + 0.3, other, seed=1) == first
    assert c2st(one + 0.3, other, seed=2) != first


def test_arrays_and_tensors_are_the_same_whatever_the_defaults():
    one, other = pair_of(2, number=200)
    expected = c2st(one, other)
    assert c2st(one.numpy(), other.double().requires_grad_()) == expected
    torch.set_default_dtype(torch.float64)
    with torch.no_grad(), torch.device("meta"):
        assert c2st(one, other) == expected


def test_as_many_of_each_are_taken_evenly():
    one, other = pair_of(1, number=3000)
    one[1000:] += 3.0
    # Two thirds of one law lie far from the other; the first thousand alone would not.
    assert c2st(one, other) > 0.7
    assert c2st(one, other[:500]) > 0.7
    assert 0.44 < c2st(one[:1000], other, max_draws=303) < 0.57
    thinned = one[np.linspace(0, 2999, 200).astype(int)]
    assert c2st(one, other, max_draws=200) == c2st(thinned, other)


def test_bad_draws_are_refused():
    good = draws((100, 2))
    for bad, found in ((draws(100), r"\(100,\)"), (draws((49, 2)), r"\(49, 2\)")):
        with pytest.raises(ValueError, match=rf"draws of shape \(S, D\) .*got {found}"):
            c2st(bad, good)
        with pytest.raises(ValueError, match=rf"reference of shape \(S, D\) .*got {found}"):
            c2st(good, bad)
    with pytest.raises(ValueError, match="as many coordinates, got 3 and 2"):
        c2st(draws((100, 3)), good)
    broken = good.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="expected finite draws, got 1 of 100 that are not"):
        c2st(broken, good)
    with pytest.raises(ValueError, match="expected finite reference"):
        c2st(good, broken)
    with pytest.raises(TypeError, match="draws to be numbers, got dtype <U1"):
        c2st(np.full((100, 2), "a"), good)
    with pytest.raises(ValueError, match="expected max_draws >= 50, got 10"):
        c2st(good, good, max_draws=10)
    with pytest.raises(TypeError, match="expected seed to be an int"):
        c2st(good, good, seed=None)
