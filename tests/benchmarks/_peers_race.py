"""Contestants take turns, so that a noisy machine is noisy for all; ratios are taken by round."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
_WARM_UP_STEPS = 3


class ContestantError(RuntimeError):
    """A contestant is not installed, cannot do the task, or failed at it."""


class WorkerProcess:
    """A process that runs contestants."""

    def __init__(self, threads: int, device: str, clock: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks._peers_worker"]
        command += ["--threads", str(threads), "--device", device, "--clock", clock]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, action: str, name: str, **arguments: object) -> float:
        """Send a command and wait for its answer."""
        try:
            command = json.dumps({"do": action, "name": name, **arguments})
            print(command, file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContestantError(f"its process ended with code {self._process.wait()}")
        reply = json.loads(line)
        if "problem" in reply:
            raise ContestantError(reply["problem"])
        return reply["value"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Stable:
    """One process for torch and one for JAX, each started when first needed."""

    def __init__(self, threads: int = 1, device: str = "cpu", clock: str = "wall") -> None:
        self._options = threads, device, clock
        self._workers: dict[str, WorkerProcess] = {}

    def of(self, name: str) -> WorkerProcess:
        framework = "jax" if name == "flowjax" else "torch"
        if framework not in self._workers:
            self._workers[framework] = WorkerProcess(*self._options)
        return self._workers[framework]

    def peak_memory(self, name: str, task: dict) -> float:
        """In a fresh process: what one contestant leaves behind is no help to the next."""
        with WorkerProcess(*self._options) as worker:
            return worker.ask("memory", name, task=task)

    def __enter__(self) -> Stable:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers.values():
            worker.close()


@dataclass
class Result:
    """Seconds a step, one number a round; empty if there was a problem."""

    name: str
    start_up: float = 0.0
    seconds: list[float] = field(default_factory=list)
    problem: str = ""

    def ratio_to(self, other: Result) -> tuple[float, float, float]:
        """Median, lowest and highest of the ratios by round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        ratios = sorted(mine / theirs for mine, theirs in pairs)
        return statistics.median(ratios), ratios[0], ratios[-1]


def race(
    stable: Stable, names: Sequence[str], task: dict, *, num_rounds: int, turn: float
) -> dict[str, Result]:
    """Time all contestants in turns of about ``turn`` seconds each."""
    results = {name: Result(name) for name in names}
    num_steps: dict[str, int] = {}
    for name, result in results.items():
        try:
            result.start_up = stable.of(name).ask("build", name, task=task)
            warm = stable.of(name).ask("time", name, num_steps=_WARM_UP_STEPS)
            num_steps[name] = max(1, round(turn * _WARM_UP_STEPS / warm))
        except ContestantError as error:
            result.problem = str(error)
    for i in range(num_rounds):
        order = list(num_steps) if i % 2 == 0 else list(reversed(num_steps))
        for name in order:
            seconds = stable.of(name).ask("time", name, num_steps=num_steps[name])
            results[name].seconds.append(seconds / num_steps[name])
    return results


def rows_of(
    results: dict[str, Result], references: Sequence[str], **what: object
) -> list[dict[str, object]]:
    """A flat row for each contestant: milliseconds, and ratios to the references."""
    rows = []
    for name, result in results.items():
        row: dict[str, object] = {**what, "contestant": name, "problem": result.problem or None}
        if result.seconds:
            row |= {
                "ms": 1e3 * statistics.median(result.seconds),
                "ms_lowest": 1e3 * min(result.seconds),
                "ms_highest": 1e3 * max(result.seconds),
                "start_up_seconds": result.start_up,
            }
        for reference in references:
            other = results.get(reference)
            if result.seconds and other is not None and other.seconds:
                keys = [f"to_{reference}{end}" for end in ("", "_lowest", "_highest")]
                row |= dict(zip(keys, result.ratio_to(other), strict=True))
        rows.append(row)
    return rows


def print_rows(title: str, rows: Sequence[dict[str, object]], references: Sequence[str]) -> None:
    """A table for people: medians, the spread of each ratio in brackets."""
    heads = ["ms a step", *(f"ratio to {name}" for name in references), "start s"]
    print(f"\n{title}\n{'':24}" + "".join(f"{head:>22}" for head in heads))
    for row in rows:
        name = f"{row['contestant']:24}"
        if row["problem"]:
            print(f"{name}  {row['problem']}")
            continue
        cells = [f"{row['ms']:.3f} ({row['ms_lowest']:.3f}-{row['ms_highest']:.3f})"]
        cells += [_ratio_text(row, f"to_{reference}") for reference in references]
        cells += [f"{row['start_up_seconds']:.1f}"]
        print(name + "".join(f"{cell:>22}" for cell in cells), flush=True)


def _ratio_text(row: dict[str, object], key: str) -> str:
    if key not in row:
        return "-"
    return f"{row[key]:.2f} ({row[f'{key}_lowest']:.2f}-{row[f'{key}_highest']:.2f})"
