"""Seeds that leave the caller's generators alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import pyro
import torch

__all__ = ["seeded"]


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from a seed and leave every generator of the caller as it was; None draws on."""
    if seed is None:
        yield
        return
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002, what Pyro seeds
    try:
        with torch.random.fork_rng(devices=list(devices)):
            pyro.set_rng_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
