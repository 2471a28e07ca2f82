"""Steps as machine code of torch's compiler, where there is a C++ compiler for it."""

import shutil
import warnings

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows import AutoFlow, CompiledLoss, PathELBO, build_flow, energy_model

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)


def valley(x: Tensor) -> Tensor:
    return -0.5 * x[..., 0] ** 2 - (x[..., 1:] - 0.5 * x[..., :-1] ** 2).square().sum(-1)


def gradients(loss: PathELBO, target, guide: AutoFlow) -> list[Tensor]:
    torch.manual_seed(1)
    guide.zero_grad()
    value = loss.loss_and_grads(target, guide)
    return [torch.tensor(value), *(p.grad for p in guide.parameters() if p.grad is not None)]


@pytest.mark.slow
def test_the_numbers_of_eager_steps_in_a_layout_that_compilers_erred_for():
    """Draws in columns, a row's reduction, and an operation on the row: loops fused wrongly."""
    torch.manual_seed(0)
    target = energy_model(valley, 8)
    guide = AutoFlow(target, "nsf", model_args=(), num_layers=1, hidden_dims=(16,))
    eager, fast = (PathELBO(32, compile=c) for c in (False, True))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Steps are not compiled")
        for loss in (fast, eager):
            gradients(loss, target, guide)  # the first use looks around
        assert_close(
            gradients(fast, target, guide), gradients(eager, target, guide), atol=1e-4, rtol=1e-3
        )
    assert fast.compiled.reason == ""


def test_a_loss_of_data_has_the_numbers_of_the_eager_one():
    torch.manual_seed(0)
    flow = build_flow("maf", 8, num_layers=2, hidden_dims=(16,))

    def loss(x: Tensor) -> Tensor:
        z, log_det = flow.inverse_and_log_det(x)
        return (0.5 * z.square().sum(-1) - log_det).mean()

    fast, x, found = CompiledLoss(loss, flow), torch.randn(32, 8), []
    for run in (fast, loss):
        flow.zero_grad()
        run(x).backward()
        found.append([p.grad for p in flow.parameters()])
    assert fast.reason == ""
    assert_close(*found, atol=1e-5, rtol=1e-3)
