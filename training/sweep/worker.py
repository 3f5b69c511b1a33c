"""In a worker: the runs of jobs, side by side where that is faster, and a row as each ends."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tunecast.models.runs import append_run, is_url, shown
from tunecast.training.budget import Budget
from tunecast.training.devices import best_device, threads
from tunecast.training.evaluate import Diverged
from tunecast.training.examples import Encoded
from tunecast.training.loading import Loaded, load_base
from tunecast.training.quality import scores
from tunecast.training.recipes import Cell
from tunecast.training.run import Ask, Result, run
from tunecast.training.sharded import run_sharded
from tunecast.training.side_by_side import places_for, run_stack
from tunecast.training.sweep.jobs import Job
from tunecast.training.sweep.preparation import encoded
from tunecast.training.sweep.rows import Row, failure, landed, reason_of_failure

# What a mark says while several runs are under way.
IN_A_STACK = ""


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """What all jobs of a sweep share.

    Parameters
    ----------
    budget : Budget
        Of every run.
    table : str or Path
        Where the rows go.
    cache : Path
        Folder of text, base models and interrupted runs.
    shards : int
        Processes, each with a GPU, that make a run together.
    stacked : bool
        Whether runs may train side by side.
    """

    budget: Budget
    table: str | Path
    cache: Path
    shards: int = 1
    stacked: bool = True


def identity(table: str | Path) -> str:
    """Return what tells the interrupted runs of one table from those of others, no password."""
    return shown(table) if is_url(table) else str(Path(table).resolve())


def state_of(cell: Cell, seed: int, settings: SweepSettings) -> Path:
    """Return where the state of a run is kept while it trains."""
    # Whatever would make it another run, or the run of another sweep, is in the name of its state.
    name = repr((cell, seed, settings.budget, identity(settings.table)))
    return settings.cache / "running" / hashlib.sha256(name.encode()).hexdigest()[:16]


def in_worker(jobs: Sequence[Job], settings: SweepSettings, marks: Path) -> list[str]:
    """Do `work`, leaving a mark of the run under way that only a violent end leaves behind."""
    try:
        return work(jobs, settings, marks / str(os.getpid()))
    except SystemExit:  # the pool would take it for an answer and begin the next job
        os._exit(1)


def work(jobs: Sequence[Job], settings: SweepSettings, mark: Path | None = None) -> list[str]:
    """Make the runs of jobs and append their rows; return what is to be said of the failed."""
    failures = []
    for row, extra in rows_made(jobs, settings, mark):
        append_run(settings.table, row, extra=extra)
        failures += failure(row, extra)
    return failures


def rows_made(
    jobs: Sequence[Job], settings: SweepSettings, mark: Path | None = None
) -> Iterator[Row]:
    """Make the runs of jobs and give the row of each as it ends.

    The jobs have task, base model and method label in common. Where it is faster, and the settings
    allow it, their runs train side by side, else one after the other.

    Parameters
    ----------
    jobs : sequence of Job
        What to run.
    settings : SweepSettings
        How; the table is not written.
    mark : Path, optional
        File in which to keep the name of the run under way.
    """
    threads(1)
    if settings.stacked and settings.shards == 1:
        with marked(mark, IN_A_STACK):
            jobs = yield from made_in_a_stack(jobs, settings)
    for job in jobs:
        while job.seeds:
            with marked(mark, job.cell.run_id(job.seeds[0])):
                made = attempt(job.cell, job.seeds[0], job.rates, settings)
            job, row = landed(job, *made)
            yield row


def made_in_a_stack(
    jobs: Sequence[Job], settings: SweepSettings
) -> Generator[Row, None, Sequence[Job]]:
    """Make runs in a stack, if that is faster, and return what is left to be made one by one.

    Parameters
    ----------
    jobs, settings
        As in `rows_made`.

    Yields
    ------
    Row
        Of each run as it ends; a cell's search comes before its other seeds.
    """
    budget, cache = settings.budget, settings.cache
    cells = [job.cell for job in jobs if job.cell.examples]
    runs = sum(len(job.rates) + len(job.seeds) - 1 for job in jobs if job.cell.examples)
    if runs < 2:
        return list(jobs)
    left = {job.cell: job for job in jobs}
    asked: dict[Ask, Job] = {}
    waiting: deque[Ask] = deque()

    def ask(job: Job) -> None:
        # A search comes first and alone; once a rate is known, all seeds may train.
        seeds = job.seeds[:1] if job.candidates is None else job.seeds
        for seed in seeds:
            wanted = Ask(
                method=job.cell.method,
                examples=job.cell.examples,
                rates=job.rates,
                seed=seed,
                checkpoint=state_of(job.cell, seed, settings),
            )
            asked[wanted] = replace(job, seeds=(seed,))
            waiting.append(wanted)

    try:
        base = load_base(cells[0].base, cache)
        task = encoded(cells[0].task, cells[0].base, budget, cache)
        widest = max((cell.method for cell in cells), key=lambda method: method.setting)
        places = places_for(base, task, widest, budget)
        if places == 1:
            return list(jobs)
        for job in jobs:
            if job.cell.examples:
                ask(job)
        for wanted, made in run_stack(
            base, task, waiting, budget, widest=widest, places=min(places, runs)
        ):
            one = asked.pop(wanted)
            result = None if isinstance(made, Diverged) else scored(made, task, base, budget)
            status, reason = ("diverged", str(made)) if result is None else ("done", "")
            after, row = landed(one, result, status, reason)
            rest = tuple(seed for seed in left[one.cell].seeds if seed != wanted.seed)
            left[one.cell] = replace(after, seeds=rest)
            if one.candidates is None:
                ask(left[one.cell])
            yield row
    except Exception as error:  # one by one it may go well, or a row will say why not
        warnings.warn(f"runs go on one by one: {reason_of_failure(error)}.", stacklevel=2)
    return list(left.values())


def attempt(
    cell: Cell, seed: int, rates: tuple[float, ...], settings: SweepSettings
) -> tuple[Result | None, str, str]:
    """Make one run; return what it measured, its status and, if it failed, why."""
    budget, cache = settings.budget, settings.cache
    make = run if settings.shards == 1 else partial(run_sharded, shards=settings.shards)
    try:
        base = load_base(cell.base, cache)
        task = encoded(cell.task, cell.base, budget, cache)
        result = make(
            base,
            task,
            cell.method,
            examples=cell.examples,
            rates=rates,
            seed=seed,
            budget=budget,
            checkpoint=state_of(cell, seed, settings),
        )
        result = scored(result, task, base, budget)
    except Diverged as error:
        return None, "diverged", str(error)
    except Exception as error:  # whatever it is, the row says so and the sweep goes on
        return None, "failed", reason_of_failure(error)
    return result, "done", ""


def scored(result: Result, task: Encoded, base: Loaded, budget: Budget) -> Result:
    """Add the scores of generated text to what a run measured, if they are asked for."""
    if not budget.generate or result.tuned is None:
        return result
    found = scores(result.tuned, task, base.tokenizer, budget.generate, best_device())
    return replace(result, columns={**result.columns, **found})


@contextmanager
def marked(mark: Path | None, name: str) -> Iterator[None]:
    """Keep a file with the name of the run under way."""
    if mark is None:
        yield
        return
    mark.write_text(name)
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)
