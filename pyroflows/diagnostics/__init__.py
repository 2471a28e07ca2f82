"""Conversion to ArviZ, comparison of fits, calibration, plots."""

from .calibration import Calibration, calibrate_density
from .calibration_plots import plot_calibration
from .compare import compare_fits
from .conversion import to_inference_data
from .density_plots import plot_density
from .mcmc import from_mcmc
from .plots import plot_fit, plot_posteriors
from .refits import calibrate_guide

__all__ = [
    "Calibration",
    "calibrate_density",
    "calibrate_guide",
    "compare_fits",
    "from_mcmc",
    "plot_calibration",
    "plot_density",
    "plot_fit",
    "plot_posteriors",
    "to_inference_data",
]
