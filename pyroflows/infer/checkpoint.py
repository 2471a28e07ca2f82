"""Files that a fit goes on from: written while it runs, and read back to the same numbers."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..guides import AutoFlow
from ..guides.prototype import tensors_in
from .distributed import Ranks
from .survey import guide_name

__all__ = ["Checkpoint", "describe", "named_tensors", "random_state", "set_random_state"]

VERSION = 5
SECONDS_BETWEEN = 10.0
_COST = 20.0  # times what a write takes is the least that passes between two


class Checkpoint:
    """A file that holds a fit.

    Args:
        path: Where it is.
        facts: What the fit is of, see :func:`describe`: a file of another one is refused.
        tensors: Parameters and buffers by name: all that is trained or that the start has set.
        ranks: Only rank 0 reads and writes; the others are told.

    Attributes:
        found: The state of the run that it held; ``None`` if there was no file.

    Raises:
        ValueError: If there is no such folder, the path is one, or the file is of another fit.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        facts: dict[str, Any],
        tensors: dict[str, Tensor],
        ranks: Ranks,
    ) -> None:
        self.path = Path(path)
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise ValueError(
                f"fit_guide: expected checkpoint to be a file in an existing folder, got "
                f"{str(path)!r}."
            )
        self._facts = facts
        self._tensors = tensors
        self._ranks = ranks
        self._written_at = perf_counter()
        self._cost = 0.0
        self.num_steps: int | None = None  # of the fit in the file
        self.found = self._read()

    def _read(self) -> dict[str, Any] | None:
        """What the file says, with parameters put in place; ``None`` if there is none."""
        state = self._ranks.tell(self._load() if self._ranks.is_first else None)
        if isinstance(state, str):
            raise ValueError(state)
        if state is None:
            return None
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(state["tensors"][name])
        self.num_steps = len(state["run"]["losses"])
        return state["run"]

    def due(self) -> bool:
        """Whether it is time to write."""
        wait = max(SECONDS_BETWEEN, _COST * self._cost)
        return self._ranks.is_first and perf_counter() - self._written_at >= wait

    def write(self, run: dict[str, Any]) -> None:
        """Replace the file, in one step: a process that is killed leaves the old one or the new."""
        if not self._ranks.is_first:
            return
        started = perf_counter()
        tensors = {name: t.detach().cpu() for name, t in self._tensors.items()}
        state = {"version": VERSION, "facts": self._facts, "tensors": tensors, "run": run}
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(fresh, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self.path)
        except OSError as error:  # a full disk must not take the fit with it
            warnings.warn(f"fit_guide: the checkpoint was not written: {error}.", stacklevel=2)
            return
        finally:
            fresh.unlink(missing_ok=True)
        self.num_steps = len(run["losses"])
        self._written_at = perf_counter()
        self._cost = self._written_at - started

    def _load(self) -> dict[str, Any] | str | None:
        """The file; or why not, for all ranks to hear."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            version, facts = state["version"], dict(state["facts"])
        except Exception as error:  # whatever comes of reading a file that something else wrote
            return (
                f"fit_guide: {str(self.path)!r} is no checkpoint of a fit, as reading it ended in "
                f"{type(error).__name__}. Delete it, or name another file."
            )
        if version != VERSION:
            return (
                f"fit_guide: {str(self.path)!r} is of checkpoint format {version}, this version "
                f"reads {VERSION}. Delete it, or name another file."
            )
        for name, value in self._facts.items():
            if facts.get(name) != value:
                return self._refusal(name, facts.get(name), value)
        return state

    def _refusal(self, name: str, then: Any, now: Any) -> str:
        if isinstance(now, dict) and isinstance(then, dict):
            key = next(k for k in [*now, *then] if now.get(k) != then.get(k))
            name, then, now = f"{name} {key!r}", then.get(key), now.get(key)
        return (
            f"fit_guide: the checkpoint {str(self.path)!r} is of another fit: its {name} is "
            f"{then}, that of this one {now}. Go on with the same model, guide, data and "
            "settings, delete the file to start anew, or name another."
        )


def describe(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """What makes a fit the one that it is, in words and numbers that a file can hold."""
    data = [*tensors_in(args, "model_args"), *tensors_in(kwargs, "model_kwargs")]
    data += _other_data(args, "model_args") + _other_data(kwargs, "model_kwargs")
    data += _other_data(_enclosed(model), "model")
    latents = guide.latents.sites if isinstance(guide, AutoFlow) else {}
    return {
        "model": _name(model),
        "guide": guide_name(guide),
        "latents": {name: str(tuple(site.shape)) for name, site in latents.items()},
        "parameters": {n: f"{t.dtype} {tuple(t.shape)}" for n, t in tensors.items()},
        "data": {path: _digest(value) for path, value in data},
        "settings": settings,
    }


def _name(model: Callable) -> str:
    return getattr(model, "__qualname__", type(model).__name__)


def _enclosed(model: Callable) -> dict[str, Any]:
    """What a function holds beside its code: the variables around it, arguments given before."""
    if isinstance(model, partial):
        inner = _enclosed(model.func)
        return {**inner, "args": model.args, "kwargs": model.keywords}
    function = getattr(model, "__func__", model)
    cells = getattr(function, "__closure__", None) or ()
    names = function.__code__.co_freevars if cells else ()
    return {n: c.cell_contents for n, c in zip(names, cells, strict=True) if _is_set(c)}


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _other_data(value: Any, path: str) -> list[tuple[str, Any]]:
    """Numbers, words and arrays, and the tensors that a model holds, by where they are."""
    if isinstance(value, dict):
        pairs = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    else:
        is_held = isinstance(value, Tensor) and path.startswith("model[")
        is_data = isinstance(value, bool | int | float | str | np.ndarray | np.generic)
        return [(path, value)] if is_data or is_held else []
    return [found for where, item in pairs for found in _other_data(item, where)]


def _digest(value: Any) -> str:
    if isinstance(value, np.ndarray):
        raw = np.ascontiguousarray(value).tobytes()
        return f"{value.dtype} {value.shape} #{zlib.crc32(raw):08x}"
    if not isinstance(value, Tensor):
        return repr(value)
    raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{value.dtype} {tuple(value.shape)} #{zlib.crc32(raw):08x}"


def named_tensors(model: Callable, guide: Callable, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters that are trained, and the others and the buffers of model and guide."""
    found, seen = {}, set()
    modules = {"model": model, "guide": guide}
    for prefix, module in modules.items():
        if isinstance(module, nn.Module):
            held = [*module.named_parameters(), *module.named_buffers()]
            found |= {f"{prefix}.{name}": tensor for name, tensor in held}
    found, kept = params | found, {}
    for name, tensor in found.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kept[name] = tensor
    return kept


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators: that of the CPU, and that of a GPU in use."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put generators back to where they were."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
