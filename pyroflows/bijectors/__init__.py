"""Bijectors, one family per file."""

from .autoregressive import Autoregressive
from .coupling import Coupling
from .elementwise import Elementwise
from .linear import FullAffine, LocScale, LowRankAffine, LULinear
from .orthogonal import Householder, Permutation

__all__ = [
    "Autoregressive",
    "Coupling",
    "Elementwise",
    "FullAffine",
    "Householder",
    "LULinear",
    "LocScale",
    "LowRankAffine",
    "Permutation",
]
