"""Compiled steps: the numbers of eager ones, live tensors, and a word where it cannot be done."""

import contextlib
import copy
import pickle
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows import AutoFlow, PathELBO, energy_model, fit_guide
from pyroflows.infer import recorded
from pyroflows.infer.progress import Progress
from pyroflows.infer.schedule import Schedule

pytestmark = pytest.mark.usefixtures("_double")
SMALL = {"num_layers": 1, "hidden_dims": (4,)}


@pytest.fixture(autouse=True)
def _without_machine_code(monkeypatch: pytest.MonkeyPatch):
    """Steps are recorded as they are for the compiler, and run as they were recorded."""
    monkeypatch.setattr(recorded, "_compile", lambda graph, inputs: graph)


def regression(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    shift = pyro.param("shift", torch.tensor(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope + shift, scale), obs=y)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(20, 2)
    return x, x.sum(-1) + 0.3 * torch.randn(20)


def gradients(loss: PathELBO, guide: AutoFlow, args: tuple, seed: int) -> list[Tensor]:
    leaves = [*guide.parameters(), pyro.param("shift").unconstrained()]
    for leaf in leaves:
        leaf.grad = None
    torch.manual_seed(seed)
    value = loss.differentiable_loss(regression, guide, *args)
    value.backward()
    zero = torch.zeros(())
    return [value.detach(), *(zero if p.grad is None else p.grad.clone() for p in leaves)]


@pytest.mark.parametrize("flow", ["nsf", "realnvp", "affine"])
@pytest.mark.parametrize("score_weight", [0.0, 1.0])
def test_same_loss_and_gradients_as_eager_steps(flow: str, score_weight: float):
    pyro.clear_param_store()
    pyro.param("shift", torch.tensor(0.1))
    options = {} if flow == "affine" else SMALL
    guide = AutoFlow(regression, flow, model_args=data(), **options)
    weights = {"score_weight": score_weight, "tail_weight": 1 - score_weight}
    eager, fast = (PathELBO(8, compile=c, **weights) for c in (False, True))
    for seed in range(3):
        args = data(seed)  # other data of the same shape
        assert_close(gradients(fast, guide, args, seed), gradients(eager, guide, args, seed))
        with torch.no_grad():
            for p in guide.parameters():
                p.add_(0.1 * torch.randn_like(p))
            pyro.param("shift").unconstrained().add_(1.0)
    assert fast.compiled.reason == ""
    assert fast.compiled.seconds > 0
    assert fast.num_nonfinite_particles == 0
    assert fast.spread == pytest.approx(eager.spread)


def test_gradients_are_added_without_a_backward_pass():
    pyro.clear_param_store()
    pyro.param("shift", torch.tensor(0.1))
    args = data()
    guide = AutoFlow(regression, "nsf", model_args=args, **SMALL)
    loss = PathELBO(8, compile=True)
    gradients(loss, guide, args, 0)  # the first use looks at the model, and draws for it
    expected = gradients(loss, guide, args, 1)
    expected = [expected[0], *(2 * g for g in expected[1:])]
    torch.manual_seed(1)
    value = loss.loss_and_grads(regression, guide, *args)  # to what is there already
    leaves = [*guide.parameters(), pyro.param("shift").unconstrained()]
    zero = torch.zeros(())
    found = [torch.tensor(value), *(zero if p.grad is None else p.grad for p in leaves)]
    assert_close(found, expected)


def test_draws_that_are_not_finite_are_counted_alike():
    target = energy_model(lambda x: torch.where(x[..., 0] > 0, torch.nan, -x.square().sum(-1)), 2)
    guide = AutoFlow(target, "affine", model_args=(), init="point")
    counts, losses = [], []
    for compile in (False, True):
        loss = PathELBO(32, compile=compile)
        torch.manual_seed(0)
        losses.append(loss.differentiable_loss(target, guide).detach())
        counts.append(loss.num_nonfinite_particles)
    assert counts[0] == counts[1] > 0
    assert_close(*losses)


def test_a_fit_tells_that_it_was_compiled():
    target = energy_model(lambda x: -x.square().sum(-1) / 2, 2)
    guides = [AutoFlow(target, "nsf", model_args=(), **SMALL) for _ in range(2)]
    guides[1].load_state_dict(guides[0].state_dict())
    options = {"num_steps": 25, "seed": 0, "progress_bar": False, "num_diagnostic_samples": 0}
    fits = [
        fit_guide(target, guide, num_particles=16, compile=compile, **options)
        for guide, compile in zip(guides, (False, True), strict=True)
    ]
    assert_close(fits[1].losses, fits[0].losses)
    assert "compiled" in str(fits[1])
    assert "compiled" not in str(fits[0])


def test_compiling_is_shown_and_counts_for_no_step(monkeypatch: pytest.MonkeyPatch, capsys):
    def slow(graph, inputs):
        time.sleep(0.5)
        return graph

    monkeypatch.setattr(recorded, "_compile", slow)
    target = energy_model(lambda x: -x.square().sum(-1) / 2, 2)
    guide = AutoFlow(target, "affine", model_args=())
    options = {"num_steps": 20, "num_particles": 8, "num_diagnostic_samples": 0}
    fit = fit_guide(target, guide, compile=True, **options)
    assert fit.compile_seconds > 0.5
    assert fit.seconds_per_step == pytest.approx((fit.seconds - fit.compile_seconds) / 20)
    shown = capsys.readouterr().err
    assert "compiling" in shown
    assert "nan" not in shown


def test_a_bar_leaves_out_work_between_steps():
    bar = Progress(True, "fit", Schedule(10, None, 0.0))
    bar.resume(4)
    bar.begin("compiling")
    started = bar._bar.start_t
    bar.end(100.0)
    assert bar._bar.start_t == started + 100
    assert (bar._bar.n, bar._bar.initial) == (4, 4)
    bar.close([1.0] * 4, 0.1)


@pytest.mark.parametrize("flow", ["maf", "nsf", "affine"])
@pytest.mark.parametrize("num_steps", [12, 400])
def test_a_compiled_fit_is_the_eager_one(flow: str, num_steps: int):
    """With the fused Adam, which reads gradients from end to end; exploring briefly, or not."""
    target = energy_model(lambda x: -(x - 1).square().sum(-1) - (x**4).sum(-1), 3)
    options = {"num_steps": num_steps, "num_particles": 16, "num_diagnostic_samples": 0, "seed": 0}
    fits = []
    for compile in (False, True):
        torch.manual_seed(0)
        guide = AutoFlow(target, flow, model_args=(), **({} if flow == "affine" else SMALL))
        if num_steps > 100:  # enough for exploring to be compiled, not more
            options["optimizer"] = lambda params: _Ends(params, after=20)
        with contextlib.suppress(StopIteration):
            fit_guide(target, guide, compile=compile, progress_bar=False, **options)
        fits.append(list(guide.parameters()))
    assert_close(*fits)


class _Ends(torch.optim.Adam):
    """The default optimizer, for some steps."""

    def __init__(self, params, after: int) -> None:
        super().__init__(params, lr=1e-2, fused=True)
        self._left = after

    def step(self, closure=None):
        if self._left == 0:
            raise StopIteration
        self._left -= 1
        return super().step(closure)


def parameters_alike() -> None:
    one = pyro.param("one", torch.zeros(5))
    other = pyro.param("other", torch.zeros(5))
    a, b = pyro.param("a", torch.tensor(0.1)), pyro.param("b", torch.tensor(0.2))
    x = pyro.sample("x", dist.Normal(a + b, 1.0).expand([3]).to_event(1))
    pyro.factor("f", -(x**4).sum(-1) + 2 * one.sum() + 3 * other.sum())


def test_gradients_belong_to_one_parameter_alone():
    results = []
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        guide = AutoFlow(parameters_alike, "affine", model_args=())
        loss = PathELBO(32, compile=compile)
        loss.loss_and_grads(parameters_alike, guide)
        leaves = [pyro.param(n).unconstrained() for n in ("one", "other", "a", "b")]
        for leaf in leaves:
            leaf.grad = None
        for seed in (1, 2):
            torch.manual_seed(seed)
            loss.loss_and_grads(parameters_alike, guide)
        results.append([leaf.grad.clone() for leaf in leaves])
        torch.nn.utils.clip_grad_norm_(leaves, 0.1)
        torch.optim.Adam(leaves, lr=0.1, fused=True).step()
        results[-1] += [leaf.detach() for leaf in leaves]
    assert_close(*results)


@pytest.mark.slow
def test_exploring_that_is_brief_is_not_compiled(monkeypatch: pytest.MonkeyPatch):
    graphs = []
    monkeypatch.setattr(recorded, "_compile", lambda graph, inputs: graphs.append(graph) or graph)
    monkeypatch.setattr(
        Schedule, "start_from", lambda self, spread, **_: None
    )  # wherever it starts
    target = energy_model(lambda x: -x.square().sum(-1) / 2, 2)
    options = {"num_particles": 16, "progress_bar": False, "num_diagnostic_samples": 0}
    for num_steps, kinds in ((60, 1), (400, 2)):
        guide = AutoFlow(target, "nsf", model_args=(), init="point", **SMALL)
        fit_guide(target, guide, num_steps=num_steps, compile=True, seed=0, **options)
        assert len(graphs) == kinds
        graphs.clear()


def test_what_cannot_be_recorded_is_said_and_run_eagerly():
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", -x.abs() if x.item() > 0 else -2 * x.abs())

    loss = PathELBO(4, compile=True)
    guide = AutoFlow(model, "affine", model_args=(), init="point")
    with pytest.warns(UserWarning, match=r"one by one|not compiled") as told:
        loss.differentiable_loss(model, guide).backward()
    assert len(told) == 2
    assert "recorded" in loss.compiled.reason
    loss.differentiable_loss(model, guide).backward()


def test_a_compiler_that_fails_or_errs_is_not_used(monkeypatch: pytest.MonkeyPatch):
    target = energy_model(lambda x: -x.square().sum(-1) / 2, 2)
    guide = AutoFlow(target, "affine", model_args=())

    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    def wrong(graph, inputs):
        def run(*inputs):
            loss, *others = graph(*inputs)
            return loss + 1, *others

        return run

    for compiler, words in ((broken, "no compiler here"), (wrong, "loss of the compiled step")):
        monkeypatch.setattr(recorded, "_compile", compiler)
        loss = PathELBO(8, compile=True)
        with pytest.warns(UserWarning, match=words):
            loss.differentiable_loss(target, guide).backward()


def test_an_error_without_a_message_is_given_up_too(monkeypatch: pytest.MonkeyPatch):
    def silent(graph, inputs):
        raise AssertionError

    monkeypatch.setattr(recorded, "_compile", silent)
    target = energy_model(lambda x: -x.square().sum(-1) / 2, 2)
    loss = PathELBO(8, compile=True)
    with pytest.warns(UserWarning, match="AssertionError: without a word"):
        loss.loss_and_grads(target, AutoFlow(target, "affine", model_args=()))


def test_data_from_something_trained_give_it_their_gradient():
    weight = torch.tensor(2.0, requires_grad=True)

    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    grads = []
    for compile in (False, True):
        torch.manual_seed(0)
        guide = AutoFlow(model, "affine", model_args=(torch.tensor(2.0),))
        loss, weight.grad = PathELBO(16, compile=compile), None
        for _ in range(2):
            loss.loss_and_grads(model, guide, 1.5 * weight)
        grads.append([weight.grad, *(p.grad for p in guide.parameters())])
    assert loss.compiled.reason == ""
    assert_close(*grads)


def test_options_that_exclude_it():
    target = energy_model(lambda x: -x.square().sum(-1) / 2, 2)
    guide = AutoFlow(target, "affine", model_args=())
    with pytest.raises(ValueError, match="compile=True takes all draws at once"):
        fit_guide(target, guide, compile=True, chunk_size=4)
    with pytest.raises(ValueError, match="compile=True, which PathELBO knows"):
        fit_guide(target, guide, compile=True, loss=pyro.infer.Trace_ELBO())


def test_copies_compile_their_own():
    loss = PathELBO(8, compile=True)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other.compiled is not loss.compiled


def test_a_step_goes_backward_once():
    target = energy_model(lambda x: -x.square().sum(-1) / 2, 2)
    loss = PathELBO(8, compile=True).differentiable_loss(
        target, AutoFlow(target, "affine", model_args=())
    )
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()
