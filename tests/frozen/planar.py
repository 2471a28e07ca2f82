"""Makes ``planar.json``: Pyro's layers at drawn parameters. Run it where Pyro is installed."""

import json
from pathlib import Path

import pyro
import torch
from pyro.distributions.transforms import Planar, Radial


def planar(dim: int) -> dict:
    layer = Planar(dim)
    with torch.no_grad():
        for parameter in (layer.bias, layer.u, layer.w):
            parameter.copy_(torch.randn(parameter.shape))
        x = 2 * torch.randn(6, dim)
        y = layer(x)
        found = {
            "shift": layer.u_hat(layer.u, layer.w),  # u hat, as constrained
            "direction": layer.w,
            "bias": layer.bias[0],
            "x": x,
            "y": y,
            "log_det": layer.log_abs_det_jacobian(x, y),
        }
    return {name: value.tolist() for name, value in found.items()}


def radial(dim: int) -> dict:
    layer = Radial(dim)
    with torch.no_grad():
        for parameter in (layer.x0, layer.alpha_prime, layer.beta_prime):
            parameter.copy_(torch.randn(parameter.shape))
        x = 2 * torch.randn(6, dim)
        y = layer(x)
        radius = torch.nn.functional.softplus(layer.alpha_prime[0])
        found = {
            "centre": layer.x0,
            "radius": radius,
            "strength": torch.nn.functional.softplus(layer.beta_prime[0]) - radius,
            "x": x,
            "y": y,
            "log_det": layer.log_abs_det_jacobian(x, y),
        }
    return {name: value.tolist() for name, value in found.items()}


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    cases = {
        "planar": [planar(dim) for dim in (1, 2, 5)],
        "radial": [radial(dim) for dim in (1, 2, 5)],
    }
    text = json.dumps({"pyro": pyro.__version__, **cases}, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
