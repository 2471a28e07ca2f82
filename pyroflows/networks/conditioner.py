"""Raw parameters as a function of inputs and a context."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Size, Tensor, nn

from .angles import Angles
from .chain import FINAL_SCALE, Activation, Chain, check_given, check_hidden, concatenate
from .own import Network, Own

__all__ = ["Conditioner"]


class Conditioner(nn.Module):
    """Raw parameters as a function of some inputs and a context.

    With neither, it is a free parameter: a constant is a network without inputs. That one rule
    makes a bijector conditional, and lets a coupling layer work in one dimension.

    Args:
        input_dim: Size of the inputs, or 0 for none.
        shape: Shape of the raw parameters of one event.
        context_dim: Size of the context, or 0 for none.
        hidden_dims: Sizes of the hidden layers.
        activation: ``"relu"``, ``"tanh"``, ``"elu"``, ``"silu"``, ``"gelu"`` or a module class
            that acts elementwise.
        residual: Whether each hidden layer after the first adds to the one before it, which
            needs hidden layers of one size.
        network: A network of one's own in place of the above: called with the numbers of inputs
            (the inputs proper, then the context) and outputs, it returns a module that takes and
            gives them, with one batch dimension, each point alone. Its outputs are multiplied by
            trained numbers that start at zero. ``nn.Linear`` will do, or :class:`Hermite`.
        periods: Of each input its period if it is an angle, which the network then takes as two
            inputs, cosine and sine, else ``None``; without angles if not given.

    Raises:
        TypeError: If ``network`` returns no module or, when called, inputs or context are missing
            or unexpected.
        ValueError: If an option is wrong or, when called, a width.

    Example:
        >>> network = Conditioner(2, (3, 4), context_dim=1)
        >>> print(network(torch.ones(7, 2), torch.ones(7, 1)).shape)
        torch.Size([7, 3, 4])
    """

    def __init__(
        self,
        input_dim: int,
        shape: Sequence[int],
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        residual: bool = False,
        network: Network | None = None,
        periods: Sequence[float | None] = (),
    ) -> None:
        super().__init__()
        self.shape = Size(shape)
        self.input_dim = input_dim
        self.context_dim = context_dim
        self.angles = Angles(periods)
        self.net = None
        if input_dim + context_dim == 0:
            self.raw = nn.Parameter(FINAL_SCALE * torch.randn(self.shape))
        elif network is not None:
            self.net = Own(network, self._width, self.shape.numel())
        else:
            dims = [self._width, *check_hidden(hidden_dims, residual)]
            linears = [nn.Linear(i, o) for i, o in pairwise([*dims, self.shape.numel()])]
            self.net = Chain(linears, activation, residual)

    def forward(self, inputs: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Return the raw parameters, with shape ``(*batch, *shape)``, or ``shape`` if free."""
        check_given("inputs", inputs, self.input_dim)
        check_given("context", context, self.context_dim)
        if self.net is None:
            return self.raw
        seen = None if inputs is None else self.angles.embed(inputs)
        return self.net(concatenate(seen, context), self.shape)

    @property
    def _width(self) -> int:
        return self.input_dim + len(self.angles) + self.context_dim
