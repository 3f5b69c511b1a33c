"""How the files of analysis/ hang together: imports run one way, and private names stay private."""

import ast
import os
import shutil
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import skip_without

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "analysis").rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the module's full name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("tunecast", *(part for part in parts if part != "__init__")))


def imported(tree: ast.AST) -> list[tuple[str, str]]:
    """Return module and name of everything that is imported, wherever it stands."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found += [(node.module or "", item.name) for item in node.names]
        elif isinstance(node, ast.Import):
            found += [(item.name, "") for item in node.names]
    return found


def test_imports_run_one_way() -> None:
    modules = {name_of(path): ast.parse(path.read_text()) for path in FILES}
    needs: dict[str, set[str]] = {}
    for name, tree in modules.items():
        needs[name] = {
            f"{module}.{item}" if f"{module}.{item}" in modules else module
            for module, item in imported(tree)
        } & {*modules}
    assert sum(map(len, needs.values())) > 100
    TopologicalSorter(needs).prepare()  # raises where modules need each other in a circle


def test_private_names_stay_in_their_module() -> None:
    for path in FILES:
        for module, item in imported(ast.parse(path.read_text())):
            parts = [*module.split("."), item]
            assert not any(p.startswith("_") for p in parts if p != "__future__"), path


def test_a_forecast_is_made_anew_when_any_file_changes() -> None:
    """The Makefile lists what 'make forecast' depends on, without byte code."""
    if shutil.which("make") is None:
        skip_without("make")
    done = subprocess.run(
        ["make", "--print-data-base", "--question", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "MAKEFLAGS": ""},  # it may be make that runs the tests
    )
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("forecasts/.made:")]
    listed = {name for name in line.split() if name.startswith(("models/", "analysis/"))}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in ("models", "analysis")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert listed == wanted
    assert "analysis/report/templates/page.js" in listed
