"""Normalizing flows for Pyro."""

from .bijector import Bijector, Compose, Inverse
from .energy import EnergyModel, energy_model
from .flows import available_flows, build_flow, register_flow
from .guides import AutoFlow, NeuTraReparam
from .infer import (
    GuideFit,
    ImportanceDiagnostics,
    PathELBO,
    fit_guide,
    importance_diagnostics,
)
from .psis import psis

__version__ = "0.1.0"

__all__ = [
    "AutoFlow",
    "Bijector",
    "Compose",
    "EnergyModel",
    "GuideFit",
    "ImportanceDiagnostics",
    "Inverse",
    "NeuTraReparam",
    "PathELBO",
    "available_flows",
    "build_flow",
    "energy_model",
    "fit_guide",
    "importance_diagnostics",
    "psis",
    "register_flow",
]
