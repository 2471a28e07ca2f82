"""A step of training as one compiled graph: loss and gradients of flow and model together."""

from __future__ import annotations

from operator import is_

import torch
from torch import Tensor, nn

from ..bases import Base
from ..bijector import Bijector
from ..log_density import LogDensity, Program
from ..log_density.programs import is_due
from .compilations import Compilations, GivenUp
from .recorded import Recorded, batch_last
from .surrogate import Surrogate, flow_surrogate

__all__ = ["CompiledSteps"]


class CompiledSteps(Compilations):
    """Compiled steps, one for each kind of gradient, of one flow and one model.

    The flow, the log density (as a flat graph), the objective and all derivatives are recorded
    once as tensor operations and compiled by torch's inductor. The first result is compared with
    an eager one. Where anything is in the way, steps are eager again, with a warning.

    Attributes:
        seconds: What recording and compiling took.
        reason: Why steps are not compiled (any more), or nothing.
        paused: Whether steps of now are too few to compile them.
        listener: Is told when compiling begins and ends, if there is one.
    """

    advice = "use one PathELBO for each guide"

    def __init__(self) -> None:
        super().__init__()
        self.paused = False

    def __str__(self) -> str:
        if self.reason:
            return f"Steps were not compiled, or not to the end: {self.reason}."
        if not self.seconds:
            return "Steps were not compiled: there were too few of them."
        return f"Steps were compiled, which took {self.seconds:.1f} s of that."

    def __reduce__(self) -> tuple:
        """Copies compile their own."""
        return CompiledSteps, ()

    def __call__(
        self,
        bijector: Bijector,
        log_density: LogDensity,
        noise: Tensor,
        score_weight: float,
        tail_weight: float,
        tally: Tensor,
        base: Base | None = None,
        *,
        add_gradients: bool = False,
    ) -> Surrogate | None:
        """Return what :func:`flow_surrogate` would, or ``None`` where the step has to be eager.

        With ``add_gradients`` they are added to the parameters at once, without a backward pass.
        """
        if self.reason or self.paused:
            return None
        with self._or_give_up():
            step = self._find(bijector, log_density, noise, score_weight, tail_weight, base)
            return step.run(noise, tally, add_gradients)
        return None

    def _find(
        self,
        bijector: Bijector,
        log_density: LogDensity,
        noise: Tensor,
        score_weight: float,
        tail_weight: float,
        base: Base | None,
    ) -> _Step:
        program = log_density.program(len(noise), noise)
        if program is None:
            raise GivenUp("the model cannot be recorded: " + "; ".join(log_density.notes))
        weights = {"score_weight": score_weight, "tail_weight": tail_weight}
        example = batch_last(noise.detach()).requires_grad_(noise.requires_grad)
        return self._get(
            (noise.shape, noise.dtype, noise.device, noise.requires_grad, *weights.values()),
            lambda step: step.serves(bijector, program, base),
            lambda: (_Step(bijector, program, weights, base), (example, _tally_like(noise))),
        )


class _Step(Recorded):
    """One kind of step: recorded, compiled, and run on the live tensors of flow and model."""

    def __init__(
        self,
        bijector: Bijector,
        program: Program,
        weights: dict[str, float],
        base: Base | None,
    ) -> None:
        super().__init__(_Whole(bijector, program, weights, base), program.inputs)
        self._num_calls = 0
        self._parts = (bijector, program, base)
        self._program = program

    def serves(self, *parts: Bijector | Program | Base | None) -> bool:
        """Whether flow, model and base are those that were recorded, and trained as they were."""
        return all(map(is_, self._parts, parts)) and self.is_current()

    def run(self, noise: Tensor, tally: Tensor, add_gradients: bool) -> Surrogate:
        self._num_calls += 1
        args = batch_last(noise), tally
        found = self(*args)
        log_weights, num_nonfinite, draws = found.others
        # Now and then: another model may answer to the same arguments.
        if is_due(self._num_calls) and not self._program.agrees(draws):
            raise GivenUp("the model changed while its arguments did not")
        return Surrogate(self.book(found, args, add_gradients), log_weights, num_nonfinite)


class _Whole(nn.Module):
    """Flow, model and objective as one module, which returns what it drew too."""

    def __init__(
        self,
        bijector: Bijector,
        program: Program,
        weights: dict[str, float],
        base: Base | None,
    ) -> None:
        super().__init__()
        self.bijector = bijector
        self.base = base
        self.__dict__["_program"] = program
        self._weights = weights

    def forward(self, inputs: list[Tensor], noise: Tensor, tally: Tensor) -> tuple[Tensor, ...]:
        draws = []

        def log_density(u: Tensor) -> Tensor:
            draws.append(u.detach())
            return self._program.fn(u, inputs)

        found = flow_surrogate(
            self.bijector, log_density, noise, tally=tally, base=self.base, **self._weights
        )
        return (*found, draws[0])


def _tally_like(noise: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=noise.device, requires_grad=True)
