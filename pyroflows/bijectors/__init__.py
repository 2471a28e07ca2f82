"""Bijectors, one family per file."""

from .autoregressive import Autoregressive
from .coupling import Coupling
from .elementwise import Elementwise
from .linear import LocScale, LULinear, Permutation

__all__ = [
    "Autoregressive",
    "Coupling",
    "Elementwise",
    "LULinear",
    "LocScale",
    "Permutation",
]
