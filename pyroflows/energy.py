"""An unnormalised log density as a Pyro model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from math import prod

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from .supports import event_of

LogDensityFn = Callable[[Tensor], Tensor]


class FlatMeasure(dist.ImproperUniform):
    """Lebesgue measure on a support: zero log density, no normaliser.

    It differs from :class:`pyro.distributions.ImproperUniform` in two things. Its zeros have the
    dtype and device of the value. And it has a ``sample``, which gives *starting points* (standard
    normal draws carried onto the support), because Pyro runs a model without a guide to learn its
    shapes; they are draws of no posterior.
    """

    _like: Tensor

    @classmethod
    def make(
        cls, support: constraints.Constraint, event_shape: torch.Size, like: Tensor
    ) -> FlatMeasure:
        """A measure over ``event_shape`` whose starting points have the dtype of ``like``."""
        measure = cls(support, (), event_shape)
        measure._like = like
        return measure

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> FlatMeasure:
        new = super().expand(batch_shape, self.__new__(type(self)))
        new._like = self._like
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        batch_shape = value.shape[: value.dim() - self.event_dim]
        return value.new_zeros(()).expand(torch.broadcast_shapes(batch_shape, self.batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            to_support = biject_to(self.support)
            shape = to_support.inverse_shape(self._extended_shape(torch.Size(sample_shape)))
            noise = torch.randn(shape, dtype=self._like.dtype, device=self._like.device)
            return to_support(noise)


class EnergyModel:
    r"""A Pyro model with one latent ``x`` whose density is :math:`\exp f(x)` up to a constant.

    Made by :func:`energy_model`, which checks its arguments. The instance is the model: it takes
    no arguments and returns ``x``.

    Attributes:
        function: The callable :math:`f` that was given.
        name: The name of the latent site.
        support: Where ``x`` lives; its event covers all of ``event_shape``.
        event_shape: The shape of one point.
        evaluation: ``"batched"`` (one call a batch), ``"vmap"`` or ``"loop"``.
    """

    def __init__(
        self,
        function: LogDensityFn,
        event_shape: torch.Size,
        support: constraints.Constraint,
        evaluation: str,
        name: str,
        like: Tensor,
    ) -> None:
        self.function = function
        self.event_shape = event_shape
        self.support = support
        self.evaluation = evaluation
        self.name = name
        self._like = like

    def log_density(self, x: Tensor) -> Tensor:
        """The log density of points ``(*batch, *event_shape)``, shape ``(*batch)``."""
        batch_shape = x.shape[: x.dim() - len(self.event_shape)]
        points = x.reshape(prod(batch_shape), *self.event_shape)
        if not len(points):
            return x.new_zeros(batch_shape)
        return _EVALUATIONS[self.evaluation](self.function, points).reshape(batch_shape)

    def __call__(self) -> Tensor:
        measure = FlatMeasure.make(self.support, self.event_shape, self._like)
        x = pyro.sample(self.name, measure)
        pyro.factor(f"{self.name}_log_density", self.log_density(x))
        return x

    def __repr__(self) -> str:
        function = getattr(self.function, "__name__", type(self.function).__name__)
        return (
            f"EnergyModel({function}, event_shape={tuple(self.event_shape)}, "
            f"support={self.support}, evaluation={self.evaluation!r}, name={self.name!r})"
        )


def energy_model(
    log_density: LogDensityFn,
    dim: int | None = None,
    *,
    support: constraints.Constraint | None = None,
    batched: bool | str = "auto",
    name: str = "x",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> EnergyModel:
    r"""Make a Pyro model of an unnormalised log density, so that a guide can be fitted to it.

    The model has one latent site, :math:`x`, with density

    .. math:: p(x) = \exp f(x) / Z, \qquad Z = \int_{\text{support}} \exp f(x)\, dx,

    where :math:`dx` is Lebesgue measure on the coordinates of ``x`` itself: for a bounded support
    no Jacobian is to be added to ``log_density``.

    The callable is tried once, at random points, when the model is made. One that takes a batch
    must give each row its own value, and no row a gradient from another; one that takes a single
    point is applied to batches by :func:`torch.func.vmap`, or, where that is impossible, point by
    point with a warning. Values of ``-inf`` (outside of a region, say) are fine.

    Args:
        log_density: The function :math:`f`, ``(n, dim) -> (n,)`` or ``(dim,) -> ()``. It must be
            differentiable by autograd.
        dim: The number of coordinates. Needed unless ``support`` tells it (bounds that are
            tensors, :class:`~torch.distributions.constraints.stack`, ``cat``). For a support on
            square matrices, such as ``corr_cholesky``, the number of rows.
        support: Any constraint that :func:`torch.distributions.biject_to` knows; everywhere if
            not given. A constraint on scalars, such as ``constraints.positive``, holds for each
            coordinate.
        batched: ``True`` or ``False`` say which kind ``log_density`` is; ``"auto"`` finds out.
        name: The name of the latent site.
        dtype: Of the starting points; torch's default if not given.
        device: Of the starting points; torch's default if not given.

    Returns:
        A model without arguments, picklable if ``log_density`` is.

    Raises:
        ValueError: If the shape, the values or the gradients of ``log_density`` are not those of
            a log density, or the arguments contradict each other.
        TypeError: If an argument, or what ``log_density`` returns, is of the wrong type.

    Example:
        >>> import torch, pyroflows as pf
        >>> def ring(x):
        ...     return -((x.square().sum(-1) - 4) ** 2)
        >>> pf.energy_model(ring, dim=2).evaluation
        'batched'
    """
    _check_arguments(log_density, dim, support, batched)
    like = torch.zeros((), dtype=dtype, device=device)
    if not like.is_floating_point():
        raise ValueError(f"energy_model: expected a floating dtype, got {dtype}.")
    support, event_shape = event_of(support, dim, "energy_model")
    measure = FlatMeasure.make(support, event_shape, like)
    with _forked_rng(like.device):
        batches = [x.requires_grad_() for x in _probe_batches(measure)]
        evaluation = _find_evaluation(log_density, batches, batched)
        model = EnergyModel(log_density, event_shape, support, evaluation, name, like)
        _check_values(model, batches)
    return model


def _check_arguments(log_density: object, dim: object, support: object, batched: object) -> None:
    if not callable(log_density):
        raise TypeError(
            f"energy_model: expected a callable log_density, got {type(log_density).__name__}."
        )
    if support is not None and not isinstance(support, constraints.Constraint):
        raise TypeError(
            "energy_model: expected support to be a constraint of torch.distributions, "
            f"got {type(support).__name__}."
        )
    if batched not in (True, False, "auto"):
        raise ValueError(f"energy_model: expected batched True, False or 'auto', got {batched!r}.")
    if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool)):
        raise TypeError(f"energy_model: expected dim to be an int, got {type(dim).__name__}.")
    if dim is not None and dim < 1:
        raise ValueError(f"energy_model: expected dim >= 1, got {dim}.")


def _forked_rng(device: torch.device) -> AbstractContextManager:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _seed(seed: int, device: torch.device) -> None:
    """Seeds the generators that :func:`_forked_rng` puts back, and no other."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _probe_batches(measure: FlatMeasure) -> list[Tensor]:
    """Two batches whose lengths can be taken neither for a size of the event nor for one point."""
    sizes = [n for n in (2, 3, 4) if n not in measure.event_shape][:2]
    _seed(0, measure._like.device)
    return [measure.sample((n,)) for n in sizes]


def _find_evaluation(function: LogDensityFn, batches: list[Tensor], batched: bool | str) -> str:
    """How ``function`` is evaluated on a batch: ``"batched"``, ``"vmap"`` or ``"loop"``."""
    point = batches[0][0]
    on_batches = "was not asked" if batched is False else _try_batches(function, batches)
    if not on_batches:
        return "batched"
    on_point = "was not asked" if batched is True else _try(function, point, ())[1]
    if on_point or _MIXING in on_batches:
        raise ValueError(
            f"energy_model: log_density is not a log density of points of shape "
            f"{tuple(point.shape)}. For batches of them it {on_batches}; for one point it "
            f"{on_point or 'did as expected'}. Expected (n, *event) -> (n,) for a batch or "
            f"(*event) -> () for one point, differentiable, event = {tuple(point.shape)}."
            + _hint(on_batches + on_point)
        )
    return "vmap" if _vmap_works(function, batches) else "loop"


_MIXING = "mixed its rows"
_NO_GRADIENT = "returned a tensor without gradient"


def _hint(complaints: str) -> str:
    if _MIXING in complaints:
        return " If it is meant for one point, say batched=False."
    if _NO_GRADIENT in complaints:
        return (
            " Compute it with torch alone, without .detach(), .item(), numpy or torch.no_grad(); "
            "a constant can be written 0 * x.sum(-1)."
        )
    return " Sum over the coordinates, as in .sum(-1), and leave no dimension of size 1 behind."


def _try(function: LogDensityFn, x: Tensor, shape: tuple[int, ...]) -> tuple[Tensor | None, str]:
    """The value, or else what is wrong with it; every call starts from the same random state."""
    _seed(1, x.device)
    try:
        with torch.enable_grad():
            value = function(x)
    except Exception as error:  # a user's function may raise anything; it is told, not hidden
        return None, f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not isinstance(value, Tensor):
        return None, f"returned a {type(value).__name__}, not a tensor"
    if value.shape != shape:
        return None, f"returned shape {tuple(value.shape)} where {shape} was due"
    if not value.is_floating_point():
        return None, f"returned {value.dtype}, not a floating dtype"
    return (value, "") if value.requires_grad or not x.requires_grad else (None, _NO_GRADIENT)


def _try_batches(function: LogDensityFn, batches: list[Tensor]) -> str:
    """What is wrong with ``function`` as one of batches; empty if nothing is."""
    for x in batches:
        value, complaint = _try(function, x, (len(x),))
        if value is None:
            return complaint
        for i in range(len(x)):
            complaint = _row_complaint(function, x, value, i)
            if complaint:
                return complaint
    return ""


def _row_complaint(function: LogDensityFn, x: Tensor, value: Tensor, i: int) -> str:
    """Row ``i`` must have the value that it has alone, and a gradient in itself alone."""
    row = x[i : i + 1]
    alone, complaint = _try(function, row, (1,))
    if alone is None:
        alone, complaint = _try(function, row, ())  # a batch of one that was squeezed will do
    if alone is None:
        return f"{complaint} for a batch of one"
    grad = _grad(value[i], x, retain_graph=True)
    others = torch.cat([grad[:i], grad[i + 1 :]]).nan_to_num(0.0)
    if not _close(value[i], alone.reshape(())):
        return f"{_MIXING}: one has another value alone ({alone.item():.6g}, not {value[i]:.6g})"
    if others.any():
        return f"{_MIXING}: the value of one has a gradient in another"
    return ""


def _grad(value: Tensor, x: Tensor, retain_graph: bool = False) -> Tensor:
    return torch.autograd.grad(value, x, retain_graph=retain_graph, materialize_grads=True)[0]


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = torch.finfo(a.dtype).eps ** 0.5
    return torch.allclose(a, b.to(a.dtype), rtol=tolerance, atol=tolerance, equal_nan=True)


def _vmap_works(function: LogDensityFn, batches: list[Tensor]) -> bool:
    """Whether :func:`torch.func.vmap` agrees with a loop, in value and gradient."""
    for x in batches:
        expected, _ = _try(lambda x: _looped(function, x), x, (len(x),))
        got, complaint = _try(lambda x: _vmapped(function, x), x, (len(x),))
        if got is None or expected is None:
            break
        grads = [_grad(value.sum(), x) for value in (got, expected)]
        if not (_close(got, expected) and _close(*grads)):
            complaint = "gave another value or gradient than a loop"
            break
    else:
        return True
    warnings.warn(
        "energy_model: log_density is evaluated point by point, which is slow, because "
        f"torch.func.vmap {complaint}. Write it for batches, (n, *event) -> (n,), to speed it up.",
        stacklevel=4,
    )
    return False


def _check_values(model: EnergyModel, batches: list[Tensor]) -> None:
    """A log density may be ``-inf`` here and there, but needs a value and a gradient somewhere."""
    values = [model.log_density(x) for x in batches]
    grads = [_grad(v.sum(), x) for v, x in zip(values, batches, strict=True)]
    grad_is_nan = torch.cat(grads).isnan().flatten(1).any(1)
    value = torch.cat(values)
    where = "at each of the points tried (standard normal ones, carried onto the support)"
    if value.isnan().all():
        raise ValueError(f"energy_model: log_density is NaN {where}; give its support, or mend it.")
    if value.isfinite().any() and (grad_is_nan | ~value.isfinite()).all():
        raise ValueError(f"energy_model: the gradient of log_density is NaN {where}.")
    if (value == -torch.inf).all():
        warnings.warn(
            f"energy_model: log_density is -inf {where}, so a guide may find no way to the mass. "
            "Give support= if the density lives on a bounded region.",
            stacklevel=3,
        )


def _vmapped(function: LogDensityFn, x: Tensor) -> Tensor:
    return torch.func.vmap(function, randomness="same")(x)


def _looped(function: LogDensityFn, x: Tensor) -> Tensor:
    return torch.stack([function(point) for point in x])


_EVALUATIONS = {"batched": lambda function, x: function(x), "vmap": _vmapped, "loop": _looped}
