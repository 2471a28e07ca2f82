"""The log density of a Pyro model on unconstrained coordinates, for a batch of points at once."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from .latents import Latents, constraint_tensors

__all__ = ["LogDensity", "StructureError"]

_PARTICLES = "_particles"


class StructureError(ValueError):
    """The model's latents are not what they were when the guide was made."""


class LogDensity:
    r"""The function :math:`u \mapsto \log p(x, z(u)) + \log |\partial z / \partial u|`.

    A batch of points is evaluated in one run of the model inside one more, outermost plate. That
    is right only for models that broadcast, so the first call compares value and gradient with
    runs of one point at a time, at distinct points; a model that fails is run point by point from
    then on, with a warning. Discrete sites that are enumerated are summed out exactly.

    Args:
        model: A Pyro model.
        latents: Its latents.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.

    Attributes:
        vectorized: Whether batches take one run; ``None`` until it has been checked.
        subsampled: Whether the latest run showed only a part of some plate, so that the density is
            an estimate.
    """

    def __init__(
        self,
        model: Callable,
        latents: Latents,
        model_args: tuple = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.latents = latents
        self.model_args = tuple(model_args)
        self.model_kwargs = dict(model_kwargs or {})
        self.vectorized: bool | None = None
        self.subsampled = False

    def __call__(self, u: Tensor) -> Tensor:
        """Return the log density of each point.

        Args:
            u: Unconstrained points, shape ``(K, D)``.

        Returns:
            Log densities, shape ``(K)``, differentiable in ``u`` and the model's parameters.
        """
        if self.vectorized is None and len(u) > 1:
            self.check(u.detach()[:3])
        # Extreme points may make parameters invalid: they get NaN, not an exception.
        with pyro.validation_enabled(False):
            # A particle plate of size one is squeezed away where discrete sites are summed out.
            together = self.vectorized and not (self.latents.enumerated and len(u) == 1)
            return self._together(u) if together else self._one_by_one(u)

    def check(self, points: Tensor) -> bool:
        """Compare one vectorized run with one run per point, in value and gradient.

        Args:
            points: At least two distinct points, shape ``(K, D)``.

        Returns:
            Whether the model may be vectorized. Points of infinite density decide nothing.
        """
        seed = int(torch.randint(2**31, (), device="cpu"))
        with pyro.validation_enabled(False):
            return self._compare(points, seed)

    def _compare(self, points: Tensor, seed: int) -> bool:
        expected = _value_and_grad(self._one_by_one, points, seed)
        if not torch.isfinite(expected[0]).any():
            return False
        try:
            got = _value_and_grad(self._together, points, seed)
        except StructureError:
            raise
        except Exception as error:  # any failure of a model under the extra plate means the same
            return self._give_up(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
        eps = torch.finfo(points.dtype).eps  # data may be more precise than the points
        if not all(_agree(g, e, eps) for g, e in zip(got, expected, strict=True)):
            return self._give_up("values or gradients differ")
        self.vectorized = True
        return True

    def _give_up(self, reason: str) -> bool:
        self.vectorized = False
        warnings.warn(
            "The model does not broadcast over an outer plate, so draws are evaluated one by one, "
            f"which is slower ({reason}). Write event dimensions to the right of plates and sum "
            "only over event dimensions to have it vectorized.",
            stacklevel=2,
        )
        return False

    def _together(self, u: Tensor) -> Tensor:
        nesting = self.latents.max_plate_nesting
        values, log_det = self.latents.constrain(u, pad_plates=True)
        with pyro.plate(_PARTICLES, len(u), dim=-nesting - 1):
            trace = self._trace(values, first_available_dim=-nesting - 2)
        if self.latents.enumerated:
            return log_det + _sum_out(trace)
        total = log_det
        for site in trace.nodes.values():
            if site["type"] == "sample":
                total = total + _per_particle(site, len(u), nesting)
        return total

    def _one_by_one(self, u: Tensor) -> Tensor:
        return torch.stack([self._single(row) for row in u]) if len(u) else u.new_zeros(0)

    def _single(self, u: Tensor) -> Tensor:
        values, log_det = self.latents.constrain(u)
        trace = self._trace(values, first_available_dim=-self.latents.max_plate_nesting - 1)
        if self.latents.enumerated:
            return log_det + _sum_out(trace)
        return log_det + trace.log_prob_sum()

    def _trace(self, values: dict[str, Tensor], first_available_dim: int) -> poutine.Trace:
        model = poutine.condition(self.model, data=values)
        if self.latents.enumerated:
            model = poutine.enum(model, first_available_dim=first_available_dim)
        trace = poutine.trace(model).get_trace(*self.model_args, **self.model_kwargs)
        self.subsampled = any(map(_is_part, trace.nodes.values()))
        trace = prune_subsample_sites(trace)
        self._check_structure(trace)
        if self.latents.enumerated:
            _refuse_scales(trace)
        trace.compute_log_prob()
        return trace

    def _check_structure(self, trace: poutine.Trace) -> None:
        """The sites that were conditioned must be all the latents there are."""
        gone = [name for name in self.latents.sites if name not in trace.nodes]
        new = [
            name
            for name, site in trace.nodes.items()
            if site["type"] == "sample"
            and not site["is_observed"]
            and name not in self.latents.enumerated
        ]
        if gone or new:
            raise StructureError(
                "The structure of the model changed between calls: latents that vanished "
                f"{gone}, latents that appeared {new}. A guide needs the same latents at every "
                "call: make branches depend on data only, and build a new guide for other data."
            )
        for name, site in self.latents.sites.items():
            fn = trace.nodes[name]["fn"]
            shape = tuple(fn.shape())
            if shape[len(shape) - len(site.shape) :] != tuple(site.shape):
                raise StructureError(
                    f"Site {name!r} has shape {shape}, but had {tuple(site.shape)} when the guide "
                    "was made: build a new guide for data of another size."
                )
            _check_support(name, fn.support, site.support)


def _is_part(site: dict[str, Any]) -> bool:
    """Whether a site draws which part of a plate is shown."""
    return site_is_subsample(site) and len(site["value"]) < site["fn"].size


def _check_support(name: str, now: Any, then: Any) -> None:
    if type(now) is not type(then):
        raise StructureError(
            f"Site {name!r} now has support {now}, and had {then} when the guide was made."
        )
    for a, b in zip(constraint_tensors(now), constraint_tensors(then), strict=False):
        if not torch.allclose(a.to(b), b):
            raise StructureError(
                f"The support of site {name!r} changes with the other latents or between calls. "
                "Write it with fixed bounds, for instance as a fraction of a unit interval."
            )


def _per_particle(site: dict, num_particles: int, nesting: int) -> Tensor:
    log_prob = site["log_prob"]
    if log_prob.dim() != nesting + 1 or log_prob.shape[0] != num_particles:
        raise RuntimeError(f"site {site['name']!r} has log_prob of shape {tuple(log_prob.shape)}")
    return log_prob.reshape(num_particles, -1).sum(-1)


def _refuse_scales(trace: poutine.Trace) -> None:
    """A scale belongs outside of the sum over a discrete site, where this sum has it inside."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not _is_one(site["scale"]):
            raise StructureError(
                f"Site {name!r} is scaled (by poutine.scale or a subsampled plate) in a model with "
                "enumerated discrete sites, whose sum is not right under a scale. Show all of the "
                "data, or sum the discrete sites out by hand (MixtureSameFamily, for instance)."
            )


def _is_one(scale: float | Tensor) -> bool:
    return bool((torch.as_tensor(scale) == 1).all())


def _sum_out(trace: poutine.Trace) -> Tensor:
    """The log density of a trace with its enumerated sites summed out, one value per particle."""
    trace.pack_tensors()
    symbols = trace.plate_to_symbol
    factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    for site in trace.nodes.values():
        if site["type"] == "sample":
            plates = (f.name for f in site["cond_indep_stack"] if f.vectorized)
            ordinal = frozenset(symbols[name] for name in plates)
            factors.setdefault(ordinal, []).append(site["packed"]["log_prob"])
    summed = set(trace.symbol_to_dim) - set(symbols.values())
    target = frozenset(symbols[name] for name in (_PARTICLES,) if name in symbols)
    return contract_to_tensor(factors, summed, target_ordinal=target)


def _value_and_grad(fn: Callable, points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Value and gradient under a fixed seed, so that subsampled data are the same each time."""
    devices = [points.device] if points.is_cuda else []
    with torch.random.fork_rng(devices), torch.enable_grad(), poutine.block():
        if fn.__name__ == "_one_by_one":
            rows = []
            for row in points:
                torch.manual_seed(seed)
                rows.append(_differentiate(fn, row[None]))
            values, grads = zip(*rows, strict=True)
            return torch.cat(values), torch.cat(grads)
        torch.manual_seed(seed)
        return _differentiate(fn, points)


def _differentiate(fn: Callable, points: Tensor) -> tuple[Tensor, Tensor]:
    points = points.detach().requires_grad_()
    values = fn(points)
    if not values.requires_grad:
        raise ValueError(
            "The log density of the model has no gradient with respect to its latents: it was "
            "detached or computed outside torch. Write it with torch operations only."
        )
    (grads,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), grads


def _agree(got: Tensor, expected: Tensor, eps: float) -> bool:
    if got.shape != expected.shape:
        return False
    finite = torch.isfinite(expected)
    if not torch.equal(torch.isfinite(got), finite):
        return False
    # Rounding grows with the size of what was summed, so each point has its own scale.
    size = torch.where(finite, expected.abs(), 0).reshape(len(expected), -1).amax(-1)
    size = size.reshape(-1, *[1] * (expected.dim() - 1)).expand_as(expected)
    tolerance = 1e3 * max(eps, torch.finfo(got.dtype).eps) * (1 + size)
    return bool(((got - expected).abs() <= tolerance)[finite].all())
