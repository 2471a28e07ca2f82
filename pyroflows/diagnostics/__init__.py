"""Conversion to ArviZ, comparison of fits, plots."""

from .compare import compare_fits
from .conversion import to_inference_data
from .density_plots import plot_density
from .plots import plot_fit, plot_posteriors

__all__ = ["compare_fits", "plot_density", "plot_fit", "plot_posteriors", "to_inference_data"]
