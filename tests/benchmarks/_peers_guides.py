"""What else one would fit, at the wall time that our fit took: guides of Pyro, a flow of zuko.

Pyro's ``AutoMultivariateNormal``, and its ``AutoNormalizingFlow`` of two layers of
``spline_autoregressive`` at their defaults, run under ``SVI``; zuko's neural spline flow, inverted
so that it draws in one pass, under a loop by hand on the model's unconstrained log density. Each
takes 256 draws a step and Adam at 0.01. Their draws are scored as ours are.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pyro
import torch

from pyroflows.psis import smooth_log_weights
from tests.benchmarks._common import CHUNK, Judged, default_dtype, weigh
from tests.benchmarks._peers_fit import CapError, Draw, pyro_svi, zuko
from tests.benchmarks._peers_targets import Posterior
from tests.benchmarks._peers_worker import problem

__all__ = ["PEERS", "add_peers_option", "judge_peers"]

_RATE = 1e-2
PEERS: dict[str, Callable[[Posterior, Deadline], object]] = {
    "pyro normal": partial(pyro_svi, guide="normal", rate=_RATE),
    "pyro flow": partial(pyro_svi, guide="iterated", rate=_RATE),
    "zuko": partial(zuko, rate=_RATE),
}


def add_peers_option(parser: argparse.ArgumentParser) -> None:
    words = f"fit {', '.join(PEERS)} beside each of ours, for as long as it took"
    parser.add_argument("--peers", action="store_true", help=words)


@dataclass
class Deadline:
    """Ends a fit when its time is up, and counts its steps.

    Args:
        allowed: Seconds.
        draw: Makes draws of what is fitted; set by the fit.
    """

    allowed: float
    draw: Draw | None = None
    steps: int = 0
    started: float = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def look(self) -> None:
        """Called after each step; raises :class:`CapError` at the end."""
        self.steps += 1
        if self.seconds > self.allowed:
            raise CapError


def judge_peers(
    ours: Judged,
    model: Callable,
    *,
    model_args: tuple = (),
    num_samples: int = 10_000,
    seed: int = 0,
) -> Iterator[tuple[str, Judged]]:
    """Fit each peer for as long as our fit took; a peer that is not installed is named."""
    guide = ours.fit.guide
    density = guide.log_density(*model_args)
    posterior = Posterior(guide.latent_dim, math.nan, partial(model, *model_args), density)
    with torch.no_grad():
        dtype = guide.get_posterior().rsample().dtype
    for name in PEERS:
        try:
            with default_dtype(dtype), pyro.validation_enabled(False), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a loss that is NaN, at each step: the row says
                judged = _judge(name, ours, posterior, num_samples, seed)
        except ImportError as error:
            print(f"left out: {name}: {problem(error)}")
        else:
            yield name, judged


def _judge(name: str, ours: Judged, posterior: Posterior, num_samples: int, seed: int) -> Judged:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    deadline, failed = Deadline(ours.seconds), None
    try:
        PEERS[name](posterior, deadline)
    except ImportError:
        raise
    except Exception as error:  # whatever ends a peer's fit is its result
        failed = problem(error)
    seconds = deadline.seconds
    nothing = torch.full((1, posterior.dim), math.nan), torch.zeros(1)
    draw = deadline.draw if deadline.steps else lambda n: nothing
    weighed = weigh(posterior.log_density, draw, num_samples)
    if math.isnan(weighed["elbo"]):
        failed = failed or "draws are not numbers"
    draws = ours.fit.guide.unpack(weighed.pop("u"))
    smoothed, shape = smooth_log_weights(weighed.pop("log_weights")[:CHUNK])
    weights = smoothed.softmax(0)
    ess = 1 / (weights.square().sum() * len(weights)).item()
    said = {"ess": ess, "pareto_k": shape, "verdict": "failed" if failed else "-"}
    made = {"seconds": seconds, "steps": deadline.steps, "problem": failed}
    return Judged(ours.fit, draws, verdict=said, **made, **weighed)
