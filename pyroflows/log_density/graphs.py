"""Flat graphs of tensor operations: compared, and made pure."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .recording import Recording

__all__ = ["difference", "keep_first_output", "lift"]


def held_by(recording: Recording) -> list[tuple[fx.Node, Tensor]]:
    """The tensors that a graph holds, with their nodes."""
    nodes = [node for node in recording.graph.nodes if node.op == "get_attr"]
    return [(node, getattr(recording.root, node.target)) for node in nodes]


def difference(a: Recording, b: Recording) -> str:
    """How two graphs of one function differ, or nothing if they are the same."""
    nodes = list(a.graph.nodes), list(b.graph.nodes)
    if len(nodes[0]) != len(nodes[1]):
        return f"it took {len(nodes[0])} operations once and {len(nodes[1])} the next time"
    places = [{node: i for i, node in enumerate(each)} for each in nodes]
    for x, y in zip(*nodes, strict=True):
        if x.op == y.op == "get_attr":
            before, after = getattr(a.root, x.target), getattr(b.root, y.target)
            if before is not after and not _same_values(before, after):
                return "a tensor that the model makes changes from call to call"
        elif (x.op, str(x.target)) != (y.op, str(y.target)):
            return f"{x.target} once was {y.target} the next time"
        elif _arguments(x, places[0]) != _arguments(y, places[1]):
            return f"an argument of {x.target} changes from call to call"
    return ""


def _arguments(node: fx.Node, places: dict[fx.Node, int]) -> str:
    return str(fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{places[n]}"))


def _same_values(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=a.is_floating_point())


def lift(recording: Recording, again: Recording) -> list[Tensor]:
    """Make inputs of all tensors that outlive a call: the same objects in both graphs.

    Returns:
        These tensors, in the order of the new inputs.
    """
    graph, inputs = recording.graph, []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for (node, value), (_, other) in zip(held_by(recording), held_by(again), strict=True):
        if value is other:
            with graph.inserting_after(last):
                last = graph.placeholder(f"live_{len(inputs)}")
            last.meta.update(node.meta)
            node.replace_all_uses_with(last)
            graph.erase_node(node)
            inputs.append(value)
    return inputs


def keep_first_output(graph: fx.Graph) -> None:
    """Return the first of several outputs alone."""
    (node,) = (n for n in graph.nodes if n.op == "output")
    node.args = (node.args[0][0],)
