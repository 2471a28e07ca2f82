"""Makes ``polynomials.json``: zuko's transforms at drawn parameters. Run it where zuko is."""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from zuko.transforms import BernsteinTransform, SOSPolynomialTransform


def sos(bound: float) -> dict:
    a, x = 0.5 * torch.randn(6, 2, 4), bound * (2 * torch.rand(6) - 1)
    transform = SOSPolynomialTransform(a, slope=1e-3, bound=bound)
    y, log_slope = transform.call_and_ladj(x)
    found = {"a": a, "x": x, "y": y, "log_slope": log_slope}
    return {"bound": bound, "slope": 1e-3} | {k: v.tolist() for k, v in found.items()}


def bernstein(bound: float) -> dict:
    x = bound * (1.98 * torch.rand(6) - 0.99)
    transform = BernsteinTransform(torch.randn(6, 7), bound=bound)
    y, log_slope = transform.call_and_ladj(x)
    found = {"theta": transform.theta, "x": x, "y": y, "log_slope": log_slope}
    return {"bound": bound} | {k: v.tolist() for k, v in found.items()}


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    cases = {"sos": [sos(b) for b in (3.0, 10.0)], "bernstein": [bernstein(b) for b in (2.0, 5.0)]}
    text = json.dumps({"zuko": version("zuko"), **cases}, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
