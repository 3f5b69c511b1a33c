"""The sweep itself: what it refuses, which runs are its own, and who makes them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tunecast.models.errors import TunecastError
from tunecast.models.files import default_cache
from tunecast.training.devices import gpus_here
from tunecast.training.recipes import Recipe
from tunecast.training.sweep.claims import claimed
from tunecast.training.sweep.jobs import jobs_of
from tunecast.training.sweep.local import make_here
from tunecast.training.sweep.on_ray import make_on_ray
from tunecast.training.sweep.worker import SweepSettings


@dataclass(frozen=True, slots=True)
class Summary:
    """What a sweep did.

    Parameters
    ----------
    made, skipped, elsewhere : int
        Rows appended, runs that the table held before, and runs left to another sweep that makes
        them at the time.
    failures : tuple of str
        Each failed or diverged run with its reason.
    seconds : float
        Wall time.
    """

    made: int
    skipped: int
    elsewhere: int
    failures: tuple[str, ...]
    seconds: float


def sweep(
    recipe: Recipe,
    table: str | Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    gpus: float | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> Summary:
    """Make the runs of a recipe that a table does not hold, and append them to it.

    Parameters
    ----------
    recipe : Recipe
        What to run.
    table : str or Path
        CSV or Parquet file, or the URL of a database; it need not exist.
    workers : int
        Processes, each with one thread.
    ray : str, optional
        Run on Ray: ``"local"`` for this machine, ``"auto"`` for the cluster that it belongs to, or
        the cluster's address. All machines need this package, and the cache under the same path;
        with a shared one a run goes on wherever it is tried again.
    gpus : float, optional
        GPUs of a run; by default one where there is one. Several share a run, its model and
        optimizer cut into as many pieces; parts of one need Ray.
    cache : Path, optional
        Folder of text, base models and interrupted runs; by default `default_cache`.
    progress : bool
        Show a bar with the time left.

    Raises
    ------
    TunecastError
        If something cannot be run at all, before any run is made.
    """
    cache = cache or default_cache()
    shards = _shards(workers, ray, gpus)
    if shards > 1 and recipe.budget.generate:
        raise TunecastError(f"recipe '{recipe.name}' generates text, which one GPU alone can do.")
    started = time.perf_counter()
    with claimed(table, [cell.run_id(0) for cell in recipe.cells]) as mine:
        ours = [cell for cell in recipe.cells if cell.run_id(0) in mine]
        elsewhere = len(recipe.cells) - len(ours)
        jobs = jobs_of(replace(recipe, cells=tuple(ours)), table) if ours else []
        runs = sum(len(job.seeds) for job in jobs)
        skipped = len(ours) * len(recipe.seeds) - runs
        settings = SweepSettings(recipe.budget, table, cache, shards)
        with bar(progress) as show:
            if not jobs:
                failures = []
            elif ray is None:
                failures = make_here(jobs, recipe, settings, workers, show)
            else:
                failures = make_on_ray(jobs, recipe, settings, workers, ray, gpus, show)
    seconds = time.perf_counter() - started
    return Summary(runs, skipped, elsewhere * len(recipe.seeds), tuple(failures), seconds)


def _shards(workers: int, ray: str | None, gpus: float | None) -> int:
    """Return into how many pieces a run's model is cut; refuse what cannot be had."""
    if workers < 1:
        raise TunecastError(f"a sweep needs at least one worker, not {workers}.")
    if ray not in (None, "local") and workers > 1:
        raise TunecastError("a Ray cluster decides itself how many workers there are.")
    if gpus is None:
        return 1
    if not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
        raise TunecastError(f"a run takes a part of a GPU or a whole number of them, not {gpus:g}.")
    if ray is None:
        if gpus not in (0, 1) and (gpus < 1 or workers > 1):
            raise TunecastError(
                f"{workers} workers with {gpus:g} GPUs each have to be scheduled by Ray: add --ray."
            )
        if gpus > (here := gpus_here()):
            raise TunecastError(f"a run asks for {gpus:g} GPUs, but this machine has {here}.")
    return max(1, int(gpus))


@contextmanager
def bar(shown: bool) -> Iterator[Progress]:
    """Open a progress bar on the error stream."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]} of {task.fields[all]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        yield progress
