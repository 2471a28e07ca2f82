"""One page of HTML on a fit: verdict, tables, figures, environment."""

from __future__ import annotations

import itertools
import math
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arviz, _html
from .conversion import to_inference_data
from .fit_plots import plot_fit
from .leave_one_out import loo
from .plots import plot_posteriors
from .predictive import predictive_p_values
from .predictive_plots import plot_predictive
from .weight_plots import plot_weights

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["read_fit", "report_of_fit", "write_report"]

_MAX_ROWS = 200
_MAX_PAIR = 5
_CLASSES = {"usable": "usable", "reweight": "reweight", "do not trust": "distrust"}
_PACKAGES = ("pyroflows", "torch", "pyro-ppl", "numpy", "arviz", "matplotlib")


def write_report(data: Any, path: str | os.PathLike, *, title: str | None = None) -> str:
    """Write one page of HTML on a converted fit, which opens in a browser without a network.

    The verdict with its reasons; the numbers behind it; a table of the posterior, weighted too
    where the verdict asks for weights; the course of the fit, the tail of the weights, marginals,
    pairs and new data beside those seen, as figures within the page; leave-one-out; the
    environment. What cannot be drawn says why.

    Args:
        data: what ``to_inference_data`` or ``from_mcmc`` returned, or one read from a file;
            with ``fit=`` given it holds the course of the fit.
        path: the file to write.
        title: of the page; the name of the model unless given.

    Returns:
        The path.

    Raises:
        ImportError: if ArviZ (with Matplotlib) is not installed.
        TypeError: if ``data`` are no ArviZ data.
        ValueError: if they hold no posterior.
    """
    _arviz.require()
    if not _arviz.has_groups(data):
        raise TypeError(
            f"write_report: expected what to_inference_data returned, got {type(data).__name__}; "
            "a fit has fit.report(path)."
        )
    if _arviz.get_group(data, "posterior") is None:
        raise ValueError("write_report: expected a posterior group, got none.")
    attrs = dict(data.attrs)
    title = title or str(attrs.get("name", "posterior"))
    page = _html.page(title, [part for part in _parts(data, attrs) if part])
    Path(path).write_text(page, encoding="utf-8")
    return str(path)


def report_of_fit(
    fit: Any,
    path: str | os.PathLike,
    *,
    num_samples: int = 4000,
    seed: int | None = None,
    title: str | None = None,
) -> str:
    """Convert draws of a fit's guide, and write the page; see :func:`write_report`."""
    if fit.model is None:
        raise ValueError(
            "GuideFit.report: the fit holds no model; convert the guide by to_inference_data("
            "guide, model, fit=fit), and write_report(data, path)."
        )
    data = to_inference_data(
        fit.guide,
        fit.model,
        model_args=fit.model_args,
        model_kwargs=fit.model_kwargs,
        num_samples=num_samples,
        fit=fit,
        seed=fit.seed if seed is None else seed,
    )
    return write_report(data, path, title=title)


def read_fit(path: str | os.PathLike) -> Any:
    """Read what ``to_inference_data(...).to_netcdf(path)`` wrote.

    Raises:
        OSError: if there is no such file, or it is none of this kind.
    """
    _arviz.require()
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    import arviz

    try:
        return arviz.from_netcdf(str(path))
    except Exception as error:
        raise OSError(f"{path} is no netCDF file of a fit ({error})") from error


def _parts(data: Any, attrs: dict[str, Any]) -> Iterator[str]:
    stats = _arviz.get_group(data, "sample_stats")
    course = _arviz.get_group(data, "fit_stats")
    yield _origin(attrs)
    yield _verdict(stats)
    yield _html.section("What the verdict rests on", _numbers(stats, course))
    yield _html.section("The posterior", _posterior_table(data, stats), *_posterior_figures(data))
    if course is not None:
        yield _html.section(
            "The fit", _html.figure("The course of the fit", lambda: plot_fit(data))
        )
    if stats is not None and "log_weight" in stats:
        caption = "Importance weights and the tail fitted to them"
        yield _html.section("Weights", _html.figure(caption, lambda: plot_weights(data)))
    yield _html.section("New data beside those seen", *_predictive(data))
    yield _html.section("Leave-one-out", _leave_one_out(data))
    yield _html.section("In full", *(_html.listing(text) for text in _reports(stats, course)))
    yield _html.section("Environment", _environment(attrs, course))


def _origin(attrs: dict[str, Any]) -> str:
    source = attrs.get("guide") or attrs.get("kernel") or "unknown source"
    made = str(attrs.get("created_at", ""))[:19].replace("T", " ")
    return f'<p class="note">{_html.escape(f"{source}, {made} UTC" if made else str(source))}</p>'


def _verdict(stats: xr.Dataset | None) -> str:
    verdict = "" if stats is None else str(stats.attrs.get("verdict", ""))
    if not verdict:
        return '<p class="verdict"><strong>no verdict</strong><br>These draws carry no weights.</p>'
    reasons = "".join(
        f"<li>{_html.escape(reason)}</li>"
        for reason in str(stats.attrs.get("reasons", "")).split("; ")
        if reason
    )
    kind = _CLASSES.get(verdict, "")
    head = f"<strong>{_html.escape(verdict)}</strong>"
    return f'<div class="verdict {kind}">{head}<ul>{reasons}</ul></div>'


def _numbers(stats: xr.Dataset | None, course: xr.Dataset | None) -> str:
    rows = []
    if stats is not None and "elbo" in stats:
        one = {name: float(stats[name]) for name in stats.data_vars if stats[name].ndim == 0}
        draws = stats.sizes["chain"] * stats.sizes["draw"]
        rows = [
            ("ELBO", f"{one['elbo']:.4f} ± {one['elbo_se']:.2g}"),
            ("log Z", f"{one['log_z']:.4f} ± {one['log_z_se']:.2g}"),
            ("gap", f"{one['log_z'] - one['elbo']:.3g} nat"),
            ("k-hat", f"{one['pareto_k']:.2f} (good up to {one['good_k']:.2f})"),
            ("effective draws", f"{100 * one['ess_is']:.3g} % of {draws}"),
        ]
    if course is not None:
        rows.append(("steps", str(course.sizes["step"])))
        rows += [
            (label, f"{float(course.attrs[key]):.4g}")
            for key, label in (("seconds", "seconds"), ("num_particles", "draws a step"))
            if key in course.attrs
        ]
    return _html.table(("", "value"), rows) if rows else ""


def _posterior_table(data: Any, stats: xr.Dataset | None) -> str:
    weights = _weights(stats)
    header = ["", "mean", "sd", "5 %", "median", "95 %"]
    header += ["weighted mean", "weighted sd"] if weights is not None else []
    rows = list(itertools.islice(_coordinates(data), _MAX_ROWS + 1))
    body = [[label, *_moments(draws, weights)] for label, draws in rows[:_MAX_ROWS]]
    note = (
        f'<p class="note">The first {_MAX_ROWS} coordinates.</p>' if len(rows) > _MAX_ROWS else ""
    )
    return _html.table(header, body) + note


def _coordinates(data: Any) -> Iterator[tuple[str, np.ndarray]]:
    posterior = _arviz.get_group(data, "posterior")
    for name, array in posterior.data_vars.items():
        flat = array.values.reshape(array.shape[0] * array.shape[1], -1)
        dims = array.dims[2:]
        labels = [
            array.coords[d].values if d in array.coords else range(array.sizes[d]) for d in dims
        ]
        for column, index in enumerate(itertools.product(*labels)):
            yield f"{name}[{', '.join(map(str, index))}]" if index else str(name), flat[:, column]


def _weights(stats: xr.Dataset | None) -> np.ndarray | None:
    if stats is None or "log_weight_psis" not in stats:
        return None
    weights = np.exp(stats["log_weight_psis"].values.reshape(-1))
    return weights / weights.sum() if weights.sum() > 0 else None


def _moments(draws: np.ndarray, weights: np.ndarray | None) -> list[str]:
    found = [draws.mean(), draws.std(ddof=1), *np.quantile(draws, (0.05, 0.5, 0.95))]
    if weights is not None:
        mean = float(weights @ draws)
        found += [mean, math.sqrt(float(weights @ (draws - mean) ** 2))]
    return [f"{value:.4g}" for value in found]


def _posterior_figures(data: Any) -> Iterator[str]:
    fits = {"posterior": data}
    labels = [label for label, _ in _coordinates(data)]
    yield _html.figure("Marginals", lambda: plot_posteriors(fits))
    if len(labels) > 1:
        yield _html.figure("Medians and intervals", lambda: plot_posteriors(fits, kind="forest"))
    scalars = _few(data)
    if len(scalars) > 1:
        yield _html.figure(
            f"Pairs of {', '.join(scalars)}",
            lambda: plot_posteriors(_only(data, scalars), kind="pair"),
        )


def _few(data: Any) -> list[str]:
    """The first coordinates, scalars before the parts of vectors."""
    return sorted((label for label, _ in _coordinates(data)), key=lambda label: "[" in label)[
        :_MAX_PAIR
    ]


def _only(data: Any, labels: list[str]) -> dict[str, dict[str, np.ndarray]]:
    chosen = dict(_coordinates(data))
    return {"posterior": {label: chosen[label] for label in labels}}


def _predictive(data: Any) -> Iterator[str]:
    if _arviz.get_group(data, "posterior_predictive") is None:
        return
    yield _html.figure("Data seen and data made anew", lambda: plot_predictive(data))
    yield _html.figure(
        "Each observation and what is predicted", lambda: plot_predictive(data, kind="intervals")
    )
    try:
        found = predictive_p_values(data)
    except (TypeError, ValueError) as error:
        yield f'<p class="note">No p-values: {_html.escape(str(error))}</p>'
        return
    rows = [
        [" ".join(map(str, index)), *(f"{value:.4g}" for value in row)]
        for index, row in zip(found.index, found.to_numpy(), strict=True)
    ]
    yield _html.table(["", *map(str, found.columns)], rows)
    yield '<p class="note">A p-value near 0 or 1: the model does not make such data.</p>'


def _leave_one_out(data: Any) -> str:
    if _arviz.get_group(data, "log_likelihood") is None:
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _html.listing(str(loo(data)))
    except (TypeError, ValueError) as error:
        return f'<p class="note">{_html.escape(str(error))}</p>'


def _reports(*groups: xr.Dataset | None) -> Iterator[str]:
    found = [str(g.attrs["report"]) for g in groups if g is not None and "report" in g.attrs]
    yield from found[-1:]


def _environment(attrs: dict[str, Any], course: xr.Dataset | None) -> str:
    from importlib.metadata import PackageNotFoundError, version

    rows = [("python", platform.python_version()), ("platform", platform.platform())]
    for package in _PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            continue
    made_by = {
        "draws made by": f"pyroflows {attrs.get('inference_library_version', '?')}, "
        f"pyro {attrs.get('pyro_version', '?')}, torch {attrs.get('torch_version', '?')}",
        "device": attrs.get("device"),
        "seed": None if course is None else course.attrs.get("seed"),
    }
    rows += [(name, str(value)) for name, value in made_by.items() if value is not None]
    return _html.table(("", "of this page, unless said"), rows)
