"""Block autoregressive networks."""

from functools import partial

from pyroflows import build_flow
from pyroflows.bijectors import BlockAutoregressive
from tests.case import SEARCH

EXCEPT = {"inverse_is_one_graph": dict.fromkeys(("block_autoregressive", "flow:bnaf"), SEARCH)}


def builders():
    sizes = {"hidden_dims": (4, 3)}
    return {
        "block_autoregressive": partial(BlockAutoregressive, context_hidden_dims=(8, 8), **sizes),
        "flow:bnaf": partial(build_flow, "bnaf", num_layers=2, hidden_dims=(3,)),
    }
