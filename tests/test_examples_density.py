"""The examples of densities run, in small."""

from __future__ import annotations

import math

import pyro
import pytest
import torch

import pyroflows as pf
from tests.test_examples import example

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _fresh():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(before)


def test_ffjord(tmp_path, capsys):
    pytest.importorskip("torchdiffeq")
    (run,) = example("ffjord").main(["--smoke", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "original" in printed
    assert printed.count("hutchinson") == 1
    assert 0 < run.total_variation < 0.5
    assert (tmp_path / "ffjord.png").stat().st_size > 10_000


def test_the_field_of_ffjord_runs_from_0_to_10():
    """Against steps over those times, by hand."""
    pytest.importorskip("torchdiffeq")
    module = example("ffjord")
    flow = module.ffjord(1).double()
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    with torch.no_grad():
        y, _ = flow.forward_and_log_det(x)
        for _ in range(10_000):
            middle = x + 0.0005 * flow.velocity.net(x)
            x = x + 0.001 * flow.velocity.net(middle)
    torch.testing.assert_close(y, x, atol=1e-2, rtol=0)


def test_hutchinson_is_exact_in_one_coordinate():
    pytest.importorskip("torchdiffeq")
    module = example("ffjord")
    density = pf.FlowDensity(1, module.ffjord, standardize=False)
    x = 6 + torch.randn(10, 1)
    exact, estimate = (module.score(density, x, trace) for trace in ("exact", "hutchinson"))
    torch.testing.assert_close(exact, estimate)
    assert density.bijector.bijectors[0].trace == "exact"


def test_realnvp_with_a_trained_base(tmp_path, capsys):
    ((*runs,),) = example("realnvp_trained_base").main(["--smoke", "--output", str(tmp_path)])
    assert [(run.depth, run.conditioner) for run in runs] == [
        (2, "network"), (2, "Hermite"), (6, "network"), (6, "Hermite"),
    ]  # fmt: skip
    for run in runs:
        assert run.states[-1].gap < run.states[0].gap
        assert all(math.isfinite(number) for state in run.states for number in state)
        assert run.density.base.raws()["loc"].abs().min() > 0  # it is trained
    assert "original: nll 3.416" in capsys.readouterr().out
    for name in ("curves", "pairs"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_all_draws_are_taken_in_turn():
    module = example("realnvp_trained_base")
    taken = torch.cat(list(module.batches(torch.arange(10.0), 5, 3)))
    assert sorted(taken[:10].tolist()) == list(range(10))
    assert len(taken) == 15
    assert torch.equal(next(module.batches(torch.arange(10.0), 10, 1)), torch.arange(10.0))
