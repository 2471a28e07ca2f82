"""NeuTra: sampling a model in the coordinates of a fitted guide."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam.neutra import NeuTraReparam as _PyroNeuTraReparam
from pyro.poutine.plate_messenger import block_plate
from torch import Tensor

from ..latents import bijection_onto

__all__ = ["NeuTraReparam"]


class NeuTraReparam(_PyroNeuTraReparam):
    r"""Run MCMC on the base variable :math:`\epsilon` of a fitted guide, :math:`u = f(\epsilon)`.

    The density of the flow, :math:`\log |\partial u / \partial \epsilon|`, enters as one factor
    outside of all plates. (Pyro's reparameteriser adds it to the first site, so that a site in a
    plate of size N counts it N times.)

    References:
        | NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport (Hoffman et
          al., 2019)
        | https://arxiv.org/abs/1903.03704

    Args:
        guide: A fitted ``AutoContinuous``, such as :class:`~pyroflows.AutoFlow`.

    Example:
        >>> def model():
        ...     with pyro.plate("schools", 3):
        ...         pyro.sample("theta", dist.Normal(0.0, 1.0))
        >>> neutra = pf.NeuTraReparam(pf.AutoFlow(model, "affine"))
        >>> trace = poutine.trace(neutra.reparam(model)).get_trace()
        >>> trace.nodes["theta_shared_latent_log_det"]["fn"].log_prob(torch.tensor([])).shape
        torch.Size([])
    """

    def apply(self, msg: dict[str, Any]) -> dict[str, Any]:
        """Replace one site by its value under the shared latent."""
        name = msg["name"]
        if name not in self.guide.prototype_trace.nodes:
            return {"fn": msg["fn"], "value": msg["value"], "is_observed": msg["is_observed"]}
        if msg["is_observed"]:
            raise NotImplementedError(f"NeuTraReparam expected {name!r} to be latent, got obs=.")
        compute_density = poutine.get_mask() is not False
        if name not in self.x_unconstrained:
            self._draw_shared_latent(name, compute_density)
        _, raw = self.x_unconstrained.pop(name)
        fn = msg["fn"]
        transform = bijection_onto(fn.support)
        value = transform(raw)
        log_density = 0.0
        if compute_density:
            log_det = transform.log_abs_det_jacobian(raw, value)
            extra = log_det.dim() - value.dim() + fn.event_dim
            log_det = log_det.flatten(-extra).sum(-1) if extra > 0 else log_det
            log_density = fn.log_prob(value) + log_det
        new_fn = dist.Delta(value, log_density, event_dim=fn.event_dim)
        return {"fn": new_fn, "value": value, "is_observed": True}

    def _draw_shared_latent(self, name: str, compute_density: bool) -> None:
        self.transform = self.guide.get_transform()
        with ExitStack() as stack:
            for frame in self.guide._prototype_frames.values():
                stack.enter_context(block_plate(dim=frame.dim, strict=False))
            noise = pyro.sample(f"{name}_shared_latent", self.guide.get_base_dist().mask(False))
            latent = self.transform(noise)
            if compute_density:
                log_det = self.transform.log_abs_det_jacobian(noise, latent)
                pyro.factor(f"{name}_shared_latent_log_det", log_det)
        self.x_unconstrained = {
            site["name"]: (site, raw) for site, raw in self.guide._unpack_latent(latent)
        }

    def transform_sample(self, latent: Tensor) -> dict[str, Tensor]:
        """Return the sites of draws of the shared latent, plates to the right of the batch.

        Args:
            latent: Draws of the shared latent, shape ``(*batch, D)``.

        Returns:
            Values by name, shape ``(*batch, *site shape)`` each.
        """
        if not hasattr(self.guide, "unpack"):
            return super().transform_sample(latent)
        with torch.no_grad():
            return self.guide.unpack(self.guide.get_transform()(latent))
