"""Models of the same data in one table: order, errors, stacking weights, refusals."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyroflows import to_inference_data
from pyroflows.diagnostics import _arviz
from pyroflows.diagnostics.leave_one_out import Loo, loo
from pyroflows.diagnostics.models import _stacking_weights, compare_models

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz")

pytestmark = pytest.mark.arviz

COLUMNS = [
    "elpd",
    "se",
    "p_loo",
    "elpd_diff",
    "dse",
    "weight",
    "num_bad_k",
    "max_k",
    "verdict",
]
Y = np.random.default_rng(3).normal(1.0, 1.0, 30)


def normal(loc, scale, seed=0, num_samples=2000, y=Y, dims=("n",), **root):
    """Draws of the mean of normal observations, as chains or, with a guide's scale, weighted."""
    import xarray as xr

    rng = np.random.default_rng(seed)
    mu = rng.normal(loc, scale, (1, num_samples))
    shaped = mu.reshape(1, num_samples, *(1,) * y.ndim)
    each = -0.5 * np.log(2 * np.pi) - (y - shaped) ** 2 / 2
    lead = ("chain", "draw")
    groups = {
        "posterior": xr.Dataset({"mu": (lead, mu, {"kind": "latent"})}),
        "log_likelihood": xr.Dataset({"y": ((*lead, *dims), each)}),
        "observed_data": xr.Dataset({"y": (dims, y)}),
    }
    return _arviz.build(groups, root)


def pointwise(values, name="y", dims=("n",), **attrs):
    import xarray as xr

    each = xr.DataArray(np.asarray(values, float), dims=dims)
    seen = each.values[~np.isnan(each.values)]
    se = math.sqrt(len(seen) * seen.var())
    masked = each.size - len(seen)
    return Loo(seen.sum(), se, 0.1, each, 0 * each, 0.7, 4000, 0, masked, True, name, attrs)


def with_verdict(data, verdict):
    import xarray as xr

    names = ("posterior", "log_likelihood", "observed_data")
    groups = {name: _arviz.get_group(data, name) for name in names}
    groups["sample_stats"] = xr.Dataset({"elbo": 0.0}, attrs={"verdict": verdict})
    return _arviz.build(groups, {})


def test_best_comes_first_with_differences_and_their_errors():
    one, two = normal(1.0, 0.2), normal(0.0, 0.1, seed=1)
    table = compare_models({"off": two, "right": one})
    assert list(table.index) == ["right", "off"]
    assert list(table.columns) == COLUMNS
    best, other = loo(one), loo(two)
    difference = other.elpd_i.values - best.elpd_i.values
    assert tuple(table.loc["right", ["elpd_diff", "dse"]]) == (0.0, 0.0)
    assert table.loc["off", "elpd_diff"] == pytest.approx(difference.sum())
    assert table.loc["off", "elpd_diff"] < -5
    assert table.loc["off", "dse"] == pytest.approx(math.sqrt(30 * difference.var()))
    for name, report in (("right", best), ("off", other)):
        assert table.loc[name, "elpd"] == report.elpd
        assert table.loc[name, "se"] == report.se
        assert table.loc[name, "p_loo"] == report.p_loo
        assert table.loc[name, "max_k"] == float(report.pareto_k.max())
        assert table.loc[name, "num_bad_k"] == 0
        assert table.loc[name, "verdict"] == ""


def test_reports_stand_for_data():
    one, two = normal(1.0, 0.2), normal(0.5, 0.1, seed=1)
    table = compare_models({"a": one, "b": two})
    assert compare_models({"a": loo(one), "b": two}).equals(table)
    assert compare_models({"a": loo(one), "b": loo(two)}).equals(table)


def test_agrees_with_arviz():
    fits = {"a": normal(1.0, 0.2), "b": normal(0.6, 0.2, seed=1), "c": normal(1.5, 0.1, seed=2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = az.compare(
            {name: loo(fit).to_arviz() for name, fit in fits.items()}, method="stacking"
        )
    table = compare_models(fits)
    assert list(table.index) == list(theirs.index)
    np.testing.assert_allclose(table["weight"], theirs["weight"].astype(float), atol=0.02)
    np.testing.assert_allclose(table["dse"], theirs["dse"].astype(float), atol=0.06)


def test_stacking_weights_of_two_kinds_of_observations():
    # Three of four observations have densities (0.8, 0.2), one has (0.2, 0.8): the log score
    # 3 log(0.2 + 0.6 w) + log(0.8 - 0.6 w) is largest where w = 11 / 12.
    each = np.log([[0.8] * 3 + [0.2], [0.2] * 3 + [0.8]])
    np.testing.assert_allclose(_stacking_weights(each), [11 / 12, 1 / 12], atol=1e-3)
    # A model that is nowhere better gets nothing.
    each = np.log([[0.8] * 3 + [0.5], [0.2] * 3 + [0.5]])
    np.testing.assert_allclose(_stacking_weights(each), [1.0, 0.0], atol=1e-3)
    # With densities (0.9, 0.1): 3 log(0.1 + 0.8 w) + log(0.9 - 0.8 w), largest at w = 13 / 16.
    each = np.log([[0.9] * 3 + [0.1], [0.1] * 3 + [0.9]])
    np.testing.assert_allclose(_stacking_weights(each), [13 / 16, 3 / 16], atol=1e-3)
    table = compare_models({"a": pointwise(each[1]), "b": pointwise(each[0])})
    assert list(table.index) == ["b", "a"]
    np.testing.assert_allclose(table["weight"], [13 / 16, 3 / 16], atol=1e-3)


def test_stacking_weights_are_a_maximum_of_the_score():
    rng = np.random.default_rng(0)
    each = rng.normal(-800.0, 2.0, (4, 200)) - 1000 * rng.integers(0, 2, 200)
    weights = _stacking_weights(each)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1.0)

    def score(w):
        return np.log(w @ np.exp(each - each.max(0))).mean()

    for other in rng.dirichlet(np.ones(4), 2000):
        assert score(other) <= score(weights) + 1e-6
    np.testing.assert_array_equal(weights, _stacking_weights(each))


def test_equal_models_share_the_weight():
    each = np.random.default_rng(0).normal(size=10)
    np.testing.assert_allclose(_stacking_weights(np.stack([each, each])), [0.5, 0.5])


def test_masked_observations_are_left_out():
    values = np.array([-1.0, np.nan, -2.0, -3.0])
    table = compare_models({"a": pointwise(values), "b": pointwise(values - [0.1, 0, 0.2, 0.3])})
    assert table.loc["b", "elpd_diff"] == pytest.approx(-0.6)
    assert table.loc["b", "dse"] == pytest.approx(math.sqrt(3 * np.var([0.1, 0.2, 0.3])))
    other = np.array([np.nan, -1.0, -2.0, -3.0])
    with pytest.raises(ValueError, match=r"other masks in 'b' than in 'a'"):
        compare_models({"a": pointwise(values), "b": pointwise(other)})


def test_guides_of_one_model_are_refused():
    marks = np.array([1.25, -3.5e4])
    fits = {
        name: normal(loc, scale, seed=i, model_fingerprint=list(marks * (1 + i * 1e-7)))
        for i, (name, loc, scale) in enumerate(
            [("good", 1.0, 0.2), ("wide", 1.0, 0.4), ("narrow", 1.0, 0.1), ("shifted", 1.2, 0.2)]
        )
    }
    message = r"'good' and 'wide' of one and the same: .* over-confident one first. Use compare_fi"
    with pytest.raises(ValueError, match=message):
        compare_models(fits)
    with pytest.raises(ValueError, match="of one and the same"):
        compare_models({name: loo(fit) for name, fit in fits.items()})
    another = normal(1.0, 0.2, model_fingerprint=list(marks * 1.001))
    assert len(compare_models({"good": fits["good"], "another": another})) == 2
    with pytest.raises(ValueError, match="'good' and 'wide' of one"):
        compare_models({"another": another, "good": fits["good"], "wide": fits["wide"]})


@pytest.mark.parametrize("marks", [None, [1.0, 2.0, 3.0], [1.0, 3.0]])
def test_what_cannot_be_told_or_differs_is_let_through(marks):
    root = {} if marks is None else {"model_fingerprint": marks}
    fits = {
        "a": normal(1.0, 0.2, model_fingerprint=[1.0, 2.0]),
        "b": normal(0.9, 0.2, seed=1, **root),
    }
    assert len(compare_models(fits)) == 2


def test_other_latents_make_another_model():
    one = pointwise([-1.0, -2.0], model_fingerprint=np.ones(2), latents=("mu",))
    nowhere = pointwise([-1.0, -2.0], model_fingerprint=np.array([1.0, np.nan]), latents=("mu",))
    assert len(compare_models({"a": nowhere, "b": nowhere})) == 2
    two = pointwise([-1.0, -2.5], model_fingerprint=np.ones(2), latents=("mu", "sigma"))
    assert len(compare_models({"a": one, "b": two})) == 2
    with pytest.raises(ValueError, match="of one and the same"):
        compare_models({"a": one, "b": one})


def test_other_observations_are_refused():
    one = normal(1.0, 0.2)
    with pytest.raises(ValueError, match=r"other sizes {'n': 20} and {'n': 30} in 'b' than in 'a'"):
        compare_models({"a": one, "b": normal(1.0, 0.2, y=Y[:20])})
    with pytest.raises(ValueError, match=r"other dims \('m',\) and \('n',\)"):
        compare_models({"a": one, "b": normal(1.0, 0.2, dims=("m",))})
    with pytest.raises(ValueError, match=r"the same observed data, got other values in 'b'"):
        compare_models({"a": one, "b": normal(1.0, 0.2, y=Y + 0.01)})
    neutral, rounded = normal(1.0, 0.3, dims=("y_dim_0",)), normal(1, 0.2, y=Y.astype("float32"))
    assert len(compare_models({"a": one, "b": neutral, "c": rounded})) == 3


def test_other_labels_are_refused():
    labelled = [
        loo(normal(1.0, 0.2)).elpd_i.assign_coords(n=np.arange(30) + start) for start in (0, 1)
    ]
    fits = {}
    for name, each in zip("ab", labelled, strict=True):
        found = pointwise(each.values)
        fits[name] = Loo(**{**vars(found), "elpd_i": each})
    with pytest.raises(ValueError, match="other labels along 'n' in 'b' than in 'a'"):
        compare_models(fits)


def test_doubtful_fits_are_named():
    good, doubted = normal(1.0, 0.2), with_verdict(normal(0.9, 0.2), "do not trust")
    with pytest.warns(UserWarning, match=r"the guides of 'b' got the verdict 'do not trust'"):
        table = compare_models({"a": good, "b": doubted})
    assert table.loc["b", "verdict"] == "do not trust"
    narrow = loo(normal(1.0, 2.0, num_samples=100))
    assert narrow.num_bad > 0
    message = rf"observations of 'b' \({narrow.num_bad}\) have k above"
    with pytest.warns(UserWarning, match=message) as caught:
        table = compare_models({"a": good, "b": narrow})
    assert table.loc["b", "num_bad_k"] == narrow.num_bad
    assert caught[0].filename == __file__


def test_fits_of_guides():
    y = torch.tensor(Y, dtype=torch.float32)

    def model_of(prior):
        def model():
            mu = pyro.sample("mu", dist.Normal(prior, 0.1))
            with pyro.plate("n", len(y)):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        return model

    fits = {}
    for name, prior in (("right", 1.0), ("wrong", -1.0)):
        precision = 100 + len(y)
        mean = (100 * prior + float(y.sum())) / precision
        guide = dist.Normal(mean, 1.1 * precision**-0.5)
        fits[name] = to_inference_data(
            lambda guide=guide: pyro.sample("mu", guide), model_of(prior), num_samples=1000, seed=0
        )
    table = compare_models(fits, var_name="y")
    assert list(table.index) == ["right", "wrong"]
    assert list(table["verdict"]) == ["usable", "usable"]
    assert table.loc["right", "weight"] > 0.9


def test_bad_input_is_refused():
    one = normal(1.0, 0.2)
    with pytest.raises(ValueError, match="two or more, got dict of length 1"):
        compare_models({"a": one})
    with pytest.raises(ValueError, match="two or more, got list of length 2"):
        compare_models([one, one])
    with pytest.raises(TypeError, match="compare_models: of 'b', loo: expected InferenceData"):
        compare_models({"a": one, "b": 3})
    with pytest.raises(ValueError, match=r"of 'a', loo: expected var_name among \['y'\], got 'x'"):
        compare_models({"a": one, "b": one}, var_name="x")
