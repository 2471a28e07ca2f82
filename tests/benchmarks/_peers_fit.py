"""Fits against the clock: one contestant on one posterior, in a process of its own.

    python -m tests.benchmarks._peers_fit '{"contestant": "zuko", "target": "funnel", ...}'

prints a JSON object. Seconds count from after the imports: start, compilation and fit, all but
the watching itself.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.benchmarks._peers_targets import POSTERIORS, Posterior
from tests.benchmarks._peers_worker import CLOCKS, limit_threads, problem

Draw = Callable[[int], tuple[Tensor, Tensor]]
_NUM_PARTICLES = 256
_NUM_WATCHED = 8192
_TIME_BETWEEN = 0.05  # of the seconds so far
EFFECTIVE_DRAWS = 4000


class CapError(Exception):
    """The time is up."""


@dataclass
class Watch:
    """Follows the gap, log Z - ELBO, of draws of a guide while it is fitted.

    Args:
        posterior: Whose evidence is known.
        bar: The gap to reach.
        cap: Seconds to go on for at most.
        clock: What tells the seconds.
        stops: Whether to end the fit once the gap is reached.
    """

    posterior: Posterior
    bar: float
    cap: float
    clock: Callable[[], float] = time.perf_counter
    stops: bool = True
    draw: Draw | None = None
    started: float = 0.0
    watching: float = 0.0
    next_look: float = 0.0
    reached: float | None = None
    gaps: list[tuple[float, float]] = field(default_factory=list)
    earliest: float | None = None

    def start(self) -> None:
        self.started = self.clock()

    @property
    def seconds(self) -> float:
        return self.clock() - self.started - self.watching

    def look(self, *, last: bool = False) -> None:
        """Look now and then; raises :class:`CapError` when there is no need to go on."""
        now = self.seconds
        if now < self.next_look and not last:
            return
        began = self.clock()
        log_weights = self.log_weights()
        gap = self.posterior.log_z - float(log_weights.mean())
        self.gaps.append((now, gap))
        if self.reached is None and gap < self.bar:
            self.reached = now
            self.earliest = now + (self.clock() - began) * batches_needed(log_weights)
        self.next_look = now * (1 + _TIME_BETWEEN)
        self.watching += self.clock() - began
        if not last and (now > self.cap or (self.stops and self.reached is not None)):
            raise CapError

    @torch.no_grad()
    def log_weights(self) -> Tensor:
        with torch.random.fork_rng():
            u, log_q = self.draw(_NUM_WATCHED)
            return (self.posterior.log_density(u) - log_q).double()

    def row(self) -> dict[str, object]:
        return {
            "seconds_to_gap": self.reached,
            "earliest_4000": self.earliest,
            "seconds": self.seconds,
            "gap": self.gaps[-1][1],
            "lowest_gap": min((gap for _, gap in self.gaps if math.isfinite(gap)), default=None),
        }


def batches_needed(log_weights: Tensor) -> float:
    """How many batches of such draws hold enough effective ones."""
    import pyroflows as pf

    smooth, _ = pf.psis(log_weights)
    return EFFECTIVE_DRAWS * float(smooth.exp().square().sum())


# pyroflows -------------------------------------------------------------------------------------


def pyroflows(posterior: Posterior, watch: Watch, **options: object) -> dict[str, object]:
    """``fit_guide`` at its defaults, to its own end, then draws until enough are effective."""
    import pyroflows as pf

    watch.stops, watch.cap = False, math.inf
    watch.start()
    guide = pf.AutoFlow(posterior.model, "nsf", model_args=())
    watch.draw = lambda n: guide.unregistered_posterior().rsample_and_log_prob((n,))
    watch.look()

    # After every step of whatever optimizer is the default.
    hook = register_optimizer_step_post_hook(lambda *_: watch.look())
    try:
        fit = pf.fit_guide(posterior.model, guide, progress_bar=False, seed=0, **options)
    finally:
        hook.remove()
    seconds = watch.seconds
    effective = fit.diagnostics.ess * fit.diagnostics.num_samples
    if effective < EFFECTIVE_DRAWS:
        number = math.ceil(EFFECTIVE_DRAWS / fit.diagnostics.ess)
        pf.importance_diagnostics(posterior.model, guide, num_samples=number, seed=1)
    row = {"seconds_to_4000": watch.seconds, "fit_seconds": seconds}
    row |= {"steps": fit.num_steps, "ess": fit.diagnostics.ess, "verdict": fit.diagnostics.verdict}
    watch.look(last=True)
    return row


def pyroflows_compiled(posterior: Posterior, watch: Watch) -> dict[str, object]:
    import pyroflows as pf

    if "compile" not in inspect.signature(pf.fit_guide).parameters:
        raise NotImplementedError("this version of pyroflows compiles no step")
    return pyroflows(posterior, watch, compile=True)


# Pyro ------------------------------------------------------------------------------------------


def pyro_svi(posterior: Posterior, watch: Watch, *, guide: str, rate: float) -> dict:
    """Pyro's SVI with all particles at once, and no validation once it runs."""
    import pyro
    from pyro.infer import SVI

    from tests.benchmarks._peers_pyro import pyro_guide, vectorized_elbo

    watch.start()
    guide = pyro_guide(guide, posterior.model, posterior.dim)
    elbo = vectorized_elbo(posterior.model, guide, _NUM_PARTICLES)
    pyro.enable_validation(False)
    svi = SVI(posterior.model, guide, pyro.optim.Adam({"lr": rate}), elbo)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        distribution = guide.get_posterior()
        u = distribution.rsample((n,))
        return u, distribution.log_prob(u)

    watch.draw = draw
    return _train(svi.step, watch)


def _train(step: Callable[[], object], watch: Watch) -> dict[str, object]:
    num_steps = 0
    try:
        while True:
            step()
            num_steps += 1
            watch.look()
    except CapError:
        return {"steps": num_steps}


# zuko ------------------------------------------------------------------------------------------


def zuko(posterior: Posterior, watch: Watch, *, rate: float) -> dict[str, object]:
    """A loop by hand: a neural spline flow, then a location and scale for each coordinate."""
    import zuko

    watch.start()
    flow = zuko.flows.NSF(posterior.dim, transforms=3, hidden_features=(64, 64), bins=8)
    flow = zuko.flows.Flow(flow.transform.inv, flow.base)
    loc, log_scale = (torch.zeros(posterior.dim, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([*flow.parameters(), loc, log_scale], lr=rate, fused=True)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x, log_q = flow().rsample_and_log_prob((n,))
        return loc + log_scale.exp() * x, log_q - log_scale.sum()

    def step() -> None:
        optimizer.zero_grad()
        x, log_q = draw(_NUM_PARTICLES)
        (log_q - posterior.log_density(x)).mean().backward()
        optimizer.step()

    watch.draw = draw
    return _train(step, watch)


FITS: dict[str, Callable[[Posterior, Watch], dict[str, object]]] = {
    "pyroflows": pyroflows,
    "pyroflows 100 steps": partial(pyroflows, num_steps=100),
    "pyroflows compiled": pyroflows_compiled,
    **{
        f"{name} {rate:g}": partial(fit, rate=rate)
        for name, fit in {
            "pyro normal": partial(pyro_svi, guide="normal"),
            "pyro flow": partial(pyro_svi, guide="flow"),
            "zuko": zuko,
        }.items()
        for rate in (1e-2, 1e-3)
    },
}


def run(command: dict) -> dict[str, object]:
    if command["contestant"] not in FITS:
        from tests.benchmarks._peers_nuts import SAMPLERS

        sampler = SAMPLERS[command["contestant"]]
        settings = {name: command[name] for name in ("num_draws", "seed")}
        return sampler(command["target"], clock=CLOCKS[command["clock"]], **settings)
    _import_all_of_torch()
    posterior = POSTERIORS[command["target"]]()
    watch = Watch(posterior, command["bar"], command["cap"], CLOCKS[command["clock"]])
    row = FITS[command["contestant"]](posterior, watch)
    return {**watch.row(), **row}


def answer(command: dict) -> dict[str, object]:
    """Run a contestant; a problem is told, so that none ends the race."""
    try:
        return run(command)
    except Exception as error:
        return {"problem": problem(error)}


def _import_all_of_torch() -> None:
    """Torch imports its compiler, seconds of work, with the first optimizer of a process."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)], fused=True).zero_grad()


def main() -> None:
    command = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    torch.set_num_threads(command["threads"])
    torch.manual_seed(command["seed"])
    reply = answer(command)
    print(json.dumps(reply), file=answers)


if __name__ == "__main__":
    limit_threads(int(os.environ.get("OMP_NUM_THREADS", "1")), "cpu")
    main()
