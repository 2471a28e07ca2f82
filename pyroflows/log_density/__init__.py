"""The log density of a Pyro model on unconstrained coordinates, for a batch of points at once."""

from .density import LogDensity
from .public import VectorizedLogDensity, vectorized_log_density
from .structure import StructureError
from .tracing import Program

__all__ = [
    "LogDensity",
    "Program",
    "StructureError",
    "VectorizedLogDensity",
    "vectorized_log_density",
]
