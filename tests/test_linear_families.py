"""What linear maps promise beyond the laws."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from pyroflows.bijectors import MatrixExponential, Orthogonal, Permutation
from tests import laws
from tests.case import Case
from tests.families import linear

pytestmark = pytest.mark.usefixtures("_double")
BUILDERS = linear.builders()


@pytest.mark.parametrize("name", BUILDERS)
def test_compiles(name: str):
    laws.compile_agrees(Case(BUILDERS[name]))


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_orthogonal_keeps_lengths_and_orientation(dim: int):
    matrix = Case(Orthogonal, dim=dim).bijector(noise=2.0)(torch.eye(dim)).mT
    assert_close(matrix @ matrix.mT, torch.eye(dim), atol=1e-12, rtol=0)
    assert_close(torch.linalg.det(matrix), torch.tensor(1.0), atol=1e-12, rtol=0)


def test_a_context_gives_each_point_its_own_matrix_exponential():
    build = partial(MatrixExponential, context_dim=2, hidden_dims=(8,))
    c = torch.randn(4, 1, 2)
    y, log_det = Case(build, 2).bijector(noise=0.5).forward_and_log_det(torch.randn(5, 3), c)
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
