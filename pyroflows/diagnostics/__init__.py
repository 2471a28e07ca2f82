"""Conversion to ArviZ, comparison of fits, plots."""

from .compare import compare_fits
from .conversion import to_inference_data
from .plots import plot_fit, plot_posteriors

__all__ = ["compare_fits", "plot_fit", "plot_posteriors", "to_inference_data"]
