"""Skewness and heavy tails."""

from functools import partial

from pyroflows.bijectors import Autoregressive, Coupling, Elementwise
from pyroflows.transformers import SinhArcsinh, TailTransform
from tests.case import HIDDEN


def builders():
    transformers = {"sinh_arcsinh": SinhArcsinh(), "tail_transform": TailTransform(threshold=0.5)}
    return {
        f"{structure.__name__.lower()}-{name}": partial(
            structure, transformer=transformer, hidden_dims=HIDDEN
        )
        for structure in (Elementwise, Coupling, Autoregressive)
        for name, transformer in transformers.items()
    }
