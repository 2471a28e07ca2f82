"""Cases of structures: autoregressive layers by number of passes and by graph."""

from functools import partial

import torch

from pyroflows import Bijector, build_flow
from pyroflows.bijectors import Autoregressive
from pyroflows.transformers import RationalQuadraticSpline
from tests.case import HIDDEN

SPLINE = RationalQuadraticSpline(num_bins=4, bound=3.0)


def chain(dim: int, context_dim: int = 0, *, partly: bool = False) -> torch.Tensor:
    """Each coordinate sees the one after it, the first the last but one too.

    Of the context, if ``partly``, the odd ones see the first entry and the even ones the others.
    """
    matrix = torch.ones(dim, dim, dtype=torch.bool, device="cpu")
    matrix = matrix.triu(1) & ~matrix.triu(2)
    if dim > 2:
        matrix[0, dim - 2] = True
    if not partly or not context_dim:
        return matrix
    odd = (torch.arange(dim, device="cpu") % 2 == 1)[:, None]
    first = torch.arange(context_dim, device="cpu") == 0
    return torch.cat([matrix, odd == first], dim=1)


def wide(dim: int) -> tuple[int, int]:
    """Units enough for each set of a graph of so many coordinates."""
    return (max(dim, HIDDEN[0]), max(dim, HIDDEN[1]))


def _graph(dim: int, *, context_dim: int = 0, partly: bool = False, **options) -> Bijector:
    return Autoregressive(
        dim,
        context_dim=context_dim,
        adjacency=chain(dim, context_dim, partly=partly),
        hidden_dims=wide(dim),
        **options,
    )


def _passes(dim: int, *, context_dim: int = 0, num_passes: int, **options) -> Bijector:
    order = [*range(1, dim), 0]
    return Autoregressive(
        dim, context_dim=context_dim, order=order, num_passes=num_passes, **options
    )


def builders() -> dict:
    deep = {"activation": "tanh", "residual": True}
    return {
        "autoregressive-passes-2": partial(
            _passes, num_passes=2, hidden_dims=HIDDEN, transformer=SPLINE
        ),
        "autoregressive-passes-deep": partial(
            _passes, num_passes=2, hidden_dims=(*HIDDEN, 8), **deep
        ),
        "autoregressive-graph": partial(_graph, transformer=SPLINE),
        "autoregressive-graph-residual": partial(_graph, **deep),
        "autoregressive-graph-context": partial(_graph, partly=True),
        "flow:triangular": partial(
            build_flow,
            "triangular",
            hidden_dims=HIDDEN,
            num_bins=4,
            bound=3.0,
            activation="tanh",
        ),
    }


EXCEPT = {
    "every_moved_coordinate_depends_on_the_whole_context": {
        "autoregressive-graph-context": "its graph gives each coordinate a part of the context",
    },
}
