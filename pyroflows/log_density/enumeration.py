"""Discrete sites, summed out exactly; under ``vmap`` too."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from .structure import StructureError

__all__ = ["ShapeEnumMessenger", "sum_out"]


class _ShapeOf:
    """Stands in for a value where only its shape is asked for: ``vmap`` has no ``.data``."""

    def __init__(self, value: Tensor) -> None:
        self.shape = value.shape

    @property
    def data(self) -> _ShapeOf:
        return self

    def dim(self) -> int:
        return len(self.shape)


class ShapeEnumMessenger(EnumMessenger):
    """Pyro's enumeration, which also runs under ``vmap``."""

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        if isinstance(value, Tensor):
            msg["value"] = _ShapeOf(value)
        try:
            super()._pyro_post_sample(msg)
        finally:
            msg["value"] = value


class _PlainLogRing(LogRing):
    _backend = f"{__package__}._log_einsum"


def sum_out(
    trace: poutine.Trace, particles: str | None = None, num_particles: int = 1
) -> tuple[set[str], Tensor]:
    r"""Sum the enumerated sites out of a trace.

    As in ``TraceEnum_ELBO``, masks are inside of the sum, and the scale of a subsampled plate or
    ``poutine.scale``, which all sites of the sum must share, is outside:
    :math:`c \log \sum_k p(k) p(x | k)`.

    Args:
        trace: A trace with its log densities computed.
        particles: Name of the plate to keep, if there is one.
        num_particles: Size of that plate.

    Returns:
        The names of the sites that took part, and the log of the sum, of shape ``()``, or
        ``(num_particles)`` with a plate.

    Raises:
        StructureError: If the sites of the sum have several scales.
    """
    trace.pack_tensors()
    symbols = trace.plate_to_symbol
    summed = set(trace.symbol_to_dim) - set(symbols.values())
    factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    scales: dict[str, Any] = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        is_enumerated = site["infer"].get("_enumerate_dim") is not None
        if not is_enumerated and summed.isdisjoint(site["packed"]["log_prob"]._pyro_dims):
            continue
        scales[name] = site["scale"]
        plates = frozenset(symbols[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        term = site["packed"]["unscaled_log_prob"]
        if not is_enumerated:
            term = packed.scale_and_mask(term, mask=site["packed"]["mask"])
        factors.setdefault(plates, []).append(term)
    target = frozenset(symbols[name] for name in (particles,) if name in symbols)
    ring = _PlainLogRing(dim_to_size=dict.fromkeys(target, num_particles))
    total = contract_to_tensor(factors, summed, target_ordinal=target, ring=ring)
    scale = _common(scales)
    return set(scales), total if scale is None else total * scale


def _common(scales: dict[str, Any]) -> Any:
    """The one scale of all sites; ``None`` for one."""
    values = list(scales.values())
    first = values[0]
    if any(not _same(value, first) for value in values):
        raise StructureError(
            f"Sites {list(scales)} depend on enumerated discrete sites and have different scales "
            "(poutine.scale or a subsampled plate), so that no scale of their sum is right. Scale "
            "all of them alike: put the discrete sites into the plate that is subsampled, or sum "
            "them out by hand (MixtureSameFamily, for instance)."
        )
    if isinstance(first, Tensor) and first.dim():
        raise StructureError(
            f"Sites {list(scales)} depend on enumerated discrete sites and have a scale of shape "
            f"{tuple(first.shape)}: their sum can have a scalar scale only."
        )
    return None if not isinstance(first, Tensor) and first == 1 else first


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and torch.equal(a, b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        tensor, number = (a, b) if isinstance(a, Tensor) else (b, a)
        return bool((tensor == number).all())
    return a == b
