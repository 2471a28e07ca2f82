"""Several processes that fit one guide together, on torch's own engine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["ExchangeError", "LostRank", "Ranks", "Terminated", "find_ranks", "terminable"]

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SECONDS_TO_REPORT = 3.0  # after a failure; torchrun kills what is left after 30


class LostRank(RuntimeError):
    """Another process of this fit is gone."""


class ExchangeError(RuntimeError):
    """An exchange between ranks failed, as it does when one of them is gone."""


class Terminated(BaseException):
    """The process was told to end, as torchrun does when another one is lost."""


class Ranks:
    """This process among those that fit the same guide; alone by default, and then free of cost.

    All that ranks decide by is made equal here: gradients and losses are averaged, log weights are
    shown to all, and clocks, files and reports are those of rank 0.

    Args:
        rank: Number of this process.
        size: Number of processes.
        device: Where tensors go to be exchanged.

    Attributes:
        is_ending: Whether an exchange failed, or this process was told to end.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: torch.device = torch.device("cpu")
    ) -> None:
        self.rank = rank
        self.size = size
        self.is_ending = False
        self._device = device
        self._key = ""
        if size > 1:
            self._key = f"pyroflows/{self.tell(int(torch.randint(2**62, (), device='cpu')))}"

    @property
    def is_first(self) -> bool:
        """Whether this process writes and shows what there is."""
        return self.rank == 0

    def average_(self, params: Sequence[Tensor], loss: float) -> float:
        """Average gradients, in place and in one message, and the loss, which is returned.

        A parameter without a gradient counts as one with zeros where any rank has one.
        """
        if self.size == 1:
            return loss
        dtype = _widest(params)
        flat = torch.cat([_flat(p).to(self._device, dtype) for p in params])
        given = torch.tensor([float(p.grad is not None) for p in params] + [loss])
        flat = torch.cat([flat, given.to(flat)])
        with self._watched():
            dist.all_reduce(flat)
        flat /= self.size
        *given, loss = flat[-len(params) - 1 :].tolist()
        start = 0
        for param, share in zip(params, given, strict=True):
            part = flat[start : start + param.numel()]
            start += param.numel()
            if share:
                _set_grad(param, part)
        return loss

    def gather(self, values: Tensor, failed: bool = False) -> Tensor:
        """The values of all ranks, shape ``(size, K)``.

        Raises:
            LinAlgError: On all ranks, if any one failed.
        """
        if self.size == 1:
            if failed:
                raise torch.linalg.LinAlgError
            return values[None]
        sent = torch.cat([values.new_full((1,), float(failed)), values]).to(self._device)
        found = [torch.empty_like(sent) for _ in range(self.size)]
        with self._watched():
            dist.all_gather(found, sent)
        stacked = torch.stack(found).to(values.device)
        if stacked[:, 0].any():
            raise torch.linalg.LinAlgError("a matrix could not be factorised on one of the ranks")
        return stacked[:, 1:]

    def share_(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors what they are on rank 0."""
        if self.size == 1:
            return
        with torch.no_grad(), self._watched():
            for tensor in tensors:
                sent = tensor.detach().to(self._device).contiguous()
                dist.broadcast(sent, src=0)
                if self.rank:
                    tensor.copy_(sent)

    def tell(self, value: Any) -> Any:
        """What rank 0 has to say."""
        if self.size == 1:
            return value
        box = [value if self.rank == 0 else None]
        with self._watched():
            dist.broadcast_object_list(box, src=0, device=self._device)
        return box[0]

    def common_seed(self, seed: int | None) -> int | None:
        """The seed, or one that rank 0 draws for all where there is none."""
        if self.size == 1 or seed is not None:
            return seed
        return self.tell(int(torch.randint(2**31, (), device="cpu")))

    def part_ways(self) -> None:
        """Let each rank draw on from a random state of its own."""
        if self.size > 1:
            torch.manual_seed(int(torch.randint(2**31, (), device="cpu")) + self.rank)

    def agree(self, facts: dict[str, Any]) -> None:
        """Raise on every rank if ranks differ in what they are to fit.

        Raises:
            ValueError: Naming the fact, and its value on two ranks.
        """
        if self.size == 1:
            return
        everyone: list[Any] = [None] * self.size
        with self._watched():
            dist.all_gather_object(everyone, facts)
        for name in facts:
            for rank, other in enumerate(everyone):
                if other.get(name) != everyone[0].get(name):
                    raise ValueError(
                        f"fit_guide: expected the same fit on all {self.size} processes, but "
                        f"{name} is {everyone[0].get(name)} on rank 0 and {other.get(name)} on "
                        f"rank {rank}. Give every process the same arguments and data, or pass "
                        "distributed=False to let each fit on its own."
                    )

    def lost(self, saved: str, step: int, error: BaseException) -> LostRank:
        """The error to end with when an exchange failed; asks which ranks are still there."""
        silent = self._silent()
        who = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {silent}"
        who = f"{who} of {self.size} no longer answers" if silent else "none is known to be lost"
        told = isinstance(error, Terminated)
        why = "this process was told to end (SIGTERM)" if told else "an exchange failed"
        return LostRank(
            f"fit_guide: rank {self.rank} stopped after {step} steps because {why}: {who}. {saved} "
            f"The first error of the processes' output tells why. ({str(error).strip()[:250]})"
        )

    def _silent(self) -> list[int]:
        """Ranks that do not report in for some seconds: those that failed too, do."""
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"{self._key}/{self.rank}", "here")
            silent = [rank for rank in range(self.size) if rank != self.rank]
            deadline = time.monotonic() + _SECONDS_TO_REPORT
            while silent and time.monotonic() < deadline:
                silent = [rank for rank in silent if not store.check([f"{self._key}/{rank}"])]
                time.sleep(0.05)
        except RuntimeError:  # it was kept by a process that is gone: rank 0's
            return [0] if self.rank else []
        return silent

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self.is_ending = True
            raise ExchangeError(
                f"fit_guide: an exchange between processes failed: {error}"
            ) from error


def find_ranks(distributed: bool | str, device: torch.device) -> Ranks:
    """The processes to fit with.

    Args:
        distributed: ``True``, ``False``, or ``"auto"``: if there are several.
        device: Where the guide lives.

    Raises:
        ValueError: If it is ``True`` and there is one process only.
    """
    if distributed not in (True, False, "auto"):
        raise ValueError(
            f"fit_guide: expected distributed to be True, False or 'auto', got {distributed!r}."
        )
    if not distributed or not dist.is_available():
        return Ranks()
    launched = all(name in os.environ for name in _ENVIRONMENT)
    if not dist.is_initialized() and launched and int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # Left running, for a second fit of the same script.
    if not dist.is_initialized():
        if distributed is True:
            raise ValueError(
                "fit_guide: distributed=True expected several processes, but torch.distributed is "
                "not initialised and nothing launched them: run the script with "
                "`torchrun --nproc-per-node N script.py`."
            )
        return Ranks()
    uses_nccl = "nccl" in str(dist.get_backend()) and device.type == "cuda"
    return Ranks(
        dist.get_rank(), dist.get_world_size(), device if uses_nccl else torch.device("cpu")
    )


@contextmanager
def terminable(ranks: Ranks) -> Iterator[None]:
    """Let SIGTERM end a shared fit in order: with an error, and a file to go on from.

    Once the fit is ending, by this or another failure, it is left to do so.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if ranks.size == 1 or not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(signum: int, frame: Any) -> None:
        if not ranks.is_ending:
            ranks.is_ending = True
            raise Terminated("SIGTERM")

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _widest(params: Sequence[Tensor]) -> torch.dtype:
    dtype = torch.float32
    for param in params:
        dtype = torch.promote_types(dtype, param.dtype)
    return dtype


def _flat(param: Tensor) -> Tensor:
    return (torch.zeros_like(param) if param.grad is None else param.grad).flatten()


def _set_grad(param: Tensor, flat: Tensor) -> None:
    grad = flat.view(param.shape).to(param)
    if param.grad is None:
        param.grad = grad.clone()
    else:
        param.grad.copy_(grad)
