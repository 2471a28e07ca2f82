"""Makes ``splines.json``: rational-quadratic splines of zuko, nflows and Pyro at shared knots.

Run it where all three are installed.
"""

import importlib
import json
import math
from pathlib import Path

import pyro
import torch
import zuko
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline
from torch import Tensor

NUM_BINS, BOUND, NUMBER = 5, 3.0, 60


def unbounded(value: Tensor, limit: float) -> Tensor:
    """What zuko takes for a value that it bounds softly."""
    return value / (1 - (value / limit).abs())


def by_zuko(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, *, inverse: bool) -> list:
    limit = -math.log(1e-3)
    raws = [
        unbounded(v.log() - v.log().mean(-1, keepdim=True), limit / 2) for v in (widths, heights)
    ]
    spline = zuko.transforms.MonotonicRQSTransform(
        *raws, unbounded(slopes.log(), limit), bound=BOUND, slope=1e-3
    )
    y, log_slope = (spline.inv if inverse else spline).call_and_ladj(x)
    return [y, log_slope]


def by_nflows(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, *, inverse: bool) -> list:
    before = slopes + torch.log(-torch.expm1(-slopes))  # of softplus
    return list(
        unconstrained_rational_quadratic_spline(
            x,
            widths.log(),
            heights.log(),
            before,
            inverse=inverse,
            tail_bound=BOUND,
            min_bin_width=0.0,
            min_bin_height=0.0,
            min_derivative=0.0,
        )
    )


def by_pyro(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, *, inverse: bool) -> list:
    module = importlib.import_module("pyro.distributions.transforms.spline")
    y, log_slope = module._monotonic_rational_spline(
        x,
        widths,
        heights,
        slopes,
        inverse=inverse,
        bound=BOUND,
        min_bin_width=0.0,
        min_bin_height=0.0,
        min_derivative=0.0,
    )
    return [y, log_slope]


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x = torch.linspace(-1.2 * BOUND, 1.2 * BOUND, NUMBER)[torch.randperm(NUMBER)]
    knots = {
        "widths": torch.randn(NUMBER, NUM_BINS).softmax(-1),
        "heights": torch.randn(NUMBER, NUM_BINS).softmax(-1),
        "slopes": torch.randn(NUMBER, NUM_BINS - 1).exp(),
    }
    found = {"bound": BOUND, "x": x, **knots}
    for name, peer in {"zuko": by_zuko, "nflows": by_nflows, "pyro": by_pyro}.items():
        ways = {"forward": False, "inverse": True}
        found[name] = {
            way: [v.tolist() for v in peer(x, **knots, inverse=inverse)]
            for way, inverse in ways.items()
        }
    found = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in found.items()}
    found["versions"] = {"zuko": zuko.__version__, "pyro": pyro.__version__}
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
