"""Keeping a guide and Pyro's param store of one mind."""

from __future__ import annotations

import pyro
import torch
from torch import nn

__all__ = ["claim_params"]

_MARK = "_pyroflows_claimed"


def claim_params(name: str, module: nn.Module) -> None:
    """Make the store's entries for ``module`` the module's own parameters.

    ``pyro.module`` hands the optimizer whatever the store holds under a name. Where that is
    another guide's tensor, the new guide would never train; where it was loaded from a file, the
    module would go on computing with its own start. So: entries that belong to another guide are
    replaced by ours, and entries that were loaded are copied into ours.

    Args:
        name: Name under which the module is registered.
        module: The module.

    Raises:
        ValueError: If a loaded entry has another shape.
    """
    store = pyro.get_param_store()
    for key, param in module.named_parameters():
        full_name = f"{name}$$${key}"
        stored = store._params.get(full_name)
        if stored is not None and stored is not param:
            if not hasattr(stored, _MARK):
                _adopt(full_name, stored, param)
            del store[full_name]
        setattr(param, _MARK, param)
    # Pyro stores no buffers, but a flow without its anchors is another density. They are stored as
    # aliases: no optimizer is handed them, since no ``pyro.param`` statement names them.
    for key, buffer in module.named_buffers():
        if buffer.is_floating_point():
            _claim_buffer(f"{name}$$${key}", buffer)


def _claim_buffer(full_name: str, buffer: torch.Tensor) -> None:
    store = pyro.get_param_store()
    stored = store._params.get(full_name)
    if stored is not None and getattr(stored, _MARK, None) is buffer:
        return
    if stored is not None:
        if not hasattr(stored, _MARK):
            _adopt(full_name, stored, buffer)
        del store[full_name]
    store[full_name] = buffer.detach()
    setattr(store._params[full_name], _MARK, buffer)


def _adopt(name: str, stored: torch.Tensor, ours: torch.Tensor) -> None:
    if stored.shape != ours.shape:
        raise ValueError(
            f"The param store holds {name!r} of shape {tuple(stored.shape)}, the guide expects "
            f"{tuple(ours.shape)}: it was saved from another guide. Build the guide with the same "
            "model and flow, or call pyro.clear_param_store()."
        )
    with torch.no_grad():
        ours.copy_(stored)
