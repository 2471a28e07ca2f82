"""What the benchmarks share: a fit with its weighted moments, tables, result files."""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyro
import torch
from torch import Tensor

import pyroflows as pf
from pyroflows.psis import smooth_log_weights


@dataclass(frozen=True)
class Judged:
    """A fitted guide, its draws, and how much each draw counts."""

    fit: pf.GuideFit
    draws: dict[str, Tensor]
    weights: Tensor
    seconds: float
    elbo: float = math.nan  # of these draws
    log_z: float = math.nan

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
    start = time.perf_counter()
    guide = pf.AutoFlow(model, flow, model_args=model_args)
    fit = pf.fit_guide(
        model, guide, model_args=model_args, num_steps=num_steps, seed=seed, progress_bar=False
    )
    seconds = time.perf_counter() - start
    with torch.no_grad():
        density = guide.log_density(*model_args)
        parts = []
        for _ in range(math.ceil(num_samples / 10_000)):
            u, log_q = guide.get_posterior().rsample_and_log_prob((min(num_samples, 10_000),))
            parts.append((u, (density(u) - log_q).double()))
        u, log_weights = (torch.cat(part) for part in zip(*parts, strict=True))
    smoothed, _ = smooth_log_weights(log_weights)
    return Judged(
        fit,
        guide.unpack(u),
        smoothed.softmax(0),
        seconds,
        elbo=log_weights.mean().item(),
        log_z=(smoothed.logsumexp(0) - math.log(len(u))).item(),
    )


def moment_errors(
    moments: Mapping[str, tuple[Tensor, Tensor]], truth: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """The largest error of a mean, in true standard deviations, and of a standard deviation."""
    mean_error = sd_error = 0.0
    for name, (true_mean, true_sd) in truth.items():
        mean, sd = moments[name]
        mean_error = max(mean_error, ((mean - true_mean) / true_sd).abs().max().item())
        sd_error = max(sd_error, (sd / true_sd - 1).abs().max().item())
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


def verdict_columns(judged: Judged) -> dict[str, object]:
    """What the fit says of itself."""
    result = asdict(judged.fit.diagnostics)
    return {name: result[name] for name in ("ess", "pareto_k", "verdict")}
