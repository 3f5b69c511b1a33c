"""Rows of the run table: of runs that were measured, that diverged and that failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from tunecast.models.runs import Run
from tunecast.training.base_models import Rung
from tunecast.training.loading import body_size, outline
from tunecast.training.methods import FMT
from tunecast.training.recipes import Cell
from tunecast.training.run import Result
from tunecast.training.sweep.jobs import Job

# A row and its further columns.
type Row = tuple[Run, dict[str, object]]


def row_of(
    cell: Cell,
    seed: int,
    status: str,
    result: Result | None,
    extra: Mapping[str, object],
) -> Row:
    """Return the row of one run and its further columns.

    Parameters
    ----------
    cell : Cell
        What was run.
    seed : int
        With which seed.
    status : str
        ``"done"``, ``"diverged"`` or ``"failed"``.
    result : Result or None
        What was measured, if there is a loss.
    extra : mapping of str to object
        Columns beside the loss; those that the run table knows go to their places.
    """
    columns = dict(extra)
    base = cell.base
    size = base.size if isinstance(base, Rung) else body_size(outline(base.path, base.name))
    trained = columns.get("trainable_params")
    row = Run(
        run_id=cell.run_id(seed),
        task=cell.task.name,
        method=cell.method.label,
        base_model=base.name,
        family=base.family,
        model_size=float(size),
        pretrain_tokens=base.pretrain_tokens,
        pet_params=0.0 if isinstance(cell.method, FMT) else _number(trained),
        finetune_examples=float(cell.examples),
        loss=None if result is None else result.loss,
        loss_se=None if result is None else result.loss_se,
        seed=seed,
        status=status,
        train_flops=_number(columns.pop("train_flops", None)),
        gpu_seconds=_number(columns.pop("gpu_seconds", None)),
        tokens_per_second=_number(columns.pop("tokens_per_second", None)),
        mfu=_number(columns.pop("mfu", None)),
    )
    return row, columns


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def landed(job: Job, result: Result | None, status: str, reason: str) -> tuple[Job, Row]:
    """Return what is left of a job after its first missing run, and the row of that.

    Parameters
    ----------
    job : Job
        Its first seed is the run's.
    result, status, reason
        What the run came to; see `row_of`. The rate that it found is taken over by the rest.
    """
    seed = job.seeds[0]
    extra: dict[str, object] = {"reason": reason}
    left = replace(job, seeds=job.seeds[1:])
    if result is not None:
        extra |= result.columns
        if job.candidates is not None:
            extra |= {"rate_candidates": job.candidates, "rate_at_edge": job.at_edge}
        elif result.columns["learning_rate"] is not None:
            left = replace(
                left,
                rates=(float(str(result.columns["learning_rate"])),),
                candidates=int(str(result.columns["rate_candidates"])),
                at_edge=bool(result.columns["rate_at_edge"]),
            )
    return left, row_of(job.cell, seed, status, result, extra)


def failure(row: Run, extra: Mapping[str, object]) -> list[str]:
    """Return the sentence on a row that has no loss, none for one that has."""
    return [] if row.status == "done" else [f"{row.run_id}: {extra['reason']}"]


def reason_of_failure(error: BaseException) -> str:
    """Return one sentence on why a run failed, the same for memory wherever it ran out."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if memory or "can't allocate memory" in str(error):
        return f"out of memory: {text}"[:200]
    return f"{type(error).__name__}: {text}"[:200]
