r"""The inverse of an autoregressive layer, coordinate by coordinate, at the cost of one pass.

In a masked network a unit of degree :math:`k` sees coordinates of rank :math:`k` and less. So as
soon as one more coordinate is known, the units that waited for it can be computed, each once and
for good, then the parameters of the next coordinate, which can then be inverted. With all units
sorted by degree, what is known is always the first rows of a layer. Coordinates between which no
unit waits, as there are where hidden layers are narrow, are inverted in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..networks import MaskedConditioner
from ..networks.chain import check_given
from ..transformers import Transformer
from ..transformers.fused import FusedTransformer, asks_for_more, differentiate_plain

__all__ = ["inverse_in_steps", "takes_steps"]


class _Plan(NamedTuple):
    """When each unit can be computed; numbers only."""

    units: list[list[int]]  # of the inputs and of each hidden layer, by degree
    order: list[int]  # of the coordinates
    place: list[int]  # of each coordinate in that order
    starts: list[int]  # of the steps, as places
    sizes: list[int]  # of the steps, in coordinates
    ends: list[list[int]]  # of each hidden layer, how many units are known at each step


class _Layer(NamedTuple):
    """All that a run needs beside its inputs, which are tensors."""

    plan: _Plan
    transformer: Transformer
    activation: nn.Module
    residual: bool


def takes_steps(conditioner: nn.Module) -> bool:
    """Whether the parameters of this network can be computed coordinate by coordinate."""
    return (
        isinstance(conditioner, MaskedConditioner)
        and type(conditioner).forward is MaskedConditioner.forward
        and not conditioner.angles  # of which a row of the inputs is not one row of what is seen
    )


def inverse_in_steps(
    conditioner: MaskedConditioner, transformer: Transformer, y: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the inverse of an autoregressive layer and its log-determinant.

    Args:
        conditioner: The network of the layer.
        transformer: Its scalar map.
        y: Images, with shape :math:`(*, D)`.
        context: Contexts, with shape :math:`(*, C)`, or ``None``.
    """
    check_given("x", y, conditioner.shape[0])
    check_given("context", context, conditioner.context_dim)
    net = conditioner.net
    plan = _plan(conditioner.degrees, conditioner.shape[0])
    layer = _Layer(plan, transformer, net.activation, net.residual)
    batch = y.shape[:-1]
    if context is not None:
        batch = torch.broadcast_shapes(batch, context.shape[:-1])
    images = _rows(y, batch, plan.order)
    start = [torch.ones_like(images[:1])]  # the biases are the weights of a unit that is one
    if context is not None:
        start.append(_rows(context, batch))
    run = _Steps.apply if _is_own(net.activation) else _run_plainly
    x, log_det = run(layer, images, torch.cat(start), *_sorted_matrices(conditioner, plan))
    x = _picked(x, plan.place).mT.reshape(*batch, len(plan.order))
    return x.contiguous(), log_det.reshape(batch)


def _plan(degrees: Sequence[tuple[int, ...]], dim: int) -> _Plan:
    units = [_by_degree(layer) for layer in degrees]
    order = _by_degree(degrees[0][:dim])
    levels = [degrees[0][i] for i in order]
    known = [_below(levels, sorted(layer)) for layer in degrees[1:]]  # units of each hidden layer
    waits = known or [levels]
    starts = [i for i in range(dim) if i == 0 or any(n[i] > n[i - 1] for n in waits)]
    sizes = [end - start for start, end in pairwise([*starts, dim])]
    ends = [[n[i] for i in starts] for n in known]
    return _Plan(units, order, _by_degree(tuple(order)), starts, sizes, ends)


def _below(levels: Sequence[int], degrees: Sequence[int]) -> list[int]:
    """How many degrees are below each level, both ascending."""
    numbers, last = [], 0
    for level in levels:
        while last < len(degrees) and degrees[last] < level:
            last += 1
        numbers.append(last)
    return numbers


def _by_degree(degrees: tuple[int, ...]) -> list[int]:
    return sorted(range(len(degrees)), key=lambda unit: degrees[unit])


def _picked(value: Tensor, rows: Sequence[int], dim: int = 0) -> Tensor:
    if all(i == row for i, row in enumerate(rows)):
        return value
    return value.index_select(dim, torch.tensor(rows, device=value.device))


def _rows(value: Tensor, batch: Sequence[int], order: Sequence[int] = ()) -> Tensor:
    """Vectors of any batch as the columns of a matrix, their entries in this order."""
    size = value.shape[-1]
    return _picked(value.expand(*batch, size).reshape(-1, size).mT, order).contiguous()


def _sorted_matrices(conditioner: MaskedConditioner, plan: _Plan) -> list[Tensor]:
    """The weights of each layer, masked, sorted by degree, the biases as their first column.

    The last has the parameters of each coordinate, with shape (P, D, units).
    """
    linears, matrices = conditioner.net.linears, []
    for i, linear in enumerate(linears):
        weight = _picked(linear.weight * linear.mask, plan.units[i], dim=1)
        matrix = torch.cat([linear.bias[:, None], weight], dim=-1)
        if i < len(linears) - 1:
            matrices.append(_picked(matrix, plan.units[i + 1]))
        else:
            by_raw = matrix.unflatten(0, conditioner.shape[::-1])  # see _outputs_first
            matrices.append(_picked(by_raw, plan.order, dim=1))
    return matrices


def _run_plainly(
    layer: _Layer, y: Tensor, start: Tensor, *matrices: Tensor
) -> tuple[Tensor, Tensor]:
    """The inverse in operations that can be differentiated, mapped and traced by others."""
    plan, invert = layer.plan, layer.transformer.inverse_and_log_det
    *inner, outer = matrices
    seen = [start, *(start[:1] for _ in inner)]  # what is known of what each linear map sees
    log_slopes = []
    steps = zip(y.split(plan.sizes), outer.split(plan.sizes, dim=1), strict=True)
    for i, (images, by_raw) in enumerate(steps):
        before = None
        for j, matrix in enumerate(inner):
            begin, end = seen[j + 1].shape[0] - 1, plan.ends[j][i]
            if begin < end:
                value = matrix[begin:end, : seen[j].shape[0]] @ seen[j]
                before = value if before is None or not layer.residual else before + value
                seen[j + 1] = torch.cat([seen[j + 1], layer.activation(before)])
        raws = by_raw[..., : seen[-1].shape[0]].flatten(0, 1) @ seen[-1]
        x, log_slope = invert(images, raws.unflatten(0, by_raw.shape[:2]).movedim(0, -1))
        seen[0] = torch.cat([seen[0], x])
        log_slopes.append(log_slope)
    return seen[0][start.shape[0] :], torch.cat(log_slopes).sum(0)


class _Steps(torch.autograd.Function):
    """The same in place, with derivatives by hand: backward, the steps are taken last to first.

    With the derivatives of all scalar maps at hand, a step back is a few products: the cotangent
    of a coordinate is complete as soon as all units that see it are done with.
    """

    @staticmethod
    def forward(
        ctx: Any, layer: _Layer, y: Tensor, start: Tensor, *matrices: Tensor
    ) -> tuple[Tensor, Tensor]:
        seen, raws, log_det = _run(layer, y, start, matrices, keep=any(ctx.needs_input_grad))
        ctx.layer, ctx.number = layer, len(matrices)
        if raws:
            ctx.save_for_backward(y, start, *matrices, *seen, torch.cat(raws, dim=1))
        ctx.set_materialize_grads(False)
        return seen[0][start.shape[0] :].clone(), log_det

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_log: Tensor | None) -> tuple:
        if grad_x is None and grad_log is None:
            return (None,) * (3 + ctx.number)
        y, start, *others = ctx.saved_tensors
        matrices, seen = others[: ctx.number], others[ctx.number : -1]
        grads = (grad_x, grad_log)
        if asks_for_more(*grads):
            plain = partial(_run_plainly, ctx.layer)
            return None, *differentiate_plain(plain, (y, start, *matrices), grads)
        return None, *_step_back(ctx.layer, start.shape[0], matrices, seen, others[-1], *grads)


def _run(
    layer: _Layer, y: Tensor, start: Tensor, matrices: Sequence[Tensor], *, keep: bool
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What each linear map sees, the raw parameters if they are kept, and the log-determinant."""
    *inner, outer = matrices
    seen = [y.new_zeros(len(units) + 1, y.shape[1]) for units in layer.plan.units]
    for values, known in zip(seen, (start, *(start[:1] for _ in inner)), strict=True):
        values[: known.shape[0]] = known
    sizes, num_start = layer.plan.sizes, start.shape[0]
    steps = zip(
        y.split(sizes), seen[0][num_start:].split(sizes), outer.split(sizes, dim=1), strict=True
    )
    work = _by_step(layer.plan, inner, seen, [values[1:] for values in seen[1:]])
    invert, at_once = _inverse_of(layer.transformer), _is_relu(layer) and not layer.residual
    raws, log_slopes = [], []
    for i, (images, coordinates, by_raw) in enumerate(steps):
        before = None
        for weights, values, target in work[i]:
            if at_once:
                torch.mm(weights, values, out=target).relu_()
                continue
            value = torch.mm(weights, values)
            before = value if before is None or not layer.residual else before + value
            target.copy_(layer.activation(before))
        known = 1 + layer.plan.ends[-1][i] if inner else num_start + layer.plan.starts[i]
        by_known = by_raw.narrow(2, 0, known).flatten(0, 1)
        raw = torch.mm(by_known, seen[-1].narrow(0, 0, known)).view(by_raw.shape[0], -1)
        x, log_slope, *_ = invert(images.view(-1), raw)
        coordinates.view(-1).copy_(x)
        log_slopes.append(log_slope)
        if keep:
            raws.append(raw.view(by_raw.shape[0], *images.shape))
    log_det = torch.cat(log_slopes).view_as(y).sum(0)
    return seen, raws, -log_det if isinstance(layer.transformer, FusedTransformer) else log_det


def _by_step(
    plan: _Plan, matrices: Sequence[Tensor], sources: Sequence[Tensor], *others: Sequence[Tensor]
) -> list[list[tuple[Tensor, ...]]]:
    """For each step and each hidden layer with units to compute: their rows of all of its tensors.

    What they are computed from is there as a whole: units that are not known yet are zero.
    """
    work: list[list[tuple[Tensor, ...]]] = [[] for _ in plan.sizes]
    for j, ends in enumerate(plan.ends):
        numbers = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        parts = [rows[j].split(numbers) for rows in (matrices, *others)]
        for i, (weights, *found) in enumerate(zip(*parts, strict=True)):
            if numbers[i]:
                work[i].append((weights, sources[j], *found))
    return work


def _inverse_of(transformer: Transformer) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """The inverse of scalars (N) given raws (P, N), and a log-slope, if fused the forward map's."""
    if isinstance(transformer, FusedTransformer):
        return transformer.evaluate_inverse
    return lambda y, raws: transformer.inverse_and_log_det(y, raws.mT)


def _is_relu(layer: _Layer) -> bool:
    return type(layer.activation) is nn.ReLU


def _is_own(activation: nn.Module) -> bool:
    """Whether nobody else transforms what runs, and no other tensor takes part in it."""
    return (
        not any(True for _ in activation.parameters())
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
    )


def _step_back(
    layer: _Layer,
    num_start: int,
    matrices: Sequence[Tensor],
    seen: Sequence[Tensor],
    raws: Tensor,
    grad_x: Tensor | None,
    grad_log: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The cotangents of the images, of the rows at the start and of the matrices."""
    *inner, outer = matrices
    x = seen[0][num_start:]
    _, log_slopes, partials = layer.transformer.partials(x, raws.movedim(0, -1))
    pulls = [torch.zeros_like(value) for value in seen]  # cotangents of what each layer sees
    own, fixed = pulls[0][num_start:], None
    if grad_x is not None:
        own += grad_x
    if grad_log is not None:
        own.addcmul_(partials.log_slope_x, grad_log, value=-1)
        fixed = partials.log_slope_params.movedim(-1, 0) * -grad_log
    over, by_raw = (-log_slopes).exp(), partials.y_params.movedim(-1, 0).neg()
    slopes = _slopes(layer, inner, seen)
    work = _by_step(layer.plan, inner, pulls, [p[1:] for p in pulls[1:]], slopes)
    scalars = _Scalars(own, over, torch.empty_like(over), by_raw, torch.empty_like(by_raw), fixed)
    _sweep_back(layer, scalars, outer, pulls[-1], num_start, work)
    grads = [p[1:] @ v.mT for p, v in zip(pulls[1:], seen[:-1], strict=True)]
    by_outer = scalars.by_raws.flatten(0, 1) @ seen[-1].mT
    return scalars.by_y, pulls[0][:num_start], *grads, by_outer.view_as(outer)


class _Scalars(NamedTuple):
    """What the steps back read and write of each coordinate (D, N) and raw parameter (P, D, N)."""

    pull: Tensor  # the cotangents of the coordinates, complete when their turn comes
    slope: Tensor  # of the inverse
    by_y: Tensor  # to be found: the cotangents of the images
    move: Tensor  # minus the derivatives of the images in the raws
    by_raws: Tensor  # to be found: the cotangents of the raws
    fixed: Tensor | None  # what the log-slopes add to them


def _sweep_back(
    layer: _Layer,
    scalars: _Scalars,
    outer: Tensor,
    last: Tensor,
    num_start: int,
    work: list[list[tuple[Tensor, ...]]],
) -> None:
    """The steps, last to first: fill what is to be found, and the pulls of every layer."""
    sizes = layer.plan.sizes
    pull, slope, by_y = (v.split(sizes) for v in scalars[:3])
    move, by_raws, by_raw = (v.split(sizes, dim=1) for v in (*scalars[3:5], outer))
    fixed = None if scalars.fixed is None else scalars.fixed.split(sizes, dim=1)
    for i in reversed(range(len(sizes))):
        torch.mul(pull[i], slope[i], out=by_y[i])
        if fixed is None:
            torch.mul(move[i], by_y[i], out=by_raws[i])
        else:
            torch.addcmul(fixed[i], move[i], by_y[i], out=by_raws[i])
        known = 1 + layer.plan.ends[-1][i] if layer.plan.ends else num_start + layer.plan.starts[i]
        by_known = by_raw[i].narrow(2, 0, known).flatten(0, 1)
        last.narrow(0, 0, known).addmm_(by_known.mT, by_raws[i].flatten(0, 1))
        after = None
        for weights, before, units, slopes in reversed(work[i]):
            units *= slopes
            if layer.residual and after is not None:
                units += after
            before.addmm_(weights.mT, units)
            after = units


def _slopes(layer: _Layer, inner: Sequence[Tensor], seen: Sequence[Tensor]) -> list[Tensor]:
    """Of the activation, at every unit of each hidden layer."""
    if _is_relu(layer):
        return [(values[1:] > 0).to(values.dtype) for values in seen[1:]]
    slopes, before = [], None
    for matrix, values in zip(inner, seen[:-1], strict=True):
        value = matrix @ values
        before = value if before is None or not layer.residual else before + value
        with torch.enable_grad():
            leaf = before.detach().requires_grad_()
            slopes.append(torch.autograd.grad(layer.activation(leaf).sum(), leaf)[0])
    return slopes
