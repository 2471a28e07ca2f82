"""R-hat and effective sample size, by ArviZ where it is installed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["MISSING", "convergence"]

MISSING = "R-hat and effective sample sizes come from ArviZ: pip install pyroflows[arviz]."


def convergence(chains: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return rank-normalised split R-hat and bulk ESS of columns; None without ArviZ.

    Args:
        chains: Draws, shape ``(M, N, C)``.

    Returns:
        Both of shape ``(C)``, float64; NaN where a column is constant or too short.
    """
    arviz = _arviz()
    if arviz is None:
        return None
    columns = [np.ascontiguousarray(c) for c in chains.permute(2, 0, 1).cpu().double().numpy()]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # short chains are NaN, and said to be
        r_hat = [float(arviz.rhat(column, method="rank")) for column in columns]
        size = [float(arviz.ess(column, method="bulk")) for column in columns]
    return torch.tensor(r_hat, dtype=torch.float64), torch.tensor(size, dtype=torch.float64)


def _arviz() -> Any:
    try:
        with warnings.catch_warnings():
            # ArviZ 0.23 announces the next major on every first import.
            warnings.simplefilter("ignore", FutureWarning)
            import arviz
    except ImportError:
        return None
    return arviz
