"""Look for mass where a guide seldom goes: draws whose noise is widened.

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

__all__ = ["Widened", "heaviest_direction", "noise_size"]

_OWN = [1.0, 1.0]  # no change, for half of the draws
_SCALES = [2.0, 4.0]
_JOINT_SCALES = [1.4, 3.0]
_ALONG = 2  # the kind of draws widened along a direction, after those by one and by all coordinates


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
    r"""Draw sites of a guide from normal noise that is widened.

    Half of the draws are the guide's own. The others, each kind as often as any, have one of D
    coordinates, all of them, or one direction v, multiplied by a scale s at random. The density
    of the mixture is the guide's times

    .. math:: c(e) = \tfrac12 + \tfrac12 \operatorname{mean} \Big[
        \operatorname{mean}_{s, j} \frac{\mathcal N(e_j; 0, s^2)}{\mathcal N(e_j; 0, 1)},
        \operatorname{mean}_s \frac{\mathcal N(e; 0, s^2 I)}{\mathcal N(e; 0, I)},
        \operatorname{mean}_s \frac{\mathcal N(v^T e; 0, s^2)}{\mathcal N(v^T e; 0, 1)} \Big].

    So the weights are at most twice the guide's own, and bounded where only those have a tail.

    References:
        Owen, Zhou (2000). Safe and effective importance sampling. JASA 95.

    Args:
        sizes: by site, how many coordinates of noise it has.
        num: number of draws, or None for one without a particle axis.
        direction: a unit vector v of all the noise of a guide with one site; None for none.
    """

    def __init__(
        self, sizes: dict[str, int], num: int | None, direction: Tensor | None = None
    ) -> None:
        super().__init__()
        self.count = num or 1
        self.offsets, self.direction, total = {}, direction, 0
        for name, size in sizes.items():
            self.offsets[name] = total
            total += size
        self.total = total
        self.chosen = torch.randint(total, (self.count,))
        self.kind = torch.randint(_ALONG if direction is None else _ALONG + 1, (self.count,))
        pools = torch.tensor([_OWN + _SCALES, _OWN + _JOINT_SCALES, _OWN + _SCALES])
        self.scales = pools[self.kind, torch.randint(pools.shape[1], (self.count,))]
        self._noise: list[Tensor] = []

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
        noise = torch.cat(self._noise, -1)
        kinds = [
            _log_ratios(noise**2, _SCALES, 1).logsumexp(-1) - math.log(self.total),
            _log_ratios((noise**2).sum(-1), _JOINT_SCALES, self.total),
        ]
        if self.direction is not None:
            kinds.append(_log_ratios((noise @ self.direction.to(noise)) ** 2, _SCALES, 1))
        widened = torch.stack(kinds).logsumexp(0) - math.log(len(kinds))
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
        is_here = (self.kind == 0) & (place >= 0) & (place < flat.shape[1])
        rows, scales = is_here.nonzero()[:, 0], self.scales.to(like)
        flat[rows, place[rows]] *= scales[rows]
        flat[self.kind == 1] *= scales[self.kind == 1, None]
        if self.direction is not None:
            way, rows = self.direction.to(like), self.kind == _ALONG
            longer = (scales[rows] - 1) * (flat[rows] @ way)
            flat[rows] += longer[:, None] * way
        self._noise.append(flat.to("cpu", torch.float64))
        return flat.reshape(shape)


def _log_ratios(squares: Tensor, scales: list[float], dim: int) -> Tensor:
    """Log of the mean over scales of N(e; 0, s^2 I) / N(e; 0, I), from squared lengths of e."""
    terms = [0.5 * squares * (1 - s**-2) - dim * math.log(s) for s in scales]
    return torch.stack(terms).logsumexp(0) - math.log(len(scales))


def heaviest_direction(noise: Tensor, log_weights: Tensor) -> Tensor:
    """The direction in which the noise of the draws that weigh most is longest, a unit vector.

    Args:
        noise: noise of draws, shape ``(N, D)``.
        log_weights: their log weights under the guide, shape ``(N,)``.
    """
    heavy = noise[log_weights.argsort()[-max(len(noise) // 100, 1) :]].double()
    return torch.linalg.svd(heavy, full_matrices=False).Vh[0]
