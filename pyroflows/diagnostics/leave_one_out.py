"""Leave-one-out cross-validation from the draws of a guide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..psis import good_pareto_k, psis
from . import _arviz

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Loo", "loo", "loo_log_weights"]

_AT_ONCE = 4_000_000  # log likelihoods put in order together
_LAYOUT = "{:<8} {}"


@dataclass(frozen=True, eq=False, repr=False)
class Loo:
    r"""How well a model predicts each observation from all others.

    Attributes:
        elpd: sum over observations of the log predictive density, in nat; larger is better.
        se: its standard error, :math:`\sqrt{N \operatorname{var}_i(\mathrm{elpd}_i)}`.
        p_loo: effective number of parameters: how much better the observations are predicted where
            they have been seen.
        elpd_i: log predictive density of each observation; NaN where masked.
        pareto_k: shape of the tail of the weights of each observation, likewise.
        good_k: the largest shape to trust, min(1 - 1/log10 S, 0.7).
        num_samples: number of draws S.
        num_bad: observations whose shape is above ``good_k``.
        num_masked: observations left out.
        corrected: whether the draws were weighted by log p - log q.
        var_name: the observed variable.
        attrs: what the data say of themselves: ``verdict``, ``model_fingerprint``, ``latents``.
    """

    elpd: float
    se: float
    p_loo: float
    elpd_i: xr.DataArray
    pareto_k: xr.DataArray
    good_k: float
    num_samples: int
    num_bad: int
    num_masked: int
    corrected: bool
    var_name: str
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_observations(self) -> int:
        """Number of observations N, without those masked."""
        return self.elpd_i.size - self.num_masked

    def __str__(self) -> str:
        masked = f", {self.num_masked} masked" if self.num_masked else ""
        weighted = "weighted by log p - log q" if self.corrected else "not weighted"
        largest = float(np.nanmax(self.pareto_k.values))
        rows = (
            ("elpd", f"{self.elpd:.2f} ± {self.se:.2g}"),
            ("p_loo", f"{self.p_loo:.2f}"),
            ("k-hat", f"{largest:.2f} at most (good up to {self.good_k:.2f})"),
            ("data", f"'{self.var_name}', {self.num_observations} observations{masked}"),
            ("draws", f"{self.num_samples}, {weighted}"),
        )
        return "\n".join([*(_LAYOUT.format(*row) for row in rows), self._advice()])

    __repr__ = __str__

    def _advice(self) -> str:
        if not self.num_bad:
            return f"No observation has k above {self.good_k:.2f}: usable."
        remedy = "draw more, improve the guide, " if self.corrected else "draw more "
        return (
            f"{self.num_bad} of {self.num_observations} observations have k above "
            f"{self.good_k:.2f}: do not trust their elpd;\n{remedy}or fit again without them."
        )

    def to_arviz(self) -> Any:
        """Convert to what ``az.compare`` and ``az.plot_khat`` of the installed ArviZ take.

        Masked observations are dropped, because one NaN would spoil either.

        Raises:
            ImportError: if ArviZ is not installed.

        Example:
            >>> import numpy as np, xarray as xr
            >>> from pyroflows.diagnostics.leave_one_out import Loo
            >>> each = xr.DataArray(np.array([-1.0, -2.0]), dims="n")
            >>> found = Loo(-3.0, 0.7, 0.1, each, each, 0.7, 4000, 0, 0, True, "y")
            >>> float(found.to_arviz()["pareto_k"].max())
            -1.0
        """
        _arviz.require()
        elpd_i, pareto_k = _without_masked(self.elpd_i), _without_masked(self.pareto_k)
        common: dict[str, Any] = {
            "se": self.se,
            "n_samples": self.num_samples,
            "n_data_points": self.num_observations,
            "warning": self.num_bad > 0,
            "scale": "log",
            "good_k": self.good_k,
            "pareto_k": pareto_k.rename("pareto_shape"),
        }
        if _arviz.major() == 0:
            from arviz.stats.stats_utils import ELPDData

            # The printed form reads the first eight by their place.
            first = {"elpd_loo": self.elpd, "se": self.se, "p_loo": self.p_loo}
            values = {**first, **common, "loo_i": elpd_i.rename("loo_i")}
            return ELPDData(data=list(values.values()), index=list(values))
        from arviz_stats import utils

        common |= {"elpd": self.elpd, "p": self.p_loo, "elpd_i": elpd_i.rename("elpd_i")}
        common["approx_posterior"] = self.corrected
        if hasattr(utils, "ELPDDataLOO"):
            return utils.ELPDDataLOO(**common)
        return utils.ELPDData(kind="loo", **common)


def loo(data: Any, var_name: str | None = None) -> Loo:
    r"""Estimate how well a model predicts each observation from all others.

    .. math::
        \mathrm{elpd} = \sum_i \log \sum_s w_{is}\, p(y_i \mid z_s), \qquad
        w_{is} \propto \frac{p(y, z_s)}{q(z_s)\, p(y_i \mid z_s)}

    Draws of a guide q are no draws of the posterior, and leave-one-out that takes them for such
    ranks the over-confident guide first. So weights are those of importance sampling from q,
    smoothed for each observation; the correction is as good as the weights, and the shape k of each
    observation tells. Draws without ``log_weight`` (of chains) are taken to be of the posterior:
    then :math:`w_{is} \propto 1 / p(y_i \mid z_s)`, with chains joined. Autocorrelation is not
    accounted for: it would only change how many of the largest weights are smoothed.

    Masked observations (NaN in ``log_likelihood``) are left out and counted.

    Args:
        data: what ``to_inference_data`` returned, or any ``InferenceData`` or ``DataTree`` with a
            group ``log_likelihood``, dims ``(chain, draw, *observations)``.
        var_name: the observed variable; may be left out where there is only one.

    Returns:
        A report; print it. Its ``elpd_i`` and ``pareto_k`` have dims ``(*observations)``.

    Raises:
        ImportError: if ArviZ is not installed.
        TypeError: if ``data`` is neither.
        ValueError: if there is no log likelihood for each observation, if there are several
            variables and none is named, or if numbers are not finite.

    References:
        | Bayesian leave-one-out cross-validation for large data (Magnusson, Andersen, Jonasson and
          Vehtari, 2019)
        | https://arxiv.org/abs/1904.10679
        | Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC
          (Vehtari, Gelman and Gabry, 2017)
        | https://doi.org/10.1007/s11222-016-9696-4

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import pyroflows as pf
        >>> from pyroflows.diagnostics.leave_one_out import loo
        >>> def model():
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("n", 8):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.arange(8) / 8)
        >>> def guide():
        ...     pyro.sample("mu", dist.Normal(0.39, 0.35))
        >>> found = loo(pf.to_inference_data(guide, model, seed=0))
        >>> round(found.elpd, 1), found.num_bad, found.elpd_i.dims
        (-8.2, 0, ('n',))
    """
    terms = _terms(data, var_name, "loo")
    log_prior, _ = psis(torch.from_numpy(terms.log_weights))
    num = terms.log_likelihood.shape[1]
    elpd, lppd, shapes = (np.full(num, np.nan) for _ in range(3))
    for i, column in _columns(terms):
        log_weights, shapes[i] = psis(_log_ratios(terms, column))
        elpd[i] = (log_weights + column).logsumexp(0)
        lppd[i] = (log_prior + column).logsumexp(0)
    found = elpd[~terms.masked]
    good_k = good_pareto_k(len(terms.log_weights))
    return Loo(
        elpd=float(found.sum()),
        se=math.sqrt(len(found) * found.var()),
        p_loo=float(lppd[~terms.masked].sum() - found.sum()),
        elpd_i=_as_array(elpd, terms, "elpd_i"),
        pareto_k=_as_array(shapes, terms, "pareto_k"),
        good_k=good_k,
        num_samples=len(terms.log_weights),
        num_bad=int((shapes > good_k).sum()),
        num_masked=int(terms.masked.sum()),
        corrected=terms.corrected,
        var_name=terms.name,
        attrs=_own_words(data),
    )


def loo_log_weights(data: Any, var_name: str | None = None) -> np.ndarray:
    r"""Return the weights that turn all draws into draws without one observation.

    .. math:: w_{is} \propto \frac{p(y, z_s)}{q(z_s)\, p(y_i \mid z_s)}

    Args:
        data: as for :func:`loo`.
        var_name: as for :func:`loo`.

    Returns:
        Log weights, smoothed and normalised over draws, float64, shape ``(S, N)``, chains joined
        and observations flattened; columns of masked observations are NaN.

    Raises:
        TypeError: as :func:`loo`.
        ValueError: as :func:`loo`.

    References:
        Magnusson, Andersen, Jonasson and Vehtari (2019), see :func:`loo`.

    Example:
        >>> import numpy as np, xarray as xr
        >>> from pyroflows.diagnostics import _arviz
        >>> from pyroflows.diagnostics.leave_one_out import loo_log_weights
        >>> values = np.random.default_rng(0).normal(size=(4, 500, 3))
        >>> group = xr.Dataset({"y": (("chain", "draw", "n"), values)})
        >>> loo_log_weights(_arviz.build({"log_likelihood": group}, {})).shape
        (2000, 3)
    """
    terms = _terms(data, var_name, "loo_log_weights")
    found = np.full(terms.log_likelihood.shape[::-1], np.nan)
    for i, column in _columns(terms):
        found[i] = psis(_log_ratios(terms, column))[0].numpy()
    return found.T


@dataclass(frozen=True, eq=False)
class _Terms:
    """What leave-one-out is made of."""

    name: str
    log_likelihood: np.ndarray  # (S, N), as stored
    log_weights: np.ndarray  # (S,), float64; zeros without weights
    masked: np.ndarray  # (N,)
    corrected: bool
    like: xr.DataArray  # one draw: dims and coords of observations


def _terms(data: Any, var_name: str | None, owner: str) -> _Terms:
    _arviz.require()
    name, array = _log_likelihood(data, var_name, owner)
    sizes = array.sizes["chain"], array.sizes["draw"]
    values = array.values.reshape(sizes[0] * sizes[1], -1)
    stats = _arviz.get_group(data, "sample_stats")
    corrected = stats is not None and "log_weight" in stats
    weights = np.zeros(len(values))
    if corrected:
        stored = stats["log_weight"].transpose("chain", "draw").values
        if stored.shape != sizes:
            raise ValueError(
                f"{owner}: expected log weights of as many (chain, draw) as log likelihoods, "
                f"{sizes}, got {stored.shape}; select draws from all groups alike."
            )
        weights = stored.reshape(-1).astype(float)
        _check_weights(weights, owner)
    masked = _masked(values, weights, name, owner)
    like = array.isel(chain=0, draw=0, drop=True)
    return _Terms(name, values, weights, masked, corrected, like)


def _log_likelihood(data: Any, var_name: str | None, owner: str) -> tuple[str, xr.DataArray]:
    if not _arviz.has_groups(data):
        raise TypeError(
            f"{owner}: expected InferenceData or a DataTree, got {type(data).__name__}; convert a "
            "guide by to_inference_data."
        )
    group = _arviz.get_group(data, "log_likelihood")
    if group is None or not group.data_vars:
        raise ValueError(
            f"{owner}: expected a group log_likelihood, got none; to_inference_data stores it for "
            "a guide of all latents and a model whose plates are not subsampled."
        )
    names = sorted(map(str, group.data_vars))
    if var_name is None and len(names) > 1:
        raise ValueError(
            f"{owner}: expected var_name, because several variables are observed: choose one of "
            f"{names}."
        )
    name = names[0] if var_name is None else var_name
    if name not in names:
        raise ValueError(f"{owner}: expected var_name among {names}, got {name!r}.")
    array = group[name].transpose("chain", "draw", ...)
    if array.ndim == 2:
        raise ValueError(
            f"{owner}: expected one log likelihood for each observation, got one for all of "
            f"'{name}': to leave out everything is no leave-one-out. Use a plate in place of "
            "to_event."
        )
    return name, array


def _check_weights(weights: np.ndarray, owner: str) -> None:
    num_bad = int((np.isnan(weights) | (weights == np.inf)).sum())
    if num_bad or (weights == -np.inf).all():
        found = f"{num_bad} that are NaN or inf" if num_bad else "-inf only"
        raise ValueError(
            f"{owner}: expected log weights that are finite, or -inf for some of the "
            f"{len(weights)} draws, got {found}; fit the guide again."
        )


def _masked(values: np.ndarray, weights: np.ndarray, name: str, owner: str) -> np.ndarray:
    weighty = weights > -np.inf
    counted = values if weighty.all() else values[weighty]
    holes = np.isnan(counted).sum(0)
    masked = holes == len(counted)
    bad = ((holes > 0) & ~masked) | np.isinf(counted).any(0)
    if bad.any():
        raise ValueError(
            f"{owner}: expected finite log likelihoods of '{name}', got NaN or inf at some draws "
            f"of {int(bad.sum())} of {len(bad)} observations, the first at {int(bad.argmax())}; "
            "find where the likelihood overflows."
        )
    if masked.all():
        raise ValueError(
            f"{owner}: expected an observation of '{name}' that is not masked, got none of "
            f"{len(masked)}."
        )
    return masked


def _columns(terms: _Terms) -> Iterator[tuple[int, Tensor]]:
    """Each observation that is not masked, with its log likelihoods ``(S,)``, float64."""
    values, zero = terms.log_likelihood, terms.log_weights == -np.inf
    step = max(1, _AT_ONCE // len(values))
    for start in range(0, values.shape[1], step):
        part = values[:, start : start + step].T.astype(np.float64, order="C")
        part[:, zero] = 0.0  # whatever it is there, it has no weight
        for i in np.flatnonzero(~terms.masked[start : start + step]):
            yield start + int(i), torch.from_numpy(part[i])


def _log_ratios(terms: _Terms, column: Tensor) -> Tensor:
    return torch.from_numpy(terms.log_weights) - column


def _as_array(values: np.ndarray, terms: _Terms, name: str) -> xr.DataArray:
    return terms.like.astype(float).copy(data=values.reshape(terms.like.shape)).rename(name)


def _own_words(data: Any) -> dict[str, Any]:
    """What ``compare_models`` asks of the data."""
    found = {}
    if "model_fingerprint" in data.attrs:
        found["model_fingerprint"] = np.ravel(np.asarray(data.attrs["model_fingerprint"], float))
    posterior = _arviz.get_group(data, "posterior")
    if posterior is not None:
        kinds = {str(name): array.attrs.get("kind") for name, array in posterior.items()}
        latent = [name for name, kind in kinds.items() if kind == "latent"]
        found["latents"] = tuple(sorted(latent or kinds))
    stats = _arviz.get_group(data, "sample_stats")
    if stats is not None and "verdict" in stats.attrs:
        found["verdict"] = str(stats.attrs["verdict"])
    return found


def _without_masked(array: xr.DataArray) -> xr.DataArray:
    if not array.isnull().any():
        return array
    if array.ndim == 1:
        return array.dropna(array.dims[0])
    import xarray as xr

    # One axis of what is left: no grid holds it.
    return xr.DataArray(array.values[array.notnull().values], dims="observation")
