"""Linear maps and normalisation beside the numbers of zuko, nflows and Pyro."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pyroflows.bijectors import ActNorm, BatchNorm, LULinear, MatrixExponential, Orthogonal

pytestmark = pytest.mark.usefixtures("_double")
FROZEN = json.loads((Path(__file__).parent / "frozen" / "linear.json").read_text())
RESULTS = ("x", "y", "log_det", "x_again")
BIJECTORS = {
    "orthogonal": Orthogonal,
    "matrix_exponential": MatrixExponential,
    "lu_linear": LULinear,
    "batch_norm": BatchNorm,
}


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert_close(actual.detach(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", BIJECTORS)
def test_agrees_with_others_at_shared_parameters(name: str):
    frozen = {key: torch.tensor(value) for key, value in FROZEN[name].items()}
    x, y, log_det, x_again = (frozen.pop(key) for key in RESULTS)
    bijector = BIJECTORS[name](x.shape[-1]).eval()
    bijector.load_state_dict(frozen)
    close(x_again, x)
    close(bijector.forward_and_log_det(x)[0], y)
    close(bijector.forward_and_log_det(x)[1], log_det)
    close(bijector.inverse_and_log_det(y)[0], x)
    close(bijector.inverse_and_log_det(y)[1], -log_det)


def test_act_norm_starts_where_nflows_does():
    x, y, log_det, _ = (torch.tensor(FROZEN["act_norm"][key]) for key in RESULTS)
    layer = ActNorm(x.shape[-1])
    layer.initialize_(x, direction="forward")
    unbiased = math.sqrt((len(x) - 1) / len(x))  # nflows divides by the unbiased deviation
    ours, our_log_det = layer.forward_and_log_det(x)
    close(ours * unbiased, y)
    close(our_log_det + x.shape[-1] * math.log(unbiased), log_det)
