"""Inference: objectives, fitting, importance weights."""

from .fit import GuideFit, fit_guide
from .importance import ImportanceDiagnostics, importance_diagnostics
from .objectives import PathELBO

__all__ = ["GuideFit", "ImportanceDiagnostics", "PathELBO", "fit_guide", "importance_diagnostics"]
