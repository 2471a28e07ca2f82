"""Tensor functions that solve equations, with gradients that are right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["jacobian_rows", "newton_inverse"]


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
        RuntimeError: If some points do not converge. It says how many.

    Example:
        >>> x = newton_inverse(lambda x: x + x**3, torch.tensor([2.0, 10.0, -30.0]))
        >>> print(x)
        tensor([ 1.,  2., -3.])
    """
    with torch.no_grad():
        x, matrix = _solve(function, y.detach(), max_steps)
    if torch.is_grad_enabled():
        for _ in range(2):
            x = x - torch.linalg.solve(matrix, (function(x) - y)[..., None])[..., 0]
    return x


def _solve(
    function: Callable[[Tensor], Tensor], y: Tensor, max_steps: int
) -> tuple[Tensor, Tensor]:
    """The solution and the Jacobian there, without a graph."""
    x = y
    image, matrix = _linearize(function, x)
    for _ in range(max_steps):
        error = _norm(image - y)
        done = error <= _rounding(x, y, matrix)
        if done.all():
            return x, matrix
        step = _newton_step(matrix, y - image)
        x = torch.where(done[..., None], x, _damped(function, x, step, y, error))
        image, matrix = _linearize(function, x)
    failed = int((~(_norm(image - y) <= _rounding(x, y, matrix))).sum())
    if failed:
        raise RuntimeError(
            f"newton_inverse: {failed} of {error.numel()} points did not converge in {max_steps} "
            "steps. Is the map a bijection there, and are its parameters finite?"
        )
    return x, matrix


def _newton_step(matrix: Tensor, residual: Tensor) -> Tensor:
    step, info = torch.linalg.solve_ex(matrix, residual[..., None])
    return torch.where((info == 0)[..., None], step[..., 0], residual)


def _damped(
    function: Callable[[Tensor], Tensor], x: Tensor, step: Tensor, y: Tensor, error: Tensor
) -> Tensor:
    """The longest of the halved steps that lowers the error, for each point alone."""
    length = torch.ones_like(error)
    for _ in range(40):
        trial = x + length[..., None] * step
        worse = ~(_norm(function(trial) - y) < error)
        if not worse.any():
            break
        length = torch.where(worse, length / 2, length)
    return torch.where(worse[..., None], x, trial)


def _linearize(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        image = function(x)
        return image.detach(), jacobian_rows(image, x)


def _norm(x: Tensor) -> Tensor:
    return x.abs().amax(-1)


def _rounding(x: Tensor, y: Tensor, matrix: Tensor) -> Tensor:
    """The error that rounding alone may leave in the image of ``x``."""
    size = _norm(y) + (matrix.abs() @ x.abs()[..., None])[..., 0].amax(-1)
    return 32 * torch.finfo(x.dtype).eps * (1 + size)
