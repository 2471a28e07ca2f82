"""Inference: objectives, fitting, importance weights."""

from .importance import ImportanceDiagnostics, importance_diagnostics
from .objectives import PathELBO

__all__ = ["ImportanceDiagnostics", "PathELBO", "importance_diagnostics"]
