"""What came of fitting a density."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .module import FlowDensity

__all__ = ["DensityFit"]

_REASONS = {
    "num_epochs": "went through all its epochs",
    "num_steps": "took all its steps",
    "time_budget": "used up its time",
    "early_stopping": "stopped as validation got no better",
    "interrupted": "was interrupted",
    "diverged": "diverged: too many steps in a row were not finite, so it stopped",
}


@dataclass
class DensityFit:
    """What came of fitting a density. Printed, it is a report.

    Attributes:
        density: The density, with the best weights found.
        losses: Minus the mean log density of the rows to learn from, in nats, over each epoch.
        validation_losses: That of the validation rows after each; empty without such rows.
        best_epoch: The epoch whose weights were kept, from 1, or 0 for those of the start; the last
            without validation rows.
        stop_reason: ``"num_epochs"``, ``"num_steps"``, ``"time_budget"``, ``"early_stopping"``,
            ``"interrupted"`` or ``"diverged"``.
        num_steps: Steps taken, those left out included.
        seconds: What the fit took.
        log_likelihood: The mean log density of the test rows, in nats; NaN without such rows.
        log_likelihood_se: Its standard error.
        gaussian: That of a normal distribution with the mean and covariance of the rows to learn
            from (given the covariates, linear in them; on a bounded support, of the unbounded
            coordinates). A density below it is a failure.
        num_skipped_steps: Steps not taken because the loss or a gradient was not finite.
        lbfgs_gain: What L-BFGS gained in validation loss, in nats; zero where it was not kept.
    """

    density: FlowDensity
    losses: list[float] = field(repr=False)
    validation_losses: list[float] = field(repr=False)
    best_epoch: int
    stop_reason: str
    num_steps: int
    seconds: float
    log_likelihood: float = math.nan
    log_likelihood_se: float = math.nan
    gaussian: float = math.nan
    num_skipped_steps: int = 0
    lbfgs_gain: float = 0.0

    @property
    def num_epochs(self) -> int:
        """The number of epochs, the last of which may not have been a whole one."""
        return len(self.losses)

    def __str__(self) -> str:
        kept = f", the weights of number {self.best_epoch} kept" if self.validation_losses else ""
        if self.validation_losses and not self.best_epoch:
            kept = ", the start kept, as validation rows tell no difference"
        lines = [
            f"{type(self.density).__name__}: the fit {_REASONS[self.stop_reason]} after "
            f"{self.num_epochs} epochs{kept} ({self.num_steps} steps in {self.seconds:.1f} s)."
        ]
        if self.num_skipped_steps:
            lines.append(f"Of them {self.num_skipped_steps} steps were skipped as not finite.")
        if math.isfinite(self.log_likelihood):
            lines.append(
                f"Log-likelihood of test rows {self.log_likelihood:.4f} ± "
                f"{self.log_likelihood_se:.2g} nat a row; a Gaussian has {self.gaussian:.4f}."
            )
            if self.log_likelihood < self.gaussian - self.log_likelihood_se:
                lines.append("Below the Gaussian: the flow has learned less than nothing.")
        return "\n".join(lines)
