"""Jobs: what of a recipe a table does not hold yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import pandas as pd

from tunecast.models.runs import has_runs, read_runs
from tunecast.training.base_models import BaseModel
from tunecast.training.recipes import Cell, Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The runs of one cell that are still to be made.

    Parameters
    ----------
    cell : Cell
        What they have in common.
    seeds : tuple of int
        Which are missing.
    rates : tuple of float
        Candidates of the search, or the one rate that it found.
    candidates, at_edge : int or None, bool or None
        Where a search has been made: how many rates it tried, and whether the best was the last.
    """

    cell: Cell
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    candidates: int | None = None
    at_edge: bool | None = None


def jobs_of(recipe: Recipe, table: str | Path) -> list[Job]:
    """Return what of a recipe the table does not hold, in the recipe's order."""
    done = rows_of(table)
    jobs = []
    for cell in recipe.cells:
        seeds = tuple(seed for seed in recipe.seeds if cell.run_id(seed) not in done.index)
        if not seeds:
            continue
        job = Job(cell=cell, seeds=seeds, rates=recipe.rates[cell.method.label])
        first = cell.run_id(recipe.seeds[0])
        if first in done.index and done.at[first, "status"] == "done" and cell.examples:
            job = replace(
                job,
                rates=(float(str(done.at[first, "learning_rate"])),),
                candidates=int(float(str(done.at[first, "rate_candidates"]))),
                at_edge=str(done.at[first, "rate_at_edge"]) == "True",
            )
        jobs.append(job)
    return jobs


def left_of(jobs: Sequence[Job], recipe: Recipe, table: str | Path) -> list[Job]:
    """Return what is left of jobs by now."""
    return jobs_of(replace(recipe, cells=tuple(job.cell for job in jobs)), table)


def rows_of(table: str | Path) -> pd.DataFrame:
    """Return the rows of a table by run, none if there is no table yet."""
    if not has_runs(table):
        return pd.DataFrame(columns=["status", "train_flops", "gpu_seconds"])
    return read_runs(table).set_index("run_id")


def groups_of(jobs: Iterable[Job], device: str) -> list[tuple[Job, ...]]:
    """Return what each worker makes at a time: jobs in a row whose runs may train side by side.

    On a CPU, where that brings little, the jobs are shared out one by one.
    """
    if device == "cpu":
        return [(job,) for job in jobs]
    return [
        tuple(group)
        for _, group in groupby(jobs, lambda j: (j.cell.task, j.cell.base, j.cell.method.label))
    ]


def by_base(cells: Iterable[Cell]) -> dict[BaseModel, list[Cell]]:
    """Return the cells of each base model, in their order."""
    found: dict[BaseModel, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.base, []).append(cell)
    return found
