"""The verdict on a guide: bars, and reasons in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ._marginal import normal_scores
from .draws import GuideDraws

__all__ = ["Moved", "judge", "reasons_of_modes"]

# Bars for "usable": draws used as they are then have means within a tenth of a standard deviation
# and standard deviations within a tenth. ESS, shape and gap alone do not tell: a guide that is off
# by half a standard deviation in one coordinate has ESS 78 %, a gap of 0.12 and a shape near 0.
_USABLE_K = 0.5
_USABLE_ESS = 0.5
_USABLE_GAP = 0.5
_USABLE_SHIFT = 0.1
_USABLE_SPREAD = 0.1
# Below this many effective draws no weighted mean is known to a tenth of a standard deviation.
_MIN_EFFECTIVE_DRAWS = 100
# A Gaussian guide this many times too narrow has a true shape of 0.67. The estimated shape of a few
# in a hundred guides of an improper posterior falls below 0.7 by chance; none is below this bar.
_TOO_NARROW = 1.75
# Share of log Z that widened draws may find beyond the guide's reach; the rest is noise.
_MAX_MISSED = 0.05
# The same for a mode of its own: a hundredth that lies far off moves means and scales by much.
_MAX_MISSED_MODE = 0.01
# Posterior mass where the guide has less than half of the density that it should have. So much,
# five standard deviations out, moves a mean by 0.025 and a standard deviation by 6 %: a heavy tail
# of the weights has no more in it.
_MAX_LACKING = 0.005
_FAR = 1e15
_CHECKED_NUMBERS = 2**26


@dataclass(frozen=True)
class Moved:
    """How far weighting moves the latent coordinates, on the scale of their normal scores.

    Normal scores of the ranks: the same for any monotone change of variable, finite for heavy
    tails, and exact for a posterior at 5e4 with standard deviation 1e-3.
    """

    shift: float
    shift_at: str
    smallest: float
    smallest_at: str
    largest: float
    largest_at: str
    farthest: float
    farthest_at: str

    @classmethod
    def by_weights(cls, draws: GuideDraws, weights: Tensor) -> Moved:
        shift, small, large, far = (0.0, ""), (1.0, ""), (1.0, ""), (0.0, "")
        size = len(weights)
        scores = normal_scores(size)
        total = max(sum(v[0].numel() for v in draws.values.values()), 1)
        stride = math.ceil(total * size / _CHECKED_NUMBERS)
        for name, value in draws.values.items():
            if draws.sites[name].kind != "latent":
                continue
            flat = value.reshape(size, -1)
            far = max(far, (float(flat.abs().max()) if flat.numel() else 0.0, name))
            for first in range(0, flat.shape[1], 1024 * stride):
                block = flat[:, first : first + 1024 * stride : stride]
                ranked = weights[block.argsort(dim=0, stable=True)]
                mean = (ranked * scores[:, None]).sum(0)
                variance = (ranked * scores[:, None] ** 2).sum(0) - mean**2
                ratio = (variance / scores.var(correction=0)).clamp(min=0).sqrt()
                shift = max(shift, (float(mean.abs().max()), name))
                small = min(small, (float(ratio.min()), name))
                large = max(large, (float(ratio.max()), name))
        return cls(*shift, *small, *large, *far)

    def reasons(self) -> list[str]:
        found = []
        if self.shift > _USABLE_SHIFT:
            found.append(
                f"weighting moves the mean of '{self.shift_at}' by {self.shift:.2f} standard "
                f"deviations (bar {_USABLE_SHIFT})"
            )
        for ratio, name in (
            (self.smallest, self.smallest_at),
            (self.largest, self.largest_at),
        ):
            if not 1 - _USABLE_SPREAD <= ratio <= 1 + _USABLE_SPREAD:
                found.append(
                    f"weighting multiplies the standard deviation of '{name}' by {ratio:.2f} "
                    f"(bar 1 ± {_USABLE_SPREAD})"
                )
        return found


def judge(
    draws: GuideDraws,
    numbers: dict[str, Any],
    moved: Moved,
    missed_modes: list[tuple[str, float]],
) -> tuple[str, tuple[str, ...]]:
    """Return the verdict and its reasons.

    Args:
        draws: draws of the guide.
        numbers: what :class:`ImportanceDiagnostics` holds under these names.
        moved: how far weighting moves the latent coordinates.
        missed_modes: modes that these draws never reach: where, and the share of Z.
    """
    of_shape, is_grave = _reasons_of_shape(numbers)
    grave = of_shape if is_grave else []
    against = _reasons_against(draws, numbers, moved, grave) + reasons_of_modes(missed_modes)
    apart = _reasons_to_reweight(draws, numbers, moved)
    agree = "raw and weighted draws agree in every latent coordinate"
    if of_shape and against == grave and not apart and _is_light(numbers):
        shape = numbers["pareto_k"] if numbers["pareto_k"] > _USABLE_K else numbers["marginal_k"]
        told = (
            f"the weights have a heavy tail, k-hat {shape:.2f}, but little is in it: "
            f"{numbers['lacking']:.2%} of the posterior lies where the guide has less than half of "
            f"its density (bar {_MAX_LACKING:.1%})"
        )
        return "usable", (agree, told)
    if against:
        return "do not trust", tuple(against)
    if of_shape or apart:
        return "reweight", (*of_shape, *apart)
    return "usable", (agree,)


def _is_light(numbers: dict[str, Any]) -> bool:
    """Whether widened draws found next to nothing in the tail of the weights."""
    is_known = max(numbers["pareto_k"], numbers["marginal_k"]) < math.inf
    return is_known and numbers["lacking"] <= _MAX_LACKING


def _reasons_against(
    draws: GuideDraws, numbers: dict[str, float], moved: Moved, of_shape: list[str]
) -> list[str]:
    reasons = _reasons_of_draws(draws, numbers, moved) + of_shape
    size = numbers["num_samples"]
    if moved.largest > _TOO_NARROW:
        reasons.append(
            f"weighting widens '{moved.largest_at}' {moved.largest:.1f}-fold (bar {_TOO_NARROW}): "
            "the guide misses its tails, or its posterior is improper"
        )
    # Widened draws weigh at most twice as much as the guide's own at the same point.
    if numbers["missed"] > _MAX_MISSED + 4 * numbers["log_z_se"]:
        reasons.append(
            f"draws wider than the guide's find {numbers['missed']:.0%} of the posterior where its "
            f"own never go (bar {_MAX_MISSED:.0%}), so log Z and k-hat say too much for it"
        )
    effective = numbers["ess"] * size
    if effective < _MIN_EFFECTIVE_DRAWS:
        reasons.append(f"only {effective:.0f} effective draws (at least {_MIN_EFFECTIVE_DRAWS})")
    return reasons


def _reasons_of_draws(draws: GuideDraws, numbers: dict[str, float], moved: Moved) -> list[str]:
    """What speaks against a guide whatever the weights of its draws are."""
    reasons, size = [], numbers["num_samples"]
    if numbers["num_nonfinite"]:
        reasons.append(f"log density NaN or infinite at {numbers['num_nonfinite']} of {size} draws")
    if draws.point_masses:
        names = ", ".join(f"'{name}'" for name in draws.point_masses)
        reasons.append(f"the guide gives {names} a single value, which is no density")
    if not moved.farthest <= _FAR:
        reasons.append(
            f"'{moved.farthest_at}' reaches {moved.farthest:.1g}: is its posterior proper?"
        )
    if draws.flat is not None:
        reasons.append(
            f"the posterior does not fall off along {draws.flat}, even 16 standard deviations of "
            "the guide away: it is improper, or the guide covers a small part of it"
        )
    if size < 25:
        reasons.append(f"{size} draws are too few for a verdict: use 1000 or more")
    if draws.beyond > _MAX_MISSED_MODE:
        reasons.append(
            f"at least {draws.beyond:.0%} of the posterior lies outside the support of the guide "
            f"(bar {_MAX_MISSED_MODE:.0%})"
        )
    return reasons


def _reasons_of_shape(numbers: dict[str, Any]) -> tuple[list[str], bool]:
    """What the tails of the weights say, all of them or a coordinate's, and whether it is grave."""
    size, shape, good = numbers["num_samples"], numbers["pareto_k"], numbers["good_k"]
    if size < 25:
        return [], False
    if shape > good:
        return [
            f"k-hat {shape:.2f} exceeds {good:.2f}: a few draws carry the weight, so even log Z is "
            "not known"
        ], True
    if numbers["marginal_k"] > good:
        return [
            f"k-hat of the mean of '{numbers['marginal_k_at']}' is {numbers['marginal_k']:.2f}, "
            f"above {good:.2f}: its largest values carry the largest weights, so its weighted mean "
            "is not known"
        ], True
    if shape > _USABLE_K:
        return [f"k-hat {shape:.2f} (bar {_USABLE_K})"], False
    return [], False


def reasons_of_modes(missed: Sequence[tuple[str, float]]) -> list[str]:
    """Say which modes of more than a hundredth of the posterior are missed, heaviest first."""
    missed = [m for m in missed if m[1] > _MAX_MISSED_MODE]
    reasons = [
        f"a mode at {place} holds about {share:.0%} of the posterior, and the guide's draws never "
        "go there"
        for place, share in missed[:3]
    ]
    if missed[3:]:
        rest = sum(share for _, share in missed[3:])
        reasons.append(f"{len(missed) - 3} more modes missed hold about {rest:.0%}")
    return reasons


def _reasons_to_reweight(draws: GuideDraws, numbers: dict[str, float], moved: Moved) -> list[str]:
    reasons, size = [], numbers["num_samples"]
    if draws.num_outside:
        reasons.append(f"{draws.num_outside} of {size} draws lie outside the model's support")
    if numbers["ess"] < _USABLE_ESS:
        reasons.append(f"ESS {100 * numbers['ess']:.3g} % of the draws (bar {_USABLE_ESS:.0%})")
    gap = numbers["log_z"] - numbers["elbo"]
    if gap > _USABLE_GAP:
        reasons.append(f"the ELBO is {gap:.3g} nat below log Z (bar {_USABLE_GAP})")
    return reasons + moved.reasons()
