"""A sweep by processes of this machine; one that is killed costs the run that it was making."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import Progress

from tunecast.models.errors import TunecastError
from tunecast.models.runs import append_run
from tunecast.training.devices import best_device
from tunecast.training.processes import obey_the_parent
from tunecast.training.recipes import Recipe
from tunecast.training.sweep.costs import expected_flops
from tunecast.training.sweep.jobs import Job, groups_of, left_of, rows_of
from tunecast.training.sweep.preparation import preparations, prepare
from tunecast.training.sweep.rows import failure, row_of
from tunecast.training.sweep.worker import IN_A_STACK, SweepSettings, in_worker


def make_here(
    jobs: Sequence[Job], recipe: Recipe, settings: SweepSettings, workers: int, show: Progress
) -> list[str]:
    """Make the runs of jobs on this machine; return what is to be said of those without a loss.

    Parameters
    ----------
    jobs : sequence of Job
        What to run.
    recipe : Recipe
        What the jobs are of.
    settings : SweepSettings
        How, and where the rows go.
    workers : int
        Processes.
    show : rich.progress.Progress
        Bars of how far it is.

    Raises
    ------
    TunecastError
        If something cannot be run at all, or a worker is killed before its first run.
    """
    failures: list[str] = []
    (settings.cache / "running").mkdir(parents=True, exist_ok=True)
    while jobs:
        with TemporaryDirectory(dir=settings.cache / "running") as folder:
            marks = Path(folder)
            try:
                with worker_pool(workers) as pool:
                    ready = [
                        (pool.submit(prepare, *call), 1.0, 1)
                        for call in preparations(jobs, settings.budget, settings.cache)
                    ]
                    collect(ready, show, "base models")
                    made = [
                        (
                            pool.submit(in_worker, group, settings, marks),
                            sum(expected_flops(job, settings.budget) for job in group),
                            sum(len(job.seeds) for job in group),
                        )
                        for group in groups_of(jobs, best_device())
                    ]
                    said = collect(made, show, "runs")
                    return failures + [reason for reasons in said for reason in reasons]
            except BrokenProcessPool:
                failures += _killed(jobs, recipe, settings.table, marks)
                # Which of a stack's runs was too large shows one by one.
                settings = replace(settings, stacked=False)
        jobs = left_of(jobs, recipe, settings.table)
    return failures


def _killed(jobs: Sequence[Job], recipe: Recipe, table: str | Path, marks: Path) -> list[str]:
    """Append a row for each run whose worker was killed, as the system does when memory is out.

    Raises
    ------
    TunecastError
        If no run was under way: another try would end alike.
    """
    names = {path.read_text() for path in marks.iterdir()}
    reason = "killed by the system, as it does when out of memory"
    found = []
    for cell, seed in ((job.cell, seed) for job in jobs for seed in job.seeds):
        if (name := cell.run_id(seed)) in names and name not in rows_of(table).index:
            row, extra = row_of(cell, seed, "failed", None, {"reason": reason})
            append_run(table, row, extra=extra)
            found += failure(row, extra)
    if not found and IN_A_STACK not in names:
        raise TunecastError(
            f"a worker of recipe '{recipe.name}' was killed while getting base models and text "
            "ready, perhaps for want of memory."
        )
    return found


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor]:
    """Open worker processes, and end them at once if anything goes wrong."""
    # Forking a process that has used torch's threads can hang it.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=obey_the_parent, initargs=(os.getpid(),)
    )
    others = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException:
        workers_of_the_pool = set(multiprocessing.active_children()) - others
        pool.shutdown(wait=False, cancel_futures=True)
        for process in workers_of_the_pool:
            process.terminate()
        raise
    pool.shutdown()


def collect[T](
    tasks: Iterable[tuple[Future[T], float, int]], progress: Progress, what: str
) -> list[T]:
    """Wait for tasks and return what they did, in their order.

    Parameters
    ----------
    tasks : iterable of (Future, float, int)
        Each with its weight, by which the bar moves, and the number of things that it does.
    progress : rich.progress.Progress
        Where the bar is.
    what : str
        What is counted.
    """
    tasks = list(tasks)
    line = progress.add_task(
        what, total=sum(t[1] for t in tasks), done=0, all=sum(t[2] for t in tasks)
    )
    facts = {future: (weight, count) for future, weight, count in tasks}
    pending, done = set(facts), 0
    while pending:
        finished, pending = wait(pending, return_when="FIRST_COMPLETED")
        for future in finished:
            try:
                future.result()
            except ValueError as error:
                if not isinstance(error, TunecastError):
                    raise
                # Raised anew, so that it is seen to come from here and not from the pool.
                raise TunecastError(str(error)) from error
            done += facts[future][1]
            progress.update(line, advance=facts[future][0], done=done)
    return [future.result() for future, _, _ in tasks]
