"""The inverse of an autoregressive layer in steps: the same numbers as D passes, at one's cost."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import pyroflows as pf
from pyroflows.bijectors import Autoregressive
from pyroflows.networks import MaskedConditioner
from pyroflows.transformers import Additive, Affine, RationalQuadraticSpline, Transformer
from tests.benchmarks import inverse
from tests.cases import TRANSFORMERS

pytestmark = pytest.mark.usefixtures("_double")
DIM, CONTEXT_DIM = 5, 2
REVERSED, MIXED = range(DIM)[::-1], [3, 0, 4, 1, 2]
NETWORKS = {
    "two layers": {"hidden_dims": (8, 8)},
    "no layer": {"hidden_dims": (), "order": MIXED},
    "few units": {"hidden_dims": (2, 3), "order": REVERSED},
    "uneven": {"hidden_dims": (11, 3, 7), "activation": "tanh", "order": MIXED},
    "residual": {"hidden_dims": (9, 9), "residual": True, "activation": "silu", "order": REVERSED},
    "residual relu": {"hidden_dims": (3, 3, 3), "residual": True, "order": MIXED},
    "own activation": {"hidden_dims": (6, 6), "activation": nn.Softplus},
    "activation with a parameter": {"hidden_dims": (6, 6), "activation": nn.PReLU},
}


class Counted(Transformer):
    """A transformer that is not one of ours, and counts the inversions."""

    num_params = 2
    calls = 0

    def forward_and_log_det(self, x, params):
        return Affine().forward_and_log_det(x, params)

    def inverse_and_log_det(self, y, params):
        self.calls += 1
        return Affine().inverse_and_log_det(y, params)


def layer(dim: int = DIM, *, noise: float = 0.4, **options: object) -> Autoregressive:
    b = Autoregressive(dim, **options)
    with torch.no_grad():
        for p in b.parameters():
            p.add_(noise * torch.randn_like(p))
    return b


def by_passes(b: Autoregressive, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pass i of the whole network makes one more coordinate right."""
    x = torch.zeros_like(y)
    for i in range(b.dim):
        x, log_det = b.transformer.inverse_and_log_det(y, b.conditioner(x, context))
        x = torch.where(b.rank <= i, x, 0)
    return x, log_det.sum(-1)


def gradients(b: Autoregressive, outputs: tuple, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    x, log_det = outputs
    total = (x * torch.arange(1.0, b.dim + 1)).sin().sum() + log_det.square().sum()
    return torch.autograd.grad(total, [*inputs, *b.parameters()], create_graph=True)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("context_dim", [0, CONTEXT_DIM])
def test_steps_give_what_passes_give(network: str, name: str, context_dim: int):
    b = layer(context_dim=context_dim, transformer=TRANSFORMERS[name], **NETWORKS[network])
    inputs = [torch.randn(4, DIM).requires_grad_()]
    if context_dim:
        inputs.append(torch.randn(4, CONTEXT_DIM).requires_grad_())
    context = inputs[1] if context_dim else None
    actual, expected = b.inverse_and_log_det(inputs[0], context), by_passes(b, inputs[0], context)
    assert_close(actual, expected)
    with torch.no_grad():
        assert_close(b.inverse_and_log_det(inputs[0], context), expected)
    first, first_expected = (gradients(b, outputs, inputs) for outputs in (actual, expected))
    assert_close(first, first_expected)
    along = [torch.randn_like(g) for g in first]
    second, second_expected = (
        torch.autograd.grad(
            sum((g * v).sum() for g, v in zip(grads, along, strict=True)),
            [*inputs, *b.parameters()],
            materialize_grads=True,
        )
        for grads in (first, first_expected)
    )
    assert_close(second, second_expected)


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("network", ["two layers", "few units", "residual", "no layer"])
def test_gradients_without_a_graph_of_their_own_are_the_same(name: str, network: str):
    options = {"transformer": TRANSFORMERS[name], **NETWORKS[network]}
    b = layer(context_dim=CONTEXT_DIM, **options)
    y, c = torch.randn(3, 1, DIM).requires_grad_(), torch.randn(4, CONTEXT_DIM).requires_grad_()

    def compare(part: int, wanted: list[Tensor]) -> None:
        results = b.inverse_and_log_det(y, c), by_passes(b, y.expand(3, 4, -1), c)
        actual, expected = (
            torch.autograd.grad(r[part].sin().sum(), wanted, materialize_grads=True)
            for r in results
        )
        assert_close(actual, expected)

    compare(0, [y, c, *b.parameters()])
    if name != "additive":  # its log-determinant is constant
        compare(1, [y, c, *b.parameters()])
    b.requires_grad_(False)
    compare(0, [y])


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("context_dim", [0, CONTEXT_DIM])
@pytest.mark.parametrize("hidden_dims", [(), (1,), (4, 4)])
def test_few_coordinates(dim: int, context_dim: int, hidden_dims: tuple[int, ...]):
    b = layer(dim, context_dim=context_dim, hidden_dims=hidden_dims)
    x = torch.randn(6, dim)
    c = torch.randn(6, context_dim) if context_dim else None
    y, log_det = b.forward_and_log_det(x, c)
    again, inverse_log_det = b.inverse_and_log_det(y, c)
    assert_close((again, inverse_log_det), (x, -log_det))


@pytest.mark.parametrize(
    ("batch", "of_context", "expected"),
    [
        ((), (), ()),
        ((5, 1), (4,), (5, 4)),
        ((4,), (), (4,)),
        ((), (3, 2), (3, 2)),
        ((0,), (), (0,)),
    ],
)
def test_batches_broadcast(batch: tuple, of_context: tuple, expected: tuple):
    b = layer(context_dim=CONTEXT_DIM, transformer=TRANSFORMERS["spline"])
    y = torch.randn(*batch, DIM).requires_grad_()
    c = torch.randn(*of_context, CONTEXT_DIM).requires_grad_()
    full = (y.expand(*expected, DIM), c.expand(*expected, CONTEXT_DIM))
    x, log_det = b.inverse_and_log_det(y, c)
    assert x.shape == (*expected, DIM)
    assert x.is_contiguous()
    assert log_det.shape == expected
    assert_close((x, log_det), by_passes(b, *full))
    found, wanted = (
        torch.autograd.grad(f.square().sum(), (y, c)) for f in (x, by_passes(b, *full)[0])
    )
    assert_close(found, wanted)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_the_arithmetic_is_that_of_one_pass(grad: bool, residual: bool):
    b = layer(40, hidden_dims=(48, 48), residual=residual, transformer=TRANSFORMERS["spline"])
    y = torch.randn(16, 40)

    def flops(method: str) -> int:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
            x, log_det = getattr(b, method)(y)
            if grad:
                (x.sum() + log_det.sum()).backward()
        return counter.get_total_flops()

    assert 0 < flops("inverse_and_log_det") < 1.2 * flops("forward_and_log_det")


def test_coordinates_that_wait_for_no_unit_share_a_step():
    b = layer(60, hidden_dims=(4, 6), transformer=(affine := Counted()))
    y = torch.randn(3, 60).requires_grad_()
    x, log_det = b.inverse_and_log_det(y)
    assert affine.calls <= 1 + 4 + 6
    expected = by_passes(b, y, None)
    assert_close((x, log_det), expected)
    leaves = [y, *b.parameters()]
    actual, wanted = (
        torch.autograd.grad(v.sin().sum() + w.sin().sum(), leaves)
        for v, w in ((x, log_det), expected)
    )
    assert_close(actual, wanted)


def test_an_activation_meets_each_unit_once():
    b = layer(30, hidden_dims=(7, 64), activation="tanh")
    numbers: list[int] = []
    hook = b.conditioner.net.activation.register_forward_hook(
        lambda module, inputs, output: numbers.append(output.numel())
    )
    with torch.no_grad():
        b.inverse_and_log_det(torch.randn(2, 30))
    hook.remove()
    assert sum(numbers) == 2 * (7 + 64)


@pytest.mark.parametrize(
    "transformer", [Affine(), RationalQuadraticSpline()], ids=["affine", "rqs"]
)
def test_single_precision_loses_no_more_than_by_passes(transformer):
    b = layer(64, noise=0.2, transformer=transformer, order=range(64)[::-1]).float()
    x = torch.randn(1024, 64, dtype=torch.float32)
    with torch.no_grad():
        y = b.forward_and_log_det(x)[0]
        exact = copy.deepcopy(b).double().inverse_and_log_det(y.double())
        steps, passes = b.inverse_and_log_det(y), by_passes(b, y, None)
    for i in range(2):
        error, before = ((v[i] - exact[i]).abs().quantile(0.9) for v in (steps, passes))
        assert error <= 1.5 * before


def test_what_is_wrong_with_a_coordinate_stays_with_those_after_it():
    b = layer(order=MIXED)
    y = torch.randn(2, DIM)
    broken = y.clone()
    broken[:, 4] = torch.nan
    x, expected = b.inverse_and_log_det(broken)[0], b.inverse_and_log_det(y)[0]
    assert_close(x[:, [3, 0]], expected[:, [3, 0]])
    assert x[:, 4].isnan().all()


def test_parameters_may_be_swapped_between_forward_and_backward():
    b, y = layer(), torch.randn(4, DIM)
    state = {n: (0.5 * p.detach()).requires_grad_() for n, p in b.named_parameters()}

    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = b

        def forward(self, y: Tensor) -> Tensor:
            return b.inverse_and_log_det(y)[0]

    named = {f"b.{n}": p for n, p in state.items()}
    total = torch.func.functional_call(Inverse(), named, (y,)).square().sum()
    actual = torch.autograd.grad(total, list(state.values()))
    b.load_state_dict({**b.state_dict(), **{n: p.detach() for n, p in state.items()}})
    expected = torch.autograd.grad(b.inverse_and_log_det(y)[0].square().sum(), list(b.parameters()))
    assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_transforms_of_functions_agree():
    b = layer(context_dim=CONTEXT_DIM, transformer=TRANSFORMERS["spline"], order=MIXED)
    y, c = torch.randn(4, DIM), torch.randn(CONTEXT_DIM)

    def run(v: Tensor) -> Tensor:
        return b.inverse_and_log_det(v, c)[0]

    expected = torch.stack([torch.autograd.functional.jacobian(run, v) for v in y])
    assert_close(torch.vmap(run)(y), run(y))
    assert_close(torch.vmap(torch.func.jacrev(run))(y), expected)
    assert_close(torch.vmap(torch.func.jacfwd(run))(y), expected)
    for v, matrix in zip(y, expected, strict=True):
        mapped = torch.autograd.functional.jacobian(run, v, vectorize=True)
        assert_close(mapped, matrix)
    b.requires_grad_(False)
    traced = torch.jit.trace(run, y)
    assert_close(traced(torch.cat([y, 2 * y])), run(torch.cat([y, 2 * y])))


def test_other_networks_are_asked_in_passes():
    class Doubled(MaskedConditioner):
        def forward(self, x, context=None):
            return 2 * super().forward(x, context)

    b = layer(transformer=Affine())
    state = b.conditioner.state_dict()
    b.conditioner = Doubled(DIM, 2)
    b.conditioner.load_state_dict(state)
    x = torch.randn(4, DIM)
    y, log_det = b.forward_and_log_det(x)
    assert_close(b.inverse_and_log_det(y), (x, -log_det))


def test_a_missing_or_wrong_context_is_refused():
    b = Autoregressive(2, context_dim=1, transformer=Additive())
    with pytest.raises(TypeError, match=r"expected context of shape \(\*, 1\), got none"):
        b.inverse_and_log_det(torch.zeros(2))
    with pytest.raises(ValueError, match=r"expected context of shape \(\*, 1\), got \(5, 3\)"):
        b.inverse_and_log_det(torch.zeros(2), torch.zeros(5, 3))


def test_it_trains_a_density_by_what_costs_d_steps():
    """Scoring data under an iaf: the direction that needs the inverse."""
    flow = pf.build_flow("iaf", 3, num_layers=2, hidden_dims=(16,))
    data = torch.randn(128, 3) * torch.tensor([1.0, 0.5, 2.0])
    base = torch.distributions.Normal(0.0, 1.0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-2)
    losses = []
    for _ in range(40):
        x, log_det = flow.inverse_and_log_det(data)
        loss = -(base.log_prob(x).sum(-1) + log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


def test_the_benchmark_of_the_inverse(tmp_path):
    pytest.importorskip("zuko", reason="zuko, the peer, is not installed")
    rows = inverse.main(["--smoke", "--output", str(tmp_path / "inverse.json")])
    assert [(row["map"], row["backward"]) for row in rows] == [
        (name, backward) for name in ("affine", "spline") for backward in ("no", "yes")
    ]
    assert all(row["to zuko"] > 0 < row["to pass"] for row in rows)
    assert len(json.loads((tmp_path / "inverse.json").read_text())["rows"]) == 4
