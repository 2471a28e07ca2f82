"""Makes ``circular.json``: circular splines of zuko at shared raw parameters.

zuko's goes half a turn and then along a spline whose slopes at both ends are 1.
"""

import json
import math
from pathlib import Path

import torch
import zuko

NUM_BINS, NUMBER = 5, 40


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x = math.pi * (2 * torch.rand(NUMBER) - 1)
    shapes = {"widths": NUM_BINS, "heights": NUM_BINS, "slopes": NUM_BINS - 1}
    raws = {name: 2 * torch.randn(NUMBER, size) for name, size in shapes.items()}
    transform = zuko.flows.spline.CircularRQSTransform(*raws.values(), slope=1e-3)
    y, log_slope = transform.call_and_ladj(x)
    found = {"x": x, **raws, "y": y, "log_slope": log_slope}
    found = {name: value.tolist() for name, value in found.items()}
    found["versions"] = {"zuko": zuko.__version__}
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
