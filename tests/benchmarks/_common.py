"""What the benchmarks share: a fit with its weighted moments, tables, result files."""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyro
import torch
from torch import Tensor

import pyroflows as pf
from pyroflows.psis import smooth_log_weights

CHUNK = 10_000  # draws that go through a density together


@dataclass(frozen=True)
class Judged:
    """Draws of a fitted guide, how much each of them counts, and what is said of them.

    Args:
        fit: Our fit; of another guide, the one that it was fitted beside.
        draws: Draws by site.
        weights: Of each draw, summing to one.
        seconds: What the fit took.
        steps: How many it made.
        elbo: Of these draws.
        log_z: By importance sampling with these draws.
        verdict: Share of effective draws, k-hat, and a word: of draws made apart, or the first.
        problem: What ended the fit before its time.
    """

    fit: pf.GuideFit
    draws: dict[str, Tensor]
    weights: Tensor
    seconds: float
    steps: int
    elbo: float
    log_z: float
    verdict: dict[str, object]
    problem: str | None = None

    def moments(self, *, weighted: bool = True) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of each site."""
        weights = self.weights if weighted else torch.full_like(self.weights, 1 / len(self.weights))
        return {name: mean_and_sd(value, weights) for name, value in self.draws.items()}


def mean_and_sd(value: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted moments over the first dimension, in float64 whatever the draws are in."""
    value = value.double()
    weights = weights.reshape(-1, *[1] * (value.dim() - 1))
    mean = (weights * value).sum(0)
    return mean, (weights * (value - mean) ** 2).sum(0).sqrt()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The precision of a model's own numbers, such as those of its priors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fit_and_judge(
    model: Callable,
    flow: str,
    *,
    model_args: tuple = (),
    num_steps: int | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
) -> Judged:
    """Fit one guide at defaults and weight its draws by Pareto smoothed importance sampling."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)  # of the guide's networks and of the draws, which fit_guide leaves be
    start = time.perf_counter()
    guide = pf.AutoFlow(model, flow, model_args=model_args)
    fit = pf.fit_guide(
        model, guide, model_args=model_args, num_steps=num_steps, seed=seed, progress_bar=False
    )
    seconds = time.perf_counter() - start
    result = asdict(fit.diagnostics)
    verdict = {name: result[name] for name in ("ess", "pareto_k", "verdict")}
    weighed = weigh(
        guide.log_density(*model_args),
        lambda n: guide.get_posterior().rsample_and_log_prob((n,)),
        num_samples,
    )
    draws = guide.unpack(weighed.pop("u"))
    weighed.pop("log_weights")
    steps = len(fit.losses)
    return Judged(fit, draws, seconds=seconds, steps=steps, verdict=verdict, **weighed)


@torch.no_grad()
def weigh(
    density: Callable[[Tensor], Tensor],
    draw: Callable[[int], tuple[Tensor, Tensor]],
    num_samples: int,
) -> dict[str, object]:
    """Draw points ``u`` with their log densities; what their weights say of the density.

    A draw whose weight is not a number counts for nothing but in the ELBO.
    """
    parts = []
    for _ in range(math.ceil(num_samples / CHUNK)):
        u, log_q = draw(min(num_samples, CHUNK))
        parts.append((u, (density(u) - log_q).double()))
    u, log_weights = (torch.cat(part) for part in zip(*parts, strict=True))
    counted = torch.where(log_weights < math.inf, log_weights, -math.inf)
    smoothed, _ = smooth_log_weights(counted)
    return {
        "u": u,
        "log_weights": counted,
        "weights": smoothed.softmax(0),
        "elbo": log_weights.mean().item(),
        "log_z": (smoothed.logsumexp(0) - math.log(len(u))).item(),
    }


def moment_errors(
    moments: Mapping[str, tuple[Tensor, Tensor]], truth: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """The largest error of a mean, in true standard deviations, and of a standard deviation."""
    errors = []
    for name, (true_mean, true_sd) in truth.items():
        mean, sd = moments[name]
        pair = ((mean - true_mean) / true_sd).abs().max(), (sd / true_sd - 1).abs().max()
        errors.append(torch.stack(pair))
    mean_error, sd_error = torch.stack(errors).amax(0).tolist()
    return mean_error, sd_error


def print_row(row: Mapping[str, object], *, header: bool) -> None:
    """Print one row as soon as it is known, under a header before the first."""
    widths = {name: max(len(name), 9, len(_text(row[name]))) for name in row}
    widths |= {name: 30 for name in row if name in ("target", "posterior")}
    if header:
        print("  ".join(f"{name:>{widths[name]}}" for name in row))
    print("  ".join(f"{_text(value):>{widths[name]}}" for name, value in row.items()), flush=True)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return "-" if value is None else str(value)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that every benchmark takes."""
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that it works")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads torch may use")


def write_json(path: Path | None, rows: Sequence[Mapping[str, object]], **settings) -> None:
    """Write results with what they depend on; infinite and missing numbers become null."""
    if path is None:
        return
    machine = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "pyroflows": pf.__version__,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "settings": settings, "rows": [_clean(row) for row in rows]}
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def _clean(row: Mapping[str, object]) -> dict[str, object]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
