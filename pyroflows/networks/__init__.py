"""Conditioners: networks that produce the raw parameters of a bijector."""

from .chain import Activation as Activation
from .conditioner import Conditioner
from .masked import MaskedConditioner

__all__ = ["Conditioner", "MaskedConditioner"]
