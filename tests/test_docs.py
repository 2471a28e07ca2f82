"""The documentation is part of the suite: what it shows is run, what it states is compared.

Every ``python`` block of the README and of the pages under ``docs/`` is executed, the blocks of
one page one after the other in one namespace, as a reader would. Every docstring's examples are
executed, and the pages are built with each warning an error.
"""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyroflows as pf
from pyroflows.flows import registry
from tests.cases import BUILT_IN

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
NEEDS_ARVIZ = re.compile(
    r"arviz|to_inference_data|compare_|plot_|marginal_distances|predictive_p|from_mcmc|write_report"
)
# Their code makes the figures of the documentation, so that building it runs them anyway.
DRAWN_BY_THE_BUILD = ("docs/how-to/compare-guides-and-mcmc.md", "docs/how-to/can-i-trust.md")


def python_blocks(text):
    """Return the ``python`` blocks of a page, each moved down to its own line numbers."""
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match.group(1)
        for match in BLOCK.finditer(text)
    ]


def case(name, value, text):
    """Make a case of a test, one that is asked of both ArviZ majors if its code uses ArviZ."""
    marks = [pytest.mark.arviz] if NEEDS_ARVIZ.search(text) else []
    marks += [pytest.mark.slow] if name in DRAWN_BY_THE_BUILD else []
    return pytest.param(value, id=name, marks=marks)


def page_cases():
    for page in PAGES:
        code = "".join(python_blocks(page.read_text()))
        if code:
            yield case(str(page.relative_to(ROOT)), page, code)


def docstring_cases():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages(pf.__path__, "pyroflows."):
        module = importlib.import_module(info.name)
        for test in finder.find(module, info.name):
            if test.examples:
                yield case(test.name, test, test.docstring)


@pytest.fixture(autouse=True)
def fresh_start(request, tmp_path, monkeypatch):
    """Give each page and docstring its own folder, seed, parameters and set of flows."""
    if request.node.get_closest_marker("arviz"):
        pytest.importorskip("arviz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(registry, "_FLOWS", dict(registry._FLOWS))
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("page", [*page_cases()])
def test_code_of_page_runs(page):
    namespace = {"__name__": "__main__"}
    for block in python_blocks(page.read_text()):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("example", [*docstring_cases()])
def test_example_of_docstring_runs(example):
    example.globs.update(torch=torch, pyro=pyro, dist=dist, pf=pf)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    report = []
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_links_of_page_lead_somewhere(page):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


def test_every_public_name_is_in_the_reference():
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r":: pyroflows\.(\w+)$", text, re.MULTILINE))
    assert set(pf.__all__) - documented == set()


def test_table_of_flows_in_readme_is_what_the_code_does(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    table = importlib.import_module("flow_table").flow_table()
    assert table in (ROOT / "README.md").read_text()


def test_the_gallery_has_a_picture_and_a_row_for_each_flow(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    shown = importlib.import_module("flow_table").flow_gallery()
    numbers = (ROOT / "docs" / "reference" / "gallery.md").read_text()
    for name in BUILT_IN:
        assert f"### `{name}`" in shown, f"draw it: python examples/gallery.py --flows {name}"
        assert f"\n| `{name}` |" in numbers, "measure it: python -m tests.benchmarks.families"


def test_the_build_draws_the_figures_of_pages_that_are_not_run_otherwise(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    pages = importlib.import_module("page_figures").PAGES
    assert tuple(f"docs/{page}" for page in pages) == DRAWN_BY_THE_BUILD


def test_checks_install_and_test_as_the_readme_says():
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    command = re.search(r"^python3.*pytest.*$", readme, re.MULTILINE).group()
    steps = re.findall(r"-m (?:pip install )?(\S.*?)(?: &&|$)", command)
    assert steps == ["venv .venv", "torch==2.13.0", '-e ".[test]"', 'pytest -n 2 -m "not slow"']
    assert all(step.removesuffix(" .venv") in script for step in steps)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")),
    reason="the documentation is not built: install pyroflows[docs]",
)
def test_documentation_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E"]
    command += ["-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "html")]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    assert (tmp_path / "html" / "index.html").exists()
