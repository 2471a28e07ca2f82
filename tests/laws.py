"""The laws of bijectors, as functions of a case: the suite runs them, planted bugs break them.

Those of numbers, to stated bars, are in ``laws_numeric``.
"""

import copy
import itertools
import pickle
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import ComposeTransformModule, ConditionalTransformedDistribution
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.testing import assert_close

from pyroflows import Bijector
from tests import laws_numeric  # noqa: F401 (its laws are found in the same book)
from tests.case import Case
from tests.lawbook import LAWS, base, close, law

__all__ = ["LAWS"]


def distribution(case: Case, b: Bijector, *batch: int) -> dist.TransformedDistribution:
    if case.context_dim:
        d = ConditionalTransformedDistribution(base(case.dim), [b])
        return d.condition(case.context(*batch))
    return dist.TransformedDistribution(base(case.dim), [b])


@law
def a_batch_is_a_loop(case: Case) -> None:
    b, own = case.bijector(), case.tolerance("a_batch_is_a_loop")
    for batch in [(), (4,), (2, 3), (0,), (1, 1)]:
        x, c = case.x(*batch), case.context(*batch)
        for method in (b.forward_and_log_det, b.inverse_and_log_det):
            y, log_det = method(x, c)
            assert y.shape == x.shape
            assert log_det.shape == batch
            for i in itertools.product(*map(range, batch)):
                one = method(x[i], None if c is None else c[i])
                close(one, (y[i], log_det[i]), own=own)


@law
def context_broadcasts_against_the_batch(case: Case) -> None:
    b, x, c = case.bijector(), case.x(5, 1), case.context(4)
    for method in (b.forward_and_log_det, b.inverse_and_log_det):
        y, log_det = method(x, c)
        full = method(x.expand(5, 4, -1), c.expand(5, 4, -1))
        close((y, log_det.expand(5, 4)), full)
    assert b.condition(c).forward_shape(torch.Size((5, 1, case.dim))) == (5, 4, case.dim)


@law
def every_moved_coordinate_depends_on_the_whole_context(case: Case) -> None:
    b, x, c = case.bijector(), case.x(), case.context()
    moved = jacobian(lambda v: b.forward_and_log_det(v, c)[0], x) != torch.eye(case.dim)
    by_context = jacobian(lambda v: b.forward_and_log_det(x, v)[0], c) != 0
    assert by_context.any()
    assert (by_context.all(-1) | ~moved.any(-1)).all()


@law
def each_context_has_its_own_noise(case: Case) -> None:
    d = ConditionalTransformedDistribution(base(case.dim), [case.bijector()])
    d = d.condition(torch.zeros(6, case.context_dim))
    assert d.batch_shape == (6,)
    assert len(d.rsample().unique(dim=0)) == 6


@law
def every_parameter_gets_a_gradient(case: Case) -> None:
    b = case.bijector()
    y, log_det = b.forward_and_log_det(case.x(32), case.context(32))
    if list(b.parameters()):
        (y.square().sum() + y.sum() + log_det.sum()).backward()
    for name, p in b.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


@law
def results_have_the_dtype_of_the_module_not_the_default(
    case: Case, dtype: torch.dtype = torch.float64
) -> None:
    other = torch.float32 if dtype is torch.float64 else torch.float64
    torch.set_default_dtype(other)
    try:
        b, x, c = case.bijector(dtype), case.x(4, dtype=dtype), case.context(4, dtype=dtype)
        results = [
            *b.forward_and_log_det(x, c),
            *b.inverse_and_log_det(x, c),
            *b.forward_with_score(x, -x, c),
        ]
    finally:
        torch.set_default_dtype(torch.float64)
    assert {r.dtype for r in results} == {dtype}


@law
def survives_copy_pickle_and_state_dict_after_use(case: Case) -> None:
    b, x, c = case.bijector(), case.x(4), case.context(4)
    b.condition(c)(x)
    assert b.inv.inv is b  # an inverse that was asked for refers back
    expected = b.forward_and_log_det(x, c)
    loaded = case.build(case.dim)
    loaded.load_state_dict(b.state_dict())
    for twin in (copy.deepcopy(b), pickle.loads(pickle.dumps(b)), loaded):
        close(twin.forward_and_log_det(x, c), expected)
        names = [name for name, _ in twin.named_parameters(remove_duplicate=False)]
        assert names == [name for name, _ in b.named_parameters()]
    b.condition(c)(x)  # the original still works


@law
def data_are_scored_with_todays_parameters(case: Case) -> None:
    b = case.bijector()
    d, x = distribution(case, b, 8), case.x(8)
    for _ in range(2):  # pyro-ppl/pyro#2564: the same data, an optimizer step in between
        before = d.log_prob(x)
        if not before.requires_grad:
            return
        before.mean().backward()
        _nudge(b)
        assert not torch.allclose(before, d.log_prob(x))


@law
def an_own_draw_is_scored_with_todays_parameters(case: Case) -> None:
    b = case.bijector()
    if not list(b.parameters()):
        return
    d = distribution(case, b, 8)
    y = d.rsample()
    before = d.log_prob(y)
    _nudge(b)
    after = d.log_prob(y)
    assert not torch.allclose(before, after)
    close(after, d.log_prob(y.clone()))


@law
def an_own_draw_is_scored_for_free(case: Case) -> None:
    b = case.bijector()
    d = distribution(case, b, 6)
    y = d.rsample() if case.context_dim else d.rsample((6,))
    t = d.transforms[0]
    calls = []
    spies = {n: _spy(getattr(t, n), calls) for n in ("forward_and_log_det", "inverse_and_log_det")}
    t.__dict__.update(spies)
    try:
        score = d.log_prob(y)
    finally:
        for name in spies:
            del t.__dict__[name]
    assert not calls
    assert score.shape == (6,)
    own = case.tolerance("an_own_draw_is_scored_for_free")
    close(score, d.log_prob(y.clone()), own=own)


@law
def an_edited_draw_is_scored_afresh(case: Case) -> None:
    d = distribution(case, case.bijector(), 8)
    with torch.no_grad():
        y = d.sample()
        before = d.log_prob(y)
        assert not torch.allclose(before, d.log_prob(y.mul_(2)))


@law
def a_score_has_gradients_even_if_the_draw_had_none(case: Case) -> None:
    b = case.bijector()
    d = distribution(case, b, 8)
    y = d.sample()
    assert not y.requires_grad
    if any(p.requires_grad for p in b.parameters()):
        assert d.log_prob(y).requires_grad
    assert not y.requires_grad


@law
def the_inverse_keeps_its_parameters(case: Case) -> None:
    b, x, c = case.bijector(), case.x(5), case.context(5)
    assert b.inv.inv is b
    registered = {id(p) for p in ComposeTransformModule([b.inv]).parameters()}
    assert registered == {id(p) for p in b.parameters()}
    close(b.inv.forward_and_log_det(x, c), b.inverse_and_log_det(x, c))
    close(b.inv.condition(c)(x), b.condition(c).inv(x))


@law
def values_and_gradients_stay_finite_far_out(
    case: Case, dtype: torch.dtype = torch.float64
) -> None:
    b, c = case.bijector(dtype, 0.5), case.context(4, dtype=dtype)
    for size in (30.0, 1e6, 1e6 * (1 + 1e-3)):
        x = size * torch.tensor([1.0, -1.0, 0.0, 1e-6], dtype=dtype)[:, None]
        x = (x * torch.tensor([1.0, -1.0, 1.0], dtype=dtype)).requires_grad_()
        for method in (b.forward_and_log_det, b.inverse_and_log_det):
            y, log_det = method(x, c)
            inputs = [x, *(p for p in b.parameters() if p.requires_grad)]
            gradients = torch.autograd.grad(y.sum() + log_det.sum(), inputs, materialize_grads=True)
            assert all(v.isfinite().all() for v in (y, log_det, *gradients))


@law
def second_derivatives_are_those_of_the_first(case: Case) -> None:
    """Along a direction, beside a central difference of the gradient."""
    b, c, h = case.bijector(), case.context(4), 1e-5
    names = [f"bijector.{name}" for name, _ in b.named_parameters()]
    point = [case.x(4), *(p.detach() for p in b.parameters())]
    direction = [torch.randn_like(v) for v in point]

    def gradient(method: str, values: list[Tensor], *, graph: bool) -> tuple[Tensor, ...]:
        state = dict(zip(names, values[1:], strict=True))
        y, log_det = torch.func.functional_call(_Method(b, method), state, (values[0], c))
        total = y.square().sum() / 2 + y.sum() + log_det.sum()
        return torch.autograd.grad(total, values, create_graph=graph, materialize_grads=True)

    def shifted(size: float) -> list[Tensor]:
        pairs = zip(point, direction, strict=True)
        return [(v + size * d).requires_grad_() for v, d in pairs]

    for method in ("forward_and_log_det", "inverse_and_log_det"):
        ahead, behind = (gradient(method, shifted(s), graph=False) for s in (h, -h))
        expected = [(p - m) / (2 * h) for p, m in zip(ahead, behind, strict=True)]
        leaves = shifted(0.0)
        first = gradient(method, leaves, graph=True)
        along = sum((g * d).sum() for g, d in zip(first, direction, strict=True))
        along = along + 0 * leaves[0].sum()  # a graph even where the gradient is constant
        actual = torch.autograd.grad(along, leaves, materialize_grads=True)
        scale = 1 + float(max(v.abs().max() for v in expected))
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, atol=1e-4 * scale, rtol=1e-4)


@law
def the_score_is_the_gradient_of_the_log_density(case: Case) -> None:
    b, own = case.bijector(), case.tolerance("the_score_is_the_gradient_of_the_log_density")
    for batch in ((5,), (), (0,)):
        x = case.x(*batch)
        c = case.context(*batch)
        y, log_det, score = b.forward_with_score(x, -x, c)
        close((y, log_det), b.forward_and_log_det(x, c))
        assert not score.requires_grad
        point = y.detach().requires_grad_()
        x_again, inverse_log_det = b.inverse_and_log_det(point, c)
        log_q = inverse_log_det - 0.5 * x_again.square().sum(-1)
        close(score, torch.autograd.grad(log_q.sum(), point)[0], own=own)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                silent = b.forward_with_score(x * 1, -x, c)
            assert not any(v.requires_grad for v in silent)
            close(silent, (y.detach(), log_det.detach(), score))


@law
def pushing_a_score_keeps_the_gradients(case: Case) -> None:
    b, c = case.bijector(), case.context(5)
    x = case.x(5).requires_grad_()
    inputs = [x, *b.parameters()]
    weight = torch.randn(5, case.dim)

    def gradients(y: Tensor, log_det: Tensor) -> tuple[Tensor, ...]:
        total = (weight * y).sum() + (weight[:, 0] * log_det).sum()
        return torch.autograd.grad(total, inputs, materialize_grads=True)

    moved = x * 1.0  # in the graph of an earlier layer
    pushed = b.forward_with_score(moved, -x.detach(), c)[:2]
    close(gradients(*pushed), gradients(*b.forward_and_log_det(x, c)))


@law
def works_where_no_gradients_are_kept(case: Case) -> None:
    b, x, c = case.bijector(), case.x(5), case.context(5)
    for method in (b.forward_and_log_det, b.inverse_and_log_det):
        expected = [value.detach() for value in method(x, c)]
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                seen = method(x * 1, None if c is None else c * 1)
            assert not any(value.requires_grad for value in seen)
            close(seen, expected)


@law
def vmap_agrees(case: Case) -> None:
    b, x, c = case.bijector(), case.x(4), case.context(4)
    for method in (b.forward_and_log_det, b.inverse_and_log_det):
        mapped = torch.vmap(method)(*((x,) if c is None else (x, c)))
        close(mapped, method(x, c))
    matrix = torch.func.jacrev(lambda v: b.forward_and_log_det(v, c)[0].sum(0))(x)
    assert matrix.isfinite().all()


@law
def forward_is_one_graph(case: Case) -> None:
    _is_one_graph(case, case.bijector().forward_and_log_det)


@law
def inverse_is_one_graph(case: Case) -> None:
    _is_one_graph(case, case.bijector().inverse_and_log_det)


def _is_one_graph(case: Case, method: Callable) -> None:
    x, c = case.x(4), case.context(4)
    torch._dynamo.reset()
    close(torch.compile(method, fullgraph=True, backend="eager")(x, c), method(x, c))


@law
def compile_agrees(case: Case) -> None:
    b, x, c = case.bijector(), case.x(4), case.context(4)
    torch._dynamo.reset()
    compiled = torch.compile(b.forward_and_log_det, fullgraph=True, backend="aot_eager")
    results = compiled(x, c)
    close(results, b.forward_and_log_det(x, c))
    sum(r.sum() for r in results).backward()
    transform = b.condition(c)
    compiled = torch.compile(lambda v: transform(v), fullgraph=True, backend="eager")
    close(compiled(x), transform(x))


@law
def works_on_another_device(case: Case, device: str = "meta") -> None:
    """``meta`` stands in for a GPU: it refuses tensors that were made on the CPU."""
    torch.set_default_device(device)
    try:
        b = case.build(case.dim)
        x, c = case.x(4), case.context(4)
        assert {t.device.type for t in (*b.parameters(), *b.buffers())} <= {device}
        results = [*b.forward_and_log_det(x, c), *b.forward_with_score(x, -x, c)]
        b.condition(c)(x)
        if device != "meta" or not _needs_newton(b):
            results += b.inverse_and_log_det(x, c)
    finally:
        torch.set_default_device(None)
    assert {r.device.type for r in results} == {device}


class _Method(torch.nn.Module):
    """Lets ``functional_call`` reach a method that is not the call."""

    def __init__(self, bijector: Bijector, method: str) -> None:
        super().__init__()
        self.bijector = bijector
        self.method = method

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        return getattr(self.bijector, self.method)(x, c)


def _needs_newton(b: Bijector) -> bool:
    return any(
        isinstance(m, Bijector) and type(m).inverse_and_log_det is Bijector.inverse_and_log_det
        for m in b.modules()
    )


def _nudge(b: Bijector) -> None:
    for p in b.parameters():
        p.data.add_(0.05)  # as fused optimizers and ClippedAdam do: no version is bumped


def _spy(method: Callable, calls: list) -> Callable:
    def spied(*args: object) -> object:
        calls.append(1)
        return method(*args)

    return spied
