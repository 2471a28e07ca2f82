"""What each registered flow is and costs: the table of the README, of the docs, of the shell.

What a flow costs is counted, not declared: the passes through its conditioner networks that one
draw with its density, and the density of one given point, take in arithmetic. Where a network is
not run as a whole, it is run coordinate by coordinate.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..bijector import Bijector
from ..bijectors import BlockAutoregressive, Continuous, Residual
from ..networks import Conditioner, MaskedConditioner
from . import registry

__all__ = ["FlowCost", "flow_costs", "summary_of"]

_DIM = 7  # no other count in a small flow is 7


class FlowCost(NamedTuple):
    """A registered flow, in words."""

    name: str
    summary: str
    sample: str
    score: str


def flow_costs() -> list[FlowCost]:
    """Count what a draw and a score of each registered flow take."""
    return [_counted(name) for name in registry.available_flows()]


def _counted(name: str) -> FlowCost:
    try:
        with torch.random.fork_rng(devices=[]):
            flow = registry.build_flow(name, _DIM)
    except ImportError as error:  # of what an extra brings
        return FlowCost(name, summary_of(name), str(error), "")
    runs = (flow.forward_and_log_det, flow.inverse_and_log_det)
    return FlowCost(name, summary_of(name), *(_cost(flow, run, _searches(run)) for run in runs))


def summary_of(name: str) -> str:
    """The first sentence of the recipe's docstring."""
    text = (inspect.getdoc(registry._FLOWS[name]) or "").split("\n\n")[0]
    return " ".join(text.split()).rstrip(".")


@contextmanager
def _solvers(watched: Callable) -> Iterator[None]:
    """Call each solver that looks for a result by way of ``watched(solver, *args, **kwargs)``."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            for solver in ("monotone_inverse", "newton_inverse"):
                if name.startswith("pyroflows.") and (own := getattr(module, solver, None)):
                    stack.enter_context(patch.object(module, solver, partial(watched, own)))
        yield


def _searches(run: Callable) -> bool:
    """Whether a solver looks for the result."""
    searches = []

    def seen(solver: Callable, *args, **kwargs) -> object:
        searches.append(1)
        return solver(*args, **kwargs)

    with _solvers(seen), torch.no_grad():
        run(torch.zeros(1, _DIM))
    return bool(searches)


def _cost(flow: Bijector, run: Callable, searches: bool) -> str:
    """What one run of the flow takes, in words."""
    parts = [*flow.modules()]
    if any(isinstance(part, Continuous) for part in parts):
        return "as many passes as its solver takes"
    if any(isinstance(part, BlockAutoregressive | Residual) for part in parts):
        return "a search through its networks" if searches else "1 pass a layer"
    return _passes(flow, run) + (" and a search" if searches else "")


def _passes(flow: Bijector, run: Callable) -> str:
    """Count the passes through each network that one run of the flow takes."""
    networks = [m for m in flow.modules() if isinstance(m, Conditioner | MaskedConditioner)]
    networks = [m for m in networks if any(isinstance(part, nn.Linear) for part in m.modules())]
    if not networks:
        return "no network"
    whole = []
    hooks = [m.register_forward_hook(lambda *_: whole.append(1)) for m in networks]
    searched = []

    # How long a search takes depends on its points.
    def apart(solver: Callable, *args, **kwargs) -> object:
        before = arithmetic.get_total_flops()
        result = solver(*args, **kwargs)
        searched.append(arithmetic.get_total_flops() - before)
        return result

    with _solvers(apart), torch.no_grad(), FlopCounterMode(display=False) as arithmetic:
        run(torch.zeros(1, _DIM))
    for hook in hooks:
        hook.remove()
    linears = [part for m in networks for part in m.modules() if isinstance(part, nn.Linear)]
    one_each = sum(2 * linear.weight.numel() for linear in linears)
    count = round((arithmetic.get_total_flops() - sum(searched)) / one_each)
    if whole:
        return "D passes a layer" if count == _DIM else f"{count} pass a layer"
    return f"{count} pass a layer, in D steps"
