"""Imports point one way: a module may import its own layer and the layers below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "preceptor"
LAYERS = [
    {"core"},
    {"losses", "data", "models", "metrics", "scaling", "simulation"},
    {"composition"},
    {"teachers", "education"},
    {"miniature"},
    {"methods"},
    {"studies.statistics", "studies.tuning", "report"},
    {"training", "task", "trial", "preflight", "result", "distillation"},
    {"studies.study", "studies.workers", "export", "export_check"},
    {"recipe", "progress"},
    {"execute", "caching", "sweeping"},
    {"commands"},
    {"cli"},
]
ANYWHERE = {"catalog", "core.types", ""}  # torch-free leaves


def part_of(module):
    """The name in LAYERS of a module written without the package's name."""
    names = {name for layer in LAYERS for name in layer}
    return next((name for name in names if module == name or module.startswith(f"{name}.")), module)


def level(part):
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("preceptor"):
            yield node.module.removeprefix("preceptor").lstrip(".")
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("preceptor").lstrip(".") for a in node.names if a.name.split(".")[0] == "preceptor")


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py" and p.stem != "catalog"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = part_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    for target in imports(path):
        if target not in ANYWHERE:
            assert level(part_of(target)) <= level(own), f"{own} imports {target}"


def test_siblings_have_no_circle():
    edges = {(part_of(".".join(p.relative_to(PACKAGE).with_suffix("").parts)), part_of(t)) for p in FILES for t in imports(p)}
    parts = LAYERS[1]
    within = {(a, b) for a, b in edges if a in parts and b in parts and a != b}
    while True:
        sources = {a for a, _ in within}
        ends = {(a, b) for a, b in within if b not in sources}
        if not ends:
            break
        within -= ends
    assert not within


@pytest.mark.parametrize("module", ["preceptor", "preceptor.cli", "preceptor.catalog"])
def test_light_modules_load_no_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
