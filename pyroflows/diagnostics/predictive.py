"""Predictive checks: replicated data beside what was observed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arviz
from .leave_one_out import loo_log_weights

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["loo_pit", "predictive_p_values"]

_STATISTICS: dict[str, Callable[[np.ndarray], Any]] = {
    "mean": np.mean,
    "sd": np.std,
    "min": np.min,
    "max": np.max,
    "median": np.median,
}


def predictive_p_values(
    data: Any,
    statistics: Mapping[str, Callable[[np.ndarray], Any]] | None = None,
    var_names: Sequence[str] | None = None,
    *,
    weighted: bool = False,
) -> pd.DataFrame:
    r"""Compare statistics of the observed data with those of data that the fitted model makes.

    .. math:: p = P(T(y_{rep}) > T(y) \mid y) + \tfrac12 P(T(y_{rep}) = T(y) \mid y)

    A p-value near zero or one says that the model does not make data like these in this respect.
    The data are used twice, so that p-values of a right model gather about one half.

    Args:
        data: what ``to_inference_data`` returned, or any ``InferenceData`` or ``DataTree`` with
            groups ``posterior_predictive`` and ``observed_data``.
        statistics: by name, functions of a whole data set (float64, plates and events as axes) to a
            number. Mean, sd (divisor N), min, max and median unless given.
        var_names: observed sites; all unless given.
        weighted: whether to weight draws by ``log_weight_psis`` of ``sample_stats``.

    Returns:
        Rows (site, statistic); columns ``observed``, ``predicted`` (the mean of the statistic over
        replicated data) and ``p_value``. Observations that ``log_likelihood`` shows to be masked
        are left out of both, and what is left comes as rows.

    Raises:
        ImportError: if ArviZ (with pandas) is not installed.
        TypeError: if ``data`` is neither.
        ValueError: if a group, a site or the weights are missing, shapes differ, or a statistic is
            no number.

    References:
        | Posterior predictive assessment of model fitness via realized discrepancies (Gelman, Meng
          and Stern, 1996). Statistica Sinica 6

    Example:
        >>> import numpy as np, xarray as xr
        >>> from pyroflows.diagnostics import _arviz
        >>> from pyroflows.diagnostics.predictive import predictive_p_values
        >>> rng = np.random.default_rng(0)
        >>> made = xr.Dataset({"y": (("chain", "draw", "n"), rng.normal(size=(1, 1000, 50)))})
        >>> seen = xr.Dataset({"y": ("n", 3 * rng.normal(size=50))})
        >>> groups = {"posterior_predictive": made, "observed_data": seen}
        >>> table = predictive_p_values(_arviz.build(groups, {}))
        >>> float(table.loc[("y", "sd"), "p_value"])
        0.0
    """
    _arviz.require()
    import pandas as pd

    owner = "predictive_p_values"
    statistics = _STATISTICS if statistics is None else statistics
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for name in _sites(data, var_names, owner):
        pair = _pair(data, name, owner)
        weights = _weights(data, pair, owner) if weighted else None
        for label, statistic in statistics.items():
            rows[name, label] = _row(pair, statistic, label, weights)
    if not rows:
        raise ValueError(f"{owner}: expected at least one statistic, got none.")
    index = pd.MultiIndex.from_tuples(list(rows), names=["site", "statistic"])
    return pd.DataFrame(list(rows.values()), index=index)


def loo_pit(data: Any, var_name: str | None = None) -> xr.DataArray:
    r"""Return where each observation lies among predictions made without it.

    .. math::
        \mathrm{PIT}_i = \sum_s w_{is} \left[1(\tilde y_{is} < y_i)
        + \tfrac12 1(\tilde y_{is} = y_i)\right]

    with the weights of ``loo_log_weights``. Where the model is right, and what it predicts is
    continuous, they are close to uniform: too many near one half, and it predicts too widely; too
    many near zero and one, and it predicts too narrowly.

    Args:
        data: what ``to_inference_data`` returned, or any ``InferenceData`` or ``DataTree`` with
            groups ``log_likelihood``, ``posterior_predictive`` and ``observed_data``.
        var_name: the observed variable; may be left out where there is only one.

    Returns:
        Values between zero and one, dims ``(*observations)``; NaN where masked.

    Raises:
        ImportError: if ArviZ is not installed.
        TypeError: if ``data`` is neither.
        ValueError: if a group is missing, there are several variables and none is named, or an
            observation is more than one number.

    References:
        | Visualization in Bayesian workflow (Gabry, Simpson, Vehtari, Betancourt and Gelman, 2019)
        | https://doi.org/10.1111/rssa.12378

    Example:
        >>> import numpy as np, xarray as xr
        >>> from pyroflows.diagnostics import _arviz
        >>> from pyroflows.diagnostics.predictive import loo_pit
        >>> made = xr.Dataset({"y": (("chain", "draw", "n"), np.arange(100.0).reshape(1, 50, 2))})
        >>> seen = xr.Dataset({"y": ("n", [-1.0, 50.0])})
        >>> groups = {"posterior_predictive": made, "observed_data": seen}
        >>> loo_pit(_arviz.build({**groups, "log_likelihood": 0 * made}, {})).round(2).values
        array([0. , 0.5])
    """
    log_weights = loo_log_weights(data, var_name)
    if var_name is None:
        (var_name,) = map(str, _group(data, "log_likelihood", "loo_pit").data_vars)
    pair = _pair(data, var_name, "loo_pit")
    _check_scalar(pair, log_weights)
    weights = np.exp(log_weights)
    predicted = pair.predicted.reshape(len(pair.predicted), -1)[:, pair.kept.reshape(-1)]
    # Columns of the weights are those of the log likelihood, of which some may be masked as NaN.
    weights = weights[:, ~np.isnan(weights).all(0)]
    observed = pair.observed[pair.kept]
    below = (predicted < observed) + 0.5 * (predicted == observed)
    values = np.full(pair.observed.shape, np.nan)
    # Rounding may take the sum of weights past one.
    values[pair.kept] = np.einsum("sn,sn->n", weights, below).clip(0.0, 1.0)
    return pair.like.astype(float).copy(data=values).rename(var_name)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A site as observed and as replicated."""

    name: str
    observed: np.ndarray  # (*batch, *event), float64
    predicted: np.ndarray  # (S, *batch, *event), float64
    kept: np.ndarray  # (*batch), which observations are not masked
    like: xr.DataArray


def _pair(data: Any, name: str, owner: str) -> _Pair:
    observed = _group(data, "observed_data", owner)[name]
    predicted = _group(data, "posterior_predictive", owner)[name].transpose("chain", "draw", ...)
    if predicted.shape[2:] != observed.shape:
        raise ValueError(
            f"{owner}: expected replicated data of '{name}' in the shape of the observed, "
            f"{observed.shape}, got {predicted.shape[2:]}."
        )
    kept = _kept(data, observed)
    values = predicted.values.reshape(-1, *observed.shape).astype(float)
    pair = _Pair(name, observed.values.astype(float), values, kept, observed)
    if np.isnan(pair.observed[kept]).any() or np.isnan(values[:, kept]).any():
        raise ValueError(
            f"{owner}: expected numbers for '{name}', got NaN among what is observed or "
            "replicated; mask missing observations in the model."
        )
    return pair


def _kept(data: Any, observed: xr.DataArray) -> np.ndarray:
    """Which observations have a log likelihood: all where there is none at all."""
    name = observed.name
    group = _arviz.get_group(data, "log_likelihood")
    if group is None or name not in group or group[name].ndim == 2:
        return np.ones((), bool)
    each = group[name].transpose("chain", "draw", ...)
    found = ~np.isnan(each.values).all((0, 1))
    if each.shape[2:] == observed.shape[: each.ndim - 2]:
        return found
    # Of a single plate, the labels tell what was left out.
    (dim,) = each.dims[2:]
    if dim not in each.coords or dim not in observed.coords:
        raise ValueError(
            f"'{name}' has {each.sizes[dim]} log likelihoods but {observed.shape[0]} observations, "
            f"and no labels along '{dim}' that would say of which."
        )
    return np.isin(observed.coords[dim].values, each.coords[dim].values[found])


def _check_scalar(pair: _Pair, log_weights: np.ndarray) -> None:
    if pair.kept.shape != pair.observed.shape:
        raise ValueError(
            f"loo_pit: expected one number for each observation of '{pair.name}', got an event of "
            f"shape {pair.observed.shape[pair.kept.ndim :]}; a vector has no order."
        )
    if len(log_weights) != len(pair.predicted):
        raise ValueError(
            f"loo_pit: expected as many predictions as log likelihoods, {len(log_weights)}, got "
            f"{len(pair.predicted)}; select draws from all groups alike."
        )


def _group(data: Any, name: str, owner: str) -> xr.Dataset:
    if not _arviz.has_groups(data):
        raise TypeError(
            f"{owner}: expected InferenceData or a DataTree, got {type(data).__name__}; convert a "
            "guide by to_inference_data."
        )
    group = _arviz.get_group(data, name)
    if group is None:
        raise ValueError(
            f"{owner}: expected a group {name}, got none; to_inference_data stores it for a model "
            "with observed sites."
        )
    return group


def _sites(data: Any, var_names: Sequence[str] | None, owner: str) -> list[str]:
    observed = _group(data, "observed_data", owner)
    predicted = _group(data, "posterior_predictive", owner)
    both = [str(name) for name in observed.data_vars if name in predicted]
    chosen = both if var_names is None else list(var_names)
    unknown = [name for name in chosen if name not in both]
    if unknown or not chosen:
        raise ValueError(
            f"{owner}: expected sites that are observed and replicated, {both}, got "
            f"{unknown or 'none'}."
        )
    return chosen


def _weights(data: Any, pair: _Pair, owner: str) -> np.ndarray:
    stats = _arviz.get_group(data, "sample_stats")
    if stats is None or "log_weight_psis" not in stats:
        raise ValueError(
            f"{owner}: expected log_weight_psis in sample_stats to weight by, got none; leave out "
            "weighted for draws that have no weights."
        )
    weights = np.exp(stats["log_weight_psis"].transpose("chain", "draw").values.reshape(-1))
    if len(weights) != len(pair.predicted) or not np.isfinite(weights).all() or not weights.any():
        raise ValueError(
            f"{owner}: expected a weight for each of {len(pair.predicted)} draws, finite and not "
            f"all zero, got {len(weights)}; fit the guide again."
        )
    return weights / weights.sum()


def _row(
    pair: _Pair, statistic: Callable, label: str, weights: np.ndarray | None
) -> dict[str, float]:
    masked = not pair.kept.all()
    own = statistic(pair.observed[pair.kept] if masked else pair.observed)
    made = [statistic(draw[pair.kept] if masked else draw) for draw in pair.predicted]
    values = np.array([own, *made], dtype=float)
    if values.ndim != 1 or np.isnan(values).any():
        found = "NaN" if values.ndim == 1 else f"an array of shape {values.shape[1:]}"
        raise ValueError(
            f"predictive_p_values: expected statistic '{label}' of '{pair.name}' to be a number, "
            f"got {found}."
        )
    above = (values[1:] > values[0]) + 0.5 * (values[1:] == values[0])
    return {
        "observed": float(values[0]),
        "predicted": float(np.average(values[1:], weights=weights)),
        "p_value": float(np.average(above, weights=weights).clip(0.0, 1.0)),
    }
