"""Conditioners: networks that produce the raw parameters of a bijector."""

from .chain import Activation as Activation
from .chain import Chain as Chain
from .conditioner import Conditioner
from .graph import Adjacency as Adjacency
from .hermite import Hermite
from .masked import MaskedConditioner
from .own import Network as Network
from .separate import SeparateConditioner

__all__ = ["Conditioner", "Hermite", "MaskedConditioner", "SeparateConditioner"]
