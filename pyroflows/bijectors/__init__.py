"""Bijectors, one family per file."""

from .affine import FullAffine, LocScale, LowRankAffine
from .autoregressive import Autoregressive
from .block_autoregressive import BlockAutoregressive
from .continuous import Continuous
from .coupling import Coupling
from .dormant import Dormant
from .elementwise import Elementwise
from .exponential import MatrixExponential, Orthogonal
from .linear import LULinear
from .normalization import ActNorm, BatchNorm
from .orthogonal import Householder, Permutation
from .planar import Planar
from .radial import Radial
from .residual import Residual
from .sylvester import Sylvester

__all__ = [
    "ActNorm",
    "Autoregressive",
    "BatchNorm",
    "BlockAutoregressive",
    "Continuous",
    "Coupling",
    "Dormant",
    "Elementwise",
    "FullAffine",
    "Householder",
    "LULinear",
    "LocScale",
    "LowRankAffine",
    "MatrixExponential",
    "Orthogonal",
    "Permutation",
    "Planar",
    "Radial",
    "Residual",
    "Sylvester",
]
