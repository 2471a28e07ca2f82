"""What a Gaussian makes of the same rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, biject_to

from .module import FlowDensity
from .split import Rows

__all__ = ["gaussian_log_prob"]

_RIDGE = 1e-9  # of the variances


@torch.no_grad()
def gaussian_log_prob(density: FlowDensity, train: Rows, test: Rows) -> Tensor:
    r"""Log densities of rows under a normal fitted to others, float64, shape ``(N)``.

    In the unbounded coordinates of the support, and given covariates linear in them:
    :math:`y \mid c \sim N(B c + b, \Sigma)`.
    """
    y, design = density.unbounded(train.x.double()), _design(train)
    weights = torch.linalg.lstsq(design, y).solution
    residual = y - design @ weights
    covariance = residual.mT @ residual / len(y)
    ridge = _RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
    point = density.unbounded(test.x.double())
    normal = MultivariateNormal(_design(test) @ weights, covariance + ridge)
    to_support = biject_to(density.support)
    log_det = to_support.log_abs_det_jacobian(point, test.x.double())
    return normal.log_prob(point) - log_det.reshape(len(point), -1).sum(-1)


def _design(rows: Rows) -> Tensor:
    ones = rows.x.new_ones(rows.number, 1).double()
    return ones if rows.context is None else torch.cat([ones, rows.context.double()], -1)
