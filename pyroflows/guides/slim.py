"""Curvature in high dimension: a scale for each coordinate and a few directions, no matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Slim", "slim_curvature", "value_and_grad"]

_PROBES = 64
_DIRECTIONS = 16  # that are known apart when the diagonal is estimated
_STEP = 1e-4  # of a difference of gradients, in scales
_MORE = 16  # Lanczos steps beside two for each direction
_FLATTEST = 1e-6  # of a mean curvature


class Slim(NamedTuple):
    r"""A Gaussian with the factor :math:`S (I + Q \operatorname{diag}(e^b - 1) Q^\top)`.

    Args:
        scale: The diagonal of :math:`S`, shape ``(D)``.
        directions: Orthonormal columns :math:`Q`, shape ``(D, r)``.
        log_stretch: The log-stretches :math:`b`, shape ``(r)``.
    """

    scale: Tensor
    directions: Tensor
    log_stretch: Tensor

    def times(self, noise: Tensor) -> Tensor:
        """The factor times each row of ``noise``."""
        inner = (noise @ self.directions) * self.log_stretch.expm1()
        return self.scale * (noise + inner @ self.directions.mT)

    def diagonal(self) -> Slim:
        """The same without directions."""
        return Slim(self.scale, self.directions[:, :0], self.log_stretch[:0])

    def log_det(self) -> Tensor:
        return self.scale.log().sum() + self.log_stretch.sum()

    def deviations(self) -> Tensor:
        """Standard deviations of the coordinates, shape ``(D)``."""
        more = self.directions.square() @ (2 * self.log_stretch).expm1()
        return self.scale * (1 + more).sqrt()


def slim_curvature(log_density: Callable[[Tensor], Tensor], u: Tensor, rank: int) -> Slim:
    r"""Scales from the diagonal of minus the Hessian, directions from its extreme eigenvectors.

    The diagonal is estimated by random signs. With :math:`S` from it, the directions are those in
    which :math:`S P S` differs most from one, by Lanczos' method with Hessian-vector products.
    Time and memory are linear in the dimension.

    References:
        | An estimator for the diagonal of a matrix (Bekas et al., 2007)
        | Lanczos' method: Golub and Van Loan, Matrix Computations, chapter 10

    Args:
        log_density: Maps points ``(K, D)`` to log densities ``(K)``.
        u: Where, shape ``(D)``.
        rank: The number :math:`r` of directions at most; may be 0.
    """
    step = torch.finfo(u.dtype).eps ** (1 / 3) * (1 + u.abs())
    probes = _Probes(log_density, u, step)
    scale = probes.scale()
    if not torch.isfinite(scale).all():
        return Slim(scale, u.new_zeros(len(u), 0), u.new_zeros(0))
    # Along scaled coordinates, those of little curvature are not drowned in the noise of others.
    probes = _Probes(log_density, u, _STEP * scale)
    scale = probes.scale()
    product = hessian_product(log_density, u)
    found = _directions(product, scale, max(rank, _DIRECTIONS))
    right = found.directions / scale[:, None]
    scale = probes.scale((right * (-2 * found.log_stretch).expm1(), right))
    return _directions(product, scale, rank) if rank else found.diagonal()._replace(scale=scale)


def _directions(product: Callable, scale: Tensor, number: int) -> Slim:
    """The directions in which the scaled curvature differs most from one."""
    values, vectors = _lanczos(lambda v: -scale * product(scale * v), scale, 2 * number + _MORE)
    log_values = values.abs().clamp_min(_FLATTEST).log()
    index = log_values.abs().topk(min(number, len(values))).indices
    return Slim(scale, vectors[:, index], -0.5 * log_values[index])


def value_and_grad(fn: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """Values and gradients of a batch of points."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = fn(u)
        (grad,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), grad


def hessian_product(fn: Callable[[Tensor], Tensor], u: Tensor) -> Callable[[Tensor], Tensor]:
    """The map of a vector to its product with the Hessian at one point."""
    with torch.enable_grad():
        point = u.detach()[None].requires_grad_()
        (grad,) = torch.autograd.grad(fn(point).sum(), point, create_graph=True)

    def by_differences(v: Tensor) -> Tensor:
        step = torch.finfo(u.dtype).eps ** (1 / 3) * (1 + u.norm()) / v.norm().clamp_min(1e-30)
        above, below = value_and_grad(fn, torch.stack([u + step * v, u - step * v]))[1]
        return (above - below) / (2 * step)

    def product(v: Tensor) -> Tensor:
        try:
            (found,) = torch.autograd.grad(grad, point, v[None], retain_graph=True)
            if torch.isfinite(found).all():
                return found[0]
        except RuntimeError:  # some density without a second derivative
            pass
        return by_differences(v)

    return product


def _lanczos(
    product: Callable[[Tensor], Tensor], like: Tensor, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Ritz values and vectors of a symmetric map, with full orthogonalisation."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(like), generator=generator, dtype=torch.float64).to(like)
    basis, images = [start / start.norm()], []
    for _ in range(min(num_steps, len(like))):
        image = product(basis[-1])
        if not torch.isfinite(image).all():
            break
        images.append(image)
        known = torch.stack(basis)
        rest = image - known.mT @ (known @ image)
        rest = rest - known.mT @ (known @ rest)  # once more, for what rounding has left
        if rest.norm() <= 1e-8 * image.norm():
            break
        basis.append(rest / rest.norm())
    if not images:
        return like.new_zeros(0), like.new_zeros(len(like), 0)
    known, mapped = torch.stack(basis[: len(images)]), torch.stack(images)
    small = known @ mapped.mT
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    return values, known.mT @ vectors


class _Probes:
    """The curvature along random signs, from which its diagonal is estimated."""

    def __init__(self, log_density: Callable, u: Tensor, step: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (_PROBES, len(u)), generator=generator).to(u) * 2 - 1
        self._shifts = step * signs
        above = value_and_grad(log_density, u + self._shifts)[1]
        below = value_and_grad(log_density, u - self._shifts)[1]
        self._products = (below - above) / 2

    def scale(self, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        r"""One over the root of the diagonal; of a known part :math:`L R^\top` it has no noise."""
        products, diagonal = self._products, 0.0
        if known is not None:
            left, right = known
            products = products - (self._shifts @ right) @ left.mT
            diagonal = (left * right).sum(-1)
        diagonal = diagonal + (products / self._shifts).mean(0)
        floor = 1e-6 * diagonal.abs().max().clamp_min(1e-12)
        return diagonal.abs().clamp_min(floor).rsqrt()
