"""A loss in one graph with its gradients: the numbers of the eager one, on live tensors."""

import copy
import pickle
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows import Bijector, CompiledLoss, build_flow
from pyroflows.infer import recorded

pytestmark = pytest.mark.usefixtures("_double")
SMALL = {"num_layers": 2, "hidden_dims": (8,)}
FLOWS = {"nsf": SMALL, "maf": SMALL, "nsf_coupling": SMALL, "affine": {}}


@pytest.fixture(autouse=True)
def _without_machine_code(monkeypatch: pytest.MonkeyPatch):
    """Losses are recorded as they are for the compiler, and run as they were recorded."""
    monkeypatch.setattr(recorded, "_compile", lambda graph, inputs: graph)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="CompiledLoss")
        yield


def perturbed(flow: Bijector) -> Bijector:
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return flow


def negative_log_likelihood(flow: Bijector):
    def loss(x: Tensor, *context: Tensor) -> Tensor:
        z, log_det = flow.inverse_and_log_det(x)
        return (0.5 * z.square().sum(-1) - log_det).mean()

    return loss


def run(loss, leaves: list[Tensor], *args: Tensor) -> list[Tensor]:
    for leaf in leaves:
        leaf.grad = None
    value = loss(*args)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


@pytest.fixture
def flow() -> Bijector:
    torch.manual_seed(0)
    return perturbed(build_flow("nsf", 3, **SMALL))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("inverse", [False, True])
def test_value_and_gradients_are_those_of_the_eager_loss(name: str, inverse: bool):
    torch.manual_seed(0)
    flow = perturbed(build_flow(name, 3, **FLOWS[name]))
    loss = negative_log_likelihood(flow.inv if inverse else flow)
    fast, leaves = CompiledLoss(loss, flow), list(flow.parameters())
    for _ in range(2):
        x = torch.randn(16, 3)
        assert_close(run(fast, leaves, x), run(loss, leaves, x))
        perturbed(flow)
    assert fast.reason == ""
    assert fast.seconds > 0


def test_arguments_get_gradients_too(flow: Bijector):
    loss = negative_log_likelihood(flow)
    fast, x = CompiledLoss(loss, flow), torch.randn(16, 3, requires_grad=True)
    leaves = [x, *flow.parameters()]
    assert_close(run(fast, leaves, x), run(loss, leaves, x))
    base = torch.randn(3, requires_grad=True)  # and what they are made of
    assert_close(run(fast, [base], base * x), run(loss, [base], base * x))


@pytest.mark.slow
def test_distributions_of_pyro_are_recorded_without_their_checks(flow: Bijector):
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    fast = CompiledLoss(
        lambda x: -dist.TransformedDistribution(base, [flow]).log_prob(x).mean(), flow
    )
    x, leaves = torch.randn(16, 3), list(flow.parameters())
    constant = 1.5 * torch.tensor(2 * torch.pi).log()
    found, expected = run(fast, leaves, x), run(negative_log_likelihood(flow), leaves, x)
    assert_close(found, [expected[0] + constant, *expected[1:]])


@pytest.mark.slow
def test_a_change_of_the_modules_is_seen(flow: Bijector):
    scale = nn.Linear(3, 3)
    fast = CompiledLoss(lambda x: negative_log_likelihood(flow)(scale(x)), flow, scale)
    x, leaves = torch.randn(16, 3), list(flow.parameters())

    def expected() -> list[Tensor]:
        return run(lambda x: negative_log_likelihood(flow)(scale(x)), leaves, x)

    assert_close(run(fast, leaves, x), expected())
    scale.weight = nn.Parameter(torch.eye(3))
    assert_close(run(fast, leaves, x), expected())
    scale.weight.requires_grad_(False)
    assert_close(run(fast, leaves, x), expected())
    scale.weight.data.mul_(2)
    assert_close(run(fast, leaves, x), expected())


def test_modes_and_shapes_have_graphs_of_their_own():
    net = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5))
    fast = CompiledLoss(lambda x: net(x).square().mean(), net)
    x = torch.randn(64, 3)
    net.eval()
    assert_close(fast(x), net(x).square().mean())
    assert_close(fast(x[:5]), net(x[:5]).square().mean())
    net.train()
    first, second = fast(x), fast(x)
    assert first.item() != second.item()  # other units dropped at each call
    torch.manual_seed(0)
    first = fast(x)
    torch.manual_seed(0)
    assert_close(fast(x), first)


def test_buffers_that_change_are_left_to_eager_runs():
    net = nn.BatchNorm1d(3)
    fast, x = CompiledLoss(lambda x: net(x).square().mean(), net), torch.randn(16, 3)
    with pytest.warns(UserWarning, match="changes 3 buffers as it runs"):
        fast(x).backward()
    assert net.num_batches_tracked == 1  # as if nobody had looked
    assert_close(net.running_mean, 0.1 * x.mean(0))
    net.eval()
    fast = CompiledLoss(lambda x: net(x).square().mean(), net)
    assert_close(fast(x), net(x).square().mean())
    assert fast.reason == ""


@pytest.mark.slow
def test_trained_tensors_of_other_modules_are_not_taken_for_constants(flow: Bijector):
    other = nn.Linear(3, 3)
    fast = CompiledLoss(lambda x: negative_log_likelihood(flow)(other(x)), flow)
    with pytest.warns(UserWarning, match=r"not compiled.*\(3, 3\).*pass the modules"):
        fast(torch.randn(4, 3)).backward()
    assert other.weight.grad.abs().sum() > 0


def test_what_cannot_be_recorded_is_eager_with_a_word(flow: Bijector):
    def branching(x: Tensor) -> Tensor:
        value = negative_log_likelihood(flow)(x)
        return value if value > 0 else -value

    fast, x, leaves = CompiledLoss(branching, flow), torch.randn(4, 3), list(flow.parameters())
    with pytest.warns(UserWarning, match="CompiledLoss: the loss is not compiled, but run eagerly"):
        found = run(fast, leaves, x)
    assert_close(found, run(branching, leaves, x))
    assert "eager" in repr(fast)


def test_without_gradients_it_is_the_loss_itself(flow: Bijector):
    loss = negative_log_likelihood(flow)
    fast, x = CompiledLoss(loss, flow), torch.randn(4, 3)
    with torch.no_grad():
        assert_close(fast(x), loss(x))
    assert fast.seconds == 0


def test_too_many_shapes_end_in_eager_runs():
    flow = build_flow("affine", 3)
    fast = CompiledLoss(negative_log_likelihood(flow), flow)
    for n in range(1, 9):
        fast(torch.randn(n, 3))
    with pytest.warns(UserWarning, match="changed 8 times.*leave the last, smaller batch away"):
        assert fast(torch.randn(20, 3)).isfinite()


def test_copies_compile_their_own(flow: Bijector):
    fast = CompiledLoss(square_of, nn.Linear(3, 1))
    fast(torch.randn(4, 3, requires_grad=True))
    assert fast.seconds > 0
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert twin.seconds == 0


def square_of(x: Tensor) -> Tensor:
    return x.square().mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: CompiledLoss(3, f), "expected a function of tensors"),
        (lambda f: CompiledLoss(square_of), "got none"),
        (lambda f: CompiledLoss(square_of, 3), "expected modules after the loss, got int"),
        (lambda f: CompiledLoss(square_of, f)(np.zeros((3, 3))), "got ndarray"),
    ],
)
def test_wrong_use_is_named(flow: Bijector, make, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        make(flow)


def test_a_loss_that_is_not_one_number_is_named(flow: Bijector):
    with pytest.raises(
        ValueError, match=r"Tensor of shape \(4,\), expected a tensor of one number"
    ):
        CompiledLoss(lambda x: flow.inverse_and_log_det(x)[1], flow)(torch.randn(4, 3))
    with pytest.raises(ValueError, match="returned a float"):
        CompiledLoss(lambda x: 1.0, flow)(torch.randn(4, 3))
