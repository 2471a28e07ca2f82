"""The outer affine map of a guide: which one, and where it starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ..bijector import Bijector, Compose
from ..bijectors import FullAffine, LocScale, LowRankAffine
from ..flows import Flow, build_flow
from ..latents import Latents
from ..log_density import LogDensity, StructureError
from .angles import periods_of
from .gaussians import FULL, SPARING, Start
from .request import check_outer
from .start import find_start

__all__ = ["build_bijector", "in_double", "initialise"]

_FULL_UP_TO = 128
_HESSIAN_UP_TO = 256  # above, for a map that is not full itself, curvature takes no matrix
_RANK = 16
_RUNAWAY = 1e15  # a coordinate, or a log density, that no posterior of use has


def build_bijector(
    latents: Latents, flow: str | Flow, outer: str | None, options: dict[str, Any]
) -> Compose:
    """Build a flow and the affine map after it. A flow that is affine already stands alone."""
    check_outer(outer)
    dim = latents.dim
    if flow == "hybrid":
        options = {"order": scales_first(latents)} | options
    inner = build_flow(flow, dim, **options)
    if any(periods_of(inner, dim)):
        if outer not in ("auto", None):
            raise ValueError(
                f"AutoFlow expected outer='auto' with the flow {flow!r}, as an affine map does not "
                f"map circles onto themselves, got {outer!r}."
            )
        return Compose(inner)
    if isinstance(inner, FullAffine | LocScale | LowRankAffine):
        if outer not in ("auto", None):
            raise ValueError(
                f"AutoFlow expected outer='auto' with the flow {flow!r}, which is an affine map "
                f"itself, got {outer!r}."
            )
        return Compose(inner)
    if outer == "auto":
        outer = "full" if dim <= _FULL_UP_TO else "low_rank"
    if outer is None:
        return Compose(inner)
    return Compose(inner, _affine(outer, dim))


def scales_first(latents: Latents) -> list[int]:
    """The coordinates in an order in which the width of others may depend on those before.

    Positive latents come first, as scales are positive, and otherwise they stay as the model draws
    them: what a model draws later depends on what it drew before.
    """
    first, others, start = [], [], 0
    for site in latents.sites.values():
        support = site.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        is_scale = isinstance(support, constraints.greater_than | constraints.greater_than_eq)
        (first if is_scale else others).extend(range(start, start + site.size))
        start += site.size
    return first + others


def _affine(outer: str, dim: int) -> Bijector:
    if outer == "full":
        return FullAffine(dim)
    if outer == "diagonal":
        return LocScale(dim)
    return LowRankAffine(dim, rank=min(_RANK, dim))


def initialise(
    bijector: Compose,
    log_density: LogDensity,
    loc: Tensor,
    *,
    init: str,
    init_scale: float,
    given: bool,
    seed: int = 0,
) -> tuple[str, tuple[Start, ...]]:
    """Set the outer affine map of ``bijector``; say in words what was done, and what modes seen.

    Args:
        bijector: The guide's map, whose last part may be affine.
        log_density: The model's log density.
        loc: The point to start from, shape ``(D)``.
        init: ``"auto"`` or ``"point"``.
        init_scale: Scale for ``"point"``.
        given: Whether the user chose the point: then no other is tried.
        seed: Of the other points.
    """
    affine = bijector.bijectors[-1]
    if not isinstance(affine, FullAffine | LocScale | LowRankAffine):
        angles = [i for i, p in enumerate(periods_of(bijector, len(loc))) if p is not None]
        told = "no outer affine map: the flow starts as its base, next to the identity"
        return told + (f"; coordinates {angles} are angles" if angles else ""), ()
    if init == "point":
        start = _narrow(loc, init_scale, f"started at the given point, {init_scale:g} wide")
    else:
        points = loc.double()[None] if given else _starting_points(loc, seed)
        start = _climb(log_density, loc, points, init_scale, affine)
    if isinstance(affine, LowRankAffine):
        start = replace(start, report=f"{start.report}; the outer map has rank {affine.rank}")
    ran_off = init == "auto" and _ran_off(start, log_density, loc)
    _set(affine, start, loc)
    if not ran_off:
        _warn_of_resolution(start, loc)
    return start.report, start.modes


def _narrow(loc: Tensor, scale: float, report: str) -> Start:
    loc = loc.double()
    return Start(loc, torch.full_like(loc, scale), None, -torch.inf, report)


def _climb(
    log_density: LogDensity, loc: Tensor, points: Tensor, init_scale: float, affine: Bijector
) -> Start:
    options = {} if isinstance(affine, FullAffine) else {"max_full_dim": _HESSIAN_UP_TO}
    options["rank"] = getattr(affine, "rank", 0)
    seed_devices = [loc.device] if loc.is_cuda else []
    try:
        with torch.random.fork_rng(seed_devices):
            density = in_double(log_density, points, loc.dtype)
            effort = SPARING if log_density.vectorized is False else FULL
            start = find_start(density, points, effort=effort, **options)
    except StructureError:
        raise
    except (RuntimeError, ValueError) as error:
        if "not finite at any" in str(error) or "no gradient" in str(error):
            raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        start = _narrow(
            loc, init_scale, f"fell back to the prior median, {init_scale:g} wide ({reason})"
        )
    if start.report.startswith("fell back"):
        warnings.warn(f"AutoFlow's initialisation {start.report}.", stacklevel=2)
    return start


def _starting_points(loc: Tensor, seed: int) -> Tensor:
    """The given point, the origin of unconstrained space, and others around it at random."""
    generator = torch.Generator().manual_seed(seed)
    number = 6 if len(loc) <= _FULL_UP_TO else 1
    random = torch.rand(number, len(loc), generator=generator, dtype=torch.float64)
    loc = loc.double()
    return torch.cat([loc[None], torch.zeros_like(loc)[None], (4 * random - 2).to(loc)])


def in_double(
    log_density: LogDensity, points: Tensor, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """The density computed in float64 if the model can, else in its own dtype.

    Args:
        log_density: The model's log density.
        points: Unconstrained points in float64, shape ``(K, D)``.
        dtype: The model's own dtype.
    """
    double = LogDensity(
        log_density.model,
        log_density.latents,
        _to_double(log_density.model_args),
        _to_double(log_density.model_kwargs),
    )
    jitter = torch.linspace(0.01, 0.03, 3, dtype=torch.float64, device=points.device)
    probes = points[0] + jitter[:, None]
    # Checked in its own dtype: constants of the model in float32 would blur the comparison.
    log_density.check(probes.to(dtype))
    double.method = log_density.method
    try:
        double(probes)
    except StructureError:
        raise
    except RuntimeError:  # the model mixes in float32 tensors of its own
        return lambda u: log_density(u.to(dtype)).double()
    return double


def _to_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: _to_double(v) for k, v in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_to_double(v) for v in value)
    return value


def _set(affine: Bijector, start: Start, like: Tensor) -> None:
    """Copy a Gaussian into an affine map."""
    if isinstance(affine, FullAffine):
        tril = start.scale.diag() if start.scale_tril is None else start.scale_tril
        affine.set_(start.loc.to(like), tril.to(like))
    elif isinstance(affine, LocScale):
        affine.set_(start.loc.to(like), _conditional_scale(start).to(like))
    else:
        scale, directions, log_stretch = _low_rank(start, affine.rank)
        affine.set_(start.loc.to(like), scale.to(like), directions.to(like), log_stretch.to(like))


def _conditional_scale(start: Start) -> Tensor:
    """Scales of the closest diagonal Gaussian in reverse KL: each coordinate's, given the rest."""
    if start.scale_tril is None:
        return start.scale
    return torch.cholesky_inverse(start.scale_tril).diagonal().rsqrt()


def _low_rank(start: Start, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scales, directions and log stretches of the closest map of low rank."""
    dim = len(start.loc)
    if start.slim is not None and len(start.slim.log_stretch) == rank:
        return start.slim
    if start.scale_tril is None:
        eye = torch.eye(dim, rank, dtype=start.loc.dtype, device=start.loc.device)
        return start.scale, eye, eye.new_zeros(rank)
    tril = start.scale_tril / start.scale[:, None]
    values, vectors = torch.linalg.eigh(tril @ tril.mT)
    log_stretch = 0.5 * values.clamp_min(1e-12).log()
    index = log_stretch.abs().topk(rank).indices
    return start.scale, vectors[:, index], log_stretch[index]


def _ran_off(start: Start, log_density: LogDensity, like: Tensor) -> bool:
    """Say that a climb found no end: the log density rises for ever, so it has no integral."""
    most = start.loc.abs().max()
    if most < _RUNAWAY and not start.elbo > _RUNAWAY:
        return False
    far = ~(start.loc.abs() < 1e-3 * most)  # rounding takes others along, not as far
    sites = {site.name: part for site, part in log_density.latents.split(far)}
    named = [name for name, part in sites.items() if part.any()]
    told = (
        f"AutoFlow climbed the log density without coming to an end: {', '.join(map(repr, named))} "
        f"ran off to {float(most):.1g} on unconstrained coordinates. The "
        "posterior is improper, or its density overflows: give these latents a proper prior, or "
        "bounds."
    )
    if not torch.isfinite(start.loc.to(like)).all():
        raise ValueError(told)
    warnings.warn(told, stacklevel=2)
    return True


def _warn_of_resolution(start: Start, like: Tensor) -> None:
    spacing = torch.finfo(like.dtype).eps * start.loc.abs()
    coarse = (start.scale < 16 * spacing).nonzero().flatten()
    if len(coarse):
        i = int(coarse[0])
        warnings.warn(
            f"Unconstrained coordinate {i} is near {start.loc[i]:.6g} with scale "
            f"{start.scale[i]:.2g}, too narrow for {like.dtype}: give the model float64 data, or "
            "shift and scale this latent.",
            stacklevel=2,
        )
