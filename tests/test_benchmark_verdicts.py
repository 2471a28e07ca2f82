"""The benchmark of verdicts runs, in small, and its truths are what they are called."""

from __future__ import annotations

import json

import pyro
import pytest
import torch

import pyroflows as pf
from tests.benchmarks import _verdict_posteriors as known
from tests.benchmarks import verdicts
from tests.benchmarks._common import default_dtype, mean_and_sd, moment_errors
from tests.benchmarks._verdict_cases import BROKEN, GOOD


def test_there_are_twenty_of_each_and_four_kinds_of_broken_ones():
    assert len(BROKEN) == len(GOOD) == 20
    assert len({case.name for case in BROKEN}) == len({case.name for case in GOOD}) == 20
    assert len({case.kind for case in BROKEN}) >= 4
    assert {case.kind for case in GOOD} == {"good"}
    assert {case.dtype for case in GOOD} == {torch.float32, torch.float64}


def test_the_benchmark_of_verdicts(tmp_path, capsys):
    file = tmp_path / "verdicts.json"
    rows = verdicts.main(["--smoke", "--kinds", "tail", "improper", "good", "--output", str(file)])
    assert [row["kind"] for row in rows] == ["tail", "improper", "good"]
    assert [row["right"] for row in rows] == [True] * 3
    assert len(json.loads(file.read_text())["rows"]) == 3
    assert "of 2 broken fits 2 flagged" in capsys.readouterr().out


def test_a_label_that_is_not_what_it_says_is_told():
    good = {"case": "a", "kind": "good", "verdict": "usable", "honest": True}
    broken = {"case": "b", "kind": "tail", "verdict": "usable", "honest": False}
    told = verdicts.told_of_verdicts([good, broken])
    assert "of 1 broken fits 0 flagged" in told
    assert "of 1 good ones 0" in told
    assert told.endswith("not what they are called: b")


def test_the_benchmark_of_log_z(capsys):
    rows = verdicts.main(["--smoke", "--measure", "log_z"])
    assert [row["route"] for row in rows] == ["importance", "bridge"]
    assert "within three standard errors" in capsys.readouterr().out


POSTERIORS = {
    "logistic": lambda: known.logistic(60, 15),
    "poisson": lambda: known.poisson(50, 17),
    "place_and_scale": lambda: known.place_and_scale(100, 19),
    "noisy_linear": lambda: known.noisy_linear(40, 3, 13),
    "counts": known.counts,
    "shares": known.shares,
    "walk": lambda: known.walk(6, 18),
    "heaps": lambda: known.heaps(2, 1.0, 0.4),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_the_truth_of_a_posterior_is_that_of_its_model(name: str):
    """By importance sampling from the Gaussian that a guide starts with."""
    pyro.set_rng_seed(0)
    with default_dtype(torch.float64):
        posterior = POSTERIORS[name]()
        guide = pf.AutoFlow(posterior.model, "affine", model_args=())
        draws = pf.posterior_draws(posterior.model, guide, num_samples=20_000, seed=0)
    weights = draws.log_weights.exp()
    moments = {site: mean_and_sd(value, weights) for site, value in draws.values.items()}
    assert max(moment_errors(moments, posterior.truth)) < 0.05
