"""The log-sum-exp ring for ``opt_einsum``, in plain tensor operations.

Pyro's own takes the logarithm in a custom autograd function that ``vmap`` cannot pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["einsum", "tensordot", "transpose"]


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Sum operands in log space over the symbols that the output does not hold."""
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    summed = sorted(set("".join(terms)) - set(output))
    order = output + "".join(summed)
    total = None
    for term, operand in zip(terms, operands, strict=True):
        aligned = _align(term, operand, order)
        total = aligned if total is None else total + aligned
    if not summed:
        return total
    dims = tuple(range(len(output), len(order)))
    return _logsumexp(total, dims)


def _align(term: str, operand: Tensor, order: str) -> Tensor:
    """Permute and pad the dimensions of an operand to the order given."""
    held = [symbol for symbol in order if symbol in term]
    operand = operand.permute([term.index(symbol) for symbol in held])
    sizes = dict(zip(held, operand.shape, strict=True))
    return operand.reshape([sizes.get(symbol, 1) for symbol in order])


def _logsumexp(total: Tensor, dims: tuple[int, ...]) -> Tensor:
    """As torch's, with a gradient of zero where every term is minus infinity."""
    shift = total.detach().amax(dims, keepdim=True)
    shift = torch.where(shift.isfinite(), shift, 0)
    mass = (total - shift).exp().sum(dims)
    possible = mass > 0
    log_mass = torch.where(possible, mass, 1).log()
    return torch.where(possible, log_mass, -torch.inf) + shift.reshape(mass.shape)


def tensordot(a: Tensor, b: Tensor, axes: tuple | int) -> Tensor:
    """Sum the product of two operands over pairs of their dimensions."""
    if isinstance(axes, int):
        axes = (range(a.dim() - axes, a.dim()), range(axes))
    left = [chr(ord("a") + i) for i in range(a.dim())]
    right = [chr(ord("A") + i) for i in range(b.dim())]
    for i, j in zip(*axes, strict=True):
        right[j] = left[i]
    shared = {left[i] for i in axes[0]}
    output = [symbol for symbol in left + right if symbol not in shared]
    return einsum(f"{''.join(left)},{''.join(right)}->{''.join(output)}", a, b)
