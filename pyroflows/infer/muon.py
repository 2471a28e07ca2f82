"""The optimizer of flows: Muon for the matrices of their networks, Adam for all else."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ..networks import Chain

__all__ = ["Muon", "MuonAdam", "network_matrices"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3, x^5, as in the reference
_ITERATIONS = 5
# In nats: the slope of the ELBO below which Adam's steps are no longer of one length. Without it,
# what few draws depend on, as the outer bins of a spline, walks at random.
_EPS = 1e-3
_LIKE_ADAM = 0.2  # the root mean square of Adam's steps, in learning rates
_BETAS = (0.9, 0.95)  # a rare large gradient is forgotten in twenty steps, not in a thousand


class Muon(Optimizer):
    r"""Steps that turn all directions of a matrix alike.

    .. math:: M \leftarrow \beta M + (1 - \beta) G, \qquad
        W \leftarrow W - 0.2 \, \eta \sqrt{\max(m, n)} \; U V^\top

    with :math:`U S V^\top = (1 - \beta) G + \beta M`, whose singular values are set to about one by
    five steps of a matrix polynomial. Matrices of a size go through them together.

    References:
        | Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024),
          https://kellerjordan.github.io/posts/muon/
        | Muon is Scalable for LLM Training (Liu et al., 2025), for the length of a step,
          https://arxiv.org/abs/2502.16982

    Args:
        params: Matrices, or stacks of them of shape ``(*, m, n)``.
        lr: The learning rate.
        momentum: The decay :math:`\beta` of the mean of gradients.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-2, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[tuple, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape, p.dtype, p.device].append(p)
            for params in alike.values():
                self._step(params, **{name: group[name] for name in ("lr", "momentum")})

    def _step(self, params: list[Tensor], lr: float, momentum: float) -> None:
        for p in params:
            self.state[p].setdefault("mean", torch.zeros_like(p))
        means, grads = [self.state[p]["mean"] for p in params], [p.grad for p in params]
        torch._foreach_lerp_(means, grads, 1 - momentum)
        ahead = torch.stack(torch._foreach_lerp(grads, means, momentum))
        length = _LIKE_ADAM * lr * math.sqrt(max(ahead.shape[-2:]))
        torch._foreach_add_(params, _orthogonal(ahead).unbind(), alpha=-length)


def _orthogonal(matrices: Tensor) -> Tensor:
    """The orthogonal factors, about; zero stays zero."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp_min(tiny)  # the squares of small ones are 0
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(tiny)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x


class MuonAdam:
    """Muon for some matrices and Adam for all other tensors, as one optimizer.

    Args:
        params: The tensors to train.
        matrices: Those among them that are weights of networks.
        lr: The learning rate of both.
    """

    def __init__(self, params: Iterable[Tensor], matrices: Iterable[Tensor], lr: float) -> None:
        params, chosen = list(params), {id(p) for p in matrices}
        first = [p for p in params if id(p) in chosen]
        others = [p for p in params if id(p) not in chosen]
        self._parts: list[Optimizer] = [Muon(first, lr=lr)] if first else []
        if others or not first:  # torch says what is wrong where there is nothing to train
            self._parts.append(
                Adam(others, lr=lr, betas=_BETAS, eps=_EPS, fused=can_be_fused(others))
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for part in self._parts for group in part.param_groups]

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Train more tensors, by Adam."""
        self._parts[-1].add_param_group(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, held in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(held)


def can_be_fused(params: Iterable[Tensor]) -> bool:
    """Whether torch has one kernel for all of Adam's arithmetic: a third of the time."""
    return all(p.device.type in ("cpu", "cuda") for p in params)


def network_matrices(module: Any) -> list[Tensor]:
    """The weights of a module's networks that have hidden layers.

    Of a network without, each weight means something by itself: how far it goes is Adam's matter.
    """
    if not isinstance(module, nn.Module):
        return []
    chains = [m for m in module.modules() if isinstance(m, Chain)]
    weights = [[p for p in chain.parameters() if p.dim() >= 2] for chain in chains]
    return [p for matrices in weights if len(matrices) > 1 for p in matrices if p.requires_grad]
