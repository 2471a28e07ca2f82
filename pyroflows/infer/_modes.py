"""Look for mass at the modes that a guide's start climbed to, where its draws may never go.

A guide that has collapsed onto one of several modes looks exact from inside: no draw of its own,
nor any draw with widened noise, reaches the others when they are far. Draws around each mode do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guides import AutoFlow
from ..guides.gaussians import Start
from ..latents import Latents
from ..log_density import LogDensity
from ._passes import InPasses

__all__ = ["ModeDraws", "draw_modes", "draws_around", "place_in_words"]

_DRAWS_PER_MODE = 512
_DRAWS_PER_MODE_ONE_BY_ONE = 32
_SITES_NAMED = 2
_NUMBERS_NAMED = 3


@dataclass(frozen=True)
class ModeDraws:
    """Draws around modes, by a mixture of Student-t's; float64 on the CPU, shape ``(N,)`` each.

    Attributes:
        log_masses: log p of each draw minus that of the mixture it comes from.
        log_weights: its log importance weight under the guide.
        index: the mode that it was drawn around.
        places: where the modes are, in words.
    """

    log_masses: Tensor
    log_weights: Tensor
    index: Tensor
    places: tuple[str, ...]

    def missed(self, log_z: float, num_samples: int) -> list[tuple[str, float]]:
        """Find modes that the guide's draws cannot see, with their shares of the posterior.

        Counted is the mass where one draw of the guide would outweigh all its S draws together.

        Args:
            log_z: log evidence by the draws of the guide.
            num_samples: number S of these draws.
        """
        beyond = self.log_weights > log_z + math.log(num_samples)
        masses = torch.nan_to_num(self.log_masses - log_z, nan=-math.inf).exp() * beyond
        shares = masses.new_zeros(len(self.places)).index_add(0, self.index, masses)
        shares = shares / len(self.index)
        total = 1 + float(shares.sum())
        found = [(p, float(s) / total) for p, s in zip(self.places, shares, strict=True)]
        return sorted((f for f in found if f[1] > 0), key=lambda f: -f[1])


def draw_modes(
    model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any], vectorized: bool
) -> ModeDraws | None:
    """Draw around the modes that the start of a guide found; None where it found no two.

    Args:
        model: the model.
        guide: the guide; one without :attr:`~pyroflows.AutoFlow.modes` has none.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        vectorized: whether the model takes many draws together.
    """
    if not isinstance(guide, AutoFlow) or not guide.modes:
        return None
    number = _DRAWS_PER_MODE if vectorized else _DRAWS_PER_MODE_ONE_BY_ONE
    u, log_mixture, index = draws_around(guide.modes, number)
    method = "auto" if vectorized else "loop"
    log_density = LogDensity(model, guide.latents, args, kwargs, method=method)
    points = u.to(guide.device, guide.dtype)
    log_p = InPasses(log_density)(points).double().cpu()
    log_q = guide.unregistered_posterior().log_prob(points).double().cpu()
    center = guide.median_latent().double().cpu()
    return ModeDraws(
        log_masses=log_p - log_mixture,
        log_weights=log_p - log_q,
        index=index,
        places=tuple(place_in_words(guide.latents, mode, center, points) for mode in guide.modes),
    )


def draws_around(
    modes: Sequence[Start], number: int = _DRAWS_PER_MODE
) -> tuple[Tensor, Tensor, Tensor]:
    """Return points around modes, the log density of their mixture, and the mode of each point."""
    u = torch.cat([_draw(mode, number) for mode in modes])
    log_mixture = torch.stack([_log_prob(mode, u) for mode in modes]).logsumexp(0)
    index = torch.arange(len(modes)).repeat_interleave(number)
    return u, log_mixture - math.log(len(modes)), index


def _degrees(mode: Start) -> int:
    """As many more as there are dimensions, so that radii vary about as much as a Gaussian's."""
    return 5 + len(mode.loc)


def _draw(mode: Start, number: int) -> Tensor:
    df = _degrees(mode)
    noise = torch.randn(number, len(mode.loc), dtype=torch.float64)
    chi2 = torch.distributions.Chi2(torch.tensor(float(df)).double()).sample((number, 1))
    noise = noise * (df / chi2).sqrt()
    if mode.scale_tril is None:
        return mode.loc + mode.scale * noise
    return mode.loc + noise @ mode.scale_tril.mT


def _log_prob(mode: Start, u: Tensor) -> Tensor:
    df, dim = _degrees(mode), len(mode.loc)
    offset = u - mode.loc
    if mode.scale_tril is None:
        white, log_det = offset / mode.scale, mode.scale.log().sum()
    else:
        white = torch.linalg.solve_triangular(mode.scale_tril, offset.mT, upper=False).mT
        log_det = mode.scale_tril.diagonal().log().sum()
    constant = math.lgamma((df + dim) / 2) - math.lgamma(df / 2) - dim / 2 * math.log(math.pi * df)
    return constant - log_det - (df + dim) / 2 * (white.square().sum(-1) / df).log1p()


def place_in_words(latents: Latents, mode: Start, center: Tensor, like: Tensor) -> str:
    """The latents in which a mode is farthest from the guide's center, and their values there."""
    peak = mode.loc if mode.mode is None else mode.mode
    far = ((peak.cpu() - center) / mode.scale).abs()
    reach = {site.name: float(part.max()) for site, part in latents.split(far) if site.size}
    named = sorted(reach, key=lambda name: -reach[name])[:_SITES_NAMED]
    values, _ = latents.constrain(peak.to(like), skip_jacobian=True)
    return ", ".join(f"'{name}' = {_numbers(values[name].flatten().tolist())}" for name in named)


def _numbers(values: Sequence[float]) -> str:
    shown = [f"{value:.3g}" for value in values[:_NUMBERS_NAMED]]
    if len(values) == 1:
        return shown[0]
    return f"({', '.join([*shown, '...'] if len(values) > _NUMBERS_NAMED else shown)})"
