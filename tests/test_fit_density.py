"""Fitting densities to data: what is found, kept, said and refused."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from pyroflows import FlowDensity, fit_density
from pyroflows.density import trainer
from pyroflows.density.split import split_rows
from pyroflows.density.trainer import Limits
from tests.benchmarks._density_toys import TOYS

ROWS = 600
quiet = {"progress_bar": False, "seed": 0}


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def banana(number=ROWS, dtype=torch.float32):
    z = torch.randn(number, 2, dtype=dtype)
    return torch.stack([3 * z[:, 0] + 50, z[:, 0] ** 2 + 0.3 * z[:, 1]], -1)


def banana_entropy():
    """That of two normals, stretched by 3 and 0.3; the shear has determinant one."""
    return math.log(3 * 0.3) + math.log(2 * math.pi * math.e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flow_finds_what_a_gaussian_cannot(dtype):
    density = FlowDensity(2, "nsf").to(dtype)
    fit = fit_density(density, banana(4000, dtype), num_steps=400, **quiet)
    assert fit.gaussian < -banana_entropy() - 0.5
    assert fit.log_likelihood > -banana_entropy() - 0.05 - 2 * fit.log_likelihood_se
    assert 0 < fit.log_likelihood_se < 0.1
    assert next(density.parameters()).dtype == dtype
    assert not density.training


@pytest.mark.parametrize("seed", range(3))
def test_it_never_falls_below_the_gaussian_it_starts_from(seed):
    """Where the data are normal the start cannot be beaten, but by chance."""
    torch.manual_seed(seed)
    x = torch.randn(300, 8) @ torch.randn(8, 8)
    fit = fit_density(FlowDensity(8, "nsf"), x, num_steps=200, **quiet)
    assert fit.log_likelihood == pytest.approx(fit.gaussian, abs=0.01)
    assert fit.best_epoch == 0
    assert "the start kept" in str(fit)


def test_the_weights_with_the_best_validation_loss_are_kept():
    x = banana(200)
    fit = fit_density(FlowDensity(2, "nsf"), x, num_steps=300, learning_rate=0.05, **quiet)
    split = split_rows(FlowDensity(2), x, None, 0.1, 0.1, 0)
    held = -float(fit.density().log_prob(split.validation.x).detach().mean())
    assert held == pytest.approx(min(fit.validation_losses), abs=1e-4)
    assert fit.best_epoch == 1 + int(np.argmin(fit.validation_losses))
    assert fit.validation_losses[-1] > held


def test_gradients_are_those_of_svi():
    x, first, second = banana(50), FlowDensity(2, "maf"), FlowDensity(2, "maf")
    first.initialize(x)
    second.load_state_dict(first.state_dict())

    def model():
        pyro.module("density", first)
        with pyro.plate("data", len(x)):
            pyro.sample("x", first(), obs=x)

    pyro.infer.Trace_ELBO().loss_and_grads(model, lambda: None)
    (-second().log_prob(x).sum()).backward()
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5)


def test_a_fit_can_be_repeated_and_leaves_the_generator_alone():
    def fitted():
        torch.manual_seed(1)
        density = FlowDensity(2, "realnvp")
        before = torch.get_rng_state()
        fit = fit_density(density, banana_rows, num_steps=20, **quiet)
        assert torch.equal(before, torch.get_rng_state())
        return fit

    banana_rows = banana()
    a, b = fitted(), fitted()
    assert a.losses == b.losses
    assert a.log_likelihood == b.log_likelihood


def test_arrays_data_sets_and_loaders_are_alike():
    x = banana(100)
    kinds = {
        "tensor": x,
        "array": x.numpy(),
        "list": x.tolist(),
        "data set": TensorDataset(x),
        "loader": DataLoader(TensorDataset(x), batch_size=32),
    }
    found = []
    for data in kinds.values():
        torch.manual_seed(1)
        fit = fit_density(FlowDensity(2, "realnvp"), data, num_steps=5, batch_size=32, **quiet)
        found.append(fit.log_likelihood)
    assert found == pytest.approx([found[0]] * len(kinds), abs=1e-5)


def test_covariates_come_as_pairs_too():
    c = torch.randn(100, 1)
    x = c + 0.1 * torch.randn(100, 1)
    loader = DataLoader(TensorDataset(x, c), batch_size=16)
    fit = fit_density(FlowDensity(1, "maf", context_dim=1), loader, num_steps=5, **quiet)
    assert fit.num_steps == 5
    assert fit.gaussian > -0.2 + math.log(10) - 0.5 * math.log(2 * math.pi * math.e)
    with pytest.raises(TypeError, match=r"the second of each pair .* leave context= out"):
        fit_density(FlowDensity(1, "maf", context_dim=1), loader, c, **quiet)


def test_given_covariates_matter():
    c = 2 * torch.rand(2000, 1) - 1
    x = torch.where(torch.rand_like(c) < 0.5, c, -c) + (0.05 + 0.1 * c.abs()) * torch.randn_like(c)
    density = FlowDensity(1, "nsf", context_dim=1)
    fit = fit_density(density, x, c, num_steps=400, **quiet)
    assert fit.log_likelihood > fit.gaussian + 0.3
    apart = density(torch.tensor([0.9])).sample((2000,))
    assert (apart.abs() - 0.9).abs().median() < 0.15
    assert 0.3 < (apart > 0).float().mean() < 0.7


def test_bounded_data_stay_inside():
    x = dist.Beta(2.0, 5.0).sample((1000, 1))
    density = FlowDensity(1, "nsf", support=constraints.unit_interval)
    fit = fit_density(density, x, num_steps=200, **quiet)
    truth = dist.Beta(2.0, 5.0)
    assert fit.log_likelihood > -float(truth.entropy()) - 0.2
    assert ((density().sample((1000,)) > 0) & (density().sample((1000,)) < 1)).all()


def test_rows_of_ones_own_for_validation_and_test():
    fit = fit_density(
        FlowDensity(2, "realnvp"), banana(), num_steps=5, validation=banana(50), test=banana(70),
        **quiet,
    )  # fmt: skip
    assert math.isfinite(fit.log_likelihood)
    alone = fit_density(
        FlowDensity(2, "realnvp"), banana(), num_steps=5, validation=0, test=0, **quiet
    )
    assert alone.validation_losses == []
    assert math.isnan(alone.log_likelihood)
    assert alone.best_epoch == alone.num_epochs


def test_lbfgs_goes_on_where_steps_have_ended():
    x = banana(500)
    few = {"num_steps": 20, "learning_rate": 1e-3}
    fit = fit_density(FlowDensity(2, "maf", hidden_dims=(8,)), x, lbfgs_steps=50, **few, **quiet)
    assert fit.lbfgs_gain > 0.1
    without = fit_density(FlowDensity(2, "maf", hidden_dims=(8,)), x, **few, **quiet)
    assert without.lbfgs_gain == 0
    assert fit.log_likelihood > without.log_likelihood + 0.1


def test_flow_matching_fits_and_is_scored_exactly():
    pytest.importorskip("torchdiffeq")
    x = banana(2000)
    density = FlowDensity(2, "cnf", hidden_dims=(32, 32), solver="rk4", num_steps=10)
    fit = fit_density(density, x, num_steps=600, objective="flow_matching", **quiet)
    assert fit.log_likelihood > fit.gaussian + 0.3
    with pytest.raises(ValueError, match=r"a single continuous flow, .*'cnf'.*has Compose"):
        fit_density(FlowDensity(2, "realnvp"), x, objective="flow_matching", **quiet)


def test_ctrl_c_keeps_what_there_is(monkeypatch):
    from pyroflows.density import trainer

    whole, steps = trainer.Trainer._step, []

    def interrupted(self, rows):
        steps.append(1)
        if len(steps) > 60:
            raise KeyboardInterrupt
        return whole(self, rows)

    monkeypatch.setattr(trainer.Trainer, "_step", interrupted)
    fit = fit_density(FlowDensity(2, "realnvp"), banana(), **quiet)
    assert fit.stop_reason == "interrupted"
    assert math.isfinite(fit.log_likelihood)
    assert "was interrupted" in str(fit)


def test_a_step_that_is_not_finite_is_left_out_and_told(monkeypatch):
    from pyroflows.density import trainer

    whole, number = trainer.Trainer._step, []

    def poisoned(self, rows):
        number.append(1)
        if len(number) == 7:
            rows = rows._replace(x=rows.x * math.inf)
        return whole(self, rows)

    monkeypatch.setattr(trainer.Trainer, "_step", poisoned)
    fit = fit_density(FlowDensity(2, "realnvp"), banana(), num_steps=10, **quiet)
    assert fit.num_skipped_steps == 1
    assert "1 steps were skipped" in str(fit)
    assert all(torch.isfinite(p).all() for p in fit.density.parameters())


def test_limits():
    limits = Limits(2, math.inf, math.inf)
    assert limits.progress(1, 10, 5.0) == 0.5
    assert limits.reason(2.0, 10, 5.0) == "num_epochs"
    assert Limits(math.inf, 10, math.inf).reason(0, 10, 0.0) == "num_steps"
    assert Limits(math.inf, math.inf, 3.0).reason(0, 10, 3.0) == "time_budget"
    assert Limits(math.inf, 10, 3.0).reason(0, 9, 2.0) == ""


BAD = {
    "NaN": ({"x": torch.tensor([[1.0, math.nan]] * 20)}, ValueError, "x has 20 values that are"),
    "constant": ({"x": torch.ones(20, 2).cumsum(0) * torch.tensor([1.0, 0.0])}, ValueError,
                 r"column \[1\] of 2 is constant"),
    "one row": ({"x": torch.zeros(1, 2)}, ValueError, "at least 2 rows of x, got 1"),
    "few rows": ({"x": torch.randn(3, 2)}, ValueError, "leaves 1 to learn from"),
    "integers": ({"x": torch.ones(20, 2).long()}, TypeError, "whole numbers have no density"),
    "words": ({"x": [["a", "b"]] * 20}, TypeError, "expected x to hold numbers"),
    "width": ({"x": torch.randn(20, 3)}, ValueError, r"x of shape \(N, 2\), got \(20, 3\)"),
    "unwanted": ({"x": torch.randn(20, 2), "context": torch.randn(20, 1)}, TypeError,
                 "takes no covariates"),
    "share": ({"x": torch.randn(20, 2), "test": 1.5}, ValueError, r"test to be a share in"),
    "no share": ({"x": torch.randn(20, 2), "validation": None}, TypeError, "validation to be a"),
    "steps": ({"x": torch.randn(20, 2), "num_steps": 0}, ValueError, "num_steps to be an integer"),
    "rate": ({"x": torch.randn(20, 2), "learning_rate": -1.0}, ValueError, "rate to be positive"),
    "aim": ({"x": torch.randn(20, 2), "objective": "best"}, ValueError, "'likelihood' or 'flow"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_words(case):
    given, error, words = case
    with pytest.raises(error, match=words):
        fit_density(FlowDensity(2, "realnvp"), **given, **quiet)


def test_covariates_of_another_length_and_points_outside():
    density = FlowDensity(2, "realnvp", context_dim=1)
    with pytest.raises(ValueError, match=r"context of shape \(20, 1\), a row for each of x, got"):
        fit_density(density, torch.randn(20, 2), torch.randn(19, 1), **quiet)
    with pytest.raises(TypeError, match="takes 1 covariates: pass context"):
        fit_density(density, torch.randn(20, 2), **quiet)
    positive = FlowDensity(2, "realnvp", support=constraints.positive)
    with pytest.raises(ValueError, match="rows of x lie outside the support"):
        fit_density(positive, torch.randn(20, 2), **quiet)
    with pytest.raises(TypeError, match="expected a FlowDensity, got function"):
        fit_density(lambda: None, torch.randn(20, 2), **quiet)


def test_before_it_ends_early_steps_get_shorter(monkeypatch):
    """Where long steps bring nothing better, shorter ones still do."""
    monkeypatch.setattr(trainer, "_PATIENCE", 0.12)
    x = TOYS["moons"].draw(10_000).float()
    fit = fit_density(FlowDensity(2), x, num_steps=1000, **quiet)
    assert fit.stop_reason == "early_stopping"
    losses = fit.validation_losses
    before = fit.num_steps - 250  # steps, when they began to fall
    fallen = len(losses) * before // fit.num_steps
    assert min(losses[fallen:]) < min(losses[:fallen]) - 0.01


def test_what_lbfgs_gained_is_not_told_where_the_start_is_kept():
    x = torch.randn(200, 3)
    fit = fit_density(FlowDensity(3, "nsf"), x, num_steps=20, lbfgs_steps=20, **quiet)
    assert fit.best_epoch == 0
    assert fit.lbfgs_gain == 0
    assert fit.log_likelihood == pytest.approx(fit.gaussian, abs=0.01)


@pytest.mark.parametrize("flow", ["affine", "diagonal", "planar"])
def test_flows_without_networks_are_fitted(flow):
    fit = fit_density(FlowDensity(2, flow), banana(), num_steps=20, **quiet)
    assert fit.log_likelihood >= fit.gaussian - 0.1 or flow == "diagonal"


def test_columns_that_follow_from_others_are_refused():
    x = torch.randn(100, 2)
    with pytest.raises(ValueError, match=r"column \[2\] of 3 follows from the columns before it"):
        fit_density(FlowDensity(3), torch.cat([x, x.sum(-1, keepdim=True)], -1), **quiet)
    few = torch.cat([x, x.sum(-1, keepdim=True)], -1)[:5]  # these cannot tell
    assert FlowDensity(3, "realnvp").initialize(few).is_initialized
    near = torch.cat([x, x.sum(-1, keepdim=True) + 1e-3 * torch.randn(100, 1)], -1)
    assert FlowDensity(3, "realnvp").initialize(near).is_initialized


def test_nothing_to_train_is_said():
    with pytest.raises(ValueError, match="no parameter of the density requires a gradient"):
        fit_density(FlowDensity(2).requires_grad_(False), torch.randn(50, 2), **quiet)
    x = torch.randn(50, 2)
    with pytest.raises(ValueError, match=r"validation to be x or \(x, context\), got 1 parts"):
        fit_density(FlowDensity(2), x, validation=(x,), **quiet)
