"""The log density of a Pyro model on unconstrained coordinates, for a batch of points at once."""

from .density import LogDensity
from .structure import StructureError

__all__ = ["LogDensity", "StructureError"]
