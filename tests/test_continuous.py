"""A flow in continuous time: its density, its traces, its solvers, and what it says."""

import builtins
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows.bijectors import Continuous
from tests import laws
from tests.case import CONTEXT_DIM, Case

pytestmark = pytest.mark.usefixtures("_double")


def moved(dim: int = 2, **options) -> Continuous:
    torch.manual_seed(0)
    flow = Continuous(dim, hidden_dims=(8,), **options)
    with torch.no_grad():
        for p in flow.velocity.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    return flow


def test_the_density_integrates_to_one():
    flow = moved(tolerance=1e-6)
    axis = torch.linspace(-7, 7, 90)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        x, log_det = flow.inverse_and_log_det(grid)
    log_q = -0.5 * x.square().sum(-1) - torch.log(torch.tensor(2 * torch.pi)) + log_det
    mass = log_q.exp().sum() * (axis[1] - axis[0]) ** 2
    assert_close(mass, torch.tensor(1.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_directions_undo_each_other_and_log_dets_are_those_of_jacobians(dim: int):
    flow, x = moved(dim), 3 * torch.randn(3, dim)
    y, log_det = flow.forward_and_log_det(x)
    assert_close(flow.inverse_and_log_det(y), (x, -log_det), atol=1e-7, rtol=1e-7)
    for point, expected in zip(x, log_det, strict=True):
        matrix = torch.autograd.functional.jacobian(flow, point)
        assert_close(torch.linalg.slogdet(matrix).logabsdet, expected, atol=1e-7, rtol=1e-7)


def test_far_points_move_by_a_bounded_velocity():
    flow, x = moved(tolerance=1e-6), torch.tensor([[1e6, -1e6], [1e4, 0.0]])
    y, log_det = flow.forward_and_log_det(x)
    back, back_log_det = flow.inverse_and_log_det(y)
    assert_close(back, x, atol=1e-4, rtol=1e-6)
    assert_close(back_log_det, -log_det, atol=1e-4, rtol=0)


def test_the_score_is_the_gradient_of_the_log_density():
    flow, x = moved(tolerance=1e-8), torch.randn(3, 2)
    y, _, score = flow.forward_with_score(x, -x)
    point = y.detach().requires_grad_()
    back, log_det = flow.inverse_and_log_det(point)
    log_q = log_det - 0.5 * back.square().sum(-1)
    assert_close(score, torch.autograd.grad(log_q.sum(), point)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("solver", ["dopri8", "bosh3", "rk4"])
def test_solvers_agree(solver: str):
    x = torch.randn(4, 2)
    expected = moved().forward_and_log_det(x)
    found = moved(solver=solver, num_steps=100, tolerance=1e-7).forward_and_log_det(x)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_point_is_as_exact_among_many_as_alone():
    flow, x = moved(tolerance=1e-6), torch.cat([torch.randn(1, 2), 0.01 * torch.randn(5000, 2)])
    with torch.no_grad():
        among, alone = flow.forward_and_log_det(x), flow.forward_and_log_det(x[:1])
        exact = moved(tolerance=1e-11).forward_and_log_det(x[:1])
    for a, b, e in zip(among, alone, exact, strict=True):
        assert_close(a[:1], e, atol=1e-5, rtol=1e-5)
        assert_close(b, e, atol=1e-5, rtol=1e-5)


def test_the_estimated_trace_is_a_function_and_right_in_the_mean():
    x, flow = torch.randn(1, 2).expand(4000, 2), moved(trace="hutchinson", tolerance=1e-6)
    exact = moved(tolerance=1e-6).forward_and_log_det(x[:1])[1]
    with torch.no_grad():
        first, second = (flow.forward_and_log_det(x[:3]) for _ in range(2))
        assert_close(first, second, atol=0, rtol=0)
        assert_close(first[1], first[1][:1].expand(3), atol=1e-12, rtol=0)
        assert (first[1] - exact).abs().min() > 1e-3
        fresh = moved(trace="hutchinson", noise="fresh", tolerance=1e-6)
        estimates = fresh.forward_and_log_det(x)[1]
        error = estimates.std() / len(x) ** 0.5
        assert error > 0  # noise of its own for each point, in training mode
        assert (estimates.mean() - exact).abs() < 5 * error
        assert_close(fresh.eval().forward_and_log_det(x[:3]), first)
    probes = moved(trace="hutchinson", num_probes=500, tolerance=1e-4)
    assert_close(probes.forward_and_log_det(x[:1])[1], exact, atol=0.2, rtol=0)
    probes.trace = "exact"
    assert_close(probes.forward_and_log_det(x[:1])[1], exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "law",
    [
        "a_batch_is_a_loop",
        "context_broadcasts_against_the_batch",
        "every_parameter_gets_a_gradient",
        "inverse_undoes_forward",
        "results_have_the_dtype_of_the_module_not_the_default",
        "second_derivatives_are_those_of_the_first",
        "survives_copy_pickle_and_state_dict_after_use",
        "values_and_gradients_stay_finite_far_out",
    ],
)
def test_the_estimated_trace_obeys_the_laws(law: str):
    options = {"trace": "hutchinson", "solver": "rk4", "num_steps": 16, "hidden_dims": (8,)}
    build = partial(Continuous, context_dim=CONTEXT_DIM, **options)
    laws.LAWS[law](Case(build, CONTEXT_DIM, tolerances={"inverse_undoes_forward": 1e-4}))


def test_a_tolerance_no_step_is_small_enough_for_is_that_of_the_dtype():
    flow = moved(tolerance=1e-12).float()
    x = torch.randn(4, 2, dtype=torch.float32)
    expected = moved(tolerance=1e-9).forward_and_log_det(x.double())
    found = flow.forward_and_log_det(x)
    assert_close([v.double() for v in found], [*expected], atol=1e-4, rtol=1e-4)


def test_the_adjoint_gives_the_same_gradients():
    x, found = torch.randn(4, 2), []
    for adjoint in (False, True):
        flow = moved(adjoint=adjoint, tolerance=1e-8)
        y, log_det = flow.forward_and_log_det(x)
        (y.square().sum() + log_det.sum()).backward()
        found.append([p.grad for p in flow.velocity.parameters()])
    assert_close(*found, atol=1e-5, rtol=1e-4)


def test_evaluations_are_counted():
    flow = moved(solver="rk4", num_steps=5)
    flow.forward_and_log_det(torch.randn(3, 2))
    assert flow.num_evaluations == 20


def test_parameters_that_are_not_finite_are_an_error_not_a_loop():
    flow = moved()
    with torch.no_grad():
        next(flow.velocity.parameters()).fill_(torch.nan)
    with pytest.raises(RuntimeError, match="Are the parameters finite"):
        flow.forward_and_log_det(torch.randn(3, 2))


def test_without_torchdiffeq_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name == "torchdiffeq":
            raise ImportError(name)
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'pyroflows\[ode\]'"):
        Continuous(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "activation to be one of"),
        ({"trace": "none"}, "trace to be one of"),
        ({"noise": "none"}, "noise to be one of"),
        ({"solver": "newton"}, "solver to be one of"),
        ({"num_steps": 0}, "num_steps to be a positive int"),
        ({"num_probes": 1.5}, "num_probes to be a positive int"),
        ({"tolerance": 2.0}, "tolerance between 0 and 1"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str):
    with pytest.raises(ValueError, match=f"Continuous expected {message}"):
        Continuous(2, **options)


def test_no_points():
    y, log_det = moved().forward_and_log_det(torch.empty(0, 2))
    assert isinstance(y, Tensor)
    assert (y.shape, log_det.shape) == ((0, 2), (0,))
