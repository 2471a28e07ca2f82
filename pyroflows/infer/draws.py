"""One pass through guide and model: draws, their log densities and what the sites look like."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from tqdm.auto import tqdm

from ..guides.posterior import FlowDistribution
from ._flow_draws import FlowDraws, flow_draws
from ._log_prob import (
    PARTICLES,
    LogDensities,
    NotVectorized,
    is_point_mass,
    log_densities,
    num_outside_support,
    per_draw,
)
from ._probing import batches, probe_with_wider_noise
from ._search import look_around
from ._seeding import seeded
from ._sites import (
    GuideDraws,
    InferOptions,
    Keep,
    NewData,
    Part,
    Site,
    describe,
    samples,
    subsampled_plates,
)
from ._unconstrained import unconstrained_values

__all__ = ["GuideDraws", "ModelRun", "Site", "draw_from_guide", "seeded"]

_NUMBERS_PER_PASS = 2**24
# What a model raises that takes draws one by one only.
_MISFITS = (RuntimeError, ValueError, IndexError, KeyError, TypeError)


def draw_from_guide(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    num_samples: int = 10_000,
    seed: int | None = None,
    batch_size: int | None = None,
    everything: bool = False,
    predictive: bool = False,
) -> GuideDraws:
    """Draw from the guide and score the draws under guide and model, without gradients.

    Draws of an ``AutoFlow`` are scored by the density that it is fitted to, where latent values are
    all that is kept. All others go through together under one outer plate. This is checked against
    draws taken one at a time, axis by axis and in value; a model that does not broadcast is run one
    draw at a time instead, with a warning.

    Args:
        model: a Pyro model, conditioned on its data.
        guide: a Pyro guide for it.
        model_args: positional arguments of both.
        model_kwargs: keyword arguments of both.
        num_samples: number of draws S.
        seed: seed of the draws; the caller's generators are left as they were. None: draw on.
        batch_size: draws that go through together; chosen by size unless given.
        everything: keep deterministic sites and log likelihoods too, not only latent values.
        predictive: also draw new data.

    Raises:
        TypeError: if the guide is a messenger, which cannot be replayed.
        ValueError: if a number is not positive, or the guide draws a site the model lacks.
    """
    for name, number in (("num_samples", num_samples), ("batch_size", batch_size)):
        if number is not None and (not isinstance(number, int) or number < 1):
            raise ValueError(f"{name}: expected a positive integer, got {number!r}.")
    if isinstance(poutine.unwrap(guide), GuideMessenger):
        raise TypeError(
            f"importance diagnostics: expected a guide with sites of its own, got the messenger "
            f"{type(guide).__name__}; use an AutoFlow, an AutoContinuous or a hand-written guide."
        )
    # Seeded apart, so that a guide that sets itself up on its first call draws the same again.
    with seeded(seed):
        run = ModelRun(model, guide, tuple(model_args), dict(model_kwargs or {}))
        run.find_flow(batch_size, warn=not everything)
    keep = Keep(everything and run.complete and not run.marginalized, predictive)
    with seeded(seed), torch.no_grad(), pyro.validation_enabled(False):
        parts, vectorized = run.all(num_samples, batch_size, keep)
        probe = probe_with_wider_noise(run, num_samples, batch_size, vectorized)
        draws = run.collect(parts, vectorized, probe)
        return look_around(run, draws) if run.complete else draws


class ModelRun:
    """A model and a guide whose sites are known from one run without particles."""

    flow: FlowDraws | None = None  # what scores draws of an AutoFlow

    def __init__(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.marginalized: tuple[str, ...] = ()
        self.max_plate_nesting = 0
        options = InferOptions()
        full_guide = poutine.trace(guide).get_trace(*args, **kwargs)
        full_model = poutine.trace(poutine.replay(options(model), trace=full_guide)).get_trace(
            *args, **kwargs
        )
        self.subsampled = subsampled_plates(full_guide, full_model)
        self.guide_trace = prune_subsample_sites(full_guide)
        self.model_trace = prune_subsample_sites(full_model)
        frames = [
            frame
            for trace in (self.guide_trace, self.model_trace)
            for _, node in samples(trace)
            for frame in node["cond_indep_stack"]
            if frame.vectorized
        ]
        self.max_plate_nesting = max((-frame.dim for frame in frames), default=0)
        self.sites = {
            name: describe(node, options.options[name]) for name, node in samples(self.model_trace)
        }
        self._match_sites(options.options)
        self.rounding = 0.0
        if self.complete:
            self._score_prototype()

    @property
    def complete(self) -> bool:
        """Whether log p and log q are densities of the same latents."""
        return not self.missing and not self.subsampled

    def find_flow(self, batch_size: int | None, warn: bool) -> None:
        """Score draws by the density of the fit, where the guide has one."""
        if self.complete:
            known = (self.model, self.guide, self.args, self.kwargs)
            self.flow = flow_draws(*known, batch_size, warn=warn)

    def _match_sites(self, options: dict[str, dict]) -> None:
        drawn = {name for name, node in samples(self.guide_trace) if not node["is_observed"]}
        extra = [
            name
            for name in drawn - set(self.sites)
            if not self.guide_trace.nodes[name]["infer"].get("is_auxiliary")
        ]
        if extra:
            raise ValueError(
                f"importance diagnostics: the guide draws {sorted(extra)}, which the model lacks; "
                "remove these sites, rename them, or mark them infer={'is_auxiliary': True}."
            )
        absent = [n for n, s in self.sites.items() if s.kind == "latent" and n not in drawn]
        enumerated = {n for n in absent if options[n].get("enumerate") == "parallel"}
        self.missing = tuple(n for n in absent if n not in enumerated)
        self.marginalized = tuple(n for n in absent if n in enumerated)
        self.latents = [n for n, s in self.sites.items() if s.kind == "latent" and n in drawn]
        if not self.latents:
            raise ValueError(
                "importance diagnostics: expected a guide that draws a latent site of the model, "
                f"got one that draws {sorted(drawn) or 'nothing'}."
            )

    def _score_prototype(self) -> None:
        with torch.no_grad(), pyro.validation_enabled(False):
            guide_trace, model_trace = self.traces(None)
            self.single = (
                log_densities(guide_trace, None, None),
                log_densities(model_trace, None, None, marginal=bool(self.marginalized)),
            )
        self.rounding = max(part.rounding for part in self.single)

    def traces(
        self, num: int | None, fixed: poutine.Trace | None = None
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Trace guide and model with num particles (None: no particle axis)."""
        guide = self.guide if fixed is None else poutine.replay(self.guide, trace=fixed)
        with self.particles(num):
            guide_trace = poutine.trace(guide).get_trace(*self.args, **self.kwargs)
        return prune_subsample_sites(guide_trace), self.replayed(self.model, guide_trace, num)

    def replayed(
        self, model: Callable, guide_trace: poutine.Trace, num: int | None
    ) -> poutine.Trace:
        if self.marginalized:
            model = poutine.enum(model, first_available_dim=-2 - self.max_plate_nesting)
        with self.particles(num):
            trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
                *self.args, **self.kwargs
            )
        return prune_subsample_sites(trace)

    def particles(self, num: int | None) -> contextlib.AbstractContextManager:
        if num is None:
            return contextlib.nullcontext()
        return pyro.plate(PARTICLES, num, dim=-1 - self.max_plate_nesting)

    def all(self, num_samples: int, batch_size: int | None, keep: Keep) -> tuple[list, bool]:
        """Pass num_samples draws through, together when that is sound."""
        batch_size = batch_size or self.draws_together(num_samples)
        sizes = batches(num_samples, batch_size)
        if self.flow is not None and not keep.everything:
            return [self._flow_part(size) for size in sizes], self.flow.vectorized
        try:
            parts = [self._part(sizes[0], keep, check=True)]
            parts += [self._part(size, keep) for size in sizes[1:]]
            return parts, True
        except (NotVectorized, *_MISFITS) as error:
            reason = str(error).strip().split("\n")[0]
        warnings.warn(
            "The model or guide does not take its draws all together "
            f"({reason}); taking {num_samples} draws one at a time, which is slow. Let event "
            "shapes and plates broadcast (negative axes, pyro.plate) to make it fast.",
            stacklevel=4,
        )
        steps = tqdm(range(num_samples), desc="draws, one at a time", leave=False)
        try:
            return [self._part(None, keep) for _ in steps], False
        except (NotVectorized, KeyError) as error:
            raise ValueError(
                f"draws: the sites of model or guide are not the same at each call ({error}), so "
                "that their draws have no common shape. Give every draw the same sites: use a "
                "discrete latent, or a mask, in place of a branch."
            ) from error

    def _flow_part(self, num: int) -> Part:
        values, log_p, log_q = self.flow.draw(num)
        return Part({name: values[name] for name in self.latents}, {}, {}, log_p, log_q)

    def draws_together(self, num_samples: int) -> int:
        """So many draws that their values fit memory."""
        traces = (self.guide_trace, self.model_trace)
        per_draw = sum(torch.as_tensor(n["value"]).numel() for t in traces for _, n in samples(t))
        return max(1, min(num_samples, _NUMBERS_PER_PASS // max(per_draw, 1)))

    def _part(self, num: int | None, keep: Keep, check: bool = False) -> Part:
        if not self.complete:
            return self._latents_only(num)
        guide_trace, model_trace = self.traces(num)
        single_q, single_p = self.single
        log_q = log_densities(guide_trace, num, single_q)
        log_p = log_densities(model_trace, num, single_p, marginal=bool(self.marginalized))
        values = self._values(model_trace, num, ("latent",))
        outside = num_outside_support(model_trace, self.latents, num)
        part = Part(values, {}, {}, log_p.total, log_q.total, int(outside.sum()))
        if num is not None and check:
            self._check(num, guide_trace, log_p, log_q)
        part.log_p = part.log_p.masked_fill(outside, -math.inf)
        if keep.everything:
            part.values = self._values(model_trace, num, ("latent", "deterministic"))
            self._count_event_axes(model_trace, num)
            part.log_likelihood = self._log_likelihood(model_trace, num)
            part.unconstrained = unconstrained_values(
                model_trace, self.model_trace, self.latents, num
            )
        if keep.predictive and keep.everything:
            new = self.replayed(NewData()(self.model), guide_trace, num)
            part.predictive = {
                name: per_draw(new.nodes[name]["value"], num, site.full_shape, name).cpu()
                for name, site in self.sites.items()
                if site.kind == "observed"
            }
        return part

    def _latents_only(self, num: int | None) -> Part:
        with self.particles(num):
            trace = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        return Part(self._values(trace, num, ("latent",)), {}, {}, None, None, 0)

    def _values(
        self, trace: poutine.Trace, num: int | None, kinds: tuple[str, ...]
    ) -> dict[str, Tensor]:
        return {
            name: per_draw(trace.nodes[name]["value"], num, site.shape, name).cpu()
            for name, site in self.sites.items()
            if site.kind in kinds and name in trace and self._is_kept(name)
        }

    def _count_event_axes(self, trace: poutine.Trace, num: int | None) -> None:
        for name, site in self.sites.items() if num and num > 1 else ():
            if site.kind == "deterministic" and site.event_dim == len(site.shape):
                value = torch.as_tensor(trace.nodes[name]["value"])
                self.sites[name] = site.seen_in_draws(value, num, self.max_plate_nesting)

    def _is_kept(self, name: str) -> bool:
        plates = {plate for plate, _ in self.sites[name].plates.values()}
        return name not in self.marginalized and not plates & set(self.subsampled)

    def _log_likelihood(self, trace: poutine.Trace, num: int | None) -> dict[str, Tensor]:
        return {
            name: per_draw(
                trace.nodes[name]["unscaled_log_prob"], num, site.batch_shape, name
            ).cpu()
            for name, site in self.sites.items()
            if site.kind == "observed"
        }

    def _check(
        self,
        num: int,
        guide_trace: poutine.Trace,
        together_p: LogDensities,
        together_q: LogDensities,
    ) -> None:
        """Score two of the draws again, alone, and compare.

        A flow broadcasts by contract. Its draw, alone, is scored through the inverse, which sees
        it rounded: off by nats where the posterior is far from zero, or long, and narrow.
        """
        flows = {n for n, s in samples(guide_trace) if isinstance(s["fn"], FlowDistribution)}
        for index in sorted({0, num - 1}):
            single_guide, single_model = self.traces(None, self._pick(guide_trace, num, index))
            single_q, single_p = self.single
            log_q = log_densities(single_guide, None, single_q)
            log_p = log_densities(single_model, None, single_p, marginal=bool(self.marginalized))
            pairs = {"model": (log_p, together_p), "guide": (log_q, together_q)}
            for name, (alone, together) in pairs.items():
                if (told := alone.differs(together, index, skip=flows)) is not None:
                    raise NotVectorized(f"the {name}'s log density{told}")

    def _pick(self, guide_trace: poutine.Trace, num: int, index: int) -> poutine.Trace:
        # Sites that are functions of others (Delta) are computed again, not compared bit by bit.
        picked = poutine.Trace()
        for name, node in samples(guide_trace):
            if node["is_observed"] or is_point_mass(node["fn"]):
                continue
            shape = self.guide_trace.nodes[name]["value"].shape
            value = per_draw(node["value"], num, shape, name)[index]
            picked.add_node(name, **{**node, "value": value, "infer": dict(node["infer"])})
        return picked

    def collect(self, parts: list[Part], vectorized: bool, probe: Tensor | None) -> GuideDraws:
        """Join the parts."""

        def join(attribute: str) -> dict[str, Tensor]:
            names = getattr(parts[0], attribute)
            return {n: torch.cat([getattr(part, attribute)[n] for part in parts]) for n in names}

        values = join("values")
        return GuideDraws(
            sites=self.sites,
            values=values,
            log_likelihood=join("log_likelihood"),
            predictive=join("predictive"),
            unconstrained=join("unconstrained"),
            log_p=torch.cat([p.log_p for p in parts]) if self.complete else None,
            log_q=torch.cat([p.log_q for p in parts]) if self.complete else None,
            probe=None if probe is None else probe[:, 0],
            probe_alone=None if probe is None else probe[:, 1],
            rounding=self.rounding,
            num_outside=sum(part.num_outside for part in parts),
            point_masses=tuple(n for n in self.latents if self._is_constant(n, values)),
            missing=self.missing,
            marginalized=self.marginalized,
            subsampled=self.subsampled,
            vectorized=vectorized,
        )

    def _is_constant(self, name: str, values: dict[str, Tensor]) -> bool:
        if name not in values or not is_point_mass(self.guide_trace.nodes[name]["fn"]):
            return False
        value = values[name]
        return len(value) > 1 and value[0].numel() > 0 and bool((value == value[0]).all())
