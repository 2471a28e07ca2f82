"""Makes ``rational_splines.json``: linear rational splines of Pyro at shared knots.

Pyro moves each knot by a millionth to find bins, so no value is taken near one.
"""

import importlib
import json
from pathlib import Path

import pyro
import torch

NUM_BINS, BOUND, NUMBER = 5, 3.0, 60


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    module = importlib.import_module("pyro.distributions.transforms.spline")
    x = torch.linspace(-1.2 * BOUND, 1.2 * BOUND, NUMBER)[torch.randperm(NUMBER)]
    knots = {
        "widths": torch.randn(NUMBER, NUM_BINS).softmax(-1),
        "heights": torch.randn(NUMBER, NUM_BINS).softmax(-1),
        "slopes": torch.randn(NUMBER, NUM_BINS - 1).exp(),
        "shares": 0.05 + 0.9 * torch.rand(NUMBER, NUM_BINS),
    }
    found = {"bound": BOUND, "x": x.tolist(), **{k: v.tolist() for k, v in knots.items()}}
    for way in ("forward", "inverse"):
        results = module._monotonic_rational_spline(
            x,
            *knots.values(),
            inverse=way == "inverse",
            bound=BOUND,
            min_bin_width=0.0,
            min_bin_height=0.0,
            min_derivative=0.0,
            min_lambda=0.0,
        )
        found[way] = [v.tolist() for v in results]
    found["versions"] = {"pyro": pyro.__version__}
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
