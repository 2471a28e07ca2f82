"""What planar, radial and Sylvester layers promise beyond the laws."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from pyroflows import build_flow
from pyroflows.bijectors import Planar, Radial, Sylvester, _ridge
from tests import laws
from tests.case import Case
from tests.families import planar, sylvester

pytestmark = pytest.mark.usefixtures("_double")
BUILDERS = planar.builders() | sylvester.builders()
LAYERS = {name: build for name, build in BUILDERS.items() if not name.startswith("flow:")}


@pytest.mark.parametrize("name", LAYERS)
def test_compiles_in_both_directions(name: str):
    laws.compile_agrees(Case(LAYERS[name]))
    if name == "sylvester-householder":
        return  # three roots unrolled: nothing new, and slow to compile
    layer, y = Case(LAYERS[name]).bijector(), torch.randn(4, 3)
    compiled = torch.compile(layer.inverse_and_log_det, fullgraph=True, backend="aot_eager")
    assert_close(compiled(y), layer.inverse_and_log_det(y))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("dim", [1, 4])
def test_starts_at_the_identity(name: str, dim: int):
    x = torch.randn(6, dim)
    for method in ("forward_and_log_det", "inverse_and_log_det"):
        y, log_det = getattr(BUILDERS[name](dim), method)(x)
        assert_close(y, x, atol=1e-12, rtol=0)
        assert_close(log_det, torch.zeros(6), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", _ridge.RIDGES)
def test_roots_hold_to_rounding_for_all_slopes(name: str, dtype: torch.dtype):
    log_slope = torch.linspace(-6.9, 6.9, 101, dtype=dtype)[:, None]
    sizes = torch.logspace(-8, 7, 1001, dtype=dtype)
    t = torch.cat([-sizes, torch.zeros(1, dtype=dtype), sizes])
    s = _ridge.RIDGES[name].root(t, log_slope)
    moved = log_slope.expm1() * _ridge.RIDGES[name].value(s)
    error = (s + moved - t).abs()
    assert (error <= 8 * torch.finfo(dtype).eps * (s.abs() + moved.abs() + t.abs())).all()


def test_the_slope_across_a_plane_is_bounded_on_both_sides():
    layer = Planar(2)
    for size in (-1e8, 1e8):
        with torch.no_grad():
            layer.shift.copy_(size * layer.direction)
        x = -layer.bias.detach() * layer.direction.detach()  # on the plane
        assert 6.8 < layer.forward_and_log_det(x)[1].abs() < 7


def test_a_direction_that_vanishes_is_a_shift():
    layer = Planar(2)
    with torch.no_grad():
        layer.direction.zero_()
        layer.shift.fill_(0.5)
    y, log_det = layer.forward_and_log_det(torch.randn(5, 2))
    (y.sum() + log_det.sum()).backward()
    assert_close(log_det.detach(), torch.zeros(5))
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_centre_of_a_radial_layer_is_like_any_other_point(dtype: torch.dtype):
    layer = Case(Radial).bijector(dtype)
    centre = layer.centre.detach()
    for size in (0.0, 1e-30, 1e-8):  # towards the centre
        x = (centre + size).requires_grad_()
        for method in (layer.forward_and_log_det, layer.inverse_and_log_det):
            y, log_det = method(x)
            near = method(centre + 1e-3)[1]
            assert_close(log_det, near, atol=1e-2, rtol=0)
            leaves = [x, *layer.parameters()]
            gradients = torch.autograd.grad(y.sum() + log_det, leaves, create_graph=True)
            total = sum(g.sum() for g in gradients)
            second = torch.autograd.grad(total, leaves, materialize_grads=True)
            assert all(g.isfinite().all() for g in (*gradients, *second))


@pytest.mark.parametrize("size", [1e6, 1e20, 1e30])
def test_a_radial_layer_is_finite_where_squares_are_not(size: float):
    layer, x = Case(Radial).bijector(torch.float32), torch.full((3,), size)
    x = x.float().requires_grad_()
    for method in (layer.forward_and_log_det, layer.inverse_and_log_det):
        y, log_det = method(x)
        gradients = torch.autograd.grad(y.sum() + log_det, [x, *layer.parameters()])
        assert all(v.isfinite().all() for v in (y, log_det, *gradients))
        assert_close(y, x)


@pytest.mark.parametrize(
    "law",
    [
        "inverse_undoes_forward",
        "log_det_is_that_of_the_jacobian",
        "the_score_is_the_gradient_of_the_log_density",
    ],
)
def test_kinks_along_several_directions_obey_the_laws_too(law: str):
    laws.LAWS[law](Case(partial(Sylvester, activation="leaky_relu")))


@pytest.mark.parametrize("frame", ["qr", "householder"])
@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (4, 4), (5, 2)])
def test_a_frame_is_orthonormal_and_moves_without_a_jump(frame: str, dim: int, rank: int):
    layer = Sylvester(dim, rank=rank, frame=frame)
    for angle in torch.linspace(0, 6.28, 13) if dim > 1 else ():
        first, second = layer.vectors[0].detach().clone(), torch.eye(dim)[-1]
        turned = [angle.cos() * first + angle.sin() * second + h * second for h in (0, 1e-6)]
        frames = []
        for vector in turned:
            with torch.no_grad():
                layer.vectors[0] = vector
                frames.append(layer._maps(None)[0])
        assert_close(frames[0], frames[1], atol=1e-3, rtol=0)
        assert_close(frames[0] @ frames[0].mT, torch.eye(rank), atol=1e-12, rtol=0)


def test_all_directions_together_are_planar_layers_if_they_do_not_interact():
    layer = Case(Sylvester).bijector()
    with torch.no_grad():
        layer.factors.zero_()
        frame, inner, outer, bias, _ = layer._maps(None)
        moved = x = torch.randn(6, 3)
        for i in range(3):
            s = inner[i, i] * (x @ frame[i]) + bias[i]
            moved = moved + outer[i, i] * s.tanh()[:, None] * frame[i]
        assert_close(layer.forward_and_log_det(x)[0], moved)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 4}, "Sylvester expected rank to be an int in 1..3, got 4"),
        ({"rank": 0}, "rank to be an int in 1..3, got 0"),
        ({"frame": "lu"}, "Sylvester expected frame to be qr or householder, got 'lu'"),
        ({"activation": "elu"}, "Sylvester expected activation to be one of tanh, leaky_relu"),
    ],
)
def test_wrong_options_of_sylvester_are_named(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        Sylvester(3, **options)


def test_a_wrong_activation_is_named():
    with pytest.raises(ValueError, match="Planar expected activation to be one of tanh, leaky_r"):
        Planar(2, activation="relu")


@pytest.mark.parametrize("name", ["planar", "radial", "sylvester"])
def test_a_flow_without_layers_is_refused(name: str):
    with pytest.raises(ValueError, match="num_layers expected a positive int"):
        build_flow(name, 2, num_layers=0)
