"""Milliseconds for value and gradient of a model's log density, for each way to evaluate a batch.

    python -m tests.benchmarks.log_density
    python -m tests.benchmarks.log_density --points 1 64 1024 --no-compile --output result.json

``loop``, ``plate`` and ``vmap`` run the model by Pyro's handlers; ``graph`` is the flat graph that
is taken from it, ``compiled`` that through ``torch.compile``. ``start`` is what each costs once,
in seconds: the checks against Pyro's own density, the graph, the compiler. Rounds go in turns, and
a number is the median. ``logistic`` has the size of German credit: 1,000 rows, 25 weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyroflows as pf
from tests.benchmarks._common import add_common_options, print_row, write_json
from tests.benchmarks._schools import eight_schools

WAYS = ("loop", "plate", "vmap", "graph", "compiled")
_MAX_LOOP = 64


def logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[-1]), 10.0).to_event(1))
    pyro.sample("y", dist.Bernoulli(logits=w @ x.mT).to_event(1), obs=y)


def mixture(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 5.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(pyro.ops.indexing.Vindex(loc)[..., k], 1.0), obs=y)


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.ones(1000, 1), torch.randn(1000, 24, generator=generator)], 1)
    return x, (torch.rand(1000, generator=generator) < 0.3).float()


def models() -> dict[str, tuple[Callable, tuple]]:
    """Each model with its arguments."""
    x, y = _data()
    return {
        "eight_schools": (partial(eight_schools, centered=False), ()),
        "logistic": (logistic, (x, y)),
        "mixture": (mixture, (5 * x[:100, 1],)),
    }


def way_of(way: str, model: Callable, model_args: tuple, u: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of points; what it costs once is paid here."""
    method = way if way in ("loop", "plate", "vmap") else "auto"
    options = {"method": method, "compile": way == "compiled", "seed": 0}
    function = pf.vectorized_log_density(model, model_args=model_args, **options)
    if method != "auto":
        return function._density._by_handlers
    if way == "graph":
        program = function._density.program(len(u), like=u)
        return function._density if program is None else program
    function(u.requires_grad_()).sum().backward()
    return function


def seconds_of(function: Callable[[Tensor], Tensor], u: Tensor) -> float:
    """One value and gradient."""
    u = u.detach().requires_grad_()
    start = time.perf_counter()
    function(u).sum().backward()
    return time.perf_counter() - start


def measure(name: str, number: int, ways: list[str], rounds: int) -> dict[str, object]:
    """One row of the table."""
    model, model_args = models()[name]
    dim = pf.vectorized_log_density(model, model_args=model_args).dim
    u = 0.1 * torch.randn(number, dim, generator=torch.Generator().manual_seed(1))
    functions, start = {}, {}
    for way in ways:
        before = time.perf_counter()
        functions[way] = way_of(way, model, model_args, u.clone())
        start[way] = time.perf_counter() - before
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(rounds + 1):
        for way, function in functions.items():
            if way == "loop" and (number > _MAX_LOOP or i > 2):
                continue
            taken[way].append(seconds_of(function, u))
    medians = {w: 1e3 * statistics.median(t[1:] or t) if t else None for w, t in taken.items()}
    return {
        "model": name,
        "d": dim,
        "points": number,
        **{f"{way}_ms": medians.get(way) for way in WAYS},
        **{f"{way}_start": start.get(way) for way in WAYS[1:]},
    }


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(models()), metavar="NAME")
    parser.add_argument("--points", nargs="+", type=int, default=[1, 64, 1024], metavar="K")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiler out")
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if unknown := sorted(set(args.models) - set(models())):
        parser.error(f"unknown models {unknown}: choose from {list(models())}")
    points, rounds = ([3], 2) if args.smoke else (args.points, args.rounds)
    ways = [way for way in WAYS if not (way == "compiled" and (args.no_compile or args.smoke))]
    rows: list[dict[str, object]] = []
    for name in args.models:
        for number in points:
            rows.append(measure(name, number, ways, rounds))
            print_row(rows[-1], header=len(rows) == 1)
    write_json(args.output, rows, rounds=rounds)
    return rows


if __name__ == "__main__":
    main()
