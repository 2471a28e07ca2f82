"""Real data as rows of numbers: files, draws of posteriors, images that scikit-learn has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.benchmarks.posteriordb import Database

__all__ = ["MissingSet", "rows_of"]

_EDGE = 1e-3  # kept from both ends before a logit
_PATCH, _STRIDE = 8, 4


class MissingSet(Exception):
    """What a set needs is not there."""


def rows_of(name: str, folder: Path | None, database: Path | None) -> np.ndarray:
    """The rows of a set: one of scikit-learn's, reference draws, or a file of the folder.

    Raises:
        MissingSet: If what it needs is not there.
    """
    if name in _IMAGES:
        try:
            return _IMAGES[name]()
        except ImportError as error:
            raise MissingSet(f"{name}: pip install {error.name}") from error
    if name in _DRAWS:
        if database is None:
            raise MissingSet(f"{name}: give a clone of posteriordb by --posteriordb")
        posterior, in_logs = _DRAWS[name]
        columns = Database(database).reference(posterior).values()
        rows = np.stack([column.numpy() for column in columns], -1)
        return np.log(rows) if in_logs else rows
    if folder is None or not (folder / f"{name}.csv.gz").is_file():
        raise MissingSet(f"{name}: give the folder of {name}.csv.gz by --path")
    return np.loadtxt(folder / f"{name}.csv.gz", delimiter=",")


def _digits() -> np.ndarray:
    """8 x 8 images of 17 grey levels, dequantised, as logits."""
    from sklearn.datasets import load_digits

    levels = load_digits().data
    share = (levels + np.random.RandomState(0).rand(*levels.shape)) / 17
    share = _EDGE + (1 - 2 * _EDGE) * share
    return np.log(share) - np.log1p(-share)


def _patches() -> np.ndarray:
    """Grey patches of two photographs, less their mean, without the last pixel."""
    from sklearn.datasets import load_sample_images

    random, patches = np.random.RandomState(0), []
    for image in load_sample_images().images:
        grey = image.mean(-1)
        grey = (grey + random.rand(*grey.shape)) / 256
        views = np.lib.stride_tricks.sliding_window_view(grey, (_PATCH, _PATCH))
        patches.append(views[:-1:_STRIDE, :-1:_STRIDE].reshape(-1, _PATCH**2))
    rows = np.concatenate(patches)
    return (rows - rows.mean(1, keepdims=True))[:, :-1]


_IMAGES: dict[str, Callable[[], np.ndarray]] = {"digits": _digits, "patches": _patches}
_DRAWS = {
    "diamonds": ("diamonds-diamonds", False),
    "lotka_volterra": ("hudson_lynx_hare-lotka_volterra", True),
}
