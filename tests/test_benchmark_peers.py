"""Peers fitted beside ours: as long, scored the same way, named where they are not installed."""

from __future__ import annotations

import importlib.util
import math
import sys
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from tests.benchmarks import _peers_guides, posteriordb, targets
from tests.benchmarks._common import fit_and_judge
from tests.benchmarks._peers_fit import CapError
from tests.benchmarks._peers_guides import PEERS, judge_peers

INSTALLED = [name for name in PEERS if name != "zuko" or importlib.util.find_spec("zuko")]


@pytest.fixture
def _steps(monkeypatch):
    """Count steps where a run counts seconds, so that a fit is the same on every machine."""

    def look(self) -> None:
        self.steps += 1
        if self.steps == 100:
            raise CapError

    quick = {name: partial(fit, rate=0.05) for name, fit in PEERS.items()}
    monkeypatch.setattr(_peers_guides, "PEERS", quick)
    monkeypatch.setattr(_peers_guides.Deadline, "look", look)


def prior_of_two_supports() -> None:
    pyro.sample("share", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    pyro.sample("scale", dist.Gamma(4.0, 2.0))


@pytest.mark.slow
@pytest.mark.usefixtures("_steps")
def test_draws_of_peers_are_scored_on_the_coordinates_of_the_model():
    """A prior has log Z = 0 and known moments, whatever guide tells of them."""
    ours = fit_and_judge(prior_of_two_supports, "affine", num_steps=3)
    judged = dict(judge_peers(ours, prior_of_two_supports))
    assert list(judged) == INSTALLED
    for peer in judged.values():
        assert peer.steps == 100
        assert abs(peer.log_z) < 0.05
        assert peer.elbo < peer.log_z + 0.01
        assert peer.verdict["pareto_k"] < 1
        mean, sd = peer.moments()["share"]
        torch.testing.assert_close(
            mean, torch.tensor([2.0, 3.0, 4.0]).double() / 9, atol=0.02, rtol=0
        )
        assert abs(sd[0] - math.sqrt(2 * 7 / 810)) < 0.01
        assert abs(peer.moments()["scale"][0] - 2.0) < 0.1
        assert not torch.equal(peer.moments()["scale"][0], peer.moments(weighted=False)["scale"][0])


def test_a_row_depends_on_its_seed_alone():
    fits = []
    for before in (1, 2):
        torch.manual_seed(before)
        fits.append(fit_and_judge(prior_of_two_supports, "nsf", num_steps=2, num_samples=50))
    assert fits[0].elbo == fits[1].elbo


def test_peers_take_as_long_as_ours_and_leave_no_setting_behind():
    options = ["--smoke", "--targets", "gaussian_very_far", "--flows", "affine", "--peers"]
    before = torch.get_default_dtype()
    with pyro.validation_enabled(True):
        ours, *peers = targets.main(options)
        assert pyro.settings.get("validate_infer")
    assert torch.get_default_dtype() == before
    assert [row["flow"] for row in peers] == INSTALLED
    for row in peers:
        assert row["seconds"] >= ours["seconds"]
        assert row.keys() == ours.keys()
        assert row["problem"] is None


def test_a_peer_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "zuko", None)
    monkeypatch.setattr(_peers_guides, "PEERS", {"zuko": PEERS["zuko"]})
    rows = targets.main(["--smoke", "--targets", "sine_ring", "--flows", "affine", "--peers"])
    assert [row["flow"] for row in rows] == ["affine"]
    assert "left out: zuko: not installed" in capsys.readouterr().out


def test_a_peer_that_cannot_begin_has_a_row(monkeypatch):
    def refuse(posterior, watch) -> None:
        watch.start()
        raise ValueError("no start")

    monkeypatch.setattr(_peers_guides, "PEERS", {"peer": refuse})
    ours = fit_and_judge(prior_of_two_supports, "affine", num_steps=3)
    ((_, judged),) = judge_peers(ours, prior_of_two_supports)
    assert judged.problem == "ValueError: no start"
    assert judged.verdict["pareto_k"] == math.inf
    assert math.isnan(judged.moments()["scale"][0])


def flat_priors() -> None:
    """With a plate of the data alone."""
    positive = dist.constraints.positive
    mean, sd = (pyro.sample(n, dist.ImproperUniform(positive, (), ())) for n in ("mean", "sd"))
    with pyro.plate("data", 20):
        pyro.sample("y", dist.Normal(mean, sd), obs=torch.linspace(3.0, 7.0, 20))


@pytest.mark.slow
@pytest.mark.usefixtures("_steps")
def test_peers_begin_under_flat_priors():
    ours = fit_and_judge(flat_priors, "affine", num_steps=3)
    for _, peer in judge_peers(ours, flat_priors):
        assert peer.problem is None
        assert abs(peer.moments()["mean"][0] - 5.0) < 1.0


@pytest.mark.slow
def test_a_peer_that_fails_later_is_scored_as_it_stood(monkeypatch):
    def fail(posterior, watch) -> None:
        watch.start()
        watch.draw = lambda n: (torch.full((n, posterior.dim), math.nan), torch.zeros(n))
        watch.look()
        raise ArithmeticError("ran off")

    monkeypatch.setattr(_peers_guides, "PEERS", {"peer": fail})
    ours = fit_and_judge(prior_of_two_supports, "affine", num_steps=3)
    ((_, judged),) = judge_peers(ours, prior_of_two_supports)
    assert judged.problem == "ArithmeticError: ran off"
    assert judged.verdict["verdict"] == "failed"
    assert judged.verdict["pareto_k"] == math.inf
    assert math.isnan(judged.elbo)
    assert math.isnan(judged.moments()["scale"][0])


def _row(posterior: str, flow: str, seed: int, **numbers: float) -> dict[str, object]:
    good = {"pareto_k": 0.3, "mean_error": 0.01, "sd_error": 0.01, "seconds": 1.0}
    good |= {"raw_mean_error": 0.01, "raw_sd_error": 0.01}
    return {"posterior": posterior, "flow": flow, "seed": seed, **good, **numbers}


def test_posteriors_are_counted_by_their_worst_seed():
    rows = [
        _row("a", "nsf", 0),
        _row("a", "nsf", 1, pareto_k=0.6),
        _row("b", "nsf", 0, seconds=5.0),
        _row("c", "nsf", 0, mean_error=math.nan),
        _row("a", "zuko", 0, sd_error=0.06),
    ]
    ours, weighted, raw, zuko, *_ = posteriordb.summary(rows)
    assert ours == "nsf: median 1 s"
    assert weighted.startswith("  2 of 3: pareto_k <= 0.7")
    assert weighted.endswith("; not c")
    assert raw.startswith("  2 of 3: pareto_k <= 0.5")
    assert raw.endswith("; not a")
    assert zuko == "zuko: median 1 s"
