"""Invertible residual layers: the identity plus a contraction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from ..bijector import Bijector

__all__ = ["Residual"]

_START = 0.01  # of the last layer's weights: near the identity, with a gradient for all layers
_STEEPEST = 1.1  # slope of silu, which is less
_SQUARINGS = 4


class Residual(Bijector):
    r"""An invertible residual layer: what is added is a contraction.

    .. math:: y = x + g(x; c), \qquad \operatorname{Lip}(g) \le L < 1, \qquad
        \log |\det J| = \log \det (I + \partial g / \partial x)

    Each weight matrix of :math:`g` is divided by as much as an upper bound of its largest singular
    value exceeds its share of :math:`L`. The bound is the Schatten norm :math:`(\sum_i
    \sigma_i^{32})^{1/32}`, smooth, and at most a seventh above for 64 singular values; it needs no
    power iteration with a state. The activation is silu over 1.1, with slopes below one. Newton's
    method inverts.

    Up to ``max_exact_dim`` coordinates the log-determinant is exact, from the Jacobian. Above it
    is an unbiased estimate by the power series of the logarithm, some terms for sure and more
    with falling probability, each along random directions. Its noise is held fixed within a call.
    In training mode each call has noise of its own; in evaluation mode it is always the same.

    References:
        | Invertible Residual Networks (Behrmann et al., 2019), https://arxiv.org/abs/1811.00995
        | Residual Flows for Invertible Generative Modeling (Chen et al., 2019)
        | https://arxiv.org/abs/1906.02735

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for none. It moves the first hidden layer.
        hidden_dims: Sizes of the hidden layers.
        lipschitz: The bound :math:`L`, below one.
        max_exact_dim: Most coordinates for which the log-determinant is exact.
        num_terms: Terms of the series that the estimate always takes.

    Raises:
        ValueError: If ``lipschitz`` is not between 0 and 1, a size is not positive, or there are
            no hidden layers.
        RuntimeError: From the inverse, if Newton's method does not converge.

    Example:
        >>> layer = Residual(2, hidden_dims=(16,))
        >>> y = layer(torch.ones(5, 2))
    """

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        lipschitz: float = 0.97,
        max_exact_dim: int = 32,
        num_terms: int = 8,
    ) -> None:
        super().__init__(dim, context_dim=context_dim)
        if not 0 < lipschitz < 1:
            raise ValueError(f"Residual expected lipschitz between 0 and 1, got {lipschitz}.")
        sizes = {"max_exact_dim": max_exact_dim + 1, "num_terms": num_terms}
        sizes |= {f"hidden_dims[{i}]": size for i, size in enumerate(hidden_dims)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"Residual expected {name} to be positive, got {size}.")
        if not hidden_dims:
            raise ValueError("Residual expected one or more hidden_dims, got none.")
        self.lipschitz, self.max_exact_dim, self.num_terms = lipschitz, max_exact_dim, num_terms
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise([dim, *hidden_dims, dim]))
        self.context = nn.Linear(context_dim, hidden_dims[0], bias=False) if context_dim else None
        with torch.no_grad():
            self.linears[-1].weight.mul_(_START)
            self.linears[-1].bias.zero_()

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if context is not None:
            x = x.expand(*torch.broadcast_shapes(x.shape[:-1], context.shape[:-1]), self.dim)
        moved, pull = vjp(self._contraction(context), x)
        if self.dim <= self.max_exact_dim:
            return x + moved, _exact_log_det(pull, x)
        return x + moved, self._estimated_log_det(pull, x)

    def _contraction(self, context: Tensor | None) -> Callable[[Tensor], Tensor]:
        share = self.lipschitz ** (1 / len(self.linears))
        weights = [_at_most(linear.weight, share) for linear in self.linears]
        shift = 0 if context is None else self.context(context)

        def contraction(x: Tensor) -> Tensor:
            h = torch.nn.functional.linear(x, weights[0], self.linears[0].bias) + shift
            for weight, linear in zip(weights[1:], self.linears[1:], strict=True):
                h = torch.nn.functional.silu(h) / _STEEPEST
                h = torch.nn.functional.linear(h, weight, linear.bias)
            return h

        return contraction

    def _estimated_log_det(self, pull: Callable, x: Tensor) -> Tensor:
        generator = None
        if not self.training:
            generator = torch.Generator(x.device).manual_seed(0)
        signs = torch.randint(2, (self.dim,), generator=generator, device=x.device)
        if self.training:
            signs = torch.randint(2, x.shape, device=x.device)
        noise = (2 * signs - 1).to(x.dtype).expand_as(x)
        number = torch.rand((), generator=generator, device=x.device)
        # A term beyond the sure ones comes with half the probability of the one before.
        extra = int(-torch.log2(number.clamp_min(1e-9)))
        product, total = noise, x.new_zeros(x.shape[:-1])
        for k in range(1, self.num_terms + extra + 1):
            product = pull(product)[0]
            weight = 2.0 ** max(k - self.num_terms, 0) * (1 if k % 2 else -1) / k
            total = total + weight * (product * noise).sum(-1)
        return total


def _exact_log_det(pull: Callable, x: Tensor) -> Tensor:
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    basis = eye.view(len(eye), *[1] * (x.dim() - 1), len(eye)).expand(-1, *x.shape)
    rows = vmap(pull)(basis)[0].movedim(0, -2)
    return torch.linalg.slogdet(eye + rows).logabsdet


def _at_most(weight: Tensor, bound: float) -> Tensor:
    """The weights, divided so that no singular value exceeds the bound."""
    wide = weight.shape[0] < weight.shape[1]
    gram = weight @ weight.mT if wide else weight.mT @ weight
    size = (gram.square().sum() + torch.finfo(weight.dtype).tiny).sqrt()
    power = gram / size
    for _ in range(_SQUARINGS - 1):
        power = power @ power
    # The trace of the gram matrix to the power of 16: no singular value is above its 32nd root.
    norm = size.sqrt() * (power.square().sum() + torch.finfo(weight.dtype).tiny) ** (1 / 32)
    return weight / (norm / bound).clamp_min(1)
