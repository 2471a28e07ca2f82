"""Linear maps: exponentials of matrices, and permutations by name."""

from functools import partial

from pyroflows import Compose
from pyroflows.bijectors import LocScale, MatrixExponential, Orthogonal, Permutation
from tests.case import HIDDEN


def _permuted(named, dim, **options):
    """A permutation takes no context, so a layer that does stands beside it."""
    return Compose(LocScale(dim, hidden_dims=HIDDEN, **options), named(dim))


def builders():
    return {
        "orthogonal": partial(Orthogonal, hidden_dims=HIDDEN),
        "matrix_exponential": partial(MatrixExponential, hidden_dims=HIDDEN),
        "permutation-reverse": partial(_permuted, Permutation.reverse),
        "permutation-random": partial(_permuted, partial(Permutation.random, seed=3)),
    }
