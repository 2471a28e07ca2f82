"""The loop that fits a density: epoch after epoch, until there is a reason to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..infer.muon import MuonAdam, network_matrices
from .module import FlowDensity
from .split import Rows, Split

__all__ = ["Limits", "Trainer", "log_probs"]

_WARM_UP = 50  # steps, or a tenth of the run
_PATIENCE = 0.35  # of the run without a better validation loss
_FALL = 0.25  # of the run, over which the learning rate falls to zero after that
_STEPS_BETWEEN = 20  # validations, at least
_CLIP = 10.0  # norm of the gradient, in nats
_AVERAGED_OVER = 500  # steps
_AT_ONCE = 8_192  # rows that are scored together
_PATIENCE_AT_START, _PATIENCE_LATER = 10, 20  # steps without a finite gradient


class Limits(NamedTuple):
    """When a run ends at the latest; one of them at least is not infinite."""

    num_epochs: float
    num_steps: float
    seconds: float

    def progress(self, epochs: float, steps: int, seconds: float) -> float:
        """How much of the run is over, from 0 to 1."""
        return max(epochs / self.num_epochs, steps / self.num_steps, seconds / self.seconds)

    def reason(self, epochs: float, steps: int, seconds: float) -> str:
        """Which of them is reached, or nothing."""
        reached = {
            "num_epochs": epochs >= self.num_epochs,
            "num_steps": steps >= self.num_steps,
            "time_budget": seconds >= self.seconds,
        }
        return next((name for name, is_reached in reached.items() if is_reached), "")


class Trainer:
    """Fits a density to rows by maximum likelihood.

    The learning rate rises, and falls along a cosine to the end of the run. After each epoch
    validation rows judge the weights as they are and their mean over the last steps, and the best
    ever seen are kept.

    Args:
        density: What is fitted.
        split: Rows to learn from and to choose by.
        limits: When to stop at the latest.
        loss: The loss of some rows, a tensor.
        judge: The loss of validation rows, without noise.
        batch_size: Rows a step.
        learning_rate: The highest step size.
        weight_decay: By how much weights shrink, in learning rates.
        shown: Whether there is a progress bar.
    """

    def __init__(
        self,
        density: FlowDensity,
        split: Split,
        limits: Limits,
        loss: Callable[[Rows], Tensor],
        judge: Callable[[Rows], float],
        *,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        shown: bool,
    ) -> None:
        self.density, self.split, self.limits = density, split, limits
        self.loss, self._judge_rows = loss, judge
        self._batch_size, self._rate, self._decay = batch_size, learning_rate, weight_decay
        self._params = [p for p in density.parameters() if p.requires_grad]
        self._optimizer = MuonAdam(self._params, network_matrices(density), learning_rate)
        self._mean = [p.detach().clone() for p in self._params]
        self._start = self._copy()
        self._best = (math.inf, self._start, 0, 0.0)
        self._fall: tuple[float, float] | None = None  # since when, and from which factor
        self._shown = shown
        self.losses: list[float] = []
        self.validation_losses: list[float] = []
        self.num_steps = self.num_skipped = self._in_a_row = 0
        self.stop_reason, self.seconds = "", 0.0

    @property
    def best_epoch(self) -> int:
        return self._best[2] if self.split.validation is not None else len(self.losses)

    def run(self) -> None:
        """Train until there is a reason to stop, and put the best weights in place.

        Raises:
            ValueError: If no loss was finite.
        """
        self._started = perf_counter()
        bar = tqdm(desc="fit_density", unit="epoch", disable=not self._shown)
        try:
            while not self.stop_reason:
                self._epoch()
                self._judge()
                told = self.validation_losses or self.losses
                bar.set_postfix_str(f"loss {told[-1]:.4f}", refresh=False)
                bar.update()
        except KeyboardInterrupt:
            if not self.losses:
                raise
            self.stop_reason = "interrupted"
        finally:
            bar.close()
            self.seconds = perf_counter() - self._started
        self.keep_best()

    def keep_best(self) -> None:
        """Put the best weights seen so far in place."""
        if self.split.validation is not None:
            self._set(self._best[1])

    def prefer_start(self) -> bool:
        """Go back to the start, unless validation rows like the best weights surely better.

        The best of many is better by chance as well, and a flow starts as a Gaussian, which data
        may be: so it is asked for more than one standard error of the differences.
        """
        if self.split.validation is None:
            return False
        kept, found = self._copy(), log_probs(self.density, self.split.validation)
        self._set(self._start)
        gains = found - log_probs(self.density, self.split.validation)
        if gains.mean() > gains.std() / math.sqrt(len(gains)):
            self._set(kept)
            return False
        self._best = (self.validate(), self._start, 0, 0.0)
        return True

    def validate(self) -> float:
        """The loss of the validation rows."""
        return self._judge_rows(self.split.validation)

    def consider(self, loss: float) -> bool:
        """Keep the weights as they are, if they are the best so far."""
        if not loss < self._best[0]:
            return False
        self._best = (loss, self._copy(), len(self.losses), self._progress())
        return True

    # -- parts ---------------------------------------------------------------------------------

    def _epoch(self) -> None:
        """Go through the rows once in a new order, or a few times where they are few."""
        rows, total, number = self.split.train, 0.0, 0
        while not number or (number < _STEPS_BETWEEN and not self.stop_reason):
            order = torch.randperm(rows.number, device=rows.x.device)
            for index in order.split(self._batch_size):
                loss = self._step(rows[index])
                if math.isfinite(loss):
                    total, number = total + loss, number + 1
                self.stop_reason = self.stop_reason or self._limit()
                if self.stop_reason:
                    break
        self.losses.append(total / max(number, 1) if number else math.nan)

    def _step(self, rows: Rows) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * self._factor()
        self._optimizer.zero_grad()
        loss = self.loss(rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._params, _CLIP)
        self.num_steps += 1
        if not bool(torch.isfinite(norm) & torch.isfinite(loss.detach())):
            self._skip()
            return math.nan
        self._in_a_row = 0
        if self._decay:
            with torch.no_grad():
                torch._foreach_mul_(self._params, 1 - self._rate * self._factor() * self._decay)
        self._optimizer.step()
        share = max(1 / _AVERAGED_OVER, 1 / (self.num_steps + 1))
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._params], share)
        return loss.item()

    def _skip(self) -> None:
        self.num_skipped += 1
        self._in_a_row += 1
        if self.num_skipped == self.num_steps and self.num_steps >= _PATIENCE_AT_START:
            raise ValueError(
                f"fit_density: the loss or its gradient was NaN or infinite at each of the first "
                f"{self.num_steps} steps. Put the data in units of about one, use float64, or "
                "take another flow."
            )
        if self._in_a_row >= _PATIENCE_LATER:
            self.stop_reason = "diverged"

    @torch.no_grad()
    def _judge(self) -> None:
        if self.split.validation is None:
            return
        losses = [self.validate()]
        self.consider(losses[0])
        now = self._copy()
        self._set(self._mean)
        losses.append(self.validate())
        self.consider(losses[1])
        self._set(now)
        self.validation_losses.append(min(losses, key=lambda x: (math.isnan(x), x)))
        if self._fall is None and self._progress() - self._best[3] > _PATIENCE:
            self._begin_to_fall()

    def _begin_to_fall(self) -> None:
        """Go back to the best weights, and on from there with ever smaller steps.

        Where nothing gets better, steps are too long as often as the rows are known by heart, and
        shorter ones tell which.
        """
        self._fall = self._progress(), self._factor()
        self._set(self._best[1])
        self._mean = self._copy()

    def _factor(self) -> float:
        progress = self._progress()
        if self._fall is not None:
            since, factor = self._fall
            return factor * _cosine((progress - since) / _FALL)
        warm = max((self.num_steps + 1) / _WARM_UP, progress / 0.1)
        return min(warm, 1.0) * _cosine(progress)

    def _state(self) -> tuple[float, int, float]:
        epochs = self.num_steps * self._batch_size / self.split.train.number
        return epochs, self.num_steps, perf_counter() - self._started

    def _progress(self) -> float:
        return self.limits.progress(*self._state())

    def _limit(self) -> str:
        if self._fall is not None and self._progress() - self._fall[0] >= _FALL:
            return "early_stopping"
        return self.limits.reason(*self._state())

    def _copy(self) -> list[Tensor]:
        return [p.detach().clone() for p in self._params]

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for p, value in zip(self._params, values, strict=True):
            p.copy_(value)


def _cosine(progress: float) -> float:
    """From one to zero."""
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@torch.no_grad()
def log_probs(density: FlowDensity, rows: Rows) -> Tensor:
    """Log densities of rows, float64, shape ``(N)``."""
    parts = [rows[i : i + _AT_ONCE] for i in range(0, rows.number, _AT_ONCE)]
    return torch.cat([density(part.context).log_prob(part.x).double() for part in parts])
