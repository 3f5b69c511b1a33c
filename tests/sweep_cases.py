"""What tests of sweeps share: a recipe made in this process, and what differs between two times."""

from pathlib import Path

import pandas as pd

from tunecast.models.runs import read_runs
from tunecast.training.recipes import Recipe
from tunecast.training.sweep.jobs import jobs_of
from tunecast.training.sweep.worker import SweepSettings, work

# What differs from one time to the next; a rate that is known is not searched again.
TIMED = ["gpu_seconds", "tokens_per_second", "search_flops"]


def all_of(recipe: Recipe, table: str | Path, cache: Path) -> pd.DataFrame:
    """Run a recipe in this process."""
    for job in jobs_of(recipe, table):
        work([job], SweepSettings(recipe.budget, table, cache))
    return read_runs(table)
