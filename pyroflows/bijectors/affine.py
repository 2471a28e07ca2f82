"""Affine bijectors: diagonal, full, low rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._raws import RawLinear, solve, times

__all__ = ["FullAffine", "LocScale", "LowRankAffine"]


class LocScale(RawLinear):
    r"""A location and a positive scale for each coordinate.

    .. math:: y = \mu_0 + \sigma_0 \odot (\mu(c) + e^{a(c)} \odot x)

    The anchor :math:`(\mu_0, \sigma_0)` is a fixed buffer that :meth:`set_` writes, and
    :math:`\mu, a` are trained. They are relative to the anchor, so that one learning rate suits a
    posterior at :math:`5 \cdot 10^4 \pm 10^{-3}` as well as one at :math:`0 \pm 1`.

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for a free map.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Example:
        >>> bijector = LocScale(2)
        >>> bijector.set_(torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5]))
        >>> print(bijector(torch.ones(2)))
        tensor([ 5.0000, -0.5000], grad_fn=<AddBackward0>)
    """

    def __init__(
        self, dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        shapes = {"loc": (dim,), "log_scale": (dim,)}
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)
        self.register_buffer("anchor_loc", torch.zeros(dim))
        self.register_buffer("anchor_scale", torch.ones(dim))

    def set_(self, loc: Tensor, scale: Tensor) -> None:
        r"""Make this the map :math:`y = \mu + \sigma x`, in place, without a graph.

        Args:
            loc: The location, with shape :math:`(D)`.
            scale: The positive scale, with shape :math:`(D)`.

        Raises:
            ValueError: If a shape is wrong, or a value is not finite or a scale not positive.
        """
        self.expect("loc", loc, (self.dim,))
        self.expect("scale", scale, (self.dim,))
        _check_positive(f"{type(self).__name__}.set_", "scale", scale)
        self.reset(anchor_loc=loc, anchor_scale=scale)

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.raws(context)
        y = self.anchor_loc + self.anchor_scale * (loc + log_scale.exp() * x)
        return y, self._log_det(log_scale).expand(y.shape[:-1])

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.raws(context)
        x = ((y - self.anchor_loc) / self.anchor_scale - loc) * (-log_scale).exp()
        return x, -self._log_det(log_scale).expand(x.shape[:-1])

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x, context)
        with torch.no_grad():
            log_scale = self.raws(context)[1]
            return y, log_det, score * (-log_scale).exp() / self.anchor_scale

    def _log_det(self, log_scale: Tensor) -> Tensor:
        return (self.anchor_scale.log() + log_scale).sum(-1)


class FullAffine(RawLinear):
    r"""A location and a lower-triangular matrix with a positive diagonal.

    .. math:: y = \mu_0 + L_0 (\mu(c) + L(c) x), \qquad L = \operatorname{diag}(e^{a}) (I + T)

    with :math:`T` strictly lower triangular. The anchor :math:`(\mu_0, L_0)` is a fixed buffer
    that :meth:`set_` writes, and :math:`\mu, a, T` are trained. They are relative to the anchor,
    so that one learning rate suits correlated posteriors of any scale.

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for a free map.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Example:
        >>> bijector = FullAffine(2)
        >>> bijector.set_(torch.zeros(2), torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
        >>> print(bijector(torch.ones(2)))
        tensor([2., 4.], grad_fn=<AddBackward0>)
    """

    def __init__(
        self, dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        shapes = {"loc": (dim,), "log_scale": (dim,)}
        if dim > 1:  # one coordinate has nothing below its diagonal to train
            shapes["lower"] = (dim, dim)
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)
        self.register_buffer("anchor_loc", torch.zeros(dim))
        self.register_buffer("anchor_scale_tril", torch.eye(dim))

    def set_(self, loc: Tensor, scale_tril: Tensor) -> None:
        r"""Make this the map :math:`y = \mu + L x`, in place, without a graph.

        Args:
            loc: The location, with shape :math:`(D)`.
            scale_tril: A lower-triangular matrix with a positive diagonal, with shape
                :math:`(D, D)`.

        Raises:
            ValueError: If a shape is wrong, or a value is not finite or a diagonal not positive.
        """
        self.expect("loc", loc, (self.dim,))
        self.expect("scale_tril", scale_tril, (self.dim, self.dim))
        name = f"{type(self).__name__}.set_"
        _check_positive(name, "the diagonal of scale_tril", scale_tril.diagonal())
        if scale_tril.triu(1).any():
            raise ValueError(f"{name} expected scale_tril to be lower triangular.")
        self.reset(anchor_loc=loc, anchor_scale_tril=scale_tril)

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        loc, log_scale, lower = self._maps(context)
        inner = loc + log_scale.exp() * (x + times(lower, x))
        y = self.anchor_loc + times(self.anchor_scale_tril, inner)
        return y, self._log_det(log_scale).expand(y.shape[:-1])

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        loc, log_scale, lower = self._maps(context)
        inner = solve(self.anchor_scale_tril, y - self.anchor_loc)
        x = solve(lower, (inner - loc) * (-log_scale).exp(), unit=True)
        return x, -self._log_det(log_scale).expand(x.shape[:-1])

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x, context)
        with torch.no_grad():
            _, log_scale, lower = self._maps(context)
            inner = solve(lower.mT, score, upper=True, unit=True)
            inner = inner * (-log_scale).exp()
            return y, log_det, solve(self.anchor_scale_tril.mT, inner, upper=True)

    def _maps(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        loc, log_scale, *lower = self.raws(context)
        return loc, log_scale, lower[0].tril(-1) if lower else loc.new_zeros(1, 1)

    def _log_det(self, log_scale: Tensor) -> Tensor:
        return (self.anchor_scale_tril.diagonal().log() + log_scale).sum(-1)


class LowRankAffine(RawLinear):
    r"""A location, a scale for each coordinate, and a stretch along a few directions.

    .. math:: y = \mu_0 + \sigma_0 \odot M(c) (\mu(c) + e^{a(c)} \odot x), \qquad
        M = I + Q \operatorname{diag}(e^{b_0 + b(c)} - 1) Q^\top

    :math:`Q`, with shape :math:`(D, r)`, has orthonormal columns: the Q of a QR decomposition of
    a fixed basis plus raw parameters. No matrix of :math:`D \times D` is formed, so this suits
    high dimension. The anchor :math:`(\mu_0, \sigma_0, b_0)` and the basis are fixed buffers that
    :meth:`set_` writes; the rest is trained, relative to them.

    Args:
        dim: Size :math:`D` of the vectors.
        rank: Number :math:`r` of directions, at most :math:`D`.
        context_dim: Size of the context, or 0 for a free map.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Raises:
        ValueError: If ``rank`` is not in 1 to ``dim``.

    Example:
        >>> y = LowRankAffine(100, rank=5)(torch.ones(7, 100))
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= dim:
            raise ValueError(f"LowRankAffine expected rank to be an int in 1..{dim}, got {rank}.")
        shapes = {
            "loc": (dim,),
            "log_scale": (dim,),
            "directions": (dim, rank),
            "log_stretch": (rank,),
        }
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)
        self.rank = rank
        self.register_buffer("anchor_loc", torch.zeros(dim))
        self.register_buffer("anchor_scale", torch.ones(dim))
        self.register_buffer("anchor_log_stretch", torch.zeros(rank))
        self.register_buffer("basis", torch.eye(dim, rank))

    def set_(self, loc: Tensor, scale: Tensor, directions: Tensor, log_stretch: Tensor) -> None:
        r"""Make this :math:`y = \mu + \sigma (I + Q \operatorname{diag}(e^b - 1) Q^\top) x`.

        In place, without a graph.

        Args:
            loc: The location :math:`\mu`, with shape :math:`(D)`.
            scale: The positive scale :math:`\sigma`, with shape :math:`(D)`.
            directions: Orthonormal columns :math:`Q`, with shape :math:`(D, r)`.
            log_stretch: The log-stretches :math:`b`, with shape :math:`(r)`.

        Raises:
            ValueError: If a shape is wrong, a value is not finite, a scale not positive or the
                directions are not orthonormal.
        """
        self.expect("loc", loc, (self.dim,))
        self.expect("scale", scale, (self.dim,))
        self.expect("directions", directions, (self.dim, self.rank))
        self.expect("log_stretch", log_stretch, (self.rank,))
        name = f"{type(self).__name__}.set_"
        _check_positive(name, "scale", scale)
        eye = torch.eye(self.rank, dtype=directions.dtype, device=directions.device)
        if (directions.mT @ directions - eye).abs().max() > 1e-3:
            raise ValueError(f"{name} expected directions with orthonormal columns.")
        self.reset(
            anchor_loc=loc, anchor_scale=scale, anchor_log_stretch=log_stretch, basis=directions
        )

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        loc, log_scale, directions, log_stretch = self._maps(context)
        inner = _stretch(directions, log_stretch, loc + log_scale.exp() * x)
        y = self.anchor_loc + self.anchor_scale * inner
        return y, self._log_det(log_scale, log_stretch).expand(y.shape[:-1])

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        loc, log_scale, directions, log_stretch = self._maps(context)
        inner = _stretch(directions, -log_stretch, (y - self.anchor_loc) / self.anchor_scale)
        x = (inner - loc) * (-log_scale).exp()
        return x, -self._log_det(log_scale, log_stretch).expand(x.shape[:-1])

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x, context)
        with torch.no_grad():
            _, log_scale, directions, log_stretch = self._maps(context)
            inner = _stretch(directions, -log_stretch, score * (-log_scale).exp())
            return y, log_det, inner / self.anchor_scale

    def _maps(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loc, log_scale, directions, log_stretch = self.raws(context)
        directions = torch.linalg.qr(self.basis + directions).Q
        return loc, log_scale, directions, self.anchor_log_stretch + log_stretch

    def _log_det(self, log_scale: Tensor, log_stretch: Tensor) -> Tensor:
        return (self.anchor_scale.log() + log_scale).sum(-1) + log_stretch.sum(-1)


def _stretch(directions: Tensor, log_stretch: Tensor, x: Tensor) -> Tensor:
    r"""The product :math:`(I + Q \operatorname{diag}(e^b - 1) Q^\top) x`."""
    return x + times(directions, log_stretch.expm1() * times(directions.mT, x))


def _check_positive(owner: str, name: str, value: Tensor) -> None:
    if not (value > 0).all():
        raise ValueError(f"{owner} expected {name} to be positive, got {float(value.min()):g}.")
