"""Sweeps: what is run, what is skipped, what a failure costs, and what is refused."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import importorskip

torch = importorskip("torch")
importorskip("peft")
importorskip("transformers")

from tunecast.analysis import cli
from tunecast.models.errors import TunecastError
from tunecast.models.runs import digest, read_runs
from tunecast.training import sweep as sweeps
from tunecast.training.examples import Budget
from tunecast.training.ladder import Hub
from tunecast.training.methods import FMT, LoRA, Prompt
from tunecast.training.recipes import Recipe, find_recipe, grid, ladder, tiny, zhang2024
from tunecast.training.sweep import (
    Setting,
    claimed,
    forecast_cost,
    jobs_of,
    planned,
    sweep,
    work,
)
from tunecast.training.tasks import TaskSource

METHODS = (FMT(), LoRA(rank=2), Prompt(length=3))
# What differs from one time to the next; a rate that is known is not searched again.
TIMED = ["gpu_seconds", "tokens_per_second", "search_flops"]


@pytest.fixture
def recipe(small_base: Hub, words_task: TaskSource) -> Recipe:
    return Recipe(
        name="test",
        cells=grid([words_task], [small_base], METHODS, (8, 24)),
        seeds=(0, 1),
        rates={"fmt": (1e-3, 1e-2), "lora": (1e-3, 1e-2), "prompt": (1e-2, 1e-1)},
        budget=Budget(
            epochs=1, examples=1, batch=8, evaluations=2, dev_examples=4, test_examples=8
        ),
    )


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many runs train side by side in this process, one unless a test says otherwise."""

    def say(count: int) -> None:
        monkeypatch.setattr(sweeps, "places_for", lambda *_: count)

    say(1)
    return say


def all_of(recipe: Recipe, table: str | Path, cache: Path) -> pd.DataFrame:
    """Run a recipe in this process."""
    for job in jobs_of(recipe, table):
        work([job], Setting(recipe.budget, table, cache))
    return read_runs(table)


def test_a_sweep_makes_every_row_once(recipe: Recipe, tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    found = sweep(recipe, table, cache=tmp_path)
    assert (found.made, found.skipped, found.failures) == (12, 0, ())
    rows = read_runs(table, columns=["model_size", "finetune_examples"])
    assert list(rows["run_id"]) == [cell.run_id(s) for cell in recipe.cells for s in (0, 1)]
    assert (rows["status"] == "done").all()
    assert (rows["rate_candidates"] == 2).all()
    assert set(rows["method"]) == {"fmt", "lora", "prompt"}
    assert set(rows["pet_params"]) == {0.0, 2 * 512.0, 48.0}
    first, second = (rows[rows["seed"] == seed] for seed in (0, 1))
    assert list(first["learning_rate"]) == list(second["learning_rate"])

    again = sweep(recipe, table, cache=tmp_path)
    assert (again.made, again.skipped) == (0, 12)


def test_a_table_that_was_cut_short_is_completed_alike(recipe: Recipe, tmp_path: Path) -> None:
    """Whatever rows are there: the others come out as if nothing had happened."""
    whole, half = tmp_path / "whole.csv", tmp_path / "half.csv"
    rows = all_of(recipe, whole, tmp_path)
    lines = whole.read_text().splitlines(keepends=True)
    half.write_text("".join(lines[:4]))
    assert [len(job.seeds) for job in jobs_of(recipe, half)] == [1, 2, 2, 2, 2]
    completed = all_of(recipe, half, tmp_path)
    pd.testing.assert_frame_equal(rows.drop(columns=TIMED), completed.drop(columns=TIMED))


def test_side_by_side_gives_the_rows_of_one_by_one(
    recipe: Recipe, tmp_path: Path, places: Callable[[int], None]
) -> None:
    """Whole groups of cells in four places, some rows already there, a rate that diverges."""
    mixed = replace(recipe, rates={**recipe.rates, "lora": (1e-3, math.inf)})
    solo, table = all_of(mixed, tmp_path / "solo.csv", tmp_path), tmp_path / "stacked.csv"
    lines = (tmp_path / "solo.csv").read_text().splitlines(keepends=True)
    table.write_text("".join([lines[0], lines[1], lines[12]]))
    places(4)
    groups = sweeps.groups_of(jobs_of(mixed, table), "cuda")
    assert [[job.cell.method.label for job in group] for group in groups] == [
        ["fmt"] * 2, ["lora"] * 2, ["prompt"] * 2
    ]  # fmt: skip
    for group in groups:
        assert work(group, Setting(mixed.budget, table, tmp_path)) == []
    stacked = read_runs(table).set_index("run_id").loc[solo["run_id"]].reset_index()
    pd.testing.assert_frame_equal(
        solo.drop(columns=TIMED), stacked.drop(columns=TIMED), rtol=0, atol=1e-5
    )
    assert len(sweeps.groups_of(jobs_of(mixed, tmp_path / "none.csv"), "cpu")) == 6


def test_a_stack_that_fails_goes_on_one_by_one(
    recipe: Recipe, tmp_path: Path, places: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = sweeps.run_stack

    def failing(*args: Any, **kwargs: Any) -> Any:
        made = plain(*args, **kwargs)
        yield next(made)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sweeps, "run_stack", failing)
    places(4)
    table = tmp_path / "runs.csv"
    with pytest.warns(UserWarning, match="runs go on one by one: out of memory"):
        assert work(jobs_of(recipe, table)[:2], Setting(recipe.budget, table, tmp_path)) == []
    assert sorted(read_runs(table)["run_id"]) == sorted(
        cell.run_id(seed) for cell in recipe.cells[:2] for seed in (0, 1)
    )


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "failed", "out of memory: CUDA"),
        (RuntimeError("no kernel"), "failed", "RuntimeError: no kernel"),
    ],
)
def test_a_failed_run_is_a_row_and_the_sweep_goes_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception, status: str, reason: str,
) -> None:  # fmt: skip
    plain = sweeps.run

    def failing(*args: Any, **kwargs: Any) -> Any:
        if kwargs["examples"] == 8 and kwargs["seed"] == 0:
            raise error
        return plain(*args, **kwargs)

    monkeypatch.setattr(sweeps, "run", failing)
    rows = all_of(recipe, tmp_path / "runs.csv", tmp_path)
    failed = rows[rows["status"] != "done"]
    assert len(rows) == 12
    assert len(failed) == 3
    assert (failed["status"] == status).all()
    assert failed["reason"].str.startswith(reason).all()
    assert failed["loss"].isna().all()
    # The second seed has no rate to take over and searches its own.
    second = rows[(rows["finetune_examples"] == 8) & (rows["seed"] == 1)]
    assert (second["rate_candidates"] == 2).all()


def test_a_diverged_run_is_a_row_with_its_reason(recipe: Recipe, tmp_path: Path) -> None:
    cells = recipe.cells[:1]
    bad = replace(recipe, cells=cells, seeds=(0,), rates={"fmt": (math.inf,)})
    rows = all_of(bad, tmp_path / "runs.csv", tmp_path)
    assert list(rows["status"]) == ["diverged"]
    assert "at rate inf" in rows["reason"][0]


BOMB = """
import os
from tunecast.training.methods import FMT

class Bomb(FMT):
    label = "bomb"
    def config(self):
        os.kill(os.getpid(), 9)
"""


def test_a_killed_worker_costs_its_run_alone(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does when memory is out: the row says so, and the other runs are made."""
    (tmp_path / "bomb.py").write_text(BOMB)
    monkeypatch.syspath_prepend(tmp_path)
    import bomb  # type: ignore[import-not-found]

    cells = (replace(recipe.cells[0], method=bomb.Bomb()), recipe.cells[0])
    both = replace(recipe, cells=cells, seeds=(0,), rates={"bomb": (1e-3,), "fmt": (1e-3,)})
    found = sweep(both, tmp_path / "runs.csv", cache=tmp_path)
    rows = read_runs(tmp_path / "runs.csv").set_index("method")
    assert dict(rows["status"]) == {"bomb": "failed", "fmt": "done"}
    assert "out of memory" in str(rows.at["bomb", "reason"])
    assert len(found.failures) == 1
    assert not list((tmp_path / "running").iterdir())


# --------------------------------------------------------------------------- into a database


def test_a_sweep_fills_a_database_and_goes_on_from_it(recipe: Recipe, tmp_path: Path) -> None:
    importorskip("sqlalchemy")
    url = f"sqlite:///{tmp_path}/runs.db"
    few = replace(recipe, cells=recipe.cells[:3], seeds=(0,))
    assert len(all_of(few, url, tmp_path)) == 3
    found = sweep(replace(few, seeds=(0, 1)), url, cache=tmp_path)
    assert (found.made, found.skipped, found.elsewhere) == (3, 3, 0)
    table = tmp_path / "runs.csv"
    expected = all_of(replace(few, seeds=(0, 1)), table, tmp_path)
    rows = read_runs(url)
    assert list(rows.columns) == list(expected.columns)
    assert digest(rows.drop(columns=TIMED)) == digest(expected.drop(columns=TIMED))
    with claimed(url), pytest.raises(TunecastError, match="another sweep is writing"):
        sweep(recipe, url, cache=tmp_path)


# --------------------------------------------------------------------------- before anything is run


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": "no/such"}, "base model 'small' cannot be loaded from 'no/such'"),
        ({"examples": 10**6}, "1000000 training examples were asked for, but the task has"),
        ({"task": "gone"}, "there is no built-in task 'gone'"),
        ({"method": Prompt(60)}, "leave no room in a context of 64"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_run(
    recipe: Recipe, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    good = recipe.cells[0]
    bad = replace(
        good,
        examples=change.get("examples", 9),
        method=change.get("method", FMT()),
        base=replace(good.base, path=change["path"]) if "path" in change else good.base,
        task=TaskSource(name=change["task"]) if "task" in change else good.task,
    )
    with pytest.raises(TunecastError, match=sentence) as caught:
        sweeps.prepare(bad.base, [good, bad], recipe.budget, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_table_belongs_to_one_sweep_at_a_time(recipe: Recipe, tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    with (
        claimed(table),
        pytest.raises(TunecastError, match=r"another sweep is writing '.*runs.csv'"),
    ):
        sweep(recipe, table)
    with claimed(table):
        pass


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none/runs.csv", "cannot be written: there is no folder"),
        ("runs.txt", "must be a .csv or .parquet file, or the URL"),
        (".", "must be a .csv or .parquet file, or the URL"),
    ],
)
def test_a_table_that_cannot_be_written_is_said_at_once(
    recipe: Recipe, tmp_path: Path, name: str, sentence: str
) -> None:
    with pytest.raises(TunecastError, match=sentence):
        sweep(recipe, tmp_path / name)


def test_a_table_of_something_else_is_not_touched(recipe: Recipe, tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="run_id"):
        sweep(recipe, table)
    assert table.read_text() == "a,b\n1,2\n"


# --------------------------------------------------------------------------- recipes and plans


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rates": {"fmt": (1.0,), "lora": (1.0, 2.0), "prompt": (1.0,)}}, "as many .* lora 2"),
        ({"rates": {"fmt": (1.0,)}}, "no learning rates for 'lora'"),
        ({"cells": ()}, "has no cells"),
        ({"seeds": ()}, "no seeds"),
        ({"cells": "twice"}, "has 'words/small/fmt/8/s0' twice"),
    ],
)
def test_a_recipe_is_fair_and_names_a_run_once(
    recipe: Recipe, change: dict[str, Any], sentence: str
) -> None:
    if change.get("cells") == "twice":
        change = {"cells": recipe.cells[:1] * 2}
    with pytest.raises(TunecastError, match=sentence):
        replace(recipe, **change)


def test_the_embedded_recipes_are_as_large_as_they_say() -> None:
    assert len(tiny().cells) * len(tiny().seeds) >= 24
    made = ladder()
    sizes = sorted({cell.base.size for cell in made.cells if not isinstance(cell.base, Hub)})
    counts = sorted({cell.examples for cell in made.cells})
    assert len(sizes) >= 4
    assert all(2 <= b / a <= 3 for a, b in pairwise(sizes))
    assert len(counts) >= 6
    assert counts[-1] / counts[0] >= 100
    assert len({cell.task for cell in made.cells}) == 2
    assert len(made.seeds) >= 2


def test_the_published_design_is_complete() -> None:
    """arXiv:2402.17193, Tables 1b and 3."""
    made = zhang2024()
    cells: dict[tuple[str, str], set[int]] = {}
    for cell in made.cells:
        cells.setdefault((cell.task.name, cell.method.label), set()).add(cell.examples)
    assert [len(cells["wmt14-en-de", label]) for label in ("fmt", "lora", "prompt")] == [10, 11, 11]
    assert [len(cells[task, "fmt"]) for task in ("wmt19-en-zh", "mlsum")] == [9, 9]
    assert max(cells["wmt19-en-zh", "fmt"]) == 25_000_000
    ranks = {c.method.setting for c in made.cells if c.method.label == "lora"}
    lengths = {c.method.setting for c in made.cells if c.method.label == "prompt"}
    assert ranks == {4, 8, 16, 32, 48, 64, 128}
    assert lengths == {50, 100, 150, 200, 300, 400, 600}
    sizes = sorted({c.base.size / 1e9 for c in made.cells if not isinstance(c.base, Hub)})
    assert sizes == pytest.approx([1, 2, 4, 8, 16], rel=0.2)
    tokens = {c.base.pretrain_tokens for c in made.cells if c.base.family == "en-zh"}
    assert sorted(filter(None, tokens)) == pytest.approx([84e9, 105e9, 126e9, 147e9, 167e9, 206e9])


def test_a_recipe_of_ones_own_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from tunecast.training.recipes import tiny\n"
        "def half():\n    import dataclasses\n"
        "    return dataclasses.replace(tiny(), name='half', seeds=(0,))\n"
        "def none():\n    return 1\n"
    )
    assert find_recipe(f"{path}:half").name == "half"
    with pytest.raises(TunecastError, match=r"'none' in .* is not a function that returns"):
        find_recipe(f"{path}:none")
    with pytest.raises(TunecastError, match=r"there is no file 'gone.py' with a recipe"):
        find_recipe("gone.py:half")
    with pytest.raises(TunecastError, match=r"there is no recipe 'huge' \(tiny, ladder, "):
        find_recipe("huge")


def test_a_plan_says_which_cells(recipe: Recipe, tmp_path: Path) -> None:
    plan = tmp_path / "plan.csv"
    rows = [{"method": "lora", "finetune_examples": 50.0, "task": "words", "cost": 3}]
    pd.DataFrame(rows * 2).to_csv(plan)
    (cell,) = planned(recipe, plan).cells
    assert (cell.method, cell.examples, cell.base) == (LoRA(2), 50, recipe.cells[0].base)

    pd.DataFrame([{**rows[0], "method": "ia3"}]).to_csv(plan)
    with pytest.raises(TunecastError, match=r"row 1 of the plan .* fits no cell of recipe 'test'"):
        planned(recipe, plan)
    pd.DataFrame([{"finetune_examples": 3}]).to_csv(plan)
    with pytest.raises(TunecastError, match="has no column 'method'"):
        planned(recipe, plan)
    with pytest.raises(TunecastError, match="cannot be read"):
        planned(recipe, tmp_path / "gone.csv")


def test_the_cost_is_about_what_is_said(recipe: Recipe, tmp_path: Path) -> None:
    """Only what is missing counts; the table's own runs tell the speed."""
    table = tmp_path / "runs.csv"
    expected = forecast_cost(recipe, table, 1)
    assert expected["runs"].sum() == 12
    assert (expected["seconds"] > 0).all()
    work(jobs_of(recipe, table)[:1], Setting(recipe.budget, table, tmp_path))
    rest = forecast_cost(recipe, table, 2)
    assert rest["runs"].sum() == 10
    row = read_runs(table)
    # Told for examples of full length; those of this task are a fifth of it.
    first = forecast_cost(recipe, tmp_path / "none.csv", 1)["flops"][0]
    assert 0.05 < row["search_flops"].sum() / first < 1
    speed = (row["train_flops"] / row["gpu_seconds"]).median()
    assert (rest["flops"] / rest["seconds"]).tolist() == pytest.approx([2 * speed] * len(rest))


# --------------------------------------------------------------------------- the command line


@pytest.fixture
def recipe_file(recipe: Recipe, tmp_path: Path) -> str:
    """The recipe as a file that the command line can be given."""
    base, task = recipe.cells[0].base, recipe.cells[0].task
    path = tmp_path / "recipe.py"
    path.write_text(
        "from tunecast.training.ladder import Hub\n"
        "from tunecast.training.methods import *\n"
        "from tunecast.training.recipes import Recipe, grid\n"
        "from tunecast.training.run import Budget\n"
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
