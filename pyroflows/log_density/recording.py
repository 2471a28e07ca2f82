"""Tensor operations of a function, recorded as a flat graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["NotTraceable", "Recording", "is_random", "is_view", "shape_of", "writes"]

_PLAIN = (bool, int, float, complex, str, type(None))
_SETTINGS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_aten = torch.ops.aten
# Results that depend on the shape of their first argument only.
_OF_SHAPES = (
    *(_aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default),
    *(_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default),
)
_POINTS, _DATA, _PARAMS, _RANDOM = "points", "data", "parameters", "random numbers"
_HELD = "tensors that the model holds"


class NotTraceable(Exception):
    """Why there is no flat graph of a function."""


class Recording(TorchDispatchMode):
    """One run of a function, operation by operation.

    Tensors that are neither inputs nor results of operations are held by the graph as they are.
    Numbers may be read out of data and of what the model holds, which binds the graph to these,
    but of nothing else.

    Args:
        function: Maps the inputs to one tensor, or to several.
        inputs: The points, then the data.

    Attributes:
        graph: The operations.
        root: Holds the tensors that the graph holds.
        results: What each result depends on.
        is_bound: Whether the graph is right for the very data it was recorded with only.
        is_bound_to_held: Whether it is right only as long as the tensors it holds do not change.

    Raises:
        NotTraceable: If the function fails, or does what a graph cannot hold.
    """

    def __init__(self, function: Callable[..., Any], inputs: list[Tensor]) -> None:
        super().__init__()
        self.is_bound = self.is_bound_to_held = False
        self.graph, self.root = fx.Graph(), nn.Module()
        self._nodes: dict[int, fx.Node] = {}
        self._depends: dict[fx.Node, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # so that no identity is used twice
        self._storages: set[int] = set()
        for i, tensor in enumerate(inputs):
            node = self.graph.placeholder("points" if i == 0 else f"data_{i - 1}")
            self._know(tensor, node, frozenset([_DATA if i else _POINTS]))
        try:
            with torch.no_grad(), self:  # the graph is differentiated, not the run
                returned = function(*inputs)
        except NotTraceable:
            raise
        except Exception as error:  # whatever a model does that cannot be recorded
            first_line = (str(error).splitlines() or [""])[0]
            raise NotTraceable(f"{type(error).__name__}: {first_line[:200]}") from error
        returned = returned if isinstance(returned, tuple) else (returned,)
        nodes = tuple(self._node(tensor) for tensor in returned)
        self.results = [self._depends[node] - {_HELD} for node in nodes]
        self.graph.output(nodes)
        self._alive.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether to tell the compiler of every operation, which imports it and takes time."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given: list[fx.Node] = []
        node_args = self._argument(args, given)
        node_kwargs = {key: self._argument(value, given) for key, value in kwargs.items()}
        depends = frozenset().union(*(self._depends[node] for node in given))
        results = result if isinstance(result, list | tuple) else (result,)
        if not any(isinstance(item, Tensor) for item in results):
            self._bind(depends, f"{func} takes a number out of a tensor")
            return result
        decisive = frozenset().union(*(self._depends[self._node(t)] for t in _sizing(func, args)))
        self._bind(decisive, f"the shape of the result of {func} depends on a tensor")
        node = self.graph.call_function(func, node_args, node_kwargs)
        if writes(node):
            self._refuse_lasting_write(node)
        if is_random(node):
            depends |= {_RANDOM}
        self._know_results(result, node, depends)
        return result

    def _bind(self, depends: frozenset[str], what: str) -> None:
        if depends - {_DATA, _HELD}:
            raise NotTraceable(f"{what} that depends on {' and '.join(sorted(depends))}")
        self.is_bound |= _DATA in depends
        self.is_bound_to_held |= _HELD in depends

    def _know(self, tensor: Tensor, node: fx.Node, depends: frozenset[str]) -> None:
        self._nodes[id(tensor)] = node
        node.meta["kind"] = (tensor.shape, tensor.dtype, tensor.device)
        if node.target in _OF_SHAPES:
            node.meta["constant"] = tensor.clone()
        self._depends[node] = depends
        self._alive.append(tensor)
        if tensor.numel():
            self._storages.add(tensor.untyped_storage().data_ptr())

    def _know_results(self, result: Any, node: fx.Node, depends: frozenset[str]) -> None:
        self._depends[node] = depends
        if isinstance(result, Tensor):
            self._know(result, node, depends)
            return
        for i, item in enumerate(result):
            part = self.graph.call_function(operator.getitem, (node, i))
            self._depends[part] = depends
            if isinstance(item, Tensor):
                self._know(item, part, depends)

    def _node(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor; one that was never seen is held."""
        if id(tensor) in self._nodes:
            return self._nodes[id(tensor)]
        is_alias = tensor.numel() and tensor.untyped_storage().data_ptr() in self._storages
        if is_alias and not any(t is tensor for t in self._alive):
            raise NotTraceable("a tensor was made by something that could not be recorded")
        name = f"held_{len(self._nodes)}"
        self.root.register_buffer(name, tensor)
        node = self.graph.get_attr(name)
        self._know(tensor, node, frozenset([_PARAMS if tensor.requires_grad else _HELD]))
        return node

    def _argument(self, value: Any, given: list[fx.Node]) -> Any:
        """An argument with nodes for tensors, which are added to those given."""
        if isinstance(value, Tensor):
            given.append(self._node(value))
            return given[-1]
        if isinstance(value, list | tuple):
            items = [self._argument(item, given) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        if isinstance(value, (*_PLAIN, *_SETTINGS)):
            return value
        raise NotTraceable(f"an operation takes a {type(value).__name__}")

    def _refuse_lasting_write(self, node: fx.Node) -> None:
        """A graph that writes into its inputs, or into what it holds, would do so at every call."""
        root = node.args[0]
        while isinstance(root, fx.Node) and root.op == "call_function" and is_view(root):
            root = root.args[0]
        if isinstance(root, fx.Node) and root.op in ("get_attr", "placeholder"):
            raise NotTraceable(f"{node.target} changes a tensor of the model in place")


def _tags(node: fx.Node) -> list[torch.Tag]:
    return getattr(node.target, "tags", [])


def is_random(node: fx.Node) -> bool:
    """Whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in _tags(node)


def shape_of(node: fx.Node) -> torch.Size:
    """The shape of a result when it was recorded."""
    return node.meta["kind"][0]


def writes(node: fx.Node) -> bool:
    """Whether an operation changes its argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def is_view(node: fx.Node) -> bool:
    """Whether a result may share the memory of the first argument."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def _sizing(func: Any, args: tuple) -> list[Tensor]:
    """The tensors whose values decide the shape of a result."""
    if func in (_aten.index.Tensor, _aten.index_put.default):
        return [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    if torch.Tag.dynamic_output_shape in getattr(func, "tags", []):
        return [value for value in args if isinstance(value, Tensor)]
    return []
