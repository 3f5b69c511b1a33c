"""Sweeps from the command line, and what interrupts them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import importorskip

importorskip("torch")
importorskip("peft")
importorskip("transformers")

from sweep_cases import TIMED

from tunecast.analysis import cli
from tunecast.models.runs import read_runs
from tunecast.training.recipes import Recipe

# One run at a time in this process, unless a test says otherwise.
pytestmark = pytest.mark.usefixtures("places")


@pytest.fixture
def recipe_file(recipe: Recipe, tmp_path: Path) -> str:
    """The recipe as a file that the command line can be given."""
    base, task = recipe.cells[0].base, recipe.cells[0].task
    path = tmp_path / "recipe.py"
    path.write_text(
        "from tunecast.training.base_models import Hub\n"
        "from tunecast.training.methods import *\n"
        "from tunecast.training.recipes import Recipe, grid\n"
        "from tunecast.training.budget import Budget\n"
        "from tunecast.training.tasks import TaskSource\n"
        "def recipe():\n"
        f"    task, base = {task!r}, {base!r}\n"
        "    cells = grid([task], [base], [FMT(), LoRA(2), Prompt(3)], (8, 24, 72))\n"
        f"    return Recipe(name='test', cells=cells, seeds=(0, 1), rates={dict(recipe.rates)!r},\n"
        f"                  budget={recipe.budget!r})\n"
    )
    return f"{path}:recipe"


def command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    out, err = capsys.readouterr()
    return left.value.code, out, err


def test_a_dry_run_makes_nothing(
    recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "runs.csv"
    code, out, err = command(["sweep", recipe_file, "-o", str(table), "--dry-run"], capsys)
    assert code == 0
    assert "words" in out
    assert "18 runs, " in err
    assert not table.exists()


@pytest.mark.parametrize(
    ("recipe_name", "table", "sentence"),
    [
        ("huge", "runs.csv", "there is no recipe 'huge'"),
        ("tiny", "gone/runs.csv", "there is no folder"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    recipe_name: str, table: str, sentence: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, _, err = command(["sweep", recipe_name, "-o", str(tmp_path / table)], capsys)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1


def test_a_base_model_that_is_not_there_is_one_sentence_too(
    recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(recipe_file.removesuffix(":recipe"))
    path.write_text(
        path.read_text().replace("Hub(name='small', path='", "Hub(name='small', path='/gone")
    )
    table = tmp_path / "runs.csv"
    code, _, err = command(["sweep", recipe_file, "-o", str(table)], capsys)
    assert code == 2
    assert "cannot be loaded from '/gone" in err
    assert err.count("\n") == 1
    assert not table.exists()


# --------------------------------------------------------------------------- interrupts


def rows_in(table: Path) -> int:
    return len(read_runs(table)) if table.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_loses_at_most_the_runs_under_way(
    recipe_file: str, tmp_path: Path, how: signal.Signals
) -> None:
    path = Path(recipe_file.removesuffix(":recipe"))
    # Many runs, or the last is written before the signal is sent.
    path.write_text(path.read_text().replace("seeds=(0, 1)", "seeds=range(8)"))
    arguments = [sys.executable, "-m", "tunecast.analysis.cli", "sweep", recipe_file, "-o"]
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    environment = {**os.environ, "TUNECAST_CACHE": str(tmp_path / "cache")}
    subprocess.run([*arguments, str(whole)], check=True, env=environment)
    started = subprocess.Popen(
        [*arguments, str(cut), "--workers", "2"], env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while rows_in(cut) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    if how == signal.SIGINT:  # Ctrl-C reaches the whole group of a terminal
        os.killpg(started.pid, how)
    else:
        os.kill(started.pid, how)
    assert started.wait(30) in (130, -how)
    assert 3 <= rows_in(cut) < 72
    subprocess.run([*arguments, str(cut), "--workers", "2"], check=True, env=environment)
    first, second = (
        read_runs(path).drop(columns=TIMED).sort_values("run_id") for path in (whole, cut)
    )
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))


@pytest.mark.slow
def test_the_tiny_recipe_gives_a_table_that_can_be_fitted(tmp_path: Path) -> None:
    table, fit = tmp_path / "tiny.csv", tmp_path / "fit.nc"
    arguments = [sys.executable, "-m", "tunecast.analysis.cli"]
    environment = {**os.environ, "TUNECAST_CACHE": str(tmp_path / "cache")}
    sweep_ = [*arguments, "sweep", "tiny", "-o", str(table), "--workers", "2"]
    subprocess.run(sweep_, check=True, env=environment)
    assert (read_runs(table)["status"] == "done").sum() >= 24
    subprocess.run([*arguments, "fit", str(table), "-o", str(fit)], check=True)
