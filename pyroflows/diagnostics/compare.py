"""One table of several fits of one model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..infer.posterior import PosteriorDraws
from . import _arviz
from .distances import c2st, marginal_distances
from .sources import common_draws, flat_draws, posterior_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["compare_fits"]

_NUMBERS = ("elbo", "elbo_se", "log_z", "log_z_se", "pareto_k", "good_k", "ess")
_ERRORS = (
    "max_mean_error",
    "min_sd_ratio",
    "max_sd_ratio",
    "max_quantile_error",
    "max_wasserstein",
    "c2st",
)
_FEWEST = 50  # draws that a classifier can be trained on


def compare_fits(
    fits: Mapping[str, Any],
    reference: Any = None,
    *,
    var_names: Sequence[str] | None = None,
) -> pd.DataFrame:
    r"""Compare fits of one model in a table, the highest ELBO first.

    Columns: ``elbo``, ``elbo_se``, ``log_z``, ``log_z_se``, ``pareto_k``, ``good_k``, ``ess`` (a
    fraction), ``num_draws``, ``verdict``; and with a reference, over all coordinates,
    ``max_mean_error``, the largest :math:`|m - m_{ref}| / s_{ref}`; ``min_sd_ratio`` and
    ``max_sd_ratio``, the extremes of :math:`s / s_{ref}`; ``max_quantile_error``, the largest error
    of a 5, 50 or 95 % quantile, and ``max_wasserstein``, the largest 1-Wasserstein distance of a
    marginal, both in :math:`s_{ref}`; and ``c2st``, the accuracy of a classifier that tells the
    draws apart, 0.5 where it cannot (:func:`~pyroflows.c2st`; at most 1,000 draws of each). All of
    the draws as they are, unweighted; :func:`~pyroflows.marginal_distances` has each coordinate.
    What is not defined is NaN, as the ELBO of MCMC draws; such rows come last.

    All guides of one model share log Z, so that the spread of ``log_z`` is itself a check, and
    ``log_z - elbo`` estimates the divergence of the guide from the posterior. Leave-one-out
    scores are no way to compare guides of one model: they rank the over-confident one first.

    Args:
        fits: by name: what ``to_inference_data``, ``fit_guide``, ``polish`` or ``posterior_draws``
            returned, importance diagnostics, a Pyro ``MCMC`` that has run, or a mapping of site
            name to draws ``(S, *shape)``.
        reference: the name of one of the fits, or draws in one of these forms.
        var_names: variables to set beside the reference; all unless given.

    Raises:
        ImportError: if ArviZ (with pandas) is not installed.
        TypeError: if a fit is none of these.
        ValueError: if there are no fits, the reference is unknown or has no draws, or variables or
            dims of a fit differ from those of the reference.

    Example:
        >>> import torch
        >>> import pyroflows as pf
        >>> exact, wide = {"z": torch.randn(4000)}, {"z": 2 * torch.randn(4000)}
        >>> table = pf.compare_fits({"exact": exact, "wide": wide}, reference="exact")
        >>> bool(table.loc["wide", "min_sd_ratio"] > 1.8)
        True
    """
    _arviz.require()
    import pandas as pd

    if not isinstance(fits, Mapping) or not fits:
        raise ValueError(
            f"compare_fits: expected a mapping of name to fit, got {type(fits).__name__} "
            f"of length {len(fits) if hasattr(fits, '__len__') else '?'}."
        )
    _check_model(fits)
    rows = {name: _row(fit, name) for name, fit in fits.items()}
    columns = [*_NUMBERS, "num_draws", "verdict"]
    if reference is not None:
        errors = _errors(fits, reference, var_names)
        rows = {name: {**row, **errors.get(name, {})} for name, row in rows.items()}
        columns += _ERRORS
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)
    return table.sort_values("elbo", ascending=False, na_position="last", kind="stable")


def _row(fit: Any, name: str) -> dict[str, Any]:
    report = getattr(fit, "diagnostics", fit)
    if hasattr(report, "pareto_k") and hasattr(report, "log_weights"):
        row = {column: getattr(report, column) for column in _NUMBERS}
        return {**row, "num_draws": report.num_samples, "verdict": report.verdict}
    if hasattr(fit, "losses"):
        return {column: math.nan for column in _NUMBERS} | {"num_draws": 0, "verdict": ""}
    posterior = posterior_of(fit, name)
    row = {column: math.nan for column in _NUMBERS} | {"verdict": ""}
    stats = _arviz.get_group(fit, "sample_stats") if _arviz.has_groups(fit) else None
    if stats is not None and "log_weight" in stats:
        row = {c: float(stats["ess_is" if c == "ess" else c]) for c in _NUMBERS}
        row["verdict"] = stats.attrs.get("verdict", "")
    return {**row, "num_draws": posterior.sizes["chain"] * posterior.sizes["draw"]}


def _check_model(fits: Mapping[str, Any]) -> None:
    """Refuse draws of different models, whose ELBOs are not comparable."""
    posteriors = {n: posterior_of(fit, n) for n, fit in fits.items() if _has_draws(fit)}
    weighted = {
        name: posterior[[n for n, a in posterior.items() if a.attrs.get("kind") == "latent"]]
        for name, posterior in posteriors.items()
    }
    weighted = {name: latents for name, latents in weighted.items() if latents.data_vars}
    if len(weighted) > 1:
        common_draws(weighted)


def _has_draws(fit: Any) -> bool:
    if isinstance(fit, PosteriorDraws):
        return True
    return not hasattr(fit, "log_weights") and not hasattr(fit, "losses")


def _errors(
    fits: Mapping[str, Any],
    reference: Any,
    var_names: Sequence[str] | None,
) -> dict[str, dict[str, float]]:
    if isinstance(reference, str):
        if reference not in fits:
            raise ValueError(
                f"compare_fits: expected a reference among {sorted(fits)}, got '{reference}'."
            )
        name, source = reference, fits[reference]
    else:
        name, source = "the reference", reference
    if not _has_draws(source):
        raise ValueError(
            f"compare_fits: '{name}' has no draws to serve as a reference; convert it by "
            "to_inference_data first."
        )
    truth = posterior_of(source, name)
    return {
        label: _error({name: truth, label: posterior_of(fit, label)}, var_names)
        for label, fit in fits.items()
        if fit is not source and _has_draws(fit)
    }


def _error(pair: dict[str, xr.Dataset], var_names: Sequence[str] | None) -> dict[str, float]:
    common_draws(pair, var_names)  # speaks of both by their names
    name, label = pair
    draws = {key: {n: flat_draws(a) for n, a in _chosen(pair, key, var_names)} for key in pair}
    rows = marginal_distances({label: draws[label]}, draws[name]).dropna()
    if rows.empty:  # no coordinate of the reference varies, so that none has a scale
        return dict.fromkeys(_ERRORS, math.nan)
    quantiles = rows[["q05_error", "q50_error", "q95_error"]].abs()
    return {
        "max_mean_error": rows["mean_error"].abs().max(),
        "min_sd_ratio": rows["sd_ratio"].min(),
        "max_sd_ratio": rows["sd_ratio"].max(),
        "max_quantile_error": quantiles.max().max(),
        "max_wasserstein": rows["wasserstein"].max(),
        "c2st": _c2st(*(np.concatenate([*draws[key].values()], 1) for key in (label, name))),
    }


def _chosen(
    pair: dict[str, xr.Dataset], key: str, var_names: Sequence[str] | None
) -> list[tuple[str, xr.DataArray]]:
    return list(common_draws(pair, var_names)[key].items())


def _c2st(fitted: np.ndarray, truth: np.ndarray) -> float:
    return c2st(fitted, truth) if min(len(fitted), len(truth)) >= _FEWEST else math.nan
