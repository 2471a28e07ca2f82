"""Densities to fit to data, and to use in models."""

from .distribution import DensityDistribution
from .module import FlowDensity

__all__ = ["DensityDistribution", "FlowDensity"]
