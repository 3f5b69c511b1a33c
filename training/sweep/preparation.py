"""What has to be there before a run: base models and text, each made or fetched once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from tunecast.training.base_models import BaseModel
from tunecast.training.budget import Budget
from tunecast.training.devices import threads
from tunecast.training.examples import Encoded
from tunecast.training.loading import load_base
from tunecast.training.offline import in_tokens
from tunecast.training.recipes import Cell, Recipe
from tunecast.training.run import check
from tunecast.training.sweep.jobs import Job, by_base
from tunecast.training.tasks import TaskSource

# The share of a pre-training after which its whole duration is forecast.
CALIBRATED = 0.02


@lru_cache(maxsize=8)
def encoded(task: TaskSource, base: BaseModel, budget: Budget, cache: Path) -> Encoded:
    """Return a task in the tokens of a base model, which runs of one kind share."""
    return in_tokens(task, base, budget, cache)


def prepare(base: BaseModel, cells: Sequence[Cell], budget: Budget, cache: Path) -> None:
    """Get a base model and the text of its cells ready.

    Raises
    ------
    TunecastError
        If one of the cells cannot be run.
    """
    threads(1)
    loaded = load_base(base, cache)
    for cell in cells:
        check(loaded, encoded(cell.task, base, budget, cache), cell.method, cell.examples)


def preparations(
    jobs: Sequence[Job], budget: Budget, cache: Path
) -> list[tuple[BaseModel, list[Cell], Budget, Path]]:
    """Return the arguments of `prepare` for each base model of some jobs."""
    grouped = by_base(job.cell for job in jobs)
    return [(base, cells, budget, cache) for base, cells in grouped.items()]


def prepare_all(recipe: Recipe, cache: Path, say: Callable[[str], None]) -> None:
    """Get every base model and text of a recipe ready, one after the other.

    Parameters
    ----------
    recipe : Recipe
        What they are for.
    cache : Path
        Where they go.
    say : callable
        Given a sentence on how long each base model will take, and one on how long it took.
    """
    for base, cells in by_base(recipe.cells).items():
        started, told = time.perf_counter(), False

        def progress(share: float, base: BaseModel = base, started: float = started) -> None:
            nonlocal told
            if not told and share >= CALIBRATED:
                told = True
                whole = (time.perf_counter() - started) / share
                say(f"{base.name}: pre-training will take about {whole:.0f} s.")

        load_base(base, cache, progress)
        prepare(base, cells, recipe.budget, cache)
        say(f"{base.name}: ready after {time.perf_counter() - started:.0f} s.")
