"""Draws of an ``AutoFlow``, scored by the very density that it is fitted to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..guides import AutoFlow
from ..log_density import LogDensity
from ._passes import InPasses, where_defined
from ._probe import Widened, heaviest_direction

__all__ = ["FlowDraws", "exactly", "finite_or_zero", "flow_draws"]

_TRIES = 8
_SCOUTS = 2000  # draws that tell in which direction weights grow


class FlowDraws:
    """Draws of a guide on unconstrained coordinates, and their log densities.

    Many points take one run of the model where that is right, under ``vmap`` too, in parts that
    fit memory. The draws know their own density, so the flow is never inverted.

    Args:
        guide: the guide, with its parameters.
        density: the log density of the model.
        batch_size: points that go through the model together; chosen by size unless given.
    """

    def __init__(self, guide: AutoFlow, density: LogDensity, batch_size: int | None) -> None:
        self._guide, self._density = guide, density
        self._in_passes = InPasses(density, batch_size)

    @property
    def vectorized(self) -> bool:
        """Whether many points take one run of the model."""
        return bool(self._density.vectorized)

    def draw(self, num: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return site values ``(num, *shape)``, log p and log q in the model's coordinates."""
        u, log_q = self._guide.unregistered_posterior().rsample_and_log_prob((num,))
        values, log_det = self._guide.latents.constrain(u)
        log_det = exactly(log_det)
        values = {name: value.cpu() for name, value in values.items()}
        return values, self.log_p(u) - log_det, exactly(log_q) - log_det

    def widened(self, num: int) -> Tensor:
        """Weigh other draws, with widened noise, as :class:`GuideDraws` has them: ``(num, 2)``."""
        dim, like = self._guide.latent_dim, self._guide.get_base_dist().mean
        noise = torch.randn(min(num, _SCOUTS), dim, dtype=like.dtype, device=like.device)
        direction = heaviest_direction(noise, self._weigh(noise).to(noise.device))
        wide = Widened({"": dim}, num, direction)
        return wide.weigh(self._weigh(wide.noise(torch.Size((num, dim)), like, 0)))

    def _weigh(self, noise: Tensor) -> Tensor:
        """Log weights under the guide of draws made of this noise."""
        u, log_det = self._guide.unregistered_posterior().bijector.forward_and_log_det(noise)
        log_q = -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi)) - log_det
        return finite_or_zero(self.log_p(u) - exactly(log_q))

    @property
    def density(self) -> LogDensity:
        """The log density of the model on unconstrained coordinates."""
        return self._density

    def log_p(self, u: Tensor) -> Tensor:
        """Score points ``(S, D)`` on unconstrained coordinates; float64 on the CPU, ``(S)``."""
        if self.vectorized:
            return exactly(self._in_passes(u))
        parts = tqdm(u.split(1), desc="draws, one at a time", leave=False)
        return torch.cat([exactly(where_defined(self._density, part)) for part in parts])


def flow_draws(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    batch_size: int | None = None,
    *,
    warn: bool = True,
) -> FlowDraws | None:
    """Decide how to score draws of a guide; None where its own traces have to be scored.

    That is so for guides of other kinds, for models that are not the guide's (of another support,
    for instance), and where no draw tried has a finite density with a gradient to compare.

    Args:
        model: the model.
        guide: the guide, called before.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        batch_size: points that go through the model together; chosen by size unless given.
        warn: whether to warn of a model that has to be run for one point at a time.
    """
    if not isinstance(guide, AutoFlow):
        return None
    density = LogDensity(model, guide.latents, args, kwargs)
    posterior = guide.unregistered_posterior()
    with warnings.catch_warnings():
        if not warn:
            warnings.filterwarnings("ignore", message="The model does not broadcast")
        for _ in range(_TRIES):
            with torch.no_grad():
                points = posterior.rsample((3,))
            try:
                density.check(points)
            except torch.linalg.LinAlgError:
                continue
            except ValueError:  # of other latents, or without a gradient
                return None
            if density.method is not None:
                return FlowDraws(guide, density, batch_size)
    return None


def finite_or_zero(log_weights: Tensor) -> Tensor:
    """Log weights with ``-inf`` in place of what is no number."""
    return log_weights.masked_fill(~log_weights.isfinite(), -math.inf)


def exactly(values: Tensor) -> Tensor:
    """Values as they are summed and compared: on the CPU, in double precision."""
    return values.detach().to("cpu", torch.float64)
