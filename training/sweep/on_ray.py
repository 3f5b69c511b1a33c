"""A sweep on Ray: cells are tasks on the machines of a cluster, and one process writes the rows.

A task streams its rows back as they end. If its worker or machine is lost, what it has not handed
over goes to another one; a run that takes down several workers becomes a row that says so. Ray ends
its tasks with the process that began them, and the same command goes on from the table.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

from rich.progress import Progress

from tunecast.models.runs import append_run
from tunecast.training.recipes import Recipe
from tunecast.training.sweep import cluster
from tunecast.training.sweep.costs import expected_flops
from tunecast.training.sweep.jobs import Job, groups_of, left_of
from tunecast.training.sweep.preparation import preparations, prepare
from tunecast.training.sweep.rows import Row, failure, row_of
from tunecast.training.sweep.worker import SweepSettings, identity, rows_made


def make_on_ray(
    jobs: Sequence[Job],
    recipe: Recipe,
    settings: SweepSettings,
    workers: int,
    address: str,
    gpus: float | None,
    show: Progress,
) -> list[str]:
    """Make the runs of jobs on Ray and write the rows that come back.

    Parameters
    ----------
    jobs, recipe, settings, workers, show
        As of `tunecast.training.sweep.local.make_here`; a cluster decides itself how many workers.
    address : str
        Of the cluster; see `tunecast.training.sweep.cluster.connected`.
    gpus : float or None
        GPUs of a run; None takes one where there is one.

    Returns
    -------
    list of str
        What is to be said of runs without a loss.
    """
    failures: list[str] = []
    table = settings.table
    remote = replace(settings, table=identity(table))
    lost: Counter[str] = Counter()
    with cluster.connected(address, workers):
        each = cluster.gpus_for(gpus)
        calls = preparations(jobs, remote.budget, remote.cache)
        line = show.add_task("base models", total=len(calls), done=0, all=len(calls))
        for done, _ in enumerate(cluster.each_done(prepare, calls, each), start=1):
            show.update(line, completed=done, done=done)
        weights = {
            job.cell.run_id(seed): expected_flops(job, settings.budget) / len(job.seeds)
            for job in jobs
            for seed in job.seeds
        }
        runs, total = len(weights), sum(weights.values())
        line = show.add_task("runs", total=total, done=0, all=runs)
        streams = cluster.Streams(rows_made, each)
        # A run on several GPUs trains by itself, and on a CPU stacks bring little.
        for group in groups_of(jobs, "cuda" if 0 < each <= 1 else "cpu"):
            streams.add(group, group, remote)
        alone = replace(remote, stacked=False)
        made = 0
        for group, item in streams:
            rows = [item]
            if isinstance(item, cluster.Lost):
                # One by one, it shows which run of a stack takes its worker down.
                left = left_of(group, recipe, table)
                again, rows = _tried_again(left, lost, item.reason, alone=len(group) == 1)
                for job in again:
                    streams.add((job,), (job,), alone)
            for row, extra in rows:
                append_run(table, row, extra=extra)
                failures += failure(row, extra)
                made += 1
                show.update(line, advance=weights[row.run_id], done=made)
    return failures


def _tried_again(
    jobs: Sequence[Job], lost: Counter[str], reason: str, *, alone: bool
) -> tuple[list[Job], list[Row]]:
    """Return what is made once more after a loss, and the rows of runs that are given up.

    Parameters
    ----------
    jobs : sequence of Job
        What the lost worker has left.
    lost : Counter of str
        How many workers each run has lost; this loss is added.
    reason : str
        What Ray says of the loss.
    alone : bool
        Whether the worker made one run at a time, so that the loss is the first run's doing.
    """
    again: list[Job] = []
    rows: list[Row] = []
    left = deque(jobs)
    while left:
        job = left.popleft()
        seed = job.seeds[0]
        name = job.cell.run_id(seed)
        lost[name] += 1
        if lost[name] < cluster.LOSSES or not alone:
            again.append(job)
            continue
        told = f"lost its worker {lost[name]} times ({reason})"
        rows.append(row_of(job.cell, seed, "failed", None, {"reason": told}))
        if len(job.seeds) > 1:
            left.append(replace(job, seeds=job.seeds[1:]))
    return again, rows
