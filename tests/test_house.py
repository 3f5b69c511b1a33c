"""The house: imports run one way, nobody uses another's private names, files stay small.

Every import counts, those inside functions and under TYPE_CHECKING too. Each check has a planted
fault that it must find.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("models", "training", "analysis")

# From the ground up: a module imports from its own floor and those before it.
FLOORS = (
    "errors", "files", "runs", "laws", "pointfits", "hierarchy", "compile", "inference", "checks",
    "questions", "planning", "fits", "api",
)  # fmt: skip
# What the others may import of `models`, and of one another.
TRAINING_IMPORTS = ("errors", "files", "runs")


def sources() -> dict[str, str]:
    """Text of every module of the package by name."""
    found = {}
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[f"tunecast.{dotted}".removesuffix(".__init__")] = path.read_text()
    return found


def imports(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which modules each one imports; a package counts where something of its own is taken."""
    found: dict[str, set[str]] = {}
    for name, text in sources.items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                known = parts & sources.keys()
                targets |= known
                if len(known) < len(parts):
                    targets.add(node.module)
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
        found[name] = {t for t in targets if t in sources and t != name}
    return found


def circles(edges: Mapping[str, set[str]]) -> list[set[str]]:
    """Modules that import one another, over however many steps."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in edges.get(waiting.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return seen

    beyond = {name: reached(name) for name in edges}
    found: list[set[str]] = []
    for name in edges:
        ring = {other for other in beyond[name] if name in beyond.get(other, ())}
        if ring and ring not in found:
            found.append(ring)
    return found


def floor(module: str) -> int:
    """On which floor of `models` a module lies; the package itself is on top."""
    parts = module.split(".")
    return FLOORS.index(parts[2]) if len(parts) > 2 else len(FLOORS)


def arrows_up(edges: Mapping[str, set[str]]) -> Iterator[str]:
    """Imports that run against the order."""
    for module, targets in edges.items():
        for target in targets:
            a, b = module.split(".")[1], target.split(".")[1]
            up = PARTS.index(a) < PARTS.index(b)
            if a == b == "models":
                up = floor(module) < floor(target)
            elif (a, b) == ("training", "models"):
                up = target.split(".")[2] not in TRAINING_IMPORTS
            if up:
                yield f"{module} imports {target}"


def private_uses(name: str, text: str) -> Iterator[str]:
    """Private names that a module uses and does not define."""
    tree = ast.parse(text)
    own: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.keyword) and node.arg:
            own.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            own.add(node.value)  # slots
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            used = [alias.name for alias in node.names if _is_private(alias.name)]
            yield from (f"{name} imports {u} of {node.module}" for u in used)
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own:
            yield f"{name} uses .{node.attr}"


# Names of others that begin with an underscore all the same: Python documents the first, and
# transformers has no other words for which attention a model uses.
OTHERS = {"_exit", "_supports_attention_backend", "_attn_implementation"}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in OTHERS


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(imports(sources())) == []


def test_imports_run_down() -> None:
    assert sorted(arrows_up(imports(sources()))) == []


def test_every_part_of_models_has_its_floor() -> None:
    """Names of files and folders alone, so that a new one is given a place."""
    entries = {p.stem for p in (ROOT / "models").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert entries - {"__init__", "__pycache__", "data", "py"} == set(FLOORS)


def test_private_names_stay_at_home() -> None:
    found = [use for name, text in sources().items() for use in private_uses(name, text)]
    assert found == []


@pytest.mark.parametrize("part", PARTS)
def test_a_file_is_one_idea(part: str) -> None:
    lines = {p: len(p.read_text().splitlines()) for p in (ROOT / part).rglob("*.py")}
    assert [str(p) for p, n in lines.items() if n > 400] == []
    assert median(lines.values()) < 200


PLANTED = {
    "tunecast.models.runs.a": "def f():\n    from tunecast.models.laws import b\n",
    "tunecast.models.laws.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
    "    from tunecast.models.runs.a import f\n",
    "tunecast.models.laws": "",
    "tunecast.training.c": "import tunecast.models.laws.b\n",
    "tunecast.models.fits": "from tunecast.analysis.d import x\n",
    "tunecast.analysis.d": "x = 1\n",
}


def test_planted_circles_and_arrows_are_found() -> None:
    edges = imports(PLANTED)
    assert circles(edges) == [{"tunecast.models.runs.a", "tunecast.models.laws.b"}]
    assert sorted(arrows_up(edges)) == [
        "tunecast.models.fits imports tunecast.analysis.d",
        "tunecast.models.runs.a imports tunecast.models.laws.b",
        "tunecast.training.c imports tunecast.models.laws.b",
    ]


def test_planted_uses_of_private_names_are_found() -> None:
    text = (
        "from x import _y\nimport z\n\nclass A:\n    def _own(self): return self._own\n\n"
        "def f(a): return a._theirs + z._w\n"
    )
    found = sorted(private_uses("m", text))
    assert found == ["m imports _y of x", "m uses ._theirs", "m uses ._w"]


def loaded(code: str) -> set[str]:
    """Modules of the package that are loaded after some code ran in a fresh interpreter."""
    show = f"import sys; {code}; print(*[m for m in sys.modules if m.startswith('tunecast.')])"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_run_table_is_loaded_alone() -> None:
    """And the package itself loads nothing; the control loads more than the run table."""
    assert loaded("import tunecast.models") == {"tunecast.models"}
    light = loaded("import tunecast.models.runs")
    allowed = ("tunecast.models.runs", "tunecast.models.errors", "tunecast.models.files")
    assert all(m == "tunecast.models" or m.startswith(allowed) for m in light)
    heavy = loaded("from tunecast.models import fit")
    assert any(m.startswith("tunecast.models.hierarchy") for m in heavy)
