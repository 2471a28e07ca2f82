"""Tensor functions that solve equations, with gradients that are right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .monotone import monotone_inverse, not_finite

__all__ = ["jacobian_rows", "monotone_inverse", "newton_inverse"]


def jacobian_rows(y: Tensor, x: Tensor) -> Tensor:
    r"""Return the Jacobian of each point of a batch, one batched backward pass.

    Args:
        y: Images that depend on ``x`` point by point, with shape :math:`(*, M)`.
        x: Points in the graph of ``y``, with shape :math:`(*, D)`.

    Returns:
        The matrices :math:`\partial y_i / \partial x_j`, detached, with shape :math:`(*, M, D)`.
    """
    size = y.shape[-1]
    basis = torch.eye(size, dtype=y.dtype, device=y.device)
    basis = basis.view(size, *[1] * (y.dim() - 1), size).expand(size, *y.shape)
    (rows,) = torch.autograd.grad(
        y, x, basis, retain_graph=True, is_grads_batched=True, materialize_grads=True
    )
    return rows.movedim(0, -2)


def newton_inverse(
    function: Callable[[Tensor], Tensor], y: Tensor, *, max_steps: int = 100
) -> Tensor:
    r"""Solve :math:`f(x) = y` for every point of a batch, by damped Newton steps from :math:`y`.

    A step is halved until it brings the image closer, so that the error only falls; at a
    diffeomorphism this ends at the solution. Gradients come from the implicit function theorem:
    two chord steps :math:`x \leftarrow x - J^{-1} (f(x) - y)` from the solution, with a constant
    :math:`J`, are right up to second derivatives in :math:`y` and in what :math:`f` holds.

    References:
        | Numerical Methods for Unconstrained Optimization and Nonlinear Equations
        | (Dennis and Schnabel, 1983), section 6.3

    Args:
        function: A diffeomorphism of vectors, applied to each point alone.
        y: Images, with shape :math:`(*, D)`.
        max_steps: Largest number of Newton steps.

    Returns:
        The solutions, to the precision of the dtype, with shape :math:`(*, D)`.

    Raises:
        RuntimeError: If some points do not converge, it says how many; or under ``torch.vmap``.

    Example:
        >>> x = newton_inverse(lambda x: x + x**3, torch.tensor([2.0, 10.0, -30.0]))
        >>> print(x)
        tensor([ 1.,  2., -3.])
    """
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "newton_inverse takes as many steps as the values ask for, which torch.vmap and "
            "torch.func cannot know: call it with a batch, which it solves as a whole."
        )
    with torch.no_grad():
        x, matrix = _solve(function, y.detach(), max_steps)
    if torch.is_grad_enabled():
        factors, pivots = torch.linalg.lu_factor(matrix)
        for _ in range(2):
            x = x - torch.linalg.lu_solve(factors, pivots, (function(x) - y)[..., None])[..., 0]
    return x


def _solve(
    function: Callable[[Tensor], Tensor], y: Tensor, max_steps: int
) -> tuple[Tensor, Tensor]:
    """The solution and the Jacobian there, without a graph."""
    point, image = _evaluated(function, y)
    for number in range(max_steps + 1):
        matrix = jacobian_rows(image, point)
        x, residual = point.detach(), y - image.detach()
        done = _norm(residual) <= _rounding(x, y, matrix)
        if done.all():
            return x, matrix
        if number == max_steps:
            break
        step = torch.where(done[..., None], 0, _newton_step(matrix, residual))
        point, image = _damped(function, x, step, y, _norm(residual), done)
    failed = int((~done).sum())
    raise RuntimeError(
        f"newton_inverse: {failed} of {done.numel()} points did not converge in {max_steps} "
        f"steps. {not_finite(y)}Is the map a bijection there, and are its parameters finite?"
    )


def _newton_step(matrix: Tensor, residual: Tensor) -> Tensor:
    step, info = torch.linalg.solve_ex(matrix, residual[..., None])
    return torch.where((info == 0)[..., None], step[..., 0], residual)


def _damped(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    step: Tensor,
    y: Tensor,
    error: Tensor,
    done: Tensor,
) -> tuple[Tensor, Tensor]:
    """The point that the longest of the halved steps to lower the error leads to, and its image.

    For each point alone; those that are done, at the floor of rounding, are not asked to fall.
    """
    length = torch.ones_like(error)
    for _ in range(40):
        point, image = _evaluated(function, x + length[..., None] * step)
        worse = ~(_norm(image.detach() - y) < error) & ~done
        if not worse.any():
            return point, image
        length = torch.where(worse, length / 2, length)
    return _evaluated(function, torch.where(worse[..., None], x, point.detach()))


def _evaluated(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The point and its image, with the graph that a Jacobian needs."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        return point, function(point)


def _norm(x: Tensor) -> Tensor:
    return x.abs().amax(-1)


def _rounding(x: Tensor, y: Tensor, matrix: Tensor) -> Tensor:
    """The error that rounding alone may leave in the image of ``x``."""
    size = _norm(y) + (matrix.abs() @ x.abs()[..., None])[..., 0].amax(-1)
    return 32 * torch.finfo(x.dtype).eps * (1 + size)
