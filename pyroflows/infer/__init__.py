"""Inference: objectives, fitting, importance weights."""

from .compiled_loss import CompiledLoss
from .fit import fit_guide
from .importance import ImportanceDiagnostics, importance_diagnostics
from .objectives import PathELBO
from .posterior import PosteriorDraws, ResampledDraws, posterior_draws
from .report import GuideFit

__all__ = [
    "CompiledLoss",
    "GuideFit",
    "ImportanceDiagnostics",
    "PathELBO",
    "PosteriorDraws",
    "ResampledDraws",
    "fit_guide",
    "importance_diagnostics",
    "posterior_draws",
]
