"""How sites, plates and axes are called in ArviZ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..infer._sites import Site

__all__ = ["Names", "deterministic_event_dims", "to_numpy"]

# ArviZ and xarray keep these for themselves.
_RESERVED = ("chain", "draw", "sample", "pred_id")


def to_numpy(value: Tensor) -> np.ndarray:
    """Copy a tensor of any device, dtype or graph to NumPy."""
    value = value.detach().cpu().resolve_conj().resolve_neg()
    if value.dtype in (torch.bfloat16, torch.float16):
        value = value.float()
    return value.numpy()


class Names:
    """Names of variables and dimensions for the sites of one model.

    Args:
        sites: what one run of the model showed.
        dims: names of a site's axes after chain and draw, in place of those found.
        coords: labels along dimensions.
        inputs: names of arguments of the model, whose axes ``dims`` may name too.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        dims: Mapping[str, Sequence[str]] | None,
        coords: Mapping[str, Sequence] | None,
        inputs: Iterable[str] = (),
    ) -> None:
        self.coords = dict(coords or {})
        self.given = {name: list(axes) for name, axes in (dims or {}).items()}
        unknown = set(self.given) - set(sites) - set(inputs)
        if unknown:
            raise ValueError(
                f"to_inference_data: dims name {sorted(unknown)}, which the model lacks; it has "
                f"{sorted(sites)}."
            )
        reserved = {axis for axes in self.given.values() for axis in axes} & set(_RESERVED)
        if reserved:
            raise ValueError(
                f"to_inference_data: dims use {sorted(reserved)}, which ArviZ keeps for itself; "
                "choose other names."
            )
        self.variables = _unique({n: n.replace("/", ".") for n in sites}, "site", _RESERVED)
        plates = {name for site in sites.values() for name, _ in site.plates.values()}
        taken = (*_RESERVED, *self.variables.values())
        self.plates = _unique({n: n.replace("/", ".") for n in plates}, "plate", taken)

    def constant(self, name: str) -> str:
        """Return what an argument of the model is called; dims keep their names."""
        taken = {*_RESERVED, *self.plates.values()}
        return f"{name}_input" if name in taken else name

    def batch(self, name: str, site: Site, values: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Name the batch axes of an array ``(..., *batch_shape)``; drop those of no plate."""
        return self._named(name, site, values, len(site.batch_shape), 0)

    def value(self, name: str, site: Site, values: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Name the axes of values ``(lead, *shape)`` after plates and events."""
        if site.kind == "deterministic":
            event_dim = self._num_event(site)
            return self._named(name, site, values, len(site.shape) - event_dim, event_dim)
        padding = (1,) * (len(site.full_shape) + 1 - values.ndim)
        values = values.reshape(values.shape[0], *padding, *values.shape[1:])
        full = (values.shape[0], *site.full_shape)
        values = values if values.shape == full else np.array(np.broadcast_to(values, full))
        return self._named(name, site, values, len(site.batch_shape), site.event_dim)

    def _named(
        self, name: str, site: Site, values: np.ndarray, num_batch: int, num_event: int
    ) -> tuple[list[str], np.ndarray]:
        lead = values.ndim - num_batch - num_event
        plates = {axis: self.plates[plate] for axis, (plate, _) in site.plates.items()}
        axes = [plates.get(axis - num_batch) for axis in range(num_batch)]
        dropped = [
            lead + axis
            for axis, plate in enumerate(axes)
            if plate is None and values.shape[lead + axis] == 1
        ]
        axes = [a for i, a in enumerate(axes) if lead + i not in dropped]
        events = list(site.event_names) if len(site.event_names) == num_event else []
        axes += events or [None] * num_event
        values = values.squeeze(tuple(dropped)) if dropped else values
        variable = self.variables[name]
        named = [axis or f"{variable}_dim_{i}" for i, axis in enumerate(axes)]
        if name in self.given and num_event == self._num_event(site):
            named = self._as_given(name, named, site, num_event)
        return named, values

    @staticmethod
    def _num_event(site: Site) -> int:
        if site.kind != "deterministic":
            return site.event_dim
        found = deterministic_event_dims(site)
        return found[0] if len(found) == 1 else len(site.shape)  # neutral names, not wrong ones

    def _as_given(self, name: str, found: list[str], site: Site, num_event: int) -> list[str]:
        given = self.given[name]
        if len(given) != len(found):
            raise ValueError(
                f"to_inference_data: dims of '{name}' are {given}, but it has {len(found)} axes, "
                f"found as {found}; name every axis."
            )
        return given

    def labels(self, dims: Iterable[str], shape: Sequence[int]) -> dict[str, Sequence]:
        """Return labels along dims, checked against their sizes."""
        labels = {}
        for dim, size in zip(dims, shape, strict=True):
            found = self.coords.get(dim, range(size))
            if len(found) != size:
                raise ValueError(
                    f"to_inference_data: coords of '{dim}' have {len(found)} labels, but the "
                    f"dimension has {size}."
                )
            labels[dim] = list(found)
        return labels


def _unique(wanted: dict[str, str], suffix: str, taken: Iterable[str]) -> dict[str, str]:
    taken, names = set(taken), {}
    for name in sorted(wanted):
        new = wanted[name]
        while new in taken:
            new = f"{new}_{suffix}"
        taken.add(new)
        names[name] = new
    return names


def deterministic_event_dims(site: Site) -> list[int]:
    """Possible numbers of event axes: ``pyro.deterministic`` calls all axes events, plates or not.

    One where it was said, or seen from the axes of many draws. Else each that leaves every plate an
    axis of its size, the fewest first; all axes if none does.
    """
    rank = len(site.shape)
    if not site.plates or site.event_dim < rank:
        return [site.event_dim]
    found = [event_dim for event_dim in range(rank + 1) if site.plates_fit(event_dim)]
    return found or [rank]
