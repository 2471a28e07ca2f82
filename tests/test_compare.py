"""One table of several fits: numbers, order, errors against a reference, refusals."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

from pyroflows import compare_fits, importance_diagnostics, to_inference_data

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("arviz")

pytestmark = pytest.mark.arviz


def model():
    with pyro.plate("n", 3):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.deterministic("double", 2 * theta)


def guide_of(loc, scale):
    def guide():
        with pyro.plate("n", 3):
            pyro.sample("theta", dist.Normal(loc, scale))

    return guide


def fit(loc=0.0, scale=1.0, num_samples=4000, seed=0, **kwargs):
    guide = guide_of(loc, scale)
    return to_inference_data(guide, model, num_samples=num_samples, seed=seed, **kwargs)


def draws(loc=0.0, scale=1.0, shape=(4000, 3), seed=5):
    generator = torch.Generator().manual_seed(seed)
    return {"theta": loc + scale * torch.randn(shape, generator=generator)}


COLUMNS = [
    "elbo",
    "elbo_se",
    "log_z",
    "log_z_se",
    "pareto_k",
    "good_k",
    "ess",
    "num_draws",
    "verdict",
]
ERRORS = [
    "max_mean_error",
    "min_sd_ratio",
    "max_sd_ratio",
    "max_quantile_error",
    "max_wasserstein",
    "c2st",
]


def test_table_is_sorted_by_elbo_and_holds_the_diagnostics():
    fits = {"bad": fit(1.0), "narrow": fit(0.0, 0.9), "good": fit()}
    table = compare_fits(fits)
    assert list(table.index) == ["good", "narrow", "bad"]
    assert list(table.columns) == COLUMNS
    report = importance_diagnostics(model, guide_of(1.0, 1.0), num_samples=4000, seed=0)
    for column in COLUMNS[:-2]:
        assert table.loc["bad", column] == getattr(report, column)
    assert table.loc["bad", "verdict"] == report.verdict
    assert table.loc["good", "verdict"] == "usable"
    assert list(table["num_draws"]) == [4000, 4000, 4000]


def test_errors_against_a_reference_are_in_its_standard_deviations():
    fits = {"shifted": fit(0.5, 1.5), "unequal draws": fit(num_samples=1000), "nuts": draws()}
    table = compare_fits(fits, reference="nuts")
    assert list(table.columns) == COLUMNS + ERRORS
    assert table.loc["shifted", "max_mean_error"] == pytest.approx(0.5, abs=0.1)
    assert table.loc["shifted", "min_sd_ratio"] == pytest.approx(1.5, abs=0.1)
    # A quantile of 0.5 + 1.5 z is off by up to 0.5 + 0.5 * 1.645, the quantile by 5 % by less.
    assert table.loc["shifted", "max_quantile_error"] == pytest.approx(1.32, abs=0.2)
    assert 0.5 < table.loc["shifted", "max_wasserstein"] < 0.75
    assert table.loc["shifted", "c2st"] > 0.65
    assert table.loc["unequal draws", "c2st"] == pytest.approx(0.5, abs=0.05)
    assert table.loc["unequal draws", "max_mean_error"] < 0.15
    assert table.loc["unequal draws", "max_sd_ratio"] == pytest.approx(1.0, abs=0.1)
    assert table.index[-1] == "nuts"
    assert table.loc["nuts"].drop(["num_draws", "verdict"]).isna().all()


def test_reference_from_outside():
    table = compare_fits({"a": fit(0.5)}, reference=draws(0.0, 2.0))
    assert table.loc["a", "max_mean_error"] == pytest.approx(0.25, abs=0.05)
    assert table.loc["a", "max_sd_ratio"] == pytest.approx(0.5, abs=0.05)
    assert len(table) == 1


def test_pyro_mcmc_as_reference():
    def latent():
        with pyro.plate("n", 3):
            pyro.sample("theta", dist.Normal(0.0, 1.0))

    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(latent), num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    table = compare_fits({"guide": fit(), "nuts": mcmc}, reference="nuts")
    assert table.loc["nuts", "num_draws"] == 300
    assert table.loc["guide", "max_mean_error"] < 0.3


def test_coordinates_that_the_reference_holds_fixed_are_left_out():
    reference = draws()
    reference["theta"][:, 2] = 1.0
    table = compare_fits({"fit": fit()}, reference=reference)
    assert table.loc["fit", "max_mean_error"] < 0.2
    assert table.loc["fit", "max_sd_ratio"] < 1.2


def test_chains_are_joined():
    import xarray as xr

    from pyroflows.diagnostics.sources import flat_draws

    values = np.arange(24.0).reshape(2, 3, 4)
    joined = flat_draws(xr.DataArray(values, dims=("chain", "draw", "n")))
    np.testing.assert_array_equal(joined, values.reshape(6, 4))


def test_fits_and_reports_without_draws():
    report = importance_diagnostics(model, guide_of(0.1, 1.0), num_samples=1000, seed=0)
    bare = SimpleNamespace(losses=[1.0], diagnostics=None)
    fits = {
        "report": report,
        "fit": SimpleNamespace(losses=[1.0], diagnostics=report),
        "bare": bare,
        "draws": draws(),
    }
    table = compare_fits(fits, reference="draws")
    assert table.loc["fit", "elbo"] == table.loc["report", "elbo"] == report.elbo
    assert math.isnan(table.loc["bare", "elbo"])
    assert table.loc[["report", "fit"], ERRORS].isna().all().all()


def test_var_names_choose_what_is_compared():
    fits = {"a": fit(), "b": {**draws(), "other": torch.randn(4000)}}
    with pytest.raises(ValueError, match=r"variables \['other'\] are in 'b' but not .*var_names"):
        compare_fits(fits, reference="b")
    assert len(compare_fits(fits, reference="b", var_names=["theta"])) == 2


def test_deterministic_sites_may_be_missing():
    assert len(compare_fits({"a": fit(), "b": draws()}, reference="b")) == 2


@pytest.mark.parametrize("reference", [None, "a"])
def test_other_dims_are_refused(reference):
    def other():
        with pyro.plate("m", 3):
            pyro.sample("theta", dist.Normal(0.0, 1.0))

    wrong = to_inference_data(other, other, num_samples=10, seed=0)
    with pytest.raises(
        ValueError, match=r"'theta' differs .*\{'n': 3\} in 'a' .*\{'m': 3\} in 'b'"
    ):
        compare_fits({"a": fit(), "b": wrong}, reference)
    with pytest.raises(ValueError, match="'theta' differs between fits"):
        compare_fits({"a": fit(), "c": draws(shape=(100, 2))}, reference="a")


def test_other_labels_are_refused():
    fits = {k: fit(coords={"n": labels}) for k, labels in (("a", "xyz"), ("b", "yxz"))}
    with pytest.raises(ValueError, match="'theta' has other labels along 'n' in 'a' than in 'b'"):
        compare_fits(fits, reference="a")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="expected a mapping of name to fit, got dict of length 0"):
        compare_fits({})
    with pytest.raises(ValueError, match="expected a mapping of name to fit, got list"):
        compare_fits([fit()])
    with pytest.raises(ValueError, match=r"a reference among \['a'\], got 'b'"):
        compare_fits({"a": draws()}, reference="b")
    with pytest.raises(TypeError, match=r"'a': expected InferenceData, .* got int"):
        compare_fits({"a": 3})
    report = importance_diagnostics(model, guide_of(0.0, 1.0), num_samples=100, seed=0)
    with pytest.raises(ValueError, match="'a' has no draws to serve as a reference"):
        compare_fits({"a": report}, reference="a")
    no_posterior = fit()
    if hasattr(no_posterior, "children"):
        del no_posterior["posterior"]
    else:
        del no_posterior.posterior
    with pytest.raises(ValueError, match="'a': expected a posterior group"):
        compare_fits({"a": no_posterior})
