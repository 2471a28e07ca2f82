"""Which spline kernels serve: for a compiler, of Triton on CUDA where they are proven, or eager.

Triton comes with builds of torch for CUDA; nothing here needs it, and it is imported when used.
Before their first use with a dtype and settings, its kernels are held against the eager ones on the
same device.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

from ..compiling import is_for_a_compiler
from .fused import State
from .spline_kernel import Box, SplineState
from .spline_unrolled import UnrolledBox

if TYPE_CHECKING:
    from .triton_spline import TritonBox

__all__ = ["kernels_for", "restored"]

# Largest difference of any result, in units of that result's largest entry. Other dtypes are eager.
_TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-9}
_DEVICES = ("cuda",)
_MOST_BINS = 32  # the compiler unrolls the bins, which takes it ever longer
_decided: dict[tuple[Box, torch.dtype, torch.device], TritonBox | None] = {}
_reported: set[str] = set()


def kernels_for(box: Box, value: Tensor, raws: Tensor) -> Box | TritonBox:
    """The kernels that evaluate these scalars, ``(N)``, and raw parameters, ``(P, N)``."""
    if box.num_bins > _MOST_BINS:
        return box
    if is_for_a_compiler():
        return UnrolledBox(*box)
    if not _may_launch(value, raws):
        return box
    key = box, value.dtype, value.device
    if key not in _decided:
        if value.is_cuda and torch.cuda.is_current_stream_capturing():
            return box  # a graph that is being captured may not wait for a comparison
        _decided[key] = _proven(*key)
    return _decided[key] or box


def restored(box: Box, state: State) -> tuple[Box | TritonBox, State]:
    """The kernels that a state belongs to, and the state as they take it."""
    if len(state) == len(SplineState._fields):
        return box, SplineState(*state)
    if is_for_a_compiler():
        return UnrolledBox(*box), state
    if _may_launch(*state[:2]):
        from .triton_spline import TritonBox

        return TritonBox(*box), state
    # Someone records the way back, of a way there that nobody recorded.
    evaluate = box.forward if len(state) == 2 else box.inverse
    return box, evaluate(*state[:2])[2]


def _may_launch(value: Tensor, raws: Tensor) -> bool:
    """Whether there is real memory on one such device, and nobody records operations."""
    return (
        value.device.type in _DEVICES
        and value.device == raws.device
        and value.dtype == raws.dtype
        and value.dtype in _TOLERANCE
        and not torch.compiler.is_compiling()
        and type(value) in (Tensor, Parameter)
        and type(raws) in (Tensor, Parameter)
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _proven(box: Box, dtype: torch.dtype, device: torch.device) -> TritonBox | None:
    from .triton_spline import HAS_TRITON, TritonBox, trial

    if not HAS_TRITON:
        return None
    fast = TritonBox(*box)
    try:
        with torch.no_grad():
            difference = _difference(box, fast, *trial(box, dtype, device))
    except Exception as error:  # of Triton, of the compiler it needs, or of the driver
        _report("failed", f"{type(error).__name__}: {error}")
        return None
    if difference <= _TOLERANCE[dtype]:
        return fast
    kind = f"{dtype}, {box.num_bins} bins"
    _report(kind, f"with {kind} they differ from the eager kernels by {difference:.1e}")
    return None


def _report(kind: str, reason: str) -> None:
    if kind not in _reported:
        _reported.add(kind)
        warnings.warn(
            f"RationalQuadraticSpline: the Triton kernels are not used, the slower eager kernels "
            f"are ({reason}).",
            stacklevel=2,
        )


def _difference(box: Box, fast: TritonBox, value: Tensor, raws: Tensor) -> float:
    """The largest difference of any result, in units of that result's largest entry."""
    cotangents = torch.cos(value) / box.bound, torch.sin(2 * value)
    both = [_results(kernels, value, raws, cotangents) for kernels in (box, fast)]
    worst = [(a - b).abs().max() / a.abs().max() for a, b in zip(*both, strict=True)]
    return float(torch.stack(worst).max())


def _results(
    kernels: Box | TritonBox, value: Tensor, raws: Tensor, cotangents: tuple[Tensor, Tensor]
) -> list[Tensor]:
    found = []
    for evaluate in (kernels.forward, kernels.inverse):
        out, log_slope, state = evaluate(value, raws)
        found += out, log_slope, *kernels.pull(state, *cotangents)
    return [*found, kernels.log_slope_x(state)]
