"""The first stage of a fit: a flow without its larger part, which may do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ..bijectors import Dormant
from ..guides import AutoFlow
from ..psis import smooth_log_weights
from .objectives import PathELBO
from .schedule import mean_and_error

__all__ = ["NUM_OPENING_STEPS", "Opening", "dormant_parts", "is_fresh"]

NUM_OPENING_STEPS = 200
_MAX_LAPS = 15
_PROMISING = 0.3  # of the gap after the first lap: what its last half has won of the bound
_PAYS = 0.8  # of the gap before two later laps: what is left of it if they were worth it
_EVEN = 0.25  # tolerances: of weights as equal as with this gap the shape of the tail is noise
_WORTH = 1.25  # tolerances, which couplings have to gain to be worth their time
_SMALL = 0.1  # nats, of which half the draws a step win as much as all do
_NUM_DRAWS = 4096
_NEAR = 1.0  # nats: what is farther off is not left to a flow without couplings
_GOOD_K = 0.5  # of so few draws it is known to a tenth or two
_FAIR_K = 0.7  # for a tail that a few laps more did not mend
_LAPS_FOR_TAIL = 3
_TIME_SHARE = 0.2  # of a time budget at most


class Opening:
    """A guide whose dormant parts sleep, and the question whether they are needed.

    What the flow lacks without them is estimated by importance weights: log Z minus the ELBO, and
    the shape of the weights' tail. Steps without them are cheap, so there are more of them, lap by
    lap, as long as two of them take a fifth off that gap.

    Args:
        guide: The guide.
        evaluate: Estimates the loss once more, for the log weights of its draws.
        loss: The objective, which keeps these.
        tolerance: The gap, in nats, that is not worth going on for.
    """

    def __init__(
        self, guide: AutoFlow, evaluate: Callable[[], object], loss: PathELBO, tolerance: float
    ) -> None:
        self._guide, self._evaluate, self._loss = guide, evaluate, loss
        self._tolerance = tolerance
        self._parts = dormant_parts(guide)[::-1]  # the last is the largest
        self.num_awake = 0
        self.gaps: list[float] = []  # after each lap since a part woke
        self.told = ""

    @property
    def parameters(self) -> set[int]:
        """The identities of the parameters that sleep."""
        return {id(p) for part in dormant_parts(self._guide) for p in part.parameters()}

    def sleep(self) -> None:
        """Let all parts sleep but those that are awake by now."""
        for number, part in enumerate(self._parts):
            part.awake = number < self.num_awake

    def wake(self) -> None:
        """Wake all parts."""
        for part in self._parts:
            part.awake = True

    def wake_next(self) -> bool:
        """Wake one more part, unless it is the last one."""
        if not self._has_more:
            return False
        self.num_awake += 1
        self.gaps = []
        self.sleep()
        return True

    def is_over(self, num_steps: int, elapsed: float, time_budget: float | None) -> bool:
        late = time_budget is not None and elapsed > _TIME_SHARE * time_budget
        return num_steps >= NUM_OPENING_STEPS or late

    def decide(self, losses: Sequence[float], *, may_go_on: bool = True) -> str:
        """What comes after a lap with these losses; says why.

        Returns:
            "stay" if the flow is good enough as it is, "again" for another lap, or "wake" for one
            with more of the flow.
        """
        gap, shape = self._judge()
        self.gaps.append(gap)
        several = len(self._guide.modes) > 1
        again = may_go_on and not several and self._pays(losses)
        limit = self._tolerance if again else _WORTH * self._tolerance
        found = f"{gap:.2g} nat below log Z with a k-hat of {shape:.2f}"
        self.told = f"Couplings were added to the flow, whose ELBO was {found} without them."
        is_near = gap <= limit and not several
        if is_near and may_go_on and shape > _GOOD_K and self._can_mend():
            return "wake" if self._has_more and not again else "again"
        if is_near and (shape <= _FAIR_K or gap <= _EVEN * self._tolerance):
            self.told = (
                f"The flow stays without its couplings, which could gain no more than "
                f"{limit:g} nat: its ELBO is {found}."
            )
            return "stay"
        return "again" if again else "wake"

    @property
    def _has_more(self) -> bool:
        """Whether there is more to wake than the largest part."""
        return self.num_awake + 1 < len(self._parts)

    def _can_mend(self) -> bool:
        """Whether a lap or two may help a tail that alone is not right."""
        return self._has_more or len(self.gaps) < _LAPS_FOR_TAIL

    def _pays(self, losses: Sequence[float]) -> bool:
        last = self.gaps[-1]
        if not math.isfinite(last) or len(self.gaps) >= _MAX_LAPS:
            return False
        if len(self.gaps) == 2 and not self.num_awake:  # one lap may fail
            return True
        if len(self.gaps) > 1:
            return last <= _PAYS * self.gaps[max(len(self.gaps) - 3, 0)]
        return last <= _NEAR and _fall(losses) >= _PROMISING * last

    @property
    def left_little(self) -> bool:
        """Whether little is left to be found by couplings, so that fewer draws a step will do.

        The noise of the path gradient is in proportion to it.
        """
        return self.gaps[-1] <= _SMALL and len(self._guide.modes) <= 1

    def _judge(self) -> tuple[float, float]:
        weights = []
        for _ in range(math.ceil(_NUM_DRAWS / self._loss.num_particles)):
            self._evaluate()
            weights.append(self._loss.log_weights.double().cpu())
        weights = torch.cat(weights)
        finite = weights[torch.isfinite(weights)]
        if len(finite) < len(weights) or len(finite) < 2:
            return math.inf, math.inf
        smoothed, shape = smooth_log_weights(finite)
        log_z = smoothed.logsumexp(0) - math.log(len(finite))
        return float(log_z - finite.mean()), shape


def _fall(losses: Sequence[float]) -> float:
    """By how much the mean of the last quarter is below that of the one before."""
    quarter = len(losses) // 4
    if not quarter:
        return 0.0
    return mean_and_error(losses[-2 * quarter : -quarter])[0] - mean_and_error(losses[-quarter:])[0]


def dormant_parts(guide: AutoFlow) -> list[Dormant]:
    """The parts of a guide that can be left out."""
    return [m for m in guide.modules() if isinstance(m, Dormant)]


@torch.no_grad()
def is_fresh(guide: AutoFlow) -> bool:
    """Whether a guide has parts that can be left out, and these are the identity so far."""
    parts = dormant_parts(guide)
    points = torch.linspace(-2, 2, 5, dtype=guide.dtype, device=guide.device)[:, None]
    for part in parts:
        x = points.expand(-1, part.dim)
        moved, log_det = part.bijector.forward_and_log_det(x)
        tiny = 64 * torch.finfo(x.dtype).eps
        if bool((moved - x).abs().max() > tiny) or bool(log_det.abs().max() > tiny * part.dim):
            return False
    return bool(parts)
