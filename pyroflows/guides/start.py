"""Where a guide starts: a mode of the model, and the curvature there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .gaussians import FULL, Effort, Start, matched_noise, moments, refine, student_draws
from .slim import Slim, slim_curvature, value_and_grad

__all__ = ["find_start"]

_STRETCHES = (0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
_HALVINGS = 48  # of a width that curvature bounded away from zero leaves far too large
_NUMBERS_NAMED = 4


def find_start(
    log_density: Callable[[Tensor], Tensor],
    points: Tensor,
    *,
    max_full_dim: int = 1024,
    rank: int = 0,
    effort: Effort = FULL,
) -> Start:
    r"""Climb from each point, take the curvature along the way, keep the best Gaussian.

    Each climb is L-BFGS in float64, polished by damped Newton steps. A Gaussian is built at
    several points of its path, as in Pathfinder, since a model may have no mode at all (a
    hierarchical scale that goes to zero): what counts is the evidence lower bound, estimated for
    each with the same draws. Where several modes hold mass, the start has the moments of all.

    References:
        | Pathfinder: Parallel Quasi-Newton Variational Inference (Zhang et al., 2022)
        | https://arxiv.org/abs/2108.03782

    Args:
        log_density: Maps points ``(K, D)`` in float64 to log densities ``(K)``.
        points: Where to climb from, shape ``(N, D)``, in float64.
        max_full_dim: Largest dimension for which the whole Hessian is formed.
        rank: Directions of the curvature that are looked for above it.
        effort: How many draws to compare Gaussians with.

    Raises:
        ValueError: If the log density is not finite at any of the points.
    """
    paths = [p for point in points if (p := _climb(log_density, point))]
    if not paths:
        raise ValueError(
            f"The log density of the model is not finite at any of the {len(points)} points tried. "
            "Check the model for NaN or impossible data, or pass init_loc_fn= with feasible values."
        )
    noise, modes = matched_noise(points.shape[-1], points, effort.num_noise(points.shape[-1])), []
    for path in paths:
        short = _thin(path, effort.num_on_path)
        lost = sum(mode.mode is None for mode in modes)
        best = _best_along(
            log_density, short, modes, noise, max_full_dim, rank, lost < effort.max_lost
        )
        if best is not None:
            modes.append(best)
    if not modes:
        return _fallback(log_density, paths, max_full_dim)
    best = max(modes, key=lambda mode: mode.elbo)
    distinct = [m for m in modes if m.mode is not None]
    others = [m for m in distinct if m is not best]
    best = refine(log_density, best, effort)
    start = (_cover(log_density, [best, *others], effort) if others else None) or best
    start = replace(start, report=start.report + effort.told)
    return replace(start, modes=tuple(map(_on_cpu, distinct)) if len(distinct) > 1 else ())


def _on_cpu(mode: Start) -> Start:
    """A mode to be kept with the guide, whatever device that moves to."""
    names = ("loc", "scale", "scale_tril", "mode")
    tensors = {name: getattr(mode, name) for name in names}
    slim = mode.slim and Slim(*(t.cpu() for t in mode.slim))
    return replace(mode, slim=slim, **{n: t if t is None else t.cpu() for n, t in tensors.items()})


def _best_along(
    log_density: Callable,
    path: list[Tensor],
    known: list[Start],
    noise: Tensor,
    max_full_dim: int,
    rank: int,
    may_be_lost: bool,
) -> Start | None:
    """The best Gaussian along one path, or ``None`` if it led to a mode that is known, or none."""
    end = path[-1]
    if len(end) <= max_full_dim:
        end = _polish(log_density, end)
    if end is None and not may_be_lost:
        return None
    if end is not None and any(_is_same(end, mode) for mode in known):
        return None
    points = path + ([] if end is None else [end])
    found = [_best_stretch(log_density, u, noise, max_full_dim, rank) for u in points]
    best = max((f for f in found if f is not None), key=lambda f: f.elbo, default=None)
    return None if best is None else replace(best, mode=end)


def _is_same(u: Tensor, mode: Start) -> bool:
    """Whether a climb ended where another did, within one standard deviation."""
    if mode.mode is None:
        return False
    offset = u - mode.mode
    if mode.scale_tril is None:  # climbs of many coordinates end less exactly
        return bool((offset / mode.scale).norm() < max(1.0, 0.1 * len(u) ** 0.5))
    white = torch.linalg.solve_triangular(mode.scale_tril, offset[:, None], upper=False)
    return bool(white.norm() < 1)


def _cover(log_density: Callable, modes: list[Start], effort: Effort) -> Start | None:
    """A Gaussian with the moments of the target, by adaptive importance sampling.

    A start inside one mode, or too narrow, stays there: where no draw falls, no gradient says so,
    and no weight of the guide's own draws can tell. The proposal is a mixture of Student-t's, one a
    mode, then one with the moments found so far.
    """
    parts = [(m.loc, m.scale_tril) for m in modes if m.scale_tril is not None]
    generator = torch.Generator().manual_seed(1)
    found = None
    for _ in range(3 if parts else 0):
        draws, log_parts = student_draws(parts, generator, effort.num_cover)
        with torch.no_grad():
            log_weights = log_density(draws) - log_parts.logsumexp(-1)
        weights = torch.nan_to_num(log_weights, nan=-math.inf, posinf=-math.inf).softmax(0)
        ess = (1 / weights.square().sum()).item()
        if not ess > 10 * len(parts[0][0]):  # NaN where no draw is possible
            break
        mass = (weights[:, None] * log_parts.softmax(-1)).sum(0)
        loc, tril = moments(draws, weights)
        if found is None:
            parts, num_modes = [p for p, m in zip(parts, mass, strict=True) if m > 0.01], 0
            num_modes = len(parts)
            parts = [*parts, (loc, tril)]
        else:
            parts = [*parts[:num_modes], (loc, tril)]
        found = (loc, tril, num_modes)
    if found is None:
        return None
    loc, tril, num_modes = found
    told = "the mode" if num_modes == 1 else f"{num_modes} modes"
    report = f"started at the posterior's moments, by importance sampling around {told}"
    return Start(loc, tril.square().sum(-1).sqrt(), tril, modes[0].elbo, report)


def hessian(fn: Callable[[Tensor], Tensor], u: Tensor, chunk: int = 256) -> Tensor:
    """The Hessian at one point, shape ``(D, D)``: each row is one element of a batch.

    Where neither derivatives nor differences of gradients are finite it is that of a point beside.
    """
    dim = len(u)
    for point in (u, u + _small_step(u)):
        rows = [
            _hessian_rows(fn, point, torch.arange(i, min(i + chunk, dim)))
            for i in range(0, dim, chunk)
        ]
        full = torch.cat(rows)
        if torch.isfinite(full).all():
            break
    return (full + full.mT) / 2


def _small_step(u: Tensor) -> Tensor:
    """Where differences of gradients lose least to rounding and to the third derivative."""
    return torch.finfo(u.dtype).eps ** (1 / 3) * (1 + u.abs())


def _hessian_rows(fn: Callable[[Tensor], Tensor], u: Tensor, index: Tensor) -> Tensor:
    index = index.to(u.device)
    try:
        with torch.enable_grad():
            batch = u.detach().expand(len(index), -1).clone().requires_grad_()
            (grad,) = torch.autograd.grad(fn(batch).sum(), batch, create_graph=True)
            picked = grad.gather(1, index[:, None]).sum()
            (rows,) = torch.autograd.grad(picked, batch)
        # Of a gradient that is NaN a mask may well have a derivative, which is zero.
        if torch.isfinite(rows).all() and torch.isfinite(grad).all():
            return rows.detach()
    except RuntimeError:  # some density without a second derivative
        pass
    return _differences(fn, u, index)


def _differences(fn: Callable[[Tensor], Tensor], u: Tensor, index: Tensor) -> Tensor:
    """Rows of the Hessian from the gradient, as where the second derivative overflows.

    That of ``logaddexp`` is NaN where its two terms are far apart, as at one of two far modes.
    """
    step = _small_step(u)[index]
    shift = torch.zeros(len(index), len(u), dtype=u.dtype, device=u.device)
    shift.scatter_(1, index[:, None], step[:, None])
    above = value_and_grad(fn, u + shift)[1]
    below = value_and_grad(fn, u - shift)[1]
    return (above - below) / (2 * step[:, None])


def _climb(log_density: Callable, start: Tensor, num_rounds: int = 40) -> list[Tensor]:
    """The path of L-BFGS to a mode: points of finite density, the last the highest."""
    u = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [u], max_iter=5, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = -log_density(u[None])[0]
        if torch.isfinite(value):
            value.backward()
        return value if torch.isfinite(value) else torch.full_like(value, math.inf)

    best, path = math.inf, []
    if not torch.isfinite(loss()):
        return path
    path.append(u.detach().clone())
    for _ in range(num_rounds):
        try:
            optimizer.step(loss)
        except (RuntimeError, ValueError):  # the model refused a point of the line search
            break
        value = loss()
        improved = best - value.item()
        if not torch.isfinite(u).all() or not improved > 0:
            break
        best = value.item()
        path.append(u.detach().clone())
        if improved < 1e-9 * (1 + abs(best)):
            break
    return path


def _polish(log_density: Callable, u: Tensor, num_steps: int = 10) -> Tensor | None:
    """Damped Newton steps, exact for any linear change of coordinates; ``None`` for no mode."""
    lengths = 0.5 ** torch.arange(12, dtype=u.dtype, device=u.device)
    for _ in range(num_steps):
        value, grad = value_and_grad(log_density, u[None])
        factor = _covariance_factor(-hessian(log_density, u))
        if factor is None:
            return None
        white = factor.mT @ grad[0]
        if white.norm() < 1e-3:  # in standard deviations from the mode
            return u
        trial = u + lengths[:, None] * (factor @ white)
        with torch.no_grad():
            values = torch.nan_to_num(log_density(trial), nan=-math.inf)
        index = int(values.argmax())
        if not values[index] > value[0]:
            return u if white.norm() < 0.1 else None
        u = trial[index]
    return None


def _covariance_factor(precision: Tensor) -> Tensor | None:
    """A Cholesky factor of the inverse, after making the precision positive definite."""
    axes = _axes(precision)
    return None if axes is None else _triangular(axes)


def _triangular(axes: Tensor) -> Tensor:
    """The triangular factor of axes @ axes.T, by QR so that small eigenvalues are kept."""
    upper = torch.linalg.qr(axes.mT).R
    return upper.mT * torch.sign(upper.diagonal())


def _axes(precision: Tensor) -> Tensor | None:
    """Independent directions, one a column, each as long as a standard deviation.

    Coordinates are scaled to unit curvature first, so that raw scales do not matter; negative
    curvature is taken by its size, and vanishing curvature is bounded away from zero.
    """
    if not torch.isfinite(precision).all():
        return None
    diagonal = precision.diagonal().abs()
    scale = diagonal.clamp_min(1e-12 * diagonal.max().clamp_min(1e-12)).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * precision * scale)
    values = values.abs().clamp_min(1e-12)
    return scale[:, None] * vectors * values.rsqrt()


def _narrowed(log_density: Callable, u: Tensor, axes: Tensor) -> Tensor:
    """Shorten each axis to where the density has fallen by half a nat, the mean of both sides.

    The curvature of a valley that falls as the fourth power is zero at its bottom: it bounds no
    width, and one stretch for all axes would make the others as narrow as this one is too wide.
    """
    lengths = 0.5 ** torch.arange(_HALVINGS - 1, -1, -1, dtype=u.dtype, device=u.device)
    kept = []
    for axis in axes.mT:
        steps = lengths[:, None] * axis
        with torch.no_grad():
            sides = log_density(torch.cat([u[None], u + steps, u - steps]))
        fall = sides[0] - sides[1:].view(2, -1).mean(0)
        near = int((fall <= 0.5).cumprod(0).sum())  # NaN is no fall to go on from
        kept.append(axis * lengths[max(near - 1, 0)])
    return torch.stack(kept, dim=1)


def _best_stretch(
    log_density: Callable, u: Tensor, noise: Tensor, max_full_dim: int, rank: int
) -> Start | None:
    """The Gaussian at ``u``, its scale stretched by the factor with the largest ELBO."""
    if len(u) <= max_full_dim:
        axes = _axes(-hessian(log_density, u))
        if axes is None:
            return None
        kind, factor = "the full curvature", _triangular(axes)
        found = [_stretched(log_density, u, noise, kind, factor=factor)]
        if found[0] is None or _is_squeezed(found[0], factor):
            kind = "widths where the density falls by half a nat"
            factor = _triangular(_narrowed(log_density, u, axes))
            found.append(_stretched(log_density, u, noise, kind, factor=factor))
        return max((f for f in found if f is not None), key=lambda f: f.elbo, default=None)
    slim = slim_curvature(log_density, u, rank)
    kind = "the diagonal of the curvature"
    found = [_stretched(log_density, u, noise, kind, slim=slim.diagonal())]
    if rank:
        kind = f"the diagonal and {len(slim.log_stretch)} directions of the curvature"
        found.append(_stretched(log_density, u, noise, kind, slim=slim))
    return max((f for f in found if f is not None), key=lambda f: f.elbo, default=None)


def _is_squeezed(found: Start, factor: Tensor) -> bool:
    """Whether a Gaussian had to be far narrower than the curvature says, all axes together."""
    return bool(found.scale_tril[0, 0] < 0.9 * _STRETCHES[0] * factor[0, 0])


def _stretched(
    log_density: Callable,
    u: Tensor,
    noise: Tensor,
    kind: str,
    *,
    factor: Tensor | None = None,
    slim: Slim | None = None,
) -> Start | None:
    if slim is None:
        offsets, log_det = noise @ factor.mT, factor.diagonal().log().sum()
        scale = factor.square().sum(-1).sqrt()
    else:
        offsets, log_det, scale = slim.times(noise), slim.log_det(), slim.scale
    entropy = log_det + 0.5 * len(u) * (1 + math.log(2 * math.pi))

    def elbo(stretch: float) -> float:
        with torch.no_grad():
            values = log_density(u + stretch * offsets)
        value = (values.mean() + entropy + len(u) * math.log(stretch)).item()
        return value if math.isfinite(value) else -math.inf

    value, stretch = max((elbo(stretch), stretch) for stretch in _STRETCHES)
    # Where the curvature vanishes, as beside the kink of a Laplace, it tells no scale at all.
    while stretch <= _STRETCHES[0] and (shorter := elbo(stretch / 10)) > value:
        value, stretch = shorter, stretch / 10
    if value == -math.inf:
        return None
    report = f"started at a point found by climbing, with {kind} times {stretch:g}"
    tril = None if factor is None else stretch * factor
    wide = slim and slim._replace(scale=stretch * slim.scale)
    return Start(u, stretch * scale, tril, value, report, slim=wide)


def _thin(path: list[Tensor], number: int) -> list[Tensor]:
    """Some points of a path, the first and last among them, denser at the start."""
    last = len(path) - 1
    index = sorted({round(last * (i / (number - 1)) ** 2) for i in range(number)})
    return [path[i] for i in index]


def _fallback(log_density: Callable, paths: list[list[Tensor]], max_full_dim: int) -> Start:
    """A narrow diagonal Gaussian at the highest point, where no curvature was of use."""
    ends = torch.stack([path[-1] for path in paths])
    with torch.no_grad():
        u = ends[int(log_density(ends).argmax())]
    reason = "no Gaussian built from the curvature had a finite ELBO"
    if len(u) <= max_full_dim and not torch.isfinite(hessian(log_density, u)).all():
        shown = [f"{value:.3g}" for value in u[:_NUMBERS_NAMED].tolist()]
        shown += ["..."] * (len(u) > _NUMBERS_NAMED)
        reason = (
            f"the second derivative of the log density is not finite at ({', '.join(shown)}) on "
            "unconstrained coordinates, nor beside it"
        )
    report = f"fell back to a small diagonal scale of 0.1 at the highest point found: {reason}"
    return Start(u, torch.full_like(u, 0.1), None, -math.inf, report)
