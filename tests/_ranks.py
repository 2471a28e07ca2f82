"""What each process does in the tests of several; run by torchrun."""

import json
import os
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyroflows import AutoFlow, PathELBO, fit_guide
from pyroflows.infer import checkpoint as files

RANK = int(os.environ.get("RANK", 0))
Y = torch.tensor([1.0, 2.0, 3.0]).double()


def model(y):
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(2.0).double()))
    loc = pyro.sample("loc", dist.Normal(0 * y, scale[..., None]).to_event(1))
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


def mini_batch(y):
    shift = pyro.param("shift", torch.tensor(0.5).double())
    loc = pyro.sample("loc", dist.Normal(torch.tensor(0.0).double(), 1.0))
    with pyro.plate("data", len(y), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(loc + shift, 1.0), obs=y[index])


def holed(y):
    loc = pyro.sample("loc", dist.Normal(0 * y, 1.0).to_event(1))
    pyro.factor("hole", torch.where(loc[..., 0] > 1.5, -torch.inf, 0.0))


CASES = {
    "tails": (model, "realnvp", {"num_steps": 60}),
    "mini-batch": (mini_batch, "affine", {"num_steps": 30}),
    "holed": (holed, "nsf", {"num_steps": 30}),
    "chunks": (model, "realnvp", {"num_steps": 30, "chunk_size": 3}),
    "sequential": (model, "affine", {"num_steps": 10}),
    "diagnosed": (model, "affine", {"num_steps": 30, "num_diagnostic_samples": 500}),
}


def fit(case, size, **options):
    """One case, with the particles of ``size`` processes."""
    kind, flow, more = CASES[case]
    pyro.clear_param_store()
    torch.manual_seed(RANK)  # so that each starts from other parameters, but for rank 0's
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guide = AutoFlow(kind, flow, model_args=(Y,))
    defaults = {"model_args": (Y,), "num_particles": 8 * size, "seed": 0}
    defaults |= {"progress_bar": False, "num_diagnostic_samples": 0}
    if case == "sequential":
        defaults["loss"] = PathELBO(8 * size, vectorize_particles=False)
        del defaults["num_particles"]
    return fit_guide(kind, guide, **defaults | more | options)


def summary(found):
    params = [p.detach().flatten() for p in found.guide.parameters()]
    verdict = found.diagnostics and (found.diagnostics.verdict, found.diagnostics.log_z)
    return {
        "losses": found.losses,
        "params": torch.cat(params).tolist(),
        "nonfinite": found.num_nonfinite_particles,
        "processes": found.num_processes,
        "verdict": verdict,
        "seconds": found.seconds,
        "reason": found.stop_reason,
    }


def all_cases(folder):
    results = {name: summary(fit(name, 1)) for name in CASES}
    results["time"] = summary(fit("tails", 1, num_steps=None, time_budget=1.0))
    normal = AutoNormal(model)
    options = {"model_args": (Y,), "num_steps": 5, "seed": 0, "progress_bar": False}
    options |= {"num_diagnostic_samples": 0, "loss": Trace_ELBO, "num_particles": 4}
    results["pyro"] = summary(fit_guide(model, normal, **options))
    apart = fit("tails", 1, seed=RANK, distributed=False)
    results["apart"] = summary(apart)
    (folder / f"{RANK}.json").write_text(json.dumps(results))


def disagree(folder):
    try:
        fit("tails", 1, seed=RANK)
    except ValueError as error:
        (folder / f"{RANK}.txt").write_text(str(error))


def lose(folder):
    """Rank 1 dies at a step; the fit is to be resumed by whoever comes next."""
    from pyroflows.infer.progress import Progress

    files.SECONDS_BETWEEN = files._COST = 0.0

    def update(self, losses, rate):
        if len(losses) == 13 and RANK == 1:
            os.kill(os.getpid(), 9)

    Progress.update = update
    try:
        fit("tails", 1, checkpoint=folder / "fit.pt")
    except RuntimeError as error:
        (folder / f"{RANK}.txt").write_text(f"{type(error).__name__}: {error}")
        raise


def resume(folder):
    found = fit("tails", 1, checkpoint=folder / "fit.pt")
    (folder / f"{RANK}.json").write_text(json.dumps(summary(found)))


if __name__ == "__main__":
    {f.__name__: f for f in (all_cases, disagree, lose, resume)}[sys.argv[1]](Path(sys.argv[2]))
