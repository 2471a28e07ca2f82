"""The layers of the package: a module imports only from layers below its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyroflows

LAYERS = [
    {"compiling", "inference_mode", "monotone", "supports"},
    {"networks", "transformers", "numerics", "memory", "psis", "stick_breaking"},
    {"bijector"},
    {"bijectors"},
    {"flows", "bases"},
    {"arguments", "latents", "energy"},
    {"log_density"},
    {"guides"},
    {"infer"},
    {"density"},
    {"diagnostics"},
    {"__main__"},
]
# A method that a user looks for on what a fit returned, though it is made of what lies above:
# imported when it is called, and nowhere else.
UPWARD = {("infer/report.py", "diagnostics")}
ROOT = Path(pyroflows.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
LAZY = {"arviz", "matplotlib", "pandas", "tqdm", "xarray", "zuko"}


def layer(name: str) -> int:
    found = [i for i, names in enumerate(LAYERS) if name in names]
    assert found, f"{name} is in no layer: say in LAYERS where it belongs"
    return found[0]


def package_imports(path: Path) -> set[str]:
    """First names of the modules of this package that a file imports."""
    depth = len(path.relative_to(ROOT).parts)
    return {
        module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == depth
        for module in ([node.module.split(".")[0]] if node.module else [a.name for a in node.names])
    }


def top_package_imports(path: Path) -> set[str]:
    """The same, of what a file imports as soon as it is imported itself."""
    depth = len(path.relative_to(ROOT).parts)
    return {
        node.module.split(".")[0]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom) and node.level == depth and node.module
    }


def top_imports(path: Path) -> set[str]:
    """First names of what a file imports as soon as it is imported itself."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_layers_below(path: Path):
    module = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if module == "__init__":
        return
    for name in package_imports(path) - {"__version__"}:
        if (str(path.relative_to(ROOT)), name) in UPWARD:
            assert name not in top_package_imports(path)
            continue
        assert layer(name) < layer(module), f"{path} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_only_some_users_need_is_imported_where_it_is_used(path: Path):
    assert not top_imports(path) & (LAZY - {"tqdm"})


@pytest.mark.parametrize("name", ["compiling", "networks", "transformers", "numerics", "memory"])
def test_the_lowest_layer_knows_nothing_of_pyro(name: str):
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0].removesuffix(".py") == name:
            assert "pyro" not in top_imports(path)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path):
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body
            is_doc = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
            first = body[1] if is_doc and len(body) > 1 else body[0]
            length = node.end_lineno - first.lineno + 1
            assert length <= 40, f"{path.name}: {node.name} has {length} lines"


def test_public_names_exist_and_are_documented():
    assert sorted(pyroflows.__all__) == pyroflows.__all__
    for name in pyroflows.__all__:
        assert getattr(pyroflows, name).__doc__, name


def test_import_changes_no_global_setting():
    code = (
        "import torch, pyro, warnings\n"
        "before = torch.get_default_dtype(), torch.get_rng_state().sum(), len(warnings.filters)\n"
        "import pyroflows, sys\n"
        "after = torch.get_default_dtype(), torch.get_rng_state().sum(), len(warnings.filters)\n"
        "assert before == after\n"
        "assert not {'arviz', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not list(pyro.get_param_store().keys())\n"
    )
    root = str(ROOT.parent)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
