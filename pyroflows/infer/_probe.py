"""Look for mass where a guide seldom goes: draws whose noise is widened one coordinate at a time.

Importance weights of a guide's own draws say nothing of what lies beyond them: a flow whose tail
falls off too early in one direction looks exact. Widened draws reach there, and are weighted by
the mixture they come from, so that they estimate the same log Z.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..guides.posterior import FlowDistribution

__all__ = ["Widened", "noise_size"]

_SCALES = (2.0, 4.0)


def noise_size(fn: dist.Distribution) -> int:
    """Count the standard normal numbers that a draw is made of; zero if it is made otherwise."""
    if isinstance(fn, (dist.Independent, dist.TransformedDistribution)):
        return noise_size(fn.base_dist)
    if isinstance(fn, FlowDistribution) and fn.base is not None:
        return 0
    if isinstance(fn, (dist.Normal, dist.MultivariateNormal, FlowDistribution)):
        return fn.shape().numel()
    return 0


class Widened(Messenger):
    r"""Draw sites of a guide from normal noise that is widened in one coordinate.

    Half of the draws are the guide's own. In the others one of D coordinates, at random, has its
    noise multiplied by a scale s, at random. The density of the mixture is the guide's times

    .. math:: c(e) = \tfrac12 + \tfrac12 \operatorname{mean}_{s, j}
        \mathcal N(e_j; 0, s^2) / \mathcal N(e_j; 0, 1).

    Args:
        sizes: by site, how many coordinates of noise it has.
        num: number of draws, or None for one without a particle axis.
    """

    def __init__(self, sizes: dict[str, int], num: int | None) -> None:
        super().__init__()
        self.count = num or 1
        self.offsets, total = {}, 0
        for name, size in sizes.items():
            self.offsets[name] = total
            total += size
        self.total = total
        self.chosen = torch.randint(total, (self.count,))
        pool = torch.tensor([1.0] * len(_SCALES) + list(_SCALES))
        self.scales = pool[torch.randint(len(pool), (self.count,))]
        self._ratios: list[Tensor] = []

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.offsets and not msg["done"] and msg["value"] is None:
            msg["value"] = self._draw(msg["fn"], self.offsets[msg["name"]])
            msg["done"] = True

    def weigh(self, log_weights: Tensor) -> Tensor:
        """Weigh the draws made by the mixture, beside their weights under the guide alone.

        Args:
            log_weights: log p - log q of the guide, float64 on the CPU, shape ``(num,)``.

        Returns:
            Log weights by the mixture and those given, shape ``(num, 2)``.
        """
        widened = torch.cat(self._ratios, -1).logsumexp(-1) - math.log(self.total * len(_SCALES))
        log_ratio = torch.logaddexp(widened, torch.zeros_like(widened)) - math.log(2)
        return torch.stack([log_weights - log_ratio, log_weights], -1)

    def _draw(self, fn: dist.Distribution, offset: int) -> Tensor:
        if isinstance(fn, dist.Independent):
            return self._draw(fn.base_dist, offset)
        if isinstance(fn, dist.TransformedDistribution):
            value = self._draw(fn.base_dist, offset)
            for transform in fn.transforms:
                value = transform(value)
            return value
        if isinstance(fn, FlowDistribution):
            like = next(iter(fn.bijector.parameters()), torch.zeros(()))
            return fn.bijector.forward_and_log_det(self.noise(fn.shape(), like, offset))[0]
        noise = self.noise(fn.shape(), fn.loc, offset)
        if isinstance(fn, dist.Normal):
            return fn.loc + fn.scale * noise
        return fn.loc + (fn.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def noise(self, shape: torch.Size, like: Tensor, offset: int) -> Tensor:
        """Draw the noise of one site, whose coordinates begin at ``offset``."""
        flat = torch.randn(shape, dtype=like.dtype, device=like.device).reshape(self.count, -1)
        place = self.chosen - offset
        rows = ((place >= 0) & (place < flat.shape[1])).nonzero()[:, 0]
        flat[rows, place[rows]] *= self.scales[rows].to(like)
        self._ratios.append(_log_ratios(flat.to(torch.float64)).cpu())
        return flat.reshape(shape)


def _log_ratios(noise: Tensor) -> Tensor:
    """Log N(e; 0, s^2) / N(e; 0, 1), summed over scales, shape of the noise."""
    terms = [0.5 * noise**2 * (1 - s**-2) - math.log(s) for s in _SCALES]
    return torch.stack(terms).logsumexp(0)
