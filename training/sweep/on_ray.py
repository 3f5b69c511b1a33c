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
from tunecast.training.sweep.rows import failure, row_of
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
    """Make the runs of jobs on Ray and write the rows that come back."""
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
            rows = [] if isinstance(item, cluster.Lost) else [item]
            if isinstance(item, cluster.Lost):
                # One by one, it shows which run of a stack takes its worker down.
                left = deque(left_of(group, recipe, table))
                while left:
                    job = left.popleft()
                    name = job.cell.run_id(job.seeds[0])
                    lost[name] += 1
                    if lost[name] < cluster.LOSSES or len(group) > 1:
                        streams.add((job,), (job,), alone)
                        continue
                    reason = f"lost its worker {lost[name]} times ({item.reason})"
                    rows.append(row_of(job.cell, job.seeds[0], "failed", None, {"reason": reason}))
                    if len(job.seeds) > 1:
                        left.append(replace(job, seeds=job.seeds[1:]))
            for row, extra in rows:
                append_run(table, row, extra=extra)
                failures += failure(row, extra)
                made += 1
                show.update(line, advance=weights[row.run_id], done=made)
    return failures
