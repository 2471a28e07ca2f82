"""Makes ``block.json``: Pyro's block autoregressive layers. Run it where Pyro is installed."""

import json
from pathlib import Path

import pyro
import torch
from pyro.distributions.transforms import BlockAutoregressive


def frozen(dim: int, residual: str) -> dict:
    layer = BlockAutoregressive(dim, hidden_factors=[3, 2], residual=residual)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        x = 2 * torch.randn(6, dim)
        y = layer(x)
        found = {
            "gate": layer.gate.sigmoid() if residual == "gated" else None,
            "weights": [block._weight for block in layer.layers],
            "log_scales": [block._diag_weight[:, 0] for block in layer.layers],
            "biases": [block.bias for block in layer.layers],
            "x": x,
            "y": y,
            "log_det": layer.log_abs_det_jacobian(x, y),
        }
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [v.tolist() for v in value]
    return value if value is None else value.tolist()


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    cases = [frozen(dim, residual) for dim in (1, 3) for residual in ("normal", "gated")]
    text = json.dumps({"pyro": pyro.__version__, "cases": cases}, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
