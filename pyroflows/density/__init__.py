"""Densities to fit to data, and to use in models."""

from .distribution import DensityDistribution
from .fit import fit_density
from .module import FlowDensity
from .probability import density_grid, pit
from .report import DensityFit

__all__ = ["DensityDistribution", "DensityFit", "FlowDensity", "density_grid", "fit_density", "pit"]
