"""Normalizing flows for Pyro."""

from .bijector import Bijector, Compose, Inverse
from .flows import available_flows, build_flow, register_flow

__version__ = "0.1.0"

__all__ = [
    "Bijector",
    "Compose",
    "Inverse",
    "available_flows",
    "build_flow",
    "register_flow",
]
