"""A plan of runs, such as `tunecast plan` writes, as the cells of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.training.base_models import Rung
from tunecast.training.recipes import Cell, Recipe


def planned(recipe: Recipe, plan: Path) -> Recipe:
    """Return a recipe with the cells that a plan names.

    Parameters
    ----------
    recipe : Recipe
        It says what the plan's tasks, base models and methods are; its other cells are left out.
    plan : Path
        CSV with the columns ``method`` and ``finetune_examples``, and ``task``, ``base_model`` or
        ``model_size``, ``method_setting`` where the recipe has several.

    Raises
    ------
    TunecastError
        If the plan cannot be read or a row fits no cell, or several, of the recipe.
    """
    try:
        table = pd.read_csv(plan)
    except (OSError, ValueError) as error:
        raise TunecastError(f"the plan '{plan}' cannot be read: {error}.") from error
    if missing := [name for name in ("method", "finetune_examples") if name not in table]:
        raise TunecastError(f"the plan '{plan}' has no column '{missing[0]}'.")
    cells: dict[Cell, None] = {}
    for number, row in enumerate(table.to_dict("records"), start=1):
        asked = {str(name): value for name, value in row.items() if not pd.isna(value)}
        kinds = {
            (cell.task, cell.base, cell.method) for cell in recipe.cells if _matches(cell, asked)
        }
        if len(kinds) != 1:
            found = "no cell" if not kinds else f"{len(kinds)} kinds of cells"
            raise TunecastError(
                f"row {number} of the plan '{plan}' fits {found} of recipe '{recipe.name}'; task, "
                "base_model, method and method_setting must name one."
            )
        task, base, method = kinds.pop()
        count = int(asked["finetune_examples"])
        cells[Cell(task=task, base=base, method=method, examples=count)] = None
    return replace(recipe, cells=tuple(cells))


def _matches(cell: Cell, asked: Mapping[str, object]) -> bool:
    facts: dict[str, object] = {
        "task": cell.task.name,
        "base_model": cell.base.name,
        "method": cell.method.label,
        "method_setting": cell.method.setting,
    }
    if isinstance(cell.base, Rung):
        facts["model_size"] = cell.base.size
    return all(asked[name] == value for name, value in facts.items() if name in asked)
