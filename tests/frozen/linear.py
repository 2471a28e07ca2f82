"""Write linear.json: what zuko, nflows and Pyro compute for linear maps and normalisation.

Run with all three installed: ``python tests/frozen/linear.py``.
"""

import json
from pathlib import Path

import nflows.transforms as nflows
import pyro.distributions.transforms as in_pyro
import torch
import zuko

DIM, NUMBER = 4, 6


def record(forward, x, inverse, **parameters):
    y, log_det = forward(x)
    return {
        **{name: value.tolist() for name, value in parameters.items()},
        "x": x.tolist(),
        "y": y.tolist(),
        "log_det": log_det.tolist(),
        "x_again": inverse(y).tolist(),
    }


def both(transform):
    """What a torch transform computes forward, its log-determinant summed over coordinates."""

    def forward(x):
        y = transform(x)
        log_det = transform.log_abs_det_jacobian(x, y)
        is_scalar = transform.domain.event_dim == 0
        return y, (log_det.expand(y.shape).sum(-1) if is_scalar else log_det.expand(y.shape[:-1]))

    return forward, lambda y: transform._inverse(y)


def linear(x):
    matrix = 0.5 * torch.randn(DIM, DIM)
    forward, inverse = both(zuko.transforms.RotationTransform(matrix.tril(-1)))
    found = {"orthogonal": record(forward, x, inverse, skew=matrix)}
    # Enough terms of Pyro's series to be exact.
    exponential = in_pyro.MatrixExponential(DIM, iterations=40)
    exponential.weights.copy_(matrix)
    forward, inverse = both(exponential)
    found["matrix_exponential"] = record(forward, x, inverse, exponent=matrix)
    lu = nflows.LULinear(DIM, identity_init=False)
    diagonal = lu.upper_diag.log()
    factors = torch.zeros(DIM, DIM)
    factors[lu.lower_indices] = lu.lower_entries
    factors[lu.upper_indices] = lu.upper_entries
    found["lu_linear"] = record(
        lu.forward, x, lambda y: y @ lu.weight_inverse().T, log_diagonal=diagonal, factors=factors
    )
    return found


def normalization(x):
    act = nflows.ActNorm(DIM)
    data = torch.linspace(-3, 9, DIM) + torch.linspace(0.5, 4, DIM) * x
    act(data)  # nflows normalises forward, with the unbiased standard deviation
    found = {"act_norm": record(act.forward, data, lambda y: act.inverse(y)[0])}
    batch = in_pyro.BatchNorm(DIM).eval()
    batch.beta += torch.randn(DIM)
    batch.gamma += 0.5 * torch.rand(DIM)
    batch.moving_mean += torch.randn(DIM)
    batch.moving_variance += torch.rand(DIM)
    forward, inverse = both(batch)
    found["batch_norm"] = record(
        forward,
        x,
        inverse,
        shift=batch.beta,
        log_scale=batch.constrained_gamma.log(),
        running_mean=batch.moving_mean,
        running_var=batch.moving_variance,
    )
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    with torch.no_grad():
        x = torch.randn(NUMBER, DIM)
        found = linear(x) | normalization(x)
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")
