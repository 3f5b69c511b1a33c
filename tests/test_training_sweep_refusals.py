"""Sweeps: what is refused before anything is run, and tables that are taken."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import importorskip

importorskip("torch")
importorskip("peft")
importorskip("transformers")

from tunecast.models.errors import TunecastError
from tunecast.training.methods import FMT, Prompt
from tunecast.training.recipes import Recipe
from tunecast.training.sweep import sweep
from tunecast.training.sweep.claims import claimed
from tunecast.training.sweep.preparation import prepare
from tunecast.training.tasks import TaskSource


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
        prepare(bad.base, [good, bad], recipe.budget, tmp_path)
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
