"""Networks that a user brings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Size, Tensor, nn

from .hermite import Hermite

__all__ = ["Network", "Own"]

Network = Callable[[int, int], nn.Module]  # of the numbers of inputs and outputs


class Own(nn.Module):
    """Any module of vectors as a network that starts at zero.

    Its outputs are multiplied by one trained number each, zero at the start.

    Args:
        network: Called with the numbers of inputs and outputs, returns the module.
        input_dim: Number of inputs.
        output_dim: Number of outputs.

    Raises:
        TypeError: If it is a module itself, or what it returns is not one.
        ValueError: When called, if its outputs have another shape.
    """

    def __init__(self, network: Network, input_dim: int, output_dim: int) -> None:
        super().__init__()
        if isinstance(network, nn.Module):
            raise TypeError(
                "network expected a class or a function of the numbers of inputs and outputs, got "
                f"a {type(network).__name__} that is built already: sizes differ between layers."
            )
        self.module = network(input_dim, output_dim)
        if not isinstance(self.module, nn.Module):
            raise TypeError(
                f"network({input_dim}, {output_dim}) expected to return a torch.nn.Module, got "
                f"{type(self.module).__name__}."
            )
        self.output_dim = output_dim
        self.gain = None
        if not isinstance(self.module, Hermite):  # which starts at zero, and has bounds to keep
            self.gain = nn.Parameter(torch.zeros(output_dim))

    def forward(self, x: Tensor, shape: Size) -> Tensor:
        """The outputs in this shape, ``(*batch, *shape)``; the module sees one batch dimension."""
        batch = x.shape[:-1]
        number = batch.numel()
        out = self.module(x.reshape(number, x.shape[-1]))
        if out.shape != (number, self.output_dim):
            raise ValueError(
                f"The module that network returned, {type(self.module).__name__}, expected to give "
                f"{self.output_dim} outputs for each of {number} points, got {tuple(out.shape)}."
            )
        return (out if self.gain is None else self.gain * out).view(*batch, *shape)
