"""Calibration of guides by simulation: ranks, files, processes, and what is refused."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyroflows as pf
from pyroflows.diagnostics import refits

Y = torch.zeros(3)
NUM = 120


def model(y):
    mu = pyro.sample("mu", dist.Normal(1.0, 2.0))
    with pyro.plate("i", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact(factor=1.0, shift=0.0):
    """A guide of the conjugate posterior, its width off by a factor, its mean by a shift."""

    def make(conditioned):
        seen = conditioned.data["y"]
        precision = 1 / 4 + len(seen)

        def guide(y):
            mean = (1 / 4 + seen.sum()) / precision + shift
            pyro.sample("mu", dist.Normal(mean, factor * precision**-0.5))

        return guide

    return make


def calibrate(guide=None, **options):
    given = {
        "model_args": (Y,),
        "num_simulations": NUM,
        "num_draws": 59,
        "fit": None,
        "progress_bar": False,
    }
    return pf.calibrate_guide(model, guide or exact(), **given | options)


def test_a_right_guide_passes():
    found = calibrate()
    assert found.is_calibrated
    share, error = found.coverage(0.9)["mu"]
    assert abs(share - 0.9) < 3 * error
    assert found.num_simulations == NUM


@pytest.mark.parametrize(
    ("factor", "shift", "said"),
    [(0.5, 0.0, "too narrow"), (2.0, 0.0, "too wide"), (1.0, 0.5, "too high")],
)
def test_a_wrong_guide_fails_in_numbers_and_words(factor, shift, said):
    found = calibrate(exact(factor, shift))
    assert found.flagged == ["mu"]
    assert found.p_values["mu"] < 1e-3
    assert said in str(found)


def test_bias_is_told_from_width():
    narrow, high = calibrate(exact(0.5)), calibrate(exact(1.0, 0.5))
    assert narrow.bias()["mu"][1] > 0.05
    shift, p = high.bias()["mu"]
    assert shift > 0
    assert p < 1e-2


def test_the_picture_of_a_narrow_guide_leaves_its_band():
    for factor, leaves in ((1.0, False), (0.5, True)):
        found = calibrate(exact(factor))
        (axes,) = pf.plot_calibration(found).axes
        line = axes.get_lines()[-1].get_ydata()
        low, high = found.ecdf_difference("mu")[2:]
        assert bool(((line[1:-1] < low) | (line[1:-1] > high)).any()) == leaves


def test_fits_are_made_and_their_verdicts_kept():
    found = calibrate(
        lambda conditioned: pf.AutoFlow(conditioned, "affine"),
        fit=pf.fit_guide,
        fit_options={"num_steps": 30, "num_diagnostic_samples": 500},
        num_simulations=4,
    )
    assert found.num_simulations == 4
    assert set(found.verdicts) <= {"usable", "reweight", "do not trust"}
    assert "usable" in str(found)


def test_the_number_of_processes_changes_nothing():
    alone, shared = calibrate(num_simulations=12), calibrate(num_simulations=12, num_workers=2)
    np.testing.assert_array_equal(alone.ranks["mu"], shared.ranks["mu"])


def test_a_file_is_gone_on_from(tmp_path, monkeypatch):
    path = tmp_path / "ranks.jsonl"
    first = calibrate(num_simulations=10, checkpoint=path)
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[:6]) + '{"index": 9, "ran')
    run = []
    whole = refits._Refit.__call__
    monkeypatch.setattr(refits._Refit, "__call__", lambda *a: (run.append(a[1]), whole(*a))[1])
    again = calibrate(num_simulations=10, checkpoint=path)
    assert run == [5, 6, 7, 8, 9]
    np.testing.assert_array_equal(first.ranks["mu"], again.ranks["mu"])
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()[1:]] == [*range(10)]


def test_a_file_of_others_is_refused(tmp_path):
    path = tmp_path / "ranks.jsonl"
    calibrate(num_simulations=2, checkpoint=path)
    with pytest.raises(ValueError, match="num_draws: 59 there, 60 here"):
        calibrate(num_simulations=2, checkpoint=path, num_draws=60)
    path.write_text("something else\n")
    with pytest.raises(ValueError, match="no file of simulations"):
        calibrate(num_simulations=2, checkpoint=path)


def test_ctrl_c_keeps_what_is_done():
    calls = []

    def make(conditioned):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return exact()(conditioned)

    with pytest.warns(UserWarning, match="interrupted after 3 of 120"):
        assert calibrate(make).num_simulations == 3


def test_fits_that_raise_are_told():
    def make(conditioned):
        if conditioned.data["y"].sum() > 5:
            raise RuntimeError("too large for me")
        return exact()(conditioned)

    with pytest.warns(UserWarning, match="of 120 fits raised.*too large for me"):
        found = calibrate(make)
    assert len(found.failures) + found.num_simulations == NUM
    assert "raised" in str(found)

    def never(conditioned):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no fit of 3 succeeded"):
        calibrate(never, num_simulations=3)


def test_overall_coverage_counts_quantities_of_one_simulation_as_one():
    def pair(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("same", 2 * mu)
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def make(conditioned):
        def guide(y):
            pyro.sample("mu", dist.Normal(conditioned.data["y"] / 2, 0.5**0.5))

        return guide

    found = pf.calibrate_guide(
        pair, make, model_args=(Y[0],), num_simulations=60, num_draws=59, fit=None,
        progress_bar=False,
    )  # fmt: skip
    share, error = found.overall_coverage(0.9)
    of_one, error_of_one = found.coverage(0.9)["mu"]
    assert share == pytest.approx(of_one, abs=0.02)
    assert re.search(rf"all of them +{100 * share:.1f} \+- {100 * error:.1f} %", str(found))
    assert error == pytest.approx(error_of_one, rel=0.3)


def factor_model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y[0])
    pyro.factor("bend", -(mu**2))


def blind(y):
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def improper(y):
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y[0])


def partial(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("i", len(y), subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


@pytest.mark.parametrize(
    ("bad", "options", "said"),
    [
        (factor_model, {}, "adds factors \\['bend'\\]"),
        (blind, {}, "observes nothing"),
        (improper, {}, "proper prior"),
        (partial, {}, "are subsampled"),
        (model, {"sites": ["nu"]}, "sites \\['nu'\\] are none"),
        (model, {"num_simulations": 0}, "num_simulations >= 1"),
        (model, {"num_workers": 0}, "num_workers >= 1"),
    ],
)
def test_refusals(bad, options, said):
    with pytest.raises(ValueError, match=said):
        pf.calibrate_guide(bad, model_args=(Y,), progress_bar=False, **options)


def test_nothing_is_drawn_from_the_callers_generator():
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(num_simulations=2)
    assert torch.equal(before, torch.get_rng_state())
