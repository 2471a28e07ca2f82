"""A device that is pretended: numbers on the CPU that refuse to meet those that admit to it.

Tensors of the device ``meta`` have values here, kept in a tensor on the CPU. Operations that mix
them with ordinary tensors raise, as they do on a GPU: scalars and indices may be mixed. So a
constant that was made without a device is found where there is no GPU.
"""

from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_CPU = torch.device("cpu")
_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray)


class Pretended(Tensor):
    @staticmethod
    def __new__(cls, inner):
        pretended = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        pretended.inner = inner
        return pretended

    def __repr__(self, **_):
        return f"Pretended({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """What torch makes of Python's numbers below its dispatcher: here it is made above."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in _MAKERS and not isinstance(args[0], Tensor) and _is_there(kwargs):
            wants_grad = kwargs.pop("requires_grad", False)
            made = Pretended(function(*args, **kwargs | {"device": _CPU}))
            return made.requires_grad_(wants_grad)
        if args and isinstance(args[0], Pretended):
            if function is Tensor.new_tensor:
                options = {"dtype": args[0].dtype, **kwargs, "device": _CPU}
                return Pretended(torch.tensor(*args[1:], **options))
            if function in (Tensor.__getitem__, Tensor.__setitem__):
                return function(args[0], _index(args[1]), *args[2:])
            if function is Tensor.tolist:
                return args[0].inner.tolist()
        return function(*args, **kwargs)


@contextmanager
def pretended_device():
    with ExitStack() as stack:
        stack.enter_context(_Constructors())
        stack.enter_context(_Operations())
        yield DEVICE


def _is_there(kwargs):
    return kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE


def _index(index):
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _run(function, args, kwargs):
    tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
    pretended = [v for v in tensors if isinstance(v, Pretended)]
    name = function.__name__
    if pretended and "copy" not in name and "index" not in name:
        for v in tensors:
            if v.dim() and not isinstance(v, Pretended):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, {DEVICE} and {v.device}: {function}."
                )
    out = function(*tree_map(_bare, args), **tree_map(_bare, kwargs))
    if not (_is_there(kwargs) if kwargs.get("device") is not None else pretended):
        return out
    known = {id(v.inner): v for v in pretended}
    return tree_map(lambda v: _dressed(v, known), out)


def _bare(value):
    if isinstance(value, Pretended):
        return value.inner
    return _CPU if isinstance(value, torch.device) else value


def _dressed(value, known):
    if not isinstance(value, Tensor):
        return value
    return known[id(value)] if id(value) in known else Pretended(value)
