"""Make ``neural.json``: numbers of zuko and Pyro for maps of the same formula.

Run as ``python -m tests.frozen.neural``, where both are installed.
"""

import json
import math
from pathlib import Path

import pyro
import torch
import zuko
from pyro.distributions.transforms import NeuralAutoregressive
from torch import Tensor
from zuko.transforms import GaussianizationTransform, UnconstrainedMonotonicTransform

PLACE = Path(__file__).with_suffix(".json")


def mixture(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "loc": 2 * torch.randn(4),
        "log_scale": 0.5 * torch.randn(4),
        "log_weight": torch.randn(4).log_softmax(-1),
    }


def gaussianization() -> dict[str, Tensor]:
    """zuko's, less the factor 1 - 1e-6 by which it shrinks 2 F - 1."""
    x, given = torch.linspace(-3, 3, 25), mixture(0)
    given["log_weight"] = torch.full((4,), -math.log(4))
    per_scale = (-given["log_scale"]).exp()
    transform = GaussianizationTransform(-given["loc"] * per_scale, -given["log_scale"])
    shrunk = torch.erf(transform(x) / math.sqrt(2))
    return {"x": x, **given, "y": math.sqrt(2) * torch.erfinv(shrunk / (1 - 1e-6))}


def deep_sigmoidal() -> dict[str, Tensor]:
    """Pyro's, one coordinate at a time."""
    x, given = torch.linspace(-6, 6, 25), mixture(1)
    per_scale = (-given["log_scale"]).exp()
    shape = (len(x), 4, 1)
    raws = [
        value[:, None].expand(shape)
        for value in (per_scale.expm1().log(), given["log_weight"], -given["loc"] * per_scale)
    ]
    transform = NeuralAutoregressive(lambda _: raws, hidden_units=4, activation="sigmoid")
    y = transform._call(x[:, None])
    log_slope = transform.log_abs_det_jacobian(x[:, None], y)
    return {"x": x, **given, "y": y[:, 0], "log_slope": log_slope}


def integral() -> dict[str, Tensor]:
    """zuko's integral of exp(v_0 + sum_j v_j tanh(a_j (t - c_j)))."""
    torch.manual_seed(2)
    x = torch.linspace(-4.5, 4.5, 25)
    given = {
        "height": 0.5 * torch.randn(4),
        "sharpness": 0.2 + 0.6 * torch.rand(3),
        "centre": 2 * torch.randn(3),
    }

    def integrand(t: Tensor) -> Tensor:
        units = torch.tanh(given["sharpness"] * (t[..., None] - given["centre"]))
        return (given["height"][0] + units @ given["height"][1:]).exp()

    y, log_slope = UnconstrainedMonotonicTransform(integrand, n=64).call_and_ladj(x)
    return {"x": x, **given, "y": y, "log_slope": log_slope}


def main() -> None:
    torch.set_default_dtype(torch.float64)
    made_by = {"zuko": zuko.__version__, "pyro": pyro.__version__, "torch": torch.__version__}
    cases = {f.__name__: f() for f in (gaussianization, deep_sigmoidal, integral)}
    lists = {
        name: {k: v.detach().tolist() for k, v in case.items()} for name, case in cases.items()
    }
    PLACE.write_text(json.dumps({"made_by": made_by, **lists}, indent=1) + "\n")


if __name__ == "__main__":
    main()
