"""What one run of a model shows of its sites, and what many draws of a guide hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from ._log_prob import is_deterministic, is_factor
from ._modes import ModeDraws


@dataclass(frozen=True)
class Site:
    """What one run of the model showed of a sample site.

    Attributes:
        kind: "latent", "observed", "deterministic" or "factor".
        shape: shape of one value.
        batch_shape: shape of its log density.
        event_dim: how many of the rightmost axes belong to one event.
        plates: names of its vectorised plates by negative axis of the batch shape.
        event_names: names of the event axes given in ``infer={"event_dims": [...]}``.
        mask: mask over the log density, or None.
        value: the value seen; for an observed site, the data.
    """

    kind: str
    shape: torch.Size
    batch_shape: torch.Size
    event_dim: int
    plates: dict[int, tuple[str, int]]
    event_names: tuple[str, ...]
    mask: Tensor | bool | None
    value: Tensor = field(repr=False)

    @property
    def full_shape(self) -> torch.Size:
        """Shape of a value that its plates have expanded."""
        return self.batch_shape + self.shape[len(self.shape) - self.event_dim :]

    def plates_fit(self, event_dim: int) -> bool:
        """Whether every plate has an axis of its size left of so many event axes."""
        return all(
            event_dim - axis <= len(self.shape) and self.shape[axis - event_dim] == size
            for axis, (_, size) in self.plates.items()
        )

    def seen_in_draws(self, value: Tensor, num: int, max_plate_nesting: int) -> Site:
        """The same deterministic site, its event axes counted from the axis of many draws.

        Args:
            value: its value under a plate of ``num`` draws, left of all others.
            num: number of draws, more than one.
            max_plate_nesting: number of batch axes of the model, draws left out.
        """
        event_dim = value.dim() - 1 - max_plate_nesting
        leads = value.shape[:1] == (num,) and value.numel() == num * self.shape.numel()
        if not (self.plates and leads and 0 <= event_dim <= len(self.shape)):
            return self
        return replace(self, event_dim=event_dim) if self.plates_fit(event_dim) else self


@dataclass(frozen=True)
class GuideDraws:
    """S draws of a guide seen through a model; tensors live on the CPU, draws lead.

    Attributes:
        sites: the model's sites by name, in the order of the model.
        values: latent (and, when asked for, deterministic) values, ``(S, *shape)``.
        log_likelihood: unscaled log density of observed sites, ``(S, *batch_shape)``.
        predictive: new data at observed sites, ``(S, *shape)``.
        log_p: log joint density of model and data, scaled and masked, float64 ``(S,)``, or None
            where it is no density of these draws: see ``missing`` and ``subsampled``.
        log_q: log density of the guide, float64 ``(S,)``, or None likewise.
        probe: log weights of other draws, with widened noise, that estimate the same log Z,
            float64; or None where the guide is not made of normal noise.
        rounding: relative rounding error of the log densities.
        num_outside: draws outside the support of the model.
        point_masses: latents that the guide gives one and the same value.
        missing: latents of the model that the guide does not draw and that were not enumerated.
        marginalized: discrete latents summed out.
        subsampled: plates of which model or guide sees a part only.
        vectorized: whether all draws went through model and guide together.
        probe_alone: log weights of those other draws under the guide alone, or None likewise.
        modes: draws around the modes that the guide's start found, or that were looked for here;
            None where there were no two, or no search.
        flat: latents along which the log density does not fall off; None if it does all ways tried.
        beyond: share of the posterior, or more, outside the support of the guide.
        unconstrained: latents on unconstrained coordinates, ``(S, *unconstrained shape)``.
    """

    sites: dict[str, Site]
    values: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    predictive: dict[str, Tensor]
    log_p: Tensor | None
    log_q: Tensor | None
    probe: Tensor | None
    rounding: float
    num_outside: int
    point_masses: tuple[str, ...]
    missing: tuple[str, ...]
    marginalized: tuple[str, ...]
    subsampled: dict[str, tuple[int, int]]
    vectorized: bool
    probe_alone: Tensor | None = None
    modes: ModeDraws | None = None
    flat: str | None = None
    beyond: float = 0.0
    unconstrained: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Keep:
    """What is wanted beside latent values: deterministic sites and log likelihoods; new data."""

    everything: bool
    predictive: bool


@dataclass
class Part:
    """Some of the draws; the fields are those of :class:`GuideDraws`."""

    values: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    predictive: dict[str, Tensor]
    log_p: Tensor | None
    log_q: Tensor | None
    num_outside: int = 0
    unconstrained: dict[str, Tensor] = field(default_factory=dict)


class InferOptions(Messenger):
    """Note the ``infer`` options of model sites before a replay puts the guide's over them."""

    def __init__(self) -> None:
        super().__init__()
        self.options: dict[str, dict] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        self.options[msg["name"]] = dict(msg["infer"] or {})


class NewData(UnconditionMessenger):
    """Draw data anew, but compute deterministic sites: they would broadcast against themselves."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not is_deterministic(msg):
            super()._pyro_sample(msg)


def samples(trace: poutine.Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the sample sites of a trace."""
    return ((name, node) for name, node in trace.nodes.items() if node["type"] == "sample")


def subsampled_plates(*traces: poutine.Trace) -> dict[str, tuple[int, int]]:
    """Find plates that show a part of their elements: name to (part, full size)."""
    return {
        frame.name: (int(frame.size), int(frame.full_size))
        for trace in traces
        for _, node in samples(trace)
        for frame in node["cond_indep_stack"]
        if frame.full_size is not None and frame.full_size != frame.size
    }


def describe(node: dict, options: dict) -> Site:
    """Note kind, shapes, plates and mask of a site of one run."""
    value = torch.as_tensor(node["value"])
    if is_deterministic(node):
        kind = "deterministic"
    elif is_factor(node):
        kind = "factor"
    else:
        kind = "observed" if node["is_observed"] else "latent"
    return Site(
        kind=kind,
        shape=value.shape,
        batch_shape=torch.Size(node["fn"].batch_shape),
        event_dim=len(node["fn"].event_shape),
        plates={f.dim: (f.name, int(f.size)) for f in node["cond_indep_stack"] if f.vectorized},
        event_names=tuple(options.get("event_dims", ())),
        mask=_mask(node),
        value=value.detach(),
    )


def _mask(node: dict[str, Any]) -> Tensor | bool | None:
    """Join the masks of handlers and of the distribution, over the log density."""
    own = node["fn"]._mask if isinstance(node["fn"], MaskedDistribution) else None
    if own is None or node["mask"] is None:
        return node["mask"] if own is None else own
    return torch.as_tensor(own) & torch.as_tensor(node["mask"])
