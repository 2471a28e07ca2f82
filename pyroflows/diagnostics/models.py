"""One table of several models of the same data."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arviz
from .leave_one_out import Loo, loo

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["compare_models"]

_SAME = 1e-6  # fingerprints of one model differ by rounding
_GAP = 1e-7  # nats an observation that the weights may be short of the best
_MAX_STEPS = 10_000


def compare_models(fits: Mapping[str, Any], var_name: str | None = None) -> pd.DataFrame:
    r"""Compare models of the same data by how well they predict what is left out, best first.

    Columns: ``elpd``, ``se``, ``p_loo`` as of ``loo``; ``elpd_diff``, zero for the best and
    negative for the others, with its standard error ``dse``,
    :math:`\sqrt{N \operatorname{var}_i(\mathrm{elpd}_{ik} - \mathrm{elpd}_{i,\mathrm{best}})}`; the
    stacking ``weight``, which maximises

    .. math:: \sum_i \log \sum_k w_k \exp \mathrm{elpd}_{ik}, \qquad w_k \ge 0, \sum_k w_k = 1;

    ``num_bad_k`` and ``max_k``, how many shapes are above the bar and the largest; ``verdict`` on
    the guide.

    Models are told from guides of one model, which are refused: leave-one-out ranks the
    over-confident guide first. :func:`~pyroflows.compare_fits` compares those.

    Args:
        fits: by name, two or more: what ``to_inference_data`` returned, any ``InferenceData`` or
            ``DataTree`` with a group ``log_likelihood``, or what ``loo`` returned.
        var_name: the observed variable, where there are several.

    Raises:
        ImportError: if ArviZ (with pandas) is not installed.
        TypeError: if a fit is none of these.
        ValueError: if there are fewer than two fits, if two are of one model, or if observations
            differ in number, dims, labels, masks or values.

    References:
        | Using stacking to average Bayesian predictive distributions (Yao, Vehtari, Simpson and
          Gelman, 2018)
        | https://doi.org/10.1214/17-BA1091

    Example:
        >>> import numpy as np, xarray as xr
        >>> from pyroflows.diagnostics import _arviz
        >>> from pyroflows.diagnostics.models import compare_models
        >>> def fit(shift):
        ...     values = np.random.default_rng(0).normal(-1.0 - shift, 0.1, (1, 1000, 20))
        ...     group = xr.Dataset({"y": (("chain", "draw", "n"), values)})
        ...     return _arviz.build({"log_likelihood": group}, {})
        >>> table = compare_models({"worse": fit(0.1), "better": fit(0.0)})
        >>> list(table.index), round(float(table.loc["worse", "elpd_diff"]), 3)
        (['better', 'worse'], -2.0)
    """
    _arviz.require()
    import pandas as pd

    if not isinstance(fits, Mapping) or len(fits) < 2:
        raise ValueError(
            "compare_models: expected a mapping of name to fit, two or more, got "
            f"{type(fits).__name__} of length {len(fits) if hasattr(fits, '__len__') else '?'}."
        )
    found = {name: _loo(fit, name, var_name) for name, fit in fits.items()}
    _check_models(found)
    _check_observations(found)
    _check_values({n: fit for n, fit in fits.items() if not isinstance(fit, Loo)}, found)
    each = np.stack([_seen(report) for report in found.values()])
    best = int(each.sum(1).argmax())
    weights = _stacking_weights(each)
    rows = {
        name: _row(report, each[k] - each[best], weights[k])
        for k, (name, report) in enumerate(found.items())
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    _warn_of_guides(found)
    return table.sort_values("elpd", ascending=False, kind="stable")


def _loo(fit: Any, name: str, var_name: str | None) -> Loo:
    if isinstance(fit, Loo):
        return fit
    try:
        return loo(fit, var_name)
    except (TypeError, ValueError) as error:
        raise type(error)(f"compare_models: of '{name}', {error}") from error


def _row(report: Loo, difference: np.ndarray, weight: float) -> dict[str, Any]:
    return {
        "elpd": report.elpd,
        "se": report.se,
        "p_loo": report.p_loo,
        "elpd_diff": float(difference.sum()),
        "dse": math.sqrt(len(difference) * difference.var()),
        "weight": float(weight),
        "num_bad_k": report.num_bad,
        "max_k": float(np.nanmax(report.pareto_k.values)),
        "verdict": report.attrs.get("verdict", ""),
    }


def _seen(report: Loo) -> np.ndarray:
    values = report.elpd_i.values.reshape(-1)
    return values[~np.isnan(values)]


def _check_models(found: Mapping[str, Loo]) -> None:
    for (one, first), (other, second) in itertools.combinations(found.items(), 2):
        if _of_one_model(first.attrs, second.attrs):
            raise ValueError(
                f"compare_models: expected fits of different models, got '{one}' and '{other}' of "
                "one and the same: among its guides, leave-one-out ranks the over-confident one "
                "first. Use compare_fits."
            )


def _of_one_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both are known to be; without finite fingerprints it cannot be told."""
    mark, another = one.get("model_fingerprint"), other.get("model_fingerprint")
    if mark is None or another is None or one.get("latents") != other.get("latents"):
        return False
    known = mark.shape == another.shape and np.isfinite(mark).all() and np.isfinite(another).all()
    return bool(known) and np.allclose(mark, another, rtol=_SAME, atol=0)


def _check_observations(found: Mapping[str, Loo]) -> None:
    (first, reference), *rest = found.items()
    for name, report in rest:
        reason = _difference(reference, report)
        if reason:
            raise ValueError(
                f"compare_models: expected the same observations, got other {reason} in '{name}' "
                f"than in '{first}'; fit all models to the same data."
            )


def _difference(one: Loo, other: Loo) -> str:
    mine, theirs = one.elpd_i, other.elpd_i
    if mine.shape != theirs.shape:
        return f"sizes {dict(theirs.sizes)} and {dict(mine.sizes)}"
    for a, b in zip(mine.dims, theirs.dims, strict=True):
        if a != b and not (_is_neutral(a, one.var_name) or _is_neutral(b, other.var_name)):
            return f"dims {theirs.dims} and {mine.dims}"
        both = a in mine.coords and b in theirs.coords
        if both and not np.array_equal(mine.coords[a].values, theirs.coords[b].values):
            return f"labels along '{a}'"
    if not np.array_equal(np.isnan(mine.values), np.isnan(theirs.values)):
        return "masks"
    return ""


def _is_neutral(dim: Any, var_name: str) -> bool:
    return str(dim).startswith(f"{var_name}_dim_")


def _check_values(fits: Mapping[str, Any], found: Mapping[str, Loo]) -> None:
    observed = {name: _observed(fit, found[name].var_name) for name, fit in fits.items()}
    known = [(name, array) for name, array in observed.items() if array is not None]
    for name, array in known[1:]:
        first, reference = known[0]
        if array.shape != reference.shape or not _equal(array.values, reference.values):
            raise ValueError(
                f"compare_models: expected the same observed data, got other values in '{name}' "
                f"than in '{first}'; fit all models to the same data."
            )


def _observed(fit: Any, var_name: str) -> xr.DataArray | None:
    group = _arviz.get_group(fit, "observed_data")
    return None if group is None or var_name not in group else group[var_name]


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype.kind in "fc" or other.dtype.kind in "fc":
        # One model may hold in float32 what the other holds in float64.
        return np.allclose(one, other, rtol=1e-6, atol=0, equal_nan=True)
    return np.array_equal(one, other)


def _stacking_weights(each: np.ndarray) -> np.ndarray:
    """Weights of models from log predictive densities ``(models, observations)``.

    Each step multiplies by the slope of the mean log score, which cannot fall. By concavity the
    largest slope less one bounds what is still to gain.
    """
    density = np.exp(each - each.max(0))
    weights = np.full(len(density), 1 / len(density))
    for _ in range(_MAX_STEPS):
        slopes = (density / (weights @ density)).mean(1)
        if slopes.max() - 1 <= _GAP:
            break
        weights = weights * slopes
        weights /= weights.sum()
    return weights


def _warn_of_guides(found: Mapping[str, Loo]) -> None:
    doubted = [n for n, report in found.items() if report.attrs.get("verdict") == "do not trust"]
    if doubted:
        _warn(
            f"the guides of {_listed(doubted)} got the verdict 'do not trust', so that their elpd "
            "may be far off: fit them better first"
        )
    bad = [f"'{name}' ({r.num_bad})" for name, r in found.items() if r.num_bad]
    if bad:
        _warn(
            f"observations of {', '.join(bad)} have k above the bar, so that their elpd is not to "
            "be trusted; print loo of each"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _warn(message: str) -> None:
    warnings.warn(f"compare_models: {message}.", stacklevel=4)
