"""What a fit has to know of a model and a guide before the first step."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match
from torch import Tensor, nn

from ..guides.prototype import tensors_in

__all__ = ["Survey", "guide_name", "module_params", "survey"]


@dataclass(frozen=True)
class Survey:
    """The trainable tensors, each once, under the names that a user knows.

    Args:
        params: All of them, unconstrained, model and guide.
        guide_params: Those of the guide.
    """

    params: dict[str, Tensor]
    guide_params: dict[str, Tensor]


def survey(model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> Survey:
    """Run guide and model once, and collect what can be trained.

    A module's own tensors come before entries of Pyro's param store that another module left
    under the same names: these are dropped with a warning, since they would be trained in vain.

    Raises:
        ValueError: If the model has no latents or the guide no parameters.
    """
    known = set(pyro.get_param_store().keys())
    fresh = isinstance(guide, nn.Module) and not list(guide.parameters())
    guide_trace, model_trace = _checked_traces(model, guide, args, kwargs)
    if not [s for s in model_trace.stochastic_nodes if not _is_subsample(model_trace, s)]:
        raise ValueError(
            "fit_guide: expected a model with latent variables, got one in which every "
            "pyro.sample site is observed, so there is no posterior to fit."
        )
    _drop_stale(model, guide, (guide_trace, model_trace))
    if fresh:
        _warn_of_inherited(guide, known & set(guide_trace.param_nodes))
    guide_params = dict(module_params(guide)) | dict(_site_params(guide_trace))
    params = guide_params | dict(_site_params(model_trace))
    guide_params = _unique(guide_params)
    if not guide_params:
        raise ValueError(
            f"fit_guide: expected a guide with parameters to train, got {guide_name(guide)}, which "
            "has none that require a gradient."
        )
    return Survey(_unique(params), guide_params)


def _checked_traces(
    model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces under validation; a draw that happens to give NaN is no reason to end a fit."""
    try:
        traces = _traces(model, guide, args, kwargs)
    except RuntimeError as error:
        if not re.search(r"same device|expected device|different devices", str(error)):
            raise
        raise _mixed_devices(guide, args, kwargs, error) from error
    except ValueError as error:
        if not re.search(r"\bnan\b", str(error)):
            raise
        with pyro.validation_enabled(False):
            traces = _traces(model, guide, args, kwargs)
    guide_trace, model_trace = traces
    check_model_guide_match(prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace))
    return traces


def _mixed_devices(
    guide: Callable, args: tuple, kwargs: dict[str, Any], error: RuntimeError
) -> ValueError:
    where = {f"the parameters of {guide_name(guide)}": p for _, p in module_params(guide)}
    where |= dict([*tensors_in(args, "model_args"), *tensors_in(kwargs, "model_kwargs")])
    told = ", ".join(f"{name} on {tensor.device}" for name, tensor in where.items())
    first_line = str(error).strip().partition("\n")[0]
    return ValueError(
        f"fit_guide: model and guide hold tensors on different devices ({told or 'no arguments'}; "
        f"torch says: {first_line}). Move all to one: guide.to(device), each argument's "
        ".to(device), and the tensors that the model itself makes or refers to."
    )


def _traces(
    model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[poutine.Trace, poutine.Trace]:
    with poutine.block():
        unwrapped = poutine.unwrap(guide)
        if isinstance(unwrapped, Messenger):
            guide(*args, **kwargs)
            model_trace, guide_trace = unwrapped.get_traces()
            return guide_trace, model_trace
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        return guide_trace, poutine.trace(replayed).get_trace(*args, **kwargs)


def _is_subsample(trace: poutine.Trace, name: str) -> bool:
    return site_is_subsample(trace.nodes[name])


def module_params(module: Callable) -> Iterator[tuple[str, Tensor]]:
    """The trainable parameters of a module; nothing of any other callable."""
    if isinstance(module, nn.Module):
        yield from ((n, p) for n, p in module.named_parameters() if p.requires_grad)


def _site_params(trace: poutine.Trace) -> Iterator[tuple[str, Tensor]]:
    for name in trace.param_nodes:
        own = _own_tensor(trace.nodes[name])
        yield name, trace.nodes[name]["value"].unconstrained() if own is None else own


def _own_tensor(site: dict) -> nn.Parameter | None:
    """The parameter that a module brought to a site, which the store may have ignored."""
    brought = site["args"][1] if len(site["args"]) > 1 else None
    return brought if isinstance(brought, nn.Parameter) else None


def _drop_stale(model: Callable, guide: Callable, traces: tuple[poutine.Trace, ...]) -> None:
    store = pyro.get_param_store()
    owned = {id(p) for module in (model, guide) for _, p in module_params(module)}
    stale = set()
    for trace in traces:
        for name in trace.param_nodes:
            own = _own_tensor(trace.nodes[name])
            if own is None or own is trace.nodes[name]["value"].unconstrained():
                continue
            if ("$$$" in name or id(own) in owned) and name in store:
                stale.add(name)
    for name in stale:
        del store[name]
    if stale:
        warnings.warn(
            f"fit_guide: Pyro's param store held {len(stale)} entries of another module under the "
            f"names of this one, such as {min(stale)!r}. They were dropped, so that this one "
            "trains; call pyro.clear_param_store() between fits to avoid the clash.",
            stacklevel=4,
        )


def _warn_of_inherited(guide: nn.Module, names: set[str]) -> None:
    inherited = {n for n in names if "$$$" not in n}
    if inherited:
        warnings.warn(
            f"fit_guide: {guide_name(guide)} starts from, and shares, {len(inherited)} "
            f"parameters that Pyro's param store already held, such as {min(inherited)!r}. If they "
            "are another guide's, call pyro.clear_param_store() before making this one.",
            stacklevel=4,
        )


def _unique(params: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    kept = {}
    for name, param in params.items():
        if param.requires_grad and id(param) not in seen:
            seen.add(id(param))
            kept[name] = param
    return kept


def guide_name(guide: Callable) -> str:
    """What to call a guide in a message."""
    return getattr(guide, "__name__", type(guide).__name__)
