"""What networks are made of: chains of linear layers and activations, and checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

__all__ = [
    "FINAL_SCALE",
    "Activation",
    "Chain",
    "MaskedLinear",
    "check_given",
    "check_hidden",
    "concatenate",
]

Activation = str | type[nn.Module]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
FINAL_SCALE = 0.0  # raws start at zero, so that flows start at the identity


class Chain(nn.Module):
    r"""A chain :math:`h \leftarrow [h +] W a(h) + b` on pre-activations, linear at both ends."""

    def __init__(
        self, linears: Sequence[nn.Linear], activation: Activation, residual: bool
    ) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)
        self.activation = _activation(activation)
        self.residual = residual
        with torch.no_grad():
            for parameter in linears[-1].parameters():
                parameter.mul_(FINAL_SCALE)

    def forward(self, x: Tensor, shape: Size) -> Tensor:
        """The outputs in this shape, ``(*batch, *shape)``."""
        *hidden, last = self.linears
        h, active = None, x
        for i, linear in enumerate(hidden):
            out = linear(active)
            h = h + out if self._skips(i) else out
            active = self.activation(h)
        return _outputs_first(active, _weight(last), last.bias, shape)

    def trace(self, x: Tensor, shape: Size) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The outputs, the weights and the slopes of the activations, the latter two detached."""
        weights, slopes = [_weight(linear) for linear in self.linears], []
        h, active = None, x
        for i, (linear, weight) in enumerate(zip(self.linears[:-1], weights, strict=False)):
            out = F.linear(active, weight, linear.bias)
            h = h + out if self._skips(i) else out
            active = self.activation(h)
            slopes.append(self._slope(h, active))
        out = _outputs_first(active, weights[-1], self.linears[-1].bias, shape)
        return out, [w.detach() for w in weights], slopes

    def pull(
        self, rows: Tensor, weights: list[Tensor], slopes: list[Tensor], counts: list[int]
    ) -> Tensor:
        """Rows of cotangents of the last hidden layer, pulled back to the inputs.

        Only so many units of each hidden layer take part; the rows may be written on.
        """
        if not counts:
            return rows
        rows.mul_(slopes[-1][:, : counts[-1]])
        for i in range(len(counts) - 1, 0, -1):
            back = rows @ weights[i][: counts[i], : counts[i - 1]]
            back.mul_(slopes[i - 1][:, : counts[i - 1]])
            rows = rows + back if self._skips(i) else back
        return rows @ weights[0][: counts[0]]

    def _skips(self, i: int) -> bool:
        return self.residual and 0 < i < len(self.linears) - 1

    def _slope(self, h: Tensor, active: Tensor) -> Tensor:
        if isinstance(self.activation, nn.ReLU):
            return (active.detach() > 0).to(h.dtype)
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            return torch.autograd.grad(self.activation(h).sum(), h)[0]


class MaskedLinear(nn.Linear):
    """A linear layer with some weights held at zero, of shape (outputs, inputs)."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


def _outputs_first(h: Tensor, weight: Tensor, bias: Tensor, shape: Size) -> Tensor:
    """A linear layer whose memory runs along the batch, then along the coordinates.

    Transformers work along each raw parameter of all scalars, so the rows of the weight hold the
    first raw parameter of every coordinate, then the second; the product costs the same.
    """
    batch = h.shape[:-1]
    out = torch.addmm(bias[:, None], weight, h.reshape(-1, h.shape[-1]).mT)
    out = out.view(*reversed(shape), *batch)
    number = len(shape)
    return out.permute(*range(number, out.dim()), *reversed(range(number)))


def check_hidden(hidden_dims: Sequence[int], residual: bool = False) -> tuple[int, ...]:
    """Return the sizes of hidden layers as a tuple, if they are sizes."""
    sizes = tuple(hidden_dims) if isinstance(hidden_dims, Sequence) else (hidden_dims,)
    if not isinstance(hidden_dims, Sequence) or not all(
        isinstance(size, int) and size > 0 for size in sizes
    ):
        raise ValueError(
            f"hidden_dims expected a sequence of positive ints such as (64, 64), got {hidden_dims}."
        )
    if residual and len(set(sizes)) > 1:
        raise ValueError(f"A residual network needs hidden_dims of one size, got {sizes}.")
    return sizes


def _activation(activation: Activation) -> nn.Module:
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        return activation()
    if activation not in _ACTIVATIONS:
        known = ", ".join(map(repr, _ACTIVATIONS))
        raise ValueError(
            f"activation expected one of {known} or a module class, got {activation!r}."
        )
    return _ACTIVATIONS[activation]()


def _weight(linear: nn.Linear) -> Tensor:
    return linear.weight * linear.mask if isinstance(linear, MaskedLinear) else linear.weight


def check_given(name: str, value: Tensor | None, dim: int) -> None:
    """Refuse what is missing, unexpected or of another width than ``dim``."""
    if (value is not None) != (dim > 0):
        expected = f"{name} of shape (*, {dim})" if dim else f"no {name}"
        raise TypeError(f"The conditioner expected {expected}, got {_describe(value)}.")
    if value is not None and not torch.jit.is_tracing() and value.shape[-1:] != (dim,):
        raise ValueError(
            f"The conditioner expected {name} of shape (*, {dim}), got {_describe(value)}."
        )


def _describe(value: Tensor | None) -> str:
    return "none" if value is None else str(tuple(value.shape))


def concatenate(*tensors: Tensor | None) -> Tensor:
    """Join what is given along the last dimension, broadcasting the others."""
    given = [t for t in tensors if t is not None]
    if len(given) == 1:
        return given[0]
    batch = torch.broadcast_shapes(*(t.shape[:-1] for t in given))
    return torch.cat([t.expand(*batch, t.shape[-1]) for t in given], dim=-1)
