"""Densities of other libraries, fitted to the same rows.

Adam at 1e-3 with a cosine, batches of 256, the weights of the best validation epoch. MAF has five
transforms in zuko's usual form, NSF three with 8 bins, both hidden layers (64, 64); the mixture of
full normals has 5 or 20 parts, whichever validation rows like better.
"""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import torch
from torch import Tensor

__all__ = ["PEERS", "fit_peer"]

PEERS = ("zuko maf", "zuko nsf", "mixture")
_BATCH = 256


def fit_peer(
    name: str,
    parts: tuple[Tensor, Tensor, Tensor],
    *,
    seed: int,
    num_steps: int | None,
    seconds: float | None,
) -> tuple[Tensor, int]:
    """Fit one; return the log densities of the test rows, and the number of steps.

    Raises:
        SystemExit: If the library is not installed.
    """
    torch.manual_seed(seed)
    train, validation, test = parts
    try:
        if name == "mixture":
            return _mixture(train, validation, test, seed), 0
        import zuko
    except ImportError as error:
        raise SystemExit(f"{name} is not installed: pip install {error.name}") from error
    options: dict[str, Any] = {"hidden_features": (64, 64)}
    if name == "zuko nsf":
        flow = zuko.flows.NSF(train.shape[1], transforms=3, bins=8, **options)
    else:
        flow = zuko.flows.MAF(train.shape[1], transforms=5, **options)
    steps = _train(flow, train, validation, num_steps, seconds)
    with torch.no_grad():
        return flow().log_prob(test), steps


def _train(
    flow: Any, train: Tensor, validation: Tensor, num_steps: int | None, seconds: float | None
) -> int:
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    best, started, step = (math.inf, copy.deepcopy(flow.state_dict())), time.perf_counter(), 0

    def progress() -> float:
        elapsed = (time.perf_counter() - started) / seconds if seconds else 0.0
        return max(elapsed, step / num_steps if num_steps else 0.0)

    while progress() < 1:
        for index in torch.randperm(len(train)).split(_BATCH):
            if progress() >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 + math.cos(math.pi * progress())) / 2
            optimizer.zero_grad()
            (-flow().log_prob(train[index]).mean()).backward()
            optimizer.step()
            step += 1
        if len(validation):
            with torch.no_grad():
                loss = -float(flow().log_prob(validation).mean())
            if loss < best[0]:
                best = loss, copy.deepcopy(flow.state_dict())
    if len(validation):
        flow.load_state_dict(best[1])
    return step


def _mixture(train: Tensor, validation: Tensor, test: Tensor, seed: int) -> Tensor:
    from sklearn.mixture import GaussianMixture

    judged = validation if len(validation) else train
    fits = [GaussianMixture(number, random_state=seed).fit(train) for number in (5, 20)]
    return torch.as_tensor(max(fits, key=lambda fit: fit.score(judged)).score_samples(test))
