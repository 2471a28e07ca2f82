"""One task, many libraries: the contestants of the step benchmark, in torch.

Each has three autoregressive layers with hidden layers (64, 64), in float32: rational quadratic
splines with 8 bins, or affine maps for the measures whose name ends in ``_affine``. Every
contestant gets the direction that is cheap for the measure, the fused Adam of torch (Pyro's own
for Pyro), and no validation of arguments.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._peers_targets import POSTERIORS, Posterior

NUM_LAYERS, HIDDEN, NUM_BINS, BOUND = 3, (64, 64), 8, 5.0
Step = Callable[[], object]


@dataclass(frozen=True)
class Task:
    """What is measured.

    Args:
        measure: ``energy`` (draw, score, energy, backward, Adam) or the name of a posterior in
            place of the energy; ``log_prob`` (score data, backward, Adam); ``sample`` (draws of
            the flow that scores in one pass) or ``score`` (scores of given points under the flow
            that draws in one pass), also with ``_affine``.
        dim: Size of the vectors.
        num_draws: How many of them.
        device: Where.
    """

    measure: str
    dim: int
    num_draws: int = 256
    device: str = "cpu"

    @property
    def affine(self) -> bool:
        return self.measure.endswith("_affine")

    @property
    def draws_in_one_pass(self) -> bool:
        return self.fits or self.measure.startswith("score")

    @property
    def fits(self) -> bool:
        """Whether a posterior is fitted, that of the energy or of a model."""
        return self.measure == "energy" or self.measure in POSTERIORS

    @property
    def trains(self) -> bool:
        return self.fits or self.measure == "log_prob"

    def posterior(self) -> Posterior:
        if self.measure in POSTERIORS:
            return POSTERIORS[self.measure]()
        model = pf.energy_model(valley, self.dim, device=self.device)
        return Posterior(self.dim, math.nan, model, valley)

    def points(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.num_draws, self.dim, generator=generator).to(self.device)


class TorchFlow(NamedTuple):
    """What every library has, under its own names."""

    parameters: Iterable[Tensor]
    draw: Callable[[int], tuple[Tensor, Tensor]]
    sample: Callable[[int], Tensor]
    log_prob: Callable[[Tensor], Tensor]
    module: torch.nn.Module | None = None


def valley(x: Tensor) -> Tensor:
    """A chain of bent valleys: cheap, so that the flow is what is timed."""
    return -0.5 * x[..., 0] ** 2 - (x[..., 1:] - 0.5 * x[..., :-1] ** 2).square().sum(-1)


def adam(parameters: Iterable[Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def step_of(flow: TorchFlow, task: Task) -> Step:
    """The step that a user of the library would write."""
    if task.trains:
        return _training_step(flow, task)
    points = task.points()

    @torch.no_grad()
    def step() -> Tensor:
        return flow.sample(len(points)) if "sample" in task.measure else flow.log_prob(points)

    return step


def _training_step(flow: TorchFlow, task: Task, wrap: Callable = lambda loss: loss) -> Step:
    optimizer, points = adam(flow.parameters), task.points()
    log_density = task.posterior().log_density if task.fits else None

    def energy() -> Tensor:
        x, log_q = flow.draw(len(points))
        return (log_q - log_density(x)).mean()

    def negative_log_likelihood(x: Tensor) -> Tensor:
        return -flow.log_prob(x).mean()

    loss = wrap(energy if task.fits else negative_log_likelihood)
    args = () if task.fits else (points,)

    def step() -> None:
        optimizer.zero_grad()
        loss(*args).backward()
        optimizer.step()

    return step


# The floor -------------------------------------------------------------------------------------


def networks(task: Task) -> Step:
    """The bare conditioners: dense networks of the same sizes, forward and backward."""
    num_params = 2 if task.affine else 3 * NUM_BINS - 1
    sizes = [task.dim, *HIDDEN, task.dim * num_params]
    nets = [_mlp(sizes).to(task.device) for _ in range(NUM_LAYERS)]
    # All layers but the first hand a gradient down to the one before.
    inputs = [task.points().requires_grad_(i > 0) for i in range(NUM_LAYERS)]
    upstream = torch.randn(task.num_draws, sizes[-1], device=task.device)

    def step() -> None:
        with torch.set_grad_enabled(task.trains):
            for net, x in zip(nets, inputs, strict=True):
                net.zero_grad()
                x.grad = None
                out = net(x)
                if task.trains:
                    out.backward(upstream)

    return step


def _mlp(sizes: list[int]) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


# pyroflows -------------------------------------------------------------------------------------


def pyroflows_flow(task: Task) -> TorchFlow:
    options: dict = {"num_layers": NUM_LAYERS, "hidden_dims": HIDDEN}
    if not task.affine:
        options["num_bins"] = NUM_BINS
    flow = pf.build_flow("iaf" if task.affine else "nsf", task.dim, **options).to(task.device)
    flow = flow if task.draws_in_one_pass else flow.inv

    def noise(n: int) -> Tensor:
        return torch.randn(n, task.dim, device=task.device)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        z = noise(n)
        x, log_det = flow.forward_and_log_det(z)
        return x, _standard_normal(z) - log_det

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = flow.inverse_and_log_det(x)
        return _standard_normal(z) + log_det

    return TorchFlow(list(flow.parameters()), draw, lambda n: flow(noise(n)), log_prob, flow)


def _standard_normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def pyroflows_by_hand(task: Task) -> Step:
    """The flow alone, trained as a user of any other library would."""
    return step_of(pyroflows_flow(task), task)


def pyroflows_by_hand_compiled(task: Task) -> Step:
    flow = pyroflows_flow(task)
    compiled = flow._replace(draw=torch.compile(flow.draw), log_prob=torch.compile(flow.log_prob))
    return step_of(compiled, task)


def pyroflows_loss_compiled(task: Task) -> Step:
    flow = pyroflows_flow(task)
    made: list[pf.CompiledLoss] = []

    def wrap(loss: Callable) -> Callable:
        made.append(pf.CompiledLoss(loss, flow.module))
        return made[0]

    step = _training_step(flow, task, wrap)
    step()
    if made[0].reason:
        raise RuntimeError(f"not compiled: {made[0].reason}")
    return step


def _elbo_step(
    task: Task, *, flow: str = "nsf", outer: str = "auto", compile: bool = False, **options
) -> Step:
    """A step of ``fit_guide``: the guide with its outer affine map, and the model."""
    model = task.posterior().model
    sizes = {"num_bins": NUM_BINS} if flow == "nsf" else {}
    sizes |= {"num_layers": NUM_LAYERS, "hidden_dims": HIDDEN}
    guide = pf.AutoFlow(model, flow, outer=outer, model_args=(), **sizes)
    options |= {"compile": True} if compile else {}
    elbo = pf.PathELBO(num_particles=task.num_draws, **options)
    optimizer = adam(guide.parameters())

    def step() -> None:
        optimizer.zero_grad()
        if compile:
            elbo.loss_and_grads(model, guide)
        else:
            elbo.differentiable_loss(model, guide).backward()
        optimizer.step()

    if compile:
        step()
        if elbo.compiled.reason:
            raise RuntimeError(f"not compiled: {elbo.compiled.reason}")
    return step


def pyroflows_ordinary(task: Task) -> Step:
    return _elbo_step(task, score_weight=1.0)


def pyroflows_path(task: Task) -> Step:
    return _elbo_step(task)


def _needs_compile() -> None:
    if "compile" not in inspect.signature(pf.PathELBO).parameters:
        raise NotImplementedError("this version of pyroflows compiles no step")


def pyroflows_ordinary_compiled(task: Task) -> Step:
    _needs_compile()
    return _elbo_step(task, score_weight=1.0, compile=True)


def pyroflows_path_compiled(task: Task) -> Step:
    _needs_compile()
    return _elbo_step(task, compile=True)


def realnvp_diagonal(task: Task) -> Step:
    return _elbo_step(task, flow="realnvp", outer="diagonal")


def realnvp_low_rank(task: Task) -> Step:
    return _elbo_step(task, flow="realnvp", outer="low_rank")


# Peers -----------------------------------------------------------------------------------------


def zuko_step(task: Task) -> Step:
    import zuko

    options: dict = {"transforms": NUM_LAYERS, "hidden_features": HIDDEN}
    if task.affine:
        flow = zuko.flows.MAF(task.dim, **options)
    else:
        flow = zuko.flows.NSF(task.dim, bins=NUM_BINS, **options)
    if task.draws_in_one_pass:
        flow = zuko.flows.Flow(flow.transform.inv, flow.base)
    flow = flow.to(task.device)
    return step_of(
        TorchFlow(
            list(flow.parameters()),
            draw=lambda n: flow().rsample_and_log_prob((n,)),
            sample=lambda n: flow().sample((n,)),
            log_prob=lambda x: flow().log_prob(x),
        ),
        task,
    )


def nflows_step(task: Task) -> Step:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        CompositeTransform,
        InverseTransform,
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    )

    # One block after the first layer: two hidden layers.
    options: dict = {"hidden_features": HIDDEN[0], "num_blocks": 1, "use_residual_blocks": False}
    make = MaskedAffineAutoregressiveTransform
    if not task.affine:
        make = MaskedPiecewiseRationalQuadraticAutoregressiveTransform
        options |= {"num_bins": NUM_BINS, "tails": "linear", "tail_bound": BOUND}
    layers = [make(features=task.dim, **options) for _ in range(NUM_LAYERS)]
    transform = CompositeTransform(layers)
    if task.draws_in_one_pass:
        transform = InverseTransform(transform)
    flow = Flow(transform, StandardNormal([task.dim])).to(task.device)
    parts = list(flow.parameters()), flow.sample_and_log_prob, flow.sample, flow.log_prob
    return step_of(TorchFlow(*parts), task)


def normflows_step(task: Task) -> Step:
    import normflows as nf
    from normflows.flows.affine.autoregressive import MaskedAffineAutoregressive
    from normflows.flows.neural_spline.autoregressive import (
        MaskedPiecewiseRationalQuadraticAutoregressive,
    )

    options: dict = {"hidden_features": HIDDEN[0], "num_blocks": 1, "use_residual_blocks": False}
    make = MaskedAffineAutoregressive
    if not task.affine:
        make = MaskedPiecewiseRationalQuadraticAutoregressive
        options |= {"num_bins": NUM_BINS, "tails": "linear", "tail_bound": BOUND}
    layers = [make(features=task.dim, **options) for _ in range(NUM_LAYERS)]
    if not task.draws_in_one_pass:
        layers = [nf.flows.Reverse(layer) for layer in layers]
    base = nf.distributions.DiagGaussian(task.dim, trainable=False)
    flow = nf.NormalizingFlow(base, layers).to(task.device)
    return step_of(
        TorchFlow(list(flow.parameters()), flow.sample, lambda n: flow.sample(n)[0], flow.log_prob),
        task,
    )


def _pyro_layer(task: Task) -> torch.nn.Module:
    from pyro.distributions.transforms import SplineAutoregressive, affine_autoregressive
    from pyro.nn import AutoRegressiveNN

    if task.affine:
        return affine_autoregressive(task.dim, list(HIDDEN))
    # Pyro's own helper makes one parameter too many for splines of quadratic order.
    params = [NUM_BINS, NUM_BINS, NUM_BINS - 1]
    network = AutoRegressiveNN(task.dim, list(HIDDEN), param_dims=params)
    return SplineAutoregressive(task.dim, network, NUM_BINS, BOUND, order="quadratic")


def pyro_step(task: Task) -> Step:
    if task.fits:
        return _pyro_svi_step(task)
    import pyro.distributions as dist

    layers = torch.nn.ModuleList(_pyro_layer(task) for _ in range(NUM_LAYERS)).to(task.device)
    transforms = list(layers) if task.draws_in_one_pass else [layer.inv for layer in layers]
    zeros = torch.zeros(task.dim, device=task.device)
    flow = dist.TransformedDistribution(dist.Normal(zeros, zeros.exp()).to_event(1), transforms)

    def log_prob(x: Tensor) -> Tensor:
        return flow.log_prob(x.view_as(x))  # Pyro's caches would answer for the same tensor

    def draw(n: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("trained on an energy by SVI only")

    parts = list(layers.parameters()), draw, lambda n: flow.sample((n,)), log_prob
    return step_of(TorchFlow(*parts), task)


def _pyro_svi_step(task: Task) -> Step:
    import pyro
    from pyro.infer import SVI
    from pyro.infer.autoguide import AutoNormalizingFlow

    from tests.benchmarks._peers_pyro import vectorized_elbo

    if task.device != "cpu":
        raise NotImplementedError("AutoNormalizingFlow makes its transforms on the CPU")
    pyro.clear_param_store()
    model = task.posterior().model
    guide = AutoNormalizingFlow(model, lambda _: pyro_flow(task))
    elbo = vectorized_elbo(model, guide, task.num_draws)
    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo).step


def pyro_flow(task: Task) -> torch.nn.Module:
    from pyro.distributions.transforms import ComposeTransformModule

    return ComposeTransformModule([_pyro_layer(task) for _ in range(NUM_LAYERS)])
