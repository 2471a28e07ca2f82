"""Fewer operations in a flat graph of fixed shapes, for the same values and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from .recording import is_random, is_view, shape_of, writes

__all__ = ["simplify"]

_aten = torch.ops.aten
_LARGEST_FOLDED = 2**20
_ADDITIONS = (_aten.add.Tensor, _aten.sub.Tensor)
_PRODUCTS = (_aten.mul.Tensor, _aten.div.Tensor)


def simplify(graph: fx.Graph, root: nn.Module) -> fx.GraphModule:
    """Compute now what depends on no input, leave out what changes nothing, and share the rest.

    Additions of zero, products with one, changes of shape to the same shape and sums over one
    element go; operations that are written twice are done once.

    Args:
        graph: The operations, with the kinds of their results from when they were recorded.
        root: Holds the tensors that the graph holds.
    """
    written = {_root(node.args[0]) for node in graph.nodes if writes(node)}
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in list(graph.nodes):
            if _root(node) not in written:
                _compute(root, node, known)
                _skip(node, known, written)
    _share(graph, written)
    _place(graph, root, known)
    for node in graph.nodes:
        if node.target is _aten.view.default:  # arguments may have other strides than they had
            node.target = _aten.reshape.default
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(root, graph)


def _root(node: Any) -> Any:
    """The node whose memory a node shows."""
    while isinstance(node, fx.Node) and node.op == "call_function" and is_view(node):
        node = node.args[0]
    return node


def _compute(root: nn.Module, node: fx.Node, known: dict[fx.Node, Any]) -> None:
    if node.op == "get_attr":
        known[node] = getattr(root, node.target)
    elif node.op == "call_function" and not is_random(node) and not writes(node):
        if "constant" in node.meta:
            known[node] = node.meta["constant"]
        elif all(n in known for n in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)


def _skip(node: fx.Node, known: dict[fx.Node, Any], written: set[fx.Node]) -> None:
    """Let others use an argument of a node where the node is that argument."""
    if node.op != "call_function" or node in known or not node.args:
        return
    for candidate in _equals(node, known):
        if _same_kind(candidate, node) and _root(candidate) not in written:
            node.replace_all_uses_with(candidate)
            return


def _equals(node: fx.Node, known: dict[fx.Node, Any]) -> list[Any]:
    """What a node equals if shapes and dtypes are the same."""
    first, *rest = node.args
    if node.target in _ADDITIONS and not node.kwargs:
        return [first] if _is_all(rest[0], 0, known) else _left_of(node, rest[0], known, 0)
    if node.target in _PRODUCTS:
        return [first] if _is_all(rest[0], 1, known) else _left_of(node, rest[0], known, 1)
    if node.target is _aten.sum.dim_IntList and isinstance(first, fx.Node):
        return [first, *_before(first)] if shape_of(first).numel() == shape_of(node).numel() else []
    if node.target is _aten.neg.default and first.target is _aten.neg.default:
        return list(first.args)
    if node.target in (_aten.view.default, _aten.unsqueeze.default):
        return [first, *_before(first)]
    return [first] if node.target is _aten.expand.default else []


def _left_of(node: fx.Node, other: Any, known: dict[fx.Node, Any], unit: int) -> list[Any]:
    """The second argument of a commutative operation, where the first changes nothing."""
    commutes = node.target in (_aten.add.Tensor, _aten.mul.Tensor)
    return [other] if commutes and _is_all(node.args[0], unit, known) else []


def _before(node: fx.Node) -> list[Any]:
    """What another shape was given to."""
    reshapes = (_aten.view.default, _aten.unsqueeze.default)
    return [node.args[0]] if node.op == "call_function" and node.target in reshapes else []


def _is_all(value: Any, number: int, known: dict[fx.Node, Any]) -> bool:
    value = known.get(value) if isinstance(value, fx.Node) else value
    if isinstance(value, Tensor):
        return 0 < value.numel() <= _LARGEST_FOLDED and bool((value == number).all())
    return isinstance(value, int | float) and value == number


def _same_kind(a: Any, b: fx.Node) -> bool:
    return isinstance(a, fx.Node) and "kind" in b.meta and a.meta.get("kind") == b.meta["kind"]


def _share(graph: fx.Graph, written: set[fx.Node]) -> None:
    """Let operations that are written twice be done once."""
    seen: dict[tuple, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or is_random(node):
            continue
        if written & {_root(n) for n in (node, *node.all_input_nodes)}:
            continue
        key = (node.target, str(node.args), str(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
        seen.setdefault(key, node)


def _place(graph: fx.Graph, root: nn.Module, known: dict[fx.Node, Any]) -> None:
    """Hold the computed tensors that others need."""
    for i, (node, value) in enumerate(known.items()):
        small = isinstance(value, Tensor) and value.numel() <= _LARGEST_FOLDED
        if node.op == "get_attr" or not small or all(user in known for user in node.users):
            continue
        root.register_buffer(f"constant_{i}", value)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(f"constant_{i}"))
