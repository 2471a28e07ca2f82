"""Normalizing flows for Pyro."""

from .bijector import Bijector, Compose, Inverse
from .energy import EnergyModel, energy_model
from .flows import available_flows, build_flow, register_flow

__version__ = "0.1.0"

__all__ = [
    "Bijector",
    "Compose",
    "EnergyModel",
    "Inverse",
    "available_flows",
    "build_flow",
    "energy_model",
    "register_flow",
]
