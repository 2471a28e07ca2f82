"""Bijectors that bring data to zero mean and unit variance."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..bijector import Bijector
from ..memory import _traced as is_traced
from ._raws import RawLinear
from .affine import LocScale

__all__ = ["ActNorm", "BatchNorm"]


class ActNorm(Bijector):
    r"""A location and a scale for each coordinate, which may start from data.

    .. math:: y = \mu(c) + \sigma(c) \odot x

    Until it has been initialised it is a :class:`LocScale` at the identity, and afterwards one at
    the mean and standard deviation of the data that came by. That happens on request alone:

    - :meth:`initialize_` takes the data of this layer, and :meth:`initialize_in_` data of a whole
      flow, so that each of its layers sees what reaches it;
    - with ``first_batch`` set, the first batch in training mode that comes by in that direction
      does it. Data come by the inverse, as under ``log_prob``, unless the layer is in an inverted
      flow. Batches of one point, and those that are traced, compiled or mapped by ``torch.func``,
      are let by.

    Whether it has happened is in the buffer ``initialized``: a layer that was loaded, copied or
    pickled keeps its parameters.

    References:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for a free map. The data set the part that does not
            depend on the context.
        first_batch: ``"inverse"`` or ``"forward"``, the direction whose first batch in training
            mode sets location and scale, or ``None``: then only the methods do.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Raises:
        ValueError: If ``first_batch`` is none of these.

    Example:
        >>> layer = ActNorm(2)
        >>> data = torch.tensor([[1.0, 10.0], [3.0, 50.0]])
        >>> layer.initialize_(data)
        >>> print(layer.inv(data).detach())
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """

    initialized: Tensor

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int = 0,
        first_batch: str | None = None,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(dim, context_dim=context_dim)
        if first_batch is not None:
            _check_direction("ActNorm", "first_batch", first_batch)
        self.first_batch = first_batch
        self.affine = LocScale(dim, context_dim=context_dim, hidden_dims=hidden_dims)
        self.register_buffer("initialized", torch.tensor(False))
        self._is_asked = False

    def initialize_(self, data: Tensor, *, direction: str = "inverse") -> None:
        """Take location and scale from data, in place, whatever they were before.

        Afterwards these data, sent in the given direction, have zero mean and unit variance. A
        column of one value, as in a batch of one point, keeps scale 1, with a warning. A network
        of the context is left as it is.

        Args:
            data: Points, with shape :math:`(*, D)`.
            direction: ``"inverse"`` or ``"forward"``, the direction in which data come by.

        Raises:
            TypeError: If the data are not a tensor.
            ValueError: If they have another width, are empty or not finite.
        """
        name = "ActNorm.initialize_"
        _check_direction(name, "direction", direction)
        if not isinstance(data, Tensor):
            raise TypeError(f"{name} expected data to be a tensor, got {type(data).__name__}.")
        self._check(data, self.dim, "data")
        mean, std = _moments(name, data.detach().reshape(-1, self.dim))
        if direction == "inverse":
            self.affine.set_(mean, std)
        else:
            self.affine.set_(-mean / std, 1 / std)
        self.initialized.fill_(True)

    @staticmethod
    def initialize_in_(
        flow: Bijector,
        data: Tensor,
        context: Tensor | None = None,
        *,
        direction: str = "inverse",
    ) -> None:
        """Send data through a flow once, so that each ``ActNorm`` in it starts from what it sees.

        Args:
            flow: A bijector that holds such layers.
            data: Points, with shape :math:`(*, D)`.
            context: Contexts, with shape :math:`(*, C)`; ``None`` if the flow takes none.
            direction: ``"inverse"`` or ``"forward"``, the direction in which data come by.

        Raises:
            ValueError: If there is no such layer, or as for :meth:`initialize_`.

        Example:
            >>> from pyroflows import build_flow
            >>> flow = build_flow("glow", 3)
            >>> ActNorm.initialize_in_(flow, 5 + 2 * torch.randn(100, 3))
        """
        name = "ActNorm.initialize_in_"
        _check_direction(name, "direction", direction)
        layers = [m for m in flow.modules() if isinstance(m, ActNorm)]
        if not layers:
            raise ValueError(f"{name} found no ActNorm in the {type(flow).__name__}.")
        way = flow.inv if direction == "inverse" else flow
        for layer in layers:
            layer._is_asked = True
        try:
            with torch.no_grad():
                way.forward_and_log_det(data, context)
        finally:
            for layer in layers:
                layer._is_asked = False

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._see(x, "forward")
        return self.affine.forward_and_log_det(x, context)

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._see(y, "inverse")
        return self.affine.inverse_and_log_det(y, context)

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        self._see(x, "forward")
        return self.affine._forward_with_score(x, score, context)

    def _see(self, data: Tensor, direction: str) -> None:
        if self._is_asked or self._is_first(data, direction):
            self._is_asked = False
            self.initialize_(data, direction=direction)

    def _is_first(self, data: Tensor, direction: str) -> bool:
        if direction != self.first_batch or not self.training or data.shape[:-1].numel() < 2:
            return False
        if torch.compiler.is_compiling() or is_traced(data):
            return False
        return not self.initialized  # read last: on a GPU it waits


class BatchNorm(RawLinear):
    r"""Normalises batches that come by the inverse as it trains, and by running statistics after.

    .. math:: x = e^{a(c)} \odot \frac{y - m}{\sqrt{v + \epsilon}} + b(c)

    In evaluation mode :math:`m, v` are the running mean and variance, buffers, and this is a
    bijector like any other. In training mode the *inverse*, which is what scoring data takes,
    uses mean and variance of the batch, over all dimensions but the last, and moves the running
    ones towards them; a batch of one point takes the running ones. The *forward* direction always
    takes the running ones, so draws never depend on each other. In training mode the two
    directions therefore do not undo each other: call ``eval()`` before judging a fit. In a guide,
    whose draws come by forward, the statistics never move: take :class:`ActNorm` there.

    References:
        | Density estimation using Real NVP (Dinh et al., 2016), appendix E
        | https://arxiv.org/abs/1605.08803

        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for a free map.
        momentum: The share of each new batch in the running statistics, in :math:`(0, 1]`.
        epsilon: What is added to variances, positive.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Raises:
        ValueError: If ``momentum`` or ``epsilon`` is out of range.
        RuntimeError: When called, in training mode, under ``torch.func`` or ``torch.compile``,
            which cannot move the statistics.

    Example:
        >>> layer = BatchNorm(2)
        >>> _ = layer.inv(torch.tensor([[1.0, 10.0], [3.0, 50.0]]))
        >>> print(layer.running_mean)
        tensor([0.2000, 3.0000])
        >>> y = layer.eval()(torch.ones(5, 2))
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int = 0,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        shapes = {"shift": (dim,), "log_scale": (dim,)}
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)
        if not 0 < momentum <= 1:
            raise ValueError(f"BatchNorm expected momentum in (0, 1], got {momentum}.")
        if not epsilon > 0:
            raise ValueError(f"BatchNorm expected epsilon > 0, got {epsilon}.")
        self.momentum = momentum
        self.epsilon = epsilon
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.raws(context)
        log_std = 0.5 * (self.running_var + self.epsilon).log()
        log_slope = log_std - log_scale
        y = self.running_mean + log_slope.exp() * (x - shift)
        return y, log_slope.sum(-1).expand(y.shape[:-1])

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.raws(context)
        mean, var = self._statistics(y)
        log_slope = log_scale - 0.5 * (var + self.epsilon).log()
        x = shift + log_slope.exp() * (y - mean)
        return x, log_slope.sum(-1).expand(x.shape[:-1])

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x, context)
        with torch.no_grad():
            log_scale = self.raws(context)[1]
            return y, log_det, score * log_scale.exp() * (self.running_var + self.epsilon).rsqrt()

    def _statistics(self, y: Tensor) -> tuple[Tensor, Tensor]:
        number = y.shape[:-1].numel()
        if not self.training or number < 2:
            return self.running_mean, self.running_var
        if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(y):
            raise RuntimeError(
                "BatchNorm in training mode moves its running statistics, which torch.compile and "
                "torch.func cannot follow: call eval() first."
            )
        batch = tuple(range(y.dim() - 1))
        mean, var = y.mean(batch), y.var(batch, correction=0)
        self._move(self.running_mean, mean)
        self._move(self.running_var, var * (number / (number - 1)))
        return mean, var

    @torch.no_grad()
    def _move(self, running: Tensor, value: Tensor) -> None:
        """Towards the value, unless it is not finite: one bad batch must not stay for good."""
        running.copy_(torch.where(value.isfinite(), running.lerp(value, self.momentum), running))


def _moments(owner: str, data: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column: 1, with a word, where there is one value."""
    if not len(data):
        raise ValueError(f"{owner} expected one or more points, got none.")
    bad = int((~data.isfinite().all(-1)).sum())
    if bad:
        raise ValueError(f"{owner} expected finite data: {bad} of {len(data)} points are not.")
    mean, std = data.mean(0), data.std(0, correction=0)
    constant = (data.amin(0) == data.amax(0)) | (std < torch.finfo(std.dtype).tiny)
    if constant.any():
        which = constant.nonzero()[:, 0].tolist()
        warnings.warn(
            f"{owner}: {len(which)} of {data.shape[-1]} columns have one value in all {len(data)} "
            f"points, so their scale stays 1: {which[:10]}.",
            stacklevel=3,
        )
    return mean, torch.where(constant, 1, std)


def _check_direction(owner: str, name: str, value: object) -> None:
    if value not in ("inverse", "forward"):
        raise ValueError(f'{owner} expected {name} to be "inverse" or "forward", got {value!r}.')
