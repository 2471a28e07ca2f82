"""What a guide is asked before it is made: where to start, and whether data fit it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..log_density.reading import center, init_to_center, read_latents

__all__ = [
    "check_data",
    "device_of",
    "init_to_center",
    "or_center",
    "read_latents",
    "signature_of",
    "takes_no_arguments",
]


def or_center(init_loc_fn: Callable) -> Callable:
    """A user's ``init_loc_fn``, with the center where it would draw from an improper prior."""

    def init(site: dict[str, Any]) -> Tensor:
        try:
            return init_loc_fn(site)
        except NotImplementedError:
            return center(site["fn"])

    return init


def tensors_in(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in some arguments, each with words for where it stands."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_in(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from tensors_in(item, f"{path}[{i}]")


def device_of(guide: Any, args: tuple, kwargs: dict[str, Any]) -> torch.device:
    """Where the guide lives, or the data if it has no parameters of its own."""
    if isinstance(guide, nn.Module) and (param := next(guide.parameters(), None)) is not None:
        return param.device
    tensors = [*tensors_in(args, ""), *tensors_in(kwargs, "")]
    return tensors[0][1].device if tensors else torch.get_default_device()


def signature_of(args: tuple, kwargs: dict[str, Any]) -> tuple:
    """What must stay the same for a guide to fit: places, shapes, dtypes, devices of tensors."""
    tensors = [*tensors_in(args, "model_args"), *tensors_in(kwargs, "model_kwargs")]
    return tuple((path, t.shape, t.dtype, t.device) for path, t in tensors)


def check_data(signature: tuple, known: tuple, like: Tensor, owner: str) -> None:
    """Raise if data are of another dtype or device than the guide was made for.

    Args:
        signature: Of the data now.
        known: Of the data that the guide was made with.
        like: A tensor of the guide.
        owner: Name of the guide's class, for messages.
    """
    before = {path: (dtype, device) for path, _, dtype, device in known}
    for path, _, dtype, device in signature:
        if device != like.device:
            raise ValueError(
                f"{owner} is on {like.device}, but {path} is on {device}: move one of them, "
                f"data.to({str(like.device)!r}) or guide.to({str(device)!r})."
            )
        if not dtype.is_floating_point or dtype == like.dtype:
            continue
        if before.get(path, (None,))[0] != dtype:
            raise ValueError(
                f"{owner} is of {like.dtype}, but {path} is of {dtype}: cast one of them, "
                f"data.to({like.dtype}) or guide.to({dtype})."
            )


def takes_no_arguments(model: Callable) -> bool:
    """Whether the model can only be called without arguments."""
    try:
        target = model.forward if isinstance(model, nn.Module) else model
        return not inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False
