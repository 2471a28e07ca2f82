"""Independent pieces of work: in several processes, noted in a file, and shown by a bar."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["Notes", "run_all"]

Work = Callable[[int], dict[str, Any]]

_WORK: Work | None = None  # of this process, where it is a worker


class Notes:
    """What was done, a line of JSON each, after a line with the facts that it depends on.

    Args:
        path: The file; None keeps notes in memory alone.
        facts: What must be the same to go on.

    Raises:
        ValueError: If the file has other facts, or is none of these.
    """

    def __init__(self, path: str | os.PathLike | None, facts: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.done: dict[int, dict[str, Any]] = {}
        facts = json.loads(json.dumps(facts))
        if self.path is None:
            return
        if self.path.exists() and self.path.stat().st_size:
            self._read(facts)
        else:
            self.path.write_text(json.dumps({"facts": facts}) + "\n")

    def _read(self, facts: dict[str, Any]) -> None:
        text = self.path.read_text()
        try:
            first, *rest = [json.loads(line) for line in text.splitlines()[: text.count("\n")]]
            found = first["facts"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"checkpoint {self.path} is no file of simulations; give another name."
            ) from error
        others = sorted(k for k in found.keys() | facts.keys() if found.get(k) != facts.get(k))
        if others:
            told = ", ".join(f"{k}: {found.get(k)!r} there, {facts.get(k)!r} here" for k in others)
            raise ValueError(
                f"checkpoint {self.path} is of other simulations ({told}); give another name, or "
                "remove it."
            )
        self.done = {note["index"]: note for note in rest}
        if not text.endswith("\n"):  # cut off within a line
            self.path.write_text(text[: text.rfind("\n") + 1])

    def add(self, note: dict[str, Any]) -> None:
        """Keep what came of one piece."""
        self.done[note["index"]] = note
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(note) + "\n")


def run_all(
    work: Work, indices: Sequence[int], notes: Notes, *, num_workers: int, title: str, shown: bool
) -> bool:
    """Do all pieces that are not done yet; Ctrl-C keeps those that are. Return whether all are."""
    from tqdm.auto import tqdm

    left = [index for index in indices if index not in notes.done]
    bar = tqdm(total=len(indices), initial=len(indices) - len(left), desc=title, disable=not shown)
    try:
        with bar, _results(work, left, num_workers) as results:
            for note in results:
                notes.add(note)
                bar.update()
    except KeyboardInterrupt:
        return False
    return True


@contextmanager
def _results(
    work: Work, left: Sequence[int], num_workers: int
) -> Iterator[Iterator[dict[str, Any]]]:
    if num_workers == 1 or len(left) < 2:
        yield map(work, left)
        return
    context = multiprocessing.get_context(_start_method())
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads. The workers use one thread each, and no lock
        # is held here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = context.Pool(min(num_workers, len(left)), _begin, (work,))
    with pool:
        yield pool.imap_unordered(_call, left)


def _start_method() -> str:
    """Fork where that is sound: models of a notebook and lambdas need no pickling then."""
    return "fork" if sys.platform == "linux" and not torch.cuda.is_initialized() else "spawn"


def _begin(work: Work) -> None:
    global _WORK
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the parent, who stops the pool
    torch.set_num_threads(1)
    _WORK = work


def _call(index: int) -> dict[str, Any]:
    return _WORK(index)
