"""Normalizing flows for Pyro."""

from .bases import Base, available_bases, build_base
from .bijector import Bijector, Compose, Inverse
from .density import DensityFit, FlowDensity, density_grid, fit_density, pit
from .diagnostics import (
    Calibration,
    calibrate_density,
    calibrate_guide,
    compare_fits,
    from_mcmc,
    plot_calibration,
    plot_density,
    plot_fit,
    plot_posteriors,
    to_inference_data,
)
from .energy import EnergyModel, energy_model
from .flows import available_flows, build_flow, register_flow
from .guides import AutoFlow, NeuTraReparam
from .infer import (
    BridgeEstimate,
    CompiledLoss,
    GuideFit,
    ImportanceDiagnostics,
    PathELBO,
    Polished,
    PosteriorDraws,
    ResampledDraws,
    bridge_log_z,
    fit_guide,
    importance_diagnostics,
    polish,
    posterior_draws,
)
from .log_density import vectorized_log_density
from .psis import psis

__version__ = "0.1.0"

__all__ = [
    "AutoFlow",
    "Base",
    "Bijector",
    "BridgeEstimate",
    "Calibration",
    "CompiledLoss",
    "Compose",
    "DensityFit",
    "EnergyModel",
    "FlowDensity",
    "GuideFit",
    "ImportanceDiagnostics",
    "Inverse",
    "NeuTraReparam",
    "PathELBO",
    "Polished",
    "PosteriorDraws",
    "ResampledDraws",
    "available_bases",
    "available_flows",
    "bridge_log_z",
    "build_base",
    "build_flow",
    "calibrate_density",
    "calibrate_guide",
    "compare_fits",
    "density_grid",
    "energy_model",
    "fit_density",
    "fit_guide",
    "from_mcmc",
    "importance_diagnostics",
    "pit",
    "plot_calibration",
    "plot_density",
    "plot_fit",
    "plot_posteriors",
    "polish",
    "posterior_draws",
    "psis",
    "register_flow",
    "to_inference_data",
    "vectorized_log_density",
]
