"""Linear maps, normalisation and conditioners: numbers, and what each promises beyond the laws."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from pyroflows.bijectors import MatrixExponential, Orthogonal, Permutation
from tests import bars, laws
from tests.case import CONTEXT_DIM, Case
from tests.families import linear

BUILDERS = linear.builders()
NOISES = (0.1, 0.5)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverse_undoes_forward(name: str, noise: float, dtype: torch.dtype):
    for dim in (1, 2, 5, 20):
        # A network moved by 0.5 gives raws of ten and more: matrices too near singular to judge by.
        for context_dim in (0, CONTEXT_DIM) if noise < 0.5 else (0,):
            b = bars.moved(BUILDERS[name], dim, noise, context_dim=context_dim).to(dtype)
            c = torch.randn(context_dim, dtype=dtype) if context_dim else None
            worst = bars.round_trip_error(b, bars.points(dim).to(dtype), c).max()
            assert worst <= bars.ROUND_TRIP[dtype], (dim, context_dim)


@pytest.mark.parametrize("name", BUILDERS)
def test_log_det_is_that_of_the_jacobian(name: str):
    for dim in (1, 2, 3, 5):
        for noise in NOISES:
            b = bars.moved(BUILDERS[name], dim, noise)
            for x in bars.points(dim)[::8]:
                assert bars.log_det_error(b, x) <= bars.LOG_DET


@pytest.mark.parametrize("name", BUILDERS)
def test_density_integrates_to_one(name: str):
    for dim in (1, 2):
        for noise in NOISES:
            assert abs(bars.mass(bars.moved(BUILDERS[name], dim, noise)) - 1) <= bars.MASS


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.usefixtures("_double")
def test_compiles(name: str):
    laws.compile_agrees(Case(BUILDERS[name]))


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_orthogonal_keeps_lengths_and_orientation(dim: int):
    b = bars.moved(Orthogonal, dim, 2.0)
    matrix = b(torch.eye(dim).double()).mT
    eye = torch.eye(dim).double()
    assert_close(matrix @ matrix.mT, eye, atol=1e-12, rtol=0)
    assert_close(torch.linalg.det(matrix), torch.ones(()).double(), atol=1e-12, rtol=0)


def test_a_context_gives_each_point_its_own_matrix_exponential():
    b = bars.moved(MatrixExponential, 3, 0.5, context_dim=2, hidden_dims=(8,))
    c = torch.randn(4, 1, 2).double()
    y, log_det = b.forward_and_log_det(torch.randn(5, 3).double(), c)
    assert y.shape == (4, 5, 3)
    assert log_det.shape == (4, 5)
    assert len(log_det[:, 0].unique()) == 4


def test_permutations_by_name():
    x = torch.arange(5.0)
    assert Permutation.reverse(5)(x).tolist() == [4, 3, 2, 1, 0]
    assert Permutation.reverse(1)(x[:1]).tolist() == [0]
    before = torch.get_rng_state()
    orders = {tuple(Permutation.random(5, seed=seed)(x).tolist()) for seed in range(20)}
    assert torch.equal(torch.get_rng_state(), before)
    assert len(orders) > 10
    torch.manual_seed(5)
    assert torch.equal(Permutation.random(5, seed=3)(x), Permutation.random(5, seed=3)(x))


def test_a_loaded_permutation_is_the_saved_one():
    saved, fresh, x = (
        Permutation.random(6, seed=1),
        Permutation.random(6, seed=2),
        torch.randn(4, 6),
    )
    assert not torch.equal(saved(x), fresh(x))
    y = fresh(x)
    fresh.load_state_dict(saved.state_dict())
    assert torch.equal(fresh(x), saved(x))
    assert torch.equal(fresh.inv(y), saved.inv(y))  # not from the memory of the order before
    for twin in (copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert torch.equal(twin(x), saved(x))


@pytest.mark.parametrize("dim", [0, -1, 2.0, True])
def test_permutations_by_name_need_a_size(dim: object):
    for method in (Permutation.reverse, Permutation.random):
        with pytest.raises(ValueError, match=f"Permutation.{method.__name__} expected dim to be"):
            method(dim)
