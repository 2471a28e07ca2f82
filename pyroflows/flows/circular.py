"""Flows of angles."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from ..bijector import Bijector, Compose
from ..networks import Activation
from ..transformers import ByIndex, CircularSpline, RationalQuadraticSpline, Transformer
from .layers import autoregressions
from .registry import register_flow

__all__ = ["ncsf"]


@register_flow("ncsf")
def ncsf(
    dim: int,
    *,
    context_dim: int = 0,
    circular: Sequence[int] | None = None,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    num_bins: int = 8,
    bound: float = 8.0,
    activation: Activation = "relu",
) -> Bijector:
    """An ``nsf`` of angles in ``circular``, all if not given: splines on the circle, and shifts."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    transformer = _by_index(dim, circular, num_bins, bound)
    return Compose(*autoregressions(dim, context_dim, num_layers, transformer, network))


def _by_index(dim: int, circular: Sequence[int] | None, num_bins: int, bound: float) -> Transformer:
    angles, line = CircularSpline(num_bins), RationalQuadraticSpline(num_bins, bound)
    if circular is None:
        return angles
    chosen = [_index(i, dim) for i in circular]
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(dim)):
        raise ValueError(
            f"ncsf expected circular to be indices out of 0..{dim - 1}, each at most once, got "
            f"{chosen}."
        )
    others = [i for i in range(dim) if i not in chosen]
    if not others:
        return angles
    return ByIndex([(angles, chosen), (line, others)]) if chosen else line


def _index(value: object, dim: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"ncsf expected circular to be indices out of 0..{dim - 1}, got {value!r}: count the "
            "coordinates, along the latents in the order of the model."
        ) from None
