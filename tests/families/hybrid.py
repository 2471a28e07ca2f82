"""A flow of several kinds of layers, and parts that can be left out."""

from functools import partial

from pyroflows import Bijector
from pyroflows.bijectors import Coupling, Dormant, Elementwise
from pyroflows.flows import hybrid
from pyroflows.transformers import Affine
from tests.case import HIDDEN


def _dormant(dim: int, *, context_dim: int = 0, awake: bool) -> Bijector:
    part = Dormant(Coupling(dim, context_dim=context_dim, hidden_dims=HIDDEN))
    part.awake = awake
    return part


def builders() -> dict:
    return {
        "dormant-awake": partial(_dormant, awake=True),
        "elementwise-sharp": partial(Elementwise, transformer=Affine(3.0, sharpness=4)),
        "flow:hybrid": partial(hybrid, num_layers=4, hidden_dims=HIDDEN, num_bins=4, bound=3.0),
    }
