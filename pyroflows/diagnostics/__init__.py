"""Conversion to ArviZ, comparison of fits, calibration, plots, reports."""

from .calibration import Calibration, calibrate_density
from .calibration_plots import plot_calibration
from .compare import compare_fits
from .conversion import to_inference_data
from .density_plots import plot_density
from .distances import c2st, marginal_distances
from .fit_plots import plot_fit
from .flow_plots import plot_flow, plot_target
from .html_report import write_report
from .leave_one_out import Loo, loo
from .mcmc import from_mcmc
from .models import compare_models
from .plots import plot_posteriors
from .predictive import loo_pit, predictive_p_values
from .predictive_plots import plot_predictive
from .refits import calibrate_guide
from .weight_plots import plot_weights

__all__ = [
    "Calibration",
    "Loo",
    "c2st",
    "calibrate_density",
    "calibrate_guide",
    "compare_fits",
    "compare_models",
    "from_mcmc",
    "loo",
    "loo_pit",
    "marginal_distances",
    "plot_calibration",
    "plot_density",
    "plot_fit",
    "plot_flow",
    "plot_posteriors",
    "plot_predictive",
    "plot_target",
    "plot_weights",
    "predictive_p_values",
    "to_inference_data",
    "write_report",
]
