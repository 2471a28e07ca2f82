"""A process in which contestants run, so that threads, memory and faults are theirs alone.

It reads one JSON command a line from its input and answers one a line:

    {"do": "build", "name": ..., "task": {...}}      seconds until the first step was over
    {"do": "time", "name": ..., "num_steps": n}      seconds for n steps, by the clock chosen
    {"do": "memory", "name": ..., "task": {...}}     bytes at the peak of a step, less those before
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_JAX_THREADS = "--xla_cpu_multi_thread_eigen={multi} intra_op_parallelism_threads={threads}"

# Where each contestant is made, and what has to be installed for it.
CONTESTANTS = {
    "networks": ("_peers", "networks", "torch"),
    "pyroflows": ("_peers", "pyroflows_ordinary", "torch"),
    "pyroflows path": ("_peers", "pyroflows_path", "torch"),
    "pyroflows by hand": ("_peers", "pyroflows_by_hand", "torch"),
    "pyroflows compiled": ("_peers", "pyroflows_ordinary_compiled", "torch"),
    "pyroflows path compiled": ("_peers", "pyroflows_path_compiled", "torch"),
    "by hand compiled": ("_peers", "pyroflows_by_hand_compiled", "torch"),
    "CompiledLoss": ("_peers", "pyroflows_loss_compiled", "torch"),
    "zuko": ("_peers", "zuko_step", "zuko"),
    "nflows": ("_peers", "nflows_step", "nflows"),
    "normflows": ("_peers", "normflows_step", "normflows"),
    "pyro": ("_peers", "pyro_step", "pyro"),
    "flowjax": ("_peers_jax", "flowjax_step", "flowjax"),
}

# Other guides of pyroflows, whose cost is measured against the dimension.
SCALED = {
    "realnvp diagonal": ("_peers", "realnvp_diagonal", "torch"),
    "realnvp low rank": ("_peers", "realnvp_low_rank", "torch"),
}
MODELS = ("eight_schools", "german_credit")


def contestants(measure: str, *, compiled: bool) -> list[str]:
    """Who takes part; guides only where there is a posterior, guides alone where it is a model."""
    guides = ["pyroflows", "pyroflows path"]
    guides += ["pyroflows compiled", "pyroflows path compiled"] if compiled else []
    if measure in MODELS:
        return ["networks", *guides, "zuko", "pyro"]
    names = ["networks", *(guides if measure == "energy" else []), "pyroflows by hand"]
    names += ["by hand compiled"] if compiled and "sample" not in measure else []
    names += ["CompiledLoss"] if compiled and measure in ("energy", "log_prob") else []
    return [*names, "zuko", "nflows", "normflows", "pyro", "flowjax"]


def problem(error: Exception) -> str:
    """The first line of an error, for the table."""
    if isinstance(error, ImportError):
        return f"not installed ({error})"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def limit_threads(threads: int, device: str) -> None:
    """Give the process as many cores as threads, before any library is loaded.

    JAX has no other setting that holds for all of its thread pools.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    flags = _JAX_THREADS.format(multi=str(threads > 1).lower(), threads=threads)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    if device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


class Worker:
    """The steps that were built, by name."""

    def __init__(self, threads: int, device: str, clock: str) -> None:
        import pyro
        import torch

        self.clock = CLOCKS[clock]

        torch.set_num_threads(threads)
        pyro.enable_validation(False)  # for torch too; it costs Pyro a good part of its step
        self.device = device
        self.steps: dict[str, Callable[[], object]] = {}

    def answer(self, command: dict) -> dict[str, object]:
        """Do what is asked; a problem is told, so that no contestant ends the race."""
        try:
            return {"value": getattr(self, command.pop("do"))(**command)}
        except Exception as error:
            return {"problem": problem(error)}

    def build(self, name: str, task: dict) -> float:
        import torch

        from tests.benchmarks._peers import Task

        self.steps.pop(name, None)
        module, function, needed = (CONTESTANTS | SCALED)[name]
        import_module(needed)
        torch.manual_seed(0)
        start = time.perf_counter()
        make = getattr(import_module(f"tests.benchmarks.{module}"), function)
        self.steps[name] = make(Task(**task, device=self.device))
        self.time(name, 1)
        return time.perf_counter() - start

    def time(self, name: str, num_steps: int) -> float:
        step = self.steps[name]
        start = self.clock()
        for _ in range(num_steps):
            step()
        self._wait()
        return self.clock() - start

    def _wait(self) -> None:
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()

    def memory(self, name: str, task: dict) -> int:
        """Bytes at the peak of a step above those held before it; libraries are warm."""
        self.build(name, task)
        gc.collect()
        if self.device == "cpu":
            return self._resident_memory(name)
        import torch

        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.time(name, 1)
        return torch.cuda.max_memory_allocated() - before

    def _resident_memory(self, name: str) -> int:
        if not Path("/proc/self/clear_refs").exists():
            raise NotImplementedError("the peak of resident memory can be reset on Linux only")
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        self.time(name, 1)
        return _status("VmHWM") - before


def _status(entry: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return 1024 * int(line.split()[1])
    raise NotImplementedError(f"no {entry} in /proc/self/status")


def serve(worker: Worker, answers: object) -> None:
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    args = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    limit_threads(args.threads, args.device)
    serve(Worker(args.threads, args.device, args.clock), answers)


if __name__ == "__main__":
    main()
