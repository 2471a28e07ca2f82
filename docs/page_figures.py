"""Figures of pages, made by the code on these pages while the documentation is built."""

import contextlib
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = ("how-to/compare-guides-and-mcmc.md", "how-to/can-i-trust.md")


def make_figures(docs):
    """Run the code of each page in an empty folder, and keep the pictures that it saves."""
    target = docs / "images" / "built"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for page in PAGES:
        with tempfile.TemporaryDirectory() as folder, _at(folder), _quiet():
            namespace = {"__name__": "__main__"}
            for block in BLOCK.findall((docs / page).read_text()):
                exec(compile(block, page, "exec"), namespace)
            for picture in sorted(Path(folder).glob("*.png")):
                shutil.copy(picture, target)


@contextlib.contextmanager
def _at(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _quiet():
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
