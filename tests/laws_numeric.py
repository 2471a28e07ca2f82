"""The laws of bijectors that are numbers to a stated bar, with parameters well off the start."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pyroflows import Bijector
from pyroflows.numerics import jacobian_rows
from tests.case import Case
from tests.lawbook import base, law
from tests.quadrature import RoughDensity, integral, log_spread, rule, spread

NOISES = (0.1, 0.5)
BAR = {torch.float64: 1e-8, torch.float32: 1e-4}
ROUNDINGS = 64  # so many roundings of the image may each be amplified by the map's condition
MASS_BAR = 1e-4
Direction = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


@law
def log_det_is_that_of_the_jacobian(case: Case, dtype: torch.dtype = torch.float64) -> None:
    own = case.tolerance("log_det_is_that_of_the_jacobian")
    bar = max(own, {torch.float64: 1e-8, torch.float32: 2e-3}[dtype])
    for noise in NOISES:
        for dim in (1, 2, 3, 5):
            small = case.at(dim)
            b, c = small.bijector(dtype, noise), small.context(3, dtype=dtype)
            x = (3 * small.x(3, dtype=dtype)).requires_grad_()
            y, log_det = b.forward_and_log_det(x, c)
            matrix = jacobian_rows(y, x).double()
            expected = torch.linalg.slogdet(matrix).logabsdet
            lost = 4 * torch.finfo(dtype).eps * torch.linalg.cond(matrix)
            error = (log_det.detach().double() - expected).abs()
            assert (error <= bar * (1 + expected.abs()) + lost).all(), f"off by {error.max():.1e}"


@law
def inverse_undoes_forward(case: Case, dtype: torch.dtype = torch.float64) -> None:
    """To the bar, relative to each coordinate, unless rounding the image alone does more.

    That is :math:`|J^{-1}| (|y| + |J| |x|)` roundings, coordinate by coordinate. A point that
    rounding leaves less than a digit of cannot be judged, but has to be finite in double precision
    (in single, one too large for the dtype on its way is left out).
    """
    for noise in NOISES:
        for dim in (1, 2, 5, 20):
            some = case.at(dim)
            b, x = some.bijector(dtype, noise), _near_and_far(dim).to(dtype)
            c = some.context(len(x), dtype=dtype)
            for there, back in (
                (b.forward_and_log_det, b.inverse_and_log_det),
                (b.inverse_and_log_det, b.forward_and_log_det),
            ):
                held = _held(there, x, c)
                _come_back(case, there, back, x[held], c if c is None else c[held])


def _held(there: Direction, x: Tensor, c: Tensor | None) -> Tensor:
    """Which points have images that the dtype can hold, with room for what leads to them."""
    twin = getattr(copy.deepcopy(there.__self__).double(), there.__name__)
    with torch.no_grad():
        y, log_det = twin(x.double(), c if c is None else c.double())
    largest = torch.finfo(x.dtype).max ** 0.5
    held = torch.cat([y, log_det.exp()[..., None]], -1).abs() < largest
    return held.all(-1)


def _come_back(case: Case, there: Direction, back: Direction, x: Tensor, c: Tensor | None) -> None:
    bar = max(case.tolerance("inverse_undoes_forward"), BAR[x.dtype])
    y, log_det, slope, amplified = _rounded(there, x, c)
    with torch.no_grad():
        again, back_log_det = back(y, c)
    assert all(v.isfinite().all() for v in (y, log_det))
    if ((again - x).abs() > bar * (1 + x.abs())).any():  # slopes may change in between
        amplified = torch.maximum(amplified, _rounded(there, again, c)[-1])
    may = bar * (1 + x.abs()) + amplified
    known = (may < 0.1 * (1 + x.abs())).all(-1, keepdim=True)
    finite = again.isfinite().all(-1) & back_log_det.isfinite()
    assert (finite | ~known[..., 0]).all() if x.dtype == torch.float32 else finite.all()
    may, again = may[finite], again[finite]
    x, known, slope = x[finite], known[finite], slope[finite]
    log_det, back_log_det = log_det[finite], back_log_det[finite]
    may = torch.where(known, may, torch.inf)
    error = (again - x).abs()
    assert (error <= may).all(), f"off by {(error / (1 + x.abs())).max():.1e}"
    may_log = bar * (1 + log_det.abs()) + (slope.abs() * may).nan_to_num().sum(-1)
    error = (back_log_det + log_det).abs()
    assert (error <= may_log).all(), f"log-determinants differ by {error.max():.1e}"


def _rounded(
    there: Direction, x: Tensor, c: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, log-determinant and its gradient, and what rounding the image does to the point."""
    point, slope = x.clone().requires_grad_(), torch.zeros_like(x)
    y, log_det = there(point, c)
    matrix = jacobian_rows(y, point).double()
    if log_det.requires_grad:
        (slope,) = torch.autograd.grad(log_det.sum(), point, materialize_grads=True)
    y, log_det = y.detach(), log_det.detach()
    size = y.abs().double()[..., None] + matrix.abs() @ x.abs().double()[..., None]
    inverse, info = torch.linalg.inv_ex(matrix)
    inverse[info != 0] = torch.inf  # singular to double precision: nothing can be said
    amplified = (inverse.abs() @ size)[..., 0]
    return y, log_det, slope, ROUNDINGS * torch.finfo(x.dtype).eps * amplified


@law
def gradients_through_the_inverse_are_right(case: Case) -> None:
    """First and second ones, beside finite differences, in the images, context and parameters."""
    small = case.at(2)
    b, y, c = small.bijector(), small.x(2), small.context(2)
    shapes = {f"bijector.{name}": p.shape for name, p in b.named_parameters()}
    flat = torch.cat([p.detach().flatten() for p in b.parameters()] or [y.new_zeros(0)])
    inputs = [v.requires_grad_() for v in (y, flat, *([] if c is None else [c]))]

    def inverse(y: Tensor, flat: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        pairs = zip(shapes.items(), parts, strict=True)
        state = {name: part.view(shape) for (name, shape), part in pairs}
        return torch.func.functional_call(_Inverse(b), state, (y, c))

    assert gradcheck(inverse, inputs, fast_mode=True)
    assert gradgradcheck(inverse, inputs, fast_mode=True)


@law
def density_integrates_to_one(case: Case) -> None:
    """On a grid of the images; where one of this size is too coarse, on one of the points."""
    bar = max(case.tolerance("density_integrates_to_one"), MASS_BAR)
    for noise in NOISES:
        for dim in (1, 2):
            small = case.at(dim)
            b, c = small.bijector(noise=noise), small.context()
            with torch.no_grad():
                draws = b.forward_and_log_det(base(dim).sample((20_000,)), c)[0]
            try:
                mass = _mass(b, c, draws, bar)
            except RoughDensity:
                assert noise > 0.1 or dim > 1, "too rough near the start"
                mass = _mass_by_points(b, c)
            assert abs(mass - 1) <= bar, f"{mass} in {dim} dimensions, noise {noise}"


@torch.no_grad()
def _mass(b: Bijector, c: Tensor | None, draws: Tensor, bar: float) -> float:
    def log_density(y: Tensor) -> Tensor:
        x, log_det = b.inverse_and_log_det(y, c)
        return base(b.dim).log_prob(x) + log_det

    for tolerance in (bar / 10, bar / 100):  # tighter only if the grid may be what is wrong
        mass = integral(log_density, draws, tolerance if b.dim > 1 else tolerance / 100)
        if abs(mass - 1) <= bar:
            break
    return mass


def _mass_by_points(b: Bijector, c: Tensor | None) -> float:
    """With the Jacobian of autograd in place of the log-determinant of the way there."""
    nodes, weights = rule(40, b.dim)
    x = spread(nodes).requires_grad_()
    y = b.forward_and_log_det(x, c)[0]
    by_points = torch.linalg.slogdet(jacobian_rows(y, x)).logabsdet + log_spread(nodes).sum(-1)
    with torch.no_grad():
        again, log_det = b.inverse_and_log_det(y.detach(), c)
        log_density = base(b.dim).log_prob(again) + log_det
        return float(((log_density + by_points).exp() * weights).sum())


class _Inverse(torch.nn.Module):
    """Lets ``functional_call`` reach the inverse."""

    def __init__(self, bijector: Bijector) -> None:
        super().__init__()
        self.bijector = bijector

    def forward(self, y: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.bijector.inverse_and_log_det(y, c)


def _near_and_far(dim: int) -> Tensor:
    """Points within some ten, and far out by hundreds and tens of thousands."""
    far = [1e2, 1e2, 1e4, 1e4]
    signs = torch.randn(len(far), dim).sign()
    return torch.cat([3 * torch.randn(4, dim), torch.tensor(far)[:, None] * signs])
