"""The traps of installing three top-level folders as one namespace, each with its control."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import skip_without

ROOT = Path(__file__).parent.parent
PARTS = ("models", "training", "analysis")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str, *, cwd: Path) -> str:
    """Run ``code`` in a fresh interpreter started in ``cwd`` and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def files_of_the_project() -> list[str]:
    """Return what git tracks, or would track if it were added; skip outside a checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        skip_without("a git checkout")
    listed = subprocess.run(
        # A checkout may belong to another user than the one who tests it.
        ["git", "-c", "safe.directory=*", "ls-files", "-coz", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


def test_the_wheel_holds_every_file_of_the_three_folders(tmp_path: Path) -> None:
    """A package that the mapping leaves out works editable and is missing from the wheel.

    The planted nested package is the control: it must be the one thing that is missing.
    """
    planted = "models/nested/extra.py"
    copy = tmp_path / "copy"
    names = files_of_the_project()
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    (copy / planted).parent.mkdir()
    (copy / planted).touch()

    build = "from setuptools import build_meta; build_meta.build_wheel('wheel')"
    python(build, cwd=copy)
    (wheel,) = (copy / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]

    wanted = {
        f"tunecast/{name}"
        for name in [*names, planted]
        if name.split("/")[0] in PARTS
        and (
            name.endswith((".py", "/py.typed"))
            or name.startswith(("models/data/", "analysis/report/templates/"))
        )
    }
    assert {f"tunecast/{part}/py.typed" for part in PARTS} <= wanted
    assert "tunecast/models/data/ladder.csv" in wanted
    assert "tunecast/analysis/report/templates/page.js" in wanted
    assert wanted - packed == {f"tunecast/{planted}"}
    assert packed - wanted == set()
    assert licences


@pytest.mark.parametrize(
    ("code", "banned"),
    [
        ("import models.laws\n\nmodels.laws\n", True),
        ("from training import runs\n\nruns\n", True),
        ("from analysis.cli import main\n\nmain\n", True),
        ("from .runs import Run\n\nRun\n", True),
        ("from tunecast.models.runs import Run\n\nRun\n", False),
    ],
)
@pytest.mark.parametrize("folder", [*PARTS, "tests"])
def test_the_folders_are_imported_by_their_full_name(code: str, banned: bool, folder: str) -> None:
    command = ["ruff", "check", "--select", "TID", "--stdin-filename", f"{folder}/x.py", "-"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, input=code, capture_output=True, text=True
    )
    assert ("TID25" in done.stdout) == banned, done.stdout + done.stderr


@pytest.mark.parametrize("stray", [None, "tunecast", "tunecast/other"])
def test_a_folder_of_the_same_name_does_not_hide_the_package(
    tmp_path: Path, stray: str | None
) -> None:
    """``tunecast`` is a namespace: any folder of that name on the path joins it."""
    if stray is not None:
        (tmp_path / stray).mkdir(parents=True)
    code = "import tunecast.models.runs as runs; print(runs.__file__)"
    assert Path(python(code, cwd=tmp_path)) == ROOT / "models" / "runs" / "__init__.py"


def test_the_version_is_that_of_the_metadata() -> None:
    assert importlib.metadata.version("tunecast") == PROJECT["project"]["version"]
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()
    sources = [path for part in PARTS for path in (ROOT / part).glob("*.py")]
    assigned = [path for path in sources if "__version__ =" in path.read_text()]
    assert assigned == [], "a second place for the version"


@pytest.mark.parametrize("part", PARTS)
def test_type_checkers_see_the_folder_itself(part: str) -> None:
    link = ROOT / "typings" / "tunecast" / part
    assert link.resolve() == ROOT.resolve() / part
    assert not Path(os.readlink(link)).is_absolute()


def test_the_run_table_needs_neither_sampler_nor_torch(tmp_path: Path) -> None:
    code = "import sys, tunecast.models.runs; print(sorted({'pymc', 'torch'} & {*sys.modules}))"
    assert python(code, cwd=tmp_path) == "[]"


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
