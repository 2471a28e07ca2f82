"""The table of registered flows in the README and in the reference: one source for both.

What a flow costs is counted, not declared: the passes through its conditioner networks that one
draw with its density, and the density of one given point, take in arithmetic. Where a network is
not run as a whole, it is run coordinate by coordinate.
"""

import inspect
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pyroflows as pf
from pyroflows.bijectors import BlockAutoregressive, Continuous, Residual
from pyroflows.flows import registry
from pyroflows.networks import Conditioner, MaskedConditioner

HEADER = "| flow | what it is | to sample | to score |\n| --- | --- | --- | --- |\n"
PICTURES = Path(__file__).parent / "images" / "gallery"
DIM = 7  # no other count in a small flow is 7


def flow_table():
    """Return the table in Markdown, one row for each registered flow."""
    return HEADER + "".join(_row(name) for name in pf.available_flows())


def flow_gallery():
    """Return the pictures that there are in Markdown, each under its flow and what that is."""
    drawn = {path.stem for path in PICTURES.glob("*.png")}
    return "".join(
        f"### `{name}`\n\n{_summary(name)}.\n\n![{name}](/images/gallery/{name}.png)\n\n"
        for name in pf.available_flows()
        if name in drawn
    )


def _row(name):
    flow = pf.build_flow(name, DIM)
    runs = (flow.forward_and_log_det, flow.inverse_and_log_det)
    sample, score = (_cost(flow, run, _searches(run)) for run in runs)
    return f"| `{name}` | {_summary(name)} | {sample} | {score} |\n"


def _summary(name):
    """The first sentence of the recipe's docstring."""
    text = inspect.getdoc(registry._FLOWS[name]).split("\n\n")[0]
    return " ".join(text.split()).rstrip(".")


@contextmanager
def _solvers(watched):
    """Call each solver that looks for a result by way of ``watched(solver, *args, **kwargs)``."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            for solver in ("monotone_inverse", "newton_inverse"):
                if name.startswith("pyroflows.") and (own := getattr(module, solver, None)):
                    stack.enter_context(patch.object(module, solver, partial(watched, own)))
        yield


def _searches(run):
    """Whether a solver looks for the result."""
    searches = []

    def seen(solver, *args, **kwargs):
        searches.append(1)
        return solver(*args, **kwargs)

    with _solvers(seen), torch.no_grad():
        run(torch.zeros(1, DIM))
    return bool(searches)


def _cost(flow, run, searches):
    """What one run of the flow takes, in words."""
    parts = [*flow.modules()]
    if any(isinstance(part, Continuous) for part in parts):
        return "as many passes as its solver takes"
    if any(isinstance(part, BlockAutoregressive | Residual) for part in parts):
        return "a search through its networks" if searches else "1 pass a layer"
    return _passes(flow, run) + (" and a search" if searches else "")


def _passes(flow, run):
    """Count the passes through each network that one run of the flow takes."""
    networks = [m for m in flow.modules() if isinstance(m, Conditioner | MaskedConditioner)]
    networks = [m for m in networks if any(isinstance(part, nn.Linear) for part in m.modules())]
    if not networks:
        return "no network"
    whole = []
    hooks = [m.register_forward_hook(lambda *_: whole.append(1)) for m in networks]
    searched = []

    def apart(solver, *args, **kwargs):  # how long a search takes depends on its points
        before = arithmetic.get_total_flops()
        result = solver(*args, **kwargs)
        searched.append(arithmetic.get_total_flops() - before)
        return result

    with _solvers(apart), torch.no_grad(), FlopCounterMode(display=False) as arithmetic:
        run(torch.zeros(1, DIM))
    for hook in hooks:
        hook.remove()
    linears = [part for m in networks for part in m.modules() if isinstance(part, nn.Linear)]
    one_each = sum(2 * linear.weight.numel() for linear in linears)
    count = round((arithmetic.get_total_flops() - sum(searched)) / one_each)
    if whole:
        return "D passes a layer" if count == DIM else f"{count} pass a layer"
    return f"{count} pass a layer, in D steps"
