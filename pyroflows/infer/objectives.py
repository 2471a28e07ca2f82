"""Objectives: what a guide is trained to maximise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ..guides import AutoFlow
from ..guides.prototype import init_to_center, read_latents, signature_of
from ..log_density import LogDensity
from .chunks import FlowBatch, add_gradients, shared_surrogate, value_in_chunks
from .compiled import CompiledSteps
from .distributed import Ranks
from .surrogate import Surrogate

__all__ = ["PathELBO", "broadcasts"]


class PathELBO(Trace_ELBO):
    r"""The evidence lower bound with path gradients ("sticking the landing").

    .. math:: \nabla_\phi \, E_\epsilon \left[ \log p(x, z_\phi(\epsilon))
        - \log q_{\bar\phi}(z_\phi(\epsilon)) \right]

    The parameters inside :math:`\log q` are held fixed (the bar): what is dropped has mean zero,
    and what is left vanishes draw by draw when the guide is exact. For a flow,
    :math:`\nabla_z \log q(z)` is carried through the layers beside the draw, one triangular solve
    an autoregressive layer, so no layer is ever inverted.

    All particles are drawn at once, and for a flow the model takes them in one run, under
    ``torch.vmap`` or in one more plate; so models that do not broadcast (``X @ w``,
    ``factor(....sum())``) are evaluated together and rightly. Other guides need a model that
    broadcasts. Either way is compared before training with one particle at a time (value by site,
    gradient by coordinate, at distinct points), and a model that allows none, such as one whose
    branches depend on a latent, is run particle by particle, with a warning. Particles with a
    non-finite value or gradient are left out of the mean and counted.

    References:
        | Sticking the Landing (Roeder et al., 2017), https://arxiv.org/abs/1703.09194
        | Fast and Unified Path Gradient Estimators for Normalizing Flows (Vaitl et al., 2024),
          https://arxiv.org/abs/2403.15881

    Args:
        num_particles: Number of draws per step.
        vectorize_particles: Whether to evaluate the model on all draws at once where it may be.
        score_weight: Weight of the score :math:`-\nabla_\phi \log q_\phi(z)`, a term of mean zero:
            0 is the path gradient, 1 the ordinary reparameterised one. Far from the optimum the
            score helps: it pushes draws apart at every step, while the path gradient of a guide
            that has cut off a tail is zero but for the rare draw at the cut.
        tail_weight: How far each draw's part in the gradient goes from 1, the path gradient of
            :math:`\mathrm{KL}(q \| p)`, to its importance weight, that of
            :math:`\mathrm{KL}(p \| q)`, in proportion to the effective sample size of the draws.
            Both vanish at the posterior; the second asks for tails that are heavy enough.
        chunk_size: Draws that go through flow and model together, forward and backward; all
            unless given. Loss and gradient are those of all draws, to rounding; memory is that of
            a chunk. Only :meth:`loss_and_grads`, which ``SVI`` and ``fit_guide`` call, keeps to it.

        compile: Whether a flow's steps are recorded and compiled, model and all derivatives
            included: a step takes a third to two thirds of its time, after a start of half a minute
            to two minutes. Where it cannot be done, steps are eager, with a warning that says why.

    Attributes:
        compiled: The compiled steps, with their ``seconds`` and ``reason``; ``None`` without.
        num_nonfinite_particles: Draws left out so far.
        vectorized: Whether the model is evaluated on all draws at once; ``None`` before use.
        spread: Standard deviation of :math:`\log p - \log q` over the latest draws of a flow, in
            nats (NaN if some are not finite); half its square is about the KL divergence where
            that is small.

    Raises:
        ValueError: If ``num_particles`` or ``chunk_size`` is less than 1, the guide is not
            reparameterised, or is to go in chunks and is no ``AutoFlow``.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> guide = AutoFlow(model, "affine")
        >>> loss = PathELBO(num_particles=16).differentiable_loss(model, guide)
        >>> loss.backward()
        >>> all(p.grad.abs().max() < 1e-4 for p in guide.parameters())
        True
    """

    def __init__(
        self,
        num_particles: int = 256,
        *,
        vectorize_particles: bool = True,
        score_weight: float = 0.0,
        tail_weight: float = 0.0,
        chunk_size: int | None = None,
        compile: bool = False,
        **options,
    ) -> None:
        for name, number in {"num_particles": num_particles, "chunk_size": chunk_size}.items():
            if number is not None and number < 1:
                raise ValueError(f"PathELBO expected {name} >= 1, got {number}.")
        super().__init__(
            num_particles=num_particles, vectorize_particles=vectorize_particles, **options
        )
        self.score_weight = score_weight
        self.tail_weight = tail_weight
        self.chunk_size = chunk_size
        self.compiled = CompiledSteps() if compile else None
        self.ranks = Ranks()
        self.vectorized: bool | None = None
        self._log_weights = torch.zeros(0)
        self._density: tuple[Callable, Any, tuple, LogDensity] | None = None
        self._num_nonfinite: Tensor | int = 0
        self._tally: Tensor | None = None

    @property
    def num_nonfinite_particles(self) -> int:
        return int(self.nonfinite_so_far())

    def nonfinite_so_far(self) -> Tensor | int:
        """The same number, without waiting for a device that computes it."""
        left_out = 0 if self._tally is None or self._tally.grad is None else self._tally.grad
        return self._num_nonfinite + left_out

    @property
    def log_weights(self) -> Tensor:
        """The log of p / q of the latest draws of a flow, detached, shape ``(K)``."""
        return self._log_weights

    def count_nonfinite_from(self, number: int) -> None:
        """Go on counting from a number."""
        self._num_nonfinite, self._tally = number, None

    @property
    def density(self) -> LogDensity | None:
        """The log density that draws of a flow were scored by, if any were."""
        return None if self._density is None else self._density[3]

    @property
    def subsampled(self) -> bool:
        """Whether the model showed a part of its data only, so that log p is an estimate."""
        return self._density is not None and self._density[3].subsampled

    @property
    def spread(self) -> float:
        weights = self._log_weights
        finite = torch.isfinite(weights)
        return float(weights[finite].std()) if finite.all() and len(weights) > 1 else math.nan

    def loss(self, model: Callable, guide: Callable, *args, **kwargs) -> float:
        """Return an estimate of minus the ELBO."""
        with torch.no_grad():
            if self._goes_in_chunks(guide):
                batch = self._draw(model, guide, args, kwargs)
                return self._booked(value_in_chunks(batch, self.chunk_size, self.ranks)).item()
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Callable, guide: Callable, *args, **kwargs) -> float:
        """Return an estimate of minus the ELBO, and add its gradients to the parameters."""
        if self._goes_in_chunks(guide):
            batch = self._draw(model, guide, args, kwargs)
            return self._booked(add_gradients(batch, self.chunk_size, self.ranks)).item()
        if self._is_one_graph() and isinstance(guide, AutoFlow):
            batch = self._draw(model, guide, args, kwargs)
            found = self.compiled(**batch._asdict(), add_gradients=True)
            if found is not None and not found.loss.requires_grad:
                return self._booked(found).item()
            loss = self._booked(found or shared_surrogate(batch, self.ranks))  # of the same draws
        else:
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    def differentiable_loss(self, model: Callable, guide: Callable, *args, **kwargs) -> Tensor:
        """Return minus the ELBO as a tensor whose gradient is the path gradient.

        The graph is that of all draws, whatever ``chunk_size`` is.
        """
        if isinstance(guide, AutoFlow):
            batch = self._draw(model, guide, args, kwargs)
            return self._booked(self._evaluate(batch))
        return self._trace_loss(model, guide, args, kwargs)

    # -- flows: the score comes with the draw --------------------------------------------------

    def prepare(self, model: Callable, guide: Callable, *args, **kwargs) -> None:
        """Do what the first uses would do beside their draws: find out what the model allows."""
        if isinstance(guide, AutoFlow):
            guide._prepare(args, kwargs)
            density = self._log_density(model, guide, args, kwargs)
            for number in self._batch_sizes():
                density.program(number)
        elif self.vectorized is None:
            self._check_traces(model, guide, args, kwargs)

    def takes_all_at_once(
        self, model: Callable, guide: AutoFlow, args: tuple, kwargs: dict
    ) -> bool:
        """Whether the model is run on all draws at once, rather than on one after the other."""
        guide._prepare(args, kwargs)
        return self._log_density(model, guide, args, kwargs).vectorized is not False

    def _batch_sizes(self) -> set[int]:
        chunk = min(self.chunk_size or self.num_particles, self.num_particles)
        return {chunk, self.num_particles % chunk or chunk}

    def _goes_in_chunks(self, guide: Callable) -> bool:
        if self.chunk_size is None or self.chunk_size >= self.num_particles:
            return False
        if not isinstance(guide, AutoFlow):
            raise ValueError(
                f"PathELBO takes draws in chunks for an AutoFlow only, got {type(guide).__name__} "
                f"with chunk_size={self.chunk_size}: leave it out, and use fewer particles."
            )
        return True

    def _draw(self, model: Callable, guide: AutoFlow, args: tuple, kwargs: dict) -> FlowBatch:
        guide._prepare(args, kwargs)
        log_density = self._log_density(model, guide, args, kwargs)
        # Pyro's param store is of use to handlers only, and keeping it costs a tenth of a step.
        wrapped = am_i_wrapped()
        found = guide.get_posterior() if wrapped else guide.unregistered_posterior()
        # Each rank takes its part of draws that are the same on all of them.
        noise = found.draw_noise((self.ranks.size, self.num_particles))[self.ranks.rank]
        weights = (self.score_weight, self.tail_weight)
        if not torch.is_grad_enabled():
            weights = (1.0, 0.0)  # needs no derivatives
        tally = self._tally_like(noise)
        return FlowBatch(found.bijector, log_density, noise, *weights, tally, found.base)

    def _is_one_graph(self) -> bool:
        """Whether a step may be taken as a whole, with nobody else looking or taking part."""
        if self.compiled is None or self.compiled.reason or not torch.is_grad_enabled():
            return False
        return not am_i_wrapped() and self.ranks.size == 1

    def _evaluate(self, batch: FlowBatch) -> Surrogate:
        if self._is_one_graph():
            found = self.compiled(**batch._asdict())
            if found is not None:
                return found
        return shared_surrogate(batch, self.ranks)

    def _booked(self, found: Surrogate) -> Tensor:
        self.vectorized = self._density[3].vectorized
        self._num_nonfinite = self._num_nonfinite + found.num_nonfinite
        self._log_weights = found.log_weights
        return found.loss

    def _tally_like(self, noise: Tensor) -> Tensor:
        """A leaf whose gradient, summed up over backward passes, counts what they left out."""
        if self._tally is None or self._tally.device != noise.device:
            self.count_nonfinite_from(self.num_nonfinite_particles)
            self._tally = torch.zeros(
                (), dtype=torch.float32, device=noise.device, requires_grad=True
            )
        return self._tally

    def _log_density(
        self, model: Callable, guide: AutoFlow, args: tuple, kwargs: dict
    ) -> LogDensity:
        cached, signature = self._density, signature_of(args, kwargs)
        # Data of another shape may broadcast in another way, so they are checked again.
        if cached is None or cached[0] is not model or cached[1:3] != (guide.latents, signature):
            method = "auto" if self.vectorize_particles else "loop"
            density = LogDensity(model, guide.latents, args, kwargs, method=method)
            if self.vectorize_particles:
                with torch.no_grad():
                    points = guide.get_posterior().rsample((3,))
                density.check(points)
            self._density = cached = (model, guide.latents, signature, density)
        density = cached[3]
        density.model_args, density.model_kwargs = args, kwargs
        return density

    # -- any other reparameterised guide: score its draws again, parameters frozen -------------

    def _trace_loss(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Tensor:
        if self.vectorized is None:
            self._check_traces(model, guide, args, kwargs)
        loss = surrogate = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            _check_reparameterised(guide_trace)
            elbo = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
            loss = loss - elbo.detach() / self.num_particles
            if torch.is_grad_enabled():
                entropy = _frozen_log_prob(
                    self._vectorized_num_particles(guide) if self.vectorize_particles else guide,
                    guide_trace,
                    args,
                    kwargs,
                )
                log_q = torch.lerp(entropy, guide_trace.log_prob_sum(), self.score_weight)
                surrogate = surrogate - (model_trace.log_prob_sum() - log_q) / self.num_particles
        return loss if not torch.is_grad_enabled() else loss + surrogate - surrogate.detach()

    def _check_traces(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
        """Vectorize only a model that was seen to broadcast."""
        if not self.vectorize_particles:
            self.vectorized = False
            return
        try:
            self.vectorized = broadcasts(model, args, kwargs, type(self).__name__)
        except ValueError as error:
            warnings.warn(f"The model could not be checked for vectorizing: {error}", stacklevel=2)
            self.vectorized = True
            return
        self.vectorize_particles = self.vectorized


def broadcasts(model: Callable, args: tuple, kwargs: dict[str, Any], owner: str) -> bool:
    """Tell whether a model may be run inside a plate of particles.

    Raises:
        ValueError: If the model has latents that cannot be read.
    """
    with poutine.block(), torch.no_grad():
        trace = poutine.trace(InitMessenger(init_to_center)(model)).get_trace(*args, **kwargs)
    latents = read_latents(trace, owner)
    values = {name: trace.nodes[name]["value"] for name in latents.sites}
    loc = latents.unconstrain(values)
    shift = torch.linspace(0.01, 0.1, 3).to(loc)[:, None]
    return LogDensity(model, latents, args, kwargs).broadcasts(loc + shift)


def _check_reparameterised(trace: poutine.Trace) -> None:
    for name, site in trace.nodes.items():
        latent = site["type"] == "sample" and not site["is_observed"]
        if latent and not getattr(site["fn"], "has_rsample", False):
            raise ValueError(
                f"PathELBO needs a reparameterised guide, but site {name!r} is a "
                f"{type(site['fn']).__name__} without rsample: use pyro.infer.Trace_ELBO."
            )


def _frozen_log_prob(guide: Callable, trace: poutine.Trace, args: tuple, kwargs: dict) -> Tensor:
    """The log q of the draws in ``trace``, with a gradient through the draws only."""
    copied = trace.copy()
    for site in copied.nodes.values():
        if site["type"] == "sample":  # another tensor, so that no transform answers from its cache
            site["value"] = site["value"].view_as(site["value"])
    params = [s["value"].unconstrained() for s in trace.nodes.values() if s["type"] == "param"]
    with poutine.block(), _frozen(params):
        again = poutine.trace(poutine.replay(guide, trace=copied)).get_trace(*args, **kwargs)
        return again.log_prob_sum()


@contextmanager
def _frozen(params: list[Tensor]) -> Iterator[None]:
    trained = [p for p in params if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
