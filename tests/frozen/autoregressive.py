"""Makes ``autoregressive.json``: MAF and NSF of zuko with their weights. Run it with zuko."""

import json
from pathlib import Path

import torch
import zuko
from torch import Tensor, nn

DIM, HIDDEN = 3, (12, 12)


def layer(transform: nn.Module) -> dict:
    """Masked weights, the hidden units of each layer sorted by how many they see."""
    linears = [m for m in transform.hyper if isinstance(m, zuko.nn.MaskedLinear)]
    rows = [linear.mask.sum(-1).argsort(stable=True) for linear in linears[:-1]]
    weights, biases, seen = [], [], torch.arange(linears[0].weight.shape[1])
    for linear, units in zip(linears, [*rows, None], strict=True):
        weight = (linear.weight * linear.mask)[:, seen]
        weights.append(weight if units is None else weight[units])
        biases.append(linear.bias if units is None else linear.bias[units])
        seen = units
    return {
        "order": transform.order.argsort().tolist(),
        "weights": [w.tolist() for w in weights],
        "biases": [b.tolist() for b in biases],
    }


def whole(flow: zuko.flows.Flow, context_dim: int) -> dict:
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        x = 2 * torch.randn(8, DIM)
        c = torch.randn(8, context_dim) if context_dim else None
        found: dict[str, Tensor | None] = {"x": x, "context": c}
        found["base"], found["log_det"] = flow(c).transform.call_and_ladj(x)
        found["log_prob"] = flow(c).log_prob(x)
        found["inverse"] = flow(c).transform.inv(x)
        layers = [layer(t) for t in flow.transform.transforms]
    numbers = {name: None if v is None else v.tolist() for name, v in found.items()}
    return {"layers": layers, "context_dim": context_dim, **numbers}


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    found: dict = {"zuko": zuko.__version__}
    for context_dim in (0, 2):
        options = {"context": context_dim, "transforms": 3, "hidden_features": HIDDEN}
        found[f"maf-{context_dim}"] = whole(zuko.flows.MAF(DIM, **options), context_dim)
        found[f"nsf-{context_dim}"] = whole(zuko.flows.NSF(DIM, bins=4, **options), context_dim)
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
