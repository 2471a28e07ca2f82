"""Guides: flows as variational posteriors of Pyro models."""

from .autoflow import AutoFlow
from .neutra import NeuTraReparam
from .posterior import FlowDistribution

__all__ = ["AutoFlow", "FlowDistribution", "NeuTraReparam"]
