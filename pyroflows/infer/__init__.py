"""Inference: objectives, fitting, importance weights."""

from .compiled_loss import CompiledLoss
from .fit import fit_guide
from .importance import ImportanceDiagnostics, importance_diagnostics
from .objectives import PathELBO
from .posterior import (
    BridgeEstimate,
    Polished,
    PosteriorDraws,
    ResampledDraws,
    bridge_log_z,
    polish,
    posterior_draws,
)
from .report import GuideFit

__all__ = [
    "BridgeEstimate",
    "CompiledLoss",
    "GuideFit",
    "ImportanceDiagnostics",
    "PathELBO",
    "Polished",
    "PosteriorDraws",
    "ResampledDraws",
    "bridge_log_z",
    "fit_guide",
    "importance_diagnostics",
    "polish",
    "posterior_draws",
]
