"""Conversion to ArviZ, comparison of fits, calibration, plots."""

from .calibration import Calibration, calibrate_density
from .calibration_plots import plot_calibration
from .compare import compare_fits
from .conversion import to_inference_data
from .density_plots import plot_density
from .plots import plot_fit, plot_posteriors

__all__ = [
    "Calibration",
    "calibrate_density",
    "compare_fits",
    "plot_calibration",
    "plot_density",
    "plot_fit",
    "plot_posteriors",
    "to_inference_data",
]
