"""How far draws are from those of a reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ..supports import check_size
from . import _arviz
from ._naming import to_numpy
from .sources import common_draws, flat_draws, posterior_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["c2st", "marginal_distances"]

_COLUMNS = ("mean_error", "sd_ratio", "q05_error", "q50_error", "q95_error", "wasserstein")
_LEVELS = (0.05, 0.5, 0.95)
_FOLDS = 5
_FEWEST = 50  # draws of each, below which accuracy is noise
_STEPS = 100
_RATE = 1e-2
_DECAY = 1e-4
_FAR = 1e4  # standard deviations beyond which a network only sees that a draw is far


def marginal_distances(
    fits: Mapping[str, Any],
    reference: Any,
    *,
    var_names: Sequence[str] | None = None,
) -> pd.DataFrame:
    r"""Measure each coordinate of several fits against a reference.

    Columns, in standard deviations :math:`s_{ref}` of the reference: ``mean_error``,
    :math:`(m - m_{ref}) / s_{ref}`; ``sd_ratio``, :math:`s / s_{ref}`; ``q05_error``, ``q50_error``
    and ``q95_error``, the same of quantiles; ``wasserstein``, the area between the two distribution
    functions, :math:`\int |F - F_{ref}| / s_{ref}`. All are of draws as they are, unweighted, and
    NaN where the reference holds a coordinate fixed.

    With S draws of each, noise alone makes errors of about :math:`\sqrt{2 / S}`.

    Args:
        fits: by name: what ``to_inference_data``, ``polish`` or ``posterior_draws`` returned, a
            Pyro ``MCMC`` that has run, or a mapping of site name to draws ``(S, *shape)``.
        reference: the name of one of the fits, which then has no rows, or draws in one of these
            forms.
        var_names: variables to measure; all unless given.

    Returns:
        Rows (fit, coordinate), such as ``("nsf", "theta[2]")``.

    Raises:
        ImportError: if ArviZ (with pandas and SciPy) is not installed.
        TypeError: if a fit holds no draws.
        ValueError: if there is nothing to measure, the reference is unknown, variables or dims
            differ, or draws are not finite.

    Example:
        >>> import torch
        >>> from pyroflows.diagnostics.distances import marginal_distances
        >>> exact, wide = {"z": torch.randn(4000)}, {"z": 2 * torch.randn(4000)}
        >>> table = marginal_distances({"wide": wide}, exact)
        >>> round(float(table.loc[("wide", "z"), "sd_ratio"]))
        2
    """
    _arviz.require()
    import pandas as pd

    name, truth, others = _reference(fits, reference)
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for label, fit in others.items():
        pair = common_draws({name: truth, label: posterior_of(fit, label)}, var_names)
        for coordinate, wanted, found in _coordinates(*pair.values()):
            for who, draws in ((name, wanted), (label, found)):
                _check_finite(draws, who, coordinate)
            rows[label, coordinate] = _distances(found, wanted)
    if not rows:
        raise ValueError("marginal_distances: expected at least one variable, got none.")
    index = pd.MultiIndex.from_tuples(list(rows), names=["fit", "coordinate"])
    return pd.DataFrame(list(rows.values()), index=index, columns=list(_COLUMNS))


def _reference(
    fits: Mapping[str, Any], reference: Any
) -> tuple[str, xr.Dataset, Mapping[str, Any]]:
    if not isinstance(fits, Mapping) or not fits:
        raise ValueError(
            "marginal_distances: expected a mapping of name to fit, got "
            f"{type(fits).__name__}{'' if fits else ', empty'}."
        )
    if not isinstance(reference, str):
        return "the reference", posterior_of(reference, "the reference"), fits
    if reference not in fits:
        raise ValueError(
            f"marginal_distances: expected a reference among {sorted(fits)}, got '{reference}'."
        )
    others = {name: fit for name, fit in fits.items() if name != reference}
    if not others:
        raise ValueError(
            f"marginal_distances: expected fits beside the reference '{reference}', got none."
        )
    return reference, posterior_of(fits[reference], reference), others


def _coordinates(
    truth: Mapping[str, xr.DataArray], fitted: Mapping[str, xr.DataArray]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for name, expected in truth.items():
        columns = zip(flat_draws(expected).T, flat_draws(fitted[name]).T, strict=True)
        for label, (wanted, found) in zip(_labels(expected), columns, strict=True):
            yield f"{name}{label}", wanted, found


def _labels(array: xr.DataArray) -> list[str]:
    dims = array.dims[2:]
    if not dims:
        return [""]
    axes = [array.coords[d].values if d in array.coords else range(array.sizes[d]) for d in dims]
    return [f"[{', '.join(map(str, index))}]" for index in itertools.product(*axes)]


def _check_finite(draws: np.ndarray, name: str, coordinate: str) -> None:
    num_bad = int((~np.isfinite(draws)).sum())
    if num_bad or len(draws) < 2:
        found = f"{num_bad} of {len(draws)} that are not" if num_bad else f"{len(draws)}"
        raise ValueError(
            f"marginal_distances: expected two finite draws or more of '{coordinate}' in "
            f"'{name}', got {found}."
        )


def _distances(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    from scipy.stats import wasserstein_distance

    if np.ptp(wanted) == 0:
        return dict.fromkeys(_COLUMNS, math.nan)
    scale = wanted.std(ddof=1)
    errors = [found.mean() - wanted.mean()]
    quantiles = np.quantile(found, _LEVELS) - np.quantile(wanted, _LEVELS)
    area = wasserstein_distance(found, wanted)
    mean_error, *rest = (float(e / scale) for e in (*errors, *quantiles, area))
    values = (mean_error, float(found.std(ddof=1) / scale), *rest)
    return dict(zip(_COLUMNS, values, strict=True))


def c2st(draws: Any, reference: Any, *, seed: int = 0, max_draws: int = 1000) -> float:
    """Return how often a classifier tells draws from those of a reference.

    The mean accuracy of a small network on what it was not trained on, over five folds: 0.5 means
    that it cannot tell them apart, 1 that it always can. The noise is about 1 / sqrt(4 S) for S
    draws of each. It sees what marginals do not, such as a correlation; yet 0.5 is no proof: a
    network trained on a few hundred draws misses small differences.

    Draws are taken to be independent. Repeated ones (resampled by weight) are recognised, which
    raises the accuracy.

    Args:
        draws: shape ``(S, D)``, finite.
        reference: shape ``(R, D)``; both are standardised by its mean and standard deviation.
        seed: of the folds and the network; the caller's generators are left as they were.
        max_draws: draws of each, evenly taken, equally many of both.

    Raises:
        TypeError: if draws are no numbers, or ``seed`` or ``max_draws`` no integers.
        ValueError: if shapes do not fit, draws are not finite, or there are fewer than 50 of each.

    References:
        | Revisiting classifier two-sample tests (Lopez-Paz and Oquab, 2017)
        | https://arxiv.org/abs/1610.06545

    Example:
        >>> import torch
        >>> from pyroflows.diagnostics.distances import c2st
        >>> generator = torch.Generator().manual_seed(0)
        >>> one, other = torch.randn(2, 500, 3, generator=generator)
        >>> c2st(one + 2.0, other) > 0.9
        True
    """
    check_size("c2st", "max_draws", max_draws, _FEWEST)
    check_size("c2st", "seed", seed, 0)
    samples = [_points(draws, "draws"), _points(reference, "reference")]
    if samples[0].shape[1] != samples[1].shape[1]:
        raise ValueError(
            "c2st: expected draws and reference of as many coordinates, got "
            f"{samples[0].shape[1]} and {samples[1].shape[1]}."
        )
    number = min(len(samples[0]), len(samples[1]), max_draws) // _FOLDS * _FOLDS
    center, scale = samples[1].mean(0), samples[1].std(0)
    scale = np.where(scale > 0, scale, np.where(samples[0].std(0) > 0, samples[0].std(0), 1.0))
    generator = torch.Generator("cpu").manual_seed(seed)
    folds = []
    for sample in samples:
        evenly = np.linspace(0, len(sample) - 1, number).astype(int)
        points = ((sample[evenly] - center) / scale).clip(-_FAR, _FAR)
        order = torch.randperm(number, generator=generator, device="cpu")
        folds.append(torch.from_numpy(points).float()[order].reshape(_FOLDS, -1, points.shape[1]))
    return _held_out_accuracy(torch.cat(folds, 1), generator)


def _points(draws: Any, name: str) -> np.ndarray:
    values = to_numpy(draws) if isinstance(draws, Tensor) else np.asarray(draws)
    if values.dtype.kind not in "fiub":
        raise TypeError(f"c2st: expected {name} to be numbers, got dtype {values.dtype}.")
    if values.ndim != 2 or len(values) < _FEWEST or values.shape[1] == 0:
        raise ValueError(
            f"c2st: expected {name} of shape (S, D) with S >= {_FEWEST} and D >= 1, got "
            f"{values.shape}; flatten events, and give scalars one column."
        )
    num_bad = int((~np.isfinite(values)).any(1).sum())
    if num_bad:
        raise ValueError(
            f"c2st: expected finite {name}, got {num_bad} of {len(values)} that are not; find "
            "where they come from."
        )
    return values.astype(float)


def _held_out_accuracy(folds: Tensor, generator: torch.Generator) -> float:
    """Train on four folds ``(5, n, D)``, each half of either sample, and test on the fifth."""
    num, dim = folds.shape[1:]
    labels = (torch.arange(num, device="cpu") >= num // 2)[:, None].to(folds)
    points = torch.stack([folds[[j for j in range(_FOLDS) if j != i]] for i in range(_FOLDS)])
    points = points.flatten(1, 2)
    wanted = labels.repeat(_FOLDS - 1, 1).expand(_FOLDS, -1, -1)
    width = min(max(10 * dim, 20), 64)
    network = _Networks((dim, width, width, 1), generator)
    optimizer = torch.optim.Adam(network.parameters, lr=_RATE, weight_decay=_DECAY)
    with torch.enable_grad():
        for _ in range(_STEPS):
            optimizer.zero_grad()
            scores = network(points)
            # A mean over folds would make the decay of each five times as strong.
            loss = _FOLDS * binary_cross_entropy_with_logits(scores, wanted)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        scores = network(folds)
    right = ((scores > 0) == (labels > 0.5)).double()
    # A score of zero is a guess.
    return float(torch.where(scores == 0, 0.5, right).mean())


class _Networks:
    """Five networks side by side, one a fold."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator) -> None:
        self.layers = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            # Not where or of what kind the caller's own tensors are by default.
            weight, bias = (
                torch.zeros(_FOLDS, rows, fan_out, device="cpu", dtype=torch.float32)
                for rows in (fan_in, 1)
            )
            weight.normal_(0.0, math.sqrt(2 / fan_in), generator=generator)
            self.layers.append((weight.requires_grad_(), bias.requires_grad_()))

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for layer in self.layers for parameter in layer]

    def __call__(self, points: Tensor) -> Tensor:
        for weight, bias in self.layers[:-1]:
            points = torch.baddbmm(bias, points, weight).relu()
        weight, bias = self.layers[-1]
        return torch.baddbmm(bias, points, weight)
