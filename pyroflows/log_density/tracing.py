"""The log density as a flat graph, so that a step does not run the model's handlers again."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .checks import same_randomness
from .graphs import difference, keep_first_output, lift
from .recording import NotTraceable, Recording
from .runs import METHODS, JointRuns, total
from .simplify import simplify
from .watch import Watch

__all__ = ["Program", "arguments_of", "trace"]

_SEEDS = (20, 21)


class Program:
    """The log density of a fixed number of points, as a flat graph of tensor operations.

    Args:
        graph: Maps the points and the live tensors, one after the other, to log densities.
        num_points: The number of points ``K``.
        sources: Where each live tensor is found that is no argument of the model.
        runs: The model that it was taken from.
        method: How that was run.
        watch: What the model reads beside its arguments.
        bound: Data that numbers were read from, so that other data need another graph.
        fixed: Tensors of the model of which the same is true.

    Attributes:
        graph: The graph, an ``fx.GraphModule``.
        num_points: The number of points.
        params: Names of the parameters in Pyro's store that it reads.
        num_calls: How often it was used by its owner.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        num_points: int,
        sources: list[Callable[[], Tensor]],
        runs: JointRuns,
        method: str,
        watch: Watch,
        bound: list[Tensor],
        fixed: list[Tensor],
    ) -> None:
        self.num_calls = 0
        self.graph = graph
        self.num_points = num_points
        self.params = tuple(runs.params)
        self._sources = sources
        self._runs = runs
        self._method = method
        self._watch = watch
        self._bound = [(tensor, tensor._version) for tensor in bound]
        self._fixed = [(tensor, tensor._version) for tensor in fixed]

    def fn(self, u: Tensor, inputs: list[Tensor]) -> Tensor:
        """Return log densities ``(K)`` of points ``(K, D)``: pure, differentiable, traceable.

        Args:
            u: Unconstrained points, shape ``(K, D)``.
            inputs: The tensors of :meth:`inputs`.
        """
        return self.graph(u, *inputs)

    def inputs(self) -> list[Tensor]:
        """Return the live tensors, data and parameters, as they are now, in the graph's order."""
        data, _ = arguments_of(self._runs)
        return data + [source() for source in self._sources]

    def __call__(self, u: Tensor) -> Tensor:
        """Return log densities ``(K)`` of points ``(K, D)`` for the live tensors of now."""
        return self.graph(u, *self.inputs())

    def is_current(self, data: list[Tensor] | None = None) -> bool:
        """Whether nothing that the model was seen to read beside tensors has changed.

        Args:
            data: The tensors in the model's arguments, where they are at hand.
        """
        if self._bound:
            data = arguments_of(self._runs)[0] if data is None else data
            pairs = zip(data, self._bound, strict=True)
            if any(now is not then or now._version != v for now, (then, v) in pairs):
                return False
        if any(tensor._version != version for tensor, version in self._fixed):
            return False
        try:
            now = [source() for source in self._sources]
        except KeyError:  # a parameter is gone, and will be made anew
            return False
        if self._fixed and not all(any(t is n for n in now) for t, _ in self._fixed):
            return False
        return self._watch.unchanged()

    def agrees(self, u: Tensor) -> bool:
        """Whether the model itself, run by Pyro's handlers, gives the same values at ``u``."""
        u = u.detach()
        seed = self.num_calls  # of no generator, so that looking changes no draws to come
        values = []
        for function in (self, lambda u: total(METHODS[self._method](self._runs, u))):
            with same_randomness(seed, u), torch.no_grad(), pyro.validation_enabled(False):
                values.append(function(u))
        return _close(*values)


def arguments_of(runs: JointRuns) -> tuple[list[Tensor], tuple]:
    """The tensors in the model's arguments, and all else that a graph is bound to."""
    leaves, spec = pytree.tree_flatten((runs.model_args, runs.model_kwargs))
    tensors, key = [], []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
            key.append((leaf.shape, leaf.stride(), leaf.dtype, leaf.device))
        elif isinstance(leaf, bool | int | float | str | type(None)):
            key.append((type(leaf), leaf))
        else:
            key.append((type(leaf), id(leaf)))
    return tensors, (spec, tuple(key))


def trace(runs: JointRuns, method: str, u: Tensor) -> Program:
    """Take a graph from a model, and compare it with the model.

    Args:
        runs: The model.
        method: ``"vmap"`` or ``"plate"``.
        u: Points to run it at, shape ``(K, D)``.

    Raises:
        NotTraceable: If no graph can stand for the model.
    """
    u = u.detach().clone()
    with same_randomness(_SEEDS[0], u), torch.no_grad(), pyro.validation_enabled(False):
        runs.single(u[0])  # what it makes at its first run, parameters for one, is not for a graph
    data, _ = arguments_of(runs)
    leaves = pytree.tree_leaves((runs.model_args, runs.model_kwargs))
    watch = Watch(runs.model, *(leaf for leaf in leaves if not isinstance(leaf, Tensor)))
    first, second = (_record(runs, method, u, data, seed) for seed in _SEEDS)
    watch.forget_changes()
    if reason := difference(first, second):
        raise NotTraceable(reason)
    support = frozenset().union(*first.results[1:])
    if support - {"data"}:  # it is compared with the start at every run of the model
        raise NotTraceable(f"the support of a latent depends on {' and '.join(support)}")
    held = lift(first, second)
    keep_first_output(first.graph)
    graph = simplify(first.graph, first.root)
    sources = [_source(tensor, runs.model) for tensor in held]
    bound = data if support or first.is_bound else []
    fixed = [t for t in held if first.is_bound_to_held and not t.requires_grad]
    program = Program(graph, len(u), sources, runs, method, watch, bound, fixed)
    _verify(program, runs, method, u)
    return program


def _record(runs: JointRuns, method: str, u: Tensor, data: list[Tensor], seed: int) -> Recording:
    """One run of the model with its data replaced by what the graph's inputs are."""
    own = runs.model_args, runs.model_kwargs
    leaves, spec = pytree.tree_flatten(own)

    def function(u: Tensor, *data: Tensor) -> tuple[Tensor, ...]:
        given = iter(data)
        mixed = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        runs.model_args, runs.model_kwargs = pytree.tree_unflatten(mixed, spec)
        return (total(METHODS[method](runs, u)), *runs.bounds)

    # As aliases, so that what is passed twice, or is held by the model too, is told apart.
    data = [tensor.detach() for tensor in data]
    try:
        runs.compare_bounds = False  # they are looked at in the graph
        with same_randomness(seed, u), pyro.validation_enabled(False):
            return Recording(function, [u, *data])
    finally:
        runs.model_args, runs.model_kwargs = own
        runs.compare_bounds, runs.bounds = True, []


def _source(tensor: Tensor, model: Callable) -> Callable[[], Tensor]:
    """How to find what stands where a tensor stood: in Pyro's store, in a module, or itself."""
    store = pyro.get_param_store()
    for name, value in store.named_parameters():
        if value is tensor:
            return lambda: dict(store.named_parameters())[name]
    if isinstance(model, nn.Module):
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, value in held.items():
                    if value is tensor:
                        return lambda held=held, name=name: held[name]
    return lambda: tensor


def _verify(program: Program, runs: JointRuns, method: str, u: Tensor) -> None:
    """Compare values and all gradients with those of the model, at points not traced."""
    step = 0.01 * torch.linspace(-1, 1, len(u) + 1, dtype=u.dtype, device=u.device)[1:, None]
    u = u.flip(0) + step
    weights = torch.linspace(0.5, 1.5, len(u), dtype=u.dtype, device=u.device)
    params = [t for t in program.inputs() if t.requires_grad]
    results = []
    for function in (program, lambda u: total(METHODS[method](runs, u))):
        at = u.clone().requires_grad_()
        try:
            with same_randomness(_SEEDS[0], u), pyro.validation_enabled(False):
                values = function(at)
                loss = (weights * values).sum()
                grads = torch.autograd.grad(loss, [at, *params], allow_unused=True)
        except RuntimeError as error:  # an operation without a derivative of its own
            raise NotTraceable(f"the graph cannot be run ({str(error)[:160]})") from error
        results.append([values.detach(), *grads])
    names = ["values", "gradients", *["gradients of parameters"] * len(params)]
    for name, a, b in zip(names, *results, strict=True):
        if not _close(a, b):
            raise NotTraceable(f"{name} of the graph differ from the model's")


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:  # of a parameter without influence
        return all(t is None or not t.any() for t in (a, b))
    if a.shape != b.shape:
        return False
    finite = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), finite):
        return False
    eps = torch.finfo(b.dtype).eps
    size = torch.where(finite, b.abs(), 0)
    tolerance = 1e3 * eps * (size + 0.03 * size.mean() + eps)
    return bool(((a - b).abs() <= tolerance)[finite].all())
