"""Recipes and plans: which runs they ask for, and what they will cost."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import importorskip

importorskip("torch")
importorskip("peft")
importorskip("transformers")

from tunecast.models.errors import TunecastError
from tunecast.models.runs import read_runs
from tunecast.training.base_models import Hub
from tunecast.training.methods import LoRA
from tunecast.training.recipes import Recipe, find_recipe, ladder, tiny, zhang2024
from tunecast.training.sweep import forecast_cost, planned
from tunecast.training.sweep.jobs import jobs_of
from tunecast.training.sweep.worker import SweepSettings, work

# One run at a time in this process, unless a test says otherwise.
pytestmark = pytest.mark.usefixtures("places")


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


# --------------------------------------------------------------------------- plans


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


# --------------------------------------------------------------------------- costs


def test_the_cost_is_about_what_is_said(recipe: Recipe, tmp_path: Path) -> None:
    """Only what is missing counts; the table's own runs tell the speed."""
    table = tmp_path / "runs.csv"
    expected = forecast_cost(recipe, table, 1)
    assert expected["runs"].sum() == 12
    assert (expected["seconds"] > 0).all()
    work(jobs_of(recipe, table)[:1], SweepSettings(recipe.budget, table, tmp_path))
    rest = forecast_cost(recipe, table, 2)
    assert rest["runs"].sum() == 10
    row = read_runs(table)
    # Told for examples of full length; those of this task are a fifth of it.
    first = forecast_cost(recipe, tmp_path / "none.csv", 1)["flops"][0]
    assert 0.05 < row["search_flops"].sum() / first < 1
    speed = (row["train_flops"] / row["gpu_seconds"]).median()
    assert (rest["flops"] / rest["seconds"]).tolist() == pytest.approx([2 * speed] * len(rest))
