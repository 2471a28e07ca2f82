"""The contract: what a base is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from pyro.distributions import Distribution, TorchDistribution, constraints
from torch import Size, Tensor, nn

from ..inference_mode import usable
from ..networks import Conditioner

__all__ = ["Base", "VectorDistribution"]


class Base(nn.Module, ABC):
    r"""A distribution that a flow starts from, with parameters that are trained or fixed.

    To write one, implement :meth:`distribution`. It is asked for at every use, so that what it
    returns depends on the parameters of now, in their dtype and on their device. Its ``rsample``
    must carry gradients to them, and its ``log_prob`` must be differentiable in the point.

    Args:
        dim: Size :math:`D` of the vectors.
        shapes: Shapes of the raw parameters by name; all start at zero.
        context_dim: Size :math:`C` of the context, or 0 for a base without.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Attributes:
        support: Where the vectors live.

    Raises:
        ValueError: If a size is not an integer, or too small.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> class Shifted(Base):
        ...     def __init__(self, dim, *, context_dim=0):
        ...         super().__init__(dim, {"loc": (dim,)}, context_dim=context_dim)
        ...
        ...     def distribution(self, context=None):
        ...         loc = self.raws(context)["loc"]
        ...         return dist.Laplace(loc, torch.ones_like(loc)).to_event(1)
        >>> Shifted(3).distribution().rsample((5,)).shape
        torch.Size([5, 3])
    """

    support: constraints.Constraint = constraints.real_vector

    def __init__(
        self,
        dim: int,
        shapes: dict[str, Sequence[int]] | None = None,
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        for name, size, smallest in (("dim", dim, 1), ("context_dim", context_dim, 0)):
            if isinstance(size, bool) or not isinstance(size, int) or size < smallest:
                raise ValueError(
                    f"{type(self).__name__} expected {name} to be an int >= {smallest}, "
                    f"got {size!r}."
                )
        self.dim = dim
        self.context_dim = context_dim
        self._shapes = {name: Size(shape) for name, shape in (shapes or {}).items()}
        for name, shape in self._shapes.items():
            self.register_parameter(f"raw_{name}", nn.Parameter(torch.zeros(shape)))
        self.conditioner = None
        if context_dim and self._shapes:
            size = sum(shape.numel() for shape in self._shapes.values())
            self.conditioner = Conditioner(
                0, (size,), context_dim=context_dim, hidden_dims=hidden_dims
            )

    @abstractmethod
    def distribution(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution of now: of event shape ``(D,)``, with ``rsample``.

        Args:
            context: Contexts, with shape ``(*, C)``, whose batch is that of the distribution;
                ``None`` if ``context_dim`` is 0.
        """

    def center(self, context: Tensor | None = None) -> Tensor:
        """Return a point in the middle, with shape ``(*, D)``: the mean unless overridden."""
        return self.distribution(context).mean

    def log_prob(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """Score points of shape ``(*, D)``."""
        return self.distribution(context).log_prob(value)

    def score(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Return :math:`\nabla_z \log q(z)`, parameters held fixed; detached, shape ``(*, D)``."""
        with torch.inference_mode(False), torch.enable_grad():
            point = usable(value).detach().requires_grad_()
            log_prob = self.log_prob(point, context).sum()
            if not log_prob.requires_grad:
                return torch.zeros_like(point, requires_grad=False)
            return torch.autograd.grad(log_prob, point, materialize_grads=True)[0]

    def raws(self, context: Tensor | None = None) -> dict[str, Tensor]:
        """Return the raw parameters by name, moved by the network of the context."""
        self.check_context(context)
        free = {name: getattr(self, f"raw_{name}") for name in self._shapes}
        if self.conditioner is None:
            return free
        sizes = [shape.numel() for shape in self._shapes.values()]
        moved = self.conditioner(None, context).split(sizes, dim=-1)
        return {
            name: free[name] + shift.unflatten(-1, shape)
            for (name, shape), shift in zip(self._shapes.items(), moved, strict=True)
        }

    def check_context(self, context: Tensor | None) -> None:
        """Raise unless there is a context exactly where one is due, of the right width.

        Raises:
            TypeError: If it is missing or unexpected.
            ValueError: If it has another width than ``context_dim``.
        """
        name = type(self).__name__
        if self.context_dim and context is None:
            raise TypeError(
                f"{name} needs a context of shape (*, {self.context_dim}) but got None."
            )
        if context is None:
            return
        if not self.context_dim:
            raise TypeError(
                f"{name} takes no context (context_dim=0) but got one: leave it out, or build the "
                "base with context_dim."
            )
        if context.shape[-1:] != (self.context_dim,):
            raise ValueError(
                f"{name} expected context of shape (*, {self.context_dim}), got "
                f"{tuple(context.shape)}."
            )

    def extra_repr(self) -> str:
        return f"{self.dim}" + (f", context_dim={self.context_dim}" if self.context_dim else "")


class VectorDistribution(TorchDistribution):
    """A distribution of vectors that is made of some tensors.

    Subclasses implement ``rsample`` and ``log_prob``, and read the tensors by name.

    Args:
        dim: Size of the vectors.
        params: Tensors by name, with shape ``(*batch, *own)``.
        own_dims: How many dimensions ``own`` has, by name.
    """

    has_rsample = True
    arg_constraints: dict = {}  # noqa: RUF012  torch looks for a plain dict
    support = constraints.real_vector

    def __init__(self, dim: int, params: dict[str, Tensor], own_dims: dict[str, int]) -> None:
        self._own_dims = own_dims
        batches = [p.shape[: p.dim() - own_dims[name]] for name, p in params.items()]
        super().__init__(torch.broadcast_shapes(*batches), Size((dim,)), validate_args=False)
        self._keep(params)

    def _keep(self, params: dict[str, Tensor]) -> None:
        for name, param in params.items():
            own = param.shape[param.dim() - self._own_dims[name] :]
            setattr(self, name, param.expand(self.batch_shape + own))

    def expand(self, batch_shape: Size, _instance: None = None) -> VectorDistribution:
        """Return this distribution with a larger batch."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        TorchDistribution.__init__(new, Size(batch_shape), self.event_shape, validate_args=False)
        new._keep({name: getattr(self, name) for name in self._own_dims})
        return new
