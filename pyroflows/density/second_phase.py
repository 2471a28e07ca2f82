"""A second phase for small flows and few rows: L-BFGS on all rows at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["run_lbfgs"]

_AT_A_TIME = 10  # iterations between validations
_PATIENCE = 3  # validations
_WALL = 1e30  # a loss that no line search goes through


def run_lbfgs(trainer: Trainer, num_steps: int) -> float:
    """Go on with L-BFGS from the best weights; return what that gained in nats.

    The gain is that in validation loss where there are such rows, and the best weights are kept;
    else in the loss of the rows to learn from. Ctrl-C ends it with the best weights so far.

    Args:
        trainer: Has fitted the density.
        num_steps: Iterations at most.
    """
    params = [p for p in trainer.density.parameters() if p.requires_grad]
    optimizer = torch.optim.LBFGS(
        params, max_iter=_AT_A_TIME, history_size=20, line_search_fn="strong_wolfe"
    )
    before = best = _loss_now(trainer)
    since = 0
    try:
        for _ in range(math.ceil(num_steps / _AT_A_TIME)):
            optimizer.step(lambda: _value_and_gradient(trainer, params))
            found = _loss_now(trainer)
            since = 0 if found < best else since + 1
            best = min(best, found)
            if trainer.split.validation is not None:
                trainer.consider(found)
            if since >= _PATIENCE:
                break
    except KeyboardInterrupt:
        trainer.stop_reason = "interrupted"
    optimizer.zero_grad(set_to_none=True)
    trainer.keep_best()
    return max(before - best, 0.0)


def _loss_now(trainer: Trainer) -> float:
    """Of validation rows, or of those to learn from where there are none."""
    if trainer.split.validation is not None:
        return trainer.validate()
    with torch.no_grad():
        return float(trainer.loss(trainer.split.train))


def _value_and_gradient(trainer: Trainer, params: list[Tensor]) -> Tensor:
    for p in params:
        p.grad = None
    loss = trainer.loss(trainer.split.train)
    loss.backward()
    grads = [p.grad for p in params if p.grad is not None]
    if not (bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in grads)):
        torch._foreach_zero_(grads)
        return params[0].new_tensor(_WALL)
    return loss.detach()
