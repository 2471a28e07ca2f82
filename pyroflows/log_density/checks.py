"""Whether a way to evaluate many points at once equals Pyro's own density, one point at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from .runs import METHODS, JointRuns, Terms, total
from .structure import StructureError

__all__ = [
    "Reference",
    "complaint",
    "differentiate",
    "probe_points",
    "reference",
    "same_randomness",
    "spread",
]


@dataclass(frozen=True)
class Reference:
    """The log density of a few points, each taken alone.

    Args:
        points: The points, shape ``(P, D)``.
        terms: Values by site, shape ``(P)`` each.
        grads: Gradients, shape ``(P, D)``.
        seed: Of what the model draws.
    """

    points: Tensor
    terms: Terms
    grads: Tensor
    seed: int

    @property
    def finite(self) -> Tensor:
        """Which points tell something."""
        return total(self.terms).isfinite() & self.grads.isfinite().all(-1)


@contextmanager
def same_randomness(seed: int, like: Tensor) -> Iterator[None]:
    """Draw from a seed, unseen by handlers, and leave the generators as they were."""
    devices = [like.device] if like.is_cuda else []
    with torch.random.fork_rng(devices), torch.enable_grad(), poutine.block():
        torch.manual_seed(seed)
        yield


def reference(runs: JointRuns, points: Tensor, seed: int) -> Reference:
    """Run Pyro's sequential density at some points ``(P, D)``."""
    rows, grads = [], []
    for row in points:
        with same_randomness(seed, points):
            row = row.detach().clone().requires_grad_()
            terms = runs.single(row)
            grads.append(differentiate(total(terms), row))
            rows.append({name: value.detach() for name, value in terms.items()})
    terms = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return Reference(points.detach(), terms, torch.stack(grads), seed)


def differentiate(value: Tensor, at: Tensor, *, retain_graph: bool = False) -> Tensor:
    """The gradient of a scalar, which must have one."""
    if not value.requires_grad:
        raise ValueError(
            "The log density of the model has no gradient with respect to its latents: it was "
            "detached or computed outside torch. Write it with torch operations only."
        )
    (grad,) = torch.autograd.grad(value, at, retain_graph=retain_graph, allow_unused=True)
    return torch.zeros_like(at) if grad is None else grad


def complaint(runs: JointRuns, method: str, expected: Reference) -> str:
    """Why a method may not be used, or nothing if it agrees.

    It must give each site's value and each coordinate's gradient, and the gradient of one point's
    density with respect to any other point must be exactly zero: a sum over all points shows there
    however small it is beside the rest.
    """
    try:
        with same_randomness(expected.seed, expected.points):
            points = expected.points.clone().requires_grad_()
            terms = METHODS[method](runs, points)
            jacobian = _jacobian(total(terms), points)
    except StructureError:
        raise
    except Exception as error:  # any failure of a model that is run in another way means the same
        first_line = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {first_line[:160]}"
    return _compare(terms, jacobian, expected)


def _jacobian(values: Tensor, points: Tensor) -> Tensor:
    """Gradients of each value with respect to every point, shape ``(P, P, D)``."""
    last = len(values) - 1
    rows = [differentiate(v, points, retain_graph=i < last) for i, v in enumerate(values)]
    return torch.stack(rows)


def _compare(terms: Terms, jacobian: Tensor, expected: Reference) -> str:
    points, finite = expected.points, expected.finite
    # Data may be more precise than the points.
    eps = max(torch.finfo(t.dtype).eps for t in (points, *terms.values()))
    if set(terms) != set(expected.terms):
        return f"sites differ: {sorted(set(terms) ^ set(expected.terms))}"
    for name, value in terms.items():
        if value.shape != (len(points),):
            return f"{name} has a log density of shape {tuple(value.shape)} for {len(points)} draws"
        if not _agree(value.detach(), expected.terms[name], eps, size=expected.terms[name].abs()):
            return f"the log density of {name} differs"
    grads = jacobian.diagonal().mT
    size = expected.grads[finite].abs().amax(0, keepdim=True)
    size = size + 0.03 * (size.amax() if size.numel() else 0)
    if not _agree(grads, expected.grads, eps, size=size):
        return "gradients differ"
    index = torch.arange(len(points), device=points.device)
    other = (index[:, None] != index) & finite[:, None] & finite
    if (jacobian[other] != 0).any():
        return "the density of one draw depends on the others, as by a sum over all of them"
    return ""


def _agree(got: Tensor, expected: Tensor, eps: float, size: Tensor) -> bool:
    """Equal up to rounding, which grows with the size of what was summed."""
    finite = torch.isfinite(expected)
    if not torch.equal(torch.isfinite(got), finite):
        return False
    tolerance = 1e3 * eps * (size.expand_as(expected) + 0.03)
    return bool(((got - expected).abs() <= tolerance)[finite].all())


def probe_points(u: Tensor, number: int = 3) -> Tensor:
    """Some distinct points among or near those given."""
    steps = torch.arange(len(u[:number]), number, dtype=u.dtype, device=u.device)
    more = u[:1] + 0.01 * steps[:, None] * torch.ones_like(u[:1])
    points = torch.cat([u[:number], more]).detach()
    same = (points[1:] == points[:1]).all(-1)
    shift = 0.01 * torch.arange(1, number, dtype=u.dtype, device=u.device)
    points[1:] = torch.where(same[:, None], points[1:] + shift[:, None], points[1:])
    return points


def spread(points: Tensor, number: int) -> Tensor:
    """So many points, near those given and all distinct."""
    index = torch.arange(number, device=points.device)
    shift = 0.01 * index.to(points) / max(number, 1)
    return points.detach()[index % len(points)] + shift[:, None]
