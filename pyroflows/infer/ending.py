"""What comes after the last step of a fit."""

from __future__ import annotations

from collections.abc import Callable

from .average import Average
from .distributed import Ranks
from .progress import Progress
from .sample_average import SampleAverage
from .tails import Tails

__all__ = ["Ending"]


class Ending:
    """What takes the place of the parameters after the last step, where it is better.

    Attributes:
        average: The mean of the last parameters, or ``None``.
        sample_average: L-BFGS on draws that stay the same, or ``None``.
        tails: Steps for the tails, or ``None``.
        averaging_gain: What the first gained, in nats.
        sample_average_gain: What the second gained.
        told: What became of the third, in words.
    """

    def __init__(self) -> None:
        self.average: Average | None = None
        self.sample_average: SampleAverage | None = None
        self.tails: Tails | None = None
        self.averaging_gain = self.sample_average_gain = 0.0
        self.told = ""

    def add(self) -> None:
        """Count the parameters in the mean over the end of the fit."""
        if self.average is not None:
            self.average.add()

    def run(
        self,
        evaluate_anew: Callable[[], float],
        evaluate: Callable[[], float],
        progress: Progress,
        ranks: Ranks,
        seconds: float,
    ) -> None:
        """Go through all of it.

        Args:
            evaluate_anew: Estimates the loss.
            evaluate: The same, of draws that are the same each time.
            progress: Shows what is being done.
            ranks: The processes that share the fit.
            seconds: What the fit took so far.
        """
        self.add()
        if self.average is not None:
            self.averaging_gain = ranks.tell(self.average.settle(evaluate_anew))
        if self.sample_average is not None:
            progress.begin("L-BFGS on a sample average")
            self.sample_average_gain = self.sample_average.run(evaluate)
        if self.tails is not None:
            progress.begin("the tails")
            self.told = self.tails.run(seconds)
