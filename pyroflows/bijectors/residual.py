"""Invertible residual layers: the identity plus a contraction."""

from __future__ import annotations

import math
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
    is an unbiased estimate by the power series of the logarithm, along random directions: some
    terms for sure, each later one with :math:`L` times the probability of the one before. What a
    term is multiplied by is then less than what the contraction divides it by: the estimate is
    bounded. It takes :math:`L / (1 - L)` terms in the mean beside the sure ones.

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
        num_probes: Random directions of the estimate, of independent signs.
        noise: ``"fixed"``: directions and number of terms are drawn once, from the seed, and are
            the same for all calls and points, so that a log density is a function. Long training
            may fit the layer to them; with ``"fresh"`` each call in training mode has a number of
            terms of its own, and each point directions; evaluation mode has the fixed ones.
        seed: Of the noise that is fixed. Layers of one flow should differ in it.

    Raises:
        TypeError: If ``hidden_dims`` is not a sequence of integers.
        ValueError: If ``lipschitz`` is not between 0 and 1, a number is too small, ``noise`` is
            neither of those named, or there are no hidden layers.
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
        num_probes: int = 1,
        noise: str = "fixed",
        seed: int = 0,
    ) -> None:
        super().__init__(dim, context_dim=context_dim)
        if not isinstance(hidden_dims, Sequence) or not all(type(n) is int for n in hidden_dims):
            raise TypeError(
                f"Residual expected hidden_dims to be ints such as (64, 64), got {hidden_dims!r}."
            )
        sizes = {f"hidden_dims[{i}]": size for i, size in enumerate(hidden_dims)}
        sizes |= {"num_terms": num_terms, "num_probes": num_probes}
        _check(lipschitz, max_exact_dim, noise, sizes)
        if not hidden_dims:
            raise ValueError("Residual expected one or more hidden_dims, got none.")
        self.lipschitz, self.max_exact_dim, self.num_terms = lipschitz, max_exact_dim, num_terms
        self.noise = noise
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise([dim, *hidden_dims, dim]))
        self.context = nn.Linear(context_dim, hidden_dims[0], bias=False) if context_dim else None
        with torch.no_grad():
            self.linears[-1].weight.mul_(_START)
            self.linears[-1].bias.zero_()
        self._draw_noise(num_probes, seed)

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

    def _draw_noise(self, num_probes: int, seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)  # the same on every device
        signs = torch.randint(2, (num_probes, self.dim), generator=generator, device="cpu")
        own = self.linears[0].weight
        self.register_buffer("probes", (2 * signs - 1).to(own), persistent=False)
        number = torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
        self._weights = _term_weights(1 - float(number), self.num_terms, self.lipschitz)

    def _estimated_log_det(self, pull: Callable, x: Tensor) -> Tensor:
        shape, weights = (len(self.probes), *x.shape), self._weights
        noise = self.probes.view(shape[0], *[1] * (x.dim() - 1), self.dim).expand(shape)
        if self.noise == "fresh" and self.training:
            noise = 2 * torch.randint(2, shape, dtype=x.dtype, device=x.device) - 1
            number = float(torch.rand((), dtype=torch.float64, device="cpu"))
            weights = _term_weights(1 - number, self.num_terms, self.lipschitz)
        pull_all, product, total = vmap(pull), noise, 0.0
        for k, weight in enumerate(weights, 1):
            (product,) = pull_all(product)
            sign = 1 if k % 2 else -1
            total = total + sign * weight / k * (product * noise).sum(-1).mean(0)
        return total


def _term_weights(number: float, num_sure: int, kept: float) -> list[float]:
    """One over the probability that each term is taken, for the terms that this number takes.

    The number is uniform in (0, 1]. Each term after the sure ones is kept, if the one before was,
    with the given probability.
    """
    num_extra = int(math.log(number) / math.log(kept))
    return [1.0] * num_sure + [kept**-i for i in range(1, num_extra + 1)]


def _check(lipschitz: float, max_exact_dim: int, noise: str, sizes: dict[str, int]) -> None:
    if not 0 < lipschitz < 1:
        raise ValueError(f"Residual expected lipschitz between 0 and 1, got {lipschitz}.")
    if max_exact_dim < 0:
        raise ValueError(f"Residual expected max_exact_dim to be at least 0, got {max_exact_dim}.")
    if noise not in ("fixed", "fresh"):
        raise ValueError(f"Residual expected noise to be one of 'fixed', 'fresh', got {noise!r}.")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"Residual expected {name} to be positive, got {size}.")


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
