"""Flat graphs of tensor operations: compared, made pure, and simplified."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .recording import is_random, writes

__all__ = ["difference", "fold", "keep_first_output", "lift"]

_LARGEST_FOLDED = 2**20


def held_by(module: fx.GraphModule) -> list[tuple[fx.Node, Tensor]]:
    """The tensors that a graph holds, with their nodes."""
    nodes = [node for node in module.graph.nodes if node.op == "get_attr"]
    return [(node, getattr(module, node.target)) for node in nodes]


def difference(a: fx.GraphModule, b: fx.GraphModule) -> str:
    """How two graphs of one function differ, or nothing if they are the same."""
    nodes = list(a.graph.nodes), list(b.graph.nodes)
    if len(nodes[0]) != len(nodes[1]):
        return f"it took {len(nodes[0])} operations once and {len(nodes[1])} the next time"
    places = [{node: i for i, node in enumerate(each)} for each in nodes]
    for x, y in zip(*nodes, strict=True):
        if x.op == y.op == "get_attr":
            before, after = getattr(a, x.target), getattr(b, y.target)
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


def lift(module: fx.GraphModule, again: fx.GraphModule) -> list[Tensor]:
    """Make inputs of all tensors that outlive a call: the same objects in both graphs.

    Returns:
        These tensors, in the order of the new inputs.
    """
    graph, inputs = module.graph, []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for (node, value), (_, other) in zip(held_by(module), held_by(again), strict=True):
        if value is other:
            with graph.inserting_after(last):
                last = graph.placeholder(f"live_{len(inputs)}")
            node.replace_all_uses_with(last)
            graph.erase_node(node)
            inputs.append(value)
    _finish(module)
    return inputs


def keep_first_output(module: fx.GraphModule) -> None:
    """Return the first of several outputs alone."""
    (node,) = (n for n in module.graph.nodes if n.op == "output")
    node.args = (node.args[0][0],)
    _finish(module)


@torch.no_grad()
def fold(module: fx.GraphModule) -> None:
    """Compute now what depends on no input."""
    graph = module.graph
    if any(writes(node) for node in graph.nodes):
        return
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(module, node.target)
        elif _is_computable(node, known):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for i, node in enumerate(list(known)):
        value = known[node]
        is_used = any(user not in known for user in node.users)
        small = isinstance(value, Tensor) and value.numel() <= _LARGEST_FOLDED
        if node.op == "get_attr" or not is_used or not small:
            continue
        module.register_buffer(f"constant_{i}", value)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(f"constant_{i}"))
    _finish(module)


def _is_computable(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    is_function = node.op == "call_function" and not is_random(node)
    return is_function and all(n in known for n in node.all_input_nodes)


def _finish(module: fx.GraphModule) -> None:
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
