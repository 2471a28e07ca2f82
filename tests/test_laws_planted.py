"""Each law is broken by a bug planted for it: a law that cannot fail is not a law."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Transform

from pyroflows import Bijector, bijector, memory, numerics
from pyroflows.bijectors import Autoregressive, Elementwise
from pyroflows.networks import Conditioner
from tests import laws, laws_numeric, quadrature
from tests.cases import CASES, Bend, Case

pytestmark = pytest.mark.usefixtures("_double")


class Scale(Bijector):
    """A right bijector to plant bugs in: a scale for each coordinate."""

    def __init__(self, dim: int, *, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim=context_dim)
        self.log_scale = Conditioner(0, (dim,), context_dim=context_dim, hidden_dims=(4,))

    def forward_and_log_det(self, x, context=None):
        log_scale = self.log_scale(None, context)
        y = log_scale.exp() * x
        return y, log_scale.sum(-1).expand(y.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        log_scale = self.log_scale(None, context)
        x = y * (-log_scale).exp()
        return x, -log_scale.sum(-1).expand(x.shape[:-1])


class ForgetsScaleInInverse(Scale):
    def inverse_and_log_det(self, y, context=None):
        return y, super().inverse_and_log_det(y, context)[1]


class ClipsFarImages(Scale):
    def inverse_and_log_det(self, y, context=None):
        return super().inverse_and_log_det(y.clamp(-1e3, 1e3), context)


class StopsTooEarly(Scale):
    def inverse_and_log_det(self, y, context=None):
        x, log_det = super().inverse_and_log_det(y, context)
        return x * (1 + 1e-7 * torch.sin(x)), log_det


class DetachesItsInverse(Scale):
    def inverse_and_log_det(self, y, context=None):
        x, log_det = super().inverse_and_log_det(y, context)
        return x.detach() + y - y.detach(), log_det


class LosesPartOfTheLine(Scale):
    """All that is local holds: the inverse of the images, and the log-determinant."""

    def forward_and_log_det(self, x, context=None):
        y, log_det = super().forward_and_log_det(x, context)
        return torch.where(x > 1, y + 0.5, y), log_det

    def inverse_and_log_det(self, y, context=None):
        edge = self.log_scale(None, context).exp()
        return super().inverse_and_log_det(torch.where(y > edge + 0.25, y - 0.5, y), context)


class HalvesLogDet(Scale):
    def forward_and_log_det(self, x, context=None):
        y, log_det = super().forward_and_log_det(x, context)
        return y, log_det / 2

    def inverse_and_log_det(self, y, context=None):
        x, log_det = super().inverse_and_log_det(y, context)
        return x, log_det / 2


class MixesTheBatch(Scale):
    def forward_and_log_det(self, x, context=None):
        y, log_det = super().forward_and_log_det(x, context)
        return y + y.mean(0) if y.dim() > 1 else y, log_det


class KeepsTheBatchOfX(Scale):
    def forward_and_log_det(self, x, context=None):
        y, log_det = super().forward_and_log_det(x, context)
        return y, log_det[..., :1]


class IgnoresSomeContext(Scale):
    def forward_and_log_det(self, x, context=None):
        return super().forward_and_log_det(x, context * torch.tensor([1.0, 0.0]))


class HasAnIdleParameter(Scale):
    def __init__(self, dim: int, *, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim=context_dim)
        self.idle = nn.Parameter(torch.zeros(dim))


class UsesTheDefaultDtype(Scale):
    def forward_and_log_det(self, x, context=None):
        y, log_det = super().forward_and_log_det(x, context)
        return y, log_det.to(torch.get_default_dtype())


class DrawsItsOrderAnew(Scale):
    def __init__(self, dim: int, *, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim=context_dim)
        self.shift = torch.randn(dim)  # no buffer: it is in no state_dict

    def forward_and_log_det(self, x, context=None):
        y, log_det = super().forward_and_log_det(x, context)
        return y + self.shift, log_det


class Overflows(Scale):
    def forward_and_log_det(self, x, context=None):
        y, log_det = super().forward_and_log_det(x, context)
        return torch.where(x < 1, y, y * (x.exp() / (1 + x.exp())) ** 0), log_det


class ForgetsTheLogDetInScore(Elementwise):
    def _forward_with_score(self, x, score, context):
        y, log_slope = self.transformer.forward_and_log_det(x, self.conditioner(None, context))
        return y, log_slope.sum(-1), score * (-log_slope).exp().detach() + 1e-3 * y.detach()


class LosesGradients(Scale):
    def _forward_with_score(self, x, score, context):
        y, log_det, score = super()._forward_with_score(x, score, context)
        return y, log_det.detach().requires_grad_(), score


class ReadsValues(Scale):
    def forward_and_log_det(self, x, context=None):
        y, log_det = super().forward_and_log_det(x, context)
        return (y if float(x.sum()) > 0 else y * 1.0), log_det


class ReadsValuesOfImages(Scale):
    def inverse_and_log_det(self, y, context=None):
        x, log_det = super().inverse_and_log_det(y, context)
        return (x if float(y.detach().sum()) < 1e6 else -x), log_det


class DifferentiatesInWhatModeThereIs(Scale):
    """As a search for a root would, if it did not see to its own gradients."""

    def inverse_and_log_det(self, y, context=None):
        point = y.detach().requires_grad_()
        with torch.enable_grad():
            value = super().inverse_and_log_det(point, context)[0]
            torch.autograd.grad(value.sum(), point)
        return super().inverse_and_log_det(y, context)


class MakesTensorsOnTheCpu(Scale):
    def forward_and_log_det(self, x, context=None):
        y, log_det = super().forward_and_log_det(x, context)
        return y + torch.ones(self.dim, device="cpu"), log_det


def _is_data(self, output):
    """As torch's cache does: answers for inputs too, whatever the parameters are now."""
    last = self._last
    return last if last is not None and (output is last.x or output is last.y) else None


def _forgets(self, output):
    return None


def _claims_a_graph(self, x, y, log_det, output):
    versions = memory._version(x), memory._version(y)
    state = memory._State(self._dependencies())
    self._last = memory._Pass(x, y, log_det, output, versions, True, state)


def _without_corrections(function, y, *, max_steps=100):
    """One chord step: first derivatives are right, second ones are not."""
    with torch.no_grad():
        x, matrix = numerics._solve(function, y.detach(), max_steps)
    return x - torch.linalg.solve(matrix, (function(x) - y)[..., None])[..., 0]


ONE_PASS = memory.OnePassTransform
BROKEN_BIJECTORS: dict[str, tuple[Callable[..., Bijector], int]] = {
    "inverse_undoes_forward": (ForgetsScaleInInverse, 0),
    "log_det_is_that_of_the_jacobian": (HalvesLogDet, 0),
    "a_batch_is_a_loop": (MixesTheBatch, 0),
    "context_broadcasts_against_the_batch": (KeepsTheBatchOfX, 2),
    "every_moved_coordinate_depends_on_the_whole_context": (IgnoresSomeContext, 2),
    "every_parameter_gets_a_gradient": (HasAnIdleParameter, 0),
    "results_have_the_dtype_of_the_module_not_the_default": (UsesTheDefaultDtype, 0),
    "survives_copy_pickle_and_state_dict_after_use": (DrawsItsOrderAnew, 0),
    "values_and_gradients_stay_finite_far_out": (Overflows, 0),
    "the_score_is_the_gradient_of_the_log_density": (ForgetsTheLogDetInScore, 0),
    "pushing_a_score_keeps_the_gradients": (LosesGradients, 0),
    "vmap_agrees": (ReadsValues, 0),
    "compile_agrees": (ReadsValues, 0),
    "forward_is_one_graph": (ReadsValues, 0),
    "inverse_is_one_graph": (ReadsValuesOfImages, 0),
    "works_where_no_gradients_are_kept": (DifferentiatesInWhatModeThereIs, 0),
    "density_integrates_to_one": (HalvesLogDet, 0),
    "gradients_through_the_inverse_are_right": (DetachesItsInverse, 0),
    "works_on_another_device": (MakesTensorsOnTheCpu, 0),
}
MORE_BROKEN_BIJECTORS = [
    ("inverse_undoes_forward", ClipsFarImages),
    ("inverse_undoes_forward", StopsTooEarly),
    ("density_integrates_to_one", LosesPartOfTheLine),
]
BROKEN_MACHINERY = {
    "each_context_has_its_own_noise": (
        bijector.Conditioned,
        "forward_shape",
        lambda self, shape: shape,
        2,
    ),
    "data_are_scored_with_todays_parameters": (ONE_PASS, "_recall", _is_data, 0),
    "an_own_draw_is_scored_with_todays_parameters": (
        memory._State,
        "same",
        lambda self, tensors: True,
        0,
    ),
    "an_own_draw_is_scored_for_free": (ONE_PASS, "_recall", _forgets, 0),
    "an_edited_draw_is_scored_afresh": (memory, "_version", lambda value: 0, 0),
    "a_score_has_gradients_even_if_the_draw_had_none": (
        ONE_PASS,
        "_remember",
        _claims_a_graph,
        0,
    ),
    "the_inverse_keeps_its_parameters": (Bijector, "inv", Transform.inv, 0),
    "second_derivatives_are_those_of_the_first": (
        bijector,
        "newton_inverse",
        _without_corrections,
        0,
    ),
}


@pytest.mark.parametrize("law", BROKEN_BIJECTORS)
def test_law_catches_a_broken_bijector(law: str):
    build, c = BROKEN_BIJECTORS[law]
    whole = Elementwise if issubclass(build, Elementwise) else Scale
    laws.LAWS[law](Case(partial(whole, context_dim=c), c))
    with pytest.raises(Exception):  # noqa: B017, PT011 (a law may fail in any way)
        laws.LAWS[law](Case(partial(build, context_dim=c), c))


@pytest.mark.parametrize(("law", "build"), MORE_BROKEN_BIJECTORS)
def test_law_catches_other_bugs(law: str, build: Callable[..., Bijector]):
    with pytest.raises(AssertionError):
        laws.LAWS[law](Case(build))


def test_second_derivatives_through_a_root_are_checked(monkeypatch: pytest.MonkeyPatch):
    law = laws.LAWS["gradients_through_the_inverse_are_right"]
    law(Case(Bend))
    monkeypatch.setattr(bijector, "newton_inverse", _without_corrections)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        law(Case(Bend))


def test_a_density_too_rough_for_a_grid_is_integrated_by_points(monkeypatch):
    by_points, seen = laws_numeric._mass_by_points, []
    right, broken = (Case(b, dim=2).bijector(noise=0.5) for b in (Scale, HalvesLogDet))
    assert abs(by_points(right, None) - 1) < 1e-4
    assert abs(by_points(broken, None) - 1) > 1e-2
    monkeypatch.setattr(quadrature, "MOST", 50_000)
    monkeypatch.setattr(laws_numeric, "_mass_by_points", lambda *a: seen.append(by_points(*a)) or 1)
    laws.LAWS["density_integrates_to_one"](CASES["flow:maf"])
    assert seen


def test_a_case_may_have_a_wider_bar():
    broken, law = Case(StopsTooEarly), "inverse_undoes_forward"
    with pytest.raises(AssertionError):
        laws.LAWS[law](broken)
    laws.LAWS[law](replace(broken, tolerances={law: 1e-5}))


@pytest.mark.parametrize("law", BROKEN_MACHINERY)
def test_law_catches_broken_machinery(law: str, monkeypatch: pytest.MonkeyPatch):
    owner, name, broken, c = BROKEN_MACHINERY[law]
    build = Bend if owner is bijector else Autoregressive
    case = Case(partial(build, context_dim=c), c)
    laws.LAWS[law](case)
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises((AssertionError, RuntimeError, TypeError, AttributeError)):
        laws.LAWS[law](case)


def test_every_law_has_a_planted_bug():
    assert set(laws.LAWS) == set(BROKEN_BIJECTORS) | set(BROKEN_MACHINERY)
