"""Bases: what a flow starts from."""

from .base import Base
from .circular import Uniform, VonMises
from .gaussian_mixture import GaussianMixture
from .normals import DiagonalNormal, FullNormal, StandardNormal
from .product import Product, circular
from .registry import available_bases, build_base, register_base
from .student_t import StudentT

__all__ = [
    "Base",
    "DiagonalNormal",
    "FullNormal",
    "GaussianMixture",
    "Product",
    "StandardNormal",
    "StudentT",
    "Uniform",
    "VonMises",
    "available_bases",
    "build_base",
    "circular",
    "register_base",
]
